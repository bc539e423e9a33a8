//! Hits, misses, the budget, holes and addresses.

use std::sync::atomic::Ordering;

use crate::buckets::{BUCKET, FRAMES, cache, get, mapped_buckets, refused};
use crate::common::{FRAME, Host, ReadOnly, ReadWrite, mock, on_each_host};
use xenmap::mock::Dom0;
use xenmap::{Access, CacheConfig, Error, ForeignMemory, Guest, GuestKind, InvalidNumber, MapCache, Pinned};

fn hvm_guest(host: &Host, frames: usize) -> (ForeignMemory, crate::common::Guest) {
    (host.open(), host.create(GuestKind::Hvm, frames))
}

#[test]
fn second_access_to_a_bucket_is_a_hit() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        guest.number_frames();
        let cache = cache(&memory, guest.domid(), 4);

        for frame in [0, 1, 3, 9] {
            let pinned = cache.get(ReadOnly, frame * FRAME as u64, 8).unwrap();
            assert_eq!(pinned.read::<u64>(0).unwrap(), frame);
        }

        let statistics = cache.statistics();
        assert_eq!((statistics.hits, statistics.misses, statistics.mapped_bytes), (2, 2, 2 * BUCKET));
    });
}

#[test]
fn range_across_buckets_is_accessed_as_one() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        let text: Vec<u8> = (0..251).cycle().take(3 * BUCKET).collect();

        let pinned = cache.get(ReadWrite, 100, text.len()).unwrap();
        pinned.write_bytes(0, &text).unwrap();

        assert_eq!(pinned.views().count(), 4);
        let mut copy = vec![0; text.len()];
        pinned.read_bytes(0, &mut copy).unwrap();
        assert_eq!(copy, text);
        assert_eq!(guest.read(guest.gfns()[4], 0, 50), text[BUCKET - 100..][..50]);
        let border = BUCKET - 100 - 3;
        assert_eq!(pinned.read::<u64>(border).unwrap().to_ne_bytes(), text[border..border + 8]);
        pinned.write(border, 0x0102_0304_0506_0708_u64).unwrap();
        assert_eq!(pinned.read::<u64>(border).unwrap(), 0x0102_0304_0506_0708);
        pinned.fill(border, BUCKET + 6, 7).unwrap();
        assert!(pinned.eq_bytes(border - 1, &[&text[border - 1..border], &vec![7; BUCKET + 6]].concat()).unwrap());
        assert!(!pinned.eq_bytes(border, &vec![7; BUCKET + 7]).unwrap());
    });
}

#[test]
fn dropping_the_cache_unmaps_everything() {
    on_each_host(|host| {
        let (memory, mut guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        drop(cache.get(ReadWrite, 0, 2 * BUCKET).unwrap());

        guest.destroy();
        assert_eq!(host.owned(guest.domid()), Some(8), "a zombie");
        drop(cache);
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn read_only_bucket_is_mapped_again_for_a_writer() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        drop(get(&cache, ReadOnly, 1).unwrap());

        get(&cache, ReadWrite, 1).unwrap().write(0, 7_u64).unwrap();

        assert_eq!((cache.statistics().misses, mapped_buckets(&cache)), (2, 1), "the old mapping is gone");
        assert_eq!(get(&cache, ReadOnly, 1).unwrap().read::<u64>(0).unwrap(), 7);
        get(&cache, ReadWrite, 2).unwrap();
        assert_eq!(cache.statistics().misses, 2, "a writable bucket serves readers too");
    });
}

#[test]
fn reader_of_a_writable_bucket_cannot_write() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        drop(get(&cache, ReadWrite, 0).unwrap());

        let pinned = get(&cache, ReadOnly, 0).unwrap();

        assert_eq!((cache.statistics().hits, pinned.protection()), (1, ReadOnly));
        let order = Ordering::SeqCst;
        for refused in [
            pinned.write(0, 1_u8),
            pinned.write_bytes(0, &[1]),
            pinned.store(0, 1_u8, order),
            pinned.swap(0, 1_u8).map(drop),
            pinned.compare_exchange(0, 0, 1_u8).map(drop),
            pinned.fetch_add(0, 1_u8).map(drop),
            pinned.fetch_or(0, 1_u8).map(drop),
            pinned.fetch_and(0, 1_u8).map(drop),
            pinned.read_from(0, 1, std::fs::File::open("/dev/zero").unwrap()),
            pinned.mark_dirty(0, 1),
            pinned.view(0).unwrap().write(0, 1_u8),
            pinned.views().next().unwrap().write(0, 1_u8),
        ] {
            assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
        }
        assert_eq!(pinned.read::<u64>(0).unwrap(), 0);
    });
}

