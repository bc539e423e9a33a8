//! Turns what a dump claims to have into bytes by address, each of them once.
//!
//! A dump may have the same bytes twice: a kernel's text, for instance, is in a segment of its own and in that of all
//! RAM. That is not a conflict if the bytes are the same. The work grows with the headers and the data that are
//! really in the file, not with what the headers claim: holes of the file are known, and no byte of the file may stand
//! for two addresses.

use std::iter::once;
use std::ops::Range;

use xenmap::Gfn;

use super::contents::Contents;
use super::{FRAME, ZEROS};
use crate::Result;

/// Bytes at consecutive addresses, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) addresses: Range<u64>,
    pub(super) source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// They are in the file, from this offset on.
    File(u64),
    /// They are zeros that are not in the file.
    Zeros,
}

impl Run {
    /// Returns a run of `len` bytes at an address; `None` if `len` is 0.
    pub(super) fn new(first: u64, len: u64, source: Source) -> Result<Option<Run>> {
        let Some(more) = len.checked_sub(1) else { return Ok(None) };
        let last = first.checked_add(more).ok_or("a part of it reaches past the last address")?;
        check_frame(last / FRAME)?;
        Ok(Some(Run { addresses: first..last + 1, source }))
    }

    /// Returns the run of a frame that is in the file.
    pub(super) fn frame(pfn: u64, offset: u64) -> Result<Run> {
        check_frame(pfn)?;
        Ok(Run { addresses: pfn * FRAME..(pfn + 1) * FRAME, source: Source::File(offset) })
    }

    /// Returns whether another run continues this one, in memory and in the file.
    pub(super) fn is_continued_by(&self, next: &Run) -> bool {
        self.addresses.end == next.addresses.start && self.end_of_source() == next.source
    }

    fn end_of_source(&self) -> Source {
        match self.source {
            Source::File(offset) => Source::File(offset.saturating_add(self.len())),
            Source::Zeros => Source::Zeros,
        }
    }

    fn len(&self) -> u64 {
        self.addresses.end - self.addresses.start
    }

    /// Returns the part of the run at some of its addresses.
    pub(super) fn part(&self, addresses: Range<u64>) -> Run {
        let source = match self.source {
            Source::File(offset) => Source::File(offset + (addresses.start - self.addresses.start)),
            Source::Zeros => Source::Zeros,
        };
        Run { addresses, source }
    }

    /// Returns the bytes of a run that is in the file.
    fn bytes<'a>(&self, file: &'a Contents) -> &'a [u8] {
        match self.source {
            Source::File(offset) => file.get(offset, self.len()).unwrap_or_default(),
            Source::Zeros => &[],
        }
    }
}

/// Returns the bytes that some runs claim, in ascending order, each once.
///
/// Bytes of the file take precedence over zeros that are not in the file: a tool that leaves out pages writes them as
/// such zeros.
///
/// # Errors
///
/// Bytes are not in the file, or stand for two addresses, or two runs have different bytes at an address.
pub(super) fn in_order(claims: Vec<Run>, file: &Contents) -> Result<Vec<Run>> {
    let (of_file, zeros): (Vec<Run>, Vec<Run>) =
        claims.into_iter().partition(|run| matches!(run.source, Source::File(_)));
    let (data, holes) = split_holes(by_offset(of_file, file)?, file);
    let data = without_overlap(data, file)?;
    let holes = union(holes);
    for (run, hole) in overlaps(&data, &holes) {
        let common = hole.start.max(run.addresses.start)..hole.end.min(run.addresses.end);
        if let Some(index) = first_nonzero(run.part(common.clone()).bytes(file)) {
            return Err(twice(common.start + index as u64));
        }
    }
    let zeros = union(holes.into_iter().chain(zeros.into_iter().map(|run| run.addresses)).collect());
    let mut runs = zeros_outside(zeros, &data);
    runs.extend(data);
    runs.sort_unstable_by_key(|run| run.addresses.start);
    Ok(runs)
}

fn check_frame(pfn: u64) -> Result<()> {
    if pfn > Gfn::MAX.get() {
        return Err(format!("it has a frame {pfn:#x}: the highest possible is {}", Gfn::MAX).into());
    }
    Ok(())
}

fn twice(address: u64) -> Box<dyn std::error::Error> {
    format!("it has frame {:#x} twice, with different bytes", address / FRAME).into()
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b { None } else { a.iter().zip(b).position(|(a, b)| a != b) }
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    let mut start = 0;
    for page in bytes.chunks(ZEROS.len()) {
        if let Some(index) = first_difference(page, &ZEROS[..page.len()]) {
            return Some(start + index);
        }
        start += page.len();
    }
    None
}

