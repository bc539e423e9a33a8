//! Copies by relaxed atomic accesses to bytes, which Miri and `ThreadSanitizer` can see.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence};

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

/// Returns whether `len` bytes of foreign memory are all zero; stops at the first that is not.
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

/// The fence after each atomic operation keeps later loads after it, since `Access::load` is a relaxed one.
macro_rules! word {
    ($type:ty, $atomic:ty) => {
        impl crate::mapping::copy::sealed::Word for $type {
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
                let found = unsafe { <$atomic>::from_ptr(at) }.swap(value, SeqCst);
                fence(SeqCst);
                found
            }

            unsafe fn compare_exchange(at: *mut Self, current: Self, new: Self) -> Self {
                // SAFETY: the caller's promise.
                let result = unsafe { <$atomic>::from_ptr(at) }.compare_exchange(current, new, SeqCst, SeqCst);
                fence(SeqCst);
                result.unwrap_or_else(|found| found)
            }

            unsafe fn fetch_add(at: *mut Self, value: Self) -> Self {
                // SAFETY: the caller's promise.
                let found = unsafe { <$atomic>::from_ptr(at) }.fetch_add(value, SeqCst);
                fence(SeqCst);
                found
            }

            bits!();
        }
    };
}

word!(u8, AtomicU8);
word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);
