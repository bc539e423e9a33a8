//! Finding a guest's RAM.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::ops::Range;

use crate::common::{Host, ReadOnly, lay_out, mock, mock_with, on_each_host, pfns};
use proptest::prelude::*;
use xenmap::mock::{Dom0, Fault, HostConfig, Hypercalls, MockDomain, MockHost, PvHole, PvKernel};
use xenmap::{
    Domid, Error, ForeignMemory, FrameKind, Gfn, Guest, GuestKind, InvalidNumber, NumberRange, Pfn, RamMap, Search,
};

fn gfns(pfns: Range<u64>) -> Vec<Gfn> {
    pfns.map(|pfn| Gfn::new(pfn).unwrap()).collect()
}

fn map_of(memory: &ForeignMemory, domid: Domid) -> RamMap {
    Guest::open(memory, domid).unwrap().ram_map().unwrap()
}

fn every_frame_of(memory: &ForeignMemory, domid: Domid) -> RamMap {
    let guest = Guest::open(memory, domid).unwrap();
    let mut scan = guest.scan(Search::EveryFrame).unwrap();
    while scan.step().unwrap() {}
    scan.into_map()
}

fn extents(map: &RamMap) -> Vec<(Range<u64>, FrameKind)> {
    map.into_iter().map(|extent| (extent.pfns.numbers(), extent.kind)).collect()
}

fn sum(cost: Hypercalls) -> u64 {
    cost.mmu_update + cost.mmuext_op + cost.pte_writes + cost.memory_op + cost.toolstack
}

/// Creates a host whose toolstack interface is unknown.
fn old_host(dom0: Dom0) -> MockHost {
    let mut config = HostConfig::default();
    (config.dom0, config.xen) = (dom0, (4, 10));
    mock_with(config)
}

/// Creates a guest with 192 MiB from 0 on, and a few frames below 4 GiB.
fn usual_guest(host: &MockHost) -> MockDomain {
    let guest = host.create_domain(GuestKind::Hvm, 192 << 8);
    guest.populate(&gfns(0xF_EFF8..0xF_F000));
    guest.lend(Gfn::new(1).unwrap());
    guest
}

#[test]
fn frames_that_were_ballooned_out_are_in_no_extent() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 300);
        for gfn in gfns(60..62).into_iter().chain(gfns(298..300)) {
            guest.balloon_out(gfn);
        }
        let map = map_of(&host.open(), guest.domid());
        assert_eq!(extents(&map), [(0..60, FrameKind::Ram), (62..298, FrameKind::Ram)]);
        assert_eq!(map.count(FrameKind::Ram), 296);
    });
}

#[test]
fn ram_after_a_large_hole_is_found() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 100);
        guest.populate(Gfn::new(0x2_0000).unwrap());
        guest.populate(Gfn::new(0x1_2345).unwrap());
        let memory = host.open();
        let ranges = [0..100, 0x1_2345..0x1_2346, 0x2_0000..0x2_0001];
        assert_eq!(map_of(&memory, guest.domid()).ranges(), ranges);
    });
}

#[test]
fn trying_every_frame_finds_the_same() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 100);
        guest.balloon_out(Gfn::new(50).unwrap());
        guest.populate(Gfn::new(0x800).unwrap());
        assert_eq!(every_frame_of(&host.open(), guest.domid()).ranges(), [0..50, 51..100, 0x800..0x801]);
    });
}

#[test]
fn scan_reports_its_progress() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 100);
        guest.populate(Gfn::new(5000).unwrap());
        let memory = host.open();
        let guest = Guest::open(&memory, guest.domid()).unwrap();
        let mut scan = guest.scan(Search::default()).unwrap();
        let untried = scan.untried();
        assert_eq!((scan.found(), scan.owned()), (0, 101));
        assert!(scan.step().unwrap());
        if host.searches_from_the_top() {
            assert_eq!((untried, scan.untried()), (5001, 5001 - 1024));
            assert_eq!(scan.found(), 1, "the search starts at the top");
        }
        while scan.step().unwrap() {}
        assert_eq!(scan.found(), 101);
    });
}

