//! How memory that can be accessed is divided: what [`Access`] is made of. Nobody else can name these traits, and so
//! nobody else can implement it.

#![expect(unsafe_code, reason = "copies to and from mapped memory by pointer, after it was checked")]
#![expect(clippy::inline_always, reason = "a guard of the map cache must not go through memory: see cache/parts.rs")]

use crate::error::{Error, Result};
use crate::mapping::copy::{self, Word};
use crate::mapping::dirty::Dirty;
use crate::mapping::{Access, View};
use crate::types::Protection::{self, ReadOnly, ReadWrite};

/// Where memory is mapped.
///
/// # Safety
///
/// `quick` gives the bytes that are asked for, all of them mapped for what is asked.
pub unsafe trait Memory {
    /// The `len` bytes at `offset`, if there is little to be looked at: they are all in the same place, and without
    /// a hole near them. What must be done otherwise is kept out of the way of short accesses, which take no longer
    /// than that would.
    fn quick(&self, protection: Protection, offset: usize, len: usize) -> Option<View<'_>>;

    /// How it is divided.
    fn pieces(&self) -> impl Pieces<'_>;

    /// Copies bytes out.
    ///
    /// # Safety
    ///
    /// `to` is valid for writing `len` bytes, which nobody else uses.
    #[inline(always)]
    unsafe fn copy_out(&self, offset: usize, to: *mut u8, len: usize) -> Result<()> {
        let Some(from) = self.quick(ReadOnly, offset, len) else {
            // SAFETY: the caller's promise.
            return unsafe { self.pieces().copy_out_slowly(offset, to, len) };
        };
        // SAFETY: `quick` gives what is mapped; of `to` it is the caller's promise.
        unsafe { copy::read(from.as_ptr(), to, len) };
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Safety
    ///
    /// `from` is valid for reading `len` bytes, which nobody writes.
    #[inline(always)]
    unsafe fn copy_in(&self, offset: usize, from: *const u8, len: usize) -> Result<()> {
        let Some(to) = self.quick(ReadWrite, offset, len) else {
            // SAFETY: the caller's promise.
            return unsafe { self.pieces().copy_in_slowly(offset, from, len) };
        };
        if let Some((dirty, start)) = to.tracking() {
            // SAFETY: `quick` gives what is mapped for writing; of `from` it is the caller's promise.
            unsafe { copy_in_tracked(dirty, start, to.as_ptr(), from, len) };
            return Ok(());
        }
        // SAFETY: `quick` gives what is mapped for writing; of `from` it is the caller's promise.
        unsafe { copy::write(from, to.as_ptr(), len) };
        Ok(())
    }
}

/// Copies bytes in, and notes that those from `start` on have been written. It is a function of its own, with arguments
/// that fit into registers, so that a write to a view that nobody tracks does not take longer.
///
/// # Safety
///
/// `to` is mapped for writing `len` bytes; `from` is valid for reading them, and nobody writes them.
#[inline(never)]
unsafe fn copy_in_tracked(dirty: &Dirty, start: usize, to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { copy::write(from, to, len) };
    dirty.mark(start, len);
}

/// The pieces of memory, a copy of what is known about them.
///
/// # Safety
///
/// Of what `check` has found good, `of` gives all bytes, in their order, mapped for what was asked. An integer whose
/// address in this process is a multiple of its size lies in one piece.
pub unsafe trait Pieces<'p>: Copy {
    /// Checks bounds, holes and protection.
    fn check(self, protection: Protection, offset: usize, len: usize) -> Result<()>;

    /// The pieces of bytes that are inside.
    fn of(self, offset: usize, len: usize) -> impl Iterator<Item = View<'p>>;

    /// An aligned integer.
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
        // SAFETY: the value is a local one, and any bytes are an integer.
        unsafe { self.copy_out_slowly(offset, (&raw mut value).cast(), size_of::<T>()) }?;
        Ok(value)
    }

    #[cold]
    fn write_slowly<T: Word>(self, offset: usize, value: T) -> Result<()> {
        let Ok(word) = self.word::<T>(ReadWrite, offset) else {
            // SAFETY: the value is a local one.
            return unsafe { self.copy_in_slowly(offset, (&raw const value).cast(), size_of::<T>()) };
        };
        // SAFETY: `word` found the bytes mapped for writing and aligned.
        unsafe { T::store(word.as_ptr().cast(), value) };
        word.note(0, size_of::<T>());
        Ok(())
    }

    /// # Safety
    ///
    /// That of [`Memory::copy_out`].
    #[cold]
    unsafe fn copy_out_slowly(self, offset: usize, to: *mut u8, len: usize) -> Result<()> {
        self.check(ReadOnly, offset, len)?;
        let mut to = to;
        for piece in self.of(offset, len) {
            // SAFETY: `check` found the bytes mapped; the pieces have `len` together, as many as the caller promises.
            unsafe { copy::read(piece.as_ptr(), to, piece.len()) };
            to = to.wrapping_add(piece.len());
        }
        Ok(())
    }

    /// # Safety
    ///
    /// That of [`Memory::copy_in`].
    #[cold]
    unsafe fn copy_in_slowly(self, offset: usize, from: *const u8, len: usize) -> Result<()> {
        self.check(ReadWrite, offset, len)?;
        let mut from = from;
        for piece in self.of(offset, len) {
            // SAFETY: `check` found the bytes mapped for writing; the pieces have `len` together, as many as the
            // caller promises.
            unsafe { copy::write(from, piece.as_ptr(), piece.len()) };
            piece.note(0, piece.len());
            from = from.wrapping_add(piece.len());
        }
        Ok(())
    }
}
