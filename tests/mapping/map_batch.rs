//! `map_foreign_batch` and `map_foreign_range`: all frames or none.

use crate::common::{
    FRAME, Guest, Host, ReadOnly, ReadWrite, failures, number, numbers, on_each_host, on_each_host_with_pv_guests,
    with_each_guest,
};
use xenmap::{Access, Domid, Error, ForeignMapping, Gfn, GuestKind, HostKind, InvalidNumber};

#[test]
fn frames_are_mapped_in_the_order_given() {
    with_each_guest(8, |host, guest| {
        guest.number_frames();
        let mut gfns = guest.gfns();
        gfns.reverse();
        gfns.push(gfns[3]);
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &gfns).unwrap();
        assert_eq!(numbers(&mapping), [7, 6, 5, 4, 3, 2, 1, 0, 4]);
        assert_eq!((mapping.frames(), mapping.domid()), (9, guest.domid()));
        assert!(mapping.mapped_ranges().eq(std::iter::once(0..9 * FRAME)));
    });
}

#[test]
fn sizes_around_the_kernels_block_are_mapped_whole() {
    with_each_guest(513, |host, guest| {
        guest.number_frames();
        let (memory, gfns) = (host.open(), guest.gfns());
        for frames in [1, 2, 15, 16, 17, 511, 512, 513] {
            let mapping = memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns[..frames]).unwrap();
            assert_eq!(numbers(&mapping), (0..frames as u64).collect::<Vec<_>>(), "{frames} frames");
        }
    });
}

#[test]
fn range_is_the_batch_of_its_frames() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 8);
        guest.number_frames();
        let first = Gfn::new(2).unwrap();
        let mapping = host.open().map_foreign_range(guest.domid(), ReadOnly, first, 5).unwrap();
        assert_eq!(numbers(&mapping), [2, 3, 4, 5, 6]);
    });
}

#[test]
fn writes_reach_the_guest_and_its_writes_reach_us() {
    with_each_guest(2, |host, guest| {
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns()).unwrap();
        mapping.view().write_bytes(FRAME + 5, b"to the guest").unwrap();
        assert_eq!(guest.read(guest.gfns()[1], 5, 12), b"to the guest");

        guest.write(guest.gfns()[0], 9, b"from the guest");
        let mut text = [0; 14];
        mapping.view().read_bytes(9, &mut text).unwrap();
        assert_eq!(&text, b"from the guest");
    });
}

#[test]
fn two_mappings_of_a_frame_are_the_same_memory() {
    with_each_guest(1, |host, guest| {
        let memory = host.open();
        let one = memory.map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns()).unwrap();
        let other = memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        one.view().write(8, 0x1234_5678_u32).unwrap();
        assert_eq!(other.view().read::<u32>(8).unwrap(), 0x1234_5678);
    });
}

#[test]
fn one_frame_that_fails_fails_the_batch_and_unmaps_the_rest() {
    with_each_guest(600, |host, mut guest| {
        let mut gfns = guest.gfns();
        gfns[3] = guest.hole();
        gfns[550] = guest.hole();
        let result = host.open().map_foreign_batch(guest.domid(), ReadOnly, &gfns);

        let errno = if host.is_pv() && guest.kind() == GuestKind::Pv { libc::EPERM } else { libc::EINVAL };
        assert_eq!(failures(result), [(3, errno), (550, errno)]);
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), None, "no frame stays mapped");
    });
}

#[test]
fn highest_frame_number_cannot_be_mapped() {
    with_each_guest(1, |host, guest| {
        let result = host.open().map_foreign_batch(guest.domid(), ReadOnly, &[Gfn::MAX]);
        assert_eq!(failures(result), [(0, libc::EINVAL)]);
    });
}

#[test]
fn error_names_domain_frame_and_reason() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 2);
        let gfns = [guest.gfns()[0], guest.hole()];
        let error = host.open().map_foreign_batch(guest.domid(), ReadOnly, &gfns).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "1 of 2 frames of domain {} cannot be mapped, the first: frame 0xe0000 (index 1): no RAM there",
                guest.domid()
            )
        );
        assert_eq!(error.errno(), libc::EINVAL);
    });
}

#[test]
fn domain_that_does_not_exist_fails_every_frame() {
    on_each_host(|host| {
        let gfns = [Gfn::new(0).unwrap(), Gfn::new(1).unwrap()];
        let error = host.open().map_foreign_batch(host.unused_domid(), ReadOnly, &gfns).unwrap_err();
        assert_eq!(error.to_string(), "no such domain: 31000");
        assert_eq!(failures(Err(error)), [(0, libc::ESRCH), (1, libc::ESRCH)]);
    });
}

