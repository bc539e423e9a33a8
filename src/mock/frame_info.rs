//! The kinds of frames that the simulated hypervisor reports (`XEN_DOMCTL_getpageframeinfo3`).

#![expect(unsafe_code, reason = "reads and writes hypercall buffers")]

use super::hypercalls::{buffer, copy_to};
use super::machine::Host;
use super::state::{Domain, Frame, Page, State};
use crate::abi;

/// The most frames of one call.
const FRAMES: u64 = 1024;
const WORD: usize = size_of::<u64>();

/// Replaces each frame number of an array by the frame's kind.
///
/// # Safety
///
/// As for [`Host::hypercall`](super::machine::Host::hypercall).
pub(super) unsafe fn page_frame_info(
    host: &Host,
    state: &mut State,
    domid: u16,
    count: u64,
    array: u64,
) -> Result<u64, i32> {
    let count = usize::try_from(count.min(FRAMES + 1)).unwrap_or(usize::MAX);
    if count as u64 > FRAMES {
        return Err(libc::E2BIG);
    }
    let from = buffer(state, array, WORD * count)?;
    let mut bytes = vec![0; WORD * count];
    // SAFETY: `buffer` found this many bytes mapped, and nothing borrows them (the caller's promise).
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    let gfns = bytes.chunks_exact(WORD).map(|word| word.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word)));
    let gfns: Vec<u64> = gfns.collect();
    host.touch_all(state, domid, gfns.iter().copied());
    let domain = state.domains.get(&domid).ok_or(libc::ESRCH)?;
    // Most of a large address space is holes: looking up each of their frames would take most of a test's time.
    let ends = gfns.iter().min().zip(gfns.iter().max());
    let info = if ends.is_none_or(|(&low, &high)| domain.frames.range(low..=high).next().is_none()) {
        u64::from(abi::XEN_DOMCTL_PFINFO_XTAB).to_ne_bytes().repeat(count)
    } else {
        gfns.iter().flat_map(|&gfn| u64::from(kind(state, domain, gfn)).to_ne_bytes()).collect()
    };
    // SAFETY: the caller's promise.
    unsafe { copy_to(state, array, &info) }.map(|()| 0)
}

fn kind(state: &State, domain: &Domain, gfn: u64) -> u32 {
    const PINNED_L1: u32 = 1 << 28 | 1 << 31;
    match domain.frames.get(&gfn) {
        Some(Frame::Ram(page)) => match state.pages[*page] {
            Page { lent: true, .. } => abi::XEN_DOMCTL_PFINFO_XTAB,
            Page { pinned: true, .. } => PINNED_L1,
            _ => 0,
        },
        Some(Frame::Broken(_)) => abi::XEN_DOMCTL_PFINFO_BROKEN,
        Some(Frame::PagedOut(..) | Frame::Unpopulated | Frame::OfParent) | None => abi::XEN_DOMCTL_PFINFO_XTAB,
    }
}
