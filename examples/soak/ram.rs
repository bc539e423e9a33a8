//! A private copy of a guest's RAM, to check against.

use std::collections::HashSet;
use std::error::Error;
use std::ops::Range;

use xenmap::{Access, FRAME_SIZE, ForeignMapping, FrameKind, Gfn, Guest, GuestKind, NumberRange, Pfn, Protection};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Frames to map at a time, independently of the cache.
const WINDOW: usize = 1024;

/// The original content of the guest's RAM, and its expected content now. The guest must not be running.
pub(crate) struct Ram {
    pub(crate) pieces: Vec<Piece>,
}

/// Contiguous frames of RAM.
pub(crate) struct Piece {
    pub(crate) address: u64,
    before: Vec<u8>,
    pub(crate) now: Vec<u8>,
    frames: Vec<Frame>,
}

struct Frame {
    gfn: Gfn,
    writing: Writing,
}

/// The effect of writing to a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    Works,
    /// It would change how addresses map to frames: a page table that Xen does not protect (in an auto-translated
    /// dom0), or a PV guest's p2m, which the library uses to find frames.
    Breaks,
    /// Xen refuses to map the frame for writing, with this errno.
    Fails(i32),
}

impl Ram {
    /// Reads all RAM, except for the frames with the numbers in `keep_off`.
    pub(crate) fn read(guest: &Guest, keep_off: &[u64]) -> Result<Ram> {
        let mut ram = Ram { pieces: Vec::new() };
        for extent in guest.ram_map()?.extents() {
            let is_table = extent.kind == FrameKind::PageTable;
            if !is_table && extent.kind != FrameKind::Ram {
                continue;
            }
            for first in extent.pfns.numbers().step_by(WINDOW) {
                let pfns = first..extent.pfns.end().min(first + WINDOW as u64);
                ram.read_window(guest, pfns.try_into()?, is_table, keep_off)?;
            }
        }
        if guest.kind() == GuestKind::Pv {
            ram.protect_p2m();
        }
        Ok(ram)
    }

    fn read_window(&mut self, guest: &Guest, pfns: NumberRange<Pfn>, is_table: bool, keep_off: &[u64]) -> Result<()> {
        let gfns = guest.gfns(pfns)?;
        let mapping = guest.map_partial(Protection::ReadWrite, pfns)?;
        let mut page = [0; FRAME_SIZE];
        for (index, (pfn, gfn)) in pfns.into_iter().zip(gfns).enumerate() {
            let Some(gfn) = gfn.filter(|gfn| !keep_off.contains(&gfn.get())) else { continue };
            let address = pfn.address();
            let writing = match mapping.failed().binary_search_by_key(&index, |e| e.index) {
                Ok(at) => Writing::Fails(mapping.failed()[at].errno),
                Err(_) if is_table => Writing::Breaks,
                Err(_) => Writing::Works,
            };
            match writing {
                Writing::Fails(_) => guest.read(address, &mut page)?,
                _ => mapping.view().read_bytes(index * FRAME_SIZE, &mut page)?,
            }
            self.push(address, &page, Frame { gfn, writing });
        }
        Ok(())
    }

    fn push(&mut self, address: u64, page: &[u8], frame: Frame) {
        let is_next = |last: &Piece| last.address + last.before.len() as u64 == address;
        if !self.pieces.last().is_some_and(is_next) {
            let empty = Piece { address, before: Vec::new(), now: Vec::new(), frames: Vec::new() };
            self.pieces.push(empty);
        }
        if let Some(last) = self.pieces.last_mut() {
            last.before.extend(page);
            last.now.extend(page);
            last.frames.push(frame);
        }
    }

