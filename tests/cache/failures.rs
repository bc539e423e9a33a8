//! Failures while the cache maps, and their costs, with faults, paging and page tables that only the mock has.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::time::{Duration, Instant};

use crate::buckets::{BUCKET, cache, get};
use crate::common::{FRAME, MOCKS, ReadOnly, ReadWrite, leaks, mock, mock_with, mock_with_pages, pfn, pfns};
use xenmap::mock::{Dom0, Fault, HostConfig, MockDomain, MockHost, PvHole, PvKernel};
use xenmap::{Access, Error, GuestKind, MapCache};

/// Creates a guest whose frames hold their number.
fn guest(host: &MockHost, frames: usize) -> MockDomain {
    let guest = host.create_domain(GuestKind::Hvm, frames);
    for gfn in guest.frames() {
        guest.write(gfn, 0, &gfn.get().to_ne_bytes());
    }
    guest
}

/// Reads a frame's number.
fn number(cache: &MapCache, frame: u64) -> u64 {
    get(cache, ReadOnly, frame).unwrap().read(0).unwrap()
}

#[test]
fn failed_map_is_the_callers_error_and_not_cached() {
    for fault in [
        Fault::Mmap(libc::ENOMEM),
        Fault::MapBatch(libc::ENOMEM),
        Fault::MapBatchLate(libc::EFAULT),
        Fault::Frame { index: 1, error: -libc::ENOMEM },
        Fault::Frame { index: 1, error: 0x1234 },
        Fault::Frame { index: 1, error: -libc::ESRCH },
    ] {
        let host = mock(Dom0::Pv);
        let guest = guest(&host, 16);
        let memory = host.open().unwrap();
        let cache = cache(&memory, guest.domid(), 4);
        host.inject(fault);
        get(&cache, ReadOnly, 1).unwrap_err();
        assert_eq!(cache.statistics().pinned, 0);

        assert_eq!(number(&cache, 1), 1, "{fault:?}");
        assert_eq!(cache.statistics().mapped_bytes, BUCKET);
        assert_eq!(host.references(guest.domid()), 4);
    }
}

#[test]
fn enomem_evicts_unused_buckets() {
    let mut config = HostConfig::default();
    config.dom0 = Dom0::Arm;
    config.dom0_free_frames = Some(3 * 4);
    let host = mock_with(config);
    let guest = guest(&host, 32);
    let memory = host.open().unwrap();
    let cache = cache(&memory, guest.domid(), 8);
    let pinned = get(&cache, ReadOnly, 0).unwrap();
    assert_eq!((number(&cache, 4), number(&cache, 8)), (4, 8));

    assert_eq!(number(&cache, 12), 12);

    assert_eq!((cache.statistics().evictions, host.references(guest.domid())), (2, 2 * 4));
    assert_eq!(pinned.read::<u64>(0).unwrap(), 0);
    let others = [16, 20].map(|frame| get(&cache, ReadOnly, frame).unwrap());
    assert_eq!(get(&cache, ReadOnly, 24).unwrap_err().errno(), libc::ENOMEM, "all is in use");
    assert_eq!((cache.statistics().evictions, cache.statistics().mapped_bytes), (3, 3 * BUCKET));
    drop(others);
    assert_eq!(number(&cache, 24), 24);
}

#[test]
fn enomem_evicts_even_recently_used_buckets() {
    let mut config = HostConfig::default();
    config.dom0 = Dom0::Arm;
    config.dom0_free_frames = Some(4 * 4);
    let host = mock_with(config);
    let guest = guest(&host, 32);
    let memory = host.open().unwrap();
    let cache = cache(&memory, guest.domid(), 8);
    for frame in [0, 4, 8, 12, 0, 4, 8, 12] {
        assert_eq!(number(&cache, frame), frame);
    }

    assert_eq!(number(&cache, 16), 16);

    assert_eq!((cache.statistics().evictions, host.references(guest.domid())), (4, 4));
}

