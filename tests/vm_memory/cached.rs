//! A guest's RAM, mapped by the map cache, through rust-vmm's vm-memory traits.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::common::{FRAME, MOCKS, ReadOnly, mock, mock_with_pages, on_each_host, pfns};
use crate::hole::{HOLE, at, gfn, with_a_hole};
use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryError, Permissions, VolatileSlice};
use xenmap::mock::{Dom0, Fault, MockDomain, MockHost};
use xenmap::vm_memory::{CachedMemory, DirtySlice, PinnedMemory};
use xenmap::{CacheConfig, Domid, Error, ForeignMemory, Guest, GuestKind, InvalidNumber, MapCache, NumberRange, Pfn};

/// Returns 16 frames of RAM through a cache, with `frames` frames per bucket and a budget of `buckets` buckets.
fn cached(memory: &ForeignMemory, domid: Domid, frames: usize, buckets: usize) -> CachedMemory {
    let mut config = CacheConfig::default();
    config.bucket_size = frames * FRAME;
    config.budget = buckets * frames * FRAME;
    let cache = MapCache::with_config(Guest::open(memory, domid).unwrap(), config).unwrap();
    CachedMemory::new(Arc::new(cache), &[0..8, 8..16].map(pfns))
}

/// Runs a test with such RAM on a simulated host, whose references can be counted.
fn on_the_mock(frames: usize, buckets: usize, test: impl Fn(&MockHost, &MockDomain, CachedMemory)) {
    for (dom0, page_size) in MOCKS {
        let host = mock_with_pages(dom0, page_size);
        let domain = host.create_domain(GuestKind::Hvm, 16);
        let memory = host.open().unwrap();
        test(&host, &domain, cached(&memory, domain.domid(), frames, buckets));
        assert_eq!(host.references(domain.domid()), 0, "{dom0:?}");
    }
}

fn slices(
    memory: &PinnedMemory,
    address: GuestAddress,
    count: usize,
) -> Vec<Result<VolatileSlice<'_, DirtySlice<'_>>, GuestMemoryError>> {
    match memory.get_slices(address, count, Permissions::ReadWrite) {
        Ok(slices) => slices.collect(),
        Err(e) => vec![Err(e)],
    }
}

fn slice(memory: &PinnedMemory, address: GuestAddress, count: usize) -> VolatileSlice<'_, DirtySlice<'_>> {
    slices(memory, address, count).remove(0).unwrap()
}

#[test]
fn writes_reach_the_guest() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 4, 1).memory();
        assert_eq!(ram.read_obj::<u64>(at(6, 0)).unwrap(), 6);
        ram.write_slice(b"a text across the border", at(7, FRAME - 6)).unwrap();
        assert_eq!(guest.read(gfn(7), FRAME - 6, 6), b"a text");
        assert_eq!(guest.read(gfn(8), 0, 18), b" across the border");
        guest.write(gfn(15), 4, &0x1234_5678_u32.to_ne_bytes());
        assert_eq!(ram.load::<u32>(at(15, 4), Ordering::Acquire).unwrap(), 0x1234_5678);
        ram.store(9_u16, at(15, FRAME - 2), Ordering::Release).unwrap();
        assert_eq!(guest.read(gfn(15), FRAME - 2, 2), 9_u16.to_ne_bytes());
    });
}

#[test]
fn slices_end_at_the_borders_of_buckets() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 4, 1).memory();
        let lens: Vec<_> = slices(&ram, at(3, 4000), 6 * FRAME).into_iter().map(|s| s.unwrap().len()).collect();
        assert_eq!(lens, [96, 4 * FRAME, 2 * FRAME - 96]);
        assert!(slices(&ram, at(3, 4000), 0).is_empty());
        assert!(slices(&ram, GuestAddress(u64::MAX), 0).is_empty());
    });
}

#[test]
fn no_slice_spans_a_hole() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 4, 1).memory();
        assert!(slices(&ram, at(4, 0), FRAME)[0].is_ok());
        let all = slices(&ram, at(2, 0), 10 * FRAME);
        assert_eq!(all.len(), 2, "a slice follows the error");
        assert_eq!(all[0].as_ref().unwrap().len(), 2 * FRAME);
        let Err(GuestMemoryError::IOError(e)) = &all[1] else { panic!("{:?}", all[1]) };
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
        let Some(Error::GuestAddress { address, errno, .. }) = e.get_ref().unwrap().downcast_ref() else {
            panic!("{e:?}")
        };
        assert_eq!((*address, *errno), (at(5, 0).0, libc::EINVAL));
    });
}

