//! RAM that is mapped when it is used, through a map cache.

#![expect(unsafe_code, reason = "makes vm-memory slices of pinned memory")]

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
use super::{RamRegion, normalize};
use crate::cache::{MapCache, Piece, Pin, RawPin};
use crate::error::Error;
use crate::types::{NumberRange, Pfn, Protection};

/// A guest's RAM, accessed through a [`MapCache`]: only what devices use is mapped.
///
/// To access the RAM, call [`memory`](GuestAddressSpace::memory), which returns a [`PinnedMemory`]. Take one per device
/// request, and drop it with the request.
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
    /// The RAM's addresses, in ascending order; no two ranges are adjacent.
    ram: Arc<[Range<u64>]>,
}

impl CachedMemory {
    /// Creates an address space of the RAM at these pfns, which usually come from
    /// [`RamMap::ranges`](crate::RamMap::ranges). Maps nothing yet, and gives no access to anything else.
    #[must_use]
    pub fn new(cache: Arc<MapCache>, pfns: &[NumberRange<Pfn>]) -> CachedMemory {
        let ram = normalize(pfns).iter().map(NumberRange::addresses).collect();
        CachedMemory { cache, ram }
    }

    /// Returns the cache, for example to [invalidate](MapCache::invalidate) frames that the guest has given back.
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

/// Access to a guest's RAM, which pins every bucket that it accesses; created by [`CachedMemory`].
///
/// Buckets stay pinned until this is dropped. After an invalidation, new slices show the guest's new frames, and
/// earlier slices still show the old ones.
///
/// Slices end at bucket boundaries. An address outside of the RAM is a [`GuestMemoryError::InvalidGuestAddress`],
/// before anything is mapped. An address that cannot be mapped is a [`GuestMemoryError::IOError`] that contains an
/// [`Error`]; as usual in `vm-memory`, bytes before that address may already have been read or written.
///
/// Each slice takes a lock of this object, which itself is an allocation. [`MapCache::get`] needs neither.
///
/// A guest may name all of its RAM in one request, and a device that accesses it in one call pins all of it. To limit
/// that, check the length of a request first.
///
/// ```
/// use std::sync::Arc;
/// use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
/// use xenmap::mock::MockHost;
/// use xenmap::vm_memory::CachedMemory;
/// use xenmap::{Guest, GuestKind, MapCache};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 1024);
/// let memory = host.open()?;
/// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
/// let space = CachedMemory::new(Arc::clone(&cache), &[(0..1024).try_into()?]);
///
/// let request = space.memory();
/// request.write_obj(7_u32, GuestAddress(0x1000))?;
/// cache.invalidate_all(); // the request keeps its bucket
/// assert_eq!(cache.statistics().pinned, 1);
/// drop(request);
/// assert_eq!(cache.statistics().mapped_bytes, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PinnedMemory {
    space: CachedMemory,
    /// One pin of each bucket of which a slice was made, in ascending order.
    pins: Mutex<Vec<RawPin>>,
}

impl PinnedMemory {
    /// Splits a range into pieces of one bucket each, if all of it is RAM.
    #[inline]
    fn pieces(&self, address: GuestAddress, count: usize) -> GuestMemoryResult<impl Iterator<Item = Piece>> {
        let ram = &self.space.ram;
        let start = address.0;
        // An empty range need not be in RAM.
        if count != 0 {
            let range = ram.get(ram.partition_point(|range| range.end <= start)).filter(|range| range.start <= start);
            let range = range.ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
            if range.end - start < count as u64 {
                return Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(range.end)));
            }
        }
        self.space.cache.pieces(if count == 0 { 0 } else { start }, count).map_err(io_error)
    }

    /// Pins a piece for reading and writing, whatever access was requested: safe code can write to any slice
    /// (`VolatileSlice::write`), which would crash the process if the bucket were mapped read-only.
    fn pin(&self, piece: &Piece) -> GuestMemoryResult<Pin<'_>> {
        self.space.cache.pin(Protection::ReadWrite, piece).map_err(io_error)
    }

    /// Pins a piece until `self` is dropped, and returns a slice of it.
    fn slice<'a>(&'a self, piece: &Piece) -> GuestMemoryResult<VolatileSlice<'a, DirtySlice<'a>>> {
        let pin = self.pin(piece)?;
        let view = pin.bucket().mapping().view().slice(piece.offset, piece.len).map_err(io_error)?;
        let (at, bucket) = (view.as_ptr(), NonNull::from(pin.bucket()));
        let number = pin.into_raw();
        let mut pins = self.pins();
        match pins.binary_search(&number) {
            Err(place) => pins.insert(place, number),
            // SAFETY: this is the number of the pin above, passed only here. The same bucket stays pinned: `pins` has
            // another pin with this number, and no other bucket gets the number while one is pinned.
            Ok(_) => unsafe { self.space.cache.unpin(number) },
        }
        drop(pins);
        // SAFETY: a pinned bucket is neither moved nor dropped, and this one stays pinned until `self` is dropped:
        // only `drop` takes numbers out of `pins`.
        let bucket: &'a _ = unsafe { bucket.as_ref() };
        let dirty = DirtySlice::new(bucket.dirty(), piece.offset, piece.len);
        // SAFETY: `View::slice` checked that the bytes are inside the bucket, and `MapCache::pin` that they are mapped
        // read-write. They stay so until `self` is dropped, as above. This crate's own accesses count as volatile
        // (mapping/copy). `vm-memory` assumes that the guest's do, too (see the module's documentation).
        Ok(unsafe { VolatileSlice::with_bitmap(at, piece.len, dirty, None) })
    }

    fn pins(&self) -> MutexGuard<'_, Vec<RawPin>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        for number in std::mem::take(&mut *self.pins()) {
            // SAFETY: `slice` kept one pin of this number, which is passed only here. No slice exists any more: slices
            // borrow `self`.
            unsafe { self.space.cache.unpin(number) };
        }
    }
}

impl GuestMemory for PinnedMemory {
    // The trait requires a type, but there is no physical memory: `physical_memory` returns `None`.
    type PhysicalMemory = GuestRegionCollection<RamRegion>;
    type Bitmap = DirtyBitmap;

    /// Checks a range by mapping what is not mapped yet. Pins nothing.
    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.pieces(addr, count).is_ok_and(|mut pieces| pieces.all(|piece| self.pin(&piece).is_ok()))
    }

    /// Returns an iterator that maps and pins each bucket when it reaches it.
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

/// Yields one slice per bucket, and nothing after the first error.
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

fn io_error(error: Error) -> GuestMemoryError {
    GuestMemoryError::IOError(error.into())
}
