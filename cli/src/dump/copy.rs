//! Copying frames from the guest to the output.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use xenmap::{Access, FRAME_SIZE, ForeignMapping, Guest};

use super::layout::{FRAME, Part, check_range};
use super::sink::Sink;
use super::vmcoreinfo::{Candidates, Search};
use crate::Result;
use crate::window::MappedWindows;

/// Frames that are mapped at a time: 16 MiB. Larger windows are not faster, and their mappings cost page tables.
const WINDOW: u64 = 4096;

/// The result of copying frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// The number of frames that were read.
    pub(crate) copied: u64,
    /// The number of those that are all zero, and were not written.
    pub(crate) zero: u64,
    /// Frames that could not be mapped, in ascending order.
    pub(crate) lost: Vec<Lost>,
    /// Where a Linux kernel's VMCOREINFO note may be, if the copier looked for it.
    pub(crate) vmcoreinfo: Candidates,
}

/// Consecutive frames that are RAM but could not be mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedLost")]
pub(crate) struct Lost {
    pub(crate) pfns: Range<u64>,
    /// The cause: a positive errno of Linux.
    pub(crate) errno: i32,
}

/// Lost frames in a worker's report, before they are checked.
#[derive(Deserialize)]
struct UncheckedLost {
    pfns: Range<u64>,
    errno: i32,
}

impl TryFrom<UncheckedLost> for Lost {
    type Error = String;

    fn try_from(UncheckedLost { pfns, errno }: UncheckedLost) -> std::result::Result<Lost, String> {
        check_range(&pfns)?;
        Ok(Lost { pfns, errno })
    }
}

impl Tally {
    pub(crate) fn frames(&self) -> u64 {
        self.copied + self.lost_frames()
    }

    pub(crate) fn lost_frames(&self) -> u64 {
        self.lost.iter().map(|lost| lost.pfns.end - lost.pfns.start).sum()
    }

    /// Returns whether the tally is of at most `frames` frames.
    pub(crate) fn is_at_most(&self, frames: u64) -> bool {
        let lost = self.lost.iter().map(|lost| lost.pfns.end - lost.pfns.start);
        let all = lost.chain([self.copied]).try_fold(0, u64::checked_add);
        all.is_some_and(|all| all <= frames) && self.zero <= self.copied
    }

    pub(crate) fn is_lost(&self, pfn: u64) -> bool {
        let next = self.lost.partition_point(|lost| lost.pfns.end <= pfn);
        self.lost.get(next).is_some_and(|lost| lost.pfns.contains(&pfn))
    }

    /// Adds the tally of other frames, which may be anywhere.
    pub(crate) fn add(&mut self, other: Tally) {
        self.copied += other.copied;
        self.zero += other.zero;
        self.vmcoreinfo.add(&other.vmcoreinfo);
        let in_order = self.lost.last().zip(other.lost.first()).is_none_or(|(a, b)| a.pfns.end <= b.pfns.start);
        for lost in other.lost {
            self.lose(lost);
        }
        if !in_order {
            self.lost.sort_by_key(|lost| lost.pfns.start);
        }
    }

    fn lose(&mut self, lost: Lost) {
        match self.lost.last_mut() {
            Some(before) if before.errno == lost.errno && before.pfns.end == lost.pfns.start => {
                before.pfns.end = lost.pfns.end;
            }
            _ => self.lost.push(lost),
        }
    }
}

/// Copies consecutive frames, a window at a time, and with `find_notes` looks for the kernel's notes.
///
/// `done` gets the tally of each window and its mapping, because it may be cheaper not to unmap it.
pub(crate) fn copy_part(
    guest: &Guest,
    part: &Part,
    find_notes: bool,
    sink: &mut dyn Sink,
    mut done: impl FnMut(Tally, ForeignMapping) -> Result<()>,
) -> Result<()> {
    let mut search = find_notes.then(Search::new);
    for window in MappedWindows::new(guest, part.pfns.clone(), WINDOW) {
        let (pfns, mapping) = window?;
        let offset = part.offset + (pfns.start - part.pfns.start) * FRAME;
        let mut tally = copy_mapping(&mapping, pfns.start, offset, search.as_mut(), sink)?;
        if let Some(search) = &mut search {
            search.search_across(guest, pfns.start * FRAME, &mut tally.vmcoreinfo);
        }
        done(tally, mapping)?;
    }
    Ok(())
}

/// Copies the frames of a mapping. `first` is the first frame, and `offset` its place in the output.
fn copy_mapping(
    mapping: &ForeignMapping,
    first: u64,
    offset: u64,
    mut search: Option<&mut Search>,
    sink: &mut dyn Sink,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for error in mapping.failed() {
        let pfn = first + error.index as u64;
        tally.lose(Lost { pfns: pfn..pfn + 1, errno: error.errno });
    }
    let view = mapping.view();
    for range in mapping.mapped_ranges() {
        tally.copied += (range.len() / FRAME_SIZE) as u64;
        let mut at = range.start;
        while at < range.end {
            if view.is_zero(at, FRAME_SIZE)? {
                tally.zero += 1;
                at += FRAME_SIZE;
                continue;
            }
            let start = at;
            while at < range.end && (at == start || !view.is_zero(at, FRAME_SIZE)?) {
                at += FRAME_SIZE;
            }
            let frames = view.slice(start, at - start)?;
            sink.frames(offset + start as u64, frames)?;
            if let Some(search) = &mut search {
                search.search(frames, first * FRAME + start as u64, &mut tally.vmcoreinfo)?;
            }
        }
    }
    Ok(tally)
}
