//! How long the search for RAM takes: until the counts add up, or everywhere if they never do, or until the caller
//! stops it.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::ops::Range;
use std::time::Duration;

use crate::common::{ReadOnly, mock, on_each_host, pfn, pfns};
use xenmap::mock::{Dom0, MockDomain};
use xenmap::{ForeignMemory, Gfn, Guest, GuestKind, NumberRange, RamMap, RamScan, Search};

fn gfns(pfns: Range<u64>) -> Vec<Gfn> {
    pfns.map(|pfn| Gfn::new(pfn).unwrap()).collect()
}

fn scan(guest: &Guest) -> RamScan {
    guest.scan(Search::default()).unwrap()
}

fn map_of(memory: &ForeignMemory, domain: &MockDomain) -> RamMap {
    Guest::open(memory, domain.domid()).unwrap().ram_map().unwrap()
}

/// 300 frames at the bottom, 200 in the middle and 100 at the top.
const LAYOUT: [Range<u64>; 3] = [0..300, 0x8000..0x80C8, 0xF_0000..0xF_0064];

fn layout() -> Vec<Gfn> {
    LAYOUT.into_iter().flat_map(gfns).collect()
}

#[test]
fn stopped_search_reports_what_is_left() {
    on_each_host(|host| {
        let far = 1 << 27;
        let domain = host.create(GuestKind::Hvm, 17);
        domain.populate(Gfn::new(far).unwrap());
        let memory = host.open();
        // The guest owns this frame, but no search finds it.
        let lost = memory.map_foreign_batch(domain.domid(), ReadOnly, &gfns(16..17)).unwrap();
        domain.balloon_out(Gfn::new(16).unwrap());

        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let mut scan = scan(&guest);
        for _ in 0..20 {
            assert!(scan.step().unwrap(), "the search takes many steps");
        }
        let left = scan.not_searched();
        assert!(left.iter().map(NumberRange::len).sum::<usize>() > 1 << 20, "{left:?}");
        // RAM is likely here, so it is searched first.
        let first = pfn(if host.is_arm() { 0x4_0000 } else { 0 });
        assert!(left.iter().all(|pfns| !pfns.contains(first)), "not searched yet: {left:?}");
        assert!(left.is_sorted_by_key(NumberRange::start));
        assert!(scan.idle_time() > Duration::ZERO);
        let map = scan.into_map();
        assert!(map.not_found() > 0);
        if !host.is_arm() {
            assert_eq!(map.ranges(), [0..16, far..far + 1]);
        }
        drop(lost);
    });
}

#[test]
fn finished_search_leaves_nothing() {
    on_each_host(|host| {
        let domain = host.create(GuestKind::Hvm, 100);
        domain.populate(Gfn::new(0x1_2345).unwrap());
        let memory = host.open();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let mut scan = scan(&guest);
        assert!(!scan.not_searched().is_empty());
        while scan.step().unwrap() {}
        // On Arm, only a full search finds RAM at 0.
        assert_eq!(scan.untried() == 0, host.is_arm());
        assert!(scan.not_searched().is_empty());
    });
}

#[test]
fn only_steps_that_find_nothing_count_as_idle() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Hvm, 4096);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let mut scan = scan(&guest);
    while scan.found() < 4096 {
        assert!(scan.step().unwrap());
        assert_eq!(scan.idle_time(), Duration::ZERO);
    }
}

#[test]
fn shared_frames_do_not_end_the_search() {
    for shared in LAYOUT {
        for dom0 in [Dom0::Pv, Dom0::Pvh] {
            let host = mock(dom0);
            let domain = host.create_domain(GuestKind::Hvm, 0);
            domain.populate(&layout());
            domain.share(&gfns(shared.clone()));
            let memory = host.open().unwrap();
            let info = memory.domain_info(domain.domid()).unwrap();
            assert_eq!(info.shared, Some(shared.end - shared.start));
            let map = map_of(&memory, &domain);
            assert_eq!((map.ranges(), map.not_found()), (LAYOUT.map(pfns).to_vec(), 0), "shared: {shared:x?}");
        }
    }
}

#[test]
fn all_ram_of_a_fork_is_found() {
    // The fork has its own copies of some frames, which Xen counts as the fork's.
    for own in [&[][..], &[0xF_0063], &[0, 0xF_0000], &[0x8000]] {
        let host = mock(Dom0::Pv);
        let parent = host.create_domain(GuestKind::Hvm, 0);
        parent.populate(&layout());
        let fork = parent.fork();
        for &pfn in own {
            fork.write(Gfn::new(pfn).unwrap(), 0, b"its own");
        }
        let memory = host.open().unwrap();
        assert_eq!(memory.current_reservation(fork.domid()).unwrap(), own.len() as u64);
        assert_eq!(map_of(&memory, &fork).ranges(), LAYOUT, "own: {own:x?}");
    }
}

#[test]
fn all_ram_of_a_fork_is_found_after_a_search_that_was_stopped() {
    let host = mock(Dom0::Pv);
    let parent = host.create_domain(GuestKind::Hvm, 0);
    parent.populate(&layout());
    let fork = parent.fork();
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, fork.domid()).unwrap();
    let mut stopped = scan(&guest);
    while stopped.found() < 400 {
        assert!(stopped.step().unwrap());
    }
    assert_eq!(stopped.into_map().ranges(), [0..300, 0xF_0000..0xF_0064]);
    // Now Xen counts exactly these.
    assert_eq!(memory.domain_info(fork.domid()).unwrap().shared, Some(400));
    assert_eq!(map_of(&memory, &fork).ranges(), LAYOUT);
}

#[test]
fn all_ram_of_a_fork_is_found_if_its_highest_frames_are_not_ram() {
    let host = mock(Dom0::Pv);
    let parent = host.create_domain(GuestKind::Hvm, 300);
    parent.populate(&gfns(0x8000..0x8001));
    parent.populate(&gfns(0xF_0000..0xF_0001));
    parent.balloon_out(Gfn::new(0xF_0000).unwrap());
    let memory = host.open().unwrap();
    assert_eq!(map_of(&memory, &parent.fork()).ranges(), [0..300, 0x8000..0x8001]);
}

#[test]
fn search_ends_early_if_counts_add_up() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Hvm, 300);
    domain.populate(&gfns(0xF_0000..0xF_0064));
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let mut scan = scan(&guest);
    let steps = std::iter::repeat_with(|| scan.step().unwrap()).take_while(|more| *more).count();
    assert!(steps < 10, "{steps} steps for 2 windows of RAM");
}
