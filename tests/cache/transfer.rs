//! Transfers between ranges of a guest's memory and a file.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::single_range_in_vec_init, reason = "lists with one range")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::buckets::{BUCKET, cache, refused};
use crate::common::{FRAME, Guest, on_each_host};
use xenmap::{Error, GuestKind, MapCache};

const FRAMES: usize = 32;
const SIZE: usize = FRAMES * FRAME;

/// Runs a test with a guest, and a cache that has room for two of its eight buckets.
fn with_cache(test: impl Fn(&MapCache, &Guest)) {
    on_each_host(|host| {
        let memory = host.open();
        let guest = host.create(GuestKind::Hvm, FRAMES);
        test(&cache(&memory, guest.domid(), 2), &guest);
    });
}

fn file(content: &[u8]) -> File {
    let fd = nix::sys::memfd::memfd_create(c"xenmap-test", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let file = File::from(fd);
    file.write_all_at(content, 0).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

fn text(len: usize) -> Vec<u8> {
    (0..251).cycle().take(len).collect()
}

/// Returns the range of `len` bytes at `start`.
fn range(start: usize, len: usize) -> Range<u64> {
    start as u64..(start + len) as u64
}

fn all_ram(guest: &Guest) -> Vec<u8> {
    guest.gfns()[..FRAMES].iter().flat_map(|&gfn| guest.read(gfn, 0, FRAME)).collect()
}

#[test]
fn ranges_across_buckets_are_filled_in_their_order() {
    with_cache(|cache, guest| {
        let parts = [(2 * BUCKET - 5, 10), (7, 1), (3 * BUCKET - 100, 2 * BUCKET + 200), (100, 50)];
        let ranges = parts.map(|(start, len)| range(start, len));
        let text = text(3 + 10 + 1 + 2 * BUCKET + 200 + 50);

        cache.read_file_at(&ranges, file(&text), 3).unwrap();

        let mut expected = vec![0; SIZE];
        let mut at = 3;
        for (start, len) in parts {
            expected[start..start + len].copy_from_slice(&text[at..at + len]);
            at += len;
        }
        assert!(all_ram(guest) == expected);
        let copy = file(b"before");
        cache.write_file_at(&ranges, &copy, 6).unwrap();
        assert!(content(&copy) == [b"before", &text[3..]].concat());
        assert_eq!(cache.statistics().pinned, 0);
    });
}

#[test]
fn more_pieces_than_a_call_takes_are_transferred() {
    with_cache(|cache, guest| {
        let text = text(5000);
        // In another order than in the file, so that they are not adjacent.
        let ranges: Vec<Range<u64>> = (0..2500).map(|i| range(5000 - 2 * i, 2)).collect();
        cache.read_file_at(&ranges, file(&text), 0).unwrap();
        let backwards: Vec<u8> = text.chunks(2).rev().flatten().copied().collect();
        assert!(all_ram(guest)[2..5002] == backwards);

        let copy = file(&[]);
        cache.write_file_at(&ranges, &copy, 0).unwrap();
        assert!(content(&copy) == text);
    });
}

#[test]
fn nothing_is_transferred_for_empty_ranges() {
    with_cache(|cache, _| {
        let file = file(&[]);
        #[expect(clippy::reversed_empty_ranges, reason = "a caller may pass one")]
        for ranges in [&[][..], &[5..5], &[9..5, 1 << 60..1 << 60]] {
            cache.read_file_at(ranges, &file, 0).unwrap();
            cache.write_file_at(ranges, &file, 0).unwrap();
        }
        assert_eq!((content(&file).len(), cache.statistics().misses), (0, 0));
    });
}

#[test]
fn file_that_ends_too_early_is_an_error_with_what_was_read() {
    with_cache(|cache, guest| {
        let text = text(BUCKET + 100);
        for (offset, expected) in [(0, BUCKET + 100), (1, BUCKET + 99), (text.len() as u64, 0), (1 << 40, 0)] {
            let read = cache.read_file_at(&[range(BUCKET - 8, 8), range(0, 2 * BUCKET)], file(&text), offset);
            let Err(Error::Transfer { done, source }) = read else { panic!("{read:?}") };
            assert_eq!((done, source.kind()), (expected, io::ErrorKind::UnexpectedEof), "from {offset}");
        }
        let from_the_second_byte = guest.read(guest.gfns()[0], 0, 100);
        assert_eq!(from_the_second_byte, text[9..109]);
    });
}

#[test]
fn error_of_the_file_is_reported() {
    with_cache(|cache, _| {
        let write_only = File::options().write(true).open("/dev/null").unwrap();
        let failed = cache.read_file_at(&[range(0, 8)], write_only, 0).unwrap_err();
        assert!(matches!(failed, Error::Transfer { done: 0, .. }) && failed.errno() == libc::EBADF, "{failed:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(cache.write_file_at(&[range(0, 8)], full, 0).unwrap_err().errno(), libc::ENOSPC);
        for offset in [i64::MAX.unsigned_abs() + 1, u64::MAX] {
            let failed = cache.write_file_at(&[range(0, 8)], file(&[]), offset).unwrap_err();
            assert_eq!(failed.errno(), libc::EINVAL, "at {offset:#x}");
        }
    });
}

#[test]
fn hole_is_reported_before_anything_is_transferred() {
    with_cache(|cache, guest| {
        let hole = SIZE as u64..SIZE as u64 + 1;
        let ones = file(&[1; 100]);
        assert_eq!(refused(cache.read_file_at(&[range(0, 8), hole.clone()], &ones, 0)), (hole.start, libc::EINVAL));
        assert_eq!(refused(cache.write_file_at(&[range(0, 8), hole.clone()], &ones, 0)), (hole.start, libc::EINVAL));
        for beyond in [u64::MAX - 5..u64::MAX, 0..u64::MAX] {
            let failed = cache.read_file_at(&[range(0, 8), beyond], &ones, 0);
            assert!(matches!(failed, Err(Error::InvalidNumber(_))), "{failed:?}");
        }
        assert_eq!((all_ram(guest), content(&ones)), (vec![0; SIZE], vec![1; 100]));
        assert_eq!(cache.statistics().pinned, 0);
    });
}

#[test]
fn what_is_read_from_a_file_is_dirty_and_what_is_written_to_one_is_not() {
    with_cache(|cache, _| {
        cache.track_dirty(true);
        let file = file(&[1; 3 * FRAME]);
        let ranges = [range(FRAME - 1, 2), range(BUCKET - 1, 2), range(20 * FRAME, FRAME)];
        cache.write_file_at(&ranges, &file, 0).unwrap();
        assert!(cache.take_dirty().is_empty());
        cache.read_file_at(&ranges, &file, 0).unwrap();
        assert_eq!(cache.take_dirty(), [0..2, 3..5, 20..21]);
        cache.read_file_at(&[range(9 * FRAME, 8)], &file, 3 * FRAME as u64 - 4).unwrap_err();
        assert_eq!(cache.take_dirty(), [9..10], "the part before the file ended");
    });
}
