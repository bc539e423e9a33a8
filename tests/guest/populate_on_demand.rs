//! Populate-on-demand guests: what is refused so that they survive.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::ops::Range;

use crate::common::{Host, ReadOnly, ReadWrite, mock, on_each_host, pfns};
use xenmap::mock::Dom0;
use xenmap::{Access, DomainState, Error, ForeignMemory, FrameKind, Gfn, Guest, GuestKind, Search};

fn gfns(pfns: Range<u64>) -> Vec<Gfn> {
    pfns.map(|pfn| Gfn::new(pfn).unwrap()).collect()
}

/// Runs a test with a guest of 16 frames and 64 unpopulated ones, which share a pool of `pool` frames, on each host
/// that has such guests. List the test in tests/xen/x86-only.txt.
fn with_guest(pool: usize, test: impl Fn(&crate::common::Guest, &ForeignMemory)) {
    on_each_host(|host: &Host| {
        if host.is_arm() {
            assert!(matches!(host, Host::Mock(_)), "Arm has no such guests: list this test in tests/xen/x86-only.txt");
            return;
        }
        let domain = host.create(GuestKind::Hvm, 16);
        // Xen reclaims frames of zeros before it crashes a guest.
        domain.number_frames();
        domain.populate_on_demand(&gfns(16..80), pool);
        test(&domain, &host.open());
    });
}

fn state(memory: &ForeignMemory, guest: &Guest) -> DomainState {
    memory.domain_info(guest.domid()).unwrap().state.unwrap()
}

fn unpopulated_and_pool(memory: &ForeignMemory, guest: &Guest) -> (u64, u64) {
    let on_demand = memory.populate_on_demand(guest.domid()).unwrap();
    (on_demand.unpopulated, on_demand.pool)
}

#[test]
fn search_for_ram_is_refused_before_a_frame_is_touched() {
    with_guest(8, |domain, memory| {
        let guest = Guest::open(memory, domain.domid()).unwrap();
        let before = state(memory, &guest);
        let error = guest.ram_map().unwrap_err();
        assert!(matches!(error, Error::PopulateOnDemand { unpopulated: 64, pool: 8, .. }), "{error}");
        assert!(matches!(guest.scan(Search::EveryFrame), Err(Error::PopulateOnDemand { .. })));
        assert_eq!(unpopulated_and_pool(memory, &guest), (64, 8));
        assert_eq!(state(memory, &guest), before);
        assert_eq!(error.errno(), libc::EAGAIN);
        let domid = domain.domid();
        assert_eq!(
            error.to_string(),
            format!(
                "domain {domid} is populated on demand, and touching all of its memory would crash it (64 frames have \
                 no memory yet, and 8 are set aside): wait until its balloon driver has started"
            )
        );
    });
}

#[test]
fn all_ram_is_found_once_the_guest_has_ballooned_down() {
    with_guest(8, |domain, memory| {
        let guest = Guest::open(memory, domain.domid()).unwrap();
        for gfn in gfns(20..76) {
            domain.balloon_out(gfn);
        }
        assert_eq!(unpopulated_and_pool(memory, &guest), (8, 8));
        let map = guest.ram_map().unwrap();
        assert_eq!(map.ranges(), [0..20, 76..80]);
        assert_eq!((map.count(FrameKind::Ram), map.not_found()), (24, 0));
        assert_eq!(unpopulated_and_pool(memory, &guest), (0, 0));
        assert_ne!(state(memory, &guest), DomainState::Shutdown);
    });
}

#[test]
fn memory_of_returned_frames_goes_to_the_pool() {
    with_guest(8, |domain, memory| {
        let guest = Guest::open(memory, domain.domid()).unwrap();
        domain.balloon_out(Gfn::new(3).unwrap());
        assert_eq!(unpopulated_and_pool(memory, &guest), (64, 9));
        // The pool never holds more than the unpopulated frames need.
        for gfn in gfns(16..73) {
            domain.balloon_out(gfn);
        }
        assert_eq!(unpopulated_and_pool(memory, &guest), (7, 7));
        assert_eq!(memory.current_reservation(domain.domid()).unwrap(), 15 + 7);
    });
}

#[test]
fn mapping_populates_until_the_pool_is_empty_and_then_crashes_the_guest() {
    with_guest(8, |domain, memory| {
        let guest = Guest::open(memory, domain.domid()).unwrap();
        let mapping = guest.map(ReadWrite, pfns(16..24)).unwrap();
        crate::common::number(&mapping);
        mapping.view().write(0, u64::MAX).unwrap(); // was 0
        assert_eq!(unpopulated_and_pool(memory, &guest), (56, 0));
        assert!(guest.check_populated().is_err());
        assert_ne!(state(memory, &guest), DomainState::Shutdown);
        assert!(guest.map(ReadOnly, pfns(24..25)).is_err());
        assert_eq!(state(memory, &guest), DomainState::Shutdown);
    });
}

#[test]
fn other_guests_are_not_populated_on_demand() {
    on_each_host(|host| {
        for kind in host.guest_kinds() {
            let domain = host.create(*kind, 16);
            let memory = host.open();
            let guest = Guest::open(&memory, domain.domid()).unwrap();
            assert_eq!(unpopulated_and_pool(&memory, &guest), (0, 0));
            guest.check_populated().unwrap();
        }
    });
}

#[test]
fn missing_domain_is_an_error() {
    on_each_host(|host| {
        let (memory, domid) = (host.open(), host.unused_domid());
        // On Arm, the call does not ask Xen.
        let expected = if host.is_arm() { None } else { Some(libc::ESRCH) };
        assert_eq!(memory.populate_on_demand(domid).err().map(|e| e.errno()), expected);
    });
}

#[test]
fn populating_search_tries_all_frames() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = mock(dom0);
        let domain = host.create_domain(GuestKind::Pvh, 16);
        domain.populate_on_demand(&gfns(16..80), 8);
        domain.populate(&gfns(0xF_C000..0xF_C009));
        let memory = host.open().unwrap();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let mut scan = guest.scan_populating(Search::default()).unwrap();
        while scan.step().unwrap() {}
        assert_eq!(scan.into_map().ranges(), [0..24, 0xF_C000..0xF_C009]);
        assert!(domain.has_crashed());
    }
}
