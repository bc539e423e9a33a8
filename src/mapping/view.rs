//! Access to what a mapping holds.

#![expect(
    unsafe_code,
    reason = "reads and writes mapped memory by pointer, after checking bounds, holes and protection"
)]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use crate::error::{Error, FrameError, Result};
use crate::mapping::copy::{self, Word};
use crate::mapping::dirty::Dirty;
use crate::mapping::region::Region;
use crate::types::{FRAME_SIZE, Protection};

/// A mapping or a part of one, borrowed for reading and writing.
///
/// Every access is checked: that it is inside, that it touches no frame that failed to map, and that the mapping is
/// writable if it writes. Offsets are in bytes from the start of the view.
///
/// The guest may write the same bytes at any time. An access copies what is there at that moment, perhaps half of one
/// value and half of the next; aligned integers (1, 2, 4 or 8 bytes) are read and written whole.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{GuestKind, Protection};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4);
/// let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadWrite, &guest.frames())?;
///
/// let page = mapping.view().slice(4096, 4096)?;
/// page.write_bytes(0, b"hello")?;
/// page.write(8, 7_u32)?;
///
/// let mut text = [0; 5];
/// page.read_bytes(0, &mut text)?;
/// assert_eq!(&text, b"hello");
/// assert_eq!(page.read::<u32>(8)?, 7);
/// assert!(page.read::<u32>(4093).is_err()); // a byte too far
/// # Ok::<(), xenmap::Error>(())
/// ```
///
/// A view cannot outlive its mapping:
///
/// ```compile_fail
/// fn outlives(mapping: xenmap::ForeignMapping) -> xenmap::View<'static> {
///     mapping.view()
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    base: NonNull<u8>,
    /// Where the view starts in its mapping, in bytes.
    start: usize,
    len: usize,
    protection: Protection,
    /// In the order of their index, which counts from the start of the mapping.
    failed: &'a [FrameError],
    /// Where it is noted which frames are written.
    dirty: Option<&'a Dirty>,
    mapping: PhantomData<&'a Region>,
}

