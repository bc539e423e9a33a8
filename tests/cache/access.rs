//! A guard of the map cache reads and writes, in one bucket and across several.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::io::{Read, Seek, Write};
use std::sync::atomic::Ordering;

use crate::buckets::{BUCKET, cache};
use crate::common::{FRAME, ReadWrite, ThenChild, in_child, in_own_process, on_each_host};
use xenmap::{Access, Error, GuestKind, Pinned, Result};

/// Runs a test with a guest, and a guard of four buckets without their first and last 8 bytes.
fn with_guard(test: impl Fn(&Pinned<'_>, &crate::common::Guest)) {
    on_each_host(|host| {
        let (memory, guest) = (host.open(), host.create(GuestKind::Hvm, 16));
        let cache = cache(&memory, guest.domid(), 4);
        test(&cache.get(ReadWrite, 8, LEN).unwrap(), &guest);
    });
}

const LEN: usize = 4 * BUCKET - 16;

/// The last aligned 8 bytes of a bucket.
const BORDER: usize = BUCKET - 16;

fn file(content: &[u8]) -> std::fs::File {
    let fd = nix::sys::memfd::memfd_create(c"xenmap-test", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let mut file = std::fs::File::from(fd);
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

fn bytes(len: usize) -> Vec<u8> {
    (1..=251).cycle().take(len).collect()
}

#[test]
fn guard_reports_its_range_and_views() {
    with_guard(|pinned, _| {
        assert_eq!((pinned.address(), pinned.len(), pinned.protection()), (8, LEN, ReadWrite));
        let parts: Vec<usize> = pinned.views().map(|view| view.len()).collect();
        assert_eq!(parts, [BUCKET - 8, BUCKET, BUCKET, BUCKET - 8]);
        assert_eq!(pinned.view(BUCKET - 9).unwrap().len(), 1);
        assert_eq!(pinned.view(BUCKET - 8).unwrap().len(), BUCKET);
        assert_eq!(pinned.view(LEN - 1).unwrap().len(), 1);
        assert!(matches!(pinned.view(LEN), Err(Error::OutOfBounds { .. })));
    });
}

#[test]
fn bytes_of_any_range_are_the_guests() {
    with_guard(|pinned, guest| {
        for (offset, len) in
            [(0, LEN), (BORDER + 3, 10), (2 * BUCKET - 9, 2), (BUCKET, 2 * BUCKET), (LEN - 1, 1), (5, 0)]
        {
            let written = bytes(len);
            pinned.write_bytes(offset, &written).unwrap();
            let mut read = vec![0; len];
            pinned.read_bytes(offset, &mut read).unwrap();
            assert!(read == written, "{offset:#x} {len:#x}");
            let seen: Vec<u8> = guest.gfns().iter().flat_map(|&gfn| guest.read(gfn, 0, FRAME)).collect();
            assert!(seen[8 + offset..][..len] == written, "{offset:#x} {len:#x}");
        }
    });
}

#[test]
fn fill_and_compare_reach_every_byte_of_the_range_and_no_other() {
    with_guard(|pinned, _| {
        pinned.write_bytes(0, &bytes(LEN)).unwrap();
        let mut expected = bytes(LEN);
        for (offset, len) in [(BORDER + 1, 2 * BUCKET), (0, 1), (LEN - 9, 9), (7, 0)] {
            pinned.fill(offset, len, 0xFE).unwrap();
            expected[offset..offset + len].fill(0xFE);
            assert!(pinned.eq_bytes(0, &expected).unwrap(), "{offset:#x} {len:#x}");
        }
        for at in [0, BORDER + 7, BORDER + 8, LEN - 1] {
            expected[at] ^= 1;
            assert!(!pinned.eq_bytes(0, &expected).unwrap(), "{at:#x}");
            assert!(pinned.eq_bytes(at + 1, &expected[at + 1..]).unwrap(), "{at:#x}");
            expected[at] ^= 1;
        }
    });
}

#[test]
fn integers_are_read_and_written_at_any_offset() {
    with_guard(|pinned, _| {
        for offset in (0..20).chain(BORDER - 9..BORDER + 20).chain(LEN - 20..LEN - 7) {
            let value = 0x0102_0304_0506_0708_u64 + offset as u64;
            pinned.write(offset, value).unwrap();
            assert_eq!(pinned.read::<u64>(offset).unwrap(), value, "{offset:#x}");
            let mut read = [0; 8];
            pinned.read_bytes(offset, &mut read).unwrap();
            assert_eq!(read, value.to_ne_bytes(), "{offset:#x}");
            pinned.write(offset, 7_u16).unwrap();
            assert_eq!(
                (pinned.read::<u16>(offset).unwrap(), pinned.read::<u8>(offset + 2).unwrap()),
                (7, value.to_ne_bytes()[2])
            );
        }
    });
}

#[test]
fn atomic_operations_work_as_on_a_view() {
    with_guard(|pinned, _| {
        for at in [0, BORDER, BORDER + 8, 3 * BUCKET, LEN - 8] {
            pinned.store(at, 1_u64, Ordering::Release).unwrap();
            assert_eq!(pinned.swap(at, 2_u64).unwrap(), 1);
            assert_eq!(pinned.fetch_add(at, 5_u64).unwrap(), 2);
            assert_eq!(pinned.fetch_or(at, 8_u64).unwrap(), 7);
            assert_eq!(pinned.fetch_and(at, 12_u64).unwrap(), 15);
            assert_eq!(pinned.compare_exchange(at, 1_u64, 0).unwrap(), Err(12));
            assert_eq!(pinned.compare_exchange(at, 12_u64, 3).unwrap(), Ok(12));
            assert_eq!(pinned.load::<u64>(at, Ordering::Acquire).unwrap(), 3);
        }
        for at in [1, 4, BORDER + 4, BORDER + 7] {
            let refused = [
                pinned.load::<u64>(at, Ordering::Relaxed).map(drop),
                pinned.store(at, 1_u64, Ordering::Relaxed),
                pinned.swap(at, 1_u64).map(drop),
                pinned.compare_exchange(at, 0, 1_u64).map(drop),
                pinned.fetch_add(at, 1_u64).map(drop),
                pinned.fetch_or(at, 1_u64).map(drop),
                pinned.fetch_and(at, 1_u64).map(drop),
            ];
            assert!(refused.iter().all(|r| matches!(r, Err(Error::Misaligned { align: 8, .. }))), "{refused:?}");
        }
    });
}

#[test]
fn access_past_the_end_is_refused_and_writes_nothing() {
    with_guard(|pinned, guest| {
        for at in [LEN - 7, LEN, LEN + 8, usize::MAX - 7, usize::MAX] {
            let source = file(&[1; 8]);
            let refused: [Result<()>; 14] = [
                pinned.read::<u64>(at).map(drop),
                pinned.read_bytes(at, &mut [0; 8]),
                pinned.load::<u64>(at, Ordering::Relaxed).map(drop),
                pinned.is_zero(at, 8).map(drop),
                pinned.eq_bytes(at, &[0; 8]).map(drop),
                pinned.fill(at, 8, 1),
                pinned.write_to(at, 8, &source),
                pinned.write(at, u64::MAX),
                pinned.write_bytes(at, &[1; 8]),
                pinned.store(at, u64::MAX, Ordering::Relaxed),
                pinned.swap(at, u64::MAX).map(drop),
                pinned.fetch_or(at, u64::MAX).map(drop),
                pinned.read_from(at, 8, &source),
                pinned.mark_dirty(at, 8),
            ];
            assert!(refused.iter().all(|r| matches!(r, Err(Error::OutOfBounds { .. }))), "{at:#x} {refused:?}");
        }
        assert!(pinned.is_zero(0, LEN).unwrap());
        assert_eq!(guest.read(guest.gfns()[15], FRAME - 8, 8), [0; 8]);
        pinned.write(LEN - 1, 1_u8).unwrap();
        assert!(!pinned.is_zero(0, LEN).unwrap());
        assert!(pinned.is_zero(0, LEN - 1).unwrap());
    });
}

#[test]
fn files_are_read_and_written_across_buckets() {
    with_guard(|pinned, _| {
        let content = bytes(2 * BUCKET);
        pinned.read_from(BORDER, content.len(), file(&content)).unwrap();
        let mut copy = file(&[]);
        pinned.write_to(BORDER, content.len(), &copy).unwrap();
        copy.rewind().unwrap();
        let mut read = Vec::new();
        copy.read_to_end(&mut read).unwrap();
        assert!(read == content);

        let short = pinned.read_from(BORDER, content.len(), file(&content[..BUCKET + 100]));
        assert!(matches!(short, Err(Error::Transfer { done, .. }) if done == BUCKET + 100), "{short:?}");
    });
}

#[test]
#[expect(unsafe_code, reason = "forbids system calls in a child")]
fn hit_makes_no_system_call() {
    in_own_process("access::hit_makes_no_system_call", || {
        on_each_host(|host| {
            let guest = host.create(GuestKind::Hvm, 8);
            let child = |wait: &dyn Fn()| {
                let memory = host.open();
                let cache = cache(&memory, guest.domid(), 4);
                cache.prefetch(ReadWrite, 0..2 * BUCKET as u64).unwrap();
                wait();
                // SAFETY: strict mode only restricts this process to read, write and exit.
                let strict = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
                let mut good = strict == 0;
                for address in 0..BUCKET as u64 + 100 {
                    let Ok(pinned) = cache.get(ReadWrite, address, 600) else {
                        good = false;
                        break;
                    };
                    good &= pinned.write(1, 7_u16).is_ok() && pinned.read::<u16>(1).is_ok_and(|value| value == 7);
                }
                // SAFETY: the process ends here. (libc's `_exit` makes another call, which strict mode forbids.)
                unsafe { libc::syscall(libc::SYS_exit, i32::from(!good)) };
                false
            };
            assert!(in_child(child, || ThenChild::Continues));
        });
    });
}