#[test]
fn check_range_accepts_only_accessible_ranges() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 2, 1);
        let ok = |address, count| ram.memory().check_range(address, count, Permissions::ReadWrite);
        assert!(ok(at(0, 1), 5 * FRAME - 1));
        assert!(!ok(at(0, 1), 5 * FRAME));
        assert!(ok(at(6, 0), 10 * FRAME));
        assert!(!ok(at(6, 0), 10 * FRAME + 1));
        assert!(!ok(at(5, FRAME - 1), 1));
        assert!(ok(at(16, 0), 0));
        assert!(!ok(GuestAddress(u64::MAX), usize::MAX));
    });
}

#[test]
fn range_that_is_not_all_ram_maps_nothing() {
    on_the_mock(4, 4, |host, domain, ram| {
        let memory = ram.memory();
        for (address, count, first) in [
            (at(0, 0), 16 * FRAME + 1, at(16, 0)),
            (at(3, 7), (1 << 32) + 1, at(16, 0)),
            (at(3, 7), usize::MAX, at(16, 0)),
            (at(16, 0), 1, at(16, 0)),
            (GuestAddress(1 << 52), 8, GuestAddress(1 << 52)),
            (GuestAddress(u64::MAX), 1, GuestAddress(u64::MAX)),
            (GuestAddress(u64::MAX), usize::MAX, GuestAddress(u64::MAX)),
        ] {
            let error = slices(&memory, address, count).remove(0).unwrap_err();
            assert!(matches!(error, GuestMemoryError::InvalidGuestAddress(a) if a == first), "{address:?}: {error}");
            assert!(!memory.check_range(address, count, Permissions::Read));
        }
        assert_eq!(ram.cache().statistics().misses, 0);
        assert_eq!(host.references(domain.domid()), 0);
    });
}

#[test]
fn ram_past_the_last_frame_number_is_refused() {
    on_the_mock(1, 1, |_, _, ram| {
        for numbers in [0..(1 << 40) + 1, u64::MAX - 1..u64::MAX, 0..u64::MAX] {
            assert!(matches!(NumberRange::<Pfn>::try_from(numbers), Err(InvalidNumber::Frame { .. })));
        }
        let last = CachedMemory::new(Arc::clone(ram.cache()), &[0..1, (1 << 40) - 1..1 << 40].map(pfns));
        assert!(last.memory().read_obj::<u8>(GuestAddress((1 << 52) - 1)).is_err(), "no frame there");
        let nothing = CachedMemory::new(Arc::clone(ram.cache()), &[]);
        assert!(nothing.memory().read_obj::<u8>(at(0, 0)).is_err());
    });
}

#[test]
fn address_is_never_moved_to_the_start_of_its_page() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16);
        guest.write(gfn(5), 0x123, b"here");
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 4, 1).memory();
        assert_eq!(slice(&ram, at(5, 0x123), 4).ptr_guard().as_ptr().addr() % FRAME, 0x123);
        assert_eq!(&ram.read_obj::<[u8; 4]>(at(5, 0x123)).unwrap(), b"here");
    });
}

#[test]
fn hit_makes_no_hypercall() {
    on_the_mock(4, 4, |host, domain, ram| {
        ram.memory().read_slice(&mut vec![0; 16 * FRAME], at(0, 0)).unwrap();
        let before = host.hypercalls();
        for i in 0..1000 {
            let memory = ram.memory();
            memory.write_obj(i, at(i % 15, FRAME - 4)).unwrap();
            assert_eq!(memory.read_obj::<u64>(at(i % 15, FRAME - 4)).unwrap(), i);
        }
        assert_eq!(host.hypercalls(), before);
        assert_eq!(ram.cache().statistics().misses, 4);
        assert_eq!(host.references(domain.domid()), 16);
    });
}

#[test]
fn slice_for_reading_can_be_written_by_safe_code() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 4, 1);
        // The bucket was mapped read-only before.
        drop(ram.cache().get(ReadOnly, 0, 8).unwrap());
        for access in [Permissions::No, Permissions::Read, Permissions::Write, Permissions::ReadWrite] {
            let memory = ram.memory();
            let slice = memory.get_slices(at(0, 0), 8, access).unwrap().next().unwrap().unwrap();
            slice.write_slice(b"no crash", 0).unwrap();
        }
        assert_eq!(guest.read(gfn(0), 0, 8), b"no crash");
    });
}

