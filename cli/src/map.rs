//! `map`: shows where a guest's RAM is.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::time::Duration;

use serde::Serialize;
use xenmap::{FrameKind, Guest, NumberRange, Pfn, RamMap, Search};

use crate::args::SearchArgs;
use crate::number::size;
use crate::palette::palette;
use crate::printable::write_json;
use crate::progress::Progress;
use crate::{Result, say};

#[derive(Serialize)]
struct Extent {
    #[serde(flatten)]
    range: AddressRange,
    kind: &'static str,
}

/// The addresses of a range's first and last byte, and how many it has.
#[derive(Serialize)]
pub(crate) struct AddressRange {
    first: u64,
    last: u64,
    bytes: u64,
}

impl From<Range<u64>> for AddressRange {
    /// The range must not be empty.
    fn from(addresses: Range<u64>) -> AddressRange {
        let Range { start: first, end } = addresses;
        AddressRange { first, last: end - 1, bytes: end - first }
    }
}

#[derive(Serialize)]
struct Map {
    domid: u16,
    extents: Vec<Extent>,
    /// The size of all extents of a kind.
    total_bytes: BTreeMap<&'static str, u64>,
    not_searched: Vec<AddressRange>,
}

/// Prints where the guest's RAM is. Returns whether the search for it was complete.
pub(crate) fn map(guest: &Guest, search: SearchArgs, as_json: bool, out: &mut impl Write) -> Result<bool> {
    let found = scan(guest, search)?;
    let complete = found.is_complete();
    let mut map = Map {
        domid: guest.domid().get(),
        extents: Vec::new(),
        total_bytes: BTreeMap::new(),
        not_searched: found.not_searched(),
    };
    for extent in found.map.extents() {
        let (range, kind) = (addresses_of(&extent.pfns), name(extent.kind));
        *map.total_bytes.entry(kind).or_default() += range.bytes;
        map.extents.push(Extent { range, kind });
    }
    if as_json {
        write_json(out, &map)?;
        return Ok(complete);
    }
    let palette = palette();
    let (heading, address) = (palette.heading, palette.address);
    writeln!(out, "{heading}{:>14}  {:>14}  {:>14}  kind{heading:#}", "first", "last", "size")?;
    for Extent { range: AddressRange { first, last, bytes }, kind } in map.extents {
        let (size, style) = (size(bytes), if kind == "ram" { palette.good } else { palette.warning });
        writeln!(out, "{address}{first:>#14x}  {last:>#14x}{address:#}  {size:>14}  {style}{kind}{style:#}")?;
    }
    for (kind, bytes) in map.total_bytes {
        writeln!(out, "{:>14}  {:14}  {:>14}  {kind}", "total", "", size(bytes))?;
    }
    Ok(complete)
}

/// The result of a search for a guest's RAM.
pub(crate) struct Found {
    pub(crate) map: RamMap,
    /// Frames that were not searched.
    not_searched: Vec<NumberRange<Pfn>>,
    /// How long the search found nothing before it ended.
    idle: Duration,
}

impl Found {
    /// Returns whether all frames were searched.
    pub(crate) fn is_complete(&self) -> bool {
        self.not_searched.is_empty()
    }

    /// Returns the addresses that were not searched.
    pub(crate) fn not_searched(&self) -> Vec<AddressRange> {
        self.not_searched.iter().map(addresses_of).collect()
    }
}

/// Looks for the guest's RAM as [`find`] does, and prints a message if not all frames were searched.
pub(crate) fn scan(guest: &Guest, args: SearchArgs) -> Result<Found> {
    let found = find(guest, args)?;
    if !found.is_complete() {
        say(&complaint(&found.not_searched, found.idle));
    }
    Ok(found)
}

/// Looks for the guest's RAM, and shows the progress. Check first that the guest can be touched.
pub(crate) fn find(guest: &Guest, args: SearchArgs) -> Result<Found> {
    let mut scan = guest.scan_populating(if args.thorough { Search::EveryFrame } else { Search::UntilAllFound })?;
    let progress = Progress::new("finding", scan.owned())?;
    while scan.step()? {
        progress.set(scan.found());
        if limit(args).is_some_and(|limit| scan.idle_time() > limit) {
            break;
        }
    }
    drop(progress);
    let (not_searched, idle) = (scan.not_searched(), scan.idle_time());
    Ok(Found { map: scan.into_map(), not_searched, idle })
}

/// Returns how long a search may find nothing before it ends.
fn limit(args: SearchArgs) -> Option<Duration> {
    let default = if args.thorough { 0 } else { 60 };
    let seconds = args.search_limit.unwrap_or(default);
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// Returns the message about frames that were not searched.
fn complaint(not_searched: &[NumberRange<Pfn>], idle: Duration) -> String {
    const LISTED: usize = 3;
    let list = |pfns: &NumberRange<Pfn>| {
        let AddressRange { first, last, .. } = addresses_of(pfns);
        format!("{first:#x} to {last:#x}")
    };
    let mut ranges: Vec<String> = not_searched.iter().take(LISTED).map(list).collect();
    if not_searched.len() > LISTED {
        ranges.push(format!("{} more ranges", not_searched.len() - LISTED));
    }
    format!(
        "the search for RAM ended after {:.0} s without finding any; not searched: {} (--search-limit sets the limit)",
        idle.as_secs_f64(),
        ranges.join(", ")
    )
}

fn addresses_of(pfns: &NumberRange<Pfn>) -> AddressRange {
    pfns.addresses().into()
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
