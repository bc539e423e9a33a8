//! This cache must not have the defects of others (QEMU's xen-mapcache, libvmi's and krata's page caches).

use std::time::Duration;

use crate::buckets::{BUCKET, cache};
use crate::common::{FRAME, ReadOnly, ReadWrite, mock, on_each_host};
use xenmap::mock::{Dom0, Fault};
use xenmap::{Access, Gfn, GuestKind};

/// Returns the address of a bucket.
fn bucket(number: usize) -> u64 {
    (number * BUCKET) as u64
}

#[test]
fn defect_15_invalidation_reaches_every_bucket() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 256));
        // Far more buckets are in use than the budget allows, and each is mapped twice.
        let cache = cache(&memory, guest.domid(), 1);
        let readers: Vec<_> = (0..64).map(|i| cache.get(ReadOnly, bucket(i), 8).unwrap()).collect();
        let writers: Vec<_> = (0..64).map(|i| cache.get(ReadWrite, bucket(i), 8).unwrap()).collect();

        cache.invalidate(0..bucket(64));

        let misses = cache.statistics().misses;
        for i in 0..64 {
            cache.get(ReadOnly, bucket(i), 8).unwrap();
        }
        assert_eq!(cache.statistics().misses, misses + 64);
        drop((readers, writers));
        cache.invalidate_all();
        assert_eq!(cache.statistics().mapped_bytes, 0);
    });
}

#[test]
fn defect_15_hits_do_not_wait_for_a_map_of_another_bucket() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Hvm, 32);
    domain.page_out(domain.frames()[20], u32::MAX).unwrap();
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::from_secs(60));
    let cache = cache(&memory, domain.domid(), 4);
    cache.get(ReadOnly, 0, 8).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cache.get(ReadOnly, bucket(5), 8).map(drop));
        while cache.statistics().misses < 2 {
            std::thread::yield_now();
        }

        for _ in 0..100 {
            cache.get(ReadOnly, 0, 8).unwrap();
        }
        cache.get(ReadOnly, bucket(1), 8).unwrap();
        cache.invalidate(0..bucket(1));
        assert!(!waiting.is_finished(), "it still waits for the frame");

        domain.destroy();
        waiting.join().unwrap().unwrap_err();
    });
}

#[test]
fn defect_15_reverse_lookup_covers_the_whole_bucket() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 16));
        let cache = cache(&memory, guest.domid(), 4);
        let pinned = cache.get(ReadOnly, bucket(1) + 100, 50).unwrap();
        let at = pinned.view(0).unwrap().as_ptr();
        assert_eq!(cache.address_of(at.wrapping_add(17)), Some(bucket(1) + 117));
        assert_eq!(cache.address_of(at.wrapping_sub(100)), Some(bucket(1)), "before the requested range");
        assert_eq!(cache.address_of(at.wrapping_add(BUCKET - 101)), Some(bucket(2) - 1), "after it");
    });
}

#[test]
fn defect_15_read_only_is_honoured() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 16));
        let cache = cache(&memory, guest.domid(), 4);
        let access = |protection| {
            let pinned = cache.get(protection, 0, 8).unwrap();
            let at = pinned.view(0).unwrap().as_ptr().addr();
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let line = maps.lines().find(|line| {
                let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
                let address = |text| usize::from_str_radix(text, 16).unwrap();
                (address(start)..address(end)).contains(&at)
            });
            line.unwrap().split(' ').nth(1).unwrap()[..3].to_owned()
        };
        assert_eq!(access(ReadOnly), "r--");
        assert_eq!(access(ReadWrite), "rw-");
    });
}

#[test]
fn defect_15_bucket_numbers_do_not_collide() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 256));
        let cache = cache(&memory, guest.domid(), 8);
        let numbers = [0, 8, 16, 24, 32, 40, 48, 56];
        for _ in 0..3 {
            for number in numbers {
                cache.get(ReadOnly, bucket(number), 8).unwrap();
            }
        }
        let statistics = cache.statistics();
        assert_eq!((statistics.misses, statistics.hits, statistics.evictions), (8, 16, 0));
    });
}

#[test]
fn defect_15_memory_above_32_gib_is_cached() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 4));
        let gfn = Gfn::new((33 << 30) / FRAME as u64 + 1).unwrap();
        guest.populate(gfn);
        guest.write(gfn, 0, &7_u64.to_ne_bytes());
        let cache = cache(&memory, guest.domid(), 4);
        let address = gfn.get() * FRAME as u64;
        for _ in 0..2 {
            let pinned = cache.get(ReadWrite, address, 8).unwrap();
            assert_eq!(pinned.read::<u64>(0).unwrap(), 7);
            assert_eq!(cache.address_of(pinned.view(0).unwrap().as_ptr()), Some(address));
        }
        assert_eq!((cache.statistics().hits, cache.statistics().misses), (1, 1));
    });
}

#[test]
fn defect_15_buckets_in_use_are_not_evicted() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 64));
        guest.number_frames();
        let cache = cache(&memory, guest.domid(), 1);
        let pinned = cache.get(ReadWrite, bucket(3), 8).unwrap();
        for i in (0..16).filter(|i| *i != 3) {
            cache.get(ReadOnly, bucket(i), 8).unwrap();
        }
        assert_eq!(pinned.read::<u64>(0).unwrap(), 12);
        let misses = cache.statistics().misses;
        cache.get(ReadOnly, bucket(3), 8).unwrap();
        assert_eq!(cache.statistics().misses, misses, "it is still mapped");
    });
}

#[test]
fn defect_15_failed_map_is_not_cached() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Hvm, 16);
    let memory = host.open().unwrap();
    let cache = cache(&memory, domain.domid(), 4);
    for fault in [Fault::MapBatch(libc::ENOMEM), Fault::Frame { index: 0, error: -libc::ENOMEM }] {
        host.inject(fault);
        cache.get(ReadOnly, 0, 8).unwrap_err();
        cache.get(ReadOnly, 0, 8).unwrap();
        cache.invalidate_all();
    }
}

#[test]
fn defect_15_eviction_is_lru_and_not_fifo() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 16));
        let cache = cache(&memory, guest.domid(), 2);
        for i in [0, 1, 0, 2] {
            cache.get(ReadOnly, bucket(i), 8).unwrap();
        }
        let misses = cache.statistics().misses;
        cache.get(ReadOnly, bucket(0), 8).unwrap();
        assert_eq!(cache.statistics().misses, misses, "the first bucket was the most recently used");
    });
}

#[test]
fn defect_15_unused_buckets_are_evicted() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 256));
        let cache = cache(&memory, guest.domid(), 2);
        for i in 0..64 {
            cache.get(ReadOnly, bucket(i), 8).unwrap();
        }
        assert_eq!(cache.statistics().mapped_bytes, 2 * BUCKET);
    });
}
