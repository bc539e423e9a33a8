//! Copying frames from a guest or a dump to the output.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use xenmap::FRAME_SIZE;

use super::layout::{FRAME, Part, check_range};
use super::sink::Sink;
use crate::Result;
use crate::bytes::Bytes;
use crate::ram::Ram;
use crate::vmcoreinfo::{Candidates, Search};
use crate::window::{Piece, Window, addresses, frames};

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
/// `done` gets the tally of each window and the window, because it may be cheaper not to unmap it.
pub(crate) fn copy_part<'a>(
    ram: &'a Ram,
    part: &Part,
    find_notes: bool,
    sink: &mut dyn Sink,
    mut done: impl FnMut(Tally, Window<'a>) -> Result<()>,
) -> Result<()> {
    let mut search = find_notes.then(Search::new);
    for window in ram.windows(part.pfns.clone(), WINDOW) {
        let window = window?;
        let offset = part.offset + (window.pfns.start - part.pfns.start) * FRAME;
        let mut tally = copy_window(&window, offset, search.as_mut(), sink)?;
        if let Some(search) = &mut search {
            search.search_across(ram, window.pfns.start * FRAME, &mut tally.vmcoreinfo);
        }
        done(tally, window)?;
    }
    Ok(())
}

/// Copies the frames of a window. `offset` is the place of the first one in the output.
fn copy_window(
    window: &Window<'_>,
    offset: u64,
    mut search: Option<&mut Search>,
    sink: &mut dyn Sink,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let base = addresses(&window.pfns).start;
    for (addresses, piece) in window.pieces()? {
        match piece {
            Piece::Bytes(bytes) => {
                let at = Place { address: addresses.start, offset: offset + (addresses.start - base) };
                copy_bytes(bytes, at, search.as_deref_mut(), sink, &mut tally)?;
            }
            Piece::Zeros => tally.zero += addresses.end / FRAME - addresses.start.div_ceil(FRAME),
            // A dump may lack a part of a frame.
            Piece::Hole(_) if window.is_of_dump() => {}
            Piece::Hole(errno) => tally.lose(Lost { pfns: frames(&addresses), errno }),
        }
    }
    tally.copied = window.pfns.end - window.pfns.start - tally.lost_frames();
    Ok(tally)
}

/// The address of a byte, and its place in the output.
struct Place {
    address: u64,
    offset: u64,
}

/// Copies bytes, except frames that are all zero.
fn copy_bytes(
    bytes: Bytes<'_>,
    Place { address, offset }: Place,
    mut search: Option<&mut Search>,
    sink: &mut dyn Sink,
    tally: &mut Tally,
) -> Result<()> {
    // The bytes of the frame at an offset.
    let of_frame = |at: usize| {
        let in_frame = usize::try_from((address + at as u64) % FRAME).unwrap_or(0);
        (FRAME_SIZE - in_frame).min(bytes.len() - at)
    };
    let mut at = 0;
    while at < bytes.len() {
        if bytes.is_zero(at, of_frame(at))? {
            tally.zero += u64::from(of_frame(at) == FRAME_SIZE);
            at += of_frame(at);
            continue;
        }
        let start = at;
        while at < bytes.len() && (at == start || !bytes.is_zero(at, of_frame(at))?) {
            at += of_frame(at);
        }
        let data = bytes.slice(start, at - start)?;
        sink.ram(offset + start as u64, data)?;
        if let Some(search) = &mut search {
            search.search(data, address + start as u64, &mut tally.vmcoreinfo)?;
        }
    }
    Ok(())
}
