//! `picture`: draws where a guest's RAM is.

use std::io::Write;
use std::path::Path;

use xenmap::{FrameKind, Guest};

use crate::Result;
use crate::args::SearchArgs;
use crate::canvas::{Canvas, Shade};
use crate::dump::output::Output;
use crate::guest_pages::{GuestPages, WINDOW, windows};
use crate::image::{Image, Making, ZEROS};
use crate::map::scan;
use crate::progress::Progress;
use crate::sheet::Sheet;

/// Draws the map; returns whether RAM was looked for everywhere.
pub(crate) fn picture(
    guest: &Guest,
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
    let found = scan(guest, args)?;
    let map = &found.map;
    let progress = Progress::new("drawing", map.extents().iter().map(|extent| extent.pfns.len() as u64).sum())?;
    // A guest may have ballooned out much more than it has: that is drawn only in rows with RAM.
    let drawn = map.extents().iter().filter(|extent| extent.kind != FrameKind::BalloonedOut);
    let drawn: Vec<_> = drawn.map(|extent| extent.pfns.numbers()).collect();
    let mut canvas = Canvas::new(&drawn).ok_or("the guest has no RAM: there is nothing to draw")?;
    let mut pages = GuestPages::new(guest);
    let mut done = 0;
    for extent in map.extents() {
        let pfns = extent.pfns.numbers();
        let shade = match extent.kind {
            FrameKind::BalloonedOut => Some(Shade::BalloonedOut),
            // Reading them would page them in.
            FrameKind::PagedOut => Some(Shade::PagedOut),
            FrameKind::Broken => Some(Shade::Broken),
            _ => None,
        };
        if let Some(shade) = shade {
            canvas.draw(pfns.clone(), shade);
            done += pfns.end - pfns.start;
            continue;
        }
        for window in windows(pfns, WINDOW) {
            if let Some(dump) = &since {
                dump.prefetch(window.clone());
            }
            pages.load(window.clone())?;
            for pfn in window.clone() {
                let page = pages.page(pfn);
                let has_changed = |page| since.as_ref().is_some_and(|dump| !dump.has(pfn, page));
                let shade = match (page, extent.kind) {
                    (None, _) => Shade::Unreadable,
                    (Some(page), _) if has_changed(page) => Shade::Changed,
                    (_, FrameKind::PageTable) => Shade::PageTable,
                    (_, FrameKind::Special) => Shade::Special,
                    (Some(&ZEROS), _) => Shade::Zero,
                    _ => Shade::Data,
                };
                canvas.draw(pfn..pfn + 1, shade);
            }
            done += window.end - window.start;
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
