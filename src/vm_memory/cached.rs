//! RAM that is mapped where it is used, through a map cache.

#![expect(unsafe_code, reason = "hands out pinned memory as slices of vm-memory")]

use std::iter::FusedIterator;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryError, GuestMemoryResult, GuestRegionCollection,
    Permissions, VolatileSlice,
};

use super::dirty::{DirtyBitmap, DirtySlice};
use super::{RamRegion, in_order};
use crate::cache::{MapCache, Piece, Pin, RawPin};
use crate::error::Error;
use crate::types::{NumberRange, Pfn, Protection};

/// A guest's RAM through a [`MapCache`]: only what devices use is mapped.
///
/// [`memory`](GuestAddressSpace::memory) returns the [`PinnedMemory`] that gives access: take one for each request, and
/// drop it with the request.
///
/// ```
/// use std::sync::Arc;
/// use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
/// use xenmap::mock::MockHost;
/// use xenmap::vm_memory::CachedMemory;
/// use xenmap::{Gfn, Guest, GuestKind, MapCache};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 1024);
/// let memory = host.open()?;
/// let guest = Guest::open(&memory, domain.domid())?;
/// let ram = guest.ram_map()?.ranges();
/// let cache = Arc::new(MapCache::new(guest));
/// let space = CachedMemory::new(Arc::clone(&cache), &ram);
///
/// let request = space.memory();
/// request.write_slice(b"across two buckets", GuestAddress(0xF_FFF8))?;
/// assert_eq!(domain.read(Gfn::new(0x100)?, 0, 10), b"wo buckets");
/// assert_eq!(cache.statistics().pinned, 2);
/// drop(request);
/// assert_eq!(cache.statistics().pinned, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CachedMemory {
    cache: Arc<MapCache>,
    /// Where RAM is, in bytes, in ascending order; no range touches the next.
    ram: Arc<[Range<u64>]>,
}

impl CachedMemory {
    /// The RAM at these pfns, such as those of [`RamMap::ranges`](crate::RamMap::ranges). Nothing is mapped yet, and
    /// nothing outside of them ever is.
    #[must_use]
    pub fn new(cache: Arc<MapCache>, pfns: &[NumberRange<Pfn>]) -> CachedMemory {
        let ram = in_order(pfns).iter().map(NumberRange::addresses).collect();
        CachedMemory { cache, ram }
    }

    /// The cache, for example to [invalidate](MapCache::invalidate) what the guest has given back.
    #[must_use]
    pub fn cache(&self) -> &Arc<MapCache> {
        &self.cache
    }
}

impl GuestAddressSpace for CachedMemory {
    type M = PinnedMemory;
    type T = Arc<PinnedMemory>;

    fn memory(&self) -> Arc<PinnedMemory> {
        Arc::new(PinnedMemory { space: self.clone(), pins: Mutex::default() })
    }
}

/// Access to a guest's RAM, and the pins of all that was accessed; made by [`CachedMemory`].
///
/// What it has handed out stays mapped until it is dropped, whatever is evicted or invalidated meanwhile. After an
/// invalidation it hands out what is there then; slices that were taken before show what was there before.
///
/// Slices end at the borders of buckets. An address outside of the RAM is
/// [`GuestMemoryError::InvalidGuestAddress`], before anything is mapped. One that cannot be mapped is
/// [`GuestMemoryError::IOError`], with an [`Error`] in it; bytes before it may have been read or written then, as
/// `vm-memory` has it.
///
/// A slice costs a lock of this object's own, and this object an allocation; [`MapCache::get`] costs neither.
///
/// All that a request names is pinned at once if the device asks for it at once, and a guest may name all of its RAM:
/// a device that limits what it serves checks the length first.
#[derive(Debug)]
pub struct PinnedMemory {
    space: CachedMemory,
    /// One pin of each mapping that a slice was handed out of, in ascending order.
    pins: Mutex<Vec<RawPin>>,
}

