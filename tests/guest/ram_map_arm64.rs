//! Finding a guest's RAM on Arm, where Xen does not say what a frame is.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::ops::Range;

use crate::common::{ReadOnly, lay_out, mock, mock_with, pfns};
use proptest::prelude::*;
use xenmap::mock::{Dom0, HostConfig, MockDomain, MockHost};
use xenmap::{FrameKind, Gfn, Guest, GuestKind, RamMap, Search};

const GRANT_TABLE: u64 = 0x3_8000;
const MAGIC_PAGES: u64 = 0x3_9000;
const BANK_0: u64 = 0x4_0000;
const BANK_1: u64 = 0x20_0000;

fn gfns(pfns: Range<u64>) -> Vec<Gfn> {
    pfns.map(|pfn| Gfn::new(pfn).unwrap()).collect()
}

fn gfn(pfn: u64) -> Gfn {
    Gfn::new(pfn).unwrap()
}

/// Creates a guest as the toolstack does, with `frames` frames in the first bank.
fn usual_guest(host: &MockHost, frames: u64) -> MockDomain {
    let guest = host.create_domain(GuestKind::Pvh, 0);
    guest.populate(&gfns(MAGIC_PAGES..MAGIC_PAGES + 4));
    guest.populate(&gfns(BANK_0..BANK_0 + frames));
    for gfn in gfns(GRANT_TABLE..GRANT_TABLE + 2) {
        guest.lend(gfn);
    }
    guest
}

/// Returns a guest's map, and how many frames were tried for it.
fn map_of(host: &MockHost, guest: &MockDomain) -> (RamMap, u64) {
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, guest.domid()).unwrap();
    let before = host.hypercalls().memory_op;
    let map = guest.ram_map().unwrap();
    // Each is mapped and unmapped.
    (map, (host.hypercalls().memory_op - before) / 2)
}

fn extents(map: &RamMap) -> Vec<(Range<u64>, FrameKind)> {
    map.extents().iter().map(|extent| (extent.pfns.numbers(), extent.kind)).collect()
}

#[test]
fn usual_guest_costs_little_more_than_its_ram() {
    let host = mock(Dom0::Arm);
    let guest = usual_guest(&host, 10_000);
    let (map, tried) = map_of(&host, &guest);
    let expected = [
        (GRANT_TABLE..GRANT_TABLE + 2, FrameKind::Special),
        (MAGIC_PAGES..MAGIC_PAGES + 4, FrameKind::Ram),
        (BANK_0..BANK_0 + 10_000, FrameKind::Ram),
    ];
    assert_eq!((extents(&map), map.not_found()), (expected.to_vec(), 0));
    assert!(tried <= 10_000 + 1100, "{tried}");
    assert_eq!(host.references(guest.domid()), 0);
}

#[test]
fn toolstack_is_asked_only_for_what_arm_has() {
    let host = mock(Dom0::Arm);
    let guest = usual_guest(&host, 5000);
    let memory = host.open().unwrap();
    memory.domctl_version().unwrap();
    let guest = Guest::open(&memory, guest.domid()).unwrap();
    let before = host.hypercalls().toolstack;
    assert_eq!(guest.ram_map().unwrap().count(FrameKind::Ram), 5004);
    assert_eq!(host.hypercalls().toolstack - before, 1, "the domain's state");
}

#[test]
fn ram_in_both_banks_is_found_and_the_gap_is_not_tried() {
    let host = mock(Dom0::Arm);
    let guest = usual_guest(&host, 1000);
    guest.populate(&gfns(0xF_F000..0x10_0000));
    guest.populate(&gfns(BANK_1..BANK_1 + 3000));
    guest.set_max_frames(0xC_0000 + 4 + 3000);
    let (map, tried) = map_of(&host, &guest);
    assert_eq!(map.ranges()[2..], [BANK_0..BANK_0 + 1000, 0xF_F000..0x10_0000, BANK_1..BANK_1 + 3000]);
    assert_eq!((map.count(FrameKind::Ram), map.not_found()), (4 + 1000 + 0x1000 + 3000, 0));
    assert!(tried <= 0xC_0000 + 3000 + 1100, "{tried}");
}

