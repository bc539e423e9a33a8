//! `map_resource` and `resource_size`.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use crate::common::{FRAME, Guest, Host, ReadOnly, ReadWrite, mock_with, with_each_guest};
use xenmap::mock::HostConfig;
use xenmap::{Access, Error, GuestKind, Resource};

/// Runs a test with a guest that has a grant table, as every guest of a real Xen does.
fn with_grant_table(test: impl Fn(&Host, Guest)) {
    with_each_guest(1, |host, guest| {
        if let Host::Mock(mock) = host {
            mock.domain(guest.domid()).unwrap().add_resource(Resource::GrantTable, 4);
        }
        test(host, guest);
    });
}

#[test]
fn grant_table_has_the_size_that_the_toolstack_chose() {
    with_grant_table(|host, guest| {
        assert_eq!(host.open().resource_size(guest.domid(), Resource::GrantTable).unwrap(), 4);
    });
}

#[test]
fn resource_is_mapped_and_shared() {
    with_grant_table(|host, guest| {
        let (memory, frames) = (host.open(), host.most_resource_frames());
        let first = 3 - u32::try_from(frames).unwrap();
        let mapping = memory.map_resource(guest.domid(), ReadWrite, Resource::GrantTable, first, frames).unwrap();
        assert_eq!((mapping.frames(), mapping.view().len()), (frames, frames * FRAME));
        // With flags 0, an entry of a grant table grants nothing.
        mapping.view().write((frames - 1) * FRAME + 12, 0xABCD_u32).unwrap();
        let again = memory.map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 2, 1).unwrap();
        assert_eq!(again.view().read::<u32>(12).unwrap(), 0xABCD);
        assert!(matches!(again.view().write(12, 0_u32), Err(Error::ReadOnly { .. })));
    });
}

#[test]
fn several_frames_are_refused_on_kernels_with_larger_pages() {
    with_grant_table(|host, guest| {
        let result = host.open().map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 0, 2);
        if host.most_resource_frames() == 2 {
            assert_eq!(result.unwrap().frames(), 2);
        } else {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::ResourceFrames { frames: 2, .. }), "{error:?}");
            assert!(error.to_string().ends_with("bytes: map them one by one"), "{error}");
        }
    });
}

#[test]
fn missing_resource_is_a_clear_error() {
    with_grant_table(|host, guest| {
        let memory = host.open();
        let error = memory.map_resource(guest.domid(), ReadOnly, Resource::IoreqServer { id: 7 }, 0, 1).unwrap_err();
        assert!(matches!(error, Error::Resource { .. }), "{error}");
        let frames = host.most_resource_frames();
        let first = 5 - u32::try_from(frames).unwrap();
        let error = memory.map_resource(guest.domid(), ReadOnly, Resource::GrantTable, first, frames).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains("it has fewer frames"), "{error}");
        let error = memory.map_resource(host.unused_domid(), ReadOnly, Resource::GrantTable, 0, 1).unwrap_err();
        assert_eq!(error.errno(), libc::ESRCH);
    });
}

#[test]
fn resource_mapping_is_unmapped_when_the_domain_goes() {
    with_grant_table(|host, mut guest| {
        let mapping = host.open().map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 0, 1).unwrap();
        assert_eq!(mapping.view().read::<u8>(100).unwrap(), 0);
        drop(mapping);
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn kernel_without_resources_is_a_clear_error() {
    let mut config = HostConfig::default();
    config.kernel = (4, 17);
    let host = mock_with(config.clone());
    let guest = host.create_domain(GuestKind::Hvm, 1);
    guest.add_resource(Resource::GrantTable, 4);
    let memory = host.open().unwrap();
    let error = memory.map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 0, 1).unwrap_err();
    assert!(error.to_string().contains("linux 4.18"), "{error}");

    config.kernel = (5, 11);
    let host = mock_with(config);
    let guest = host.create_domain(GuestKind::Hvm, 1);
    guest.add_resource(Resource::GrantTable, 4);
    let error = host.open().unwrap().resource_size(guest.domid(), Resource::GrantTable).unwrap_err();
    assert!(error.to_string().contains("linux 5.12"), "{error}");
}

#[test]
fn xen_that_reports_one_size_for_all_resources_is_a_clear_error() {
    for xen in [(4, 11), (4, 12), (4, 14), (4, 15), (4, 22)] {
        let mut config = HostConfig::default();
        config.xen = xen;
        let host = mock_with(config);
        let guest = host.create_domain(GuestKind::Hvm, 1);
        guest.add_resource(Resource::GrantTable, 4);
        let memory = host.open().unwrap();
        let restricted = host.open().unwrap();
        restricted.restrict(guest.domid()).unwrap();

        for memory in [memory, restricted] {
            let size = memory.resource_size(guest.domid(), Resource::GrantTable);

            if xen >= (4, 15) {
                assert_eq!(size.unwrap(), 4, "xen {xen:?}");
                continue;
            }
            let error = size.unwrap_err();
            assert!(matches!(error, Error::ResourceSize { .. }), "xen {xen:?}: {error:?}");
            assert_eq!(error.errno(), libc::EOPNOTSUPP, "xen {xen:?}");
            assert!(error.to_string().contains("needs xen 4.15"), "{error}");
        }
    }
}

#[test]
fn size_of_a_missing_resource_is_a_clear_error() {
    with_grant_table(|host, guest| {
        let memory = host.open();
        let error = memory.resource_size(guest.domid(), Resource::Vmtrace { vcpu: 9 }).unwrap_err();
        assert!(matches!(error, Error::ResourceSize { .. }), "{error:?}");
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains("size of the resource"), "{error}");
        let error = memory.resource_size(host.unused_domid(), Resource::GrantTable).unwrap_err();
        assert_eq!(error.errno(), libc::ESRCH);
    });
}
