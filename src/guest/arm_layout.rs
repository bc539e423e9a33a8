//! Where a guest's RAM is on Arm, as Xen's toolstack lays it out (xen/include/public/arch-arm.h, `GUEST_*_BASE` and
//! `GUEST_*_SIZE`, the same from Xen 4.11 to 4.22).

use std::ops::Range;

use super::route::SearchRange;

/// Where Xen's toolstack maps a guest's grant table.
const GRANT_TABLE: Range<u64> = 0x3_8000..0x3_9000;
/// Pages for the console, xenstore and so on, which the guest owns.
const MAGIC_PAGES: Range<u64> = 0x3_9000..0x3_A000;
/// The banks of RAM. A guest has RAM in the second one only if the first is full.
const BANKS: [Range<u64>; 2] = [0x4_0000..0x10_0000, 0x20_0000..0x1000_0000];

/// How many frames of a grant table to search. By default, Xen allows a guest 64.
const MAX_GRANT_FRAMES: u64 = 1024;
/// How many magic pages to search. There are 4.
const MAX_MAGIC_PAGES: u64 = 16;

/// Frames in a block of 2 MiB, the size in which Xen allocates memory where it can.
pub(super) const BLOCK: u64 = 512;

/// Returns whether a frame that can be mapped belongs to Xen.
pub(super) fn is_special(pfn: u64) -> bool {
    GRANT_TABLE.contains(&pfn)
}

/// Returns the ranges to search, in order, for the RAM of a guest that may own up to `max_pages` frames, all below
/// `end`.
///
/// First come the places where the toolstack puts RAM. If the guest owns more, it may have ACPI tables (at 512 MiB), or
/// its addresses may be the machine's (Xen's "direct-map") with large blocks of RAM anywhere: so one frame of each
/// block comes next. If RAM is still missing, every other frame in and below the two banks follows: a guest that was
/// ballooned down frame by frame may have kept any of them.
pub(super) fn ranges(end: u64, max_pages: u64) -> Vec<SearchRange> {
    let [low, high] = BANKS;
    let in_low = max_pages.min(low.end - low.start);
    let in_high = (max_pages - in_low).min(high.end - high.start);
    let likely = [
        GRANT_TABLE.start..GRANT_TABLE.start + MAX_GRANT_FRAMES,
        MAGIC_PAGES.start..MAGIC_PAGES.start + MAX_MAGIC_PAGES,
        low.start..low.start + in_low,
        high.start..high.start + in_high,
    ];
    let mut gaps: Vec<Range<u64>> = Vec::new();
    let mut next = 0;
    for pfns in &likely {
        gaps.push(next..pfns.start);
        next = pfns.end;
    }
    let far = next..end;
    let rest_of_high = next..high.end;

    let every_frame = |pfns, needed| SearchRange { pfns, step: 1, needed };
    let one_of_each_block =
        |pfns: Range<u64>| SearchRange { pfns: pfns.start / BLOCK * BLOCK..pfns.end, step: BLOCK, needed: false };
    let mut ranges: Vec<SearchRange> = likely.into_iter().map(|pfns| every_frame(pfns, true)).collect();
    ranges.extend(gaps.iter().cloned().chain([far]).map(one_of_each_block));
    ranges.extend(gaps.into_iter().chain([rest_of_high]).map(|pfns| every_frame(pfns, false)));
    for range in &mut ranges {
        range.pfns.end = range.pfns.end.min(end);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ranges to search, as (start, end, step), without empty ones.
    fn searched(end: u64, max_pages: u64) -> Vec<(u64, u64, u64)> {
        let all = ranges(end, max_pages).into_iter().filter(|range| !range.pfns.is_empty());
        all.map(|range| (range.pfns.start, range.pfns.end, range.step)).collect()
    }

    #[test]
    fn ram_of_a_guest_of_128_mib_is_searched_in_the_first_bank() {
        let likely = [(0x3_8000, 0x3_8400, 1), (0x3_9000, 0x3_9010, 1), (0x4_0000, 0x4_8000, 1)];
        let gaps = [(0, 0x3_8000), (0x3_8400, 0x3_9000), (0x3_9010, 0x4_0000)];
        let sparse = gaps.map(|(start, end)| (start / BLOCK * BLOCK, end, BLOCK));
        let dense = gaps.map(|(start, end)| (start, end, 1));
        assert_eq!(searched(0x4_8000, 0x8100), [likely, sparse, dense].concat());
    }

    #[test]
    fn every_frame_in_and_below_the_banks_is_searched_and_every_block_above() {
        for max_pages in [0, 1000, 0xC_0000, 0xC_0001, 0xFF_FFFF, u64::MAX] {
            for (step, end) in [(1, 0x1000_0000), (BLOCK, 1 << 40)] {
                let mut all = searched(1 << 40, max_pages);
                all.retain(|&(.., of_range)| of_range <= step);
                all.sort_unstable();
                let mut next = 0;
                for (start, end, _) in all {
                    assert!(start <= next, "{max_pages:#x}: {next:#x}");
                    next = next.max(end);
                }
                assert!(next >= end, "{max_pages:#x}: {next:#x}");
            }
        }
    }
}