#[test]
fn frames_left_after_shrinking_a_guest_are_found() {
    let host = mock(Dom0::Arm);
    let guest = host.create_domain(GuestKind::Pvh, 0);
    let left = [BANK_1 + 7, BANK_1 + 5000, BANK_1 + 20_001];
    guest.populate(&left.map(gfn));
    guest.set_max_frames(3);
    let (map, _) = map_of(&host, &guest);
    assert_eq!((map.ranges(), map.not_found()), (left.map(|pfn| pfns(pfn..pfn + 1)).to_vec(), 0));
}

#[test]
fn high_foreign_frames_cost_nothing_extra() {
    let host = mock(Dom0::Arm);
    // Some of these numbers have more than the 32 bits that the kernel returns from a hypercall.
    for far in [0xFFF_FFFF, 1 << 31, 1 << 32, 1 << 36] {
        let guest = usual_guest(&host, 5000);
        // Xen refuses to map another guest's frame. All that remains of it is the highest frame number.
        guest.populate(&[gfn(far)]);
        guest.balloon_out(gfn(far));
        let (map, tried) = map_of(&host, &guest);
        assert_eq!((map.count(FrameKind::Ram), map.not_found()), (5004, 0), "{far:#x}");
        assert!(tried <= 5000 + 1100, "{tried}");
    }
}

#[test]
fn frames_that_were_ballooned_out_are_in_no_extent() {
    let host = mock(Dom0::Arm);
    let guest = usual_guest(&host, 20_000);
    // Every seventh frame, and a piece larger than one step of the search.
    let given_back = |pfn: &u64| pfn.is_multiple_of(7) || (5000..9000).contains(pfn);
    for pfn in (0..20_000).filter(given_back) {
        guest.balloon_out(gfn(BANK_0 + pfn));
    }
    let (map, tried) = map_of(&host, &guest);
    let left = (0..20_000).filter(|pfn| !given_back(pfn)).count() as u64;
    assert_eq!((map.count(FrameKind::Ram), map.not_found()), (4 + left, 0));
    assert!(tried <= 20_000 + 1100, "{tried}");
}

/// Creates a host whose dom0 has memory for `frames` mapped frames.
fn host_with_memory_for(frames: usize) -> MockHost {
    let mut config = HostConfig::default();
    (config.dom0, config.dom0_free_frames) = (Dom0::Arm, Some(frames));
    mock_with(config)
}

#[test]
fn little_memory_for_mappings_is_enough() {
    for free in [1, 100, 1023] {
        let host = host_with_memory_for(free);
        let guest = usual_guest(&host, 3000);
        // A block that the search finds by trying one frame of each block.
        guest.populate(&gfns(0x2_0000..0x2_0200));
        for gfn in gfns(BANK_0 + 100..BANK_0 + 110) {
            guest.balloon_out(gfn);
        }
        let (map, _) = map_of(&host, &guest);
        let expected = [
            (0x2_0000..0x2_0200, FrameKind::Ram),
            (GRANT_TABLE..GRANT_TABLE + 2, FrameKind::Special),
            (MAGIC_PAGES..MAGIC_PAGES + 4, FrameKind::Ram),
            (BANK_0..BANK_0 + 100, FrameKind::Ram),
            (BANK_0 + 110..BANK_0 + 3000, FrameKind::Ram),
        ];
        assert_eq!((extents(&map), map.not_found()), (expected.to_vec(), 0), "{free} frames");
    }
}

#[test]
fn no_memory_for_a_single_frame_is_a_clear_error() {
    let host = host_with_memory_for(0);
    let guest = usual_guest(&host, 8);
    let memory = host.open().unwrap();
    let error = Guest::open(&memory, guest.domid()).unwrap().ram_map().unwrap_err().to_string();
    assert!(error.contains("map less at a time"), "{error}");
}