#[test]
fn neighbours_of_a_failed_frame_are_available() {
    let host = mock(Dom0::Pv);
    let guest = guest(&host, 16);
    let memory = host.open().unwrap();
    let cache = cache(&memory, guest.domid(), 4);
    host.inject(Fault::Frame { index: 1, error: -libc::ENOMEM });

    for frame in [0, 2, 3] {
        assert_eq!(number(&cache, frame), frame);
    }

    assert_eq!(cache.statistics().misses, 1);
    assert_eq!(number(&cache, 1), 1, "it is retried on request");
    assert_eq!((cache.statistics().misses, cache.statistics().mapped_bytes), (2, BUCKET));
}

#[test]
fn failed_upgrade_keeps_the_readers_mapping() {
    let host = mock(Dom0::Pv);
    let guest = guest(&host, 16);
    let memory = host.open_read_only().unwrap();
    let cache = cache(&memory, guest.domid(), 4);
    assert_eq!(number(&cache, 1), 1);

    let error = get(&cache, ReadWrite, 1).unwrap_err();

    assert_eq!(error.errno(), libc::EACCES);
    assert_eq!(number(&cache, 1), 1);
    assert_eq!((cache.statistics().hits, cache.statistics().mapped_bytes), (1, BUCKET));
}

#[test]
fn hit_in_a_bucket_with_a_hole_costs_no_hypercall() {
    for (dom0, page_size) in MOCKS {
        let host = mock_with_pages(dom0, page_size);
        let guest = guest(&host, 16);
        guest.balloon_out(guest.frames()[2]);
        let memory = host.open().unwrap();
        let cache = cache(&memory, guest.domid(), 4);
        assert_eq!(number(&cache, 1), 1);
        let before = host.hypercalls();

        for _ in 0..10 {
            assert_eq!((number(&cache, 1), number(&cache, 3)), (1, 3));
        }

        assert_eq!(host.hypercalls(), before);
        get(&cache, ReadOnly, 2).unwrap_err();
        assert_ne!(host.hypercalls(), before, "the hole is mapped again");
    }
}

#[test]
fn access_waits_for_its_paged_out_frame_and_not_for_others() {
    let host = mock(Dom0::Pv);
    let guest = guest(&host, 16);
    guest.page_out(guest.frames()[1], 3).unwrap();
    guest.page_out(guest.frames()[2], u32::MAX).unwrap();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::from_secs(60));
    let cache = cache(&memory, guest.domid(), 4);
    let start = Instant::now();

    cache.prefetch(ReadOnly, 0..BUCKET as u64).unwrap();
    assert_eq!(number(&cache, 3), 3);
    assert_eq!(number(&cache, 1), 1);
    assert_eq!(number(&cache, 0), 0);

    assert!(start.elapsed() < Duration::from_secs(30), "it waited for frame 2");
    assert_eq!(cache.statistics().mapped_bytes, BUCKET);
}

#[test]
fn frame_that_does_not_come_back_is_an_error_and_retried_on_next_access() {
    let host = mock(Dom0::Pv);
    let guest = guest(&host, 16);
    guest.page_out(guest.frames()[1], 12).unwrap();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::ZERO);
    let cache = cache(&memory, guest.domid(), 4);

    let mut errors = 0;
    while let Err(e) = get(&cache, ReadOnly, 1) {
        assert!(matches!(e, Error::GuestAddress { address: 0x1000, errno: libc::ENOENT, .. }), "{e}");
        errors += 1;
        assert!(errors < 20);
    }

    assert!(errors > 1);
    assert_eq!(number(&cache, 1), 1);
}

#[test]
fn mapping_completed_after_close_is_discarded() {
    let host = mock(Dom0::Pv);
    let guest = guest(&host, 16);
    let frame = guest.frames()[1];
    guest.page_out(frame, u32::MAX).unwrap();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::from_secs(60));
    let cache = cache(&memory, guest.domid(), 4);

    let result = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get(&cache, ReadOnly, 1).map(drop));
        while cache.statistics().misses == 0 {
            std::thread::yield_now();
        }
        cache.close();
        guest.lend(frame); // now the frame can be mapped
        waiting.join().unwrap()
    });

    assert_eq!(result.unwrap_err().errno(), libc::ESRCH);
    assert_eq!((cache.statistics().mapped_bytes, host.references(guest.domid())), (0, 0));
}

