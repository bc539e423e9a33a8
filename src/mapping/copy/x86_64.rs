//! Copies by SSE2, which every x86-64 processor has, by AVX2 if the processor has it, and by `rep movsb`.

use std::arch::{asm, is_x86_feature_detected};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crate::types::FRAME_SIZE;

/// Copies between one and two registers' worth of bytes: one register holds the first bytes, the other the last.
macro_rules! move_ends {
    ($mov:literal, $class:ident, $modifier:literal, $size:literal, $from:ident, $to:ident, $len:ident) => {
        asm!(
            concat!($mov, " {head", $modifier, "}, [{from}]"),
            concat!($mov, " {tail", $modifier, "}, [{from} + {len} - ", $size, "]"),
            concat!($mov, " [{to}], {head", $modifier, "}"),
            concat!($mov, " [{to} + {len} - ", $size, "], {tail", $modifier, "}"),
            from = in(reg) $from, to = in(reg) $to, len = in(reg) $len,
            head = out($class) _, tail = out($class) _,
            options(nostack, preserves_flags),
        )
    };
}

/// Copies four registers' worth of bytes from places relative to `from` to the same places relative to `to`. A place
/// may contain the index `{i}`.
macro_rules! move_four {
    (
        $mov:literal, [$a:tt $b:tt $c:tt $d:tt], $from:ident, $to:ident, $i:ident,
        [$first:literal, $second:literal, $third:literal, $fourth:literal]
    ) => {
        asm!(
            concat!($mov, " ", $a, ", [{from}", $first, "]"),
            concat!($mov, " ", $b, ", [{from}", $second, "]"),
            concat!($mov, " ", $c, ", [{from}", $third, "]"),
            concat!($mov, " ", $d, ", [{from}", $fourth, "]"),
            concat!($mov, " [{to}", $first, "], ", $a),
            concat!($mov, " [{to}", $second, "], ", $b),
            concat!($mov, " [{to}", $third, "], ", $c),
            concat!($mov, " [{to}", $fourth, "], ", $d),
            from = in(reg) $from, to = in(reg) $to, i = in(reg) $i,
            out($a) _, out($b) _, out($c) _, out($d) _,
            options(nostack, preserves_flags),
        )
    };
}

/// Copies `len` bytes out of foreign memory.
///
/// # Safety
///
/// `from` is valid for reading `len` bytes, `to` for writing them, and they do not overlap.
#[inline]
pub(crate) unsafe fn read(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the copy is the same in both directions.
    unsafe { copy(from, to, len) }
}

/// Copies `len` bytes into foreign memory.
///
/// # Safety
///
/// `from` is valid for reading `len` bytes, `to` for writing them, and they do not overlap.
#[inline]
pub(crate) unsafe fn write(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the copy is the same in both directions.
    unsafe { copy(from, to, len) }
}

/// Whether AVX2 has been detected. Loading this is cheaper than asking the standard library each time.
static AVX2: AtomicBool = AtomicBool::new(false);

/// # Safety
///
/// (Here and below.) `from` is valid for reading `len` bytes, `to` for writing them, and they do not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len <= 64 {
        // SAFETY: the caller's promise.
        unsafe { copy_short(from, to, len) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { copy_long(from, to, len) }
    }
}

