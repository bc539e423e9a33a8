//! What a cache hands out.

#![expect(unsafe_code, reason = "answers for what is pinned")]
#![expect(clippy::inline_always, reason = "else the guard goes through memory: see parts.rs")]

use std::mem::ManuallyDrop;

use super::parts::Parts;
use super::{MapCache, Pin};
use crate::error::{Error, Result};
use crate::mapping::pieces::{Memory, Pieces};
use crate::mapping::{Access, View};
use crate::types::Protection;

/// Bytes of a guest, which stay mapped as long as this lives.
///
/// It is read and written as a [`View`] is, by the methods of [`Access`], and has no holes. Offsets are in bytes from
/// the address that was asked for.
///
/// If the guest gives frames back meanwhile, or the range is invalidated, the guard still has what was there before.
///
/// A range within two buckets takes no memory of its own; a longer one takes some.
#[derive(Debug)]
pub struct Pinned<'c> {
    address: u64,
    len: usize,
    protection: Protection,
    first: Pin<'c>,
    rest: Rest<'c>,
}

/// The buckets of a range after the first one. Most often there are none.
#[derive(Debug, Default)]
struct Rest<'c> {
    between: Between<'c>,
    /// There is one if there is any.
    last: ManuallyDrop<Option<Pin<'c>>>,
}

/// Those that are neither the first nor the last, as a single word.
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

/// Not inlined, nor given a reference, for the reason that [`Parts`] has.
#[cold]
#[inline(never)]
fn drop_pins(between: Option<Box<Pins<'_>>>, last: Pin<'_>) {
    drop((between, last));
}

impl<'c> Pinned<'c> {
    /// What lies in one bucket, which is pinned.
    #[inline]
    pub(super) fn one(first: Pin<'c>, protection: Protection, address: u64, len: usize) -> Self {
        Pinned { address, len, protection, first, rest: Rest::default() }
    }

    /// What may lie in several, and may not be mapped yet.
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

    /// Where in the first bucket it begins.
    #[inline]
    fn start(&self) -> usize {
        // Less than the size of a bucket, which is a power of two.
        #[expect(clippy::cast_possible_truncation, reason = "a bucket's size is a usize")]
        let start = self.address as usize & (self.first.bucket_size() - 1);
        start
    }

    /// The guest's address of the first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What may be done with it.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The bytes from `offset` on that lie in the same bucket, and so one after the other in this process.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] if there is no byte at `offset`.
    pub fn view(&self, offset: usize) -> Result<View<'_>> {
        let parts = self.parts();
        parts.check(Protection::ReadOnly, offset, 1)?;
        parts.view(offset)
    }

    /// All of it, bucket by bucket, in order.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.parts().of(0, self.len)
    }

    /// Notes that `len` bytes at `offset` were written in another way than through this guard or its views: through
    /// [`View::as_ptr`], after the fact. See [`MapCache::track_dirty`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::ReadOnly`].
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

// SAFETY: `quick` gives bytes of the first bucket that are in the range, and the view has checked the rest: that the
// bucket has no hole, and that the guard is for writing if that is asked for.
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
