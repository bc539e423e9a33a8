//! The guard that a cache returns.

#![expect(unsafe_code, reason = "promises that what is pinned is mapped")]
#![expect(clippy::inline_always, reason = "keeps the guard in registers: see parts.rs")]

use std::mem::ManuallyDrop;

use super::parts::Parts;
use super::{MapCache, Pin};
use crate::error::{Error, Result};
use crate::mapping::pieces::{Memory, Pieces};
use crate::mapping::{Access, View};
use crate::types::Protection;

/// A range of a guest's memory that stays mapped until this guard is dropped; returned by [`MapCache::get`].
///
/// Like a [`View`], it is read and written by the methods of [`Access`]. It has no holes. Offsets are in bytes from the
/// start of the range.
///
/// If the guest gives back frames, or the range is invalidated, the guard keeps showing the old frames.
///
/// A range that spans at most two buckets needs no allocation; a longer one needs some.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, Gfn, Guest, GuestKind, MapCache, Protection};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 1024);
/// let memory = host.open()?;
/// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
///
/// let ring = cache.get(Protection::ReadWrite, 0x5000, 0x1000)?;
/// ring.write(0x10, 7_u32)?;
/// cache.invalidate_all(); // the guard keeps its frames
/// assert_eq!(ring.fetch_add(0x10, 1_u32)?, 7);
/// assert_eq!(domain.read(Gfn::new(5)?, 0x10, 4), 8_u32.to_ne_bytes());
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Debug)]
pub struct Pinned<'c> {
    address: u64,
    len: usize,
    protection: Protection,
    first: Pin<'c>,
    rest: Rest<'c>,
}

/// The buckets of a range after the first one. Usually, there are none.
#[derive(Debug, Default)]
struct Rest<'c> {
    between: Between<'c>,
    /// `None` only if the range lies in one bucket.
    last: ManuallyDrop<Option<Pin<'c>>>,
}

/// The pins of all buckets except the first and the last, in a single word.
type Between<'c> = ManuallyDrop<Option<Box<Pins<'c>>>>;

#[derive(Debug, Default)]
struct Pins<'c>(Vec<Pin<'c>>);

impl Drop for Rest<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(last) = self.last.take() {
            drop_pins(self.between.take(), last);
        }
    }
}

/// Not inlined, and takes its arguments by value, for the reason given at [`Parts`].
#[cold]
#[inline(never)]
fn drop_pins(between: Option<Box<Pins<'_>>>, last: Pin<'_>) {
    drop((between, last));
}

impl<'c> Pinned<'c> {
    /// Creates a guard for a range in one bucket, which is already pinned.
    #[inline]
    pub(super) fn one(first: Pin<'c>, protection: Protection, address: u64, len: usize) -> Self {
        Pinned { address, len, protection, first, rest: Rest::default() }
    }

    /// Pins a range of any number of buckets, maps them if necessary, and stores the guard in `to`.
    #[cold]
    pub(super) fn pin(
        cache: &'c MapCache,
        protection: Protection,
        address: u64,
        len: usize,
        to: &mut Option<Pinned<'c>>,
    ) -> Result<()> {
        let mut pieces = cache.pieces(address, len)?;
        let first = cache.pin(protection, &pieces.next().ok_or(Error::Empty)?)?;
        let mut pinned = Pinned::one(first, protection, address, len);
        for piece in pieces {
            let pin = cache.pin(protection, &piece)?;
            if let Some(last) = pinned.rest.last.replace(pin) {
                pinned.rest.between.get_or_insert_default().0.push(last);
            }
        }
        *to = Some(pinned);
        Ok(())
    }

    #[inline]
    fn parts(&self) -> Parts<'_> {
        Parts {
            first: self.first.bucket(),
            between: self.rest.between.as_ref().map_or(&[], |pins| &pins.0),
            last: self.rest.last.as_ref().map(Pin::bucket),
            start: self.start(),
            len: self.len,
            bucket_size: self.first.bucket_size(),
            protection: self.protection,
        }
    }

    /// Returns the offset of the range in the first bucket.
    #[inline]
    fn start(&self) -> usize {
        // A bucket's size is a power of two.
        #[expect(clippy::cast_possible_truncation, reason = "a bucket's size is a usize")]
        let start = self.address as usize & (self.first.bucket_size() - 1);
        start
    }

    /// Returns the guest-physical address of the first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns whether the range may only be read, or also written.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// Returns the bytes from `offset` to the end of that bucket, or of the range. They are contiguous in this process.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] if there is no byte at `offset`.
    pub fn view(&self, offset: usize) -> Result<View<'_>> {
        let parts = self.parts();
        parts.check(Protection::ReadOnly, offset, 1)?;
        parts.view(offset)
    }

    /// Iterates over the whole range, one view per bucket, in order.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.parts().of(0, self.len)
    }

    /// Marks the frames of `len` bytes at `offset` as dirty. Call this after writing through [`View::as_ptr`]; writes
    /// through this guard or its views mark frames themselves. See [`MapCache::track_dirty`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] if the bytes reach past the end, [`Error::ReadOnly`] if the guard is read-only.
    pub fn mark_dirty(&self, offset: usize, len: usize) -> Result<()> {
        let parts = self.parts();
        parts.check(Protection::ReadWrite, offset, len)?;
        parts.of(offset, len).for_each(|part| part.note(0, part.len()));
        Ok(())
    }
}

impl Access for Pinned<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }
}

// SAFETY: `quick` returns bytes of the first bucket that are in the range; `if_whole` checks the rest: that the bucket
// has no hole, and that the view is writable if `protection` asks for that (`Bucket::view` makes it read-only if the
// guard is).
unsafe impl Memory for Pinned<'_> {
    #[inline(always)]
    fn quick(&self, protection: Protection, offset: usize, len: usize) -> Option<View<'_>> {
        if len > self.len.checked_sub(offset)? {
            return None;
        }
        let at = self.start() + offset;
        if len > self.first.bucket_size().checked_sub(at)? {
            return None;
        }
        self.first.bucket().view(self.protection, at, len).ok()?.if_whole(protection, 0, len)
    }

    #[inline(always)]
    fn pieces(&self) -> impl Pieces<'_> {
        self.parts()
    }
}