/// At least 64 bytes.
#[inline(never)]
unsafe fn copy_long(from: *const u8, to: *mut u8, len: usize) {
    if AVX2.load(Relaxed) {
        // SAFETY: the caller's promise.
        unsafe { copy_by_avx2(from, to, len) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { copy_at_first_or_without_avx2(from, to, len) }
    }
}

/// At least 64 bytes. A separate function, so that detecting the processor's features does not slow down later copies.
#[cold]
unsafe fn copy_at_first_or_without_avx2(from: *const u8, to: *mut u8, len: usize) {
    if is_x86_feature_detected!("avx2") {
        AVX2.store(true, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { copy_by_avx2(from, to, len) }
    } else if len > FRAME_SIZE && is_x86_feature_detected!("ermsb") {
        // SAFETY: the caller's promise.
        unsafe { copy_by_string(from, to, len) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { copy_by_sse2(from, to, len) }
    }
}

/// Up to 64 bytes.
#[inline]
unsafe fn copy_short(from: *const u8, to: *mut u8, len: usize) {
    if len > 32 {
        // SAFETY: the caller's promise; both ends hold 32 bytes.
        unsafe {
            move_four!("movups", ["xmm0" "xmm1" "xmm2" "xmm3"], from, to, len, ["", "+16", "+{i}-32", "+{i}-16"]);
        }
    } else if len >= 16 {
        // SAFETY: the caller's promise.
        unsafe { move_ends!("movups", xmm_reg, "", 16, from, to, len) }
    } else if len >= 8 {
        // SAFETY: the caller's promise.
        unsafe { move_ends!("mov", reg, ":r", 8, from, to, len) }
    } else if len >= 4 {
        // SAFETY: the caller's promise.
        unsafe { move_ends!("mov", reg, ":e", 4, from, to, len) }
    } else if len >= 2 {
        // SAFETY: the caller's promise.
        unsafe { move_ends!("mov", reg, ":x", 2, from, to, len) }
    } else if len == 1 {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "mov {byte}, [{from}]",
                "mov [{to}], {byte}",
                from = in(reg) from, to = in(reg) to, byte = out(reg_byte) _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// At least 64 bytes.
unsafe fn copy_by_avx2(from: *const u8, to: *mut u8, len: usize) {
    const BLOCK: usize = 128;
    let move_block = |i: usize| {
        // SAFETY: the caller's promise; the block at `i` is inside.
        unsafe {
            move_four!(
                "vmovups", ["ymm0" "ymm1" "ymm2" "ymm3"], from, to, i,
                ["+{i}", "+{i}+32", "+{i}+64", "+{i}+96"]
            );
        }
    };
    if len <= BLOCK {
        // SAFETY: the caller's promise; both ends hold 64 bytes.
        unsafe {
            move_four!("vmovups", ["ymm0" "ymm1" "ymm2" "ymm3"], from, to, len, ["", "+32", "+{i}-64", "+{i}-32"]);
        }
    } else {
        move_block(0);
        // The blocks between the ends are aligned at the target, since a store across cache lines costs as much as two;
        // but not in short copies, where alignment would take an additional block.
        let mut i = if len > 4 * BLOCK { BLOCK - to.addr() % 32 } else { BLOCK };
        while i < len - BLOCK {
            move_block(i);
            i += BLOCK;
        }
        move_block(len - BLOCK);
    }
    // SAFETY: it clears the upper halves of all vector registers, which a callee may clobber (`clobber_abi`). Without
    // it, SSE code on Intel processors would be slow afterwards.
    unsafe { asm!("vzeroupper", clobber_abi("C"), options(nomem, nostack, preserves_flags)) }
}

/// At least 64 bytes.
unsafe fn copy_by_sse2(from: *const u8, to: *mut u8, len: usize) {
    const BLOCK: usize = 64;
    let move_block = |i: usize| {
        // SAFETY: the caller's promise; the block at `i` is inside.
        unsafe {
            move_four!(
                "movups", ["xmm0" "xmm1" "xmm2" "xmm3"], from, to, i,
                ["+{i}", "+{i}+16", "+{i}+32", "+{i}+48"]
            );
        }
    };
    move_block(0);
    let mut i = BLOCK - to.addr() % 16;
    while i < len - BLOCK {
        move_block(i);
        i += BLOCK;
    }
    move_block(len - BLOCK);
}

/// Copies by `rep movsb`, which newer processors execute about as fast as AVX2 for more than 1 KiB. It is used for more
/// than a frame only, because a simulated processor executes it byte by byte.
unsafe fn copy_by_string(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the direction flag is clear on entry to any asm block.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Returns whether `len` bytes of foreign memory are all zero; stops at the first block of 64 bytes that is not.
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
        // SAFETY: it reads at least one whole block, and stops at `end`; the caller promises these bytes.
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
    // SAFETY: the caller promises the bytes; fewer than a block are left, so they fit into `rest`.
    unsafe { read(end, rest.as_mut_ptr(), len - in_blocks) };
    rest == [0; BLOCK]
}

macro_rules! word {
    ($type:ty, $class:ident, $modifier:literal, $accumulator:tt) => {
        impl crate::mapping::copy::sealed::Word for $type {
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

#[cfg(test)]
mod tests {
    use super::{copy_by_avx2, copy_by_sse2, copy_by_string};
    use crate::mapping::copy::tests::{hold_every_byte_and_no_other, stay_inside};

    #[test]
    fn copies_by_sse2_hold_every_byte_and_no_other() {
        hold_every_byte_and_no_other(copy_by_sse2, 64);
        stay_inside(copy_by_sse2, 64);
    }

    #[test]
    fn copies_by_string_instructions_hold_every_byte_and_no_other() {
        hold_every_byte_and_no_other(copy_by_string, 0);
        stay_inside(copy_by_string, 0);
    }

    #[test]
    fn copies_by_avx2_hold_every_byte_and_no_other() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            eprintln!("skipped: this processor has no AVX2");
            return;
        }
        hold_every_byte_and_no_other(copy_by_avx2, 64);
        stay_inside(copy_by_avx2, 64);
    }
}
