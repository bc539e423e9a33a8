//! `diff`: which pages differ.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use xenmap::{Extent, FRAME_SIZE, FrameKind, Guest};

use crate::Result;
use crate::args::SearchArgs;
use crate::guest_pages::{GuestPages, WINDOW, windows};
use crate::image::{Image, Page, Part, ZEROS};
use crate::map::scan;
use crate::progress::Progress;

/// What is compared: a dump, or the guest with the frames that it has.
enum Side<'a> {
    Dump(Image),
    Guest(GuestPages<'a>, Vec<Range<u64>>),
}

impl Side<'_> {
    fn parts(&self) -> Vec<(Range<u64>, Part)> {
        match self {
            Side::Dump(image) => image.parts().collect(),
            Side::Guest(_, ranges) => ranges.iter().map(|pfns| (pfns.clone(), Part::Pages)).collect(),
        }
    }

    fn hides_zeros(&self) -> bool {
        matches!(self, Side::Dump(image) if image.hides_zeros)
    }

    fn load(&mut self, window: Range<u64>) -> Result<()> {
        match self {
            Side::Dump(_) => Ok(()),
            Side::Guest(pages, _) => pages.load(window),
        }
    }

    /// The page of a frame that it has, in the window loaded last; `None` if it cannot be read.
    fn page(&self, pfn: u64) -> Option<&Page> {
        match self {
            Side::Dump(image) => image.page(pfn),
            Side::Guest(pages, _) => pages.page(pfn),
        }
    }
}

/// Compares two dumps and returns whether they are the same.
pub(crate) fn dumps(old: &Path, new: &Path, out: &mut impl Write) -> Result<bool> {
    compare(Side::Dump(Image::open(old)?), Side::Dump(Image::open(new)?), out)
}

/// Compares a dump and the guest and returns whether they are the same.
pub(crate) fn dump_and_guest(old: &Path, guest: &Guest<'_>, out: &mut impl Write) -> Result<bool> {
    let old = Image::open(old)?;
    let found = scan(guest, SearchArgs::default())?;
    if !found.is_complete() {
        return Err("nothing was compared, since not all of the guest's RAM was found".into());
    }
    let map = found.map;
    // What is broken is the guest's too, and cannot be read.
    let has_page = |extent: &&Extent| extent.kind != FrameKind::BalloonedOut;
    let ranges = map.extents().iter().filter(has_page).map(|extent| extent.pfns.clone()).collect();
    compare(Side::Dump(old), Side::Guest(GuestPages::new(guest), ranges), out)
}

fn compare(mut old: Side<'_>, mut new: Side<'_>, out: &mut impl Write) -> Result<bool> {
    let segments = segments(&old.parts(), &new.parts());
    let progress = Progress::new("comparing", segments.iter().map(|(pfns, ..)| pfns.end - pfns.start).sum())?;
    let mut done = 0;
    let mut report = Report { progress, last: None, counts: [0; 5] };
    for (pfns, of_old, of_new) in segments {
        // What a raw dump lacks may be a page of zeros, and its zeros may be no page.
        let hides_zeros = old.hides_zeros() || new.hides_zeros();
        let (lacks_old, lacks_new) = (of_old.is_none(), of_new.is_none());
        let verdict = match (of_old, of_new) {
            (None, None) => continue,
            (Some(_), None) if !hides_zeros => Some(Verdict::OnlyOld),
            (None, Some(_)) if !hides_zeros => Some(Verdict::OnlyNew),
            (None | Some(Part::Zeros), None | Some(Part::Zeros)) => Some(Verdict::Same),
            _ => None,
        };
        if let Some(verdict) = verdict {
            report.add(pfns.clone(), verdict, out)?;
            done += pfns.end - pfns.start;
            continue;
        }
        for window in windows(pfns, WINDOW) {
            if !lacks_old {
                old.load(window.clone())?;
            }
            if !lacks_new {
                new.load(window.clone())?;
            }
            for pfn in window.clone() {
                let page = |side, lacks| if lacks { Some(&ZEROS) } else { Side::page(side, pfn) };
                let verdict = match (page(&old, lacks_old), page(&new, lacks_new)) {
                    (Some(old), Some(new)) if old == new => Verdict::Same,
                    (Some(_), Some(_)) if lacks_old && !old.hides_zeros() => Verdict::OnlyNew,
                    (Some(_), Some(_)) if lacks_new && !new.hides_zeros() => Verdict::OnlyOld,
                    (Some(_), Some(_)) => Verdict::Different,
                    _ => Verdict::Unreadable,
                };
                report.add(pfn..pfn + 1, verdict, out)?;
            }
            done += window.end - window.start;
            report.progress.set(done);
        }
    }
    report.finish(out)
}

