//! The parts of a dump, and their places in the file.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use xenmap::{FRAME_SIZE, Gfn};

use crate::args::Format;
use crate::registers::Registers;

pub(crate) const FRAME: u64 = FRAME_SIZE as u64;

/// The layout of a dump. Bytes that belong to nothing below are zero.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    /// The bytes at the beginning of the file.
    pub(crate) head: Vec<u8>,
    /// The frames, in ascending order in the guest and in the file.
    pub(crate) parts: Vec<Part>,
    /// The place of what is written after the frames.
    pub(crate) late: u64,
    /// The registers of vcpus, for a format that has them.
    pub(crate) vcpus: Vec<Registers>,
    /// The size of the file.
    pub(crate) len: u64,
}

/// Consecutive frames that are consecutive in the file too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedPart")]
pub(crate) struct Part {
    pub(crate) pfns: Range<u64>,
    /// The place of the first one in the file.
    pub(crate) offset: u64,
}

impl Layout {
    /// Returns whether the dump has notes, and so needs the kernel's.
    pub(crate) fn has_notes(&self) -> bool {
        self.format == Format::Elf
    }

    pub(crate) fn frames(&self) -> u64 {
        self.parts.iter().map(Part::frames).sum()
    }

    /// Returns the parts in shares of at most `frames` frames.
    pub(crate) fn shares(&self, frames: u64) -> impl Iterator<Item = Vec<Part>> {
        let mut pieces = self.parts.iter().flat_map(move |part| part.cut(frames)).peekable();
        std::iter::from_fn(move || {
            let mut share = vec![pieces.next()?];
            let mut left = frames - share[0].frames();
            while let Some(piece) = pieces.next_if(|piece| piece.frames() <= left) {
                left -= piece.frames();
                share.push(piece);
            }
            Some(share)
        })
    }
}

/// A part of a worker's job, before it is checked.
#[derive(Deserialize)]
struct UncheckedPart {
    pfns: Range<u64>,
    offset: u64,
}

impl TryFrom<UncheckedPart> for Part {
    type Error = String;

    fn try_from(UncheckedPart { pfns, offset }: UncheckedPart) -> Result<Part, String> {
        check_range(&pfns)?;
        let end = offset.checked_add((pfns.end - pfns.start) * FRAME);
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(format!("no file has {} frames at byte {offset:#x}", pfns.end - pfns.start));
        }
        Ok(Part { pfns, offset })
    }
}

/// Checks that a range of frames does not end before it begins, or past the last possible frame.
pub(crate) fn check_range(pfns: &Range<u64>) -> Result<(), String> {
    if pfns.start > pfns.end || pfns.end > Gfn::MAX.get() + 1 {
        return Err(format!("{:#x} to {:#x} is not a range of frames", pfns.start, pfns.end));
    }
    Ok(())
}

impl Part {
    pub(crate) fn frames(&self) -> u64 {
        self.pfns.end - self.pfns.start
    }

    fn cut(&self, frames: u64) -> impl Iterator<Item = Part> {
        let Part { pfns, offset } = self.clone();
        let step = usize::try_from(frames).unwrap_or(usize::MAX);
        pfns.clone().step_by(step).map(move |start| Part {
            pfns: start..pfns.end.min(start + frames),
            offset: offset + (start - pfns.start) * FRAME,
        })
    }
}

/// Returns a part for each range, one after another from `start` on, each after `header` bytes; and where the last ends.
pub(crate) fn in_a_row(ranges: &[Range<u64>], start: u64, header: u64) -> (Vec<Part>, u64) {
    let mut end = start;
    let part = |pfns: &Range<u64>| {
        let part = Part { pfns: pfns.clone(), offset: end + header };
        end = part.offset + part.frames() * FRAME;
        part
    };
    (ranges.iter().map(part).collect(), end)
}
