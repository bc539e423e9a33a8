//! The search for a guest's RAM.

use std::ops::Range;

use xenmap::ForeignMapping;

/// Frames that are tried at a time.
const WINDOW: u64 = 4096;

/// Which frames to try, a window at a time.
///
/// No call tells where a guest's RAM is, so frames are tried; in a PVH dom0 each costs about 100 µs, RAM or not. A guest
/// has most of its RAM at the bottom, often some at the top, and a large hole in between. So the search begins at the
/// top, follows a run of RAM to its end, and there goes on at the other end. It is over when as many frames were found
/// as the domain owns, but never within a run: a few frames that can be mapped are not among those it owns.
pub(crate) struct Scan {
    rest: Range<u64>,
    owned: u64,
    found: u64,
    at_top: bool,
    in_run: bool,
}

impl Scan {
    /// Searches the frames below `end` for as many as a domain owns.
    pub(crate) fn new(end: u64, owned: u64) -> Scan {
        Scan { rest: 0..end, owned, found: 0, at_top: false, in_run: false }
    }

    /// The next frames to try, until the search is over.
    pub(crate) fn next_window(&mut self) -> Option<Range<u64>> {
        if !self.in_run {
            if self.found >= self.owned {
                return None;
            }
            self.at_top = !self.at_top;
        }
        let Range { start, end } = self.rest;
        let size = WINDOW.min(end - start);
        if size == 0 {
            return None;
        }
        if self.at_top {
            self.rest.end = end - size;
            Some(self.rest.end..end)
        } else {
            self.rest.start = start + size;
            Some(start..self.rest.start)
        }
    }

    /// Takes note of what the last window was.
    pub(crate) fn saw(&mut self, mapping: &ForeignMapping) {
        self.found += (mapping.frames() - mapping.failed().len()) as u64;
        let innermost = if self.at_top { 0 } else { mapping.frames() - 1 };
        self.in_run = mapping.failed().iter().all(|e| e.index != innermost);
    }

    /// How many frames the domain owns.
    pub(crate) fn owned(&self) -> u64 {
        self.owned
    }

    pub(crate) fn found(&self) -> u64 {
        self.found
    }

    /// How many frames have not been tried.
    pub(crate) fn untried(&self) -> u64 {
        self.rest.end - self.rest.start
    }
}
