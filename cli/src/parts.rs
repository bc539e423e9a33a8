//! A range of a guest's memory, part by part: bytes, and the holes between them.

use std::fmt;
use std::ops::Range;

use xenmap::{Access, Error, FRAME_SIZE, ForeignMapping, FrameError, Gfn, Guest, NumberRange, PageTables, Protection};

use crate::Result;
use crate::number::count;
use crate::space::Space;
use crate::window::MappedWindows;

const FRAME: u64 = FRAME_SIZE as u64;
/// Frames that are mapped at a time.
const WINDOW: u64 = 1024;
/// Bytes that are copied at a time: few enough for a processor's cache. A power of two.
const CHUNK: usize = 1 << 20;
/// Bits of an address within the smallest page, and within what a frame of a page table covers at least: it has 512
/// entries, each for a page or more.
const PAGE_BITS: u32 = FRAME.trailing_zeros();
const TABLE_BITS: u32 = PAGE_BITS + 9;

/// A part of a range.
pub(crate) enum Part<'a> {
    /// Bytes, the first of which is at this address. The next part may continue them.
    Bytes(u64, &'a [u8]),
    Hole(&'a Hole),
}

/// A range of addresses that cannot be read.
#[derive(Clone)]
pub(crate) struct Hole {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) reason: String,
}

impl Hole {
    pub(crate) fn bytes(&self) -> u64 {
        // It fits, because a range has at most `u64::MAX` bytes.
        self.last - self.first + 1
    }
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be read: {}", count(self.bytes(), "byte"), self.reason)
    }
}

/// Calls `f` with each part of a range, in ascending order. Adjacent holes are one, unless their reasons differ.
pub(crate) fn each_part(
    guest: &Guest,
    space: &Space,
    (first, last): (u64, u64),
    f: impl FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    let len = usize::try_from(last - first)?.saturating_add(1);
    let mut parts = Parts { first, last, hole: None, buffer: vec![0; len.min(CHUNK)], f };
    match space {
        Space::Physical => parts.read_physical(guest)?,
        Space::Virtual(tables) => parts.read_virtual(guest, tables)?,
    }
    parts.end_hole()
}

struct Parts<F> {
    first: u64,
    last: u64,
    /// The hole that the next part may continue.
    hole: Option<Hole>,
    buffer: Vec<u8>,
    f: F,
}

