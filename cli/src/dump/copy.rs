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

/// What became of frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// How many were read.
    pub(crate) copied: u64,
    /// How many of those are all zero, and not written.
    pub(crate) zero: u64,
    /// Those that could not be mapped, in ascending order.
    pub(crate) lost: Vec<Lost>,
    /// Where a Linux kernel may keep its VMCOREINFO note, if that was looked for.
    pub(crate) vmcoreinfo: Candidates,
}

/// Consecutive frames that are RAM, and could not be mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedLost")]
pub(crate) struct Lost {
    pub(crate) pfns: Range<u64>,
    /// Why, as an errno of Linux (positive).
    pub(crate) errno: i32,
}

/// Lost frames as a worker reports them.
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

    /// Whether it is of so many frames at most.
    pub(crate) fn is_at_most(&self, frames: u64) -> bool {
        let lost = self.lost.iter().map(|lost| lost.pfns.end - lost.pfns.start);
        let all = lost.chain([self.copied]).try_fold(0, u64::checked_add);
        all.is_some_and(|all| all <= frames) && self.zero <= self.copied
    }

    pub(crate) fn is_lost(&self, pfn: u64) -> bool {
        let next = self.lost.partition_point(|lost| lost.pfns.end <= pfn);
        self.lost.get(next).is_some_and(|lost| lost.pfns.contains(&pfn))
    }

    /// Adds what became of other frames, which may lie anywhere.
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

/// Copies consecutive frames, a window at a time, and looks for notes of the kernel if `find_notes` says so. What
/// became of each window goes to `done`, and so does its mapping, since unmapping is not always the cheapest way to be
/// rid of it.
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

/// Copies what is mapped. `first` is the first frame, and `offset` its place in the output.
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
