//! Reads and writes mapped memory, in one piece or in several.

#![expect(unsafe_code, reason = "reads and writes mapped memory by pointer, after it was checked")]
#![expect(clippy::inline_always, reason = "a guard of the map cache must not go through memory: see cache/parts.rs")]

use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};

use crate::error::Result;
use crate::mapping::copy::{self, Word};
use crate::mapping::pieces::{Memory, Pieces};
use crate::mapping::transfer;
use crate::types::Protection::{ReadOnly, ReadWrite};

/// Reading and writing a guest's memory, through a [`View`](crate::View) or a [`Pinned`](crate::Pinned).
///
/// Offsets are in bytes from the start of the memory. Every access is checked before anything is read or written.
///
/// The guest may write the same bytes at any time. An access copies what is there at that moment, which may be half of
/// one value and half of the next; only aligned integers (1, 2, 4 or 8 bytes) are read and written whole. The copy does
/// not change any more: check the copy, and do not read the memory again.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, Guest, GuestKind, MapCache, Protection};
///
/// /// Takes the next entry of a ring of 32-bit integers, the first of which is the index.
/// fn next(ring: &impl Access) -> xenmap::Result<u32> {
///     let entries = ring.len() / 4 - 1;
///     let index = ring.fetch_add(0, 1_u32)? as usize;
///     ring.read(4 + index % entries * 4)
/// }
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 4);
/// let memory = host.open()?;
/// let gfns = domain.frames();
/// let mapping = memory.map_foreign_batch(domain.domid(), Protection::ReadWrite, &gfns)?;
/// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
///
/// mapping.view().write(0x1004, 7_u32)?;
/// mapping.view().write(0x1008, 8_u32)?;
/// assert_eq!(next(&mapping.view().slice(0x1000, 64)?)?, 7);
/// assert_eq!(next(&cache.get(Protection::ReadWrite, 0x1000, 64)?)?, 8);
/// # Ok::<(), xenmap::Error>(())
/// ```
///
/// # Errors
///
/// All methods have these errors in common:
///
/// - [`Error::OutOfBounds`](crate::Error::OutOfBounds) if the bytes are not all inside;
/// - [`Error::Hole`](crate::Error::Hole) if one is in a frame that failed to map (a `Pinned` has no such frames);
/// - [`Error::ReadOnly`](crate::Error::ReadOnly) for a write to memory that is mapped read-only.
///
/// After these errors nothing has been read or written.
///
/// # Structures
///
/// With the feature `zerocopy`, `read_as`, `read_into` and `write_as` copy plain structures and arrays of them. Their
/// types need the traits of zerocopy 0.8, which is thus part of this crate's interface: a program must derive the
/// traits of a compatible version (any 0.8).
///
/// These methods copy bytes, at any alignment. Nothing in the copy is atomic, not even an aligned field: a structure
/// that the guest writes at the same time may be torn. Read fields that synchronise (an index, a flag) by
/// [`load`](Access::load), and write them by [`store`](Access::store).
pub trait Access: Memory {
    /// Returns the size in bytes.
    #[must_use]
    fn len(&self) -> usize;

    /// Returns whether the size is 0.
    #[must_use]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes from the memory, as many as `to` holds.
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    #[inline]
    fn read_bytes(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        // SAFETY: `to` is borrowed exclusively.
        unsafe { self.copy_out(offset, to.as_mut_ptr(), to.len()) }
    }

    /// Copies bytes to the memory.
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    #[inline]
    fn write_bytes(&self, offset: usize, from: &[u8]) -> Result<()> {
        // SAFETY: `from` is borrowed, so nothing writes it.
        unsafe { self.copy_in(offset, from.as_ptr(), from.len()) }
    }

    /// Reads an integer in native byte order, by a single access if its address is a multiple of its size.
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    #[inline(always)]
    fn read<T: Word>(&self, offset: usize) -> Result<T> {
        let Some(from) = self.quick(ReadOnly, offset, size_of::<T>()) else {
            return self.pieces().read_slowly(offset);
        };
        let from = from.as_ptr().cast::<T>();
        if from.is_aligned() {
            // SAFETY: `quick` returns mapped bytes, and they are aligned.
            return Ok(unsafe { T::load(from) });
        }
        let mut value = T::from_bits(0);
        // SAFETY: `quick` returns mapped bytes; the value is a local variable, and any bytes are a valid integer.
        unsafe { copy::read(from.cast(), (&raw mut value).cast(), size_of::<T>()) };
        Ok(value)
    }

