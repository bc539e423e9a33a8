//! Failures on demand.

use std::ops::Range;

use crate::types::FRAME_SIZE;

/// Something that goes wrong once, at the next call that it can happen to.
///
/// Errors are numbers of Linux, such as `libc::ENOMEM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Opening the device fails.
    Open(i32),
    /// mmap(2) of the device fails. If it was to replace a mapping, that one is gone, and another thread has got the
    /// addresses; each count panics if they were unmapped all the same.
    Mmap(i32),
    /// The same, but what was to be replaced is still there.
    MmapEarly(i32),
    /// The mapping call fails before it has looked at any frame.
    MapBatch(i32),
    /// The mapping call fails after it has mapped what it could.
    MapBatchLate(i32),
    /// One frame of the batch gets this in its place among the errors: a negative errno, as the kernel has it, or
    /// anything else, as the kernel leaves it when it runs out of memory for page tables.
    ///
    /// All faults of this kind that are due strike the same call.
    Frame {
        /// Its place in the call.
        index: usize,
        /// What the kernel writes there.
        error: i32,
    },
    /// The kernel has no memory for the page table of one frame of the batch. As on Linux the call succeeds all the
    /// same: that frame, those before it in the same page table and all after it, as far as they are in the same block
    /// (512 frames, if pages have 4 KiB), are not mapped, and have halves of frame numbers in the place of errors.
    PageTable {
        /// Its place in the call, or the last if the call is shorter.
        index: usize,
    },
    /// Mapping a resource fails.
    MapResource(i32),
    /// A hypercall fails.
    Hypercall(i32),
    /// munmap(2) fails, and the mapping stays.
    Munmap(i32),
    /// munmap(2) succeeds, but Xen does not get its references back: an auto-translated kernel ignores a failing
    /// `XENMEM_remove_from_physmap`.
    Leak,
}

/// The faults to come, each with the calls that go well before it.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(usize, Fault)>);

impl Faults {
    pub(super) fn push(&mut self, after: usize, fault: Fault) {
        self.0.push((after, fault));
    }

    /// The fault that strikes this call, if any; `matches` picks those that can.
    pub(super) fn strike<T>(&mut self, matches: impl Fn(Fault) -> Option<T>) -> Option<T> {
        let (place, hit) = self.0.iter().enumerate().find_map(|(i, &(_, fault))| Some((i, matches(fault)?)))?;
        if let Some(rest) = self.0[place].0.checked_sub(1) {
            self.0[place].0 = rest;
            return None;
        }
        self.0.remove(place);
        Some(hit)
    }

    /// What the faulty frames of this call get.
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

/// The frames of a batch, which is mapped from `addr` on, that are not mapped for want of the page table that the one
/// at `index` needs. A PV kernel makes hypercalls for `at_once` frames each.
pub(super) fn without_page_table(
    index: usize,
    frames: usize,
    addr: usize,
    page_size: usize,
    at_once: usize,
) -> Range<usize> {
    // The kernel takes a page of frame numbers in at a time, and a page table is a page of entries.
    let (block, table) = (page_size / 8, page_size * (page_size / 8));
    let index = index.min(frames - 1);
    let block_start = index - index % block;
    let before = (addr + index * FRAME_SIZE) % table / FRAME_SIZE;
    let start = index.saturating_sub(before).max(block_start);
    start - (start - block_start) % at_once..frames.min(block_start + block)
}

/// What is in the place of the errors of a block's frames from the one at `start` on, if the kernel did not come to
/// them: it keeps errors where it has read the frame numbers before.
pub(super) fn leave_numbers(gfns: &[u64], errors: &mut [i32], start: usize) {
    for (index, error) in errors.iter_mut().enumerate().skip(start) {
        let halves = [gfns[index / 2] & u64::from(u32::MAX), gfns[index / 2] >> 32];
        *error = u32::try_from(halves[index % 2]).unwrap_or_default().cast_signed();
    }
}
