//! Copies of pages, a window at a time: a guest may change its memory at any time.

use std::ops::Range;

use xenmap::FRAME_SIZE;

use crate::Result;
use crate::image::Page;
use crate::ram::Ram;
use crate::window::{Piece, addresses};

/// Frames that are copied at a time: few enough for a processor's cache.
pub(crate) const WINDOW: usize = 256;

pub(crate) struct Pages<'a> {
    ram: &'a Ram,
    window: Range<u64>,
    copies: Vec<Page>,
    /// Whether each page cannot be read.
    failed: Vec<bool>,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(ram: &'a Ram) -> Pages<'a> {
        Pages { ram, window: 0..0, copies: Vec::new(), failed: Vec::new() }
    }

    /// Copies a window of at most [`WINDOW`] frames. Bytes that a dump lacks of a page are zeros.
    pub(crate) fn load(&mut self, window: Range<u64>) -> Result<()> {
        self.window = 0..0;
        self.failed.clear();
        let frames = usize::try_from(window.end - window.start)?;
        self.copies.resize(frames, [0; FRAME_SIZE]);
        self.failed.resize(frames, false);
        let start = addresses(&window).start;
        for part in self.ram.windows(window.clone(), WINDOW as u64) {
            for (addresses, piece) in part?.pieces()? {
                let range = usize::try_from(addresses.start - start)?..usize::try_from(addresses.end - start)?;
                let bytes = &mut self.copies.as_flattened_mut()[range.clone()];
                match piece {
                    Piece::Bytes(from) => from.read(0, bytes)?,
                    Piece::Zeros => bytes.fill(0),
                    Piece::Hole(_) => {
                        bytes.fill(0);
                        let whole = range.start.div_ceil(FRAME_SIZE)..range.end / FRAME_SIZE;
                        self.failed.get_mut(whole).into_iter().flatten().for_each(|failed| *failed = true);
                    }
                }
            }
        }
        self.window = window;
        Ok(())
    }

    /// Returns the page of a frame of the window; `None` if it cannot be read.
    pub(crate) fn page(&self, pfn: u64) -> Option<&Page> {
        if !self.window.contains(&pfn) {
            return None;
        }
        let index = usize::try_from(pfn - self.window.start).ok()?;
        if self.failed.get(index) == Some(&true) { None } else { self.copies.get(index) }
    }
}

/// Returns frames in windows of at most `size`.
pub(crate) fn windows(pfns: Range<u64>, size: usize) -> impl Iterator<Item = Range<u64>> {
    let end = pfns.end;
    pfns.step_by(size).map(move |start| start..end.min(start + size as u64))
}
