//! Copies by pairs of 16-byte registers, which every aarch64 processor has (Armv8.0-A). Atomic operations are single
//! instructions if the processor has them (LSE, Armv8.1-A), else exclusive loads and stores.
//!
//! Exclusive loads and stores are retried until nothing else has written to the same memory in between, so a guest that
//! writes all the time can delay us. A single instruction completes whatever the guest does. (`Access` sets and clears
//! bits by compare-and-exchange, which is retried if the guest has changed that very word.)

use std::arch::{asm, is_aarch64_feature_detected};

/// Copies between one and two registers' worth of bytes: one register holds the first bytes, the other the last.
macro_rules! move_ends {
    (
        $load:literal, $store:literal, $class:ident, $modifier:literal, $size:literal,
        $from:ident, $to:ident, $len:ident
    ) => {
        asm!(
            concat!($load, " {head", $modifier, "}, [{from}]"),
            concat!($load, " {tail", $modifier, "}, [{from_tail}]"),
            concat!($store, " {head", $modifier, "}, [{to}]"),
            concat!($store, " {tail", $modifier, "}, [{to_tail}]"),
            from = in(reg) $from, from_tail = in(reg) $from.wrapping_add($len - $size),
            to = in(reg) $to, to_tail = in(reg) $to.wrapping_add($len - $size),
            head = out($class) _, tail = out($class) _,
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

/// # Safety
///
/// (Here and below.) `from` is valid for reading `len` bytes, `to` for writing them, and they do not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len > 64 {
        // SAFETY: the caller's promise.
        unsafe { copy_long(from, to, len) }
    } else if len > 32 {
        // SAFETY: the caller's promise; both ends hold 32 bytes.
        unsafe { move_pairs(from, to, 0, len - 32) }
    } else if len >= 16 {
        // SAFETY: the caller's promise.
        unsafe { move_ends!("ldr", "str", vreg, ":q", 16, from, to, len) }
    } else if len >= 8 {
        // SAFETY: the caller's promise.
        unsafe { move_ends!("ldr", "str", reg, ":x", 8, from, to, len) }
    } else if len >= 4 {
        // SAFETY: the caller's promise.
        unsafe { move_ends!("ldr", "str", reg, ":w", 4, from, to, len) }
    } else if len >= 2 {
        // SAFETY: the caller's promise.
        unsafe { move_ends!("ldrh", "strh", reg, ":w", 2, from, to, len) }
    } else if len == 1 {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "ldrb {byte:w}, [{from}]",
                "strb {byte:w}, [{to}]",
                from = in(reg) from, to = in(reg) to, byte = out(reg) _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// At least 64 bytes.
#[inline(never)]
unsafe fn copy_long(from: *const u8, to: *mut u8, len: usize) {
    const BLOCK: usize = 64;
    // SAFETY: (here and below) the caller's promise; the block is inside.
    unsafe { move_pairs(from, to, 0, 32) };
    // The blocks between the ends are aligned at the target.
    let mut i = BLOCK - to.addr() % 16;
    while i < len - BLOCK {
        // SAFETY: see above.
        unsafe { move_pairs(from, to, i, i + 32) };
        i += BLOCK;
    }
    // SAFETY: see above.
    unsafe { move_pairs(from, to, len - 64, len - 32) };
}

/// Copies twice 32 bytes, from the places `first` and `second` relative to `from` to the same places relative to `to`.
#[inline]
unsafe fn move_pairs(from: *const u8, to: *mut u8, first: usize, second: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "ldp {a:q}, {b:q}, [{from_first}]",
            "ldp {c:q}, {d:q}, [{from_second}]",
            "stp {a:q}, {b:q}, [{to_first}]",
            "stp {c:q}, {d:q}, [{to_second}]",
            from_first = in(reg) from.wrapping_add(first), from_second = in(reg) from.wrapping_add(second),
            to_first = in(reg) to.wrapping_add(first), to_second = in(reg) to.wrapping_add(second),
            a = out(vreg) _, b = out(vreg) _, c = out(vreg) _, d = out(vreg) _,
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
                "ldp {bits}, {b}, [{at}]",
                "ldp {c}, {d}, [{at}, #16]",
                "orr {bits}, {bits}, {b}",
                "orr {c}, {c}, {d}",
                "orr {bits}, {bits}, {c}",
                "ldp {b}, {c}, [{at}, #32]",
                "orr {b}, {b}, {c}",
                "ldp {c}, {d}, [{at}, #48]",
                "orr {c}, {c}, {d}",
                "orr {b}, {b}, {c}",
                "orr {bits}, {bits}, {b}",
                "add {at}, {at}, #64",
                "cbnz {bits}, 3f",
                "cmp {at}, {end}",
                "b.ne 2b",
                "3:",
                bits = out(reg) bits, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                at = inout(reg) from => _, end = in(reg) end,
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

/// The suffix of the instruction is the size of the access, and the modifier is the width of the register.
///
/// The barrier after each atomic operation keeps later loads after it, since `Access::load` is a plain load.
macro_rules! word {
    ($type:ty, $suffix:literal, $modifier:literal) => {
        impl crate::mapping::copy::sealed::Word for $type {
            unsafe fn load(at: *const Self) -> Self {
                let value: Self;
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        concat!("ldr", $suffix, " {value", $modifier, "}, [{at}]"),
                        at = in(reg) at, value = lateout(reg) value,
                        options(nostack, preserves_flags),
                    );
                }
                value
            }

            unsafe fn store(at: *mut Self, value: Self) {
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        concat!("str", $suffix, " {value", $modifier, "}, [{at}]"),
                        at = in(reg) at, value = in(reg) value,
                        options(nostack, preserves_flags),
                    );
                }
            }

            unsafe fn swap(at: *mut Self, value: Self) -> Self {
                let found: Self;
                if is_aarch64_feature_detected!("lse") {
                    // SAFETY: the caller's promise; the processor has the instruction.
                    unsafe {
                        asm!(
                            ".arch_extension lse",
                            concat!("swpal", $suffix, " {value", $modifier, "}, {found", $modifier, "}, [{at}]"),
                            "dmb ish",
                            at = in(reg) at, value = in(reg) value, found = out(reg) found,
                            options(nostack, preserves_flags),
                        );
                    }
                    return found;
                }
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        "2:",
                        concat!("ldaxr", $suffix, " {found", $modifier, "}, [{at}]"),
                        concat!("stlxr", $suffix, " {failed:w}, {value", $modifier, "}, [{at}]"),
                        "cbnz {failed:w}, 2b",
                        "dmb ish",
                        at = in(reg) at, value = in(reg) value, found = out(reg) found, failed = out(reg) _,
                        options(nostack, preserves_flags),
                    );
                }
                found
            }

            unsafe fn compare_exchange(at: *mut Self, current: Self, new: Self) -> Self {
                let found: Self;
                if is_aarch64_feature_detected!("lse") {
                    // SAFETY: the caller's promise; the processor has the instruction.
                    unsafe {
                        asm!(
                            ".arch_extension lse",
                            concat!("casal", $suffix, " {found", $modifier, "}, {new", $modifier, "}, [{at}]"),
                            "dmb ish",
                            at = in(reg) at, new = in(reg) new, found = inout(reg) current => found,
                            options(nostack, preserves_flags),
                        );
                    }
                    return found;
                }
                // The register bits above a small integer are undefined, but an exclusive load zeroes them: zero-extend
                // the value to be compared.
                let current = u64::from(current);
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        "2:",
                        concat!("ldaxr", $suffix, " {found", $modifier, "}, [{at}]"),
                        "cmp {found:x}, {current:x}",
                        "b.ne 3f",
                        concat!("stlxr", $suffix, " {failed:w}, {new", $modifier, "}, [{at}]"),
                        "cbnz {failed:w}, 2b",
                        "3:",
                        "dmb ish",
                        at = in(reg) at, current = in(reg) current, new = in(reg) new,
                        found = out(reg) found, failed = out(reg) _,
                        options(nostack),
                    );
                }
                found
            }

            unsafe fn fetch_add(at: *mut Self, value: Self) -> Self {
                let found: Self;
                if is_aarch64_feature_detected!("lse") {
                    // SAFETY: the caller's promise; the processor has the instruction.
                    unsafe {
                        asm!(
                            ".arch_extension lse",
                            concat!("ldaddal", $suffix, " {value", $modifier, "}, {found", $modifier, "}, [{at}]"),
                            "dmb ish",
                            at = in(reg) at, value = in(reg) value, found = out(reg) found,
                            options(nostack, preserves_flags),
                        );
                    }
                    return found;
                }
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        "2:",
                        concat!("ldaxr", $suffix, " {found", $modifier, "}, [{at}]"),
                        concat!("add {sum", $modifier, "}, {found", $modifier, "}, {value", $modifier, "}"),
                        concat!("stlxr", $suffix, " {failed:w}, {sum", $modifier, "}, [{at}]"),
                        "cbnz {failed:w}, 2b",
                        "dmb ish",
                        at = in(reg) at, value = in(reg) value,
                        found = out(reg) found, sum = out(reg) _, failed = out(reg) _,
                        options(nostack, preserves_flags),
                    );
                }
                found
            }

            bits!();
        }
    };
}

word!(u8, "b", ":w");
word!(u16, "h", ":w");
word!(u32, "", ":w");
word!(u64, "", ":x");

#[cfg(test)]
mod tests {
    use super::copy_long;
    use crate::mapping::copy::tests::{hold_every_byte_and_no_other, stay_inside};

    #[test]
    fn long_copies_hold_every_byte_and_no_other() {
        hold_every_byte_and_no_other(copy_long, 64);
        stay_inside(copy_long, 64);
    }
}
