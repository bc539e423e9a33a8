//! What `diff` prints: ranges of addresses with the same verdict, and the number of pages of each.

use std::io::Write;
use std::ops::Range;

use anstyle::Style;
use serde::Serialize;
use xenmap::FRAME_SIZE;

use crate::Result;
use crate::map::AddressRange;
use crate::number::count;
use crate::palette::{Palette, palette};
use crate::printable::write_json;
use crate::progress::Progress;

pub(super) const FRAME: u64 = FRAME_SIZE as u64;

/// In ascending order: a page that is compared in parts counts once, with the last of the parts' verdicts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Same,
    OnlyNew,
    OnlyOld,
    Different,
    Unreadable,
}

const VERDICTS: usize = 5;

impl Verdict {
    fn in_text(self, palette: &Palette) -> (&'static str, Style) {
        match self {
            Verdict::Same => ("the same", Style::new()),
            Verdict::Different => ("different", palette.warning),
            Verdict::OnlyOld => ("only in OLD", palette.bad),
            Verdict::OnlyNew => ("only in NEW", palette.good),
            Verdict::Unreadable => ("cannot be read", Style::new()),
        }
    }

    fn in_json(self) -> &'static str {
        match self {
            Verdict::Same => "same",
            Verdict::Different => "different",
            Verdict::OnlyOld => "only_in_old",
            Verdict::OnlyNew => "only_in_new",
            Verdict::Unreadable => "unreadable",
        }
    }
}

/// The document of `diff --json`.
#[derive(Default, Serialize)]
struct Document {
    /// Whether all RAM was found, read and compared.
    complete: bool,
    ranges: Vec<JsonRange>,
    pages: Pages,
    /// Where RAM was not looked for.
    not_searched: Vec<AddressRange>,
}

#[derive(Serialize)]
struct JsonRange {
    #[serde(flatten)]
    range: AddressRange,
    status: &'static str,
}

/// The number of pages of each verdict.
#[derive(Default, Serialize)]
struct Pages {
    same: u64,
    different: u64,
    only_in_old: u64,
    only_in_new: u64,
    unreadable: u64,
}

/// Prints ranges of addresses with the same verdict, and counts pages.
pub(super) struct Report {
    progress: Progress,
    palette: &'static Palette,
    /// The ranges to print at the end, as JSON; `None` to print each range as text when it is complete.
    json: Option<Vec<JsonRange>>,
    /// The last range, which may continue.
    last: Option<(Range<u64>, Verdict)>,
    /// The page of which there may be more parts, and which is not counted yet.
    torn: Option<(u64, Verdict)>,
    /// Pages by verdict.
    counts: [u64; VERDICTS],
}

impl Report {
    pub(super) fn new(progress: Progress, as_json: bool) -> Report {
        let json = as_json.then(Vec::new);
        Report { progress, palette: palette(), json, last: None, torn: None, counts: [0; VERDICTS] }
    }

    pub(super) fn set_progress(&self, frames: u64) {
        self.progress.set(frames);
    }

    /// Adds whole pages, or a part of one.
    pub(super) fn add(&mut self, bytes: Range<u64>, verdict: Verdict, out: &mut impl Write) -> Result<()> {
        self.count(&bytes, verdict);
        match &mut self.last {
            Some((last, of_last)) if *of_last == verdict && last.end == bytes.start => last.end = bytes.end,
            _ => {
                self.print(out)?;
                self.last = Some((bytes, verdict));
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: &Range<u64>, verdict: Verdict) {
        if is_whole(bytes) {
            self.counts[verdict as usize] += (bytes.end - bytes.start) / FRAME;
            return;
        }
        let page = bytes.start / FRAME;
        match &mut self.torn {
            Some((torn, of_torn)) if *torn == page => *of_torn = verdict.max(*of_torn),
            torn => {
                if let Some((_, verdict)) = torn.replace((page, verdict)) {
                    self.counts[verdict as usize] += 1;
                }
            }
        }
    }

    /// Prints the last range, which is complete.
    fn print(&mut self, out: &mut impl Write) -> Result<()> {
        let Some((bytes, verdict)) = self.last.take().filter(|(_, verdict)| *verdict != Verdict::Same) else {
            return Ok(());
        };
        if let Some(ranges) = &mut self.json {
            ranges.push(JsonRange { range: bytes.into(), status: verdict.in_json() });
            return Ok(());
        }
        let (verdict, style) = verdict.in_text(self.palette);
        let (first, last, len) = (bytes.start, bytes.end - 1, bytes.end - bytes.start);
        let size = if is_whole(&bytes) { count(len / FRAME, "page") } else { count(len, "byte") };
        self.progress.suspend(|| {
            writeln!(out, "{style}{first:#x} to {last:#x}: {size} {verdict}{style:#}")?;
            Ok(out.flush()?)
        })
    }

    /// Prints the summary, and returns whether both sides are the same.
    pub(super) fn finish(mut self, out: &mut impl Write) -> Result<bool> {
        self.print(out)?;
        drop(self.progress);
        if let Some((_, verdict)) = self.torn {
            self.counts[verdict as usize] += 1;
        }
        let [same, only_in_new, only_in_old, different, unreadable] = self.counts;
        if let Some(ranges) = self.json {
            let pages = Pages { same, different, only_in_old, only_in_new, unreadable };
            let complete = unreadable == 0;
            write_json(&mut *out, &Document { complete, ranges, pages, not_searched: Vec::new() })?;
        } else {
            writeln!(
                out,
                "{same} the same, {different} different, {only_in_old} only in OLD, {only_in_new} only in NEW"
            )?;
        }
        let error = match unreadable {
            0 => return Ok(different + only_in_old + only_in_new == 0),
            1 => "1 page of the guest cannot be read and was not compared".to_owned(),
            more => format!("{more} pages of the guest cannot be read and were not compared"),
        };
        out.flush()?;
        Err(error.into())
    }
}

/// Prints that nothing was compared, as JSON.
pub(super) fn not_compared(not_searched: Vec<AddressRange>, out: &mut impl Write) -> Result<()> {
    Ok(write_json(out, &Document { not_searched, ..Document::default() })?)
}

fn is_whole(bytes: &Range<u64>) -> bool {
    bytes.start.is_multiple_of(FRAME) && bytes.end.is_multiple_of(FRAME)
}
