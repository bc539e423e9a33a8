//! Copying to and from memory that somebody else writes.
//!
//! A guest writes its memory while we read it, and so may another of our own threads, through another mapping of the
//! same frame. In Rust a plain or volatile access that races with a write is undefined behaviour, and so are atomic
//! accesses of different sizes that race. So no access here is one that the compiler knows of: each is inline
//! assembly, whose meaning is that of relaxed atomic accesses to single bytes, in some order. What is read may be
//! torn; it is some bytes, always.
//!
//! A copy of several bytes may access one twice, where the moves at its ends overlap, as memcpy does. Each reading is a
//! relaxed one, and the last stays in the private buffer. Each writing writes the same value; what somebody else has
//! written to that byte between the two is lost, as if he had come before both. No byte outside is ever accessed.
//!
//! Where a checker must see the accesses (Miri, or `--cfg xenmap_portable_copy` for `ThreadSanitizer`), they are
//! relaxed atomic operations of Rust: of bytes for copies, and of the integer's size for aligned integers, as devices
//! need it. So it is on architectures that have no assembly here, too; there two threads that access the same bytes in
//! different sizes at once rely on what the hardware does, since Rust does not say.

#![expect(unsafe_code, reason = "access to foreign memory by pointer")]

/// The bit patterns of an integer.
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

/// What `fill` and `equals` hold in private memory at a time, in bytes.
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
        // SAFETY: the caller's promise: it is a block, or what is left; and the block is no foreign memory.
        unsafe { write(block.as_ptr(), to, BLOCK.min(len - at)) };
    }
}

/// Whether foreign memory holds `bytes`; it stops at the first block that differs.
///
/// # Safety
///
/// `from` is valid for reading as many bytes.
pub(crate) unsafe fn equals(from: *const u8, bytes: &[u8]) -> bool {
    let mut block = [0; BLOCK];
    bytes.chunks(BLOCK).enumerate().all(|(i, expected)| {
        // SAFETY: the chunk is inside `bytes`, and the caller promises as many.
        let from = unsafe { from.add(i * BLOCK) };
        let found = &mut block[..expected.len()];
        // SAFETY: the caller's promise: it is a block, or what is left; and the block is no foreign memory.
        unsafe { read(from, found.as_mut_ptr(), found.len()) };
        found == expected
    })
}

/// An integer that is read and written by one access, and atomically, if its address is a multiple of its size.
///
/// Implemented for `u8`, `u16`, `u32` and `u64`.
pub trait Word: sealed::Word {}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

pub(crate) mod sealed {
    /// The operations behind [`super::Word`].
    ///
    /// Every `at` is aligned and valid for the access, as long as nobody uses a reference to the memory.
    pub trait Word: Copy + Eq + std::fmt::Debug + Send + Sync + 'static {
        /// # Safety
        ///
        /// `at` is aligned and valid for reading.
        unsafe fn load(at: *const Self) -> Self;

        /// # Safety
        ///
        /// `at` is aligned and valid for writing.
        unsafe fn store(at: *mut Self, value: Self);

        /// Sequentially consistent.
        ///
        /// # Safety
        ///
        /// `at` is aligned and valid for reading and writing.
        unsafe fn swap(at: *mut Self, value: Self) -> Self;

        /// Sequentially consistent; the value found, which is `current` if and only if `new` was stored.
        ///
        /// # Safety
        ///
        /// `at` is aligned and valid for reading and writing.
        unsafe fn compare_exchange(at: *mut Self, current: Self, new: Self) -> Self;

        /// Sequentially consistent and wrapping; the value before.
        ///
        /// # Safety
        ///
        /// `at` is aligned and valid for reading and writing.
        unsafe fn fetch_add(at: *mut Self, value: Self) -> Self;

        /// All bits, as a number.
        fn bits(self) -> u64;

        /// The low bits of a number.
        fn from_bits(bits: u64) -> Self;
    }
}
