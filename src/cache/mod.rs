//! Keeping a guest's memory mapped: the map cache of device models.

#![cfg_attr(feature = "vm-memory", expect(unsafe_code, reason = "gives back pins that were given away as numbers"))]

mod bucket;
mod buckets;
mod index;
#[cfg(all(test, loom))]
mod loom;
mod parts;
mod pinned;
mod slot;
mod sync;

use std::ops::Range;
use std::sync::atomic::Ordering;

pub use pinned::Pinned;

pub(crate) use bucket::Bucket;

use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::guest::Guest;
use crate::types::{FRAME_SIZE, Gfn, InvalidNumber, NumberRange, Pfn, Protection};
use bucket::{Guests, Want};
use buckets::Buckets;

/// Bytes of a guest's address space, as far as frames have numbers.
const ADDRESSES: u64 = (Gfn::MAX.get() + 1) * FRAME_SIZE as u64;

/// Keeps parts of a guest mapped, and hands them out for as long as they are used.
///
/// Mapping costs a hypercall and more each time, so a device model maps a guest's memory in buckets, and keeps them.
/// [`get`](MapCache::get) finds the bucket, or maps it, and returns a guard that reads and writes like a
/// [`View`](crate::View). A bucket that is in use stays; of the others those go that were not asked for lately, when
/// the budget is used up. When the system has no memory for another (in some domains each mapped frame takes a page of
/// our own), all go that are not in use. What is mapped already is found without a lock and without a system call.
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
/// request.write_bytes(0, b"what the device has to say")?;
/// assert_eq!(request.read::<u32>(5)?.to_ne_bytes(), *b"the ");
/// drop(request);
///
/// assert_eq!(cache.statistics().misses, 2);
/// cache.get(Protection::ReadOnly, 0x1000, 8)?;
/// assert_eq!(cache.statistics().hits, 1);
/// # Ok::<(), xenmap::Error>(())
/// ```
///
/// # When a guest changes its memory
///
/// What is mapped keeps the frames that the guest had there when it was mapped, whatever the guest does: when it has
/// ballooned frames out and in again, the cache still has the old ones. Xen tells a device model (by an ioreq of type
/// `IOREQ_TYPE_INVALIDATE`, "unmap all that you have cached"), which then calls [`invalidate`](MapCache::invalidate) or
/// [`invalidate_all`](MapCache::invalidate_all); so it does when the guest is reset or has been migrated. What is not
/// in use is unmapped at once, the rest with its last guard, and whoever asks afterwards gets what is there then.
///
/// A frame where there is no RAM (EINVAL, EPERM) is remembered as a hole until then, so that asking again costs
/// nothing. Xen tells when frames go, not when they come back: whoever expects RAM where there was a hole invalidates
/// that range, and asks again. What failed in another way (paged out, in use as a page table, no memory) is tried
/// again when it is asked for again; and where nothing at all could be mapped, nothing is remembered.
///
/// # Populate-on-demand guests
///
/// Mapping a bucket gives memory to each of its frames, also to those that nobody asked for. For a guest with too
/// little memory for all frames, take the smallest buckets, or check it first ([`Guest::check_populated`]).
///
/// # When the guest dies
///
/// While a frame is mapped, Xen keeps the domain, as a zombie. Call [`close`](MapCache::close) when the domain is
/// gone (its device model is told, or sees its xenstore entries go): all is unmapped that is not in use, the rest with
/// its last guard, and nothing is mapped any more. To look at a dead guest's memory, do not call it: what
/// is mapped can be read as before, and the domain is a zombie until the cache is dropped.
///
/// In a forked child, neither the cache nor its guards may be used: what they have mapped does not exist there.
///
/// # Migration
///
/// Xen does not see what is written through a mapping, so it would not send it to the other side. While
/// [`track_dirty`](MapCache::track_dirty) is on, guards note the frames that they write, and
/// [`take_dirty`](MapCache::take_dirty) tells them, for `XEN_DMOP_modified_memory`.
#[derive(Debug)]
pub struct MapCache {
    buckets: Buckets<Guests>,
}

/// A bucket that is kept mapped for somebody.
pub(crate) type Pin<'c> = buckets::Pin<'c, Guests>;

/// A pin that somebody must give back; it is the same for the same mapping.
#[cfg(feature = "vm-memory")]
pub(crate) type RawPin = u32;