/// Creates a PV guest with a kernel and 512 frames, most of which hold their pfn.
fn pv_guest(host: &MockHost) -> MockDomain {
    let guest = host.create_domain(GuestKind::Pv, 512);
    let mut kernel = PvKernel::default();
    kernel.holes.push((pfns(22..23), PvHole::BalloonedOut));
    guest.start_kernel(&kernel);
    for pfn in pfns(0..64).into_iter().filter(|pfn| pfn.get() != 22) {
        guest.write(guest.mfn(pfn).unwrap(), 0, &pfn.get().to_ne_bytes());
    }
    guest
}

#[test]
fn pv_guest_is_accessed_by_its_own_addresses() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = mock(dom0);
        let guest = pv_guest(&host);
        let memory = host.open().unwrap();
        let cache = cache(&memory, guest.domid(), 4);
        for pfn in [0, 9, 20, 21, 23, 63] {
            assert_eq!(number(&cache, pfn), pfn);
            let pinned = get(&cache, ReadWrite, pfn).unwrap();
            assert_eq!(cache.address_of(pinned.view(0).unwrap().as_ptr()), Some(pfn * FRAME as u64));
        }
        let error = get(&cache, ReadOnly, 22).unwrap_err();
        assert!(matches!(error, Error::GuestAddress { address: 0x16000, .. }), "{error}");
        cache.invalidate_all();
        assert_eq!(number(&cache, 9), 9);
    }
}

#[test]
fn page_table_of_a_pv_guest_is_retried_by_every_writer() {
    let host = mock(Dom0::Pv);
    let guest = pv_guest(&host);
    let memory = host.open().unwrap();
    let cache = cache(&memory, guest.domid(), 4);
    let table = guest.mfn(pfn(9)).unwrap();
    guest.pin_page_table(table).unwrap();

    get(&cache, ReadWrite, 8).unwrap();
    let error = get(&cache, ReadWrite, 9).unwrap_err();
    assert!(matches!(error, Error::GuestAddress { address: 0x9000, .. }), "{error}");
    assert_eq!(number(&cache, 9), 9, "it can be read");
    get(&cache, ReadWrite, 10).unwrap();

    guest.unpin_page_table(table);
    get(&cache, ReadWrite, 9).unwrap();
    assert_eq!(cache.statistics().mapped_bytes, BUCKET);
}

#[test]
fn dead_guest_is_an_error_for_new_mappings_only() {
    for (dom0, page_size) in MOCKS {
        let host = mock_with_pages(dom0, page_size);
        let guest = guest(&host, 16);
        let memory = host.open().unwrap();
        let cache = cache(&memory, guest.domid(), 4);
        assert_eq!(number(&cache, 0), 0);
        guest.destroy();

        get(&cache, ReadOnly, 9).unwrap_err();

        assert_eq!(number(&cache, 0), 0, "mapped frames stay readable");
        assert_eq!(cache.statistics().mapped_bytes, BUCKET);
        cache.close();
        assert_eq!(host.zombies(), []);
    }
}

#[test]
fn bucket_that_cannot_be_unmapped_counts_as_leaked() {
    let host = mock(Dom0::Pv);
    let guest = guest(&host, 16);
    let memory = host.open().unwrap();
    let cache = cache(&memory, guest.domid(), 4);
    let pinned = get(&cache, ReadOnly, 1).unwrap();
    cache.invalidate_all();
    let _count = leaks();
    let before = xenmap::leaked_mappings();
    host.inject(Fault::Munmap(libc::EINVAL));

    drop(pinned);

    assert_eq!(xenmap::leaked_mappings(), before + 1);
    assert_eq!((number(&cache, 1), cache.statistics().mapped_bytes), (1, BUCKET));
}

#[test]
fn forgotten_guard_keeps_its_bucket_until_the_cache_is_dropped() {
    let host = mock(Dom0::Pv);
    let guest = guest(&host, 32);
    let memory = host.open().unwrap();
    let cache = cache(&memory, guest.domid(), 4);
    let forgotten = std::mem::ManuallyDrop::new(get(&cache, ReadOnly, 1).unwrap());
    cache.invalidate_all();

    for frame in 0..32 {
        assert_eq!(number(&cache, frame), frame);
    }

    assert_eq!(forgotten.read::<u64>(0).unwrap(), 1);
    assert_eq!((cache.statistics().pinned, host.references(guest.domid())), (1, 16), "the budget still holds");
    drop(cache);
    assert_eq!(host.references(guest.domid()), 0);
}
