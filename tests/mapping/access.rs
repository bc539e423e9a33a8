//! Reading and writing through a view, and through a guard of the map cache.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{FRAME, ReadOnly, ReadWrite, with_each_guest};
use crate::memory::{on_each_memory, with_views};
use xenmap::{Access, Error, GuestKind};

#[test]
fn bytes_are_copied_at_any_offset_and_length() {
    on_each_memory!(ReadWrite, |view| {
        let pattern: Vec<u8> = (0..=250).cycle().take(2 * FRAME).collect();
        view.write_bytes(0, &pattern).unwrap();
        for (offset, len) in [(0, 2 * FRAME), (1, 1), (7, 9), (FRAME - 3, 6), (FRAME - 1, FRAME), (2 * FRAME, 0)] {
            let mut copy = vec![0; len];
            view.read_bytes(offset, &mut copy).unwrap();
            assert_eq!(copy, pattern[offset..offset + len], "{len} bytes at {offset}");
        }
    });
}

#[test]
fn integers_are_read_and_written_at_any_offset() {
    on_each_memory!(ReadWrite, |view| {
        for offset in [0, 1, 2, 3, 5, 8, FRAME - 1, FRAME - 4, 2 * FRAME - 8] {
            view.write(offset, 0x1122_3344_5566_7788_u64).unwrap();
            assert_eq!(view.read::<u64>(offset).unwrap(), 0x1122_3344_5566_7788);
            let mut bytes = [0; 8];
            view.read_bytes(offset, &mut bytes).unwrap();
            assert_eq!(bytes, 0x1122_3344_5566_7788_u64.to_ne_bytes(), "native order at {offset}");
            assert_eq!(view.read::<u32>(offset).unwrap(), 0x5566_7788);
            assert_eq!(view.read::<u16>(offset).unwrap(), 0x7788);
            assert_eq!(view.read::<u8>(offset).unwrap(), 0x88);
            view.write(offset, 0xAA_u8).unwrap();
            view.write(offset + 4, 0xBBCC_u16).unwrap();
            assert_eq!(view.read::<u64>(offset).unwrap(), 0x1122_BBCC_5566_77AA);
        }
    });
}

#[test]
fn is_zero_finds_any_other_byte() {
    on_each_memory!(ReadWrite, |view| {
        assert!(view.is_zero(0, 2 * FRAME).unwrap());
        assert!(view.is_zero(2 * FRAME, 0).unwrap(), "no bytes at all");
        view.write(FRAME + 77, 1_u8).unwrap();
        assert!(view.is_zero(0, FRAME + 77).unwrap());
        assert!(!view.is_zero(0, FRAME + 78).unwrap());
        assert!(!view.is_zero(FRAME + 77, 1).unwrap());
        assert!(view.is_zero(FRAME + 78, FRAME - 78).unwrap());
    });
}

#[test]
fn fill_sets_only_its_range() {
    on_each_memory!(ReadWrite, |view| {
        view.fill(FRAME - 10, 20, 0xAB).unwrap();
        view.fill(2 * FRAME, 0, 0xFF).unwrap();
        let mut bytes = [0; 22];
        view.read_bytes(FRAME - 11, &mut bytes).unwrap();
        assert_eq!(bytes[1..21], [0xAB; 20]);
        assert_eq!((bytes[0], bytes[21]), (0, 0));
        view.fill(0, 2 * FRAME, 0).unwrap();
        assert!(view.is_zero(0, 2 * FRAME).unwrap());
    });
}

#[test]
fn eq_bytes_compares_in_place() {
    on_each_memory!(ReadWrite, |view| {
        let pattern: Vec<u8> = (0..=250).cycle().take(FRAME).collect();
        view.write_bytes(77, &pattern).unwrap();
        assert!(view.eq_bytes(77, &pattern).unwrap());
        assert!(view.eq_bytes(2 * FRAME, &[]).unwrap(), "no bytes at all");
        assert!(!view.eq_bytes(78, &pattern).unwrap());
        view.write(77 + FRAME - 1, !pattern[FRAME - 1]).unwrap();
        assert!(!view.eq_bytes(77, &pattern).unwrap(), "the last byte differs");
        assert!(view.eq_bytes(77, &pattern[..FRAME - 1]).unwrap());
    });
}

