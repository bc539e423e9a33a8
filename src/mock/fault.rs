//! Failures on demand.

use std::ops::Range;

use crate::types::FRAME_SIZE;

/// A failure that happens once, at the next call that can fail in this way.
///
/// Errors are errno values of Linux, such as `libc::ENOMEM`.
///
/// ```
/// use xenmap::mock::{Fault, MockHost};
/// use xenmap::{GuestKind, Protection};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4);
/// let memory = host.open()?;
/// host.inject(Fault::Frame { index: 2, error: -libc::EINVAL });
///
/// let mapping = memory.map_foreign_batch_partial(guest.domid(), Protection::ReadOnly, &guest.frames())?;
/// assert_eq!(mapping.failed().len(), 1);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Opening the device fails.
    Open(i32),
    /// mmap(2) of the device fails. If it should have replaced a mapping, that mapping is gone and another thread has
    /// the addresses; each count then panics if they were unmapped anyway.
    Mmap(i32),
    /// mmap(2) of the device fails, and a mapping that it should have replaced is still there.
    MmapEarly(i32),
    /// The mapping call fails before it maps any frame.
    MapBatch(i32),
    /// The mapping call fails after it has mapped all frames that it can.
    MapBatchLate(i32),
    /// One frame of the batch fails, and the call leaves this value among the errors: a negative errno, as the kernel
    /// writes it, or anything else, as the kernel leaves there when it runs out of memory for page tables.
    ///
    /// All faults of this kind that are due hit the same call.
    Frame {
        /// The frame's index in the call.
        index: usize,
        /// The value that the kernel writes there.
        error: i32,
    },
    /// The kernel has no memory for the page table of one frame of the batch. The call succeeds nevertheless, as on
    /// Linux, but some frames are not mapped, and have halves of frame numbers in place of errors: that frame, those
    /// before it in the same page table, and all after it, as far as they are in the same block (512 frames, with pages
    /// of 4 KiB).
    PageTable {
        /// The frame's index in the call; if the call is shorter, its last frame fails.
        index: usize,
    },
    /// Mapping a resource fails.
    MapResource(i32),
    /// A device model operation fails.
    DmOp(i32),
    /// The ring of pending events has overflowed: reading it fails once, with EFBIG.
    LostEvents,
    /// A hypercall fails.
    Hypercall(i32),
    /// munmap(2) fails, and the mapping stays.
    Munmap(i32),
    /// munmap(2) succeeds, but Xen does not get its references back: an auto-translated kernel ignores a failing
    /// `XENMEM_remove_from_physmap`.
    Leak,
}

/// The faults to come, each with the number of calls that succeed before it.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(usize, Fault)>);

impl Faults {
    pub(super) fn push(&mut self, after: usize, fault: Fault) {
        self.0.push((after, fault));
    }

    /// Returns the fault that hits this call, if any; `matches` selects those that can.
    pub(super) fn strike<T>(&mut self, matches: impl Fn(Fault) -> Option<T>) -> Option<T> {
        let (place, hit) = self.0.iter().enumerate().find_map(|(i, &(_, fault))| Some((i, matches(fault)?)))?;
        if let Some(rest) = self.0[place].0.checked_sub(1) {
            self.0[place].0 = rest;
            return None;
        }
        self.0.remove(place);
        Some(hit)
    }

    /// Returns the frames of this call that fail: their indices and errors.
    pub(super) fn strike_frames(&mut self) -> Vec<(usize, i32)> {
        let mut hits = Vec::new();
        self.0.retain_mut(|(after, fault)| {
            let Fault::Frame { index, error } = *fault else { return true };
            if let Some(rest) = after.checked_sub(1) {
                *after = rest;
                return true;
            }
            hits.push((index, error));
            false
        });
        hits
    }
}

/// Returns which frames of a batch that begins at `addr` are not mapped when the kernel has no memory for the page
/// table of the frame at `index`. The kernel maps `at_once` frames with a hypercall.
pub(super) fn without_page_table(
    index: usize,
    frames: usize,
    addr: usize,
    page_size: usize,
    at_once: usize,
) -> Range<usize> {
    // The kernel reads a page of frame numbers at a time, and a page table is a page of entries.
    let (block, table) = (page_size / 8, page_size * (page_size / 8));
    let index = index.min(frames - 1);
    let block_start = index - index % block;
    let before = (addr + index * FRAME_SIZE) % table / FRAME_SIZE;
    let start = index.saturating_sub(before).max(block_start);
    start - (start - block_start) % at_once..frames.min(block_start + block)
}

/// Fills in the errors of a block's frames from `start` on that the kernel did not reach. It keeps errors in the buffer
/// into which it read the frame numbers, so they are halves of those.
pub(super) fn leave_frame_numbers(gfns: &[u64], errors: &mut [i32], start: usize) {
    for (index, error) in errors.iter_mut().enumerate().skip(start) {
        let halves = [gfns[index / 2] & u64::from(u32::MAX), gfns[index / 2] >> 32];
        *error = u32::try_from(halves[index % 2]).unwrap_or_default().cast_signed();
    }
}
