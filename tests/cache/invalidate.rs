//! When the map cache forgets: invalidation, holes, close.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::buckets::{BUCKET, FRAMES, cache, get, mapped_buckets, refused};
use crate::common::{FRAME, Host, ReadOnly, ReadWrite, on_each_host};
use xenmap::{Access, ForeignMemory, Gfn, GuestKind};

fn hvm_guest(host: &Host, frames: usize) -> (ForeignMemory, crate::common::Guest) {
    (host.open(), host.create(GuestKind::Hvm, frames))
}

#[test]
fn invalidation_reaches_every_bucket_of_the_range_and_no_other() {
    const SIZE: u64 = BUCKET as u64;
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        for (range, expected) in [
            (0..1, vec![0]),
            (0..SIZE, vec![0]),
            (0..SIZE + 1, vec![0, 1]),
            (SIZE - 1..SIZE, vec![0]),
            (SIZE..3 * SIZE, vec![1, 2]),
            (2 * SIZE + 7..u64::MAX, vec![2, 3]),
            (4 * SIZE..5 * SIZE, vec![]),
            (u64::MAX - 1..u64::MAX, vec![]),
            (SIZE + 7..SIZE + 7, vec![]),
            #[expect(clippy::reversed_empty_ranges, reason = "an empty range is the point")]
            (SIZE + 7..7, vec![]),
            #[expect(clippy::reversed_empty_ranges, reason = "an empty range is the point")]
            (9..7, vec![]),
        ] {
            let cache = cache(&memory, guest.domid(), 4);
            cache.prefetch(ReadOnly, 0..4 * SIZE).unwrap();

            cache.invalidate(range.clone());

            assert_eq!(mapped_buckets(&cache), 4 - expected.len(), "{range:?}");
            let misses = |bucket: &u64| {
                let before = cache.statistics().misses;
                get(&cache, ReadOnly, bucket * FRAMES).unwrap();
                cache.statistics().misses != before
            };
            assert_eq!((0..4).filter(misses).collect::<Vec<u64>>(), expected, "{range:?}");
            cache.invalidate_all();
            assert_eq!(mapped_buckets(&cache), 0);
        }
    });
}

#[test]
fn access_after_an_invalidation_sees_the_new_frame() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        guest.number_frames();
        let cache = cache(&memory, guest.domid(), 4);
        let frame = guest.gfns()[5];
        let old = get(&cache, ReadOnly, 5).unwrap();

        guest.balloon_out(frame);
        guest.populate(frame);
        guest.write(frame, 0, &77_u64.to_ne_bytes());

        assert_eq!(get(&cache, ReadOnly, 5).unwrap().read::<u64>(0).unwrap(), 5, "not yet invalidated");
        cache.invalidate(5 * FRAME as u64..6 * FRAME as u64);
        assert_eq!(get(&cache, ReadOnly, 5).unwrap().read::<u64>(0).unwrap(), 77);
        assert_eq!(old.read::<u64>(0).unwrap(), 5, "the guard keeps its frame");
    });
}

#[test]
fn invalidated_mapping_is_unmapped_with_its_last_guard() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        let (one, other) = (get(&cache, ReadOnly, 1).unwrap(), get(&cache, ReadWrite, 1).unwrap());
        let third = get(&cache, ReadWrite, 2).unwrap();

        guest.balloon_out(guest.gfns()[1]);
        cache.invalidate_all();

        let owned = || host.owned(guest.domid());
        assert_eq!(owned(), Some(16));
        get(&cache, ReadOnly, 2).unwrap(); // a new mapping without the ballooned-out frame
        drop(one);
        drop(other);
        assert_eq!((owned(), mapped_buckets(&cache)), (Some(16), 2), "one of the old ones is still in use");
        drop(third);
        assert_eq!((owned(), mapped_buckets(&cache)), (Some(15), 1));
    });
}

