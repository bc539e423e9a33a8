//! The order in which a search visits a guest's frames.

use std::collections::VecDeque;
use std::ops::Range;

/// A range of frames, of which a search visits every `step`-th.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SearchRange {
    pub(super) pfns: Range<u64>,
    pub(super) step: u64,
    /// Whether to search the range even if all frames that the guest owns were found.
    pub(super) needed: bool,
}

/// The ranges left to search, those most likely to have RAM first.
#[derive(Clone, Debug)]
pub(super) struct Route {
    ranges: VecDeque<SearchRange>,
    /// Frames to visit per window.
    window: u64,
    /// Whether to search from both ends of the range.
    both_ends: bool,
    /// Whether the last window was at the upper end.
    at_top: bool,
    /// Whether the lower end of the range was searched.
    has_seen_bottom: bool,
}

/// The frames to search in one step.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) pfns: Range<u64>,
    pub(super) step: u64,
    /// Whether the window was taken from the upper end of its range, so that its first frame is the innermost.
    pub(super) at_top: bool,
    /// Whether this is the last window of its range.
    pub(super) ends_range: bool,
}

impl Window {
    /// Returns the frames to visit.
    pub(super) fn visited(&self) -> impl Iterator<Item = u64> + use<> {
        // A step always fits.
        self.pfns.clone().step_by(usize::try_from(self.step).unwrap_or(usize::MAX))
    }
}

impl Route {
    /// Searches one range after the other, each from the bottom up.
    pub(super) fn in_order(ranges: impl IntoIterator<Item = SearchRange>, window: u64) -> Route {
        let ranges = ranges.into_iter().filter(|range| !range.pfns.is_empty()).collect();
        Route { ranges, window, both_ends: false, at_top: false, has_seen_bottom: false }
    }

    /// Searches a range from both ends inwards.
    pub(super) fn from_both_ends(range: SearchRange, window: u64) -> Route {
        Route { both_ends: true, ..Route::in_order([range], window) }
    }

    /// Takes the next window. Within a run of RAM, it is at the same end as the last one.
    pub(super) fn next(&mut self, in_run: bool) -> Option<Window> {
        let range = self.ranges.front_mut()?;
        if self.both_ends && !in_run {
            self.at_top = !self.at_top;
        }
        let Range { start, end } = range.pfns;
        let size = (end - start).min(self.window.saturating_mul(range.step));
        let pfns = if self.at_top { end - size..end } else { start..start + size };
        range.pfns = if self.at_top { start..pfns.start } else { pfns.end..end };
        let window = Window { pfns, step: range.step, at_top: self.at_top, ends_range: range.pfns.is_empty() };
        self.has_seen_bottom |= !window.at_top || window.ends_range;
        if window.ends_range {
            self.ranges.pop_front();
        }
        Some(window)
    }

    /// Inserts a range to search next, frame by frame.
    pub(super) fn search_next(&mut self, pfns: Range<u64>) {
        self.ranges.push_front(SearchRange { pfns, step: 1, needed: true });
    }

    /// Returns whether to search the next range even if all frames that the guest owns were found.
    pub(super) fn is_needed(&self) -> bool {
        self.ranges.front().is_some_and(|range| range.needed)
    }

    /// Returns whether the lower end was searched.
    pub(super) fn has_seen_bottom(&self) -> bool {
        self.has_seen_bottom
    }

    /// Returns the ranges left to search, merged and in ascending order.
    pub(super) fn ranges_left(&self) -> Vec<Range<u64>> {
        let mut all: Vec<Range<u64>> = self.ranges.iter().map(|range| range.pfns.clone()).collect();
        all.sort_unstable_by_key(|pfns| pfns.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for pfns in all {
            match ranges.last_mut() {
                Some(last) if last.end >= pfns.start => last.end = last.end.max(pfns.end),
                _ => ranges.push(pfns),
            }
        }
        ranges
    }

    /// Returns how many frames are left to visit.
    pub(super) fn left(&self) -> u64 {
        self.ranges.iter().map(|range| (range.pfns.end - range.pfns.start).div_ceil(range.step)).sum()
    }
}
