//! What a cache hands out.

#![expect(clippy::inline_always, reason = "else the guard goes through memory: see parts.rs")]

use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::parts::Parts;
use super::{MapCache, Pin};
use crate::error::{Error, Result};
use crate::mapping::View;
use crate::mapping::copy::Word;
use crate::types::Protection;

/// Bytes of a guest, which stay mapped as long as this lives.
///
/// It reads and writes as a [`View`] does, and has no holes. Offsets are in bytes from the address that was asked for.
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

/// The buckets of a range behind the first one. Most often there are none.
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

    /// Bytes that are in the first bucket, if they are.
    #[inline]
    fn in_first(&self, offset: usize, len: usize) -> Option<View<'_>> {
        let at = self.start() + offset;
        if len > self.first.bucket_size().checked_sub(at)? {
            return None;
        }
        self.first.bucket().view(self.protection, at, len).ok()
    }

    /// The guest's address of the first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The size in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it always has bytes")]
    pub fn len(&self) -> usize {
        self.len
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
        self.check_bounds(offset, 1)?;
        self.parts().view(offset)
    }

    /// All of it, bucket by bucket, in order.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        self.parts().views(0, self.len)
    }

    /// Copies bytes out, as many as `to` holds.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`]; `to` is left as it was.
    #[inline]
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.check_bounds(offset, to.len())?;
        match self.in_first(offset, to.len()) {
            Some(view) => view.read_bytes(0, to),
            None => self.parts().read_bytes(offset, to),
        }
    }

    /// Copies bytes in.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::ReadOnly`]; nothing is written.
    #[inline]
    pub fn write_bytes(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check_write(offset, from.len())?;
        match self.in_first(offset, from.len()) {
            Some(view) => view.write_bytes(0, from),
            None => self.parts().write_bytes(offset, from),
        }
    }

    /// Sets `len` bytes to `value`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::ReadOnly`]; nothing is written.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<()> {
        self.check_write(offset, len)?;
        self.parts().views(offset, len).try_for_each(|part| part.fill(0, part.len(), value))
    }

    /// Whether the bytes at `offset` are those of `expected`; see [`View::compare`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`].
    pub fn compare(&self, offset: usize, expected: &[u8]) -> Result<bool> {
        self.check_bounds(offset, expected.len())?;
        let mut rest = expected;
        for part in self.parts().views(offset, rest.len()) {
            let (expected, more) = rest.split_at(part.len());
            if !part.compare(0, expected)? {
                return Ok(false);
            }
            rest = more;
        }
        Ok(true)
    }

    /// Whether `len` bytes are all zero; see [`View::is_zero`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`].
    pub fn is_zero(&self, offset: usize, len: usize) -> Result<bool> {
        self.check_bounds(offset, len)?;
        for part in self.parts().views(offset, len) {
            if !part.is_zero(0, part.len())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads an integer in native byte order; by a single access if its address is a multiple of its size.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`].
    #[inline(always)]
    pub fn read<T: Word>(&self, offset: usize) -> Result<T> {
        self.check_bounds(offset, size_of::<T>())?;
        match self.in_first(offset, size_of::<T>()) {
            Some(view) => view.read(0),
            None => self.parts().read(offset),
        }
    }

    /// Writes an integer in native byte order; by a single access if its address is a multiple of its size.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::ReadOnly`]; nothing is written.
    #[inline(always)]
    pub fn write<T: Word>(&self, offset: usize, value: T) -> Result<()> {
        self.check_write(offset, size_of::<T>())?;
        match self.in_first(offset, size_of::<T>()) {
            Some(view) => view.write(0, value),
            None => self.parts().write(offset, value),
        }
    }

    /// Reads an integer atomically; see [`View::load`].
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`] or [`Error::OutOfBounds`].
    pub fn load<T: Word>(&self, offset: usize, order: Ordering) -> Result<T> {
        self.check_bounds(offset, size_of::<T>())?;
        self.word::<T>(offset)?.load(0, order)
    }

    /// Writes an integer atomically; see [`View::store`].
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`] or [`Error::ReadOnly`].
    pub fn store<T: Word>(&self, offset: usize, value: T, order: Ordering) -> Result<()> {
        self.check_write(offset, size_of::<T>())?;
        self.word::<T>(offset)?.store(0, value, order)
    }

    /// Replaces an integer atomically; see [`View::swap`].
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`] or [`Error::ReadOnly`].
    pub fn swap<T: Word>(&self, offset: usize, value: T) -> Result<T> {
        self.check_write(offset, size_of::<T>())?;
        self.word::<T>(offset)?.swap(0, value)
    }

    /// Replaces an integer atomically if it is `current`; see [`View::compare_exchange`].
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`] or [`Error::ReadOnly`].
    pub fn compare_exchange<T: Word>(&self, offset: usize, current: T, new: T) -> Result<std::result::Result<T, T>> {
        self.check_write(offset, size_of::<T>())?;
        self.word::<T>(offset)?.compare_exchange(0, current, new)
    }

    /// Adds to an integer atomically; see [`View::fetch_add`].
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`] or [`Error::ReadOnly`].
    pub fn fetch_add<T: Word>(&self, offset: usize, value: T) -> Result<T> {
        self.check_write(offset, size_of::<T>())?;
        self.word::<T>(offset)?.fetch_add(0, value)
    }

    /// Sets the bits of `mask` atomically; see [`View::fetch_or`].
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`] or [`Error::ReadOnly`].
    pub fn fetch_or<T: Word>(&self, offset: usize, mask: T) -> Result<T> {
        self.check_write(offset, size_of::<T>())?;
        self.word::<T>(offset)?.fetch_or(0, mask)
    }

    /// Clears the bits that are not in `mask` atomically; see [`View::fetch_and`].
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`] or [`Error::ReadOnly`].
    pub fn fetch_and<T: Word>(&self, offset: usize, mask: T) -> Result<T> {
        self.check_write(offset, size_of::<T>())?;
        self.word::<T>(offset)?.fetch_and(0, mask)
    }

    /// Writes `len` bytes at `offset` to a file, pipe or socket; see [`View::write_to`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] before anything is written; [`Error::Transfer`] if write(2) fails.
    pub fn write_to(&self, offset: usize, len: usize, fd: impl AsFd) -> Result<()> {
        self.check_bounds(offset, len)?;
        self.transfer(offset, len, |part| part.write_to(0, part.len(), &fd))
    }

    /// Reads `len` bytes from a file, pipe or socket; see [`View::read_from`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::ReadOnly`] before anything is read; [`Error::Transfer`] if read(2) fails or
    /// the file ends too early.
    pub fn read_from(&self, offset: usize, len: usize, fd: impl AsFd) -> Result<()> {
        self.check_write(offset, len)?;
        self.transfer(offset, len, |part| part.read_from(0, part.len(), &fd))
    }

    /// Notes that `len` bytes at `offset` were written in another way than through this guard or its views: through
    /// [`View::as_ptr`], after the fact. See [`MapCache::track_dirty`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::ReadOnly`].
    pub fn mark_dirty(&self, offset: usize, len: usize) -> Result<()> {
        self.check_write(offset, len)?;
        self.parts().views(offset, len).for_each(|part| part.note(0, part.len()));
        Ok(())
    }

    fn transfer(&self, offset: usize, len: usize, mut part: impl FnMut(View<'_>) -> Result<()>) -> Result<()> {
        let mut before = 0;
        for view in self.parts().views(offset, len) {
            part(view).map_err(|e| match e {
                Error::Transfer { done, source } => Error::Transfer { done: before + done, source },
                e => e,
            })?;
            before += view.len();
        }
        Ok(())
    }

    /// Where an aligned integer is, which is inside.
    fn word<T: Word>(&self, offset: usize) -> Result<View<'_>> {
        let align = size_of::<T>();
        if !(self.address + offset as u64).is_multiple_of(align as u64) {
            return Err(Error::Misaligned { offset, align });
        }
        self.view(offset)
    }

    #[inline]
    fn check_bounds(&self, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::OutOfBounds { offset, len, size: self.len }),
        }
    }

    #[inline]
    fn check_write(&self, offset: usize, len: usize) -> Result<()> {
        self.check_bounds(offset, len)?;
        match self.protection {
            Protection::ReadWrite => Ok(()),
            Protection::ReadOnly => Err(Error::ReadOnly { offset }),
        }
    }
}
