//! Structures and arrays, in a view and in a guard of the map cache.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::single_range_in_vec_init, reason = "a list with one range")]

use crate::buckets::{BUCKET, cache};
use crate::common::{FRAME, ReadOnly, ReadWrite, on_each_host, with_each_guest};
use crate::memory::{LEN, on_each_memory};
use xenmap::{Access, Error, GuestKind, Result};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// A descriptor of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const SIZE: usize = size_of::<Descriptor>();

/// A structure with padding.
#[derive(Debug, PartialEq, FromBytes)]
#[repr(C)]
struct Padded {
    byte: u8,
    word: u32,
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Nothing;

/// The offset of a guard's second bucket.
const BORDER: usize = FRAME;

/// Returns a descriptor in which neighbouring bytes differ.
fn descriptor(n: u16) -> Descriptor {
    Descriptor { address: 0x0102_0304_0506_0708 + u64::from(n), len: 0x1112_1314, flags: 0x2122, next: n }
}

fn descriptors(count: u16) -> Vec<Descriptor> {
    (0..count).map(descriptor).collect()
}

fn bytes(memory: &impl Access, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_bytes(offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn structure_reads_back_at_any_offset() {
    on_each_memory!(ReadWrite, |memory| {
        for offset in [0, 1, 7, BORDER - SIZE, BORDER - 15, BORDER - 8, BORDER - 1, BORDER, BORDER + 3, LEN - SIZE] {
            memory.fill(0, LEN, 0xEE).unwrap();
            memory.write_as(offset, &descriptor(9)).unwrap();
            assert_eq!(memory.read_as::<Descriptor>(offset).unwrap(), descriptor(9), "{offset:#x}");
            assert_eq!(bytes(memory, offset, SIZE), descriptor(9).as_bytes(), "{offset:#x}");
            let mut found = descriptor(0);
            memory.read_into(offset, &mut found).unwrap();
            assert_eq!(found, descriptor(9), "{offset:#x}");
            assert!(memory.eq_bytes(0, &vec![0xEE; offset]).unwrap(), "before {offset:#x}");
            let rest = LEN - offset - SIZE;
            assert!(memory.eq_bytes(offset + SIZE, &vec![0xEE; rest]).unwrap(), "after {offset:#x}");
        }
    });
}

#[test]
fn array_reads_back_across_the_border() {
    on_each_memory!(ReadWrite, |memory| {
        for (offset, count) in [(3, 4), (BORDER - 41, 5), (BORDER, 1), (1, u16::try_from(LEN / SIZE - 1).unwrap())] {
            let written = descriptors(count);
            memory.write_as(offset, &written[..]).unwrap();
            let mut read = vec![descriptor(0xFFFF); written.len()];
            memory.read_into(offset, &mut read[..]).unwrap();
            assert!(read == written, "{count} at {offset:#x}");
            assert_eq!(bytes(memory, offset, written.len() * SIZE), written.as_bytes(), "{count} at {offset:#x}");
        }
        memory.write_as(BORDER - 24, &[descriptor(1), descriptor(2), descriptor(3)]).unwrap();
        let read: [Descriptor; 3] = memory.read_as(BORDER - 24).unwrap();
        assert_eq!(read, [descriptor(1), descriptor(2), descriptor(3)]);
    });
}

#[test]
fn structure_with_padding_can_be_read() {
    on_each_memory!(ReadWrite, |memory| {
        for offset in [0, BORDER - 3] {
            memory.write_bytes(offset, &[1, 2, 3, 4, 5, 0, 0, 0]).unwrap();
            let word = u32::from_ne_bytes([5, 0, 0, 0]);
            assert_eq!(memory.read_as::<Padded>(offset).unwrap(), Padded { byte: 1, word });
        }
    });
}

#[test]
fn empty_access_is_allowed_up_to_the_end() {
    on_each_memory!(ReadWrite, |memory| {
        for offset in [0, BORDER, LEN] {
            memory.read_as::<Nothing>(offset).unwrap();
            memory.write_as(offset, &Nothing).unwrap();
            memory.read_into::<[Descriptor]>(offset, &mut []).unwrap();
            memory.write_as::<[Descriptor]>(offset, &[]).unwrap();
        }
        let past_end: [Result<()>; 2] =
            [memory.read_as::<Nothing>(LEN + 1).map(drop), memory.write_as(LEN + 1, &Nothing)];
        assert!(past_end.iter().all(|r| matches!(r, Err(Error::OutOfBounds { .. }))), "{past_end:?}");
        assert!(memory.is_zero(0, LEN).unwrap());
    });
}

#[test]
fn access_past_the_end_is_refused_and_copies_nothing() {
    on_each_memory!(ReadWrite, |memory| {
        for offset in [LEN - 2 * SIZE + 1, LEN - SIZE + 1, LEN - 1, LEN, usize::MAX - SIZE, usize::MAX] {
            let mut array = descriptors(2);
            let refused = [
                memory.read_as::<[Descriptor; 2]>(offset).map(drop),
                memory.read_into(offset, &mut array[..]),
                memory.write_as(offset, &descriptors(2)[..]),
            ];
            let is_refused = |r: &Result<()>| {
                matches!(r, Err(Error::OutOfBounds { offset: at, len, size: LEN })
                if (*at, *len) == (offset, 2 * SIZE))
            };
            assert!(refused.iter().all(is_refused), "{offset:#x} {refused:?}");
            assert_eq!(array, descriptors(2));
        }
        let mut all = vec![descriptor(1); LEN / SIZE + 1];
        let refused = [memory.read_into(0, &mut all[..]), memory.write_as(0, &all[..])];
        assert!(refused.iter().all(|r| matches!(r, Err(Error::OutOfBounds { .. }))), "{refused:?}");
        assert!(all.iter().all(|one| *one == descriptor(1)));
        assert!(memory.is_zero(0, LEN).unwrap());
    });
}

#[test]
fn writing_read_only_memory_is_refused() {
    on_each_memory!(ReadOnly, |memory| {
        for offset in [0, 5, BORDER - 1, LEN - SIZE] {
            let refused = memory.write_as(offset, &descriptor(1));
            assert!(matches!(refused, Err(Error::ReadOnly { offset: at }) if at == offset), "{refused:?}");
        }
        let refused = memory.write_as(BORDER - 20, &descriptors(3)[..]);
        assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{refused:?}");
        assert_eq!(memory.read_as::<Descriptor>(0).unwrap(), Descriptor::new_zeroed());
    });
}

#[test]
fn structure_that_touches_a_hole_is_refused_and_nothing_is_copied() {
    with_each_guest(4, |host, guest| {
        let mut gfns = guest.gfns();
        gfns[2] = guest.hole();
        let mapping = host.open().map_foreign_batch_partial(guest.domid(), ReadWrite, &gfns).unwrap();
        let view = mapping.view();
        for offset in [2 * FRAME - SIZE + 1, 2 * FRAME - 1, 2 * FRAME, 3 * FRAME - 1] {
            let mut array = descriptors(2);
            let refused = [
                view.read_as::<Descriptor>(offset).map(drop),
                view.read_into(offset, &mut array[..]),
                view.write_as(offset, &descriptor(1)),
            ];
            let is_refused = |r: &Result<()>| {
                matches!(r, Err(Error::Hole { offset: at, frame })
                if (*at, frame.index) == (offset, 2))
            };
            assert!(refused.iter().all(is_refused), "{refused:?}");
            assert_eq!(array, descriptors(2));
        }
        assert!(view.is_zero(0, 2 * FRAME).unwrap() && view.is_zero(3 * FRAME, FRAME).unwrap());
        for offset in [2 * FRAME - SIZE, 3 * FRAME] {
            view.write_as(offset, &descriptor(1)).unwrap();
            assert_eq!(view.read_as::<Descriptor>(offset).unwrap(), descriptor(1));
        }
    });
}

#[test]
fn structures_written_through_a_guard_are_dirty() {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 2 * BUCKET / FRAME));
        let cache = cache(&memory, guest.domid(), 2);
        cache.track_dirty(true);
        let pinned = cache.get(ReadWrite, 0, 2 * BUCKET).unwrap();
        pinned.read_as::<Descriptor>(0).unwrap();
        assert!(cache.take_dirty().is_empty());
        pinned.write_as(FRAME + 8, &descriptor(1)).unwrap();
        assert_eq!(cache.take_dirty(), [1..2]);
        pinned.write_as(BUCKET - 1, &descriptors(2)[..]).unwrap();
        let border = (BUCKET / FRAME) as u64;
        assert_eq!(cache.take_dirty(), [border - 1..border + 1]);
    });
}
