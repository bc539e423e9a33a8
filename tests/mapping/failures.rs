//! Failures of the kernel, after which nothing is leaked.
//!
//! Most cannot be provoked on a real kernel, so these tests use the mock.

use crate::common::{
    FRAME, ReadOnly, ReadWrite, failures, in_own_process, leaks, mock, mock_with, mock_with_pages, number, numbers,
};
use xenmap::mock::{Dom0, Fault, HostConfig};
use xenmap::{Access, Error, GuestKind, HostKind, leaked_mappings};

#[test]
fn open_that_fails_says_what_to_do() {
    let host = mock(Dom0::Pv);
    let message = |errno| {
        host.inject(Fault::Open(errno));
        host.open().unwrap_err().to_string()
    };
    assert!(message(libc::ENOENT).ends_with("(not on xen, or the module xen-privcmd is not loaded)"));
    assert!(message(libc::ENODEV).ends_with("(not on xen)"));
    assert!(message(libc::EACCES).ends_with("(by default only root may open it: see the device's mode)"));
    host.inject(Fault::Open(libc::EINTR));
    host.open().unwrap(); // the next attempt succeeds
}

#[test]
fn missing_device_is_named() {
    assert!(!std::path::Path::new("/dev/xen/privcmd").exists(), "this test is for machines without Xen");
    let error = xenmap::ForeignMemory::open().unwrap_err();
    assert!(error.to_string().starts_with("cannot open /dev/xen/privcmd (not on xen"), "{error}");
    assert_eq!(error.errno(), libc::ENOENT);
}

#[test]
fn errno_of_a_frame_is_reported_unchanged() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = mock(dom0);
        let guest = host.create_domain(GuestKind::Hvm, 40);
        let errnos = [libc::EINVAL, libc::ENOMEM, libc::EPERM, libc::EBUSY, libc::ESRCH, libc::EACCES, libc::EFAULT];
        for (i, errno) in errnos.into_iter().enumerate() {
            host.inject(Fault::Frame { index: 3 * i + 2, error: -errno });
        }
        let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
        let expected: Vec<(usize, i32)> = errnos.into_iter().enumerate().map(|(i, e)| (3 * i + 2, e)).collect();
        assert_eq!(failures(result), expected);
        assert_eq!(host.references(guest.domid()), 0);
    }
}

#[test]
fn enomem_of_a_frame_fails_the_whole_call_in_an_auto_translated_dom0() {
    for (dom0, kind, is_hole) in [
        (Dom0::Pv, HostKind::Pv, true),
        (Dom0::Pvh, HostKind::AutoTranslated, false),
        (Dom0::Arm, HostKind::AutoTranslated, false),
        // An unknown host may be auto-translated.
        (Dom0::Pv, HostKind::Unknown, false),
        (Dom0::Pvh, HostKind::Unknown, false),
    ] {
        let mut config = HostConfig::default();
        (config.dom0, config.sysfs) = (dom0, kind != HostKind::Unknown);
        let host = mock_with(config);
        if kind == HostKind::Unknown {
            host.inject(Fault::Hypercall(libc::EPERM));
        }
        let memory = host.open().unwrap();
        assert_eq!(memory.host_kind(), kind);
        let guest = host.create_domain(GuestKind::Hvm, 40);
        host.inject(Fault::Frame { index: 7, error: -libc::ENOMEM });
        let result = memory.map_foreign_batch_partial(guest.domid(), ReadOnly, &guest.frames());
        match result {
            Ok(ref mapping) => assert_eq!(mapping.failed()[0].errno, libc::ENOMEM),
            Err(ref e) => assert!(matches!(e, Error::MapBatch { frames: 40, .. }) && e.errno() == libc::ENOMEM, "{e}"),
        }
        assert_eq!(result.is_ok(), is_hole, "{dom0:?}, {kind:?}");
        drop(result);
        assert_eq!(host.references(guest.domid()), 0);
    }
}

