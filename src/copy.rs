//! Copying to and from memory that somebody else writes.
//!
//! A guest writes its memory while we read it, and so may another of our own threads, through another mapping of the
//! same frame. In Rust a plain or volatile access that races with a write is undefined behaviour, and so are atomic
//! accesses of different sizes that race. So no access here is one that the compiler knows of: each is inline
//! assembly, whose meaning is that of relaxed atomic accesses to single bytes, in some order. What is read may be
//! torn; it is some bytes, always.
//!
//! Where a checker must see the accesses (Miri, or `--cfg xenmap_portable_copy` for `ThreadSanitizer`), they are
//! relaxed atomic operations of Rust: of bytes for copies, and of the integer's size for aligned integers, as devices
//! need it. So it is on other architectures too until they have assembly of their own; there two threads that access
//! the same bytes in different sizes at once rely on what the hardware does, since Rust does not say.

#![expect(unsafe_code, reason = "access to foreign memory by pointer")]

#[cfg(not(all(target_arch = "x86_64", not(miri), not(xenmap_portable_copy))))]
use portable as arch;
#[cfg(all(target_arch = "x86_64", not(miri), not(xenmap_portable_copy)))]
use x86_64 as arch;

pub(crate) use arch::{is_zero, read, write};

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

#[cfg(all(target_arch = "x86_64", not(miri), not(xenmap_portable_copy)))]
mod x86_64 {
    use std::arch::asm;

    /// Copies `len` bytes out of foreign memory.
    ///
    /// # Safety
    ///
    /// `from` is valid for reading `len` bytes, `to` for writing them, and they do not overlap.
    pub(crate) unsafe fn read(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the caller's promise; the direction flag is clear on entry to any asm block.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Copies `len` bytes into foreign memory.
    ///
    /// # Safety
    ///
    /// `from` is valid for reading `len` bytes, `to` for writing them, and they do not overlap.
    pub(crate) unsafe fn write(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the copy is the same in both directions.
        unsafe { read(from, to, len) }
    }

    /// Whether `len` bytes of foreign memory are all zero; it stops at the first block of 64 that is not.
    ///
    /// # Safety
    ///
    /// `from` is valid for reading `len` bytes.
    pub(crate) unsafe fn is_zero(from: *const u8, len: usize) -> bool {
        const BLOCK: usize = 64;
        let in_blocks = len - len % BLOCK;
        // SAFETY: the caller promises `len` bytes.
        let end = unsafe { from.add(in_blocks) };
        if in_blocks != 0 {
            let bits: u64;
            // SAFETY: the caller's promise: it reads whole blocks up to `end`, of which there is at least one.
            unsafe {
                asm!(
                    "2:",
                    "mov {bits}, [{at}]",
                    "or {bits}, [{at} + 8]",
                    "or {bits}, [{at} + 16]",
                    "or {bits}, [{at} + 24]",
                    "or {bits}, [{at} + 32]",
                    "or {bits}, [{at} + 40]",
                    "or {bits}, [{at} + 48]",
                    "or {bits}, [{at} + 56]",
                    "jnz 3f",
                    "add {at}, 64",
                    "cmp {at}, {end}",
                    "jne 2b",
                    "3:",
                    bits = out(reg) bits, at = inout(reg) from => _, end = in(reg) end,
                    options(nostack, readonly),
                );
            }
            if bits != 0 {
                return false;
            }
        }
        let mut rest = [0; BLOCK];
        // SAFETY: the caller promises the bytes; fewer than a block are left.
        unsafe { read(end, rest.as_mut_ptr(), len - in_blocks) };
        rest == [0; BLOCK]
    }

    macro_rules! word {
        ($type:ty, $class:ident, $modifier:literal, $accumulator:tt) => {
            impl super::sealed::Word for $type {
                unsafe fn load(at: *const Self) -> Self {
                    let value: Self;
                    // SAFETY: the caller's promise.
                    unsafe {
                        asm!(
                            concat!("mov {value", $modifier, "}, [{at}]"),
                            at = in(reg) at, value = lateout($class) value,
                            options(nostack, preserves_flags),
                        );
                    }
                    value
                }

                unsafe fn store(at: *mut Self, value: Self) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        asm!(
                            concat!("mov [{at}], {value", $modifier, "}"),
                            at = in(reg) at, value = in($class) value,
                            options(nostack, preserves_flags),
                        );
                    }
                }

                unsafe fn swap(at: *mut Self, mut value: Self) -> Self {
                    // SAFETY: the caller's promise; xchg with memory is locked.
                    unsafe {
                        asm!(
                            concat!("xchg [{at}], {value", $modifier, "}"),
                            at = in(reg) at, value = inout($class) value,
                            options(nostack, preserves_flags),
                        );
                    }
                    value
                }

                unsafe fn compare_exchange(at: *mut Self, current: Self, new: Self) -> Self {
                    let found: Self;
                    // SAFETY: the caller's promise.
                    unsafe {
                        asm!(
                            concat!("lock cmpxchg [{at}], {new", $modifier, "}"),
                            at = in(reg) at, new = in($class) new,
                            inout($accumulator) current => found,
                            options(nostack),
                        );
                    }
                    found
                }

                unsafe fn fetch_add(at: *mut Self, mut value: Self) -> Self {
                    // SAFETY: the caller's promise.
                    unsafe {
                        asm!(
                            concat!("lock xadd [{at}], {value", $modifier, "}"),
                            at = in(reg) at, value = inout($class) value,
                            options(nostack),
                        );
                    }
                    value
                }

                bits!();
            }
        };
    }

    word!(u8, reg_byte, "", "al");
    word!(u16, reg, ":x", "ax");
    word!(u32, reg, ":e", "eax");
    word!(u64, reg, ":r", "rax");
}