#[test]
fn domain_that_is_gone_is_an_error() {
    on_each_host(|host: &Host| {
        let mut domain = host.create(GuestKind::Hvm, 3000);
        let memory = host.open();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let mut scan = guest.scan(Search::default()).unwrap();
        assert!(scan.step().unwrap());
        domain.destroy();
        let error = std::iter::repeat_with(|| scan.step()).take(100).find_map(Result::err);
        assert_eq!(error.expect("the search ends").errno(), libc::ESRCH);
    });
}

#[test]
fn domain_that_dies_is_an_error_even_while_it_is_mapped() {
    on_each_host(|host| {
        let mut domain = host.create(GuestKind::Hvm, 3000);
        let memory = host.open();
        let mapping = memory.map_foreign_batch(domain.domid(), ReadOnly, &gfns(0..1)).unwrap();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let mut scan = guest.scan(Search::default()).unwrap();
        assert!(scan.step().unwrap());
        domain.destroy();
        let error = std::iter::repeat_with(|| scan.step()).take(100).find_map(Result::err);
        assert_eq!(error.expect("missing frames are reported").errno(), libc::ESRCH);
        drop(mapping);
    });
}

#[test]
fn domain_that_dies_is_an_error_where_frames_are_tried_by_mapping() {
    let host = old_host(Dom0::Pvh);
    let domain = host.create_domain(GuestKind::Hvm, 3000);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let mut scan = guest.scan(Search::default()).unwrap();
    assert!(scan.step().unwrap());
    domain.destroy();
    assert_eq!(scan.step().unwrap_err().errno(), libc::ESRCH);
}

#[test]
fn pv_guest_that_dies_is_an_error() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Pv, 20_000);
    domain.start_kernel(&PvKernel::default());
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let mut scan = guest.scan(Search::default()).unwrap();
    assert!(scan.step().unwrap());
    domain.destroy();
    assert_eq!(scan.step().unwrap_err().errno(), libc::ESRCH);
}

#[test]
fn usual_layout_costs_at_most_1000_hypercalls() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = mock(dom0);
        let guest = usual_guest(&host);
        let memory = host.open().unwrap();
        let before = sum(host.hypercalls());
        let map = map_of(&memory, guest.domid());
        let cost = sum(host.hypercalls()) - before;
        let ram = FrameKind::Ram;
        let expected = [(0..1, ram), (1..2, FrameKind::Special), (2..0xC000, ram), (0xF_EFF8..0xF_F000, ram)];
        assert_eq!(extents(&map), expected);
        assert!(cost <= 1000, "{cost} in a {dom0:?} dom0");
    }
}

#[test]
fn guest_that_gave_back_every_other_frame_costs_little_more() {
    let host = mock(Dom0::Pvh);
    let guest = usual_guest(&host);
    for gfn in gfns(1000..40_000).into_iter().step_by(2) {
        guest.balloon_out(gfn);
    }
    let memory = host.open().unwrap();
    let before = sum(host.hypercalls());
    assert_eq!(map_of(&memory, guest.domid()).count(FrameKind::Ram), 0xC000 + 8 - 1 - 19_500);
    assert!(sum(host.hypercalls()) - before <= 1000);
}

#[test]
fn without_the_toolstacks_interface_frames_are_tried_by_mapping() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = old_host(dom0);
        let guest = host.create_domain(GuestKind::Hvm, 5000);
        guest.balloon_out(Gfn::new(77).unwrap());
        guest.populate(&gfns(0x6000..0x6010));
        // By mapping, these look like RAM, so the count of frames found must not end the search.
        for gfn in gfns(0xF000..0xF020) {
            guest.lend(gfn);
        }
        let memory = host.open().unwrap();
        let ranges = [0..77, 78..5000, 0x6000..0x6010, 0xF000..0xF020];
        assert_eq!(map_of(&memory, guest.domid()).ranges(), ranges);
    }
}