#[test]
fn slices_survive_eviction_invalidation_and_close() {
    on_the_mock(2, 1, |host, domain, ram| {
        domain.write(gfn(3), 0, b"before");
        let memory = ram.memory();
        let slice = slice(&memory, at(3, 0), 6);
        let contents = || slice.load::<u32>(0, Ordering::Relaxed).unwrap().to_ne_bytes();

        // Evicts the others, but not the pinned bucket.
        for frame in [4, 6, 8, 10] {
            ram.memory().read_obj::<u8>(at(frame, 0)).unwrap();
        }
        assert_eq!(host.references(domain.domid()), 4, "this bucket, and one within the budget");
        assert_eq!(&contents(), b"befo");

        domain.balloon_out(gfn(3));
        domain.populate(&[gfn(3)]);
        domain.write(gfn(3), 0, b"after!");
        ram.cache().invalidate_all();
        assert_eq!(host.references(domain.domid()), 2);
        assert_eq!(&contents(), b"befo", "the slice keeps its page");

        // The same object now sees the new page, and keeps both.
        assert_eq!(&memory.read_obj::<[u8; 6]>(at(3, 0)).unwrap(), b"after!");
        assert_eq!(&contents(), b"befo");
        assert_eq!(host.references(domain.domid()), 4);

        ram.cache().close();
        assert!(memory.read_obj::<u8>(at(3, 0)).is_err());
        assert_eq!(&contents(), b"befo");
        drop(ram);
        assert_eq!(host.references(domain.domid()), 4);
        assert_eq!(&contents(), b"befo");
        drop(memory);
        assert_eq!(host.references(domain.domid()), 0);
    });
}

#[test]
fn pins_are_released_with_the_last_clone() {
    on_the_mock(2, 1, |_, _, ram| {
        let pinned = || ram.cache().statistics().pinned;
        let memory = ram.memory();
        let other = Arc::clone(&memory);
        for _ in 0..100 {
            slice(&memory, at(1, 0), FRAME);
            memory.read_slice(&mut [0; 4 * FRAME], at(1, 9)).unwrap();
        }
        assert_eq!(pinned(), 3);
        assert!(memory.check_range(at(0, 0), 16 * FRAME, Permissions::Read));
        assert_eq!(pinned(), 3, "check_range pins nothing");
        drop(memory);
        assert_eq!(pinned(), 3);
        drop(other);
        assert_eq!(pinned(), 0);
    });
}

#[test]
fn hole_that_was_filled_is_found() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 4, 4);
        ram.memory().read_obj::<u8>(at(HOLE + 1, 0)).unwrap(); // in the bucket of the hole
        assert!(ram.memory().read_obj::<u8>(at(HOLE, 0)).is_err());
        guest.populate(gfn(HOLE));
        ram.memory().write_obj(1_u8, at(HOLE, 0)).unwrap();
        assert_eq!(guest.read(gfn(HOLE), 0, 1), [1]);
    });
}

#[test]
fn written_frames_are_reported() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 4, 1);
        let memory = ram.memory();
        memory.write_obj(1_u8, at(1, 0)).unwrap();
        ram.cache().track_dirty(true);
        memory.read_obj::<u64>(at(2, 0)).unwrap();
        memory.write_obj(1_u64, at(3, FRAME - 4)).unwrap();
        memory.store(1_u8, at(7, 0), Ordering::Relaxed).unwrap();
        let part = slice(&memory, at(8, 0), 4 * FRAME).offset(FRAME + 1).unwrap();
        part.subslice(FRAME - 1, 2).unwrap().copy_from(&[1_u8]);
        assert_eq!(ram.cache().take_dirty(), [3..5, 7..8, 10..11]);

        // Code that writes through the pointer marks what it wrote; marks outside the slice are ignored.
        part.bitmap().mark_dirty(FRAME - 2, 2);
        part.bitmap().mark_dirty(usize::MAX, usize::MAX);
        part.bitmap().slice_at(2 * FRAME).mark_dirty(0, usize::MAX);
        part.bitmap().slice_at(usize::MAX).mark_dirty(0, 1);
        memory.write_obj(1_u8, at(13, 0)).unwrap();
        assert!(part.bitmap().dirty_at(0) && part.bitmap().dirty_at(FRAME) && !part.bitmap().dirty_at(usize::MAX));
        assert_eq!(ram.cache().take_dirty(), [9..12, 13..14]);
        ram.cache().track_dirty(false);
        memory.write_obj(1_u8, at(1, 0)).unwrap();
        assert!(ram.cache().take_dirty().is_empty());
    });
}

