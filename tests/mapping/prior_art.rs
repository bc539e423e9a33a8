//! This library must not have the defects of other libraries that map foreign memory.

use std::time::Duration;

use crate::common::{
    FRAME, ReadOnly, ReadWrite, ThenChild, failures, in_child, in_own_process, leaks, mock, number, numbers,
    on_each_host, with_each_guest,
};
use xenmap::mock::{Dom0, Fault};
use xenmap::{
    Access, Domid, Error, ForeignMapping, ForeignMemory, Gfn, GuestKind, HypercallBuffer, InvalidNumber, Resource,
    ResourceMapping, View, leaked_mappings,
};

#[test]
fn defect_1_errors_of_frames_are_not_lost_when_the_ioctl_succeeds() {
    with_each_guest(4, |host, guest| {
        let mut gfns = guest.gfns();
        gfns[1] = guest.hole();
        assert_eq!(failures(host.open().map_foreign_batch(guest.domid(), ReadOnly, &gfns)).len(), 1);
        let partial = host.open().map_foreign_batch_partial(guest.domid(), ReadOnly, &gfns).unwrap();
        assert_eq!(partial.failed().len(), 1);
    });
}

#[test]
fn defect_2_paged_out_frames_are_found_whatever_the_call_returned() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 32);
    for frame in [0, 31] {
        guest.page_out(guest.frames()[frame], 1).unwrap();
        host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    }
}

#[test]
fn defect_3_retries_end() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 1);
    guest.page_out(guest.frames()[0], u32::MAX).unwrap();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::from_millis(20));
    assert_eq!(failures(memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames())), [(0, libc::ENOENT)]);
}

#[test]
fn defect_4_count_is_that_of_the_frames_given() {
    with_each_guest(8, |host, guest| {
        guest.number_frames();
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()[2..5]).unwrap();
        assert_eq!(numbers(&mapping), [2, 3, 4]);
        assert_eq!(mapping.view().len(), 3 * FRAME);
    });
}

#[test]
fn defect_5_numbers_are_never_truncated() {
    assert_eq!(Domid::try_from(70_000), Err(InvalidNumber::Domid { number: 70_000 }));
    assert!(matches!(Domid::try_from(u64::from(u32::MAX)), Err(InvalidNumber::Domid { .. })));
    assert!(matches!(Gfn::new(1 << 52), Err(InvalidNumber::Frame { .. })));
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 1);
        // 2^32 + 1 frames, which a 32-bit count would truncate to 1.
        let result = host.open().map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 0, (1 << 32) + 1);
        assert!(result.is_err());
        let result = host.open().map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 0, usize::MAX);
        assert!(matches!(result, Err(Error::TooManyFrames { .. })));
    });
}

/// Fails to compile if the type has the trait, because two implementations then match.
macro_rules! assert_is_not {
    ($type:ty: $($bound:tt)+) => {{
        trait IsAmbiguous<Which> {
            fn check() {}
        }
        impl<T: ?Sized> IsAmbiguous<()> for T {}
        impl<T: ?Sized + $($bound)+> IsAmbiguous<u8> for T {}
        <$type as IsAmbiguous<_>>::check();
    }};
}

