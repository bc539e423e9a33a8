//! The map cache, which keeps a guest's memory mapped for device models.

#![cfg_attr(feature = "vm-memory", expect(unsafe_code, reason = "drops pins by number"))]

mod bucket;
mod buckets;
mod index;
#[cfg(all(test, loom))]
mod loom;
mod parts;
mod pinned;
mod slot;
mod sync;
mod transfer;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::Ordering;

pub use pinned::Pinned;

pub(crate) use bucket::Bucket;

use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::guest::Guest;
use crate::handle::ForeignMemory;
use crate::mapping::View;
use crate::types::{FRAME_SIZE, Gfn, HostKind, InvalidNumber, NumberRange, Pfn, Protection};
use bucket::{GuestSource, Request};
use buckets::Buckets;

/// The end of a guest's address space in bytes: after the last valid frame number.
const ADDRESSES: u64 = (Gfn::MAX.get() + 1) * FRAME_SIZE as u64;

/// Keeps parts of a guest's memory mapped, within a budget.
///
/// Each mapping costs at least one hypercall, so a device model maps a guest's memory in buckets, and keeps them
/// mapped. [`get`](MapCache::get) finds the buckets of a range, or maps them, and returns a guard that pins them. The
/// guard reads and writes like a [`View`](crate::View). A hit takes no lock and makes no system call.
///
/// Pinned buckets are never evicted. When the budget is used up, the least recently used of the others are evicted
/// (approximately: by the clock algorithm). When the system has no memory for another mapping (in some domains, each
/// mapped frame takes a page of the domain's own), all others are evicted.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, Guest, GuestKind, MapCache, Protection};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 1024);
/// let memory = host.open()?;
/// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
///
/// let request = cache.get(Protection::ReadWrite, 0xF_FFF0, 64)?; // across two buckets of 1 MiB
/// request.write_bytes(0, b"from the device")?;
/// assert_eq!(request.read::<u32>(5)?.to_ne_bytes(), *b"the ");
/// drop(request); // unpins both buckets, which stay mapped
///
/// assert_eq!(cache.statistics().misses, 2);
/// cache.get(Protection::ReadOnly, 0x1000, 8)?;
/// assert_eq!(cache.statistics().hits, 1);
/// # Ok::<(), xenmap::Error>(())
/// ```
///
/// # When a guest changes its memory
///
/// A mapped bucket keeps the frames that the guest had when the bucket was mapped. After the guest has ballooned frames
/// out and in again, the bucket is stale. Xen informs a device model by an ioreq of type `IOREQ_TYPE_INVALIDATE`
/// ("unmap all that you have cached"). Then call [`invalidate`](MapCache::invalidate) or
/// [`invalidate_all`](MapCache::invalidate_all); also do so when the guest is reset or has been migrated. Invalidation
/// unmaps a bucket at once or, if it is pinned, when its last guard is dropped. A later [`get`](MapCache::get) maps the
/// guest's new frames.
///
/// A bucket may have holes: frames that could not be mapped. Xen does not inform a device model when a guest gets frames
/// back, so each [`get`](MapCache::get) that needs such a frame maps its bucket again, once, before it fails. A bucket
/// of which no frame could be mapped is not cached.
///
/// # Populate-on-demand guests
///
/// Mapping a bucket allocates memory for all of its frames, including those that were not requested. For a guest with
/// too little memory for all frames, use the smallest buckets, or call [`Guest::check_populated`] first.
///
/// # When the guest dies
///
/// While any frame is mapped, Xen keeps a dead domain as a zombie. Call [`close`](MapCache::close) when the domain is
/// gone (its device model is informed, or sees its xenstore entries disappear): it unmaps all buckets, pinned ones when
/// their last guard is dropped, and the cache maps nothing more. To keep reading a dead guest's memory, do not call
/// `close`: mapped buckets can still be read, and the domain stays a zombie until the cache is dropped.
///
/// In a forked child, use neither the cache nor its guards: their mappings do not exist there.
///
/// # Migration
///
/// Xen does not see writes through a mapping, so it would not send them to the migration's target. While
/// [`track_dirty`](MapCache::track_dirty) is on, guards record the frames that they write.
/// [`take_dirty`](MapCache::take_dirty) returns these frames, for `XEN_DMOP_modified_memory`.
pub struct MapCache {
    buckets: Buckets<GuestSource>,
}

/// Without the buckets, of which there may be thousands.
impl fmt::Debug for MapCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (domid, bucket_size) = (self.guest().domid(), self.buckets.bucket_size());
        f.debug_struct("MapCache").field("domid", &domid).field("bucket_size", &bucket_size).finish_non_exhaustive()
    }
}