#[test]
fn frame_that_fails_in_another_way_is_not_taken_for_paged_out() {
    for errno in [libc::EPERM, libc::EBUSY, libc::EACCES, libc::EFAULT, libc::ESRCH] {
        let host = old_host(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, 100);
        let memory = host.open().unwrap();
        host.inject(Fault::Frame { index: 50, error: -errno });
        let map = map_of(&memory, guest.domid());
        assert_eq!(extents(&map), [(0..50, FrameKind::Ram), (51..100, FrameKind::Ram)], "errno {errno}");
    }
}

#[test]
fn run_that_grows_during_the_search_is_followed_to_its_end() {
    on_each_host(|host| {
        let domain = host.create(GuestKind::Hvm, 1024);
        domain.populate(Gfn::new(9999).unwrap());
        let memory = host.open();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let mut scan = guest.scan(Search::default()).unwrap();
        // Directly after the frames that the guest owned, which one step finds.
        for gfn in gfns(1024..1030) {
            domain.populate(gfn);
        }
        while scan.step().unwrap() {}
        assert_eq!(scan.into_map().ranges()[0], 0..1030);
    });
}

#[test]
fn failed_step_can_be_retried() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 3000);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, guest.domid()).unwrap();
    let mut scan = guest.scan(Search::default()).unwrap();
    assert!(scan.step().unwrap());
    host.inject(Fault::Hypercall(libc::ENOMEM));
    assert_eq!(scan.step().unwrap_err().errno(), libc::ENOMEM);
    while scan.step().unwrap() {}
    assert_eq!(scan.into_map().count(FrameKind::Ram), 3000);
}

#[test]
fn frames_outside_the_map_are_counted() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Pvh, 64);
        let memory = host.open();
        let _mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()[10..13]).unwrap();
        for &gfn in &guest.gfns()[10..13] {
            guest.balloon_out(gfn);
        }
        let map = map_of(&memory, guest.domid());
        assert_eq!((map.ranges(), map.not_found()), (vec![pfns(0..10), pfns(13..64)], 3));
    });
}

#[test]
fn enomem_is_not_taken_for_an_unknown_xen() {
    let host = mock(Dom0::Pv);
    let memory = host.open().unwrap();
    host.inject(Fault::Hypercall(libc::ENOMEM));
    assert_eq!(memory.domctl_version(), None);
    assert_eq!(memory.domctl_version(), Some(0x15));
}

#[test]
fn too_many_frames_are_an_error() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 1);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, guest.domid()).unwrap();
    assert!(matches!(guest.map(ReadOnly, pfns(0..1 << 38)), Err(Error::TooManyFrames { .. })));
    assert!(matches!(NumberRange::<Pfn>::try_from(0..u64::MAX), Err(InvalidNumber::Frame { .. })));
}

#[test]
fn broken_and_paged_out_frames_are_distinguished() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 3000);
    guest.break_frame(Gfn::new(10).unwrap());
    for gfn in gfns(20..22) {
        guest.page_out(gfn, u32::MAX).unwrap();
    }
    let memory = host.open().unwrap();
    let expected = [
        (0..10, FrameKind::Ram),
        (10..11, FrameKind::Broken),
        (11..20, FrameKind::Ram),
        (20..22, FrameKind::PagedOut),
        (22..3000, FrameKind::Ram),
    ];
    let start = std::time::Instant::now();
    assert_eq!(extents(&map_of(&memory, guest.domid())), expected);
    assert!(start.elapsed() < std::time::Duration::from_secs(4), "it waited for the frames");
}

#[test]
fn paged_out_frames_are_found_wherever_they_are() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 10_000);
    guest.populate(&gfns(100_000..100_100));
    for gfn in gfns(3000..3200).into_iter().chain(gfns(100_000..100_099)) {
        guest.page_out(gfn, u32::MAX).unwrap();
    }
    let map = map_of(&host.open().unwrap(), guest.domid());
    assert_eq!(map.count(FrameKind::PagedOut), 299);
    assert_eq!(map.ranges(), [0..10_000, 100_000..100_100]);
}

