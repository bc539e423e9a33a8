//! Hypercalls and their buffers.

use crate::common::{ReadOnly, chain, mock_with, on_each_host, on_each_host_with_pv_guests, with_each_guest};
use xenmap::mock::{Dom0, Fault, HostConfig};
use xenmap::{Error, Gfn, GuestKind, HostKind};

#[test]
fn current_reservation_counts_frames_until_the_domain_is_gone() {
    with_each_guest(10, |host, mut guest| {
        let memory = host.open();
        assert_eq!(memory.current_reservation(guest.domid()).unwrap(), 10);
        guest.destroy();
        let error = memory.current_reservation(guest.domid()).unwrap_err();
        assert_eq!(
            chain(&error),
            format!(
                "XENMEM_current_reservation for domain {} failed (no such domain): No such process (os error 3)",
                guest.domid()
            )
        );
    });
}

#[test]
fn maximum_gpfn_is_the_highest_frame_the_guest_ever_had() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 1000);
        assert_eq!(host.open().maximum_gpfn(guest.domid()).unwrap(), 999);
        guest.balloon_out(guest.gfns()[999]);
        assert_eq!(host.open().maximum_gpfn(guest.domid()).unwrap(), 999);
    });
}

#[test]
fn maximum_gpfn_of_a_pv_guest_that_has_not_started_is_zero() {
    on_each_host_with_pv_guests(|host| {
        let pv = host.create(GuestKind::Pv, 1000);
        assert_eq!(host.open().maximum_gpfn(pv.domid()).unwrap(), 0);
    });
}

#[test]
fn guest_kinds_are_distinguished() {
    with_each_guest(1, |host, guest| {
        assert_eq!(host.open().guest_kind(guest.domid()).unwrap(), guest.kind());
        assert_eq!(host.open().guest_kind(host.unused_domid()).unwrap_err().errno(), libc::ESRCH);
    });
}

#[test]
fn frames_of_a_pv_guest_are_below_the_highest_ram_page() {
    on_each_host_with_pv_guests(|host| {
        let guest = host.create(GuestKind::Pv, 8);
        let highest = host.open().maximum_ram_page().unwrap();
        assert!(guest.gfns().iter().all(|gfn| gfn.get() <= highest));
    });
}

#[test]
fn version_and_capabilities_are_those_of_the_hypervisor() {
    on_each_host(|host| {
        let memory = host.open();
        let version = memory.xen_version().unwrap();
        assert_eq!((version.major, version.minor), (4, 17));
        assert!(version.extra.starts_with('.'), "{version}");
        let capabilities = memory.xen_capabilities().unwrap();
        assert!(capabilities.split(' ').any(|c| c == host.capability()), "{capabilities}");
    });
}

#[test]
fn buffers_are_zeroed_and_of_any_size() {
    on_each_host(|host| {
        let memory = host.open();
        for len in [1, 8, 4096, 4097, 100_000] {
            let mut buffer = memory.hypercall_buffer(len).unwrap();
            assert_eq!((buffer.len(), buffer.is_empty()), (len, false));
            assert!(buffer.bytes().iter().all(|&byte| byte == 0));
            buffer.bytes_mut().fill(7);
            assert_eq!(buffer.bytes()[len - 1], 7);
        }
        assert!(matches!(memory.hypercall_buffer(0), Err(Error::HypercallBuffer { bytes: 0, .. })));
        assert!(matches!(memory.hypercall_buffer(usize::MAX), Err(Error::HypercallBuffer { .. })));
    });
}

#[test]
#[expect(unsafe_code, reason = "makes a hypercall")]
fn hypercall_that_xen_does_not_have_is_an_error() {
    on_each_host(|host| {
        // SAFETY: Xen has no hypercall with this number, and refuses it.
        let result = unsafe { host.open().hypercall("nothing", 63, [0; 5]) };
        assert_eq!(result.unwrap_err().errno(), libc::ENOSYS);
    });
}

#[test]
fn host_kind_comes_from_xen_if_sysfs_lacks_it() {
    for (dom0, kind) in [(Dom0::Pv, HostKind::Pv), (Dom0::Pvh, HostKind::AutoTranslated)] {
        let mut config = HostConfig::default();
        config.dom0 = dom0;
        config.sysfs = false;
        let host = mock_with(config);
        assert_eq!(host.open().unwrap().host_kind(), kind);
        host.inject(Fault::Hypercall(libc::EPERM));
        let memory = host.open().unwrap();
        assert_eq!(memory.host_kind(), HostKind::Unknown);
        let guest = host.create_domain(GuestKind::Hvm, 1);
        memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    }
}

#[test]
fn large_result_is_not_truncated() {
    for (dom0, xen, is_whole) in [
        (Dom0::Pv, (4, 11), true),
        (Dom0::Arm, (4, 11), true),
        (Dom0::Pvh, (4, 16), true),
        // Without multicalls, large results cannot be returned.
        (Dom0::Pvh, (4, 15), false),
    ] {
        let mut config = HostConfig::default();
        (config.dom0, config.xen) = (dom0, xen);
        let host = mock_with(config);
        let guest = host.create_domain(GuestKind::Hvm, 1);
        let memory = host.open().unwrap();
        assert_eq!(memory.maximum_gpfn(guest.domid()).unwrap(), 0, "{dom0:?}, xen {xen:?}");
        guest.populate(&[Gfn::new(1 << 31).unwrap()]);
        let answer = memory.maximum_gpfn(guest.domid()).map_err(|e| e.errno());
        assert_eq!(answer, if is_whole { Ok(1 << 31) } else { Err(libc::EOVERFLOW) }, "{dom0:?}, xen {xen:?}");
    }
}