/// A pin of a bucket.
pub(crate) type Pin<'c> = buckets::Pin<'c, GuestSource>;

/// A pin as a number, to be passed to [`MapCache::unpin`]. All pins of one mapping have the same number.
#[cfg(feature = "vm-memory")]
pub(crate) type RawPin = u32;

/// The sizes of a [`MapCache`].
///
/// ```
/// let mut config = xenmap::CacheConfig::default();
/// config.budget = 64 << 20; // 64 MiB
/// assert_eq!(config.bucket_size, 1 << 20); // 1 MiB
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CacheConfig {
    /// The bytes mapped at a time: a power of two, from [`FRAME_SIZE`] to 1 GiB. Defaults to 1 MiB.
    pub bucket_size: usize,
    /// The maximum number of bytes that stay mapped: at least `bucket_size`. Defaults to 1 GiB.
    ///
    /// Pinned buckets may exceed the budget. When they are unpinned, the next miss evicts buckets until the budget is
    /// met again.
    ///
    /// To the kernel, each bucket is one mapping (per 64 MiB, if it is larger). A process can have 65530 mappings,
    /// unless `vm.max_map_count` is changed.
    pub budget: usize,
}

impl Default for CacheConfig {
    fn default() -> CacheConfig {
        CacheConfig { bucket_size: 1 << 20, budget: 1 << 30 }
    }
}

impl CacheConfig {
    /// Returns sizes for a program that reads small things all over a guest's memory, such as an
    /// [`AddressSpace`](crate::AddressSpace): many small buckets.
    ///
    /// Their size depends on the host, because mapping costs something for each call and something for each frame. In a
    /// PV dom0 a call costs as much as 12 frames. A bucket has 16 frames (64 KiB) there: mapping them costs about twice
    /// as much as mapping a single frame, and a program that reads everything pays for a call only once in 16 frames.
    /// In any other dom0 each frame costs a hypercall of its own, so frames that may not be needed are not mapped: a
    /// bucket has 2 frames (8 KiB).
    ///
    /// The budget is 16384 buckets (1 GiB or 128 MiB), a quarter of the mappings that a process can have.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{CacheConfig, Guest, GuestKind, MapCache};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 1024);
    /// let memory = host.open()?;
    /// let mut config = CacheConfig::for_small_reads(&memory);
    /// config.budget = 64 << 20;
    /// let cache = MapCache::with_config(Guest::open(&memory, domain.domid())?, config)?;
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    #[must_use]
    pub fn for_small_reads(memory: &ForeignMemory) -> CacheConfig {
        let frames = if memory.host_kind() == HostKind::Pv { 16 } else { 2 };
        let bucket_size = frames * FRAME_SIZE;
        CacheConfig { bucket_size, budget: 16384 * bucket_size }
    }
}

/// Counters of a [`MapCache`]; returned by [`MapCache::statistics`].
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind, MapCache, Protection};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 1024);
/// let memory = host.open()?;
/// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
///
/// let guard = cache.get(Protection::ReadOnly, 0x1000, 8)?;
/// cache.get(Protection::ReadOnly, 0x2000, 8)?;
///
/// let statistics = cache.statistics();
/// assert_eq!((statistics.hits, statistics.misses, statistics.evictions), (1, 1, 0));
/// assert_eq!((statistics.mapped_bytes, statistics.pinned), (1 << 20, 1));
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CacheStatistics {
    /// How often a requested bucket was already mapped.
    pub hits: u64,
    /// How often a bucket had to be mapped.
    pub misses: u64,
    /// How many buckets were unmapped to make room for others.
    pub evictions: u64,
    /// The bytes mapped now, including those that are being mapped or that stay mapped only for a guard.
    pub mapped_bytes: usize,
    /// How many buckets are pinned now.
    pub pinned: usize,
}