    /// Marks the pages of a PV guest's p2m so that they are not written. Each holds the frames of 512 pfns (in 64-bit
    /// Linux), and is recognised by its first or last entry.
    fn protect_p2m(&mut self) {
        let mut ends = HashSet::new();
        for piece in &self.pieces {
            let first = piece.address / FRAME_SIZE as u64;
            let entries = (first..).zip(&piece.frames).map(|(pfn, frame)| (pfn % 512, frame.gfn.get().to_ne_bytes()));
            ends.extend(entries.filter(|(n, _)| [0, 511].contains(n)));
        }
        for piece in &mut self.pieces {
            for (page, frame) in piece.now.chunks_exact(FRAME_SIZE).zip(&mut piece.frames) {
                let is_end = |n, word: Option<&[u8; 8]>| word.is_some_and(|word| ends.contains(&(n, *word)));
                let is_table = is_end(0, page.first_chunk()) || is_end(511, page.last_chunk());
                if is_table && frame.writing == Writing::Works {
                    frame.writing = Writing::Breaks;
                }
            }
        }
    }

    /// Returns the length of all pieces in bytes.
    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.now.len()).sum()
    }

    /// Compares all changed frames with their expected content, restores their original content, and compares again. It
    /// uses its own mappings, not the cache. Returns how many frames had changed.
    pub(crate) fn check_and_restore(&self, guest: &Guest) -> Result<usize> {
        let changed: Vec<Changed<'_>> = self.pieces.iter().flat_map(Piece::changed).collect();
        for frames in changed.chunks(WINDOW) {
            let gfns: Vec<Gfn> = frames.iter().map(|frame| frame.gfn).collect();
            let map = |protection| guest.memory().map_foreign_batch(guest.domid(), protection, &gfns);
            let mapping = map(Protection::ReadWrite)?;
            for (frame, at) in frames.iter().zip((0..).step_by(FRAME_SIZE)) {
                frame.check(&mapping, at, frame.now)?;
                mapping.view().write_bytes(at, frame.before)?;
            }
            drop(mapping);
            let mapping = map(Protection::ReadOnly)?;
            for (frame, at) in frames.iter().zip((0..).step_by(FRAME_SIZE)) {
                frame.check(&mapping, at, frame.before)?;
            }
        }
        Ok(changed.len())
    }
}

/// A changed frame.
struct Changed<'a> {
    gfn: Gfn,
    address: u64,
    before: &'a [u8],
    now: &'a [u8],
}

impl Changed<'_> {
    fn check(&self, mapping: &ForeignMapping, at: usize, expected: &[u8]) -> Result<()> {
        let mut found = [0; FRAME_SIZE];
        mapping.view().read_bytes(at, &mut found)?;
        check_bytes(self.address, &found, expected)
    }
}

impl Piece {
    /// Returns the first address at which Xen refuses to map a range for writing, and the errno.
    pub(crate) fn refused(&self, offset: usize, len: usize) -> Option<(u64, i32)> {
        frames(offset, len).find_map(|frame| match self.frames[frame].writing {
            Writing::Fails(errno) => Some((self.address + offset.max(frame * FRAME_SIZE) as u64, errno)),
            _ => None,
        })
    }

    pub(crate) fn may_write(&self, offset: usize, len: usize) -> bool {
        frames(offset, len).all(|frame| self.frames[frame].writing == Writing::Works)
    }

    fn changed(&self) -> impl Iterator<Item = Changed<'_>> {
        let addresses = (self.address..).step_by(FRAME_SIZE);
        let contents = self.before.chunks_exact(FRAME_SIZE).zip(self.now.chunks_exact(FRAME_SIZE));
        let frames = self.frames.iter().zip(addresses).zip(contents);
        frames.filter(|(_, (before, now))| before != now).map(|((frame, address), (before, now))| Changed {
            gfn: frame.gfn,
            address,
            before,
            now,
        })
    }
}

fn frames(offset: usize, len: usize) -> Range<usize> {
    offset / FRAME_SIZE..(offset + len).div_ceil(FRAME_SIZE)
}

/// Checks that the bytes at an address are the expected ones.
pub(crate) fn check_bytes(address: u64, found: &[u8], expected: &[u8]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or_default();
    let (address, found, expected) = (address + at as u64, found[at], expected[at]);
    Err(format!("found {found:#04x} at {address:#x}, expected {expected:#04x}").into())
}
