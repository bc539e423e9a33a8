//! RAM that is mapped as a whole, in regions without holes.

#![expect(unsafe_code, reason = "hands out parts of a mapping as slices of vm-memory")]

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestMemoryResult,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::{FRAME, in_order};
use crate::error::{Error, FrameErrors, Result};
use crate::guest::Guest;
use crate::mapping::ForeignMapping;
use crate::types::{NumberRange, Pfn, Protection};

/// Consecutive frames of a guest, all of them mapped for reading and writing.
///
/// Made by [`Guest::map_ram`]. The frames stay mapped until the last region that was mapped with this one is dropped.
/// Which frames are written is not tracked.
#[derive(Clone, Debug)]
pub struct RamRegion {
    mapping: Arc<ForeignMapping>,
    /// Where it is in the mapping: bytes that are mapped, as `ForeignMapping::mapped_ranges` says.
    bytes: Range<usize>,
    /// The guest's address of the first byte.
    start: GuestAddress,
}

impl RamRegion {
    /// The mapping that it is a part of, which knows the frames that could not be mapped.
    #[must_use]
    pub fn mapping(&self) -> &ForeignMapping {
        &self.mapping
    }

    /// Where the `len` bytes at `offset` are.
    #[inline]
    fn at(&self, offset: MemoryRegionAddress, len: usize) -> GuestMemoryResult<*mut u8> {
        let offset = usize::try_from(offset.0).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        let region = self.mapping.view().slice(self.bytes.start, self.bytes.len());
        let part = region.and_then(|region| region.slice(offset, len));
        Ok(part.map_err(|_| GuestMemoryError::InvalidBackendAddress)?.as_ptr())
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    #[inline]
    fn len(&self) -> GuestUsize {
        self.bytes.len() as u64
    }

    #[inline]
    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    #[inline]
    fn bitmap(&self) {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> GuestMemoryResult<*mut u8> {
        self.at(addr, 1)
    }

    #[inline]
    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> GuestMemoryResult<VolatileSlice<'_>> {
        let at = self.at(offset, count)?;
        // SAFETY: `at` found the `count` bytes inside this region, all of which is mapped read-write (`map_ram`), and
        // stays so while `self` is borrowed; this crate's own accesses count as volatile ones (mapping/copy). That the
        // guest's do, too, is what `vm-memory` takes for granted (see the module's documentation).
        Ok(unsafe { VolatileSlice::new(at, count) })
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

impl Guest {
    /// Maps RAM for reading and writing, once and as a whole, for the devices of rust-vmm.
    ///
    /// The pfns are those of [`RamMap::ranges`](crate::RamMap::ranges), or some of them. A frame that cannot be mapped
    /// is a hole between two regions: no access reaches it, and no slice spans it.
    ///
    /// ```
    /// use vm_memory::{Bytes, GuestAddress};
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// domain.balloon_out(Gfn::new(8)?);
    ///
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    /// let ram = guest.map_ram(&guest.ram_map()?.ranges())?;
    ///
    /// ram.write_obj(7_u32, GuestAddress(0x1FFE))?;
    /// assert_eq!(domain.read(Gfn::new(1)?, 0xFFE, 4), 7_u32.to_ne_bytes());
    /// assert!(ram.write_obj(7_u32, GuestAddress(0x7FFE)).is_err()); // frame 8 is a hole
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Frames`] (the index of a frame counts from its range's start) or [`Error::Empty`] if no frame at all
    /// can be mapped; else those of [`Guest::map_partial`].
    pub fn map_ram(&self, pfns: &[NumberRange<Pfn>]) -> Result<GuestRegionCollection<RamRegion>> {
        let mut regions = Vec::new();
        let mut failed = Vec::new();
        for pfns in in_order(pfns) {
            let first = pfns.start();
            let mapping = Arc::new(self.map_partial(Protection::ReadWrite, pfns)?);
            failed.extend_from_slice(mapping.failed());
            regions.extend(mapping.mapped_ranges().map(|bytes| {
                // The frame was mapped, so its number is a small one.
                let start = GuestAddress(first * FRAME + bytes.start as u64);
                RamRegion { mapping: Arc::clone(&mapping), bytes, start }
            }));
        }
        // Regions in ascending order that do not overlap make a collection, if there are any.
        GuestRegionCollection::from_regions(regions).map_err(|_| match failed.len() {
            0 => Error::Empty,
            requested => Error::Frames(FrameErrors { domid: self.domid(), requested, failed }),
        })
    }
}