/// A part of a range that lies in one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The number of the bucket.
    pub(crate) bucket: u64,
    /// The offset in the bucket, in bytes.
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl MapCache {
    /// Creates a cache with the default sizes; see [`CacheConfig`]. Maps nothing yet.
    #[must_use]
    pub fn new(guest: Guest) -> MapCache {
        MapCache::with_valid(guest, CacheConfig::default())
    }

    /// Creates a cache with the sizes in [`CacheConfig::for_small_reads`].
    pub(crate) fn for_small_reads(guest: Guest) -> MapCache {
        let config = CacheConfig::for_small_reads(guest.memory());
        MapCache::with_valid(guest, config)
    }

    fn with_valid(guest: Guest, CacheConfig { bucket_size, budget }: CacheConfig) -> MapCache {
        MapCache { buckets: Buckets::new(GuestSource::new(guest, bucket_size), bucket_size, budget) }
    }

    /// Creates a cache with the given sizes. Maps nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::CacheConfig`] if a size is out of range.
    pub fn with_config(guest: Guest, config: CacheConfig) -> Result<MapCache> {
        const SIZES: std::ops::RangeInclusive<usize> = FRAME_SIZE..=1 << 30;
        let CacheConfig { bucket_size, budget } = config;
        if !bucket_size.is_power_of_two() || !SIZES.contains(&bucket_size) || budget < bucket_size {
            return Err(Error::CacheConfig { bucket_size, budget });
        }
        Ok(MapCache::with_valid(guest, config))
    }

    /// Returns the guest whose memory this maps.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        self.buckets.source().guest()
    }

    /// Pins `len` bytes (at least one) at a guest-physical address, and maps what is not mapped yet.
    ///
    /// With [`Protection::ReadOnly`], the guard is read-only even if the bucket is mapped read-write. A bucket that is
    /// mapped read-only is mapped again when a caller needs to write. A PV guest cannot use a frame as a page table
    /// while a PV dom0 has it mapped writable: for such guests, use small buckets, and write only where the guest asks
    /// for it.
    ///
    /// For a paged-out frame, this waits up to the [timeout](crate::ForeignMemory::with_paged_out_timeout). Other
    /// callers that need the same bucket wait with it.
    ///
    /// # Errors
    ///
    /// [`Error::GuestAddress`] with the first address that cannot be mapped; nothing stays pinned then. After
    /// [`close`](MapCache::close), its errno is ESRCH. Otherwise [`Error::Empty`] if `len` is 0,
    /// [`Error::InvalidNumber`] if the range reaches past the last valid frame number, and those of [`Guest::map`].
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a hit takes twice as long if the guard goes through memory")]
    pub fn get(&self, protection: Protection, address: u64, len: usize) -> Result<Pinned<'_>> {
        let piece = self.piece(address, len);
        if (1..=self.buckets.bucket_size() - piece.offset).contains(&len)
            && let Some(pin) =
                self.buckets.find(piece.bucket, |b| b.has(piece.bucket, Request::new(protection, &piece)))
        {
            return Ok(Pinned::one(pin, protection, address, len));
        }
        // An out-parameter, rather than a returned guard, lets the guard above stay in registers.
        let mut pinned = None;
        Pinned::pin(self, protection, address, len, &mut pinned)?;
        pinned.ok_or(Error::Empty)
    }

    /// Calls `f` with `len` bytes at a guest-physical address, if they are mapped as requested and lie in one bucket
    /// without holes. It costs less than a guard.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as for `get`")]
    pub(crate) fn with_mapped<R>(
        &self,
        protection: Protection,
        address: u64,
        len: usize,
        f: impl FnOnce(&View<'_>) -> R,
    ) -> Option<R> {
        let piece = self.piece(address, len);
        if !(1..=self.buckets.bucket_size() - piece.offset).contains(&len) {
            return None;
        }
        let request = Request::new(protection, &piece);
        let pin = self.buckets.find(piece.bucket, |bucket| bucket.has(piece.bucket, request))?;
        let view = pin.bucket().view_if_whole(protection, piece.offset, len)?;
        Some(f(&view))
    }

    /// Maps the buckets of a range of guest-physical addresses, in bytes, that are not mapped yet, and pins none.
    ///
    /// A bucket of which no frame can be mapped is retried on each call. If the range is longer than the budget, its
    /// later buckets evict the first ones.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind, MapCache, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 1024);
    /// let memory = host.open()?;
    /// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
    ///
    /// cache.prefetch(Protection::ReadWrite, 0..4 << 20)?;
    /// cache.get(Protection::ReadWrite, 0x12_3456, 16)?;
    /// assert_eq!((cache.statistics().misses, cache.statistics().hits), (4, 1));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`MapCache::get`], except that frames that cannot be mapped are not an error.
    pub fn prefetch(&self, protection: Protection, addresses: Range<u64>) -> Result<()> {
        for bucket in self.numbers(addresses) {
            match self.buckets.pin(bucket, Request::no_frames(protection)) {
                Err(Error::Frames(_)) | Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Invalidates the buckets of a range of guest-physical addresses, in bytes: later calls of [`get`](MapCache::get)
    /// map the guest's new frames.
    ///
    /// Buckets that are not pinned are unmapped before this returns, pinned ones when their last guard is dropped. A
    /// bucket that another thread is mapping at the moment serves only that thread's call, which began earlier.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, Gfn, Guest, GuestKind, MapCache, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
    /// let old = cache.get(Protection::ReadWrite, 0x3000, 8)?;
    /// old.write(0, 7_u64)?;
    ///
    /// domain.balloon_out(Gfn::new(3)?);
    /// domain.populate(&[Gfn::new(3)?]);
    /// cache.invalidate(0x3000..0x4000);
    ///
    /// assert_eq!(old.read::<u64>(0)?, 7);
    /// assert_eq!(cache.get(Protection::ReadOnly, 0x3000, 8)?.read::<u64>(0)?, 0);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    pub fn invalidate(&self, addresses: Range<u64>) {
        self.buckets.invalidate(self.numbers(addresses));
    }

    /// Invalidates all buckets; see [`invalidate`](MapCache::invalidate).
    pub fn invalidate_all(&self) {
        self.invalidate(0..ADDRESSES);
    }

    /// Invalidates all buckets, and makes every later [`get`](MapCache::get) fail. Call this when the domain has died.
    ///
    /// This cache holds no reference to the domain's frames any more once all guards are dropped and other threads have
    /// finished mapping and unmapping.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind, MapCache, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
    /// cache.get(Protection::ReadOnly, 0, 8)?;
    ///
    /// domain.destroy();
    /// assert_eq!(host.zombies(), [domain.domid()]);
    /// cache.close();
    /// assert!(host.zombies().is_empty());
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    pub fn close(&self) {
        self.buckets.close();
    }

    /// Returns the guest-physical address of a byte that the cache has mapped, such as one that
    /// [`View::as_ptr`](crate::View::as_ptr) points to. Takes O(log n) time for n mapped buckets.
    ///
    /// Works for every byte of a mapped bucket, including one that was invalidated while pinned. Returns `None` for a
    /// frame that could not be mapped, and for any other address.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind, MapCache, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
    /// let guard = cache.get(Protection::ReadOnly, 0x3008, 8)?;
    /// let pointer = guard.view(4)?.as_ptr();
    /// assert_eq!(cache.address_of(pointer), Some(0x300C));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    #[must_use]
    pub fn address_of(&self, at: *const u8) -> Option<u64> {
        self.buckets.find_address(at.addr(), Bucket::address_at).flatten()
    }

    /// Returns the cache's counters.
    #[must_use]
    pub fn statistics(&self) -> CacheStatistics {
        let counts = self.buckets.counts();
        CacheStatistics {
            hits: counts.hits,
            misses: counts.misses,
            evictions: counts.evictions,
            mapped_bytes: counts.mapped_bytes,
            pinned: counts.pinned,
        }
    }

    /// Turns dirty tracking on or off: whether guards record the frames that they write. It is off by default.
    ///
    /// Writes that are in progress during the call may be missed: turn tracking on before the guest's memory is copied.
    /// Recorded frames are kept, at a few bytes each, until [`take_dirty`](MapCache::take_dirty) returns them.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, Guest, GuestKind, MapCache, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
    ///
    /// cache.track_dirty(true);
    /// cache.get(Protection::ReadWrite, 0x3FFC, 8)?.write(0, 7_u64)?;
    /// assert_eq!(cache.take_dirty(), [3..5]);
    /// assert!(cache.take_dirty().is_empty());
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    pub fn track_dirty(&self, on: bool) {
        self.buckets.source().track_dirty().store(on, Ordering::SeqCst);
    }

    /// Returns the dirty frames: those that guards have written since the last call while tracking was on. The ranges
    /// are in ascending order, and adjacent ranges are merged.
    ///
    /// A write is recorded after it is done. Record writes through a pointer with [`Pinned::mark_dirty`].
    ///
    /// For an example, see [`track_dirty`](MapCache::track_dirty).
    #[must_use]
    pub fn take_dirty(&self) -> Vec<NumberRange<Pfn>> {
        let source = self.buckets.source();
        self.buckets.for_each(|bucket| source.gather_dirty(bucket));
        source.take_dirty()
    }

    /// Makes frames that [`take_dirty`](MapCache::take_dirty) has returned dirty again.
    pub(crate) fn put_back_dirty(&self, pfns: &[NumberRange<Pfn>]) {
        self.buckets.source().put_back_dirty(pfns);
    }

    /// Splits a range into pieces of one bucket each.
    pub(crate) fn pieces(&self, address: u64, len: usize) -> Result<impl Iterator<Item = Piece> + use<'_>> {
        let end = address.checked_add(len as u64).filter(|&end| end <= ADDRESSES);
        end.ok_or(InvalidNumber::Frame { number: address.saturating_add(len as u64) / FRAME_SIZE as u64 })?;
        let (mut next, mut left) = (address, len);
        Ok(std::iter::from_fn(move || {
            let mut piece = self.piece(next, left);
            piece.len = left.min(self.buckets.bucket_size() - piece.offset);
            next += piece.len as u64;
            left -= piece.len;
            (piece.len != 0).then_some(piece)
        }))
    }

    /// Pins the bucket of a piece, which must not be empty, and maps it if necessary. Fails if the piece has a hole.
    #[inline]
    pub(crate) fn pin(&self, protection: Protection, piece: &Piece) -> Result<Pin<'_>> {
        let request = Request::new(protection, piece);
        let pin = self.buckets.pin(piece.bucket, request).map_err(|e| self.at_address(e, piece))?;
        self.check(&pin, request, piece)?;
        Ok(pin)
    }

    /// Checks that the requested frames have no hole.
    #[inline]
    fn check(&self, pin: &Pin<'_>, request: Request, piece: &Piece) -> Result<()> {
        pin.bucket().failed(request).first().map_or(Ok(()), |first| Err(self.guest_address(piece, first)))
    }

    /// Returns the piece at an address, without limiting `len` to the bucket.
    #[inline]
    fn piece(&self, address: u64, len: usize) -> Piece {
        // A bucket's size is a power of two.
        #[expect(clippy::cast_possible_truncation, reason = "a bucket's size is a usize")]
        let offset = address as usize & (self.buckets.bucket_size() - 1);
        Piece { bucket: address >> self.buckets.bucket_size().trailing_zeros(), offset, len }
    }

    /// Drops a pin that was turned into a number by [`Pin::into_raw`].
    ///
    /// # Safety
    ///
    /// The number comes from a pin of this cache, and is passed once for each such pin.
    #[cfg(feature = "vm-memory")]
    pub(crate) unsafe fn unpin(&self, pin: RawPin) {
        // SAFETY: the caller's promise.
        unsafe { self.buckets.unpin(pin) };
    }

    /// Turns the error of mapping a bucket into one about the first address of the piece that failed.
    #[cold]
    fn at_address(&self, error: Error, piece: &Piece) -> Error {
        let first = piece.offset / FRAME_SIZE;
        match &error {
            Error::Frames(FrameErrors { failed, .. }) => {
                failed.iter().find(|e| e.index >= first).map(|e| self.guest_address(piece, e)).unwrap_or(error)
            }
            // The address is that of the bucket.
            Error::GuestAddress { domid, address, errno } => {
                Error::GuestAddress { domid: *domid, address: address + piece.offset as u64, errno: *errno }
            }
            _ => error,
        }
    }

    #[cold]
    fn guest_address(&self, piece: &Piece, failed: &FrameError) -> Error {
        let offset = piece.offset.max(failed.index * FRAME_SIZE);
        let address = piece.bucket * self.buckets.bucket_size() as u64 + offset as u64;
        Error::GuestAddress { domid: self.guest().domid(), address, errno: failed.errno }
    }

    /// Returns the numbers of the buckets of a range of addresses.
    fn numbers(&self, addresses: Range<u64>) -> Range<u64> {
        let size = self.buckets.bucket_size() as u64;
        let (start, end) = (addresses.start.min(ADDRESSES), addresses.end.min(ADDRESSES));
        if start < end { start / size..end.div_ceil(size) } else { 0..0 }
    }
}

#[cfg(all(test, feature = "mock", not(loom)))]
mod tests {
    use super::*;
    use crate::mock::MockHost;
    use crate::types::GuestKind;

    #[test]
    fn bucket_is_found_while_another_caller_holds_the_lock() {
        let host = MockHost::new();
        let domain = host.create_domain(GuestKind::Hvm, 16);
        let memory = host.open().unwrap();
        let cache = MapCache::new(Guest::open(&memory, domain.domid()).unwrap());
        let at = cache.get(Protection::ReadOnly, 0, 8).unwrap().view(0).unwrap().as_ptr();

        // `find_address` holds the lock while it calls the function.
        let found = cache.buckets.find_address(at.addr(), |_, _| cache.buckets.find(0, |_| true).is_some());

        assert_eq!(found, Some(true));
    }
}