#[test]
fn garbage_among_the_errors_fails_the_call_as_out_of_memory() {
    for garbage in [1, 0x12345, i32::MAX, -4096, i32::MIN] {
        let host = mock(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, 600);
        host.inject(Fault::Frame { index: 514, error: garbage });
        let result = host.open().unwrap().map_foreign_batch_partial(guest.domid(), ReadOnly, &guest.frames());
        assert!(matches!(result, Err(Error::MapBatch { .. })), "{garbage}: {result:?}");
        assert_eq!(result.unwrap_err().errno(), libc::ENOMEM);
        assert_eq!(host.references(guest.domid()), 0);
    }
}

#[test]
fn missing_page_table_fails_the_call_for_any_frame_numbers() {
    for dom0 in [Dom0::Pv, Dom0::Pvh, Dom0::Arm] {
        for page_size in if dom0 == Dom0::Arm { &[FRAME, 4 * FRAME][..] } else { &[FRAME] } {
            let host = mock_with_pages(dom0, *page_size);
            let guest = host.create_domain(GuestKind::Hvm, 3000);
            let frames = guest.frames();
            let zero = [frames[0]; 600];
            let batches =
                [&zero[..1], &zero[..2], &zero[..17], &zero, &frames[..1], &frames[..2], &frames[5..6], &frames];
            for gfns in batches {
                for index in [0, gfns.len() / 2, gfns.len() - 1] {
                    host.inject(Fault::PageTable { index });
                    let result = host.open().unwrap().map_foreign_batch_partial(guest.domid(), ReadOnly, gfns);
                    let failed = result.as_ref().is_err_and(|e| e.errno() == libc::ENOMEM);
                    assert!(failed, "{dom0:?}, the table of {index} of {} frames from {}", gfns.len(), gfns[0]);
                    drop(result);
                    assert_eq!(host.references(guest.domid()), 0);
                }
                host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, gfns).unwrap();
            }
        }
    }
}

#[test]
fn missing_page_table_fails_the_call_wherever_the_last_frame_is() {
    let host = mock(Dom0::Pvh);
    let guest = host.create_domain(GuestKind::Hvm, 8);
    let memory = host.open().unwrap();
    let (gfns, mut others) = (guest.frames(), Vec::new());
    // Somewhere among these consecutive addresses, the last frame begins a new page table.
    for place in 0..=512 {
        host.inject(Fault::PageTable { index: 3 });
        let result = memory.map_foreign_batch_partial(guest.domid(), ReadOnly, &gfns[4..]);
        assert!(result.is_err_and(|e| e.errno() == libc::ENOMEM), "{place}");
        others.push(memory.map_foreign_batch(guest.domid(), ReadOnly, &gfns[..1]).unwrap());
    }
}

#[test]
fn call_that_fails_before_or_after_mapping_leaves_nothing_mapped() {
    for fault in [
        Fault::MapBatch(libc::ENOMEM),
        Fault::MapBatch(libc::EINTR),
        Fault::MapBatch(libc::EPERM),
        Fault::MapBatchLate(libc::EFAULT),
    ] {
        let host = mock(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, 40);
        host.inject(fault);
        let result = host.open().unwrap().map_foreign_batch_partial(guest.domid(), ReadOnly, &guest.frames());
        assert!(matches!(result, Err(Error::MapBatch { frames: 40, .. })), "{result:?}");
        assert_eq!(host.references(guest.domid()), 0, "{fault:?}");
        // The host still works.
        host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    }
}

#[test]
fn exhausted_address_space_is_a_clear_error() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 40);
    host.inject(Fault::Mmap(libc::ENOMEM));
    let error = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap_err();
    assert!(error.to_string().ends_with("(see vm.max_map_count and ulimit -v)"), "{error}");
}

#[test]
fn single_frames_beyond_max_map_count_are_a_clear_error() {
    in_own_process("failures::single_frames_beyond_max_map_count_are_a_clear_error", || {
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse::<usize>().unwrap();
        // Some distributions raise the limit so far that the mock would have to map too many frames.
        let frames = limit.min(70_000) + 1;
        let host = mock(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, 2 * frames);
        let scattered: Vec<_> = guest.frames().into_iter().step_by(2).collect();
        let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &scattered);
        if frames <= limit {
            assert_eq!(result.unwrap().frames(), frames);
            return;
        }
        let error = result.unwrap_err();
        assert_eq!(error.errno(), libc::ENOMEM);
        assert!(error.to_string().contains("map less at a time"), "{error}");
        assert_eq!(host.references(guest.domid()), 0);
    });
}

