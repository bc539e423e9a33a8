//! Copies of a guest's pages, a window at a time: the guest may change its memory at any time.

use std::ops::Range;

use xenmap::{Access, FRAME_SIZE, Guest};

use crate::Result;
use crate::image::Page;
use crate::window::MappedWindows;

/// Frames that are copied at a time: few enough for a processor's cache.
pub(crate) const WINDOW: usize = 256;

pub(crate) struct GuestPages<'a> {
    guest: &'a Guest,
    window: Range<u64>,
    pages: Vec<Page>,
    /// The indices of the pages that cannot be read.
    failed: Vec<usize>,
}

impl<'a> GuestPages<'a> {
    pub(crate) fn new(guest: &'a Guest) -> GuestPages<'a> {
        GuestPages { guest, window: 0..0, pages: Vec::new(), failed: Vec::new() }
    }

    /// Copies a window of at most [`WINDOW`] frames.
    pub(crate) fn load(&mut self, window: Range<u64>) -> Result<()> {
        self.window = 0..0;
        self.failed.clear();
        self.pages.resize(usize::try_from(window.end - window.start)?, [0; FRAME_SIZE]);
        for part in MappedWindows::new(self.guest, window.clone(), WINDOW as u64) {
            let (pfns, mapping) = part?;
            let first = usize::try_from(pfns.start - window.start)?;
            let pages = self.pages[first..].as_flattened_mut();
            for bytes in mapping.mapped_ranges() {
                mapping.view().read_bytes(bytes.start, &mut pages[bytes])?;
            }
            self.failed.extend(mapping.failed().iter().map(|e| first + e.index));
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
        if self.failed.binary_search(&index).is_ok() { None } else { self.pages.get(index) }
    }
}

/// Returns frames in windows of at most `size`.
pub(crate) fn windows(pfns: Range<u64>, size: usize) -> impl Iterator<Item = Range<u64>> {
    let end = pfns.end;
    pfns.step_by(size).map(move |start| start..end.min(start + size as u64))
}
