//! `diff`: which pages differ.

mod report;

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use xenmap::FrameKind;

use crate::args::{RawDumps, SearchArgs};
use crate::image::{Frame, Image, Making, Page, Part, ZEROS};
use crate::map::{Extent, Kind, scan};
use crate::pages::{Pages, WINDOW, windows};
use crate::progress::Progress;
use crate::ram::Ram;
use crate::window::{addresses, frames};
use crate::{Result, say};
use report::{Report, Verdict};

/// One of the two things that are compared.
enum Side<'a> {
    /// A dump, and the first frame that was not prefetched yet.
    Dump(&'a Image, u64),
    /// A guest, and the frames that it has.
    Guest(Pages<'a>, Vec<Range<u64>>),
}

impl Side<'_> {
    fn parts(&self) -> Vec<(Range<u64>, Part)> {
        match self {
            Side::Dump(image, _) => image.parts(),
            Side::Guest(_, ranges) => ranges.iter().map(|pfns| (pfns.clone(), Part::Pages)).collect(),
        }
    }

    fn hides_zeros(&self) -> bool {
        matches!(self, Side::Dump(image, _) if image.hides_zeros)
    }

    fn load(&mut self, window: Range<u64>) -> Result<()> {
        match self {
            Side::Dump(image, next) => {
                // The next window too: the disk reads it while this one is compared.
                let end = window.end + WINDOW as u64;
                image.prefetch(window.start.max(*next)..end);
                *next = end;
                Ok(())
            }
            Side::Guest(pages, _) => pages.load(window),
        }
    }

    /// Returns the page of a frame that this side has whole, in the window loaded last; `None` if it cannot be read.
    fn page(&self, pfn: u64) -> Option<&Page> {
        match self {
            Side::Dump(image, _) => image.page(pfn),
            Side::Guest(pages, _) => pages.page(pfn),
        }
    }

    /// Returns what this side has of a frame, in the window loaded last; `None` if it cannot be read.
    fn frame(&self, pfn: u64) -> Option<Frame> {
        match self {
            Side::Dump(image, _) => Some(image.frame(pfn)),
            Side::Guest(pages, _) => pages.page(pfn).map(Frame::whole),
        }
    }
}

/// Compares two dumps and returns whether they are the same.
pub(crate) fn dumps(
    old: &Path,
    new: &Path,
    raw: Option<RawDumps>,
    as_json: bool,
    out: &mut impl Write,
) -> Result<bool> {
    let (old_is_raw, new_is_raw) = match raw {
        None => (false, false),
        Some(RawDumps::Old) => (true, false),
        Some(RawDumps::New) => (false, true),
        Some(RawDumps::Both) => (true, true),
    };
    // The options to suggest if one of them looks like something else.
    let for_old = Making::new(old_is_raw, if new_is_raw { "--raw both" } else { "--raw old" });
    let for_new = Making::new(new_is_raw, if old_is_raw { "--raw both" } else { "--raw new" });
    let images = [Image::open(old, for_old)?, Image::open(new, for_new)?];
    let [old, new] = images.each_ref().map(|image| Side::Dump(image, 0));
    compare(old, new, as_json, out)
}

/// Compares a dump with a guest or another dump and returns whether they are the same; `None` if not all of the guest
/// was searched.
pub(crate) fn dump_and_ram(
    old: &Path,
    raw: Option<RawDumps>,
    ram: &Ram,
    search: SearchArgs,
    as_json: bool,
    out: &mut impl Write,
) -> Result<Option<bool>> {
    if raw.is_some_and(|raw| raw != RawDumps::Old) {
        return Err("there is only one dump: give --raw old, or another dump".into());
    }
    let old = Image::open(old, Making::new(raw.is_some(), "--raw old"))?;
    let old = Side::Dump(&old, 0);
    if let Ram::Dump(new) = ram {
        return compare(old, Side::Dump(new, 0), as_json, out).map(Some);
    }
    let found = scan(ram, search)?;
    if !found.is_complete() {
        // RAM that was not found would be reported as missing in the guest.
        say("nothing was compared");
        if as_json {
            report::not_compared(found.not_searched(), out)?;
        }
        return Ok(None);
    }
    // Broken frames are the guest's too: they are reported as unreadable.
    let has_page = |extent: &&Extent| extent.kind != Kind::Frame(FrameKind::BalloonedOut);
    let ranges = found.extents.iter().filter(has_page).map(|extent| frames(&extent.addresses)).collect();
    compare(old, Side::Guest(Pages::new(ram), ranges), as_json, out).map(Some)
}

