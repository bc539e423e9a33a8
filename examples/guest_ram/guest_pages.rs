//! The pages of a guest, of which a window at a time is here as a copy: the guest may change them at any time.

use std::ops::Range;

use xenmap::{FRAME_SIZE, Guest, Protection};

use crate::Result;
use crate::image::Page;

/// Frames that are copied at a time: few enough for a processor's cache.
pub(crate) const WINDOW: usize = 256;

pub(crate) struct GuestPages<'a> {
    guest: &'a Guest<'a>,
    window: Range<u64>,
    pages: Vec<Page>,
    /// Those of the window, by index, that cannot be read.
    failed: Vec<usize>,
}

impl<'a> GuestPages<'a> {
    pub(crate) fn new(guest: &'a Guest<'a>) -> GuestPages<'a> {
        GuestPages { guest, window: 0..0, pages: Vec::new(), failed: Vec::new() }
    }

    /// Copies a window of at most [`WINDOW`] frames.
    pub(crate) fn load(&mut self, window: Range<u64>) -> Result<()> {
        let mapping = self.guest.map_partial(Protection::ReadOnly, window.clone())?;
        self.pages.resize(mapping.frames(), [0; FRAME_SIZE]);
        for part in mapping.mapped_ranges() {
            let frames = part.start / FRAME_SIZE..part.end / FRAME_SIZE;
            mapping.view().read_bytes(part.start, self.pages[frames].as_flattened_mut())?;
        }
        self.failed = mapping.failed().iter().map(|e| e.index).collect();
        self.window = window;
        Ok(())
    }

    /// The page of a frame of the window, if it could be read.
    pub(crate) fn page(&self, pfn: u64) -> Option<&Page> {
        let index = usize::try_from(pfn.checked_sub(self.window.start)?).ok()?;
        if self.failed.binary_search(&index).is_ok() { None } else { self.pages.get(index) }
    }
}

/// Frames in windows of at most `size`.
pub(crate) fn windows(pfns: Range<u64>, size: usize) -> impl Iterator<Item = Range<u64>> {
    let end = pfns.end;
    pfns.step_by(size).map(move |start| start..end.min(start + size as u64))
}