#[cfg(not(all(target_arch = "x86_64", not(miri), not(xenmap_portable_copy))))]
mod portable {
    use std::sync::atomic::Ordering::{Relaxed, SeqCst};
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

    /// Copies `len` bytes out of foreign memory.
    ///
    /// # Safety
    ///
    /// `from` is valid for reading `len` bytes, `to` for writing them, and they do not overlap.
    pub(crate) unsafe fn read(from: *const u8, to: *mut u8, len: usize) {
        for i in 0..len {
            // SAFETY: the caller promises `len` bytes.
            let from = unsafe { from.add(i) };
            // SAFETY: the byte is valid, and every access to it in this program is atomic.
            let byte = unsafe { AtomicU8::from_ptr(from.cast_mut()) }.load(Relaxed);
            // SAFETY: the caller promises `len` bytes.
            let to = unsafe { to.add(i) };
            // SAFETY: the byte is ours to write.
            unsafe { to.write(byte) };
        }
    }

    /// Copies `len` bytes into foreign memory.
    ///
    /// # Safety
    ///
    /// `from` is valid for reading `len` bytes, `to` for writing them, and they do not overlap.
    pub(crate) unsafe fn write(from: *const u8, to: *mut u8, len: usize) {
        for i in 0..len {
            // SAFETY: the caller promises `len` bytes.
            let from = unsafe { from.add(i) };
            // SAFETY: the byte is ours to read.
            let byte = unsafe { from.read() };
            // SAFETY: the caller promises `len` bytes.
            let to = unsafe { to.add(i) };
            // SAFETY: the byte is valid, and every access to it in this program is atomic.
            unsafe { AtomicU8::from_ptr(to) }.store(byte, Relaxed);
        }
    }

    /// Whether `len` bytes of foreign memory are all zero; it stops at the first that is not.
    ///
    /// # Safety
    ///
    /// `from` is valid for reading `len` bytes.
    pub(crate) unsafe fn is_zero(from: *const u8, len: usize) -> bool {
        (0..len).all(|i| {
            // SAFETY: the caller promises `len` bytes.
            let from = unsafe { from.add(i) };
            // SAFETY: the byte is valid, and every access to it in this program is atomic.
            unsafe { AtomicU8::from_ptr(from.cast_mut()) }.load(Relaxed) == 0
        })
    }