#[test]
fn atomic_operations_match_the_standard_library() {
    on_each_memory!(ReadWrite, |view| {
        view.store(8, 5_u32, Ordering::Release).unwrap();
        assert_eq!(view.load::<u32>(8, Ordering::Acquire).unwrap(), 5);
        assert_eq!(view.swap(8, 6_u32).unwrap(), 5);
        assert_eq!(view.compare_exchange(8, 6_u32, 7).unwrap(), Ok(6));
        assert_eq!(view.compare_exchange(8, 6_u32, 8).unwrap(), Err(7));
        assert_eq!(view.fetch_add(8, u32::MAX).unwrap(), 7);
        assert_eq!(view.fetch_or(8, 0xF0_u32).unwrap(), 6);
        assert_eq!(view.fetch_or(8, 0xF4_u32).unwrap(), 0xF6, "all of these were set");
        assert_eq!(view.fetch_and(8, 0x3C_u32).unwrap(), 0xF6);
        assert_eq!(view.load::<u32>(8, Ordering::SeqCst).unwrap(), 0x34);
        assert_eq!(view.load::<u32>(12, Ordering::Relaxed).unwrap(), 0, "the neighbour is untouched");
        view.store(16, u64::MAX, Ordering::SeqCst).unwrap();
        view.store(18, 0_u16, Ordering::Relaxed).unwrap();
        assert_eq!(view.fetch_add(16, 1_u8).unwrap(), 0xFF);
        assert_eq!(view.read::<u64>(16).unwrap(), 0xFFFF_FFFF_0000_FF00);
    });
}

