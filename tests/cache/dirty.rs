//! Tracking which frames guards have written, for migration.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::single_range_in_vec_init, reason = "lists with one range")]

use std::io::{Seek, Write};
use std::sync::atomic::Ordering;

use crate::buckets::{BUCKET, cache};
use crate::common::{FRAME, Host, ReadOnly, ReadWrite, on_each_host};
use xenmap::{Access, ForeignMemory, GuestKind, MapCache, Pinned, Result};

/// Runs a test with a cache that has room for two buckets of four frames.
fn with_cache(test: impl Fn(&MapCache)) {
    on_each_host(|host: &Host| {
        let memory: ForeignMemory = host.open();
        let guest = host.create(GuestKind::Hvm, 32);
        test(&cache(&memory, guest.domid(), 2));
    });
}

fn write(cache: &MapCache, frame: usize) {
    cache.get(ReadWrite, (frame * FRAME) as u64, 8).unwrap().write(0, 1_u64).unwrap();
}

#[test]
fn nothing_is_dirty_unless_it_is_tracked() {
    with_cache(|cache| {
        write(cache, 1);
        cache.track_dirty(true);
        assert!(cache.take_dirty().is_empty());
        write(cache, 2);
        cache.track_dirty(false);
        write(cache, 3);
        assert_eq!(cache.take_dirty(), [2..3], "writes before tracking ended");
    });
}

#[test]
fn guard_from_before_tracking_began_is_tracked_too() {
    with_cache(|cache| {
        let pinned = cache.get(ReadWrite, 0, FRAME).unwrap();
        let view = pinned.view(0).unwrap();
        cache.track_dirty(true);
        view.write(0, 1_u8).unwrap();
        assert_eq!(cache.take_dirty(), [0..1]);
    });
}

/// Writes at an offset.
type Way = fn(&Pinned<'_>, usize) -> Result<()>;

#[test]
fn every_kind_of_write_is_tracked() {
    let ways: [(&str, Way); 16] = [
        ("write_bytes", |pinned, at| pinned.write_bytes(at, &[1])),
        ("fill", |pinned, at| pinned.fill(at, 8, 1)),
        ("write", |pinned, at| pinned.write(at, 1_u64)),
        ("unaligned write", |pinned, at| pinned.write(at + 1, 1_u32)),
        ("store", |pinned, at| pinned.store(at, 2_u64, Ordering::Release)),
        ("swap", |pinned, at| pinned.swap(at, 3_u64).map(|before| assert_eq!(before, 2))),
        ("compare_exchange", |pinned, at| {
            pinned.compare_exchange(at, 3_u64, 4).map(|exchanged| assert_eq!(exchanged, Ok(3)))
        }),
        ("fetch_add", |pinned, at| pinned.fetch_add(at, 4_u64).map(|before| assert_eq!(before, 4))),
        ("fetch_or", |pinned, at| pinned.fetch_or(at, 1_u64).map(|before| assert_eq!(before, 8))),
        ("fetch_and", |pinned, at| pinned.fetch_and(at, 1_u64).map(|before| assert_eq!(before, 9))),
        ("read_from", |pinned, at| pinned.read_from(at, 8, std::fs::File::open("/dev/zero").unwrap())),
        ("mark_dirty", |pinned, at| pinned.mark_dirty(at, 1)),
        ("view", |pinned, at| pinned.view(at)?.write(0, 1_u8)),
        ("slice of a view", |pinned, at| pinned.view(at)?.slice(1, 8)?.store(7, 1_u8, Ordering::Relaxed)),
        ("views", |pinned, at| pinned.views().next().unwrap().write_bytes(at, &[1])),
        ("file that ends too early", |pinned, at| {
            let mut file = tempfile();
            file.write_all(b"four").unwrap();
            file.rewind().unwrap();
            pinned.read_from(at, 8, file).unwrap_err();
            Ok(())
        }),
    ];
    with_cache(|cache| {
        cache.track_dirty(true);
        let pinned = cache.get(ReadWrite, 4 * FRAME as u64, BUCKET).unwrap();
        for (name, way) in ways {
            way(&pinned, 2 * FRAME + 8).unwrap();
            assert_eq!(cache.take_dirty(), [6..7], "{name}");
            assert!(cache.take_dirty().is_empty(), "{name}: taking clears it");
        }
    });
}

fn tempfile() -> std::fs::File {
    let name = c"xenmap-test";
    let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty()).unwrap();
    fd.into()
}

#[test]
fn reads_and_failed_writes_are_not_tracked() {
    with_cache(|cache| {
        cache.track_dirty(true);
        let pinned = cache.get(ReadWrite, 0, BUCKET).unwrap();
        pinned.read::<u64>(0).unwrap();
        pinned.load::<u64>(0, Ordering::Acquire).unwrap();
        pinned.read_bytes(0, &mut [0; 5000]).unwrap();
        assert!(pinned.is_zero(0, BUCKET).unwrap());
        assert!(pinned.eq_bytes(0, &[0; 5000]).unwrap());
        pinned.write_to(0, 100, std::fs::File::options().write(true).open("/dev/null").unwrap()).unwrap();
        assert_eq!(pinned.compare_exchange(0, 1_u8, 2).unwrap(), Err(0));
        pinned.write_bytes(5, &[]).unwrap();
        pinned.mark_dirty(5, 0).unwrap();
        pinned.write_bytes(BUCKET - 1, &[1, 2]).unwrap_err();
        pinned.write(BUCKET - 1, 1_u16).unwrap_err();
        pinned.store(4, 1_u64, Ordering::Relaxed).unwrap_err();
        cache.get(ReadOnly, 0, 8).unwrap().write(0, 1_u8).unwrap_err();
        assert!(cache.take_dirty().is_empty());
    });
}

#[test]
fn adjacent_dirty_frames_form_one_range() {
    with_cache(|cache| {
        cache.track_dirty(true);
        let pinned = cache.get(ReadWrite, 100, 3 * BUCKET).unwrap();
        pinned.write_bytes(FRAME, &vec![1; 2 * BUCKET]).unwrap();
        assert_eq!(cache.take_dirty(), [1..10]);
        pinned.write(BUCKET - 104, 1_u64).unwrap(); // half in each of two buckets
        assert_eq!(cache.take_dirty(), [3..5]);
        pinned.write(0, 1_u8).unwrap();
        pinned.write(2 * BUCKET, 1_u8).unwrap();
        pinned.write(2 * BUCKET + FRAME, 1_u8).unwrap();
        assert_eq!(cache.take_dirty(), [0..1, 8..10]);
    });
}

#[test]
fn writes_are_remembered_after_the_bucket_is_gone() {
    with_cache(|cache| {
        cache.track_dirty(true);
        for bucket in (0..8).rev() {
            write(cache, 4 * bucket + 1);
        }
        assert_eq!(cache.statistics().evictions, 6);
        let expected: Vec<_> = (0..8).map(|bucket| 4 * bucket + 1..4 * bucket + 2).collect();
        assert_eq!(cache.take_dirty(), expected);

        let pinned = cache.get(ReadWrite, 0, 8).unwrap();
        pinned.write(0, 1_u8).unwrap();
        cache.invalidate_all();
        assert_eq!(cache.take_dirty(), [0..1], "while the guard exists");
        pinned.write(0, 1_u8).unwrap();
        drop(pinned);
        assert_eq!(cache.take_dirty(), [0..1], "after the guard is dropped");
        write(cache, 3);
        cache.close();
        assert_eq!(cache.take_dirty(), [3..4], "after close");
    });
}