#[test]
fn reader_keeps_its_mapping_when_a_writer_gets_another() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        let reader = get(&cache, ReadOnly, 0).unwrap();

        let writer = get(&cache, ReadWrite, 0).unwrap();
        writer.write(0, 5_u64).unwrap();

        assert_eq!(reader.read::<u64>(0).unwrap(), 5);
        assert_eq!((mapped_buckets(&cache), cache.statistics().pinned), (2, 2));
        drop(reader);
        assert_eq!((mapped_buckets(&cache), cache.statistics().pinned), (1, 1));
    });
}

#[test]
fn recently_used_bucket_outlives_the_others() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 32);
        let cache = cache(&memory, guest.domid(), 3);
        for bucket in [0, 1, 2, 0] {
            drop(get(&cache, ReadOnly, bucket * FRAMES).unwrap());
        }

        for bucket in 3..8 {
            drop(get(&cache, ReadOnly, bucket * FRAMES).unwrap());
            let hits = cache.statistics().hits;
            drop(get(&cache, ReadOnly, 0).unwrap());
            assert_eq!(cache.statistics().hits, hits + 1, "bucket 0 after bucket {bucket}");
        }

        assert_eq!(cache.statistics().evictions, 5);
    });
}

#[test]
fn budget_is_kept() {
    on_each_host(|host| {
        let (memory, mut guest) = hvm_guest(host, 32);
        guest.number_frames();
        let cache = cache(&memory, guest.domid(), 2);

        for frame in (0..32).chain(0..32) {
            assert_eq!(get(&cache, ReadOnly, frame).unwrap().read::<u64>(0).unwrap(), frame);
            assert!(mapped_buckets(&cache) <= 2);
        }

        assert_eq!(cache.statistics().evictions, 14);
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), Some(2 * FRAMES));
    });
}

#[test]
fn buckets_in_use_may_exceed_the_budget() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 32);
        guest.number_frames();
        let cache = cache(&memory, guest.domid(), 2);

        let pinned: Vec<_> = (0..6).map(|bucket| get(&cache, ReadOnly, bucket * FRAMES).unwrap()).collect();

        let numbers: Vec<u64> = pinned.iter().map(|pinned| pinned.read(0).unwrap()).collect();
        assert_eq!(numbers, [0, 4, 8, 12, 16, 20]);
        assert_eq!((mapped_buckets(&cache), cache.statistics().pinned), (6, 6));
        drop(pinned);
        drop(get(&cache, ReadOnly, 6 * FRAMES).unwrap());
        assert_eq!((mapped_buckets(&cache), cache.statistics().pinned), (2, 0));
    });
}

