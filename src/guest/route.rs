//! In which order a search looks at a guest's frames.

use std::collections::VecDeque;
use std::ops::Range;

/// Consecutive frames, of which a search looks at every `step`-th.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SearchRange {
    pub(super) pfns: Range<u64>,
    pub(super) step: u64,
    /// Whether it is looked at even if all that the guest owns has been found.
    pub(super) needed: bool,
}

/// What is still to be looked at, in the order in which RAM is likely there.
#[derive(Clone, Debug)]
pub(super) struct Route {
    ranges: VecDeque<SearchRange>,
    /// Frames of a window.
    window: u64,
    /// Whether a range is begun at both of its ends; and if so, at which the last window was.
    both_ends: bool,
    at_top: bool,
    /// Whether the lower end of the range was looked at.
    has_seen_bottom: bool,
}

/// What is looked at in one step.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) pfns: Range<u64>,
    pub(super) step: u64,
    /// Whether it lies at the upper end of what is left of its range, so that its first frame is the innermost.
    pub(super) at_top: bool,
    /// Whether nothing is left of its range.
    pub(super) ends_range: bool,
}

impl Window {
    /// The frames that are looked at.
    pub(super) fn tried(&self) -> impl Iterator<Item = u64> + use<> {
        // A step is small.
        self.pfns.clone().step_by(usize::try_from(self.step).unwrap_or(usize::MAX))
    }
}

impl Route {
    /// One range after the other, each from the bottom up.
    pub(super) fn in_order(ranges: impl IntoIterator<Item = SearchRange>, window: u64) -> Route {
        let ranges = ranges.into_iter().filter(|range| !range.pfns.is_empty()).collect();
        Route { ranges, window, both_ends: false, at_top: false, has_seen_bottom: false }
    }

    /// From both ends of a range inwards.
    pub(super) fn from_both_ends(range: SearchRange, window: u64) -> Route {
        Route { both_ends: true, ..Route::in_order([range], window) }
    }

    /// The next window; while a run of RAM goes on, that is at the same end as the last.
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

    /// Has some frames looked at next, each of them.
    pub(super) fn look_closely(&mut self, pfns: Range<u64>) {
        self.ranges.push_front(SearchRange { pfns, step: 1, needed: true });
    }

    /// Whether what comes next is looked at even if all that the guest owns has been found.
    pub(super) fn is_needed(&self) -> bool {
        self.ranges.front().is_some_and(|range| range.needed)
    }

    /// Whether the lower end was looked at.
    pub(super) fn has_seen_bottom(&self) -> bool {
        self.has_seen_bottom
    }

    /// The frames that are left to look at, in ascending order.
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

    /// How many frames are left to look at.
    pub(super) fn left(&self) -> u64 {
        self.ranges.iter().map(|range| (range.pfns.end - range.pfns.start).div_ceil(range.step)).sum()
    }
}