#[test]
fn own_domain_is_refused_by_xen() {
    on_each_host(|host| {
        let own = Domid::new(0).unwrap();
        let result = host.open().map_foreign_batch(own, ReadOnly, &[Gfn::new(0x1000).unwrap()]);
        assert_eq!(failures(result), [(0, host.own_frame_errno())]);
    });
}

#[test]
fn foreign_machine_frames_are_not_a_pv_guests_own() {
    on_each_host_with_pv_guests(|host| {
        let (guest, other) = (host.create(GuestKind::Pv, 2), host.create(GuestKind::Pv, 2));
        let result = host.open().map_foreign_batch(guest.domid(), ReadOnly, &other.gfns()[..1]);
        let errno = if host.is_pv() { libc::EBUSY } else { libc::EINVAL };
        assert_eq!(failures(result), [(0, errno)]);
    });
}

#[test]
fn page_table_of_a_pv_guest_is_mapped_read_only() {
    on_each_host_with_pv_guests(|host| {
        let guest = host.create(GuestKind::Pv, 2);
        let (memory, table) = (host.open(), guest.gfns()[0]);
        guest.pin_page_table(table).unwrap();
        let writable = memory.map_foreign_batch(guest.domid(), ReadWrite, &[table]);
        if host.is_pv() {
            assert_eq!(failures(writable), [(0, libc::EBUSY)]);
        } else {
            assert_eq!(writable.unwrap().frames(), 1, "page types are not checked there");
        }
        memory.map_foreign_batch(guest.domid(), ReadOnly, &[table]).unwrap();
        guest.unpin_page_table(table);
        memory.map_foreign_batch(guest.domid(), ReadWrite, &[table]).unwrap();
    });
}

#[test]
fn writable_mapping_keeps_a_pv_guest_from_pinning() {
    on_each_host_with_pv_guests(|host| {
        let guest = host.create(GuestKind::Pv, 2);
        let (memory, table) = (host.open(), guest.gfns()[0]);
        let writable = memory.map_foreign_batch(guest.domid(), ReadWrite, &[table]).unwrap();
        let pinned = guest.pin_page_table(table);
        if host.is_pv() {
            assert_eq!(pinned.unwrap_err().raw_os_error(), Some(libc::EINVAL));
            drop(writable);
            guest.pin_page_table(table).unwrap();
        } else {
            pinned.unwrap();
        }
        guest.unpin_page_table(table);
    });
}

#[test]
fn frames_of_a_dying_domain_are_mapped_only_if_it_is_pv_and_they_are_mapped_already() {
    with_each_guest(4, |host, mut guest| {
        let (memory, gfns) = (host.open(), guest.gfns());
        let first = memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns[..2]).unwrap();
        guest.destroy();
        let again = memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns[..1]);
        if guest.kind() == GuestKind::Pv {
            assert_eq!(again.unwrap().frames(), 1);
        } else {
            assert_eq!(failures(again), [(0, libc::EINVAL)]);
        }
        drop(first);
        let result = memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns[..1]);
        assert_eq!(failures(result), [(0, libc::ESRCH)]);
    });
}

#[test]
fn frames_of_xen_itself_are_mapped_read_only() {
    on_each_host(|host| {
        let (memory, frames) = (host.open(), host.xen_frames());
        let result = memory.map_foreign_batch(Domid::XEN, ReadWrite, &frames[..1]);
        assert!(matches!(result, Err(Error::XenIsReadOnly)));
        let mapping = memory.map_foreign_batch(Domid::XEN, ReadOnly, &frames);
        match host.maps_frames_of_xen() {
            Some(true) => assert_eq!(mapping.unwrap().frames(), frames.len()),
            Some(false) => {
                let all: Vec<_> = (0..frames.len()).map(|i| (i, libc::EINVAL)).collect();
                assert_eq!(failures(mapping), all, "no domain may map them there");
            }
            // Xen may refuse a frame, but the library must not.
            None => assert!(matches!(mapping, Ok(_) | Err(Error::Frames(_))), "{mapping:?}"),
        }
    });
}

#[test]
fn empty_batch_is_an_error() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 1);
        let memory = host.open();
        assert!(matches!(memory.map_foreign_batch(guest.domid(), ReadOnly, &[]), Err(Error::Empty)));
        assert!(matches!(memory.map_foreign_batch_partial(guest.domid(), ReadOnly, &[]), Err(Error::Empty)));
        let first = Gfn::new(0).unwrap();
        assert!(matches!(memory.map_foreign_range(guest.domid(), ReadOnly, first, 0), Err(Error::Empty)));
    });
}