#[test]
fn blocks_elsewhere_are_found_by_one_frame_of_each() {
    let host = mock(Dom0::Arm);
    let guest = usual_guest(&host, 1000);
    // ACPI tables, and RAM at the machine's own addresses. In two of the blocks, the frame that is tried is missing.
    let blocks = 0x1000_0000;
    let elsewhere =
        [0x2_0000..0x2_0003, blocks + 1..blocks + 1024, blocks + 1025..blocks + 1500, 0x1234_5600..0x1234_5800];
    for pfns in &elsewhere {
        guest.populate(&gfns(pfns.clone()));
    }
    let (map, tried) = map_of(&host, &guest);
    let ranges = map.ranges();
    assert_eq!(ranges[0], elsewhere[0]);
    assert_eq!(ranges[4..], elsewhere[1..]);
    assert_eq!(map.not_found(), 0);
    assert!(tried <= 0x1234_5800 / 512 + 9000, "{tried}");
}

#[test]
fn blocks_that_follow_each_other_are_tried_once() {
    let host = mock(Dom0::Arm);
    let guest = usual_guest(&host, 1000);
    // 8 blocks, in which every other frame is ballooned out.
    let blocks: Vec<Gfn> = gfns(0x1000_0000..0x1000_1000).into_iter().step_by(2).collect();
    guest.populate(&blocks);
    let (map, tried) = map_of(&host, &guest);
    assert_eq!((map.count(FrameKind::Ram), map.not_found()), (4 + 1000 + 0x800, 0));
    // One frame per block, as many frames in the bank as it owns, and all frames of the 8 blocks and their neighbours.
    assert!(tried <= 0x1000_1000 / 512 + (4 + 1000 + 0x800) + 1100 + 10 * 512, "{tried}");
}

#[test]
fn search_for_missing_frames_stops_at_the_highest_possible_frame() {
    let host = mock(Dom0::Arm);
    let guest = usual_guest(&host, 1000);
    let memory = host.open().unwrap();
    let _mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns(BANK_0..BANK_0 + 3)).unwrap();
    for gfn in gfns(BANK_0..BANK_0 + 3) {
        guest.balloon_out(gfn);
    }
    let (map, tried) = map_of(&host, &guest);
    assert_eq!((map.count(FrameKind::Ram), map.not_found()), (4 + 997, 3));
    // All frames below its highest once, and one in 512 a second time.
    assert!(tried <= BANK_0 + 1000 + BANK_0 / 512, "{tried}");
}

#[test]
fn every_frame_is_tried_on_request() {
    let host = mock(Dom0::Arm);
    let guest = usual_guest(&host, 1000);
    guest.lend(gfn(0x3_8777));
    let memory = host.open().unwrap();
    let opened = Guest::open(&memory, guest.domid()).unwrap();
    let mut scan = opened.scan(Search::EveryFrame).unwrap();
    while scan.step().unwrap() {}
    assert_eq!(extents(&scan.into_map())[1], (0x3_8777..0x3_8778, FrameKind::Special));
}

#[test]
fn without_the_toolstacks_interface_the_map_is_the_same() {
    let mut config = HostConfig::default();
    (config.dom0, config.xen) = (Dom0::Arm, (4, 30));
    let host = mock_with(config);
    let guest = usual_guest(&host, 2000);
    let (map, tried) = map_of(&host, &guest);
    assert_eq!((map.count(FrameKind::Special), map.count(FrameKind::Ram)), (2, 2004));
    assert!(tried <= 2000 + 1100, "{tried}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_layout_below_8_gib_is_found(
        pieces in prop::collection::vec((0_u64..40_000, 1_u64..1500), 1..8),
    ) {
        let host = mock(Dom0::Arm);
        let guest = host.create_domain(GuestKind::Pvh, 0);
        let expected = lay_out(&guest, pieces);
        let (map, _) = map_of(&host, &guest);
        prop_assert_eq!(map.ranges(), expected);
    }
}
