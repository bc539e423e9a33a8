//! `picture`: draws where the RAM of a guest or a dump is.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use xenmap::FrameKind;

use crate::Result;
use crate::args::SearchArgs;
use crate::canvas::{Canvas, Shade};
use crate::dump::output::Output;
use crate::image::{Content, Image, Making, ZEROS};
use crate::map::{Extent, Kind, scan};
use crate::pages::{Pages, WINDOW};
use crate::progress::Progress;
use crate::ram::Ram;
use crate::sheet::Sheet;
use crate::window::{addresses, frames};

/// Draws the map; returns whether RAM was looked for everywhere.
pub(crate) fn picture(
    ram: &Ram,
    path: &Path,
    args: SearchArgs,
    since: Option<(&Path, Making)>,
    out: &mut impl Write,
) -> Result<bool> {
    if path == Path::new("-") {
        return Err("a picture goes to a file, not to standard output: give its name".into());
    }
    let output = Output::create(path)?;
    let since = since.map(|(dump, making)| Image::open(dump, making)).transpose()?;
    let found = scan(ram, args)?;
    let extents = drawable(&found.extents);
    let progress = Progress::new("drawing", extents.iter().map(|(pfns, _)| pfns.end - pfns.start).sum())?;
    // There may be much more of these than of RAM: they are drawn only in rows with RAM.
    let is_ram = |kind| !matches!(kind, Kind::Frame(FrameKind::BalloonedOut) | Kind::ZerosOrNone);
    let rows: Vec<_> = extents.iter().filter(|(_, kind)| is_ram(*kind)).map(|(pfns, _)| pfns.clone()).collect();
    let mut canvas = Canvas::new(&rows).ok_or("there is no RAM: there is nothing to draw")?;
    let mut pages = Pages::new(ram);
    let mut done = 0;
    for (pfns, kind) in extents {
        let shade = match kind {
            Kind::Frame(FrameKind::BalloonedOut) => Some(Shade::BalloonedOut),
            // Reading them would page them in.
            Kind::Frame(FrameKind::PagedOut) => Some(Shade::PagedOut),
            Kind::Frame(FrameKind::Broken) => Some(Shade::Broken),
            _ => None,
        };
        if let Some(shade) = shade {
            canvas.draw(pfns.clone(), shade);
            done += pfns.end - pfns.start;
            continue;
        }
        for window in ram.windows(pfns, WINDOW as u64) {
            let window = window?;
            if window.is_no_more_than_zeros() {
                if kind != Kind::ZerosOrNone {
                    canvas.draw(window.pfns.clone(), Shade::Zero);
                }
                if let Some(since) = &since {
                    draw_changes_to_zeros(since, window.pfns, &mut canvas);
                }
                continue;
            }
            let pfns = window.pfns;
            if let Some(dump) = &since {
                dump.prefetch(pfns.clone());
            }
            pages.load(pfns.clone())?;
            for pfn in pfns.clone() {
                let page = pages.page(pfn);
                let has_changed = |page| since.as_ref().is_some_and(|dump| !dump.has(pfn, page));
                let shade = match (page, kind) {
                    (None, _) => Shade::Unreadable,
                    (Some(page), _) if has_changed(page) => Shade::Changed,
                    (_, Kind::Frame(FrameKind::PageTable)) => Shade::PageTable,
                    (_, Kind::Frame(FrameKind::Special)) => Shade::Special,
                    (Some(&ZEROS), _) => Shade::Zero,
                    _ => Shade::Data,
                };
                canvas.draw(pfn..pfn + 1, shade);
            }
            done += pfns.end - pfns.start;
            progress.set(done);
        }
    }
    let sheet = Sheet::new(&canvas)?;
    let written = output.file()?.write_all(&sheet.png()?);
    written.map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    output.finish()?;
    writeln!(out, "{} x {} pixels. {}", sheet.width, sheet.height, canvas.scale())?;
    canvas.legend(sheet.top, out)?;
    Ok(found.is_complete())
}

/// Returns the frames of some extents. A frame of which several extents have a part belongs to the first of them.
fn drawable(extents: &[Extent]) -> Vec<(Range<u64>, Kind)> {
    let mut end = 0;
    let of_extent = |extent: &Extent| {
        let pfns = frames(&extent.addresses);
        let pfns = pfns.start.max(end)..pfns.end;
        end = pfns.end;
        (pfns, extent.kind)
    };
    extents.iter().map(of_extent).filter(|(pfns, _)| !pfns.is_empty()).collect()
}

/// Marks the frames that are zero now and have something else in an earlier dump.
fn draw_changes_to_zeros(since: &Image, pfns: Range<u64>, canvas: &mut Canvas) {
    for (addresses, content) in since.contents(addresses(&pfns)) {
        let pfns = frames(&addresses);
        match content {
            Content::Bytes(_) => {
                let changed = pfns.filter(|pfn| !since.has(*pfn, &ZEROS));
                changed.for_each(|pfn| canvas.draw(pfn..pfn + 1, Shade::Changed));
            }
            Content::Missing if !since.hides_zeros => canvas.draw(pfns, Shade::Changed),
            Content::Zeros | Content::Missing => {}
        }
    }
}
