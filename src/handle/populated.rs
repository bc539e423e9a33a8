//! Whether the kernel has mapped all that it says it has.
//!
//! Linux keeps the errors of a batch where it has read the frame numbers before, a page of numbers (a block) at a time.
//! When it has no memory for a page table it gives up the rest of the block, says nothing, and answers with what is
//! there: the error at place i is half of the frame number at place i / 2, the lower half if i is even (privcmd.c,
//! `mmap_batch_fn`; `xen_remap_pfn`; `xen_xlate_remap_gfn_array`). Most halves are no errno, and give it away. But some
//! are 0, which says that the frame is mapped.
//!
//! Where that may be all that is left, a system call that reads from the page tells whether it is there.
//! /proc/self/pagemap does not, nor does mincore(2) on most kernels: they take all of a device mapping for a hole
//! (pagewalk.c, `walk_page_test`).

#![expect(unsafe_code, reason = "has the kernel read from an address")]

use std::ptr::NonNull;

use crate::types::{FRAME_SIZE, Gfn};

/// The highest errno of Linux.
const MAX_ERRNO: i32 = 4095;
/// Bytes of a frame number.
const NUMBER: usize = size_of::<u64>();

/// Whether the kernel's answer, for frames mapped from `addr` on, can be believed, if each error in it makes sense.
///
/// It looks at one number of each block, and makes a system call only if that block is doubtful, such as frame 0 alone.
///
/// # Safety
///
/// The frames are where a device mapping of ours has them.
pub(crate) unsafe fn is_true(addr: NonNull<u8>, page_size: usize, gfns: &[Gfn], errors: &[i32]) -> bool {
    let block = page_size / NUMBER;
    let mut blocks = (0..).step_by(block).zip(gfns.chunks(block).zip(errors.chunks(block)));
    blocks.all(|(first, (gfns, errors))| {
        // SAFETY: the place of a frame of the caller's.
        let addr = unsafe { addr.add(first * FRAME_SIZE) };
        if !is_doubtful(addr.as_ptr().addr(), page_size, gfns) {
            return true;
        }
        // If the kernel has given up, all the rest of the block is without a page. If none of that says that it is
        // mapped, nothing is wrong with the answer but the errnos.
        let Some(last) = errors.iter().rposition(|&error| error == 0) else { return true };
        // SAFETY: as above.
        is_mapped(unsafe { addr.add(last * FRAME_SIZE) })
    })
}

/// Whether the answer for a block might look good if the kernel has given up: it is the halves of numbers from some
/// place on, of which these are the last.
fn is_doubtful(addr: usize, page_size: usize, gfns: &[Gfn]) -> bool {
    let last = gfns.len() - 1;
    let negated_lower_half = gfns[last / 2].get().wrapping_neg() & u64::from(u32::MAX);
    // If the last frame begins a page table, the kernel may have left nothing but an upper half.
    let page_table = page_size * (page_size / NUMBER);
    let is_one = !last.is_multiple_of(2) && (addr + last * FRAME_SIZE).is_multiple_of(page_table);
    is_one || negated_lower_half <= u64::from(MAX_ERRNO.unsigned_abs())
}

/// Whether the kernel may have meant this: 0, or an errno, negated.
pub(crate) fn makes_sense(error: i32) -> bool {
    (-MAX_ERRNO..=0).contains(&error)
}

/// Whether there is a page at an address.
fn is_mapped(addr: NonNull<u8>) -> bool {
    const NO_OPERATION: libc::c_long = -1;
    const SET: usize = 8;
    let nowhere = std::ptr::null_mut::<u8>();
    // SAFETY: the kernel reads a set of signals from the address, or says EFAULT if it cannot. Then it finds that it is
    // to do nothing with them, and says EINVAL.
    let answer = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_OPERATION, addr.as_ptr(), nowhere, SET) };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_TABLE: usize = 512 * FRAME_SIZE;

    /// The halves of these numbers from a place on, as the kernel leaves them.
    fn halves(gfns: &[Gfn], start: usize) -> impl Iterator<Item = i32> {
        let half = |place: usize| (gfns[place / 2].get() >> (32 * (place % 2))) & u64::from(u32::MAX);
        (start..gfns.len()).map(half).map(|half| u32::try_from(half).unwrap().cast_signed())
    }

    #[test]
    fn block_is_doubtful_if_what_the_kernel_may_leave_makes_sense() {
        let numbers = [0, 7, 0xFFFF_F001, 0xFFFF_FFFF, 1 << 32, 0xFF_FFFF_FFFF].map(|gfn| Gfn::new(gfn).unwrap());
        let mut doubtful = 0;
        for len in 1..=5_u32 {
            for choice in 0..6_usize.pow(len) {
                let gfns: Vec<Gfn> = (0..len).map(|place| numbers[choice / 6_usize.pow(place) % 6]).collect();
                let last = gfns.len() - 1;
                // The kernel gives up at the start of the block, or at a page table's.
                for start in 0..=last {
                    let addr = 9 * PAGE_TABLE - start * FRAME_SIZE;
                    let makes_sense = [0, start].iter().any(|&start| halves(&gfns, start).all(makes_sense));
                    let doubt = is_doubtful(addr, FRAME_SIZE, &gfns);
                    assert!(doubt || !makes_sense, "{gfns:?} from {start} on");
                    doubtful += usize::from(doubt);
                }
            }
        }
        assert_ne!(doubtful, 0);
        let usual: Vec<Gfn> = (0..512).map(|gfn| Gfn::new(gfn).unwrap()).collect();
        assert!(!is_doubtful(9 * PAGE_TABLE, FRAME_SIZE, &usual));
    }

    #[test]
    fn page_that_is_there_is_told_from_one_that_is_not() {
        let number = 5_u64;
        assert!(is_mapped(NonNull::from(&number).cast()));
        assert!(!is_mapped(NonNull::new(std::ptr::without_provenance_mut(FRAME_SIZE)).unwrap()));
    }
}