#[test]
fn dead_guest_is_freed_when_nothing_is_pinned() {
    on_each_host(|host| {
        let mut guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let ram = cached(&memory, guest.domid(), 4, 4);
        let request = ram.memory();
        request.write_slice(&vec![1; 8 * FRAME], at(0, 0)).unwrap();
        guest.destroy();
        ram.cache().close();
        assert!(host.owned(guest.domid()).is_some(), "a zombie");
        let error = slices(&request, at(0, 0), 1).remove(0).unwrap_err();
        assert!(error.to_string().contains("no such domain"), "{error}");
        drop(request);
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn failed_map_fails_only_that_access() {
    on_the_mock(4, 4, |host, _, ram| {
        let memory = ram.memory();
        for fault in [Fault::MapBatch(libc::ENOMEM), Fault::Mmap(libc::ENOMEM), frame_fails(1, libc::EBUSY)] {
            host.inject(fault);
            let Err(GuestMemoryError::IOError(e)) = memory.read_obj::<u8>(at(1, 0)) else { panic!("{fault:?}") };
            assert!(e.get_ref().unwrap().is::<Error>());
            memory.write_obj(1_u8, at(1, 0)).unwrap();
            ram.cache().invalidate_all();
        }
    });
}

fn frame_fails(index: usize, errno: i32) -> Fault {
    Fault::Frame { index, error: -errno }
}

#[test]
fn no_guest_address_causes_a_panic() {
    on_the_mock(2, 1, |_, domain, ram| {
        domain.balloon_out(gfn(HOLE));
        let memory = ram.memory();
        let numbers =
            [0, 1, 7, 8, FRAME - 1, FRAME, 2 * FRAME + 1, 1 << 31, (1 << 32) + 1, usize::MAX >> 1, usize::MAX];
        let addresses = [at(0, 0), at(1, FRAME - 1), at(4, 8), at(5, 0), at(15, FRAME - 1), at(16, 0)];
        for address in addresses.into_iter().chain(numbers.map(|n| GuestAddress(n as u64))) {
            for count in numbers {
                assert!(slices(&memory, address, count).len() <= 9, "at most one slice per bucket, and an error");
                memory.check_range(address, count, Permissions::Write);
            }
            for order in [Ordering::Relaxed, Ordering::SeqCst] {
                drop(memory.load::<u64>(address, order));
                drop(memory.store(0_u64, address, order));
                drop(memory.load::<u8>(address, order));
            }
            drop(memory.read(&mut [0; 100], address));
            drop(memory.write(&[0; 100], address));
            drop(memory.write_volatile_to(address, &mut Vec::<u8>::new(), usize::MAX));
            drop(memory.read_volatile_from(address, &mut [0_u8; 100].as_slice(), usize::MAX));
        }
    });
}

#[test]
fn threads_share_an_object() {
    on_the_mock(1, 2, |_, domain, ram| {
        let memory = ram.memory();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let memory = &memory;
                scope.spawn(move || {
                    for i in 0..500_u64 {
                        memory.write_obj(i, at(i % 16, 8 * thread)).unwrap();
                        assert_eq!(memory.read_obj::<u64>(at(i % 16, 8 * thread)).unwrap(), i);
                    }
                });
            }
        });
        assert_eq!(domain.read(gfn(3), 0, 8), 499_u64.to_ne_bytes());
        assert_eq!(ram.cache().statistics().pinned, 16);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random accesses have the same results as on a plain array, where there is RAM.
    #[test]
    fn accesses_match_a_plain_array(
        holes in proptest::collection::btree_set(0_u64..16, 0..4),
        frames in 0_u32..4,
        accesses in proptest::collection::vec((0_usize..17 * FRAME, 0_usize..3 * FRAME, any::<u8>(), 0..8), 1..40),
    ) {
        let host = mock(Dom0::Pvh);
        let domain = host.create_domain(GuestKind::Hvm, 16);
        for &hole in &holes {
            domain.balloon_out(gfn(hole));
        }
        let foreign = host.open().unwrap();
        let ram = cached(&foreign, domain.domid(), 1 << frames, 2);
        let mut model = vec![0; 16 * FRAME];
        let has_ram = |frame: usize| frame < 16 && !holes.contains(&(frame as u64));
        let mut memory = ram.memory();
        for (start, len, value, kind) in accesses {
            let address = GuestAddress(start as u64);
            let range = start..start + len;
            let is_ram = len == 0 || (start / FRAME..range.end.div_ceil(FRAME)).all(has_ram);
            match kind {
                0 => memory = ram.memory(),
                1 => ram.cache().invalidate(address.0..address.0 + len as u64),
                2 => prop_assert_eq!(memory.check_range(address, len, Permissions::Read), is_ram),
                3 | 4 => {
                    let mut bytes = vec![0xEE; len];
                    prop_assert_eq!(memory.read_slice(&mut bytes, address).is_ok(), is_ram);
                    prop_assert!(!is_ram || len == 0 || bytes == model[range]);
                }
                // An access that reaches a hole would write the part before it.
                _ if is_ram && len != 0 => {
                    memory.write_slice(&vec![value; len], address).unwrap();
                    model[range].fill(value);
                }
                _ => {}
            }
        }
        for frame in (0..16).filter(|&frame| has_ram(frame)) {
            prop_assert!(domain.read(gfn(frame as u64), 0, FRAME) == model[frame * FRAME..][..FRAME]);
        }
        drop((memory, ram));
        prop_assert_eq!(host.references(domain.domid()), 0);
    }
}