/// Frames of which each side has all or none.
type Segment = (Range<u64>, Option<Part>, Option<Part>);

fn segments(old: &[(Range<u64>, Part)], new: &[(Range<u64>, Part)]) -> Vec<Segment> {
    let mut borders: Vec<u64> = old.iter().chain(new).flat_map(|(pfns, _)| [pfns.start, pfns.end]).collect();
    borders.sort_unstable();
    borders.dedup();
    let part_at = |parts: &[(Range<u64>, Part)], pfn| {
        let after = parts.partition_point(|(pfns, _)| pfns.end <= pfn);
        parts.get(after).filter(|(pfns, _)| pfns.contains(&pfn)).map(|(_, part)| *part)
    };
    let segment = |pfns: &[u64]| (pfns[0]..pfns[1], part_at(old, pfns[0]), part_at(new, pfns[0]));
    borders.windows(2).map(segment).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Same,
    Different,
    OnlyOld,
    OnlyNew,
    Unreadable,
}

/// Prints ranges of frames with the same verdict, and counts.
struct Report {
    progress: Progress,
    /// The range that may go on.
    last: Option<(Range<u64>, Verdict)>,
    /// By verdict.
    counts: [u64; 5],
}

impl Report {
    fn add(&mut self, pfns: Range<u64>, verdict: Verdict, out: &mut impl Write) -> Result<()> {
        self.counts[verdict as usize] += pfns.end - pfns.start;
        match &mut self.last {
            Some((last, of_last)) if *of_last == verdict && last.end == pfns.start => last.end = pfns.end,
            _ => {
                self.print(out)?;
                self.last = Some((pfns, verdict));
            }
        }
        Ok(())
    }

    fn print(&mut self, out: &mut impl Write) -> Result<()> {
        let Some((pfns, verdict)) = self.last.take() else { return Ok(()) };
        let verdict = match verdict {
            Verdict::Same => return Ok(()),
            Verdict::Different => "different",
            Verdict::OnlyOld => "only in OLD",
            Verdict::OnlyNew => "only in NEW",
            Verdict::Unreadable => "cannot be read",
        };
        let (first, last) = (pfns.start * FRAME_SIZE as u64, (pfns.end - 1) * FRAME_SIZE as u64 + 0xFFF);
        let count = pfns.end - pfns.start;
        let pages = if count == 1 { "page" } else { "pages" };
        self.progress.suspend(|| {
            writeln!(out, "{first:#x} to {last:#x}: {count} {pages} {verdict}")?;
            Ok(out.flush()?)
        })
    }

    fn finish(mut self, out: &mut impl Write) -> Result<bool> {
        self.print(out)?;
        drop(self.progress);
        let [same, different, only_old, only_new, unreadable] = self.counts;
        writeln!(out, "{same} the same, {different} different, {only_old} only in OLD, {only_new} only in NEW")?;
        if unreadable > 0 {
            out.flush()?;
            return Err(format!("{unreadable} pages of the guest cannot be read, and were not compared").into());
        }
        Ok(different + only_old + only_new == 0)
    }
}
