//! Listing, describing and pausing domains.

use crate::common::{HANDLE, Host, ReadOnly, ThenChild, in_child, in_own_process, mock, on_each_host, with_each_guest};
use xenmap::mock::{Dom0, MockDomain, MockHost};
use xenmap::{DomainInfo, DomainState, Domid, Error, ForeignMapping, ForeignMemory, Guest, GuestKind};

fn state(host: &Host, domid: Domid) -> Option<DomainState> {
    host.open().domain_info(domid).ok()?.state
}

fn listed(memory: &ForeignMemory, domid: Domid) -> Option<DomainInfo> {
    memory.domains().expect("a list").into_iter().find(|info| info.domid == domid)
}

#[test]
fn created_guest_is_listed_with_its_details() {
    on_each_host(|host| {
        for &kind in host.distinguished_kinds() {
            let guest = host.create(kind, 10);
            guest.start();
            let memory = host.open();
            let info = memory.domain_info(guest.domid()).unwrap();
            assert_eq!((info.domid, info.kind, info.pages), (guest.domid(), kind, 10));
            assert_eq!(info.state, Some(DomainState::Running));
            assert!(info.max_pages.unwrap() >= 10, "{info:?}");
            assert_eq!((info.paged_out, info.vcpus), (Some(0), Some(0)));
            assert_eq!((info.handle, &info.name), (Some(HANDLE), &None));
            assert_eq!(listed(&memory, guest.domid()), Some(info));
        }
    });
}

#[test]
fn domains_are_listed_once_in_ascending_order() {
    on_each_host(|host| {
        let guests: Vec<crate::common::Guest> =
            host.distinguished_kinds().iter().map(|kind| host.create(*kind, 1)).collect();
        let domids: Vec<Domid> = host.open().domains().unwrap().iter().map(|info| info.domid).collect();
        assert!(domids.is_sorted_by(|a, b| a < b), "{domids:?}");
        assert!(guests.iter().all(|guest| domids.contains(&guest.domid())), "{domids:?}");
        assert!(!domids.contains(&Domid::XEN) && !domids.contains(&host.unused_domid()), "{domids:?}");
    });
}

#[test]
fn own_domain_is_listed() {
    on_each_host(|host| {
        let own = host.open().domains().unwrap().remove(0);
        assert_eq!(own.domid.get(), 0);
        assert_eq!(own.kind, host.own_kind());
        assert_eq!(own.state, Some(DomainState::Running));
        assert!(own.pages > 0 && own.vcpus > Some(0), "{own:?}");
        assert_eq!(own.handle, Some([0; 16]));
    });
}

#[test]
fn frames_that_were_ballooned_out_are_no_longer_its_pages() {
    with_each_guest(10, |host, guest| {
        guest.balloon_out(guest.gfns()[3]);
        let info = host.open().domain_info(guest.domid()).unwrap();
        assert_eq!(info.pages, 9);
        assert!(info.max_pages.unwrap() >= 10, "{info:?}");
    });
}

#[test]
fn unused_domid_is_no_such_domain() {
    with_each_guest(1, |host, guest| {
        let memory = host.open();
        // For an unused number, Xen up to 4.17 itself returns the next domain.
        let below = Domid::new(guest.domid().get() - 1).unwrap();
        let unused = [host.unused_domid(), Domid::XEN].into_iter().chain((below.get() != 0).then_some(below));
        for domid in unused.filter(|domid| listed(&memory, *domid).is_none()) {
            assert_eq!(memory.domain_info(domid).unwrap_err().errno(), libc::ESRCH);
            assert_eq!(memory.guest_kind(domid).unwrap_err().errno(), libc::ESRCH);
        }
    });
}

#[test]
fn destroyed_guest_whose_frames_are_mapped_is_dying() {
    with_each_guest(10, |host, mut guest| {
        let memory = host.open();
        let mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()[..4]).unwrap();
        guest.destroy();
        let info = listed(&memory, guest.domid()).unwrap();
        assert_eq!((info.state, info.pages, info.kind), (Some(DomainState::Dying), 4, guest.kind()));
        assert_eq!(memory.domain_info(guest.domid()).unwrap(), info);

        drop(mapping);
        assert_eq!(listed(&memory, guest.domid()), None);
        assert_eq!(memory.domain_info(guest.domid()).unwrap_err().errno(), libc::ESRCH);
    });
}

#[test]
#[expect(unsafe_code, reason = "makes a hypercall that the library uses only on unknown releases")]
fn stable_call_reports_the_kind_of_a_dying_domain() {
    const HVM_OP: u64 = 34;
    const GET_PARAM: u64 = 1;
    with_each_guest(1, |host, mut guest| {
        let memory = host.open();
        let mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        guest.destroy();
        let mut argument = memory.hypercall_buffer(16).unwrap();
        argument.bytes_mut()[..2].copy_from_slice(&guest.domid().get().to_ne_bytes());
        argument.bytes_mut()[4] = 1; // HVM_PARAM_STORE_PFN
        // SAFETY: Xen reads and writes the 16 bytes of `argument`, which lives until after the call.
        let answer = unsafe { memory.hypercall("hvm_op", HVM_OP, [GET_PARAM, argument.address(), 0, 0, 0]) };
        let is_pv = answer.is_err_and(|e| e.errno() == libc::EINVAL);
        assert_eq!(is_pv, guest.kind() == GuestKind::Pv);
        drop(mapping);
    });
}

#[test]
fn guest_is_paused_until_the_guard_is_dropped() {
    with_each_guest(1, |host, target| {
        target.start();
        let memory = host.open();
        let guest = Guest::open(&memory, target.domid()).unwrap();
        let paused = guest.pause().unwrap();
        assert_eq!(state(host, target.domid()), Some(DomainState::Paused));
        drop(paused);
        assert_eq!(state(host, target.domid()), Some(DomainState::Running));
    });
}

