//! RAM that is mapped all at once, in regions without holes.

#![expect(unsafe_code, reason = "makes vm-memory slices of mapped memory")]

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestMemoryResult,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::{FRAME, normalize};
use crate::error::{Error, FrameErrors, Result};
use crate::guest::Guest;
use crate::mapping::ForeignMapping;
use crate::types::{NumberRange, Pfn, Protection};

/// Consecutive frames of a guest, all mapped read-write; created by [`Guest::map_ram`].
///
/// The frames stay mapped until the last region of the same mapping is dropped. Dirty frames are not tracked.
///
/// ```
/// use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, Guest, GuestKind};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// let memory = host.open()?;
/// let ram = Guest::open(&memory, domain.domid())?.map_ram(&[(0..16).try_into()?])?;
///
/// let region = ram.iter().next().ok_or("no RAM")?;
/// assert_eq!(region.len(), 16 * 4096);
/// region.mapping().view().fetch_add(0x1000, 1_u32)?; // sound, unlike `get_atomic_ref`
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct RamRegion {
    mapping: Arc<ForeignMapping>,
    /// The region's bytes in the mapping; a range from `ForeignMapping::mapped_ranges`.
    bytes: Range<usize>,
    /// The guest's address of the first byte.
    start: GuestAddress,
}

impl RamRegion {
    /// Returns the mapping that this region is a part of, which also lists the frames that could not be mapped.
    #[must_use]
    pub fn mapping(&self) -> &ForeignMapping {
        &self.mapping
    }

    /// Returns the address, in this process, of the `len` bytes at `offset`.
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
        // SAFETY: `self.at` checked that the `count` bytes are inside this region, all of which is mapped read-write
        // (`map_ram`) and stays so while `self` is borrowed. This crate's own accesses count as volatile
        // (mapping/copy). `vm-memory` assumes that the guest's do, too (see the module's documentation).
        Ok(unsafe { VolatileSlice::new(at, count) })
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

impl Guest {
    /// Maps RAM read-write, all of it at once, for rust-vmm devices.
    ///
    /// The pfns usually come from [`RamMap::ranges`](crate::RamMap::ranges). A frame that cannot be mapped is a hole
    /// between two regions: no access reaches it, and no slice spans it.
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
    /// If no frame can be mapped, [`Error::Frames`] (the index of a frame counts from the start of its range), or
    /// [`Error::Empty`] if there are no pfns. Otherwise those of [`Guest::map_partial`].
    pub fn map_ram(&self, pfns: &[NumberRange<Pfn>]) -> Result<GuestRegionCollection<RamRegion>> {
        let mut regions = Vec::new();
        let mut failed = Vec::new();
        for pfns in normalize(pfns) {
            let first = pfns.start();
            let mapping = Arc::new(self.map_partial(Protection::ReadWrite, pfns)?);
            failed.extend_from_slice(mapping.failed());
            regions.extend(mapping.mapped_ranges().map(|bytes| {
                // Does not overflow: the frame was mapped, so its number is valid.
                let start = GuestAddress(first * FRAME + bytes.start as u64);
                RamRegion { mapping: Arc::clone(&mapping), bytes, start }
            }));
        }
        // The regions are in ascending order and do not overlap, so this fails only if there are none.
        GuestRegionCollection::from_regions(regions).map_err(|_| match failed.len() {
            0 => Error::Empty,
            requested => Error::Frames(FrameErrors { domid: self.domid(), requested, failed }),
        })
    }
}