impl<F: FnMut(Part<'_>) -> Result<()>> Parts<F> {
    fn read_physical(&mut self, guest: &Guest) -> Result<()> {
        let pfns = self.first / FRAME..self.last / FRAME + 1;
        // The guest has never had a frame above the highest. So if the first of them is no RAM, none is.
        let highest = guest.memory().maximum_gpfn(guest.domid()).unwrap_or(u64::MAX);
        let end = highest.saturating_add(1).clamp(pfns.start, pfns.end);
        self.read_frames(guest, pfns.start..end)?;
        if end == pfns.end {
            return Ok(());
        }
        let above = guest.map_partial(Protection::ReadOnly, NumberRange::try_from(end..end + 1)?)?;
        match above.failed().first() {
            Some(e) if e.errno == libc::EINVAL => self.add_hole(end * FRAME, self.last, e.reason()),
            _ => self.read_frames(guest, end..pfns.end),
        }
    }

    fn read_frames(&mut self, guest: &Guest, pfns: Range<u64>) -> Result<()> {
        for window in MappedWindows::new(guest, pfns, WINDOW) {
            let (pfns, mapping) = window?;
            let base = pfns.start * FRAME;
            let mut next = 0;
            for run in mapping.failed().chunk_by(|a, b| a.index + 1 == b.index && a.errno == b.errno) {
                let (start, end) = (run[0].index * FRAME_SIZE, (run[0].index + run.len()) * FRAME_SIZE);
                self.copy(&mapping, base, next..start)?;
                self.add_hole(base + start as u64, base + end as u64 - 1, run[0].reason())?;
                next = end;
            }
            self.copy(&mapping, base, next..mapping.frames() * FRAME_SIZE)?;
        }
        Ok(())
    }

    /// Copies those bytes of a mapping that are in the range. The mapping begins at the address `base`.
    fn copy(&mut self, mapping: &ForeignMapping, base: u64, bytes: Range<usize>) -> Result<()> {
        let start = bytes.start.max(usize::try_from(self.first.saturating_sub(base))?);
        let end = bytes.end.min(usize::try_from(self.last - base)?.saturating_add(1));
        for offset in (start..end).step_by(self.buffer.len()) {
            let len = self.buffer.len().min(end - offset);
            mapping.view().read_bytes(offset, &mut self.buffer[..len])?;
            self.add_bytes(base + offset as u64, len)?;
        }
        Ok(())
    }

    /// Reads many pages at a time, and page by page where that fails.
    fn read_virtual(&mut self, guest: &Guest, tables: &PageTables) -> Result<()> {
        let mut at = self.first;
        let mut by_page = false;
        loop {
            let size = if by_page { FRAME } else { CHUNK as u64 };
            let mut end = self.last.min(at | (size - 1));
            let len = usize::try_from(end - at)? + 1;
            match guest.read_virtual(tables, at, &mut self.buffer[..len]) {
                Ok(()) => self.add_bytes(at, len)?,
                Err(_) if !by_page => {
                    by_page = true;
                    continue;
                }
                Err(Error::Translation { .. } | Error::GuestAddress { .. }) => {
                    let (reason, last) = why_unreadable(guest, tables, at)?;
                    end = self.last.min(last);
                    self.add_hole(at, end, reason)?;
                }
                Err(e) => return Err(e.into()),
            }
            if end == self.last {
                return Ok(());
            }
            at = end + 1;
            by_page &= !at.is_multiple_of(CHUNK as u64);
        }
    }

    fn add_bytes(&mut self, first: u64, len: usize) -> Result<()> {
        self.end_hole()?;
        (self.f)(Part::Bytes(first, &self.buffer[..len]))
    }

    fn add_hole(&mut self, first: u64, last: u64, reason: String) -> Result<()> {
        let (first, last) = (first.max(self.first), last.min(self.last));
        match &mut self.hole {
            Some(hole) if hole.reason == reason => hole.last = last,
            _ => {
                self.end_hole()?;
                self.hole = Some(Hole { first, last, reason });
            }
        }
        Ok(())
    }

    fn end_hole(&mut self) -> Result<()> {
        match self.hole.take() {
            Some(hole) => (self.f)(Part::Hole(&hole)),
            None => Ok(()),
        }
    }
}

/// Returns why a virtual address cannot be read, and the last address that certainly cannot be read for the same reason.
fn why_unreadable(guest: &Guest, tables: &PageTables, address: u64) -> Result<(String, u64)> {
    let frame_reason = |errno| FrameError::new(0, Gfn::MAX, errno).reason();
    let physical = match guest.translate(tables, address) {
        Ok(physical) => physical,
        Err(Error::Translation { last, .. }) => return Ok(("no translation".to_owned(), last)),
        Err(Error::GuestAddress { errno, .. }) => {
            let reason = format!("no translation (page table: {})", frame_reason(errno));
            return Ok((reason, end_of_block(address, TABLE_BITS)));
        }
        Err(e) => return Err(e.into()),
    };
    let reason = match guest.read(physical, &mut [0]) {
        // It could not be read a moment ago.
        Ok(()) => "the guest was changing it".to_owned(),
        Err(Error::GuestAddress { errno, .. }) => frame_reason(errno),
        Err(e) => return Err(e.into()),
    };
    Ok((reason, end_of_block(address, PAGE_BITS)))
}

/// Returns the last address of the block around an address. A block has 2^`bits` bytes, and begins at a multiple of that.
fn end_of_block(address: u64, bits: u32) -> u64 {
    address | ((1 << bits) - 1)
}