/// For 25 ms, has two threads write one word each and then read the other's. Returns how often both read the old value,
/// as if each had read before it wrote, and how often they tried.
///
/// Stores to `far`, which is larger than any cache, are slow, and later stores wait for them. So a load has time to
/// overtake a store.
fn both_read_first(view: &(impl Access + Sync), far: &[AtomicU64]) -> (usize, usize) {
    const DISTANCE: usize = 1_000_003; // a prime, so that all of `far` is used in turn
    const WORDS: [usize; 2] = [0, FRAME + 512];
    let end = Instant::now() + Duration::from_millis(25);
    let (arrived, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let run = |own: usize, other: usize| {
        let (mut found, mut next) = (Vec::new(), own);
        loop {
            let round = 1 + found.len() as u64;
            let places = [(); 8].map(|()| {
                next = (next + DISTANCE) % far.len();
                next
            });
            if Instant::now() > end {
                is_over.store(true, Ordering::SeqCst);
                return found;
            }
            arrived.fetch_add(1, Ordering::SeqCst);
            let mut spins = 0;
            while arrived.load(Ordering::SeqCst) < 2 * round {
                if is_over.load(Ordering::SeqCst) {
                    return found;
                }
                spins += 1;
                if spins % 1000 == 0 {
                    std::thread::yield_now(); // the other thread may lack a processor
                }
            }
            for place in places {
                far[place].store(round, Ordering::Relaxed);
            }
            view.store(own, round, Ordering::SeqCst).unwrap();
            found.push(view.load::<u64>(other, Ordering::SeqCst).unwrap());
        }
    };
    for word in WORDS {
        view.write(word, 0_u64).unwrap();
    }
    let [one, other] = std::thread::scope(|scope| {
        let threads = [scope.spawn(|| run(WORDS[0], WORDS[1])), scope.spawn(|| run(WORDS[1], WORDS[0]))];
        threads.map(|thread| thread.join().unwrap())
    });
    let found = one.iter().zip(&other);
    let both = (1..).zip(found.clone()).filter(|&(round, (&one, &other))| one < round && other < round);
    (both.count(), found.len())
}

#[test]
fn load_does_not_overtake_a_sequentially_consistent_store() {
    // Without the fence in `store`, processors of both architectures reorder them. Then a release build fails at once,
    // and a debug build, with more instructions in between, almost always. Threads that share a processor find nothing,
    // so there are several attempts with new threads. An attempt does not count if one thread started too late.
    const ATTEMPTS: usize = 10;
    const MOST_ATTEMPTS: usize = 400;
    let far: Vec<AtomicU64> = (0..8 << 20).map(AtomicU64::new).collect();
    on_each_memory!(ReadWrite, |view| {
        let attempts = std::iter::repeat_with(|| both_read_first(view, &far)).take(MOST_ATTEMPTS);
        let met = attempts.filter(|&(_, rounds)| rounds > 0).take(ATTEMPTS);
        let both: Vec<usize> = met.map(|(both, _)| both).collect();
        assert_eq!(both, [0; ATTEMPTS], "if this has fewer numbers, the threads hardly ever overlapped");
    });
}

#[test]
fn misaligned_atomic_access_is_refused() {
    on_each_memory!(ReadWrite, |view| {
        let misaligned = |result| matches!(result, Err(Error::Misaligned { offset: 6, align: 4 }));
        assert!(misaligned(view.load::<u32>(6, Ordering::Relaxed).map(drop)));
        assert!(misaligned(view.store(6, 0_u32, Ordering::Relaxed)));
        assert!(misaligned(view.swap(6, 0_u32).map(drop)));
        assert!(misaligned(view.compare_exchange(6, 0_u32, 1).map(drop)));
        assert!(misaligned(view.fetch_add(6, 0_u32).map(drop)));
        assert!(misaligned(view.fetch_or(6, 0_u32).map(drop)));
        assert!(misaligned(view.fetch_and(6, 0_u32).map(drop)));
    });
}

#[test]
fn alignment_is_that_of_the_address_and_not_of_the_offset() {
    with_views(ReadWrite, |view| {
        assert_eq!(view.slice(2, 16).unwrap().load::<u32>(6, Ordering::Relaxed).unwrap(), 0);
    });
}

#[test]
fn access_past_the_end_is_refused() {
    on_each_memory!(ReadWrite, |view| {
        let end = 2 * FRAME;
        let refused = |result: xenmap::Result<()>| matches!(result, Err(Error::OutOfBounds { .. }));
        assert!(refused(view.read::<u8>(end).map(drop)));
        assert!(refused(view.read::<u64>(end - 7).map(drop)));
        assert!(refused(view.write(end - 1, 0_u16)));
        assert!(refused(view.read_bytes(end - 1, &mut [0; 2])));
        assert!(refused(view.is_zero(end - 1, 2).map(drop)));
        assert!(refused(view.write_bytes(usize::MAX, &[0; 2])));
        assert!(refused(view.fill(end - 1, 2, 0)));
        assert!(refused(view.fill(1, usize::MAX, 0)));
        assert!(refused(view.eq_bytes(end - 1, &[0; 2]).map(drop)));
        assert!(refused(view.load::<u64>(end, Ordering::Relaxed).map(drop)));
        assert!(refused(view.store(usize::MAX - 7, 0_u64, Ordering::Relaxed)));
        assert!(refused(view.swap(end, 0_u64).map(drop)));
        assert!(refused(view.compare_exchange(end, 0_u64, 1).map(drop)));
        assert!(refused(view.fetch_add(end, 1_u64).map(drop)));
        assert!(refused(view.fetch_or(end, 1_u64).map(drop)));
        assert!(refused(view.fetch_and(end, 1_u64).map(drop)));
        assert!(refused(view.write_to(end - 1, 2, std::io::stdout())));
        assert!(refused(view.read_from(end - 1, 2, std::fs::File::open("/dev/zero").unwrap())));
        assert_eq!((view.len(), view.is_empty()), (end, false));
        assert!(view.is_zero(0, end).unwrap(), "nothing was written");
    });
}

#[test]
fn view_does_not_reach_past_its_own_end() {
    with_views(ReadWrite, |view| {
        let end = 2 * FRAME;
        let refused = |result: xenmap::Result<()>| matches!(result, Err(Error::OutOfBounds { .. }));
        assert!(refused(view.slice(end, 1).map(drop)));
        assert!(refused(view.slice(1, usize::MAX).map(drop)));
        let narrow = view.slice(100, 8).unwrap();
        assert!(refused(narrow.read::<u8>(8).map(drop)));
        assert_eq!((narrow.len(), narrow.is_empty()), (8, false));
        assert!(view.slice(end, 0).unwrap().is_empty());
    });
}

#[test]
fn writing_a_read_only_mapping_is_refused() {
    with_each_guest(1, |host, guest| {
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadOnly, &guest.gfns()).unwrap();
        let view = mapping.view();
        let refused = |result: xenmap::Result<()>| matches!(result, Err(Error::ReadOnly { .. }));
        assert!(refused(view.write(0, 1_u8)));
        assert!(refused(view.write_bytes(0, &[1])));
        assert!(refused(view.fill(0, 1, 1)));
        assert!(refused(view.store(0, 1_u32, Ordering::Relaxed)));
        assert!(refused(view.swap(0, 1_u32).map(drop)));
        assert!(refused(view.compare_exchange(0, 0_u32, 1).map(drop)));
        assert!(refused(view.fetch_add(0, 1_u32).map(drop)));
        assert!(refused(view.fetch_or(0, 1_u32).map(drop)));
        assert!(refused(view.read_from(0, 1, std::fs::File::open("/dev/zero").unwrap())));
        assert_eq!(view.read::<u32>(0).unwrap(), 0);
    });
}