    /// Writes an integer in native byte order, by a single access if its address is a multiple of its size.
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    #[inline(always)]
    fn write<T: Word>(&self, offset: usize, value: T) -> Result<()> {
        let Some(word) = self.quick(ReadWrite, offset, size_of::<T>()) else {
            return self.pieces().write_slowly(offset, value);
        };
        let to = word.as_ptr().cast::<T>();
        if to.is_aligned() {
            // SAFETY: `quick` returns bytes mapped for writing, and they are aligned.
            unsafe { T::store(to, value) };
        } else {
            // SAFETY: `quick` returns bytes mapped for writing; the value is a local variable.
            unsafe { copy::write((&raw const value).cast(), to.cast(), size_of::<T>()) };
        }
        word.note(0, size_of::<T>());
        Ok(())
    }

    /// Reads an integer atomically. `order` is `Relaxed`, `Acquire` or `SeqCst`; others count as `SeqCst`.
    ///
    /// ```
    /// use std::sync::atomic::Ordering;
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{Access, GuestKind, Protection};
    /// # let host = MockHost::new();
    /// # let guest = host.create_domain(GuestKind::Hvm, 1);
    /// # let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadWrite, &guest.frames())?;
    ///
    /// let ring = mapping.view();
    /// ring.write_bytes(64, b"request")?;
    /// ring.store(0, 1_u32, Ordering::Release)?; // whoever sees the index sees the request
    /// assert_eq!(ring.load::<u32>(0, Ordering::Acquire)?, 1);
    /// assert_eq!(ring.compare_exchange(0, 1_u32, 2)?, Ok(1));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`](crate::Error::Misaligned), and those of [all methods](Access#errors).
    fn load<T: Word>(&self, offset: usize, order: Ordering) -> Result<T> {
        let word = self.pieces().word::<T>(ReadOnly, offset)?;
        // SAFETY: `word` found the bytes mapped and aligned.
        let value = unsafe { T::load(word.as_ptr().cast()) };
        // A SeqCst `store` ends with a full fence, so a load need not begin with one. On x86, this fence and that of a
        // release are no instructions, since the processor keeps the order by itself and the compiler does not reorder
        // assembly: no test fails there without them. Arm64 needs them.
        if order != Ordering::Relaxed {
            fence(Ordering::Acquire);
        }
        Ok(value)
    }

    /// Writes an integer atomically. `order` is `Relaxed`, `Release` or `SeqCst`; others count as `SeqCst`.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`](crate::Error::Misaligned), and those of [all methods](Access#errors).
    fn store<T: Word>(&self, offset: usize, value: T, order: Ordering) -> Result<()> {
        let word = self.pieces().word::<T>(ReadWrite, offset)?;
        if order != Ordering::Relaxed {
            fence(Ordering::Release);
        }
        // SAFETY: `word` found the bytes mapped for writing and aligned.
        unsafe { T::store(word.as_ptr().cast(), value) };
        if !matches!(order, Ordering::Relaxed | Ordering::Release) {
            fence(Ordering::SeqCst);
        }
        word.note(0, size_of::<T>());
        Ok(())
    }

    /// Replaces an integer atomically (`SeqCst`), and returns the old value.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`](crate::Error::Misaligned), and those of [all methods](Access#errors).
    fn swap<T: Word>(&self, offset: usize, value: T) -> Result<T> {
        let word = self.pieces().word::<T>(ReadWrite, offset)?;
        // SAFETY: `word` found the bytes mapped for writing and aligned.
        let before = unsafe { T::swap(word.as_ptr().cast(), value) };
        word.note(0, size_of::<T>());
        Ok(before)
    }

    /// Replaces an integer atomically (`SeqCst`) if it is `current`. The inner result holds the old value: `Ok` if it
    /// was replaced, else `Err`.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`](crate::Error::Misaligned), and those of [all methods](Access#errors).
    fn compare_exchange<T: Word>(&self, offset: usize, current: T, new: T) -> Result<std::result::Result<T, T>> {
        let word = self.pieces().word::<T>(ReadWrite, offset)?;
        // SAFETY: `word` found the bytes mapped for writing and aligned.
        let found = unsafe { T::compare_exchange(word.as_ptr().cast(), current, new) };
        if found != current {
            return Ok(Err(found));
        }
        word.note(0, size_of::<T>());
        Ok(Ok(found))
    }

