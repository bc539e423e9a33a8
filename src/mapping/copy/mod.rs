//! Copies to and from foreign memory, which others write at the same time.
//!
//! A guest writes its memory while we read it, and so may another thread of this process, through another mapping of
//! the same frame. In Rust a plain or volatile access that races with a write is undefined behaviour, and so are racing
//! atomic accesses of different sizes. Therefore no access here is visible to the compiler: each is inline assembly
//! that behaves like relaxed atomic accesses to single bytes, in some order. A value that is read may be torn, but it
//! always consists of bytes that were there.
//!
//! Like memcpy, a copy may access a byte twice, where the moves at its ends overlap. Both reads are relaxed, and the
//! private buffer keeps the later one. Both writes store the same value; a value that another writer stores in between
//! is lost, as if it had been stored before both. Bytes outside the range are never accessed.
//!
//! Where a checker must see the accesses (Miri, or `--cfg xenmap_portable_copy` for `ThreadSanitizer`), they are Rust's
//! relaxed atomic operations: on bytes for copies, and on the whole integer for aligned integers, as devices need it.
//! The same holds on architectures that have no assembly here. There, two threads that access the same bytes at once in
//! different sizes rely on the hardware, because Rust does not define the result.

#![expect(unsafe_code, reason = "access to foreign memory by pointer")]

/// Converts an integer to and from its bits.
macro_rules! bits {
    () => {
        fn bits(self) -> u64 {
            self.into()
        }

        fn from_bits(bits: u64) -> Self {
            let mut bytes = [0; size_of::<Self>()];
            if cfg!(target_endian = "little") {
                bytes.copy_from_slice(&bits.to_le_bytes()[..size_of::<Self>()]);
            } else {
                bytes.copy_from_slice(&bits.to_be_bytes()[8 - size_of::<Self>()..]);
            }
            Self::from_ne_bytes(bytes)
        }
    };
}

#[cfg_attr(all(target_arch = "x86_64", not(miri), not(xenmap_portable_copy)), path = "x86_64.rs")]
#[cfg_attr(all(target_arch = "aarch64", not(miri), not(xenmap_portable_copy)), path = "aarch64.rs")]
#[cfg_attr(
    any(miri, xenmap_portable_copy, not(any(target_arch = "x86_64", target_arch = "aarch64"))),
    path = "portable.rs"
)]
mod arch;
#[cfg(test)]
mod tests;

pub(crate) use arch::{is_zero, read, write};

/// The size of the private buffer of `fill` and `equals`, in bytes.
const BLOCK: usize = 512;

/// Sets `len` bytes of foreign memory to `value`.
///
/// # Safety
///
/// `to` is valid for writing `len` bytes.
pub(crate) unsafe fn fill(to: *mut u8, value: u8, len: usize) {
    let block = [value; BLOCK];
    for at in (0..len).step_by(BLOCK) {
        // SAFETY: `at` is less than `len`, and the caller promises `len` bytes.
        let to = unsafe { to.add(at) };
        // SAFETY: by the caller's promise `to` is valid for a block or the rest; the block is not foreign memory.
        unsafe { write(block.as_ptr(), to, BLOCK.min(len - at)) };
    }
}

/// Returns whether foreign memory holds `bytes`; stops at the first block that differs.
///
/// # Safety
///
/// `from` is valid for reading `bytes.len()` bytes.
pub(crate) unsafe fn equals(from: *const u8, bytes: &[u8]) -> bool {
    let mut block = [0; BLOCK];
    bytes.chunks(BLOCK).enumerate().all(|(i, expected)| {
        // SAFETY: the chunk is inside `bytes`, and the caller promises as many bytes.
        let from = unsafe { from.add(i * BLOCK) };
        let found = &mut block[..expected.len()];
        // SAFETY: by the caller's promise `from` is valid for a block or the rest; the block is not foreign memory.
        unsafe { read(from, found.as_mut_ptr(), found.len()) };
        found == expected
    })
}

/// An integer that [`Access`](crate::Access) reads and writes by a single atomic access if its address is a multiple of
/// its size.
///
/// Implemented for `u8`, `u16`, `u32` and `u64`.
///
/// ```
/// use xenmap::{Access, Result, Word};
///
/// /// Counts a value among aligned integers, which a device may write at the same time.
/// fn count<T: Word>(memory: &impl Access, value: T) -> Result<usize> {
///     let mut found = 0;
///     for offset in (0..memory.len()).step_by(size_of::<T>()) {
///         found += usize::from(memory.read::<T>(offset)? == value);
///     }
///     Ok(found)
/// }
/// ```
pub trait Word: sealed::Word {}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

pub(crate) mod sealed {
    /// The operations of a [`super::Word`].
    ///
    /// Every `at` must be aligned and valid for the access, and no reference to the memory may be in use.
    pub trait Word: Copy + Eq + std::fmt::Debug + Send + Sync + 'static {
        /// # Safety
        ///
        /// `at` is aligned and valid for reading.
        unsafe fn load(at: *const Self) -> Self;

        /// # Safety
        ///
        /// `at` is aligned and valid for writing.
        unsafe fn store(at: *mut Self, value: Self);

        /// Stores a value, and returns the old one. Sequentially consistent.
        ///
        /// # Safety
        ///
        /// `at` is aligned and valid for reading and writing.
        unsafe fn swap(at: *mut Self, value: Self) -> Self;

        /// Returns the value found, which is `current` if and only if `new` was stored. Sequentially consistent.
        ///
        /// # Safety
        ///
        /// `at` is aligned and valid for reading and writing.
        unsafe fn compare_exchange(at: *mut Self, current: Self, new: Self) -> Self;

        /// Adds, wrapping, and returns the old value. Sequentially consistent.
        ///
        /// # Safety
        ///
        /// `at` is aligned and valid for reading and writing.
        unsafe fn fetch_add(at: *mut Self, value: Self) -> Self;

        /// Returns the bits, zero-extended.
        fn bits(self) -> u64;

        /// Makes an integer from the low bits.
        fn from_bits(bits: u64) -> Self;
    }
}
