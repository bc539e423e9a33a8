//! Each release of Xen understands one version of the toolstack's interfaces.

use crate::common::{ReadOnly, chain, mock_with};
use xenmap::mock::{Dom0, Fault, HostConfig, MockHost};
use xenmap::{DomainInfo, DomainState, Domid, Guest, GuestKind};

fn xen(minor: u16) -> MockHost {
    let mut config = HostConfig::default();
    config.xen = (4, minor);
    mock_with(config)
}

#[test]
fn every_release_from_4_11_to_4_22_gives_the_same_answers() {
    let answers = |minor| {
        let host = xen(minor);
        let guests = [GuestKind::Pv, GuestKind::Pvh, GuestKind::Hvm].map(|kind| host.create_domain(kind, 5));
        guests[1].pause();
        guests[2].set_name("third");
        let memory = host.open().unwrap();
        let domains = memory.domains().unwrap();
        for info in &domains {
            assert_eq!(memory.domain_info(info.domid).unwrap(), *info, "4.{minor}");
        }
        guests[0].destroy();
        assert_eq!(memory.domain_info(guests[0].domid()).unwrap_err().errno(), libc::ESRCH, "4.{minor}");
        assert!(memory.domctl_version().is_some(), "4.{minor}");
        domains
    };
    let expected = answers(17);
    assert_eq!(expected.len(), 4);
    for minor in 11..=22 {
        assert_eq!(answers(minor), expected, "4.{minor}");
    }
}

#[test]
fn unknown_release_reports_what_is_stable() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let mut config = HostConfig::default();
        (config.dom0, config.xen) = (dom0, (4, 30));
        let host = mock_with(config);
        let (pv, pvh) = (host.create_domain(GuestKind::Pv, 5), host.create_domain(GuestKind::Pvh, 6));
        pv.set_name("first");
        let memory = host.open().unwrap();
        assert_eq!(memory.domctl_version(), None);

        let mapping = memory.map_foreign_batch(pvh.domid(), ReadOnly, &pvh.frames()).unwrap();
        pvh.destroy();
        let domains = memory.domains().unwrap();
        let known = |info: &DomainInfo| (info.domid.get(), info.kind, info.pages, info.max_pages);
        let own = if dom0 == Dom0::Pv { GuestKind::Pv } else { GuestKind::Hvm };
        assert_eq!(
            domains.iter().map(known).collect::<Vec<_>>(),
            [(0, own, 4, Some(4)), (1, GuestKind::Pv, 5, Some(5)), (2, GuestKind::Hvm, 6, Some(6))]
        );
        for info in &domains {
            assert_eq!((info.state, info.paged_out, info.vcpus, info.handle), (None, None, None, None));
        }
        assert_eq!(domains[1].name.as_deref(), Some("first"));
        assert_eq!(memory.domain_info(pv.domid()).unwrap(), domains[1]);
        drop(mapping);
        assert_eq!(memory.domain_info(pvh.domid()).unwrap_err().errno(), libc::ESRCH);
    }
}

#[test]
fn unknown_release_cannot_pause() {
    let host = xen(30);
    let domain = host.create_domain(GuestKind::Hvm, 1);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    assert_eq!(
        chain(&guest.pause().unwrap_err()),
        "XEN_DOMCTL_pausedomain for domain 1 failed (this xen's toolstack interface has an unknown version, or its \
         policy forbids the call): Permission denied (os error 13)"
    );
    assert!(!domain.is_paused());
}

#[test]
fn domains_are_found_by_number_where_only_domctl_is_understood() {
    for minor in [17, 18] {
        let host = xen(minor);
        let guests = [GuestKind::Pvh, GuestKind::Pv].map(|kind| host.create_domain(kind, 1));
        guests[0].destroy();
        let expected = host.open().unwrap().domains().unwrap();
        let memory = host.open().unwrap();
        host.inject(Fault::Hypercall(libc::ENOSYS));
        assert_eq!(memory.domains().unwrap(), expected);
    }
}

#[test]
fn listing_costs_one_hypercall_per_domain() {
    let host = xen(22);
    let guest = host.create_domain(GuestKind::Pvh, 1);
    let memory = host.open().unwrap();
    assert_eq!(memory.domains().unwrap().len(), 2);
    memory.domain_info(guest.domid()).unwrap();
    let before = host.hypercalls().toolstack;
    memory.domains().unwrap();
    assert_eq!(host.hypercalls().toolstack - before, 3, "one per domain, and one that finds no more");
    memory.domain_info(guest.domid()).unwrap();
    assert_eq!(host.hypercalls().toolstack - before, 4);
}

#[test]
fn guest_is_found_by_its_name() {
    let host = xen(17);
    let guests = [GuestKind::Pv, GuestKind::Hvm].map(|kind| host.create_domain(kind, 1));
    guests[0].set_name("web");
    guests[1].set_name("db");
    let memory = host.open().unwrap();
    assert_eq!(memory.domain_by_name("db").unwrap(), Some(guests[1].domid()));
    assert_eq!(memory.domain_by_name("Domain-0").unwrap(), Domid::new(0).ok());
    assert_eq!(memory.domain_by_name("mail").unwrap(), None);
}

#[test]
fn paged_out_frames_are_counted_separately() {
    let host = xen(17);
    let guest = host.create_domain(GuestKind::Hvm, 4);
    guest.page_out(guest.frames()[1], 1).unwrap();
    let info = host.open().unwrap().domain_info(guest.domid()).unwrap();
    assert_eq!((info.pages, info.paged_out), (3, Some(1)));
}

#[test]
fn dying_guest_is_distinguished_from_a_paused_one() {
    let host = xen(17);
    let guest = host.create_domain(GuestKind::Hvm, 1);
    let memory = host.open().unwrap();
    let _mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    guest.pause();
    assert_eq!(memory.domain_info(guest.domid()).unwrap().state, Some(DomainState::Paused));
    guest.destroy();
    assert_eq!(memory.domain_info(guest.domid()).unwrap().state, Some(DomainState::Dying));
}