#[test]
fn range_past_the_last_frame_number_is_an_error() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 1);
        for count in [2, usize::MAX] {
            let result = host.open().map_foreign_range(guest.domid(), ReadOnly, Gfn::MAX, count);
            assert!(matches!(result, Err(Error::InvalidNumber(InvalidNumber::Frame { .. }))), "{result:?}");
        }
    });
}

#[test]
fn range_larger_than_the_address_space_is_an_error() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 1);
        let result = host.open().map_foreign_range(guest.domid(), ReadOnly, Gfn::new(0).unwrap(), 1 << 36);
        assert!(matches!(result, Err(Error::TooManyFrames { .. })), "{result:?}");
    });
}

#[test]
fn host_kind_is_known_on_a_restricted_handle_too() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 1);
        let memory = host.open();
        memory.restrict(guest.domid()).unwrap();
        assert_ne!(memory.host_kind(), HostKind::Unknown);
        assert_eq!(memory.host_kind(), host.kind());
    });
}

#[test]
fn types_are_send_and_sync() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<xenmap::ForeignMemory>();
    is_send_and_sync::<ForeignMapping>();
    is_send_and_sync::<xenmap::ResourceMapping>();
    is_send_and_sync::<xenmap::HypercallBuffer>();
    is_send_and_sync::<xenmap::View<'_>>();
    is_send_and_sync::<Error>();
    is_send_and_sync::<xenmap::mock::MockHost>();
}

#[test]
fn threads_share_a_handle() {
    with_each_guest(64, |host, mut guest| {
        let (memory, gfns, domid) = (host.open(), guest.gfns(), guest.domid());
        std::thread::scope(|scope| {
            for (thread, part) in gfns.chunks(16).enumerate() {
                let memory = &memory;
                scope.spawn(move || {
                    for round in 0..20_u64 {
                        let mapping = memory.map_foreign_batch(domid, ReadWrite, part).unwrap();
                        let value = round << 8 | thread as u64;
                        mapping.view().write(0, value).unwrap();
                        let again = memory.map_foreign_batch(domid, ReadOnly, &part[..1]).unwrap();
                        assert_eq!(again.view().read::<u64>(0).unwrap(), value);
                    }
                });
            }
        });
        guest.destroy();
        assert_eq!(host.owned(domid), None);
    });
}

#[test]
fn threads_share_a_mapping() {
    with_each_guest(4, |host, guest| {
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns()).unwrap();
        let view = mapping.view();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        view.fetch_add(FRAME, 1_u32).unwrap();
                    }
                });
            }
        });
        assert_eq!(view.read::<u32>(FRAME).unwrap(), 4000);
    });
}

/// Checks that a large mapping references all frames, and that nothing else does.
fn check_references(host: &Host, mut guest: Guest, mapping: ForeignMapping) {
    if host.destroys_what_is_mapped() {
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), Some(mapping.frames() as u64));
        drop(mapping);
    } else {
        drop(mapping);
        guest.destroy();
    }
    assert_eq!(host.owned(guest.domid()), None);
}

#[test]
fn mapping_larger_than_one_device_mapping_is_contiguous() {
    on_each_host(|host| {
        const FRAMES: usize = 2 * 16 * 1024 + 5;
        let guest = host.create(GuestKind::Hvm, FRAMES);
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns()).unwrap();
        number(&mapping);
        let border = 16 * 1024 * FRAME;
        mapping.view().write_bytes(border - 2, b"over").unwrap();
        let mut text = [0; 4];
        mapping.view().read_bytes(border - 2, &mut text).unwrap();
        assert_eq!(&text, b"over");
        assert_eq!(guest.read(guest.gfns()[16 * 1024 - 1], FRAME - 2, 2), b"ov");
        assert_eq!(guest.read(guest.gfns()[FRAMES - 1], 0, 8), (FRAMES as u64 - 1).to_ne_bytes());

        check_references(host, guest, mapping);
    });
}

#[test]
fn scattered_runs_are_mapped_in_one_batch() {
    on_each_host(|host| {
        // Runs of 4 frames, of which none continues the one before.
        const FRAMES: usize = 65_536;
        let guest = host.create(GuestKind::Hvm, FRAMES);
        guest.number_frames();
        let gfns = guest.gfns();
        let runs = gfns.len() / 4;
        let scattered: Vec<usize> =
            (0..runs).map(|run| (run * 5) % runs).flat_map(|run| 4 * run..4 * run + 4).collect();
        let batch: Vec<Gfn> = scattered.iter().map(|&i| gfns[i]).collect();

        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &batch).unwrap();
        let expected: Vec<u64> = scattered.iter().map(|&i| i as u64).collect();
        assert_eq!(numbers(&mapping), expected);

        check_references(host, guest, mapping);
    });
}