    /// Adds to an integer atomically (`SeqCst`, wrapping), and returns the old value.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`](crate::Error::Misaligned), and those of [all methods](Access#errors).
    fn fetch_add<T: Word>(&self, offset: usize, value: T) -> Result<T> {
        let word = self.pieces().word::<T>(ReadWrite, offset)?;
        // SAFETY: `word` found the bytes mapped for writing and aligned.
        let before = unsafe { T::fetch_add(word.as_ptr().cast(), value) };
        word.note(0, size_of::<T>());
        Ok(before)
    }

    /// Sets the bits of `mask` atomically (`SeqCst`), and returns the old value.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`](crate::Error::Misaligned), and those of [all methods](Access#errors).
    fn fetch_or<T: Word>(&self, offset: usize, mask: T) -> Result<T> {
        update(self, offset, |bits| bits | mask.bits())
    }

    /// Clears the bits that are not in `mask` atomically (`SeqCst`), and returns the old value.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`](crate::Error::Misaligned), and those of [all methods](Access#errors).
    fn fetch_and<T: Word>(&self, offset: usize, mask: T) -> Result<T> {
        update(self, offset, |bits| bits & mask.bits())
    }

    /// Sets `len` bytes to `value`.
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    fn fill(&self, offset: usize, len: usize, value: u8) -> Result<()> {
        let pieces = self.pieces();
        pieces.check(ReadWrite, offset, len)?;
        for piece in pieces.of(offset, len) {
            // SAFETY: `check` found the bytes mapped for writing.
            unsafe { copy::fill(piece.as_ptr(), value, piece.len()) };
            piece.note(0, piece.len());
        }
        Ok(())
    }

