//! Where a guest's RAM is.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Guest;
use crate::error::Result;
use crate::types::{NumberRange, Pfn};

/// What a frame of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameKind {
    /// RAM. Frames of other domains that the guest has mapped count as its own: Xen does not tell them apart.
    Ram,
    /// RAM that a PV guest uses as a page table, which can be mapped read-only only.
    PageTable,
    /// RAM that is paged out: mapping it brings it back, after a while.
    PagedOut,
    /// RAM that is broken, and cannot be read.
    Broken,
    /// A frame of Xen's that the guest can use, such as its grant table; it can be mapped. Where Xen cannot be asked
    /// about frames, it is not told from RAM; on Arm only the grant table is, by its address.
    Special,
    /// Within a PV guest's table of frames, but without RAM.
    BalloonedOut,
}

/// Consecutive frames of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Extent {
    /// Their pfns.
    pub pfns: NumberRange<Pfn>,
    /// What they are.
    pub kind: FrameKind,
}

/// How to look for RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Search {
    /// Asks Xen about frames, from the top and the bottom, until as many were found as Xen counts. Some frames
    /// next to RAM of which it says nothing are tried by mapping them; where Xen cannot be asked, all are. On Arm,
    /// where it cannot, RAM above 1 TiB, where the toolstack puts none, is found if it fills some block of 2 MiB. A
    /// guest that owns a frame that cannot be found, shares frames, or gets more RAM during the search makes it look
    /// everywhere.
    #[default]
    UntilAllFound,
    /// Tries each frame up to the highest by mapping it, unless Xen says that it is RAM. This takes long, and finds all
    /// that Xen lends to the guest, such as its grant table.
    EveryFrame,
}

/// Where a guest's RAM is: its frames in ascending order. What lies in no extent is no RAM.
///
/// It takes some 100 bytes for each extent while it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RamMap {
    extents: Vec<Extent>,
    not_found: u64,
}

impl RamMap {
    /// The extents, in ascending order; neighbours of the same kind are one.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Goes over the extents, in ascending order.
    pub fn iter(&self) -> std::slice::Iter<'_, Extent> {
        self.extents.iter()
    }

    /// How many frames Xen counted for the domain that have no place in the map.
    ///
    /// A few are usual: frames that a device model uses have none, and neither have those that were given back but are
    /// mapped by somebody. Many are the sign of a domain that is being destroyed.
    #[must_use]
    pub fn not_found(&self) -> u64 {
        self.not_found
    }

    /// How many frames are of a kind.
    #[must_use]
    pub fn count(&self, kind: FrameKind) -> u64 {
        self.extents.iter().filter(|e| e.kind == kind).map(|e| e.pfns.len() as u64).sum()
    }

    /// The ranges of frames that hold data: RAM, page tables, what is paged out, and what Xen lends. Neighbours are
    /// one.
    #[must_use]
    pub fn ranges(&self) -> Vec<NumberRange<Pfn>> {
        let mut ranges: Vec<NumberRange<Pfn>> = Vec::new();
        for extent in self.extents.iter().filter(|e| !matches!(e.kind, FrameKind::BalloonedOut | FrameKind::Broken)) {
            match ranges.last_mut() {
                Some(last) if last.end() == extent.pfns.start() => {
                    *last = NumberRange::checked(last.start(), extent.pfns.end());
                }
                _ => ranges.push(extent.pfns),
            }
        }
        ranges
    }
}

impl<'a> IntoIterator for &'a RamMap {
    type Item = &'a Extent;
    type IntoIter = std::slice::Iter<'a, Extent>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Guest {
    /// Where the guest's RAM is. This touches every frame of it.
    ///
    /// A hostile guest can make this take hours; [`scan`](Guest::scan) can be stopped.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{FrameKind, Gfn, Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 160);
    /// domain.populate(&[Gfn::new(0xFEFFF)?]);
    ///
    /// let memory = host.open()?;
    /// let map = Guest::open(&memory, domain.domid())?.ram_map()?;
    /// assert_eq!(map.ranges(), [0..160, 0xFEFFF..0xFF000]);
    /// assert_eq!(map.count(FrameKind::Ram), 161);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::PopulateOnDemand`](crate::Error::PopulateOnDemand) if it would crash the guest, and those of
    /// [`RamScan::step`](super::RamScan::step).
    pub fn ram_map(&self) -> Result<RamMap> {
        let mut scan = self.scan(Search::default())?;
        while scan.step()? {}
        Ok(scan.into_map())
    }
}

/// A map in the making, to which frames are added in any order: by the first frame, the one after the last, and the
/// kind.
#[derive(Debug, Default)]
pub(super) struct Extents(BTreeMap<u64, (u64, FrameKind)>);

impl Extents {
    /// Adds frames that no extent has yet. Their numbers are valid.
    pub(super) fn add(&mut self, pfns: Range<u64>, kind: FrameKind) {
        let Range { mut start, mut end } = pfns;
        if let Some((&first, &before)) = self.0.range(..start).next_back()
            && before == (start, kind)
        {
            start = first;
        }
        if let Some(&(last, after)) = self.0.get(&end)
            && after == kind
        {
            self.0.remove(&end);
            end = last;
        }
        self.0.insert(start, (end, kind));
    }

    /// Whether an extent has the frame.
    pub(super) fn has(&self, pfn: u64) -> bool {
        self.0.range(..=pfn).next_back().is_some_and(|(_, &(end, _))| pfn < end)
    }

    /// The parts of some ranges that no extent covers.
    pub(super) fn missing_of(&self, ranges: Vec<Range<u64>>) -> Vec<NumberRange<Pfn>> {
        let mut missing = Vec::new();
        for mut pfns in ranges {
            let before = self.0.range(..pfns.start).next_back();
            for (&start, &(end, _)) in before.into_iter().chain(self.0.range(pfns.clone())) {
                if end <= pfns.start {
                    continue;
                }
                if start > pfns.start {
                    missing.push(NumberRange::checked(pfns.start, start));
                }
                pfns.start = end;
            }
            if !pfns.is_empty() {
                missing.push(NumberRange::checked(pfns.start, pfns.end));
            }
        }
        missing
    }

    pub(super) fn into_map(self, not_found: u64) -> RamMap {
        let extent = |(start, (end, kind))| Extent { pfns: NumberRange::checked(start, end), kind };
        RamMap { extents: self.0.into_iter().map(extent).collect(), not_found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_of_ranges_is_what_no_extent_has() {
        let mut extents = Extents::default();
        for pfns in [0..10, 20..30, 30..31, 90..120] {
            extents.add(pfns, FrameKind::Ram);
        }
        let missing = extents.missing_of(vec![5..25, 28..100, 119..121]);
        assert_eq!(missing, [10..20, 31..90, 120..121]);
        assert!(extents.missing_of(vec![0..10, 95..96]).is_empty());
        let untouched = vec![40..50, 130..140];
        assert_eq!(extents.missing_of(untouched.clone()), untouched);
        assert_eq!(Extents::default().missing_of(untouched.clone()), untouched);
    }
}
