//! What there is to say about a dump.

use std::fmt::Write;
use std::time::Duration;

use indicatif::BinaryBytes;
use xenmap::{FrameError, Gfn, Guest};

use super::copy::{Lost, Tally};
use super::layout::FRAME;

/// One line that sums it up.
pub(crate) fn summary(tally: &Tally, written: u64, time: Duration) -> String {
    let lost = tally.lost_frames();
    let size = BinaryBytes(tally.frames() * FRAME);
    format!(
        "dumped {} frames ({size}), {} of them zero, {lost} lost; {} written in {:.1} s",
        tally.copied,
        tally.zero,
        BinaryBytes(written),
        time.as_secs_f64()
    )
}

/// Lines that say which frames are lost.
pub(crate) fn lost(tally: &Tally) -> impl Iterator<Item = String> {
    tally.lost.iter().map(line)
}

fn line(lost: &Lost) -> String {
    let (start, end) = (lost.pfns.start, lost.pfns.end);
    // What the library says of an errno it says of a frame.
    let reason = FrameError::new(0, Gfn::MAX, lost.errno).reason();
    format!("lost: frames {start:#x} to {:#x} ({}): {reason}", end - 1, end - start)
}

/// What a file says of itself, in so many bytes.
pub(crate) fn text(guest: &Guest, tally: &Tally, len: usize) -> String {
    const LAST_LINE: usize = 64;
    let mut text = format!("xenmap {}: domain {}\n", env!("CARGO_PKG_VERSION"), guest.domid());
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
