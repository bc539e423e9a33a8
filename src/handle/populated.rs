//! Checks that the kernel has mapped all the frames that it reports as mapped.
//!
//! Linux processes a batch in blocks of a page of frame numbers, and stores the errors over the frame numbers that it
//! has read. If it has no memory for a page table, it silently skips the rest of the block, and returns what is there:
//! the error at place i is then half of the frame number at place i / 2, the lower half if i is even (privcmd.c,
//! `mmap_batch_fn`; `xen_remap_pfn`; `xen_xlate_remap_gfn_array`). Most halves are not a valid errno, which reveals the
//! failure. But some are 0, which means that the frame is mapped.
//!
//! If a skipped part could consist of valid entries only, a system call that reads from the page tells whether it is
//! there. Neither /proc/self/pagemap nor, on most kernels, mincore(2) can tell: they treat a whole device mapping as a
//! hole (pagewalk.c, `walk_page_test`).

#![expect(unsafe_code, reason = "lets the kernel read from an address")]

use std::ptr::NonNull;

use crate::types::{FRAME_SIZE, Gfn};

/// The highest errno of Linux.
const MAX_ERRNO: i32 = 4095;
/// The size of a frame number in bytes.
const NUMBER: usize = size_of::<u64>();

/// Returns whether the kernel's answer for frames mapped at `addr` is true, given that each error in it makes sense.
///
/// It checks one number of each block, and makes a system call only if the block is doubtful, such as frame 0 alone.
///
/// # Safety
///
/// `addr` is where the frames lie in a device mapping that the caller owns.
pub(crate) unsafe fn is_true(addr: NonNull<u8>, page_size: usize, gfns: &[Gfn], errors: &[i32]) -> bool {
    let block = page_size / NUMBER;
    let mut blocks = (0..).step_by(block).zip(gfns.chunks(block).zip(errors.chunks(block)));
    blocks.all(|(first, (gfns, errors))| {
        // SAFETY: the address of one of the frames, which are inside the caller's mapping.
        let addr = unsafe { addr.add(first * FRAME_SIZE) };
        if !is_doubtful(addr.as_ptr().addr(), page_size, gfns) {
            return true;
        }
        // If the kernel has skipped the rest of the block, none of it has a page. If no entry says that its frame is
        // mapped, the answer is true apart from the errno values.
        let Some(last) = errors.iter().rposition(|&error| error == 0) else { return true };
        // SAFETY: as above.
        is_mapped(unsafe { addr.add(last * FRAME_SIZE) })
    })
}

/// Returns whether the answer for a block might look valid although the kernel has skipped the rest of it. In that case
/// the answer ends with halves of these frame numbers, so it is enough to check the last ones.
fn is_doubtful(addr: usize, page_size: usize, gfns: &[Gfn]) -> bool {
    let last = gfns.len() - 1;
    let negated_lower_half = gfns[last / 2].get().wrapping_neg() & u64::from(u32::MAX);
    // If the last frame begins a page table, the kernel may have skipped only this frame, and left an upper half.
    let page_table = page_size * (page_size / NUMBER);
    let is_one = !last.is_multiple_of(2) && (addr + last * FRAME_SIZE).is_multiple_of(page_table);
    is_one || negated_lower_half <= u64::from(MAX_ERRNO.unsigned_abs())
}

/// Returns whether an entry is one that the kernel writes: 0, or a negated errno.
pub(crate) fn makes_sense(error: i32) -> bool {
    (-MAX_ERRNO..=0).contains(&error)
}

/// Returns whether there is a page at an address.
fn is_mapped(addr: NonNull<u8>) -> bool {
    const NO_OPERATION: libc::c_long = -1;
    const SET: usize = 8;
    let nowhere = std::ptr::null_mut::<u8>();
    // SAFETY: the kernel reads a signal set from the address, and fails with EFAULT if it cannot. Otherwise it fails
    // with EINVAL, because it does not know the operation, and changes nothing.
    let answer = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_OPERATION, addr.as_ptr(), nowhere, SET) };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_TABLE: usize = 512 * FRAME_SIZE;

    /// Returns what the kernel leaves if it skips the frames from `start` on: halves of the frame numbers.
    fn halves(gfns: &[Gfn], start: usize) -> impl Iterator<Item = i32> {
        let half = |place: usize| (gfns[place / 2].get() >> (32 * (place % 2))) & u64::from(u32::MAX);
        (start..gfns.len()).map(half).map(|half| u32::try_from(half).unwrap().cast_signed())
    }

    #[test]
    fn block_is_doubtful_if_leftover_frame_numbers_look_valid() {
        let numbers = [0, 7, 0xFFFF_F001, 0xFFFF_FFFF, 1 << 32, 0xFF_FFFF_FFFF].map(|gfn| Gfn::new(gfn).unwrap());
        let mut doubtful = 0;
        for len in 1..=5_u32 {
            for choice in 0..6_usize.pow(len) {
                let gfns: Vec<Gfn> = (0..len).map(|place| numbers[choice / 6_usize.pow(place) % 6]).collect();
                let last = gfns.len() - 1;
                // The kernel skips frames from the start of the block, or from that of a page table.
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
    fn present_page_is_told_from_a_missing_one() {
        let number = 5_u64;
        assert!(is_mapped(NonNull::from(&number).cast()));
        assert!(!is_mapped(NonNull::new(std::ptr::without_provenance_mut(FRAME_SIZE)).unwrap()));
    }
}