#[test]
fn frames_of_xen_are_found_by_trying_every_frame() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = mock(dom0);
        let guest = host.create_domain(GuestKind::Hvm, 100);
        guest.populate(&gfns(9000..9001));
        for gfn in gfns(5000..5032) {
            guest.lend(gfn);
        }
        let memory = host.open().unwrap();
        assert_eq!(map_of(&memory, guest.domid()).count(FrameKind::Special), 0);
        let map = every_frame_of(&memory, guest.domid());
        assert_eq!(extents(&map)[1], (5000..5032, FrameKind::Special));
        assert_eq!(map.count(FrameKind::Ram), 101);
    }
}

#[test]
fn ram_scattered_over_64_gib_is_found_completely() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 0);
    // 256 MiB: pieces of up to 120 frames, one large piece, and the last frame.
    let mut pieces: Vec<Range<u64>> = (0..1024_u64).map(|i| (i * 16_381)..(i * 16_381 + 1 + i * 7 % 120)).collect();
    pieces.push((1 << 24) - 1..1 << 24);
    let missing = (256 << 8) - pieces.iter().map(|piece| piece.end - piece.start).sum::<u64>();
    pieces.push((1 << 24) - 5000 - missing..(1 << 24) - 5000);
    pieces.sort_by_key(|piece| piece.start);
    guest.populate(&pieces.iter().cloned().flat_map(gfns).collect::<Vec<Gfn>>());
    let map = map_of(&host.open().unwrap(), guest.domid());
    assert_eq!(map.ranges(), pieces);
}

#[test]
fn pv_guests_ram_is_where_its_p2m_says() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = mock(dom0);
        let guest = host.create_domain(GuestKind::Pv, 2000);
        let mut kernel = PvKernel::default();
        kernel.holes.push((pfns(160..256), PvHole::Identity));
        kernel.holes.push((pfns(1000..1010), PvHole::BalloonedOut));
        kernel.holes.push((pfns(1010..1012), PvHole::Foreign));
        guest.start_kernel(&kernel);
        let memory = host.open().unwrap();
        let map = map_of(&memory, guest.domid());
        let tables = map.count(FrameKind::PageTable);
        assert!(tables >= 4, "{tables}");
        let gone = (160..256, FrameKind::BalloonedOut);
        assert_eq!(
            extents(&map)[..4],
            [(0..160, FrameKind::Ram), gone, (256..1000, FrameKind::Ram), (1000..1012, FrameKind::BalloonedOut)]
        );
        let owned = memory.current_reservation(guest.domid()).unwrap();
        assert_eq!(map.count(FrameKind::Ram) + tables, owned);
        assert_eq!(map.ranges().last().unwrap().end(), owned + 96 + 12);
    }
}

#[test]
fn pv_guest_that_lists_the_same_frames_repeatedly_is_an_error() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Pv, 2000);
    let mut kernel = PvKernel::default();
    kernel.holes.push((pfns(100_000..200_000), PvHole::BalloonedOut));
    kernel.has_linear = false;
    guest.start_kernel(&kernel);
    // All entries of the list point to the same frame of the table.
    let memory = host.open().unwrap();
    let list_list = u64::from_ne_bytes(guest.read(guest.shared_info(), 3096, 8).try_into().unwrap());
    let list = u64::from_ne_bytes(guest.read(Gfn::new(list_list).unwrap(), 0, 8).try_into().unwrap());
    let list = Gfn::new(list).unwrap();
    let first = guest.read(list, 0, 8);
    guest.write(list, 0, &first.repeat(512));
    let error = Guest::open(&memory, guest.domid()).unwrap().ram_map().unwrap_err();
    assert!(error.to_string().ends_with("it names the same frames over and over"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_layout_is_found(
        pieces in prop::collection::vec((0_u64..3000, 1_u64..3000), 1..12),
        dom0 in prop::sample::select(vec![Dom0::Pv, Dom0::Pvh]),
        old in any::<bool>(),
    ) {
        let host = if old { old_host(dom0) } else { mock(dom0) };
        let guest = host.create_domain(GuestKind::Hvm, 0);
        let expected = lay_out(&guest, pieces);
        let map = map_of(&host.open().unwrap(), guest.domid());
        prop_assert_eq!(map.ranges(), expected.clone());
        prop_assert_eq!(map.count(FrameKind::Ram), expected.iter().map(|range| range.end - range.start).sum::<u64>());
    }
}
