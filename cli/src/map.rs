//! `map`: shows where the RAM of a guest or a dump is.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::time::Duration;

use serde::Serialize;
use xenmap::{Domid, FrameKind, Guest, NumberRange, Pfn, Search};

use crate::args::SearchArgs;
use crate::image::Image;
use crate::number::size;
use crate::palette::palette;
use crate::printable::write_json;
use crate::progress::Progress;
use crate::ram::Ram;
use crate::window::frames;
use crate::{Result, say};

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    range: AddressRange,
    kind: &'static str,
}

/// The addresses of a range's first and last byte, and how many it has.
#[derive(Serialize)]
pub(crate) struct AddressRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) bytes: u64,
}

impl From<Range<u64>> for AddressRange {
    /// The range must not be empty.
    fn from(addresses: Range<u64>) -> AddressRange {
        let Range { start: first, end } = addresses;
        AddressRange { first, last: end - 1, bytes: end - first }
    }
}

/// The document of `map --json`.
#[derive(Serialize)]
pub(crate) struct Map {
    domid: Option<u16>,
    extents: Vec<Line>,
    /// The size of all extents of a kind.
    total_bytes: BTreeMap<&'static str, u64>,
    not_searched: Vec<AddressRange>,
}

impl Map {
    pub(crate) fn new(ram: &Ram, found: &Found) -> Map {
        let (mut extents, mut total_bytes) = (Vec::new(), BTreeMap::new());
        for Extent { addresses, kind } in &found.extents {
            let (range, kind) = (AddressRange::from(addresses.clone()), name(*kind));
            *total_bytes.entry(kind).or_default() += range.bytes;
            extents.push(Line { range, kind });
        }
        Map { domid: ram.domid().map(Domid::get), extents, total_bytes, not_searched: found.not_searched() }
    }
}

/// Prints where the RAM is. Returns whether the search for it was complete.
pub(crate) fn map(ram: &Ram, search: SearchArgs, as_json: bool, out: &mut impl Write) -> Result<bool> {
    let found = scan(ram, search)?;
    let map = Map::new(ram, &found);
    if as_json {
        write_json(out, &map)?;
        return Ok(found.is_complete());
    }
    let palette = palette();
    let (heading, address) = (palette.heading, palette.address);
    writeln!(out, "{heading}{:>14}  {:>14}  {:>14}  kind{heading:#}", "first", "last", "size")?;
    for Line { range: AddressRange { first, last, bytes }, kind } in map.extents {
        let (size, style) = (size(bytes), if kind == "ram" { palette.good } else { palette.warning });
        writeln!(out, "{address}{first:>#14x}  {last:>#14x}{address:#}  {size:>14}  {style}{kind}{style:#}")?;
    }
    for (kind, bytes) in map.total_bytes {
        writeln!(out, "{:>14}  {:14}  {:>14}  {kind}", "total", "", size(bytes))?;
    }
    Ok(found.is_complete())
}

/// Consecutive addresses of one kind, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) addresses: Range<u64>,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Frame(FrameKind),
    /// A hole of a raw dump: RAM that is all zero, or no RAM.
    ZerosOrNone,
}

/// The result of a search for RAM.
pub(crate) struct Found {
    /// In ascending order.
    pub(crate) extents: Vec<Extent>,
    /// Frames that the guest owns and that are not in its memory map.
    pub(crate) missing: u64,
    /// Frames that were not searched.
    not_searched: Vec<NumberRange<Pfn>>,
    /// How long the search found nothing before it ended.
    idle: Duration,
}

impl Found {
    /// Returns the frames that hold data, in ascending order. For a frame of which a dump has only a part, too.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for extent in &self.extents {
            if let Kind::Frame(FrameKind::BalloonedOut | FrameKind::Broken) = extent.kind {
                continue;
            }
            let pfns = frames(&extent.addresses);
            match ranges.last_mut() {
                Some(last) if last.end >= pfns.start => last.end = pfns.end,
                _ => ranges.push(pfns),
            }
        }
        ranges
    }

    /// Returns the frames of a kind.
    pub(crate) fn of_kind(&self, kind: FrameKind) -> impl Iterator<Item = Range<u64>> {
        let of_kind = self.extents.iter().filter(move |extent| extent.kind == Kind::Frame(kind));
        of_kind.map(|extent| frames(&extent.addresses))
    }

    /// Returns whether all frames were searched.
    pub(crate) fn is_complete(&self) -> bool {
        self.not_searched.is_empty()
    }

    /// Returns the addresses that were not searched.
    pub(crate) fn not_searched(&self) -> Vec<AddressRange> {
        self.not_searched.iter().map(addresses_of).collect()
    }
}

/// Looks for the RAM as [`find`] does, and prints a message if not all frames were searched.
pub(crate) fn scan(ram: &Ram, args: SearchArgs) -> Result<Found> {
    let found = find(ram, args)?;
    if !found.is_complete() {
        say(&complaint(&found.not_searched, found.idle));
    }
    Ok(found)
}

/// Looks for the RAM, and shows the progress. Check first that the guest can be touched.
pub(crate) fn find(ram: &Ram, args: SearchArgs) -> Result<Found> {
    match ram {
        Ram::Guest(guest) => find_of_guest(guest, args),
        Ram::Dump(image) => {
            let (not_searched, idle) = (Vec::new(), Duration::ZERO);
            Ok(Found { extents: extents_of(image), missing: 0, not_searched, idle })
        }
    }
}

fn find_of_guest(guest: &Guest, args: SearchArgs) -> Result<Found> {
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
    let map = scan.into_map();
    let extent =
        |extent: &xenmap::Extent| Extent { addresses: extent.pfns.addresses(), kind: Kind::Frame(extent.kind) };
    let (extents, missing) = (map.iter().map(extent).collect(), map.not_found());
    Ok(Found { extents, missing, not_searched, idle })
}

fn extents_of(image: &Image) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut end = 0;
    for addresses in image.extents() {
        if image.hides_zeros && end < addresses.start {
            extents.push(Extent { addresses: end..addresses.start, kind: Kind::ZerosOrNone });
        }
        end = addresses.end;
        extents.push(Extent { addresses, kind: Kind::Frame(FrameKind::Ram) });
    }
    if end < image.end() {
        extents.push(Extent { addresses: end..image.end(), kind: Kind::ZerosOrNone });
    }
    extents
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

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Frame(FrameKind::Ram) => "ram",
        Kind::Frame(FrameKind::PageTable) => "page table",
        Kind::Frame(FrameKind::PagedOut) => "paged out",
        Kind::Frame(FrameKind::Broken) => "broken",
        Kind::Frame(FrameKind::Special) => "special",
        Kind::Frame(FrameKind::BalloonedOut) => "ballooned out",
        Kind::Frame(_) => "unknown",
        Kind::ZerosOrNone => "zeros or no ram",
    }
}