#[test]
fn defect_6_no_reference_into_guest_memory_is_handed_out() {
    assert_is_not!(ForeignMapping: std::ops::Deref);
    assert_is_not!(ForeignMapping: AsRef<[u8]>);
    assert_is_not!(ForeignMapping: std::borrow::Borrow<[u8]>);
    assert_is_not!(ResourceMapping: std::ops::Deref);
    assert_is_not!(ResourceMapping: AsRef<[u8]>);
    assert_is_not!(View<'_>: std::ops::Deref);
    assert_is_not!(View<'_>: AsRef<[u8]>);
    assert_is_not!(View<'_>: std::ops::Index<usize>);
}

#[test]
fn defect_7_what_unmaps_or_closes_cannot_be_cloned() {
    assert_is_not!(ForeignMapping: Clone);
    assert_is_not!(ResourceMapping: Clone);
    assert_is_not!(HypercallBuffer: Clone);
}

#[test]
fn defect_7_handle_is_closed_by_its_last_clone() {
    with_each_guest(1, |host, guest| {
        let map = |memory: &ForeignMemory| {
            memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).map(|mapping| numbers(&mapping))
        };
        let first = host.open();
        let second = first.clone();
        let third = second.clone();
        drop(first);
        assert_eq!(map(&second).unwrap(), [0]);
        drop(second);
        assert_eq!(map(&third).unwrap(), [0]);
    });
}

#[test]
fn defect_7_each_mapping_is_unmapped_once() {
    with_each_guest(4, |host, mut guest| {
        let memory = host.open();
        let one = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        let other = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        drop(one);
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), Some(4));
        assert_eq!(numbers(&other), [0; 4]);
        drop(other);
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn defect_8_mapping_is_released_when_a_later_step_fails() {
    with_each_guest(4, |host, mut guest| {
        let mut gfns = guest.gfns();
        gfns.push(guest.hole());
        assert_eq!(failures(host.open().map_foreign_batch(guest.domid(), ReadWrite, &gfns)).len(), 1);
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn defect_9_what_the_kernel_writes_is_seen_in_release_builds_too() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 3);
        if let crate::common::Host::Mock(mock) = host {
            mock.domain(guest.domid()).unwrap().add_resource(Resource::GrantTable, 4);
        }
        // The kernel writes to the argument, to an array, and to a buffer.
        assert_eq!(host.open().resource_size(guest.domid(), Resource::GrantTable).unwrap(), 4);
        let gfns = [guest.hole()];
        assert_eq!(failures(host.open().map_foreign_batch(guest.domid(), ReadOnly, &gfns)), [(0, libc::EINVAL)]);
        assert!(!host.open().xen_capabilities().unwrap().is_empty());
    });
}

#[test]
fn defect_10_unaligned_address_is_read_where_it_is() {
    with_each_guest(2, |host, guest| {
        guest.write(guest.gfns()[0], FRAME - 3, b"abc");
        guest.write(guest.gfns()[1], 0, b"def");
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        let mut text = [0; 6];
        mapping.view().read_bytes(FRAME - 3, &mut text).unwrap();
        assert_eq!(&text, b"abcdef");
        assert_eq!(mapping.view().read::<u32>(FRAME - 2).unwrap(), u32::from_ne_bytes(*b"bcde"));
    });
}

#[test]
fn defect_11_no_failure_panics() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 2);
    let memory = host.open().unwrap();
    let mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    assert!(mapping.view().read::<u64>(usize::MAX).is_err());
    let _count = leaks();
    let before = leaked_mappings();
    host.inject(Fault::Munmap(libc::ENOMEM));
    drop(mapping);
    assert!(leaked_mappings() > before);
    guest.destroy();
    assert!(memory.map_foreign_batch(guest.domid(), ReadOnly, &[Gfn::MAX]).is_err());
}

#[test]
fn defect_12_failed_fixed_mapping_releases_the_rest_of_the_reservation() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 16 * 1024 + 1);
    let memory = host.open().unwrap();
    host.inject_after(1, Fault::Mmap(libc::ENOMEM));
    assert!(memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).is_err());
    let mapping = memory.map_foreign_batch(guest.domid(), ReadWrite, &guest.frames()).unwrap();
    number(&mapping);
    assert_eq!(mapping.view().read::<u64>(16 * 1024 * FRAME).unwrap(), 16 * 1024);
}

#[test]
fn defect_13_resource_of_no_frames_is_an_error_and_protection_is_honoured() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 1);
        if let crate::common::Host::Mock(mock) = host {
            mock.domain(guest.domid()).unwrap().add_resource(Resource::GrantTable, 4);
        }
        let memory = host.open();
        let none = memory.map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 0, 0);
        assert!(matches!(none, Err(Error::Empty)));
        let mapping = memory.map_resource(guest.domid(), ReadOnly, Resource::GrantTable, 0, 1).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = format!("{:x}-", mapping.view().as_ptr().addr());
        let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
        assert!(line.contains(" r--s "), "{line}");
    });
}

#[test]
fn defect_14_restriction_holds_for_all_that_the_handle_does() {
    with_each_guest(1, |host, guest| {
        let memory = host.open();
        memory.restrict(guest.domid()).unwrap();
        for _ in 0..3 {
            let refused = memory.map_foreign_batch(host.unused_domid(), ReadOnly, &guest.gfns());
            assert_eq!(refused.unwrap_err().errno(), libc::EPERM);
        }
    });
}

#[test]
#[expect(unsafe_code, reason = "forbids system calls in a child")]
fn defect_17_access_makes_no_system_call() {
    in_own_process("prior_art::defect_17_access_makes_no_system_call", || {
        with_each_guest(1, |host, guest| {
            let child = |wait: &dyn Fn()| {
                let mapping = host.open().map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns()).unwrap();
                let (view, mut bytes) = (mapping.view(), [0; 100]);
                wait();
                // SAFETY: strict mode only restricts this process to read, write and exit.
                let strict = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
                let mut good = strict == 0;
                for offset in 0..2000 {
                    good &= view.write(offset, 7_u16).is_ok() && view.read_bytes(offset, &mut bytes).is_ok();
                    good &= view.read::<u16>(offset).is_ok_and(|value| value == 7);
                }
                // SAFETY: the process ends here. (libc's `_exit` makes another call, which strict mode forbids.)
                unsafe { libc::syscall(libc::SYS_exit, i32::from(!good)) };
                false
            };
            assert!(in_child(child, || ThenChild::Continues));
        });
    });
}

#[test]
fn defect_18_frames_are_4_kib_on_every_host() {
    with_each_guest(3, |host, guest| {
        guest.write(guest.gfns()[2], 0, b"third");
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        let mut text = [0; 5];
        mapping.view().read_bytes(2 * 4096, &mut text).unwrap();
        assert_eq!((&text, mapping.view().len()), (b"third", 3 * 4096));
    });
}