fn compare(mut old: Side<'_>, mut new: Side<'_>, as_json: bool, out: &mut impl Write) -> Result<bool> {
    let (of_old, of_new) = (old.parts(), new.parts());
    let frames = segments(&of_old, &of_new).map(|(pfns, ..)| pfns.end - pfns.start).sum();
    let progress = Progress::new("comparing", frames)?;
    let mut done = 0;
    let mut report = Report::new(progress, as_json);
    // A page that a raw dump lacks may be a page of zeros, and its zeros may be no page.
    let hidden = Hidden { by_old: old.hides_zeros(), by_new: new.hides_zeros() };
    for (pfns, of_old, of_new) in segments(&of_old, &of_new) {
        let known_verdict = match (of_old, of_new) {
            (None, None) => continue,
            (None | Some(Part::Zeros), None | Some(Part::Zeros)) => {
                let zeros = |part: Option<Part>| part.map(|_| &ZEROS[..]);
                Some(verdict(zeros(of_old), zeros(of_new), hidden))
            }
            (Some(Part::Pages), None) if !hidden.any() => Some(Verdict::OnlyOld),
            (None, Some(Part::Pages)) if !hidden.any() => Some(Verdict::OnlyNew),
            _ => None,
        };
        if let Some(verdict) = known_verdict {
            report.add(addresses(&pfns), verdict, out)?;
            done += pfns.end - pfns.start;
            continue;
        }
        let in_pieces = [of_old, of_new].contains(&Some(Part::Pieces));
        for window in windows(pfns, WINDOW) {
            if of_old.is_some() {
                old.load(window.clone())?;
            }
            if of_new.is_some() {
                new.load(window.clone())?;
            }
            for pfn in window.clone() {
                if in_pieces {
                    let frame = |side: &Side<'_>, part: Option<Part>| match part {
                        Some(_) => side.frame(pfn),
                        None => Some(Frame::nothing()),
                    };
                    compare_pieces(pfn, frame(&old, of_old), frame(&new, of_new), hidden, &mut report, out)?;
                    continue;
                }
                // `None` if there is a page, and it cannot be read.
                let page = |side, part: Option<Part>| match part {
                    Some(_) => Side::page(side, pfn).map(|page| Some(&page[..])),
                    None => Some(None),
                };
                let verdict = match (page(&old, of_old), page(&new, of_new)) {
                    (Some(old), Some(new)) => verdict(old, new, hidden),
                    _ => Verdict::Unreadable,
                };
                report.add(addresses(&(pfn..pfn + 1)), verdict, out)?;
            }
            done += window.end - window.start;
            report.set_progress(done);
        }
    }
    report.finish(out)
}

/// Compares a frame of which a side has only pieces; `None` if it cannot be read.
fn compare_pieces(
    pfn: u64,
    old: Option<Frame>,
    new: Option<Frame>,
    hidden: Hidden,
    report: &mut Report,
    out: &mut impl Write,
) -> Result<()> {
    let frame = addresses(&(pfn..pfn + 1));
    let (Some(old), Some(new)) = (old, new) else { return report.add(frame, Verdict::Unreadable, out) };
    let mut borders: Vec<usize> = old.borders().chain(new.borders()).collect();
    borders.sort_unstable();
    borders.dedup();
    for border in borders.windows(2) {
        let (old, new) = (old.bytes(border[0]..border[1]), new.bytes(border[0]..border[1]));
        if old.is_some() || new.is_some() {
            let bytes = frame.start + border[0] as u64..frame.start + border[1] as u64;
            report.add(bytes, verdict(old, new, hidden), out)?;
        }
    }
    Ok(())
}

/// Which sides do not tell a page of zeros from a missing page.
#[derive(Clone, Copy)]
struct Hidden {
    by_old: bool,
    by_new: bool,
}

impl Hidden {
    fn any(self) -> bool {
        self.by_old || self.by_new
    }
}

/// Compares a page or a part of one; `None` if a side does not have it.
fn verdict(old: Option<&[u8]>, new: Option<&[u8]>, hidden: Hidden) -> Verdict {
    let may_be_none = |bytes: &[u8]| hidden.any() && *bytes == ZEROS[..bytes.len()];
    match (old, new) {
        (Some(old), Some(new)) if old == new => Verdict::Same,
        (None, None) => Verdict::Same,
        (Some(bytes), None) | (None, Some(bytes)) if may_be_none(bytes) => Verdict::Same,
        (Some(_), None) if !hidden.by_new => Verdict::OnlyOld,
        (None, Some(_)) if !hidden.by_old => Verdict::OnlyNew,
        _ => Verdict::Different,
    }
}

/// Frames that each side has whole, has in pieces, or does not have.
type Segment = (Range<u64>, Option<Part>, Option<Part>);

/// Returns the frames of both sides in ascending order, and those of neither between them.
fn segments<'a>(
    mut old: &'a [(Range<u64>, Part)],
    mut new: &'a [(Range<u64>, Part)],
) -> impl Iterator<Item = Segment> + use<'a> {
    let mut next = 0;
    std::iter::from_fn(move || {
        for side in [&mut old, &mut new] {
            while let Some(((pfns, _), rest)) = side.split_first()
                && pfns.end <= next
            {
                *side = rest;
            }
        }
        let firsts = [old.first(), new.first()];
        let start = next;
        // The first border after `next`.
        let borders = firsts.iter().flatten().flat_map(|(pfns, _)| [pfns.start, pfns.end]);
        next = borders.filter(|border| *border > start).min()?;
        let part =
            |first: Option<&(Range<u64>, Part)>| first.filter(|(pfns, _)| pfns.contains(&start)).map(|(_, part)| *part);
        Some((start..next, part(firsts[0]), part(firsts[1])))
    })
}