// SAFETY: a view is a shared borrow of a `Region`, which is Sync, and its accesses are those of copy.rs, which any
// number of threads may make at once.
unsafe impl Send for View<'_> {}
// SAFETY: as above; no method changes the view itself.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// The first `len` bytes of a region, which has as many, with the frames in it that are not mapped.
    #[inline]
    pub(crate) fn new(region: &'a Region, len: usize, protection: Protection, failed: &'a [FrameError]) -> View<'a> {
        View { base: region.base(), start: 0, len, protection, failed, dirty: None, mapping: PhantomData }
    }

    /// The same, and it is noted which frames are written.
    #[inline]
    pub(crate) fn recorded(self, dirty: &'a Dirty) -> View<'a> {
        View { dirty: Some(dirty), ..self }
    }

    /// The same, for reading only.
    #[inline]
    pub(crate) fn read_only(self) -> View<'a> {
        View { protection: Protection::ReadOnly, ..self }
    }

    /// The size in bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes at `offset`, as a view of their own.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] if they are not all inside. Failed frames are checked when they are accessed.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Result<View<'a>> {
        self.check_bounds(offset, len)?;
        // SAFETY: `offset` is inside the mapping, or one past its end.
        let base = unsafe { self.base.add(offset) };
        Ok(View { base, start: self.start + offset, len, ..*self })
    }

    /// Copies bytes out, as many as `to` holds.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::Hole`]; `to` is left as it was.
    #[inline]
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        if !self.is_whole(offset, to.len()) {
            return self.read_bytes_slowly(offset, to);
        }
        let from = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: `is_whole` found the bytes mapped; `to` is exclusively ours, so it is no part of the mapping.
        unsafe { copy::read(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    #[cold]
    fn read_bytes_slowly(self, offset: usize, to: &mut [u8]) -> Result<()> {
        let from = self.check_read(offset, to.len())?;
        // SAFETY: `check_read` found the bytes mapped; `to` is exclusively ours, so it is no part of the mapping.
        unsafe { copy::read(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`]; nothing is written.
    #[inline]
    pub fn write_bytes(&self, offset: usize, from: &[u8]) -> Result<()> {
        let is_writable = self.protection == Protection::ReadWrite;
        if !is_writable || self.dirty.is_some() || !self.is_whole(offset, from.len()) {
            return self.write_bytes_slowly(offset, from);
        }
        let to = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: `is_whole` found the bytes mapped, and they are for writing; `from` is a reference, so it is no part
        // of the mapping.
        unsafe { copy::write(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn write_bytes_slowly(self, offset: usize, from: &[u8]) -> Result<()> {
        let to = self.check_write(offset, from.len())?;
        // SAFETY: `check_write` found the bytes mapped for writing; `from` is a reference, so it is no part of the
        // mapping.
        unsafe { copy::write(from.as_ptr(), to, from.len()) };
        self.note(offset, from.len());
        Ok(())
    }

    /// Sets `len` bytes to `value`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`]; nothing is written.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<()> {
        let to = self.check_write(offset, len)?;
        // SAFETY: `check_write` found the bytes mapped for writing.
        unsafe { copy::fill(to, value, len) };
        self.note(offset, len);
        Ok(())
    }

    /// Whether the bytes at `offset` are those of `expected`. They are looked at in blocks, up to the first that
    /// differs.
    ///
    /// The guest may write meanwhile: each byte was the one expected at some moment, all of them perhaps never.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{GuestKind, Protection};
    /// # let host = MockHost::new();
    /// # let guest = host.create_domain(GuestKind::Hvm, 1);
    /// # let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadWrite, &guest.frames())?;
    /// let page = mapping.view();
    /// page.fill(100, 5, b'x')?;
    /// assert!(page.compare(99, b"\0xxxxx\0")?);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::Hole`].
    pub fn compare(&self, offset: usize, expected: &[u8]) -> Result<bool> {
        let from = self.check_read(offset, expected.len())?;
        // SAFETY: `check_read` found the bytes mapped; `expected` is a reference, so it is no part of the mapping.
        Ok(unsafe { copy::equals(from, expected) })
    }

    /// Whether `len` bytes are all zero. They are looked at in place, up to the first that are not.
    ///
    /// The guest may write meanwhile: each byte was zero at some moment, all of them perhaps never.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::Hole`].
    pub fn is_zero(&self, offset: usize, len: usize) -> Result<bool> {
        let from = self.check_read(offset, len)?;
        // SAFETY: `check_read` found the bytes mapped.
        Ok(unsafe { copy::is_zero(from, len) })
    }

    /// Reads an integer in native byte order; by a single access if its address is a multiple of its size.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::Hole`].
    #[inline]
    pub fn read<T: Word>(&self, offset: usize) -> Result<T> {
        let from = self.check_read(offset, size_of::<T>())?.cast::<T>();
        if from.is_aligned() {
            // SAFETY: `check_read` found the bytes mapped, and they are aligned.
            return Ok(unsafe { T::load(from) });
        }
        let mut value = T::from_bits(0);
        // SAFETY: `check_read` found the bytes mapped; the value is a local one, and any bytes are an integer.
        unsafe { copy::read(from.cast(), (&raw mut value).cast(), size_of::<T>()) };
        Ok(value)
    }

    /// Writes an integer in native byte order; by a single access if its address is a multiple of its size.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`]; nothing is written.
    #[inline]
    pub fn write<T: Word>(&self, offset: usize, value: T) -> Result<()> {
        let to = self.check_write(offset, size_of::<T>())?.cast::<T>();
        if to.is_aligned() {
            // SAFETY: `check_write` found the bytes mapped for writing, and they are aligned.
            unsafe { T::store(to, value) };
        } else {
            // SAFETY: `check_write` found the bytes mapped for writing; the value is a local one.
            unsafe { copy::write((&raw const value).cast(), to.cast(), size_of::<T>()) };
        }
        self.note(offset, size_of::<T>());
        Ok(())
    }

    /// Reads an integer atomically; `Relaxed`, `Acquire` or `SeqCst` (what makes no sense for a load counts as
    /// `SeqCst`).
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`] or [`Error::Hole`].
    pub fn load<T: Word>(&self, offset: usize, order: Ordering) -> Result<T> {
        let from = self.check_aligned::<T>(offset)?;
        self.check_read(offset, size_of::<T>())?;
        // SAFETY: `check_read` found the bytes mapped, and they are aligned.
        let value = unsafe { T::load(from) };
        // `store` waits behind a SeqCst store, so that a load need not.
        // x86 processors keep this order and that of a release by themselves, and the compiler moves no assembly: there,
        // these two fences are no instructions, and no test fails without them. Arm64 needs them.
        if order != Ordering::Relaxed {
            fence(Ordering::Acquire);
        }
        Ok(value)
    }

    /// Writes an integer atomically; `Relaxed`, `Release` or `SeqCst` (what makes no sense for a store counts as
    /// `SeqCst`).
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`].
    pub fn store<T: Word>(&self, offset: usize, value: T, order: Ordering) -> Result<()> {
        let to = self.check_atomic::<T>(offset)?;
        if order != Ordering::Relaxed {
            fence(Ordering::Release);
        }
        // SAFETY: `check_atomic` found the bytes mapped for writing and aligned.
        unsafe { T::store(to, value) };
        if !matches!(order, Ordering::Relaxed | Ordering::Release) {
            fence(Ordering::SeqCst);
        }
        self.note(offset, size_of::<T>());
        Ok(())
    }

    /// Replaces an integer atomically (`SeqCst`), and returns what was there.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`].
    pub fn swap<T: Word>(&self, offset: usize, value: T) -> Result<T> {
        let at = self.check_atomic::<T>(offset)?;
        // SAFETY: `check_atomic` found the bytes mapped for writing and aligned.
        let before = unsafe { T::swap(at, value) };
        self.note(offset, size_of::<T>());
        Ok(before)
    }

    /// Replaces an integer atomically (`SeqCst`) if it is `current`: `Ok` with what was there if so, else `Err` with
    /// it.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`].
    pub fn compare_exchange<T: Word>(&self, offset: usize, current: T, new: T) -> Result<std::result::Result<T, T>> {
        let at = self.check_atomic::<T>(offset)?;
        // SAFETY: `check_atomic` found the bytes mapped for writing and aligned.
        let found = unsafe { T::compare_exchange(at, current, new) };
        if found != current {
            return Ok(Err(found));
        }
        self.note(offset, size_of::<T>());
        Ok(Ok(found))
    }

    /// Adds to an integer atomically (`SeqCst`, wrapping), and returns what was there.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`].
    pub fn fetch_add<T: Word>(&self, offset: usize, value: T) -> Result<T> {
        let at = self.check_atomic::<T>(offset)?;
        // SAFETY: `check_atomic` found the bytes mapped for writing and aligned.
        let before = unsafe { T::fetch_add(at, value) };
        self.note(offset, size_of::<T>());
        Ok(before)
    }

    /// Sets the bits of `mask` atomically (`SeqCst`), and returns what was there.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`].
    pub fn fetch_or<T: Word>(&self, offset: usize, mask: T) -> Result<T> {
        self.update(offset, |bits| bits | mask.bits())
    }

    /// Clears the bits that are not in `mask` atomically (`SeqCst`), and returns what was there.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`], [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`].
    pub fn fetch_and<T: Word>(&self, offset: usize, mask: T) -> Result<T> {
        self.update(offset, |bits| bits & mask.bits())
    }

    fn update<T: Word>(&self, offset: usize, change: impl Fn(u64) -> u64) -> Result<T> {
        let mut found = self.load::<T>(offset, Ordering::Relaxed)?;
        loop {
            match self.compare_exchange(offset, found, T::from_bits(change(found.bits())))? {
                Ok(before) => return Ok(before),
                Err(other) => found = other,
            }
        }
    }

    /// The address of the first byte, for those who must hand it on.
    ///
    /// Nothing is checked on the way to it: a failed frame kills the process or reads as garbage, depending on the
    /// host; plain accesses race with the guest; and memory of the kernel's own pages beyond the last frame must not
    /// be touched. The pointer is good as long as the mapping lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Notes what has been written, if anybody wants to know.
    #[inline]
    pub(crate) fn note(&self, offset: usize, len: usize) {
        if let Some(dirty) = self.dirty {
            dirty.mark(self.start + offset, len);
        }
    }

    /// Whether the `len` bytes at `offset` are all inside, of a mapping without holes. This is the usual case: what
    /// must be done in others is kept out of the way of short copies, which take no longer than that would. It only saves
    /// time: no test fails if this is always false.
    #[inline]
    fn is_whole(&self, offset: usize, len: usize) -> bool {
        self.failed.is_empty() && self.len.checked_sub(offset).is_some_and(|rest| len <= rest)
    }

    #[inline]
    fn check_bounds(&self, offset: usize, len: usize) -> Result<()> {
        match self.len.checked_sub(offset) {
            Some(rest) if len <= rest => Ok(()),
            _ => Err(Error::OutOfBounds { offset, len, size: self.len }),
        }
    }

    /// Where the `len` bytes at `offset` are, all mapped.
    #[inline]
    pub(crate) fn check_read(&self, offset: usize, len: usize) -> Result<*const u8> {
        self.check_bounds(offset, len)?;
        if !self.failed.is_empty()
            && let Some(&frame) = self.first_hole(offset, len)
        {
            return Err(Error::Hole { offset, frame });
        }
        // SAFETY: `offset` is inside the mapping, or one past its end.
        Ok(unsafe { self.base.add(offset) }.as_ptr())
    }

    /// The first failed frame of the `len` bytes at `offset`. It is cold, so that mappings without holes do not pay for
    /// it.
    #[cold]
    fn first_hole(self, offset: usize, len: usize) -> Option<&'a FrameError> {
        let start = self.start + offset;
        let last = (start + len.checked_sub(1)?) / FRAME_SIZE;
        let next = self.failed.partition_point(|e| e.index < start / FRAME_SIZE);
        self.failed.get(next).filter(|e| e.index <= last)
    }

    /// Where the `len` bytes at `offset` are, all mapped for writing.
    #[inline]
    pub(crate) fn check_write(&self, offset: usize, len: usize) -> Result<*mut u8> {
        let at = self.check_read(offset, len)?;
        match self.protection {
            Protection::ReadWrite => Ok(at.cast_mut()),
            Protection::ReadOnly => Err(Error::ReadOnly { offset }),
        }
    }

    fn check_aligned<T: Word>(&self, offset: usize) -> Result<*const T> {
        let at = self.base.as_ptr().wrapping_add(offset).cast::<T>().cast_const();
        if at.is_aligned() { Ok(at) } else { Err(Error::Misaligned { offset, align: size_of::<T>() }) }
    }

    fn check_atomic<T: Word>(&self, offset: usize) -> Result<*mut T> {
        self.check_aligned::<T>(offset)?;
        Ok(self.check_write(offset, size_of::<T>())?.cast())
    }
}