#[test]
fn hole_is_an_error_that_names_its_first_address() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        guest.balloon_out(guest.gfns()[6]);
        let cache = cache(&memory, guest.domid(), 8);
        let frame = FRAME as u64;
        for (address, len, hole) in [
            (6 * frame, 1, 6 * frame),
            (6 * frame + 10, 8, 6 * frame + 10),
            (5 * frame + 10, FRAME, 6 * frame),
            (6 * frame - 1, 2 * FRAME, 6 * frame),
            (1, 8 * FRAME, 6 * frame),
            (14 * frame, 5 * FRAME, 16 * frame), // in a bucket without any RAM
            (18 * frame + 3, 1, 18 * frame + 3),
        ] {
            assert_eq!(refused(cache.get(ReadOnly, address, len)), (hole, libc::EINVAL), "{address:#x} {len:#x}");
            assert_eq!(cache.statistics().pinned, 0, "nothing stays pinned");
        }
        cache.get(ReadWrite, 4 * frame, 2 * FRAME).unwrap();
        cache.get(ReadWrite, 7 * frame, 9 * FRAME).unwrap();
    });
}

#[test]
fn address_of_finds_any_mapped_byte() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        guest.balloon_out(guest.gfns()[9]);
        let cache = cache(&memory, guest.domid(), 4);
        let pinned = cache.get(ReadOnly, 100, BUCKET).unwrap();
        let mut address = 100;
        for view in pinned.views() {
            for offset in [0, 1, view.len() / 2, view.len() - 1] {
                let at = view.as_ptr().wrapping_add(offset);
                assert_eq!(cache.address_of(at), Some(address + offset as u64));
            }
            address += view.len() as u64;
        }
        let third = get(&cache, ReadOnly, 8).unwrap();
        let start = third.view(0).unwrap().as_ptr();
        assert_eq!(cache.address_of(start.wrapping_add(FRAME - 1)), Some(9 * FRAME as u64 - 1));
        assert_eq!(cache.address_of(start.wrapping_add(FRAME)), None, "a hole");
        assert_eq!(cache.address_of(start.wrapping_add(2 * FRAME)), Some(10 * FRAME as u64));
        drop(pinned);
        drop(third);
        cache.invalidate_all();
        let alone = get(&cache, ReadOnly, 0).unwrap();
        let end = alone.view(0).unwrap().as_ptr().wrapping_add(BUCKET);
        assert_eq!(cache.address_of(end.wrapping_sub(1)), Some(BUCKET as u64 - 1));
        assert_eq!(cache.address_of(end), None, "past its end, where no other bucket is mapped");
        for at in [std::ptr::null(), (&raw const address).cast(), std::ptr::without_provenance(usize::MAX)] {
            assert_eq!(cache.address_of(at), None);
        }
    });
}

#[test]
fn hits_still_count_after_their_bucket_is_gone() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 8);
        let cache = cache(&memory, guest.domid(), 2);
        for frame in [0, 0, 0, 4] {
            get(&cache, ReadOnly, frame).unwrap();
        }
        cache.invalidate_all();
        for protection in [ReadOnly, ReadOnly, ReadWrite] {
            get(&cache, protection, 4).unwrap(); // the last one maps it again
        }
        let statistics = cache.statistics();
        assert_eq!((statistics.hits, statistics.misses), (3, 4));
    });
}

#[test]
fn prefetched_range_is_hit() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 18);
        let cache = cache(&memory, guest.domid(), 8);

        cache.prefetch(ReadOnly, 100..BUCKET as u64 + 1).unwrap();
        cache.prefetch(ReadOnly, 7..7).unwrap();
        cache.prefetch(ReadOnly, 3 * BUCKET as u64..9 * BUCKET as u64).unwrap(); // no RAM from frame 18 on
        cache.prefetch(ReadOnly, u64::MAX - 1..u64::MAX).unwrap();

        assert_eq!((mapped_buckets(&cache), cache.statistics().pinned), (4, 0));
        let misses = cache.statistics().misses;
        for frame in (0..8).chain(12..18) {
            get(&cache, ReadOnly, frame).unwrap();
        }
        assert_eq!(cache.statistics().misses, misses);
        cache.prefetch(ReadWrite, 0..1).unwrap();
        assert_eq!(cache.statistics().misses, misses + 1, "it is mapped again for writing");
    });
}

