//! A range of memory, part by part: bytes, and the holes between them.

use std::fmt;
use std::ops::Range;

use xenmap::{Error, FRAME_SIZE, PageTables};

use crate::Result;
use crate::bytes::Bytes;
use crate::number::count;
use crate::ram::Ram;
use crate::space::Space;
use crate::window::Piece;

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
    ram: &Ram,
    space: &Space,
    (first, last): (u64, u64),
    f: impl FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    let len = usize::try_from(last - first)?.saturating_add(1);
    let mut parts = Parts { first, last, hole: None, buffer: vec![0; len.min(CHUNK)], f };
    match space {
        Space::Physical => parts.read_physical(ram)?,
        Space::Virtual(tables) => parts.read_virtual(ram, tables)?,
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
    fn read_physical(&mut self, ram: &Ram) -> Result<()> {
        let all = self.first / FRAME..self.last / FRAME + 1;
        let (pfns, why_no_more) = ram.without_missing_end(all.clone())?;
        for window in ram.windows(pfns.clone(), WINDOW) {
            for (addresses, piece) in window?.pieces()? {
                let wanted = addresses.start.max(self.first)..addresses.end.min(self.last + 1);
                match piece {
                    Piece::Bytes(bytes) => self.copy(bytes, addresses.start, wanted)?,
                    Piece::Zeros => self.add_zeros(wanted)?,
                    Piece::Hole(errno) => self.add_hole(wanted.start, wanted.end - 1, ram.reason(errno))?,
                }
            }
        }
        if pfns.end < all.end {
            self.add_hole(pfns.end * FRAME, self.last, why_no_more)?;
        }
        Ok(())
    }

    /// Copies those of some bytes that are wanted. The first byte is at the address `base`.
    fn copy(&mut self, bytes: Bytes<'_>, base: u64, wanted: Range<u64>) -> Result<()> {
        let (start, end) = (usize::try_from(wanted.start - base)?, usize::try_from(wanted.end - base)?);
        for offset in (start..end).step_by(self.buffer.len()) {
            let len = self.buffer.len().min(end - offset);
            bytes.read(offset, &mut self.buffer[..len])?;
            self.add_bytes(base + offset as u64, len)?;
        }
        Ok(())
    }

    fn add_zeros(&mut self, mut wanted: Range<u64>) -> Result<()> {
        while !wanted.is_empty() {
            let len = self.buffer.len().min(usize::try_from(wanted.end - wanted.start)?);
            self.buffer[..len].fill(0);
            self.add_bytes(wanted.start, len)?;
            wanted.start += len as u64;
        }
        Ok(())
    }

    /// Reads many pages at a time, and page by page where that fails.
    fn read_virtual(&mut self, ram: &Ram, tables: &PageTables) -> Result<()> {
        let mut at = self.first;
        let mut by_page = false;
        loop {
            let size = if by_page { FRAME } else { CHUNK as u64 };
            let mut end = self.last.min(at | (size - 1));
            let len = usize::try_from(end - at)? + 1;
            match ram.read_virtual(tables, at, &mut self.buffer[..len]) {
                Ok(()) => self.add_bytes(at, len)?,
                Err(_) if !by_page => {
                    by_page = true;
                    continue;
                }
                Err(Error::Translation { .. } | Error::GuestAddress { .. }) => {
                    let (reason, last) = why_unreadable(ram, tables, at)?;
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
fn why_unreadable(ram: &Ram, tables: &PageTables, address: u64) -> Result<(String, u64)> {
    let physical = match ram.translate(tables, address) {
        Ok(physical) => physical,
        Err(Error::Translation { last, .. }) => return Ok(("no translation".to_owned(), last)),
        Err(Error::GuestAddress { errno, .. }) => {
            let reason = format!("no translation (page table: {})", ram.reason(errno));
            return Ok((reason, end_of_block(address, TABLE_BITS)));
        }
        Err(e) => return Err(e.into()),
    };
    let reason = match ram.read(physical, &mut [0]) {
        // It could not be read a moment ago.
        Ok(()) => "the guest was changing it".to_owned(),
        Err(Error::GuestAddress { errno, .. }) => ram.reason(errno),
        Err(e) => return Err(e.into()),
    };
    Ok((reason, end_of_block(address, PAGE_BITS)))
}

/// Returns the last address of the block around an address. A block has 2^`bits` bytes, and begins at a multiple of that.
fn end_of_block(address: u64, bits: u32) -> u64 {
    address | ((1 << bits) - 1)
}
