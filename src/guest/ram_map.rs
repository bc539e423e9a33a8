//! The map of a guest's RAM.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Guest;
use crate::error::Result;
use crate::types::{NumberRange, Pfn};

/// The kind of a guest's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameKind {
    /// RAM. Includes frames of other domains that the guest has mapped: Xen does not distinguish them.
    Ram,
    /// RAM that a PV guest uses as a page table. It can only be mapped read-only.
    PageTable,
    /// RAM that is paged out. Mapping it pages it in, which takes a while.
    PagedOut,
    /// RAM with a hardware defect, which cannot be read.
    Broken,
    /// A frame that belongs to Xen and that the guest can use, such as its grant table. It can be mapped. Where Xen
    /// cannot be asked about frames, such frames are reported as [`Ram`](FrameKind::Ram); on Arm, all but the grant
    /// table, which is known by its address.
    Special,
    /// An entry of a PV guest's p2m without RAM.
    BalloonedOut,
}

/// Consecutive frames of one kind, from a [`RamMap`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Extent {
    /// The frame numbers.
    pub pfns: NumberRange<Pfn>,
    /// The kind of all these frames.
    pub kind: FrameKind,
}

/// How [`Guest::scan`] searches for RAM.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind, Search};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 160);
/// let memory = host.open()?;
/// let mut scan = Guest::open(&memory, domain.domid())?.scan(Search::EveryFrame)?;
/// while scan.step()? {}
/// assert_eq!(scan.untried(), 0);
/// assert_eq!(scan.into_map().ranges(), [0..160]);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Search {
    /// Asks Xen about frames, from the top and the bottom, until as many are found as Xen counts for the domain. Also
    /// tries to map some frames next to RAM that Xen does not report as RAM.
    ///
    /// Where Xen cannot be asked, as on Arm, tries to map every frame that it searches. On Arm, RAM above 1 TiB (where
    /// the toolstack puts none) is found only if it fills a block of 2 MiB.
    ///
    /// If the guest owns a frame that cannot be found, shares frames, or gets more RAM during the search, every frame
    /// number is searched.
    #[default]
    UntilAllFound,
    /// Tries to map every frame up to the highest, unless Xen reports it as RAM. This takes long, and finds every
    /// [`Special`](FrameKind::Special) frame, such as those of the grant table.
    EveryFrame,
}

/// Where a guest's RAM is: its extents in ascending order. Frames outside of all extents are not RAM.
///
/// Returned by [`Guest::ram_map`] and [`RamScan::into_map`](super::RamScan::into_map). A search uses about 100 bytes of
/// memory per extent.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{FrameKind, Gfn, Guest, GuestKind};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 160);
/// domain.balloon_out(Gfn::new(100)?);
///
/// let memory = host.open()?;
/// let map = Guest::open(&memory, domain.domid())?.ram_map()?;
/// for extent in &map {
///     println!("{:#x?}: {:?}", extent.pfns.addresses(), extent.kind);
/// }
/// assert_eq!(map.ranges(), [0..100, 101..160]);
/// assert_eq!(map.count(FrameKind::Ram), 159);
/// assert_eq!(map.not_found(), 0);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RamMap {
    extents: Vec<Extent>,
    not_found: u64,
}

impl RamMap {
    /// Returns the extents in ascending order. Adjacent frames of one kind are one extent.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Iterates over the extents in ascending order.
    pub fn iter(&self) -> std::slice::Iter<'_, Extent> {
        self.extents.iter()
    }

    /// Returns how many frames Xen counted for the domain that the search did not find.
    ///
    /// A few are normal: frames that a device model uses have no frame number, nor have frames that the guest gave back
    /// while another domain had them mapped. A large number means that the domain is being destroyed.
    #[must_use]
    pub fn not_found(&self) -> u64 {
        self.not_found
    }

    /// Counts the frames of a kind.
    #[must_use]
    pub fn count(&self, kind: FrameKind) -> u64 {
        self.extents.iter().filter(|e| e.kind == kind).map(|e| e.pfns.len() as u64).sum()
    }

    /// Returns the frames that hold data: all but those that are [`Broken`](FrameKind::Broken) or
    /// [`BalloonedOut`](FrameKind::BalloonedOut). The ranges are in ascending order, and adjacent ranges are merged.
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
    /// Finds the guest's RAM. This touches every frame of it.
    ///
    /// A hostile guest can make this take hours. To be able to stop, use [`scan`](Guest::scan).
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
    /// Those of [`scan`](Guest::scan) (such as [`Error::PopulateOnDemand`](crate::Error::PopulateOnDemand), if the
    /// search would crash the guest) and of [`RamScan::step`](super::RamScan::step).
    pub fn ram_map(&self) -> Result<RamMap> {
        let mut scan = self.scan(Search::default())?;
        while scan.step()? {}
        Ok(scan.into_map())
    }
}

/// A map under construction, to which frames are added in any order. Each extent's first frame leads to its end and its
/// kind.
#[derive(Debug, Default)]
pub(super) struct Extents(BTreeMap<u64, (u64, FrameKind)>);

impl Extents {
    /// Adds frames that are in no extent yet. Their numbers must be valid.
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

    /// Returns whether the frame is in an extent.
    pub(super) fn has(&self, pfn: u64) -> bool {
        self.0.range(..=pfn).next_back().is_some_and(|(_, &(end, _))| pfn < end)
    }

    /// Returns the parts of the ranges that are in no extent.
    pub(super) fn missing_from(&self, ranges: Vec<Range<u64>>) -> Vec<NumberRange<Pfn>> {
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
    fn frames_in_no_extent_are_missing_from_ranges() {
        let mut extents = Extents::default();
        for pfns in [0..10, 20..30, 30..31, 90..120] {
            extents.add(pfns, FrameKind::Ram);
        }
        let missing = extents.missing_from(vec![5..25, 28..100, 119..121]);
        assert_eq!(missing, [10..20, 31..90, 120..121]);
        assert!(extents.missing_from(vec![0..10, 95..96]).is_empty());
        let untouched = vec![40..50, 130..140];
        assert_eq!(extents.missing_from(untouched.clone()), untouched);
        assert_eq!(Extents::default().missing_from(untouched.clone()), untouched);
    }
}