#[test]
fn impossible_requests_are_errors() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 4);
        let cache = cache(&memory, guest.domid(), 4);
        assert!(matches!(cache.get(ReadOnly, 0, 0), Err(Error::Empty)));
        let end = 1_u64 << 52;
        refused(cache.get(ReadOnly, end - 8, 8));
        for (address, len) in [(end - 7, 8), (end, 1), (u64::MAX, 1), (u64::MAX, usize::MAX), (8, usize::MAX)] {
            let result = cache.get(ReadOnly, address, len);
            assert!(
                matches!(result, Err(Error::InvalidNumber(InvalidNumber::Frame { .. }))),
                "{address:#x} {len:#x}: {result:?}"
            );
        }
        assert_eq!((cache.statistics().pinned, cache.statistics().mapped_bytes), (0, 0));
    });
}

#[test]
fn impossible_sizes_are_errors() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 4);
        let with = |bucket_size, budget| {
            let mut config = CacheConfig::default();
            (config.bucket_size, config.budget) = (bucket_size, budget);
            MapCache::with_config(Guest::open(&memory, guest.domid()).unwrap(), config)
        };
        for (bucket_size, budget) in
            [(0, 0), (0, 1 << 30), (2048, 1 << 30), (3 * FRAME, 1 << 30), (2 << 30, 4 << 30), (FRAME, FRAME - 1)]
        {
            let result = with(bucket_size, budget);
            assert!(matches!(result, Err(Error::CacheConfig { .. })), "{bucket_size} {budget}");
        }
        for (bucket_size, budget) in [(FRAME, FRAME), (FRAME, usize::MAX), (1 << 20, usize::MAX)] {
            get(&with(bucket_size, budget).unwrap(), ReadOnly, 3).unwrap();
        }
        with(1 << 30, 1 << 30).unwrap();
    });
}

#[test]
fn restricted_handle_is_enough() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        guest.number_frames();
        memory.restrict(guest.domid()).unwrap();
        let cache = MapCache::new(Guest::with_kind(&memory, guest.domid(), GuestKind::Hvm));
        assert_eq!(get(&cache, ReadWrite, 9).unwrap().read::<u64>(0).unwrap(), 9);
    });
}

#[test]
fn threads_share_a_cache_and_hand_guards_on() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<MapCache>();
    is_shared::<Pinned<'static>>();
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        std::thread::scope(|scope| {
            let pinned = get(&cache, ReadWrite, 3).unwrap();
            scope.spawn(move || pinned.write(0, 3_u64).unwrap());
            scope.spawn(|| get(&cache, ReadWrite, 4).unwrap().write(0, 4_u64).unwrap());
        });
        assert_eq!(cache.statistics().pinned, 0);
        for frame in [3, 4] {
            assert_eq!(get(&cache, ReadOnly, frame).unwrap().read::<u64>(0).unwrap(), frame);
        }
    });
}

#[test]
fn cache_of_a_shared_handle_borrows_nothing() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = MapCache::new(Guest::open(&memory, guest.domid()).unwrap());
        std::thread::spawn(move || get(&cache, ReadWrite, 3).map(drop).unwrap()).join().unwrap();
    });
}

#[test]
fn sizes_for_small_reads_depend_on_what_a_frame_costs() {
    for (dom0, frames) in [(Dom0::Pv, 16), (Dom0::Pvh, 2), (Dom0::Arm, 2)] {
        let host = mock(dom0);
        let domain = host.create_domain(GuestKind::Pvh, 64);
        let memory = host.open().unwrap();
        let config = CacheConfig::for_small_reads(&memory);
        assert_eq!((config.bucket_size, config.budget), (frames * FRAME, 16384 * frames * FRAME));
        let cache = MapCache::with_config(Guest::open(&memory, domain.domid()).unwrap(), config).unwrap();
        cache.get(ReadOnly, 0, 8).unwrap();
        assert_eq!(cache.statistics().mapped_bytes, frames * FRAME);
    }
}