/// How a [`MapCache`] maps.
///
/// ```
/// let mut config = xenmap::CacheConfig::default();
/// config.budget = 64 << 20;
/// assert_eq!(config.bucket_size, 1 << 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CacheConfig {
    /// How many bytes are mapped at a time: a power of two, from [`FRAME_SIZE`] to 1 GiB (by default 1 MiB).
    pub bucket_size: usize,
    /// How many bytes stay mapped at most (by default 1 GiB); at least one bucket. What is in use stays even so, and if
    /// that was more, it goes when the next bucket is mapped.
    ///
    /// Each bucket is a mapping of the kernel's (a larger one is one for each 64 MiB), of which a process can have
    /// 65530, unless `vm.max_map_count` says otherwise.
    pub budget: usize,
}

impl Default for CacheConfig {
    fn default() -> CacheConfig {
        CacheConfig { bucket_size: 1 << 20, budget: 1 << 30 }
    }
}

/// What a [`MapCache`] has done, and has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CacheStatistics {
    /// How often a bucket that was asked for was mapped already.
    pub hits: u64,
    /// How often a bucket had to be mapped.
    pub misses: u64,
    /// How many buckets were unmapped to make room for others.
    pub evictions: u64,
    /// How many bytes are mapped now, those included that are being mapped or wait for their last guard.
    pub mapped_bytes: usize,
    /// How many buckets are in use now.
    pub pinned: usize,
}