/// Returns runs of the file by offset. Runs that claim the same addresses for the same bytes are joined.
fn by_offset(mut runs: Vec<Run>, file: &Contents) -> Result<Vec<Run>> {
    let offset = |run: &Run| if let Source::File(offset) = run.source { offset } else { 0 };
    // Two runs claim the same addresses for the same bytes if address 0 would be at the same place in the file.
    let origin = |run: &Run| offset(run).wrapping_sub(run.addresses.start);
    let is_whole = |run: &Run| offset(run).checked_add(run.len()).is_some_and(|end| end <= file.len());
    if !runs.iter().all(is_whole) {
        return Err("it is cut off: pages that it lists are not in it".into());
    }
    runs.sort_unstable_by_key(|run| (origin(run), run.addresses.start));
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if origin(last) == origin(&run) && run.addresses.start <= last.addresses.end => {
                last.addresses.end = last.addresses.end.max(run.addresses.end);
            }
            _ => joined.push(run),
        }
    }
    joined.sort_unstable_by_key(offset);
    for pair in joined.windows(2) {
        if offset(&pair[0]) + pair[0].len() > offset(&pair[1]) {
            let [first, second] = [0, 1].map(|i| pair[i].addresses.start);
            return Err(format!("its parts at {first:#x} and {second:#x} are the same bytes of the file").into());
        }
    }
    Ok(joined)
}

/// Separates data from holes of the file, to the byte, so that only bytes that are really in the file are compared.
fn split_holes(runs: Vec<Run>, file: &Contents) -> (Vec<Run>, Vec<Range<u64>>) {
    let (mut all_data, mut holes) = (Vec::new(), Vec::new());
    for run in runs {
        let (Source::File(offset), end) = (run.source, run.addresses.end) else { continue };
        let at = |byte: u64| run.addresses.start + (byte - offset);
        let mut hole_start = run.addresses.start;
        for data in file.data_in(offset..offset + run.len()) {
            let data = at(data.start)..at(data.end);
            if hole_start < data.start {
                holes.push(hole_start..data.start);
            }
            hole_start = data.end;
            all_data.push(run.part(data));
        }
        if hole_start < end {
            holes.push(hole_start..end);
        }
    }
    (all_data, holes)
}

/// Returns runs by address, cut so that none overlap.
///
/// Each run is compared once, with the run before it that reaches furthest: that one begins no later, so it has all of
/// the run's addresses that any run before it has.
fn without_overlap(mut runs: Vec<Run>, file: &Contents) -> Result<Vec<Run>> {
    runs.sort_unstable_by_key(|run| run.addresses.start);
    let mut kept: Vec<Run> = Vec::new();
    let mut furthest: Option<Run> = None;
    for run in runs {
        let Range { start, end } = run.addresses;
        let end_of_kept = furthest.as_ref().map_or(start, |furthest| furthest.addresses.end.max(start));
        let common = start..end.min(end_of_kept);
        if let Some(before) = &furthest
            && !common.is_empty()
        {
            let [old, new] = [before, &run].map(|run| run.part(common.clone()).bytes(file));
            if let Some(index) = first_difference(old, new) {
                return Err(twice(common.start + index as u64));
            }
        }
        if end_of_kept < end {
            kept.push(run.part(end_of_kept..end));
            furthest = Some(run);
        }
    }
    Ok(kept)
}

/// Returns ranges in ascending order, with those joined that overlap or touch.
fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Returns the pairs of a run and a range that have an address in common; both must be in ascending order.
fn overlaps<'a>(runs: &'a [Run], ranges: &'a [Range<u64>]) -> impl Iterator<Item = (&'a Run, &'a Range<u64>)> {
    runs.iter().flat_map(|run| {
        let first = ranges.partition_point(|range| range.end <= run.addresses.start);
        ranges[first..].iter().take_while(|range| range.start < run.addresses.end).map(move |range| (run, range))
    })
}

/// Returns runs of zeros where there is no data; both must be in ascending order.
fn zeros_outside(zeros: Vec<Range<u64>>, data: &[Run]) -> Vec<Run> {
    let mut rest = Vec::new();
    for range in zeros {
        let mut start = range.start;
        let first = data.partition_point(|run| run.addresses.end <= start);
        let taken = data[first..].iter().map(|run| &run.addresses).take_while(|taken| taken.start < range.end);
        for taken in taken.cloned().chain(once(range.end..range.end)) {
            if start < taken.start {
                rest.push(Run { addresses: start..taken.start, source: Source::Zeros });
            }
            start = start.max(taken.end);
        }
    }
    rest
}