#[test]
fn chunk_that_cannot_be_mapped_unmaps_earlier_chunks_and_leaves_its_own_addresses_alone() {
    let host = mock(Dom0::Pv);
    let mut guest_frames = 3 * 16 * 1024;
    let guest = host.create_domain(GuestKind::Hvm, guest_frames);
    host.inject_after(1, Fault::Mmap(libc::ENOMEM));
    let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
    assert!(matches!(result, Err(Error::Reserve { .. })), "{result:?}");
    assert_eq!(host.references(guest.domid()), 0);
    guest_frames -= 1;
    host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()[..guest_frames]).unwrap();
}

#[test]
fn mapping_that_cannot_be_replaced_for_a_retry_is_left_alone() {
    let _count = leaks();
    for (host, frames) in [
        (mock(Dom0::Pvh), 20),
        (mock(Dom0::Pvh), 16 * 1024 + 20),
        (mock_with_pages(Dom0::Arm, 16 * FRAME), 20),
        (mock_with_pages(Dom0::Arm, 4 * FRAME), 16 * 1024 + 21),
    ] {
        let guest = host.create_domain(GuestKind::Hvm, frames);
        let (last_chunk, mmaps) = if frames < 16 * 1024 { (0, 1) } else { (1, 2) };
        host.inject_after(last_chunk, Fault::Frame { index: 3, error: -libc::ENOENT });
        host.inject_after(mmaps, Fault::Mmap(libc::ENOMEM));
        let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
        assert!(matches!(result, Err(Error::Reserve { .. })), "{result:?}");
        // The count panics if the library unmapped the addresses, which may be another thread's by then.
        assert_eq!(host.references(guest.domid()), 0);
    }
}

#[test]
fn mapping_possibly_left_by_a_failed_retry_counts_as_leaked() {
    let _count = leaks();
    for (frames, chunks) in [(20, 1), (16 * 1024 + 20, 2)] {
        let host = mock(Dom0::Pvh);
        let guest = host.create_domain(GuestKind::Hvm, frames);
        host.inject_after(chunks - 1, Fault::Frame { index: 3, error: -libc::ENOENT });
        host.inject_after(chunks, Fault::MmapEarly(libc::ENOMEM));
        let before = leaked_mappings();

        let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());

        assert!(matches!(result, Err(Error::Reserve { .. })), "{result:?}");
        assert_eq!(host.references(guest.domid()), 19, "all frames of the last mapping except the one that failed");
        assert_eq!(leaked_mappings(), before + 1);
    }
}

#[test]
fn refused_mappings_leak_no_address_space() {
    in_own_process("failures::refused_mappings_leak_no_address_space", || {
        let host = mock(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, 20_000);
        let memory = host.open_read_only().unwrap();
        let size = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').next().unwrap().parse::<usize>().unwrap() * FRAME
        };
        let before = size();
        for _ in 0..100 {
            let result = memory.map_foreign_batch(guest.domid(), ReadWrite, &guest.frames());
            assert_eq!(result.unwrap_err().errno(), libc::EACCES);
        }
        assert!(size().saturating_sub(before) < 3 << 30, "{} bytes more", size() - before);
    });
}

#[test]
fn chunk_whose_frames_fail_unmaps_all() {
    let host = mock(Dom0::Pvh);
    let guest = host.create_domain(GuestKind::Hvm, 3 * 16 * 1024);
    host.inject_after(2, Fault::MapBatch(libc::ENOMEM));
    let result = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames());
    assert!(matches!(result, Err(Error::MapBatch { .. })), "{result:?}");
    assert_eq!(host.references(guest.domid()), 0);
}

