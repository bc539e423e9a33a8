//! The traits below [`Access`]: how accessible memory is divided into pieces. Other crates cannot name these traits,
//! and so cannot implement `Access`.

#![expect(unsafe_code, reason = "copies to and from mapped memory by pointer, after it was checked")]
#![expect(clippy::inline_always, reason = "a guard of the map cache must not go through memory: see cache/parts.rs")]

use crate::error::{Error, Result};
use crate::mapping::copy::{self, Word};
use crate::mapping::dirty::Dirty;
use crate::mapping::{Access, View};
use crate::types::Protection::{self, ReadOnly, ReadWrite};

/// Mapped memory.
///
/// # Safety
///
/// `quick` returns exactly the bytes that are requested, all of them mapped with the requested protection.
pub unsafe trait Memory {
    /// The fast path for short accesses. Returns the `len` bytes at `offset` if they lie in one piece without holes,
    /// and the access is allowed. Otherwise returns `None`, and [`Pieces`] decides.
    fn quick(&self, protection: Protection, offset: usize, len: usize) -> Option<View<'_>>;

    /// Returns the pieces of the memory.
    fn pieces(&self) -> impl Pieces<'_>;

    /// Copies bytes out.
    ///
    /// # Safety
    ///
    /// `to` is valid for writing `len` bytes, which nothing else uses.
    #[inline(always)]
    unsafe fn copy_out(&self, offset: usize, to: *mut u8, len: usize) -> Result<()> {
        let Some(from) = self.quick(ReadOnly, offset, len) else {
            // SAFETY: the caller's promise.
            return unsafe { self.pieces().copy_out_slowly(offset, to, len) };
        };
        // SAFETY: `quick` returns mapped bytes; `to` is valid by the caller's promise.
        unsafe { copy::read(from.as_ptr(), to, len) };
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Safety
    ///
    /// `from` is valid for reading `len` bytes, which nothing writes.
    #[inline(always)]
    unsafe fn copy_in(&self, offset: usize, from: *const u8, len: usize) -> Result<()> {
        let Some(to) = self.quick(ReadWrite, offset, len) else {
            // SAFETY: the caller's promise.
            return unsafe { self.pieces().copy_in_slowly(offset, from, len) };
        };
        if let Some((dirty, start)) = to.tracking() {
            // SAFETY: `quick` returns bytes mapped for writing; `from` is valid by the caller's promise.
            unsafe { copy_in_tracked(dirty, start, to.as_ptr(), from, len) };
            return Ok(());
        }
        // SAFETY: `quick` returns bytes mapped for writing; `from` is valid by the caller's promise.
        unsafe { copy::write(from, to.as_ptr(), len) };
        Ok(())
    }
}

/// Copies bytes in, and marks those at `start` as dirty. It is a separate function, with arguments that fit into
/// registers, so that writes to an untracked view do not take longer.
///
/// # Safety
///
/// `to` is mapped for writing `len` bytes; `from` is valid for reading them, and nothing writes them.
#[inline(never)]
unsafe fn copy_in_tracked(dirty: &Dirty, start: usize, to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { copy::write(from, to, len) };
    dirty.mark(start, len);
}

/// The contiguous pieces of which memory consists.
///
/// # Safety
///
/// After `check` has succeeded, `of` returns all of these bytes, in their order, mapped with the requested protection.
/// An integer whose address in this process is a multiple of its size lies in one piece.
pub unsafe trait Pieces<'p>: Copy {
    /// Checks bounds, holes and protection.
    fn check(self, protection: Protection, offset: usize, len: usize) -> Result<()>;

    /// Returns the pieces of which the bytes consist, which `check` has found to be inside.
    fn of(self, offset: usize, len: usize) -> impl Iterator<Item = View<'p>>;

    /// Returns the bytes of an aligned integer.
    fn word<T: Word>(self, protection: Protection, offset: usize) -> Result<View<'p>> {
        let align = size_of::<T>();
        self.check(protection, offset, align)?;
        let word = self.of(offset, align).next().filter(|word| word.as_ptr().cast::<T>().is_aligned());
        word.ok_or(Error::Misaligned { offset, align })
    }

    #[cold]
    fn read_slowly<T: Word>(self, offset: usize) -> Result<T> {
        if let Ok(word) = self.word::<T>(ReadOnly, offset) {
            // SAFETY: `word` found the bytes mapped and aligned.
            return Ok(unsafe { T::load(word.as_ptr().cast()) });
        }
        let mut value = T::from_bits(0);
        // SAFETY: the value is a local variable, and any bytes are a valid integer.
        unsafe { self.copy_out_slowly(offset, (&raw mut value).cast(), size_of::<T>()) }?;
        Ok(value)
    }

    #[cold]
    fn write_slowly<T: Word>(self, offset: usize, value: T) -> Result<()> {
        let Ok(word) = self.word::<T>(ReadWrite, offset) else {
            // SAFETY: the value is a local variable.
            return unsafe { self.copy_in_slowly(offset, (&raw const value).cast(), size_of::<T>()) };
        };
        // SAFETY: `word` found the bytes mapped for writing and aligned.
        unsafe { T::store(word.as_ptr().cast(), value) };
        word.note(0, size_of::<T>());
        Ok(())
    }

    /// Copies bytes out, piece by piece.
    ///
    /// # Safety
    ///
    /// As for [`Memory::copy_out`].
    #[cold]
    unsafe fn copy_out_slowly(self, offset: usize, to: *mut u8, len: usize) -> Result<()> {
        self.check(ReadOnly, offset, len)?;
        let mut to = to;
        for piece in self.of(offset, len) {
            // SAFETY: `check` found the bytes mapped; together the pieces have `len` bytes, for which `to` is valid.
            unsafe { copy::read(piece.as_ptr(), to, piece.len()) };
            to = to.wrapping_add(piece.len());
        }
        Ok(())
    }

    /// Copies bytes in, piece by piece.
    ///
    /// # Safety
    ///
    /// As for [`Memory::copy_in`].
    #[cold]
    unsafe fn copy_in_slowly(self, offset: usize, from: *const u8, len: usize) -> Result<()> {
        self.check(ReadWrite, offset, len)?;
        let mut from = from;
        for piece in self.of(offset, len) {
            // SAFETY: `check` found the bytes mapped for writing; together the pieces have `len` bytes, for which
            // `from` is valid.
            unsafe { copy::write(from, piece.as_ptr(), piece.len()) };
            piece.note(0, piece.len());
            from = from.wrapping_add(piece.len());
        }
        Ok(())
    }
}