#[test]
fn guest_that_was_paused_before_stays_paused() {
    with_each_guest(1, |host, target| {
        target.start();
        let memory = host.open();
        let guest = Guest::open(&memory, target.domid()).unwrap();
        let (first, second) = (guest.pause().unwrap(), guest.pause().unwrap());
        target.pause();
        drop((first, second));
        assert_eq!(state(host, target.domid()), Some(DomainState::Paused));
        target.unpause();
        assert_eq!(state(host, target.domid()), Some(DomainState::Running));
    });
}

#[test]
fn child_that_drops_its_copy_leaves_the_guest_paused() {
    in_own_process("domains::child_that_drops_its_copy_leaves_the_guest_paused", || {
        with_each_guest(1, |host, target| {
            target.start();
            let memory = host.open();
            let guest = Guest::open(&memory, target.domid()).unwrap();
            let mut paused = Some(guest.pause().unwrap());
            let in_parent = std::cell::Cell::new(None);
            let good = in_child(
                |wait| {
                    paused.take();
                    wait();
                    // The child has its own copy of the mock's state.
                    state(host, target.domid()) == Some(DomainState::Paused)
                },
                || {
                    in_parent.set(state(host, target.domid()));
                    ThenChild::Continues
                },
            );
            assert!(good);
            assert_eq!(in_parent.get(), Some(DomainState::Paused));
            drop(paused);
            assert_eq!(state(host, target.domid()), Some(DomainState::Running));
        });
    });
}

#[test]
fn destroying_a_paused_guest_is_harmless() {
    with_each_guest(1, |host, mut target| {
        let memory = host.open();
        let guest = Guest::open(&memory, target.domid()).unwrap();
        let paused = guest.pause().unwrap();
        target.destroy();
        drop(paused);
        assert_eq!(guest.pause().unwrap_err().errno(), libc::ESRCH);
    });
}

#[test]
fn restricted_handle_learns_nothing_and_pauses_nothing() {
    with_each_guest(1, |host, target| {
        target.start();
        let memory = host.open();
        let guest = Guest::open(&memory, target.domid()).unwrap();
        let paused = guest.pause().unwrap();
        memory.restrict(target.domid()).unwrap();

        assert_eq!(memory.domains().unwrap_err().errno(), libc::EPERM);
        assert_eq!(memory.domain_info(target.domid()).unwrap_err().errno(), libc::EPERM);
        assert_eq!(guest.pause().unwrap_err().errno(), libc::EPERM);
        drop(paused);
        assert_eq!(state(host, target.domid()), Some(DomainState::Paused), "the restricted handle cannot unpause it");

        let memory = host.open();
        memory.restrict(target.domid()).unwrap();
        assert_eq!(memory.domctl_version(), None);
        assert_eq!(memory.domains().unwrap_err().errno(), libc::EPERM);
        assert_eq!(memory.domain_info(target.domid()).unwrap_err().errno(), libc::EPERM);
    });
}

/// Creates guests with these names on a simulated host.
fn named(names: &[&str]) -> (MockHost, Vec<MockDomain>) {
    let host = mock(Dom0::Pv);
    let create = |name: &&str| {
        let guest = host.create_domain(GuestKind::Hvm, 1);
        guest.set_name(name);
        guest
    };
    let guests = names.iter().map(create).collect();
    (host, guests)
}

/// Destroys a guest, but leaves its name in xenstore. The guest stays dying until the mapping is dropped.
fn leave_dying(memory: &ForeignMemory, guest: &MockDomain, name: &str) -> ForeignMapping {
    let mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).expect("frames of the guest");
    guest.destroy();
    guest.set_name(name);
    mapping
}

#[test]
fn name_of_several_domains_is_ambiguous() {
    let (host, guests) = named(&["we\nb", "db", "we\nb"]);
    let memory = host.open().unwrap();
    let error = memory.domain_by_name("we\nb").unwrap_err();
    let Error::AmbiguousName { name, domids } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), domids.as_slice()), ("we\nb", &[guests[0].domid(), guests[2].domid()][..]));
    assert_eq!(error.to_string(), r#"2 domains are called "we\nb": 1, 3; choose one by its number"#);
    assert_eq!(memory.domain_by_name("db").unwrap(), Some(guests[1].domid()));
}

#[test]
fn dying_domain_does_not_hide_a_living_one() {
    let (host, guests) = named(&["web"; 4]);
    let memory = host.open().unwrap();
    let _mappings = [&guests[0], &guests[3]].map(|guest| leave_dying(&memory, guest, "web"));
    let error = memory.domain_by_name("web").unwrap_err();
    assert_eq!(error.to_string(), r#"2 domains are called "web": 2, 3; choose one by its number"#);
    guests[1].destroy();
    assert_eq!(memory.domain_by_name("web").unwrap(), Some(guests[2].domid()));
}

#[test]
fn dying_domain_is_found_by_its_name_if_there_is_no_other() {
    let (host, guests) = named(&["web"; 2]);
    let memory = host.open().unwrap();
    let mut mappings: Vec<_> = guests.iter().map(|guest| leave_dying(&memory, guest, "web")).collect();
    let error = memory.domain_by_name("web").unwrap_err();
    assert_eq!(error.to_string(), r#"2 domains are called "web": 1, 2; choose one by its number"#);
    mappings.remove(0);
    assert_eq!(memory.domain_by_name("web").unwrap(), Some(guests[1].domid()));
    mappings.clear();
    assert_eq!(memory.domain_by_name("web").unwrap(), None);
}
