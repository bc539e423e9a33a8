//! `dump`: the guest's RAM as a sparse file, in which each frame is at its number times 4096.
//!
//! Frames that are all zero are written too: a hole of the file means that the guest has no RAM there, also to `--mock`.

use std::ops::Range;
use std::path::Path;

use xenmap::{FRAME_SIZE, ForeignMapping, Gfn, GuestKind, Protection};

use crate::guest::Guest;
use crate::output::Output;
use crate::progress::Progress;
use crate::report::Report;
use crate::scan::Scan;
use crate::{Result, say};

pub(crate) fn dump(guest: &Guest, path: &Path) -> Result<Report> {
    let mut output = Output::create(path)?;
    let mut scan = Scan::new(end_of_frames(guest)?, guest.memory.current_reservation(guest.domid)?);
    let mut report = Report::new(guest.kind, scan.owned());
    let progress = Progress::new(scan.owned())?;
    let all = scan.untried();
    let mut len = 0;
    while let Some(window) = scan.next_window() {
        let mapping = map(guest, window.clone())?;
        let start = window.start * FRAME_SIZE as u64;
        for range in mapping.mapped_ranges() {
            len = len.max(start + range.end as u64);
            output.write(start + range.start as u64, mapping.view(), range)?;
        }
        report.add(&mapping);
        scan.saw(&mapping);
        progress.set(scan.found(), all - scan.untried());
    }
    report.set_untried(scan.untried());
    output.finish(len)?;
    Ok(report)
}

/// All frames of the guest are below this one.
fn end_of_frames(guest: &Guest) -> Result<u64> {
    let highest = match guest.kind {
        GuestKind::Pv => {
            say("a PV guest: its frames are looked for in the whole machine, and lie in the dump by machine address");
            guest.memory.maximum_ram_page()?
        }
        _ => guest.memory.maximum_gpfn(guest.domid)?,
    };
    Ok(Gfn::new(highest)?.get() + 1)
}

fn map(guest: &Guest, window: Range<u64>) -> Result<ForeignMapping> {
    let gfns = window.map(Gfn::new).collect::<xenmap::Result<Vec<Gfn>>>()?;
    let mapping = guest.memory.map_foreign_batch_partial(guest.domid, Protection::ReadOnly, &gfns)?;
    if mapping.failed().iter().any(|e| e.errno == libc::ESRCH) {
        return Err(format!("domain {} cannot be mapped: it is gone, or it is the one we are in", guest.domid).into());
    }
    Ok(mapping)
}