/// A part of a range that lies in one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The number of the bucket.
    pub(crate) bucket: u64,
    /// Where in the bucket it begins, in bytes.
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl MapCache {
    /// A cache with the usual sizes; see [`CacheConfig`].
    #[must_use]
    pub fn new(guest: Guest) -> MapCache {
        let CacheConfig { bucket_size, budget } = CacheConfig::default();
        MapCache { buckets: Buckets::new(Guests::new(guest, bucket_size), bucket_size, budget) }
    }

    /// A cache with sizes of one's own.
    ///
    /// # Errors
    ///
    /// [`Error::CacheConfig`] if they are not possible.
    pub fn with_config(guest: Guest, config: CacheConfig) -> Result<MapCache> {
        const SIZES: std::ops::RangeInclusive<usize> = FRAME_SIZE..=1 << 30;
        let CacheConfig { bucket_size, budget } = config;
        if !bucket_size.is_power_of_two() || !SIZES.contains(&bucket_size) || budget < bucket_size {
            return Err(Error::CacheConfig { bucket_size, budget });
        }
        Ok(MapCache { buckets: Buckets::new(Guests::new(guest, bucket_size), bucket_size, budget) })
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        self.buckets.source().guest()
    }

    /// Pins `len` bytes (at least one) at an address of the guest, mapping what is not mapped yet.
    ///
    /// With [`Protection::ReadOnly`] the guard only reads, whatever the bucket is mapped for. A bucket that is mapped
    /// read-only is mapped anew when somebody wants to write. A PV guest cannot make a page table of what a PV dom0 has
    /// mapped for writing, so there use small buckets, and write only where the guest asks for it.
    ///
    /// For a frame that is paged out, this waits up to the [timeout](crate::ForeignMemory::with_paged_out_timeout), and
    /// so does whoever wants the same bucket meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::GuestAddress`] names the first address that cannot be had, and nothing stays pinned; after
    /// [`close`](MapCache::close) its errno is ESRCH. Else [`Error::Empty`], [`Error::InvalidNumber`], and those of
    /// [`Guest::map`].
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a hit takes twice as long if the guard goes through memory")]
    pub fn get(&self, protection: Protection, address: u64, len: usize) -> Result<Pinned<'_>> {
        let piece = self.piece(address, len);
        if (1..=self.buckets.bucket_size() - piece.offset).contains(&len)
            && let Some(pin) = self.buckets.find(piece.bucket, |b| b.has(protection, &piece))
        {
            return Ok(Pinned::one(pin, protection, address, len));
        }
        // Given a place, rather than returned: so the guard above need not be in memory.
        let mut pinned = None;
        Pinned::pin(self, protection, address, len, &mut pinned)?;
        pinned.ok_or(Error::Empty)
    }

    /// Maps what is not mapped yet of a range of addresses, in bytes. Where there is no RAM at all, it is tried each
    /// time.
    ///
    /// A range that is longer than the budget pushes its own beginning out again.
    ///
    /// # Errors
    ///
    /// Those of [`MapCache::get`], but for frames that cannot be mapped.
    pub fn prefetch(&self, protection: Protection, addresses: Range<u64>) -> Result<()> {
        for bucket in self.numbers(addresses) {
            match self.buckets.pin(bucket, Want::nothing(protection)) {
                Err(Error::Frames(_)) | Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Forgets what is mapped of a range of addresses, in bytes: whoever asks from now on gets what is there then.
    ///
    /// What is not in use is unmapped before this returns, the rest with its last guard. What another thread is just
    /// mapping is for its caller only, who has asked before.
    pub fn invalidate(&self, addresses: Range<u64>) {
        self.buckets.invalidate(self.numbers(addresses));
    }

    /// Forgets all that is mapped; see [`invalidate`](MapCache::invalidate).
    pub fn invalidate_all(&self) {
        self.invalidate(0..ADDRESSES);
    }

    /// Forgets all that is mapped, and maps nothing any more: for when the domain has died.
    ///
    /// Once the last guard is gone too, and what other threads are just mapping or unmapping, Xen holds no reference
    /// because of this cache.
    pub fn close(&self) {
        self.buckets.close();
    }

    /// The guest's address of a byte that the cache has mapped, such as one that [`View::as_ptr`](crate::View::as_ptr)
    /// points to.
    ///
    /// It answers for any byte of a bucket, also of one that was invalidated and is still in use; for no byte of a
    /// frame that could not be mapped.
    #[must_use]
    pub fn address_of(&self, at: *const u8) -> Option<u64> {
        self.buckets.find_address(at.addr(), Bucket::address_at).flatten()
    }

    /// What the cache has done, and has.
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

    /// Has guards note which frames they write, or ends it (it is off at first).
    ///
    /// Writes that are under way at that moment may be missed: turn it on before the guest's memory is copied. What is
    /// noted is kept until it is taken, some bytes for each frame.
    pub fn track_dirty(&self, on: bool) {
        self.buckets.source().track_dirty().store(on, Ordering::SeqCst);
    }

    /// The pfns of the frames that guards have written since the last call, while tracking was on; in ascending
    /// order, neighbours as one range.
    ///
    /// A write is noted when it is done. One through a pointer is not noted, unless
    /// [`Pinned::mark_dirty`] says so.
    #[must_use]
    pub fn take_dirty(&self) -> Vec<NumberRange<Pfn>> {
        let source = self.buckets.source();
        self.buckets.for_each(|bucket| source.gather_dirty(bucket));
        source.take_dirty()
    }

    /// The parts of a range that lie in one bucket each.
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

    /// Pins a piece, which is not empty; maps it if it must. It has no holes.
    #[inline]
    pub(crate) fn pin(&self, protection: Protection, piece: &Piece) -> Result<Pin<'_>> {
        let want = Want::new(protection, piece);
        let pin = self.buckets.pin(piece.bucket, want).map_err(|e| self.at_address(e, piece))?;
        self.check(&pin, want, piece)?;
        Ok(pin)
    }

    /// That what is wanted has no holes.
    #[inline]
    fn check(&self, pin: &Pin<'_>, want: Want, piece: &Piece) -> Result<()> {
        pin.bucket().failed(want).first().map_or(Ok(()), |first| Err(self.guest_address(piece, first)))
    }

    /// Where an address is; the length is not looked at.
    #[inline]
    fn piece(&self, address: u64, len: usize) -> Piece {
        // Less than the size of a bucket, which is a power of two.
        #[expect(clippy::cast_possible_truncation, reason = "a bucket's size is a usize")]
        let offset = address as usize & (self.buckets.bucket_size() - 1);
        Piece { bucket: address >> self.buckets.bucket_size().trailing_zeros(), offset, len }
    }

    /// Gives back a pin that was given away by [`Pin::into_raw`].
    ///
    /// # Safety
    ///
    /// It is one of this cache, and is given back once.
    #[cfg(feature = "vm-memory")]
    pub(crate) unsafe fn unpin(&self, pin: RawPin) {
        // SAFETY: the caller's promise.
        unsafe { self.buckets.unpin(pin) };
    }

    /// The error of mapping a bucket, as one of the address that was asked for.
    #[cold]
    fn at_address(&self, error: Error, piece: &Piece) -> Error {
        let first = piece.offset / FRAME_SIZE;
        match &error {
            Error::Frames(FrameErrors { failed, .. }) => {
                failed.iter().find(|e| e.index >= first).map(|e| self.guest_address(piece, e)).unwrap_or(error)
            }
            // That of the bucket.
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

    /// The buckets of a range of addresses.
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
    fn bucket_is_found_while_somebody_holds_the_lock() {
        let host = MockHost::new();
        let domain = host.create_domain(GuestKind::Hvm, 16);
        let memory = host.open().unwrap();
        let cache = MapCache::new(Guest::open(&memory, domain.domid()).unwrap());
        let at = cache.get(Protection::ReadOnly, 0, 8).unwrap().view(0).unwrap().as_ptr();

        // It holds the lock while it calls the function.
        let found = cache.buckets.find_address(at.addr(), |_, _| cache.buckets.find(0, |_| true).is_some());

        assert_eq!(found, Some(true));
    }
}
