//! Maps a guest's frames a window at a time.

use std::ops::Range;

use xenmap::{Error, ForeignMapping, Guest, NumberRange, Protection, Result};

/// Maps consecutive frames for reading, a window at a time. Frames that cannot be mapped are left out.
///
/// In some domains each mapped frame takes a page of this domain's memory. When memory runs out, the windows are halved.
pub(crate) struct MappedWindows<'a> {
    guest: &'a Guest,
    rest: Range<u64>,
    size: u64,
}

impl<'a> MappedWindows<'a> {
    /// Windows of at most `size` frames.
    pub(crate) fn new(guest: &'a Guest, pfns: Range<u64>, size: u64) -> MappedWindows<'a> {
        MappedWindows { guest, rest: pfns, size }
    }
}

impl Iterator for MappedWindows<'_> {
    /// The frames of a window, and their mapping.
    type Item = Result<(Range<u64>, ForeignMapping)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let pfns = self.rest.start..self.rest.end.min(self.rest.start + self.size);
            let frames = pfns.end - pfns.start;
            let window = NumberRange::try_from(pfns.clone()).map_err(Error::from);
            match window.and_then(|window| self.guest.map_partial(Protection::ReadOnly, window)) {
                Err(e) if e.errno() == libc::ENOMEM && frames > 1 => self.size = frames / 2,
                mapped => {
                    // An error ends the iteration.
                    self.rest.start = if mapped.is_ok() { pfns.end } else { self.rest.end };
                    return Some(mapped.map(|mapping| (pfns, mapping)));
                }
            }
        }
        None
    }
}
