//! All that an address space maps.

use std::ops::{RangeBounds, RangeInclusive};

use super::{AddressSpace, FRAME};
use crate::error::Result;
use crate::guest::{PageTables, PagingMode, Translation, VirtualExtent, inclusive};

/// Xen's own part of a 64-bit PV guest's address space (`HYPERVISOR_VIRT_START` and `HYPERVISOR_VIRT_END` of
/// xen/include/public/arch-x86/xen-x86_64.h).
const XEN: RangeInclusive<u64> = 0xFFFF_8000_0000_0000..=0xFFFF_87FF_FFFF_FFFF;

impl AddressSpace {
    /// Iterates over all virtual addresses of a range that are mapped, in ascending order; see
    /// [`PageTables::extents_with`](crate::PageTables::extents_with), also for what a hostile guest can do.
    ///
    /// This reads the tables as they are now, without remembered translations. The guest may change them meanwhile. If
    /// a table cannot be read, the iterator returns the error, and goes on after it.
    ///
    /// For a PV guest, the physical addresses are pseudo-physical. A page that is not the guest's own is an error. What
    /// Xen has in the tables of a 64-bit guest is left out.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{AddressSpace, Gfn, Guest, GuestKind, PageTables, PagingMode};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// domain.write(Gfn::new(4)?, 0, &0x5003_u64.to_ne_bytes());
    /// domain.write(Gfn::new(5)?, 8, &0x8000_0083_u64.to_ne_bytes()); // a page of 1 GiB
    ///
    /// let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
    /// let space = AddressSpace::new(Guest::open(&host.open()?, domain.domid())?, tables);
    /// for extent in space.extents(0..1 << 47).take(1000) {
    ///     let extent = extent?;
    ///     assert_eq!((extent.address, extent.physical, extent.len), (1 << 30, 2 << 30, 1 << 30));
    /// }
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    pub fn extents(&self, addresses: impl RangeBounds<u64>) -> impl Iterator<Item = Result<VirtualExtent>> {
        let walk = |range| self.tables.extents_with(range, |at, entries| self.read_entries(at, entries));
        let extents = self.without_xen(inclusive(&addresses)).flat_map(walk);
        Merged { extents: extents.flat_map(|extent| self.physical_parts(extent)), next: None }
    }

    /// Returns the parts of a range that are a guest's own.
    fn without_xen(&self, range: Option<RangeInclusive<u64>>) -> impl Iterator<Item = RangeInclusive<u64>> + use<> {
        let is_64_bit_pv =
            self.machine.is_some() && matches!(self.tables, PageTables::X86 { mode: PagingMode::FourLevels, .. });
        range.into_iter().flat_map(move |range| {
            let (first, last) = range.into_inner();
            let before = first..=last.min(XEN.start() - 1);
            let after = first.max(XEN.end() + 1)..=last;
            if is_64_bit_pv { vec![before, after] } else { vec![first..=last] }
        })
    }

    /// Splits an extent of machine addresses into pages with guest-physical ones.
    fn physical_parts(&self, extent: Result<VirtualExtent>) -> impl Iterator<Item = Result<VirtualExtent>> {
        let machine = extent.as_ref().ok().and(self.machine.as_ref());
        let size = match (&machine, &extent) {
            (None, Ok(extent)) => extent.len,
            _ => FRAME,
        };
        let mut rest = Some(extent);
        std::iter::from_fn(move || {
            let page = match rest.take()? {
                Ok(extent) => extent,
                Err(error) => return Some(Err(error)),
            };
            if page.len > size {
                let (address, physical) = (page.address + size, page.physical + size);
                rest = Some(Ok(VirtualExtent { address, physical, len: page.len - size, ..page }));
            }
            let Some(machine) = machine else { return Some(Ok(page)) };
            let VirtualExtent { address, physical, page_size, rights, .. } = page;
            let found = machine.physical_of(self.guest(), address, Translation { physical, page_size, rights });
            Some(found.map(|found| VirtualExtent { physical: found.physical, len: size, page_size: size, ..page }))
        })
    }
}

/// Extents, of which those that continue each other are merged.
struct Merged<I> {
    extents: I,
    next: Option<Result<VirtualExtent>>,
}

impl<I: Iterator<Item = Result<VirtualExtent>>> Iterator for Merged<I> {
    type Item = Result<VirtualExtent>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut first = match self.next.take().or_else(|| self.extents.next())? {
            Ok(first) => first,
            Err(error) => return Some(Err(error)),
        };
        loop {
            match self.extents.next() {
                Some(Ok(extent)) if first.append(&extent) => {}
                other => {
                    self.next = other;
                    return Some(Ok(first));
                }
            }
        }
    }
}