#[test]
fn munmap_that_fails_in_drop_is_counted_and_not_a_panic() {
    let _count = leaks();
    for errno in [libc::EINVAL, libc::ENOMEM, libc::EPERM] {
        let host = mock(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, 4);
        let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
        let before = leaked_mappings();
        host.inject(Fault::Munmap(errno));
        drop(mapping);
        assert_eq!(leaked_mappings(), before + 1);
        guest.destroy();
        assert_eq!(host.zombies(), [guest.domid()], "the references remain");
    }
    // A large mapping consists of several, of 64 MiB each. If one cannot be unmapped, the others still are.
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 40_000);
    let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    let before = leaked_mappings();
    host.inject_after(1, Fault::Munmap(libc::EINVAL));
    drop(mapping);
    assert_eq!((leaked_mappings(), host.references(guest.domid())), (before + 1, 16 * 1024));
}

#[test]
fn leaked_reference_shows_in_the_count() {
    let host = mock(Dom0::Pvh);
    let guest = host.create_domain(GuestKind::Hvm, 4);
    let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    host.inject(Fault::Leak);
    drop(mapping);
    assert_eq!(host.references(guest.domid()), 4);
}

#[test]
fn domain_that_dies_while_mapped_stays_readable() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 4);
    let mapping = host.open().unwrap().map_foreign_batch(guest.domid(), ReadWrite, &guest.frames()).unwrap();
    number(&mapping);
    guest.destroy();
    assert_eq!(numbers(&mapping), [0, 1, 2, 3]);
    drop(mapping);
    // Another domain has reused the number.
    let other = host.create_domain(GuestKind::Pv, 1);
    assert_eq!(other.domid(), guest.domid());
    assert_eq!(host.references(other.domid()), 0);
}

#[test]
fn read_only_device_maps_read_only() {
    let host = mock(Dom0::Pv);
    let guest = host.create_domain(GuestKind::Hvm, 1);
    let memory = host.open_read_only().unwrap();
    memory.map_foreign_batch(guest.domid(), ReadOnly, &guest.frames()).unwrap();
    let error = memory.map_foreign_batch(guest.domid(), ReadWrite, &guest.frames()).unwrap_err();
    assert_eq!(error.errno(), libc::EACCES);
    assert!(error.to_string().ends_with("(the device was opened read-only)"), "{error}");
}

#[test]
fn resource_that_fails_leaves_nothing_mapped() {
    let host = mock(Dom0::Pvh);
    let guest = host.create_domain(GuestKind::Hvm, 1);
    guest.add_resource(xenmap::Resource::GrantTable, 4);
    let memory = host.open().unwrap();
    host.inject(Fault::MapResource(libc::EACCES));
    let result = memory.map_resource(guest.domid(), ReadOnly, xenmap::Resource::GrantTable, 0, 4);
    assert_eq!(result.unwrap_err().errno(), libc::EACCES);
    memory.map_resource(guest.domid(), ReadOnly, xenmap::Resource::GrantTable, 0, 4).unwrap();
}

#[test]
fn old_kernel_leaves_holes_where_a_new_one_puts_junk() {
    let mut config = HostConfig::default();
    config.dom0 = Dom0::Pvh;
    for (kernel, junk) in [((4, 3), false), ((4, 4), true)] {
        config.kernel = kernel;
        let host = mock_with(config.clone());
        let guest = host.create_domain(GuestKind::Hvm, 1);
        let gfns = [guest.frames()[0], xenmap::Gfn::new(77).unwrap()];
        let mapping = host.open().unwrap().map_foreign_batch_partial(guest.domid(), ReadOnly, &gfns).unwrap();
        assert!(mapping.view().read::<u8>(FRAME).is_err(), "the library refuses to read it");
        // Has the kernel read there: junk is readable, a hole is EFAULT.
        let (_reader, writer) = std::io::pipe().unwrap();
        let at = mapping.view().as_ptr().wrapping_add(FRAME);
        #[expect(unsafe_code, reason = "reads what the library refuses to")]
        // SAFETY: the kernel checks the address.
        let written = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), at.cast(), 1) };
        assert_eq!(written == 1, junk, "linux {kernel:?}");
    }
}