#[test]
fn writing_read_only_memory_is_refused() {
    on_each_memory!(ReadOnly, |memory| {
        for at in [0, FRAME, 2 * FRAME - 8] {
            let refused: [xenmap::Result<()>; 9] = [
                memory.write(at, 1_u8),
                memory.write_bytes(at, &[1]),
                memory.fill(at, 1, 1),
                memory.store(at, 1_u32, Ordering::Relaxed),
                memory.swap(at, 1_u32).map(drop),
                memory.compare_exchange(at, 0_u32, 1).map(drop),
                memory.fetch_add(at, 1_u32).map(drop),
                memory.fetch_and(at, 1_u32).map(drop),
                memory.read_from(at, 1, std::fs::File::open("/dev/zero").unwrap()),
            ];
            assert!(
                refused.iter().all(|r| matches!(r, Err(Error::ReadOnly { offset }) if *offset == at)),
                "{refused:?}"
            );
        }
        assert!(memory.is_zero(0, 2 * FRAME).unwrap());
    });
}

#[test]
fn file_is_read_and_written_from_its_current_position() {
    on_each_memory!(ReadWrite, |memory| {
        let mut file = tempfile();
        let content: Vec<u8> = (0..=250).cycle().take(FRAME + 20).collect();
        std::io::Write::write_all(&mut file, &content).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(5)).unwrap();
        memory.read_from(FRAME - 10, FRAME, &file).unwrap();
        assert!(memory.eq_bytes(FRAME - 10, &content[5..FRAME + 5]).unwrap());
        assert!(memory.is_zero(0, FRAME - 10).unwrap() && memory.is_zero(2 * FRAME - 10, 10).unwrap());
        memory.write_to(FRAME - 3, 6, &file).unwrap();
        let mut whole = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_end(&mut file, &mut whole).unwrap();
        assert_eq!(whole.len(), content.len());
        assert_eq!(whole[FRAME + 5..][..6], content[12..18]);
    });
}

#[test]
fn data_goes_to_and_from_a_file_descriptor() {
    with_each_guest(3, |host, guest| {
        let mapping = host.open().map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns()).unwrap();
        let pattern: Vec<u8> = (0..=250).cycle().take(FRAME + 20).collect();
        mapping.view().write_bytes(10, &pattern).unwrap();

        // More than a pipe takes at once, so that writing and reading go in pieces.
        let (reader, writer) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..20 {
                    mapping.view().write_to(10, FRAME + 20, &writer).unwrap();
                }
            });
            let other = host.create(GuestKind::Hvm, 30);
            let copy = host.open().map_foreign_batch(other.domid(), ReadWrite, &other.gfns()).unwrap();
            copy.view().read_from(3, 20 * (FRAME + 20), &reader).unwrap();
            let mut bytes = vec![0; 20 * (FRAME + 20)];
            copy.view().read_bytes(3, &mut bytes).unwrap();
            assert!(bytes.chunks(FRAME + 20).all(|piece| piece == pattern));
        });
    });
}

#[test]
fn every_byte_of_a_mapping_and_none_past_it_is_accessed() {
    // If the kernel's pages are larger than a frame, memory past the last frame is mapped, but touching it may be
    // fatal.
    with_each_guest(9, |host, guest| {
        let (memory, gfns) = (host.open(), guest.gfns());
        for frames in 1..=gfns.len() {
            let mapping = memory.map_foreign_batch(guest.domid(), ReadWrite, &gfns[..frames]).unwrap();
            let (view, len) = (mapping.view(), frames * FRAME);
            assert_eq!(view.len(), len);
            view.fill(0, len, 0x5A).unwrap();
            let mut bytes = vec![0; len];
            view.read_bytes(0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0x5A) && view.eq_bytes(0, &bytes).unwrap());
            let file = tempfile();
            view.write_to(0, len, &file).unwrap();
            std::io::Seek::rewind(&mut &file).unwrap();
            view.fill(0, len, 0).unwrap();
            view.read_from(0, len, &file).unwrap();
            assert!(view.eq_bytes(0, &bytes).unwrap(), "{frames} frames");
        }
    });
}

/// Creates a temporary file.
fn tempfile() -> std::fs::File {
    nix::sys::memfd::memfd_create(c"xenmap-test", nix::sys::memfd::MFdFlags::empty()).unwrap().into()
}

#[test]
fn interrupted_transfer_reports_its_progress() {
    on_each_memory!(ReadWrite, |view| {
        let (reader, writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut &writer, b"12345").unwrap();
        drop(writer);
        match view.read_from(0, 10, &reader) {
            Err(Error::Transfer { done: 5, source }) => assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof),
            other => panic!("{other:?}"),
        }
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        match view.write_to(0, 10, &full) {
            Err(Error::Transfer { done: 0, source }) => assert_eq!(source.raw_os_error(), Some(libc::ENOSPC)),
            other => panic!("{other:?}"),
        }
    });
}