    /// Returns whether the bytes at `offset` equal `expected`. Compares in blocks, and stops at the first that differs.
    ///
    /// If the guest writes at the same time, `true` means that each byte was the expected one at some moment, but
    /// perhaps never all of them at once.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{Access, GuestKind, Protection};
    /// # let host = MockHost::new();
    /// # let guest = host.create_domain(GuestKind::Hvm, 1);
    /// # let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadWrite, &guest.frames())?;
    /// let page = mapping.view();
    /// page.fill(100, 5, b'x')?;
    /// assert!(page.eq_bytes(99, b"\0xxxxx\0")?);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    fn eq_bytes(&self, offset: usize, expected: &[u8]) -> Result<bool> {
        let pieces = self.pieces();
        pieces.check(ReadOnly, offset, expected.len())?;
        let mut rest = expected;
        for piece in pieces.of(offset, rest.len()) {
            let (expected, more) = rest.split_at(piece.len());
            // SAFETY: `check` found the bytes mapped; `expected` is a reference, so it is not part of the mapping.
            if !unsafe { copy::equals(piece.as_ptr(), expected) } {
                return Ok(false);
            }
            rest = more;
        }
        Ok(true)
    }

    /// Returns whether `len` bytes are all zero. Checks them in place, and stops at the first that are not.
    ///
    /// If the guest writes at the same time, `true` means that each byte was zero at some moment, but perhaps never all
    /// of them at once.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{Access, GuestKind, Protection};
    /// # let host = MockHost::new();
    /// # let guest = host.create_domain(GuestKind::Hvm, 1);
    /// # let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadWrite, &guest.frames())?;
    /// let page = mapping.view();
    /// page.write(100, 1_u8)?;
    /// assert!(page.is_zero(0, 100)? && !page.is_zero(0, 101)?);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    fn is_zero(&self, offset: usize, len: usize) -> Result<bool> {
        let pieces = self.pieces();
        pieces.check(ReadOnly, offset, len)?;
        // SAFETY: `check` found the bytes mapped.
        Ok(pieces.of(offset, len).all(|piece| unsafe { copy::is_zero(piece.as_ptr(), piece.len()) }))
    }

    /// Reads a structure, or an array of them.
    ///
    /// It may be [torn](Access#structures) if the guest writes it at the same time.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{Access, GuestKind, Protection};
    /// use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};
    ///
    /// /// A descriptor of a virtqueue, of 16 bytes.
    /// #[derive(Debug, PartialEq, FromBytes, IntoBytes, Immutable)]
    /// #[repr(C)]
    /// struct Descriptor {
    ///     address: u64,
    ///     len: u32,
    ///     flags: u16,
    ///     next: u16,
    /// }
    ///
    /// # let host = MockHost::new();
    /// # let guest = host.create_domain(GuestKind::Hvm, 1);
    /// # let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadWrite, &guest.frames())?;
    /// let table = mapping.view();
    /// table.write_as(3 * 16, &Descriptor { address: 0x8000, len: 512, flags: 1, next: 4 })?;
    ///
    /// let descriptor: Descriptor = table.read_as(3 * 16)?;
    /// assert_eq!((descriptor.address, descriptor.next), (0x8000, 4));
    ///
    /// let mut all = <[Descriptor; 8]>::new_zeroed();
    /// table.read_into(0, &mut all[..])?; // or into a Vec
    /// assert_eq!(all[3], descriptor);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    #[cfg(feature = "zerocopy")]
    #[inline]
    fn read_as<T: zerocopy::FromBytes>(&self, offset: usize) -> Result<T> {
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        // SAFETY: the value is a local variable of that size.
        unsafe { self.copy_out(offset, value.as_mut_ptr().cast(), size_of::<T>()) }?;
        // SAFETY: `copy_out` has set all of its bytes, and `FromBytes` guarantees that any bytes are a valid value.
        Ok(unsafe { value.assume_init() })
    }

    /// Reads into a structure, an array or a slice of them; see [`read_as`](Access::read_as).
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    #[cfg(feature = "zerocopy")]
    #[inline]
    fn read_into<T: zerocopy::FromBytes + zerocopy::IntoBytes + ?Sized>(
        &self,
        offset: usize,
        to: &mut T,
    ) -> Result<()> {
        self.read_bytes(offset, to.as_mut_bytes())
    }

    /// Writes a structure, an array or a slice of them; see [`read_as`](Access::read_as).
    ///
    /// The guest may see its bytes change in any order.
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors).
    #[cfg(feature = "zerocopy")]
    #[inline]
    fn write_as<T: zerocopy::IntoBytes + zerocopy::Immutable + ?Sized>(&self, offset: usize, value: &T) -> Result<()> {
        self.write_bytes(offset, value.as_bytes())
    }

    /// Writes `len` bytes at `offset` to a file, pipe or socket, at its current position. The kernel copies them
    /// directly from the mapping.
    ///
    /// Writes all of the bytes. The descriptor must not be open with `O_DIRECT`: the kernel cannot pin foreign frames.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{Access, GuestKind, Protection};
    /// use std::io::Read;
    ///
    /// # let host = MockHost::new();
    /// # let guest = host.create_domain(GuestKind::Hvm, 1);
    /// # let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadWrite, &guest.frames())?;
    /// let (mut reader, writer) = std::io::pipe()?;
    /// mapping.view().write_bytes(100, b"hello")?;
    /// mapping.view().write_to(100, 5, &writer)?;
    ///
    /// let mut text = [0; 5];
    /// reader.read_exact(&mut text)?;
    /// assert_eq!(&text, b"hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors), before anything is written; [`Error::Transfer`](crate::Error::Transfer)
    /// if write(2) fails.
    fn write_to(&self, offset: usize, len: usize, fd: impl AsFd) -> Result<()> {
        let pieces = self.pieces();
        pieces.check(ReadOnly, offset, len)?;
        // SAFETY: `check` found the bytes mapped.
        unsafe { transfer::write_to(pieces.of(offset, len), fd.as_fd()) }
    }

    /// Reads `len` bytes from a file, pipe or socket, at its current position. The kernel copies them directly into the
    /// mapping.
    ///
    /// Reads all of the bytes. The descriptor must not be open with `O_DIRECT`: the kernel cannot pin foreign frames.
    ///
    /// # Errors
    ///
    /// Those of [all methods](Access#errors), before anything is read; [`Error::Transfer`](crate::Error::Transfer) if
    /// read(2) fails or the file ends too early ([`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof)).
    fn read_from(&self, offset: usize, len: usize, fd: impl AsFd) -> Result<()> {
        let pieces = self.pieces();
        pieces.check(ReadWrite, offset, len)?;
        // SAFETY: `check` found the bytes mapped for writing.
        unsafe { transfer::read_from(pieces.of(offset, len), fd.as_fd()) }
    }
}

/// Changes an integer atomically, and returns the old value.
fn update<T: Word>(memory: &(impl Access + ?Sized), offset: usize, change: impl Fn(u64) -> u64) -> Result<T> {
    let mut found = memory.load::<T>(offset, Ordering::Relaxed)?;
    loop {
        match memory.compare_exchange(offset, found, T::from_bits(change(found.bits())))? {
            Ok(before) => return Ok(before),
            Err(other) => found = other,
        }
    }
}