    macro_rules! word {
        ($type:ty, $atomic:ty) => {
            impl super::sealed::Word for $type {
                unsafe fn load(at: *const Self) -> Self {
                    // SAFETY: the caller's promise.
                    unsafe { <$atomic>::from_ptr(at.cast_mut()) }.load(Relaxed)
                }

                unsafe fn store(at: *mut Self, value: Self) {
                    // SAFETY: the caller's promise.
                    unsafe { <$atomic>::from_ptr(at) }.store(value, Relaxed);
                }

                unsafe fn swap(at: *mut Self, value: Self) -> Self {
                    // SAFETY: the caller's promise.
                    unsafe { <$atomic>::from_ptr(at) }.swap(value, SeqCst)
                }

                unsafe fn compare_exchange(at: *mut Self, current: Self, new: Self) -> Self {
                    // SAFETY: the caller's promise.
                    unsafe { <$atomic>::from_ptr(at) }
                        .compare_exchange(current, new, SeqCst, SeqCst)
                        .unwrap_or_else(|found| found)
                }

                unsafe fn fetch_add(at: *mut Self, value: Self) -> Self {
                    // SAFETY: the caller's promise.
                    unsafe { <$atomic>::from_ptr(at) }.fetch_add(value, SeqCst)
                }

                bits!();
            }
        };
    }

    word!(u8, AtomicU8);
    word!(u16, AtomicU16);
    word!(u32, AtomicU32);
    word!(u64, AtomicU64);
}

#[cfg(test)]
mod tests {
    use super::sealed::Word;
    use super::{is_zero, read, write};

    #[test]
    fn any_byte_that_is_not_zero_is_found() {
        let mut bytes = [0; 200];
        for (start, len) in [(0, 0), (0, 1), (3, 63), (1, 64), (7, 65), (0, 128), (5, 190)] {
            for at in 0..bytes.len() {
                bytes[at] = 0x80;
                let inside = (start..start + len).contains(&at);
                // SAFETY: the bytes are inside.
                assert_eq!(unsafe { is_zero(bytes[start..].as_ptr(), len) }, !inside, "byte {at} of {len} at {start}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn copies_hold_every_byte_and_no_other() {
        let source: Vec<u8> = (0..=255).collect();
        for len in [0, 1, 7, 8, 63, 255] {
            let mut copy = vec![0xEE; 257];
            let (from, to) = (source[1..].as_ptr(), copy[1..].as_mut_ptr());
            // SAFETY: both hold `len` bytes.
            unsafe { read(from, to, len) };
            assert_eq!(copy[1..=len], source[1..=len]);
            assert_eq!((copy[0], copy[len + 1]), (0xEE, 0xEE));
            // SAFETY: both hold `len` bytes.
            unsafe { write(source.as_ptr(), copy.as_mut_ptr(), len) };
            assert_eq!(copy[..len], source[..len]);
        }
    }

    fn operations_are_those_of_an_integer<W: Word>() {
        let ones = W::from_bits(u64::MAX);
        let mut place = W::from_bits(0x1122_3344_5566_7788);
        let (before, at) = (place, &raw mut place);
        // SAFETY: (here and below) `at` is aligned, ours, and used by nobody else.
        assert_eq!(unsafe { W::load(at) }, before);
        // SAFETY: see above.
        assert_eq!(unsafe { W::swap(at, ones) }, before);
        // SAFETY: see above.
        assert_eq!(unsafe { W::fetch_add(at, W::from_bits(3)) }, ones);
        // SAFETY: see above.
        assert_eq!(unsafe { W::compare_exchange(at, ones, before) }.bits(), 2);
        // SAFETY: see above.
        assert_eq!(unsafe { W::compare_exchange(at, W::from_bits(2), ones) }.bits(), 2);
        // SAFETY: see above.
        assert_eq!(unsafe { W::load(at) }, ones);
        // SAFETY: see above.
        unsafe { W::store(at, before) };
        assert_eq!(place, before);
    }

    #[test]
    fn words_of_every_size_behave() {
        operations_are_those_of_an_integer::<u8>();
        operations_are_those_of_an_integer::<u16>();
        operations_are_those_of_an_integer::<u32>();
        operations_are_those_of_an_integer::<u64>();
    }
}