#[test]
fn ram_that_comes_back_is_found_without_an_invalidation() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        guest.number_frames();
        let cache = cache(&memory, guest.domid(), 4);
        let frame = guest.gfns()[6];
        guest.balloon_out(frame);
        let neighbour = get(&cache, ReadWrite, 7).unwrap(); // maps the bucket with a hole
        assert_eq!(refused(get(&cache, ReadWrite, 6)), (6 * FRAME as u64, libc::EINVAL));

        guest.populate(frame);
        guest.write(frame, 0, &77_u64.to_ne_bytes());

        assert_eq!(get(&cache, ReadWrite, 6).unwrap().read::<u64>(0).unwrap(), 77);
        assert_eq!(neighbour.read::<u64>(0).unwrap(), 7, "a guard of the old bucket keeps it");
        drop(neighbour);
        assert_eq!(mapped_buckets(&cache), 1, "the old bucket is gone");
    });
}

#[test]
fn hole_is_mapped_again_once_for_each_access_to_it() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        guest.balloon_out(guest.gfns()[6]);

        for misses in 1..=3 {
            get(&cache, ReadOnly, 6).unwrap_err();
            get(&cache, ReadOnly, 7).unwrap();
            assert_eq!((cache.statistics().misses, mapped_buckets(&cache)), (misses, 1));
        }
        cache.prefetch(ReadOnly, 0..4 * BUCKET as u64).unwrap();
        assert_eq!(cache.statistics().misses, 3 + 3, "a prefetch requests no frame in particular");
    });
}

#[test]
fn bucket_without_any_ram_is_not_cached() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        get(&cache, ReadOnly, 17).unwrap_err();
        assert_eq!(cache.statistics().mapped_bytes, 0);

        guest.populate(Gfn::new(17).unwrap());

        get(&cache, ReadOnly, 17).unwrap();
    });
}

#[test]
fn address_of_finds_stale_buckets_while_they_are_in_use() {
    on_each_host(|host| {
        let (memory, guest) = hvm_guest(host, 16);
        let cache = cache(&memory, guest.domid(), 4);
        let old = get(&cache, ReadOnly, 5).unwrap();
        cache.invalidate_all();
        let new = get(&cache, ReadOnly, 5).unwrap();
        let (at, new_at) = (old.view(0).unwrap().as_ptr(), new.view(0).unwrap().as_ptr());
        assert_ne!(at, new_at);

        let address = Some(5 * FRAME as u64);
        assert_eq!((cache.address_of(at), cache.address_of(new_at)), (address, address));
        drop(old);
        assert_eq!((cache.address_of(at), cache.address_of(new_at)), (None, address));
        drop(new);
        assert_eq!(cache.address_of(new_at), address, "not in use, but mapped");
    });
}

#[test]
fn closed_cache_maps_nothing_and_keeps_buckets_in_use() {
    on_each_host(|host| {
        let (memory, mut guest) = hvm_guest(host, 16);
        guest.number_frames();
        let cache = cache(&memory, guest.domid(), 4);
        let pinned = get(&cache, ReadOnly, 5).unwrap();
        drop(get(&cache, ReadOnly, 9).unwrap());
        guest.destroy();
        get(&cache, ReadOnly, 9).unwrap(); // mapped frames of a dead guest stay readable

        cache.close();

        assert_eq!(host.owned(guest.domid()), Some(FRAMES));
        assert_eq!(pinned.read::<u64>(0).unwrap(), 5);
        assert_eq!(refused(get(&cache, ReadOnly, 5)), (5 * FRAME as u64, libc::ESRCH), "even a bucket in use");
        assert_eq!(refused(cache.get(ReadOnly, 100, BUCKET)), (100, libc::ESRCH));
        cache.prefetch(ReadOnly, 0..1).unwrap_err();
        drop(pinned);
        assert_eq!(host.owned(guest.domid()), None);
        assert_eq!(cache.statistics().mapped_bytes, 0);
    });
}

#[test]
fn constant_invalidation_starves_nobody() {
    const GETS: u64 = 200;
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let cache = cache(&memory, guest.domid(), 4);
        let is_over = AtomicBool::new(false);

        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    cache.invalidate_all();
                }
            });
            for _ in 0..GETS {
                cache.get(ReadOnly, 0, 8).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });

        assert!(cache.statistics().misses <= GETS, "each get maps at most once");
        cache.invalidate_all();
        assert_eq!(cache.statistics().mapped_bytes, 0);
    });
}
