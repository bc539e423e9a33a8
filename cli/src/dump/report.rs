//! The summary of a dump, as text, as JSON, and as a note in the file.

use std::fmt::Write;
use std::time::Duration;

use indicatif::BinaryBytes;
use serde::Serialize;
use xenmap::{Domid, FrameError, Gfn};

use super::copy::{Lost, Tally};
use super::layout::FRAME;
use crate::args::{Compression, DumpArgs, Format};
use crate::map::{AddressRange, Found};
use crate::ram::Ram;

/// The result of writing a dump.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) tally: Tally,
    pub(crate) bytes: u64,
    /// Why the dump may not be what it should be, such as the kernel's note of an earlier kernel.
    pub(crate) warnings: Vec<String>,
}

/// Returns a line that sums up the dump.
pub(crate) fn summary(Written { tally, bytes, .. }: &Written, time: Duration) -> String {
    format!(
        "dumped {} frames ({}), {} of them zero, {} lost; {} written in {:.1} s",
        tally.copied,
        BinaryBytes(tally.copied * FRAME),
        tally.zero,
        tally.lost_frames(),
        BinaryBytes(*bytes),
        time.as_secs_f64()
    )
}

/// Returns lines that list the lost frames.
pub(crate) fn lost(tally: &Tally) -> impl Iterator<Item = String> {
    tally.lost.iter().map(line)
}

fn line(lost: &Lost) -> String {
    let (start, end) = (lost.pfns.start, lost.pfns.end);
    format!("lost: frames {start:#x} to {:#x} ({}): {}", end - 1, end - start, reason(lost))
}

fn reason(lost: &Lost) -> String {
    // The library describes an errno as the error of a frame.
    FrameError::new(0, Gfn::MAX, lost.errno).reason()
}

/// The document of `dump --json`.
#[derive(Serialize)]
pub(crate) struct Summary {
    domid: Option<u16>,
    /// `None`: standard output.
    file: Option<String>,
    format: Format,
    compression: Option<Compression>,
    /// Whether the dump has all of the guest's RAM.
    complete: bool,
    ram_frames: u64,
    ram_bytes: u64,
    /// Frames that are all zero.
    zero_frames: u64,
    lost_frames: u64,
    /// Frames that the guest owns and that are not in its memory map.
    not_found_frames: u64,
    written_bytes: u64,
    seconds: f64,
    /// Where RAM was not looked for.
    not_searched: Vec<AddressRange>,
    lost: Vec<LostRange>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct LostRange {
    #[serde(flatten)]
    range: AddressRange,
    error: String,
}

pub(crate) fn json(ram: &Ram, args: &DumpArgs, found: &Found, written: Written, time: Duration) -> Summary {
    let Written { tally, bytes, warnings } = written;
    let lost_range =
        |lost: &Lost| LostRange { range: (lost.pfns.start * FRAME..lost.pfns.end * FRAME).into(), error: reason(lost) };
    let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    Summary {
        domid: ram.domid().map(Domid::get),
        file: (!args.is_to_stdout()).then(|| args.out.display().to_string()),
        format: args.format,
        compression: args.compress,
        complete: found.is_complete() && tally.lost.is_empty(),
        ram_frames: tally.frames(),
        ram_bytes: tally.frames() * FRAME,
        zero_frames: tally.zero,
        lost_frames: tally.lost_frames(),
        not_found_frames: found.missing,
        written_bytes: bytes,
        seconds: f64::from(millis) / 1000.0,
        not_searched: found.not_searched(),
        lost: tally.lost.iter().map(lost_range).collect(),
        warnings,
    }
}

/// Returns what the file says about itself, in at most `len` bytes.
pub(crate) fn text(ram: &Ram, tally: &Tally, len: usize) -> String {
    const LAST_LINE: usize = 64;
    let of = ram.domid().map_or("a dump".to_owned(), |domid| format!("domain {domid}"));
    let mut text = format!("xenmap {}: {of}\n", env!("CARGO_PKG_VERSION"));
    // Writing to a string does not fail.
    let _ = writeln!(text, "{} frames, {} of them lost", tally.frames(), tally.lost_frames());
    for (i, lost) in tally.lost.iter().enumerate() {
        let line = line(lost);
        if text.len() + line.len() + LAST_LINE > len {
            let _ = writeln!(text, "lost: {} more ranges of frames", tally.lost.len() - i);
            break;
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}