impl PinnedMemory {
    /// The parts of a range that lie in one bucket each, if all of it is RAM.
    #[inline]
    fn pieces(&self, address: GuestAddress, count: usize) -> GuestMemoryResult<impl Iterator<Item = Piece>> {
        let ram = &self.space.ram;
        let start = address.0;
        // At the place of no bytes there need not be RAM.
        if count != 0 {
            let range = ram.get(ram.partition_point(|range| range.end <= start)).filter(|range| range.start <= start);
            let range = range.ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
            if range.end - start < count as u64 {
                return Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(range.end)));
            }
        }
        self.space.cache.pieces(if count == 0 { 0 } else { start }, count).map_err(failed)
    }

    /// Pins a part for reading and writing, whatever it was asked for: safe code may write to any slice
    /// (`VolatileSlice::write`), and must not die of it because somebody else had the bucket mapped read-only.
    fn pin(&self, piece: &Piece) -> GuestMemoryResult<Pin<'_>> {
        self.space.cache.pin(Protection::ReadWrite, piece).map_err(failed)
    }

    /// Pins a part until `self` is dropped.
    fn slice<'a>(&'a self, piece: &Piece) -> GuestMemoryResult<VolatileSlice<'a, DirtySlice<'a>>> {
        let pin = self.pin(piece)?;
        let view = pin.bucket().mapping().view().slice(piece.offset, piece.len).map_err(failed)?;
        let (at, bucket) = (view.as_ptr(), NonNull::from(pin.bucket()));
        let number = pin.into_raw();
        let mut pins = self.pins();
        match pins.binary_search(&number) {
            Err(place) => pins.insert(place, number),
            // SAFETY: the number of the pin just given away. The same bucket stays: we have another pin of it, and
            // while a bucket is pinned no other gets its number.
            Ok(_) => unsafe { self.space.cache.unpin(number) },
        }
        drop(pins);
        // SAFETY: a bucket stays where it is while it is pinned, and this one is until `self` is dropped: numbers leave
        // `pins` in `drop` only.
        let bucket: &'a _ = unsafe { bucket.as_ref() };
        let dirty = DirtySlice::new(bucket.dirty(), piece.offset, piece.len);
        // SAFETY: `slice` found the bytes inside the bucket, and `MapCache::pin` that they are mapped read-write; they
        // are until `self` is dropped, as above. This crate's own accesses count as volatile ones (mapping/copy). That
        // the guest's do, too, is what `vm-memory` takes for granted (see the module's documentation).
        Ok(unsafe { VolatileSlice::with_bitmap(at, piece.len, dirty, None) })
    }

    fn pins(&self) -> MutexGuard<'_, Vec<RawPin>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        for number in std::mem::take(&mut *self.pins()) {
            // SAFETY: `slice` has kept one pin of this number, and nobody has a slice any more: they borrow `self`.
            unsafe { self.space.cache.unpin(number) };
        }
    }
}

impl GuestMemory for PinnedMemory {
    // There must be one; `physical_memory` says that there is none.
    type PhysicalMemory = GuestRegionCollection<RamRegion>;
    type Bitmap = DirtyBitmap;

    /// Maps what is not mapped yet to find out; nothing stays pinned.
    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.pieces(addr, count).is_ok_and(|mut pieces| pieces.all(|piece| self.pin(&piece).is_ok()))
    }

    /// Maps each part when the iterator comes to it.
    #[inline]
    fn get_slices(
        &self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'_, DirtySlice<'_>>> {
        Ok(Slices { memory: self, pieces: Some(self.pieces(addr, count)?) })
    }
}

/// Slices of one bucket each; none after the first error.
struct Slices<'a, P> {
    memory: &'a PinnedMemory,
    pieces: Option<P>,
}

impl<'a, P: Iterator<Item = Piece>> Iterator for Slices<'a, P> {
    type Item = GuestMemoryResult<VolatileSlice<'a, DirtySlice<'a>>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let slice = self.pieces.as_mut()?.next().map(|piece| self.memory.slice(&piece));
        if !matches!(slice, Some(Ok(_))) {
            self.pieces = None;
        }
        slice
    }
}

impl<P: Iterator<Item = Piece>> FusedIterator for Slices<'_, P> {}

impl<'a, P: Iterator<Item = Piece>> GuestMemorySliceIterator<'a, DirtySlice<'a>> for Slices<'a, P> {}

fn failed(error: Error) -> GuestMemoryError {
    GuestMemoryError::IOError(error.into())
}
