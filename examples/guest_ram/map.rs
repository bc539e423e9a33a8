//! `map`: where a guest's RAM is.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use xenmap::{FRAME_SIZE, FrameKind, Guest, RamMap, Search};

use crate::Result;
use crate::args::SearchArgs;
use crate::progress::Progress;

#[derive(Serialize)]
struct Extent {
    /// The addresses of its first and its last byte.
    first: u64,
    last: u64,
    bytes: u64,
    kind: &'static str,
}

#[derive(Serialize)]
struct Map {
    domid: u16,
    extents: Vec<Extent>,
    /// Bytes of each kind.
    totals: BTreeMap<&'static str, u64>,
}

pub(crate) fn map(guest: &Guest<'_>, search: SearchArgs, as_json: bool, out: &mut impl Write) -> Result<()> {
    let mut map = Map { domid: guest.domid().get(), extents: Vec::new(), totals: BTreeMap::new() };
    for extent in scan(guest, search)?.extents() {
        // The highest frame number has 40 bits.
        let [first, end] = [extent.pfns.start, extent.pfns.end].map(|pfn| pfn * FRAME_SIZE as u64);
        let (bytes, kind) = (end - first, name(extent.kind));
        map.extents.push(Extent { first, last: end - 1, bytes, kind });
        *map.totals.entry(kind).or_default() += bytes;
    }
    if as_json {
        writeln!(out, "{}", serde_json::to_string(&map)?)?;
        return Ok(());
    }
    writeln!(out, "{:>14}  {:>14}  {:>14}  kind", "first", "last", "size")?;
    for Extent { first, last, bytes, kind } in map.extents {
        let size = size(bytes);
        writeln!(out, "{first:>#14x}  {last:>#14x}  {size:>14}  {kind}")?;
    }
    for (kind, bytes) in map.totals {
        writeln!(out, "{:>14}  {:14}  {:>14}  {kind}", "in all", "", size(bytes))?;
    }
    Ok(())
}

/// Looks for the guest's RAM, and shows how far it is.
pub(crate) fn scan(guest: &Guest<'_>, args: SearchArgs) -> Result<RamMap> {
    let mut scan = guest.scan(if args.thorough { Search::EveryFrame } else { Search::UntilAllFound })?;
    let progress = Progress::new("finding", scan.owned())?;
    while scan.step()? {
        progress.set(scan.found());
    }
    Ok(scan.into_map())
}

fn name(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Ram => "ram",
        FrameKind::PageTable => "page table",
        FrameKind::PagedOut => "paged out",
        FrameKind::Broken => "broken",
        FrameKind::Special => "special",
        FrameKind::BalloonedOut => "ballooned out",
        _ => "unknown",
    }
}

fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB")];
    match units.into_iter().find(|(unit, _)| bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{} KiB", bytes >> 10),
    }
}
