//! `restrict`: a handle for one domain.

use crate::common::{ReadOnly, failures, mock_with, with_each_guest};
use xenmap::mock::HostConfig;
use xenmap::{Access, Error, Guest, GuestKind, Resource};

#[test]
fn restricted_handle_maps_its_own_domain_only() {
    with_each_guest(2, |host, guest| {
        let other = host.create(GuestKind::Hvm, 2);
        let memory = host.open();
        let before = memory.map_foreign_batch(other.domid(), ReadOnly, &other.gfns()).unwrap();
        memory.restrict(guest.domid()).unwrap();

        memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        let refused = memory.map_foreign_batch(other.domid(), ReadOnly, &other.gfns());
        assert!(matches!(refused, Err(Error::MapBatch { .. })) && refused.unwrap_err().errno() == libc::EPERM);
        assert_eq!(memory.resource_size(other.domid(), Resource::GrantTable).unwrap_err().errno(), libc::EPERM);
        assert_eq!(before.view().read::<u8>(0).unwrap(), 0, "earlier mappings stay");
        host.open().map_foreign_batch(other.domid(), ReadOnly, &other.gfns()).unwrap();
    });
}

#[test]
fn restriction_of_a_clone_holds_for_all_clones() {
    with_each_guest(1, |host, guest| {
        let other = host.create(GuestKind::Hvm, 1);
        let memory = host.open();
        let other_guest = Guest::open(&memory, other.domid()).unwrap();
        memory.clone().restrict(guest.domid()).unwrap();

        memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        let refused = memory.map_foreign_batch(other.domid(), ReadOnly, &other.gfns());
        assert_eq!(refused.unwrap_err().errno(), libc::EPERM);
        let refused = other_guest.memory().map_foreign_batch(other.domid(), ReadOnly, &other.gfns());
        assert_eq!(refused.unwrap_err().errno(), libc::EPERM);
    });
}

#[test]
fn restricted_handle_makes_no_hypercalls() {
    with_each_guest(1, |host, guest| {
        let memory = host.open();
        memory.restrict(guest.domid()).unwrap();
        for error in [
            memory.current_reservation(guest.domid()).unwrap_err(),
            memory.maximum_gpfn(guest.domid()).unwrap_err(),
            memory.xen_version().unwrap_err(),
        ] {
            assert_eq!(error.errno(), libc::EPERM);
            assert!(error.to_string().ends_with("(no privilege, or the handle is restricted)"), "{error}");
        }
    });
}

#[test]
fn restriction_is_permanent() {
    with_each_guest(1, |host, guest| {
        let other = host.create(GuestKind::Hvm, 1);
        let memory = host.open();
        memory.restrict(guest.domid()).unwrap();
        memory.restrict(guest.domid()).unwrap();
        assert_eq!(memory.restrict(other.domid()).unwrap_err().errno(), libc::EINVAL);
    });
}

#[test]
fn handle_in_a_domu_is_restricted_from_the_start() {
    let mut config = HostConfig::default();
    config.unprivileged = Some(None);
    let host = mock_with(config.clone());
    let guest = host.create_domain(GuestKind::Hvm, 1);
    let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
    assert_eq!(result.unwrap_err().errno(), libc::EPERM);

    config.unprivileged = Some(Some(guest.domid()));
    let host = mock_with(config);
    let (target, other) = (host.create_domain(GuestKind::Hvm, 1), host.create_domain(GuestKind::Hvm, 1));
    let memory = host.open().unwrap();
    memory.map_foreign_batch(target.domid(), ReadOnly, &target.frames()).unwrap();
    assert_eq!(memory.map_foreign_batch(other.domid(), ReadOnly, &other.frames()).unwrap_err().errno(), libc::EPERM);
}

#[test]
fn kernel_without_restrict_is_a_clear_error() {
    let mut config = HostConfig::default();
    config.kernel = (4, 10);
    let host = mock_with(config);
    let guest = host.create_domain(GuestKind::Hvm, 1);
    let error = host.open().unwrap().restrict(guest.domid()).unwrap_err();
    assert!(error.to_string().contains("linux 4.11"), "{error}");
    let gone = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &[xenmap::Gfn::MAX]);
    assert_eq!(failures(gone), [(0, libc::EINVAL)]);
}
