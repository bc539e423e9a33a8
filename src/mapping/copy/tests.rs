//! Copies of any length and alignment, by one thread and by two.

use std::cell::UnsafeCell;

use super::sealed::Word;
use super::{equals, fill, is_zero, read, write};

#[test]
fn is_zero_finds_any_byte_that_is_not_zero() {
    let mut bytes = [0; 200];
    for (start, len) in [(0, 0), (0, 1), (3, 63), (1, 64), (7, 65), (0, 128), (5, 190)] {
        for at in 0..bytes.len() {
            bytes[at] = 0x80;
            let inside = (start..start + len).contains(&at);
            // SAFETY: the bytes are inside.
            assert_eq!(unsafe { is_zero(bytes[start..].as_ptr(), len) }, !inside, "byte {at} of {len} at {start}");
            bytes[at] = 0;
        }
    }
}

/// The step between the offsets to try. The portable copies are slow and do not depend on the offset.
const STEP: usize = if cfg!(any(miri, xenmap_portable_copy)) { 21 } else { 1 };

/// A copy under test.
pub(super) type Copies = unsafe fn(*const u8, *mut u8, usize);

/// Tries all lengths from `shortest` up, at all alignments of both sides.
pub(super) fn hold_every_byte_and_no_other(copy: Copies, shortest: usize) {
    let source: Vec<u8> = (0..=250).cycle().take(32 + 600).collect();
    let mut target = vec![0; 32 + 600 + 32];
    for len in (shortest..=600).step_by(if cfg!(miri) { 29 } else { 1 }) {
        for from in (0..32).step_by(STEP) {
            for to in (0..32).step_by(STEP) {
                target.fill(0xEE);
                // SAFETY: both hold that many bytes.
                unsafe { copy(source[from..].as_ptr(), target[to..].as_mut_ptr(), len) };
                assert_eq!(target[to..to + len], source[from..from + len], "{len} bytes from {from} to {to}");
                assert!(target[..to].iter().all(|&byte| byte == 0xEE), "{len} bytes from {from} to {to}");
                assert!(target[to + len..][..32].iter().all(|&byte| byte == 0xEE), "{len} bytes from {from} to {to}");
            }
        }
    }
    for len in [shortest + 1000, 1024, 4095, 4096, 4097, 100_003] {
        let source: Vec<u8> = (0..=250).cycle().take(len).collect();
        let mut target = vec![0xEE; len + 2];
        // SAFETY: both hold that many bytes.
        unsafe { copy(source.as_ptr(), target[1..].as_mut_ptr(), len) };
        assert_eq!(target[1..=len], source);
        assert_eq!((target[0], target[len + 1]), (0xEE, 0xEE));
    }
}

/// Tries lengths from `shortest` up, right next to memory that cannot be accessed: touching that kills the test.
pub(super) fn stay_inside(copy: Copies, shortest: usize) {
    let pages = Pages::new();
    let mut private = vec![0; Pages::LEN];
    for len in lengths().filter(|&len| len >= shortest) {
        for at in [pages.0, pages.last(len)] {
            // SAFETY: the pages hold `len` bytes there, and so does the buffer.
            unsafe { copy(at, private.as_mut_ptr(), len) };
            // SAFETY: as above.
            unsafe { copy(private.as_ptr(), at, len) };
        }
    }
}

fn lengths() -> impl Iterator<Item = usize> {
    (0..=600).chain([1023, 1024, 1025, 2048, 4095, 4096, 4097, Pages::LEN])
}

/// Two pages, with an inaccessible one on either side.
struct Pages(*mut u8);

impl Pages {
    const PAGE: usize = 1 << 16;
    const LEN: usize = 2 * Pages::PAGE;

    fn new() -> Pages {
        let len = Pages::LEN + 2 * Pages::PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: without MAP_FIXED the kernel picks addresses that nothing uses.
        let all = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(all, libc::MAP_FAILED);
        // SAFETY: it is inside the range.
        let middle = unsafe { all.byte_add(Pages::PAGE) };
        // SAFETY: the range has just been mapped, and nothing uses it.
        let result = unsafe { libc::mprotect(middle, Pages::LEN, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(result, 0);
        Pages(middle.cast())
    }

    /// Returns the address of the last `len` bytes.
    fn last(&self, len: usize) -> *mut u8 {
        self.0.wrapping_add(Pages::LEN - len)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `new` has mapped this range, and nothing uses it any more.
        unsafe { libc::munmap(self.0.wrapping_sub(Pages::PAGE).cast(), Pages::LEN + 2 * Pages::PAGE) };
    }
}

#[test]
fn reads_hold_every_byte_and_no_other() {
    hold_every_byte_and_no_other(read, 0);
}

#[test]
fn writes_hold_every_byte_and_no_other() {
    hold_every_byte_and_no_other(write, 0);
}

#[test]
#[cfg_attr(miri, ignore = "there is no mprotect")]
fn reads_and_writes_stay_inside() {
    stay_inside(read, 0);
    stay_inside(write, 0);
}

#[test]
#[cfg_attr(miri, ignore = "there is no mprotect")]
fn fill_is_zero_and_equals_stay_inside() {
    let pages = Pages::new();
    let expected = vec![0; Pages::LEN];
    for len in lengths() {
        for at in [pages.0, pages.last(len)] {
            // SAFETY: (here and below) the pages hold `len` bytes there.
            unsafe { fill(at, 0, len) };
            // SAFETY: see above.
            assert!(unsafe { is_zero(at, len) }, "{len}");
            // SAFETY: see above.
            assert!(unsafe { equals(at, &expected[..len]) }, "{len}");
        }
    }
}

#[test]
fn fill_sets_every_byte_and_no_other() {
    for len in [0, 1, 7, 64, 1023, 1024, 1025, 3000] {
        let mut bytes = vec![0xEE; len + 2];
        // SAFETY: the vector holds that many bytes.
        unsafe { fill(bytes[1..].as_mut_ptr(), 7, len) };
        assert!(bytes[1..=len].iter().all(|&byte| byte == 7), "{len}");
        assert_eq!((bytes[0], bytes[len + 1]), (0xEE, 0xEE), "{len}");
    }
}

#[test]
fn equals_finds_any_byte_that_differs() {
    let expected: Vec<u8> = (0..=250).cycle().take(2100).collect();
    let mut bytes = expected.clone();
    for (start, len) in [(0, 0), (0, 1), (3, 63), (1, 1024), (7, 1025), (0, 2100)] {
        for at in (0..bytes.len()).step_by(if cfg!(miri) { 97 } else { 1 }) {
            bytes[at] ^= 0x80;
            let inside = (start..start + len).contains(&at);
            // SAFETY: the bytes are inside.
            let same = unsafe { equals(bytes[start..].as_ptr(), &expected[start..start + len]) };
            assert_eq!(same, !inside, "byte {at} of {len} at {start}");
            bytes[at] ^= 0x80;
        }
    }
}

/// For `ThreadSanitizer` and Miri.
#[test]
fn threads_may_access_the_same_bytes_at_once() {
    struct Shared(UnsafeCell<[u64; 32]>);
    // SAFETY: the threads access it only by the functions under test, which allow that.
    unsafe impl Sync for Shared {}
    let shared = Shared(UnsafeCell::new([0; 32]));
    let shared = &shared;
    let is_written_once = |byte: &u8| [0, 0x11, 0x22].contains(byte);
    let rounds = if cfg!(miri) { 3 } else { 300 };
    std::thread::scope(|scope| {
        let threads = [0x11, 0x22].map(|value| {
            scope.spawn(move || {
                let words = shared.0.get().cast::<u64>();
                let base = words.cast::<u8>();
                let source = [value; 256];
                let mut found = [0; 256];
                for _ in 0..rounds {
                    for len in [1, 2, 3, 8, 15, 31, 64, 100, 200, 250] {
                        // SAFETY: (here and below) 256 bytes are there.
                        let at = unsafe { base.add(len % 7) };
                        // SAFETY: see above.
                        unsafe { write(source.as_ptr(), at, len) };
                        // SAFETY: see above.
                        unsafe { read(base, found.as_mut_ptr(), 256) };
                        assert!(found.iter().all(is_written_once), "{found:x?}");
                    }
                    // SAFETY: see above.
                    unsafe { fill(base, value, 256) };
                    // SAFETY: see above.
                    assert!(!unsafe { is_zero(base, 256) });
                    // SAFETY: see above.
                    assert!(!unsafe { equals(base, &[3; 256]) });
                    // Miri does not allow races of accesses of different sizes.
                    if !cfg!(miri) {
                        // SAFETY: see above; it is aligned.
                        unsafe { Word::store(words, u64::from_ne_bytes([value; 8])) };
                        // SAFETY: see above.
                        let word = unsafe { u64::load(words) };
                        assert!(word.to_ne_bytes().iter().all(is_written_once), "{word:x}");
                        // SAFETY: see above.
                        let word = unsafe { u64::swap(words, u64::from_ne_bytes([value; 8])) };
                        assert!(word.to_ne_bytes().iter().all(is_written_once), "{word:x}");
                    }
                }
            })
        });
        // ThreadSanitizer understands `join`, but not that a scope waits at its end.
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

fn operations_are_those_of_an_integer<W: Word>() {
    let ones = W::from_bits(u64::MAX);
    let mut place = W::from_bits(0x1122_3344_5566_7788);
    let (before, at) = (place, &raw mut place);
    // SAFETY: (here and below) `at` is aligned, and points to a local variable that nothing else uses.
    assert_eq!(unsafe { W::load(at) }, before);
    // SAFETY: see above.
    assert_eq!(unsafe { W::swap(at, ones) }, before);
    // SAFETY: see above.
    assert_eq!(unsafe { W::fetch_add(at, W::from_bits(3)) }, ones);
    // SAFETY: see above.
    assert_eq!(unsafe { W::compare_exchange(at, ones, before) }.bits(), 2);
    // SAFETY: see above.
    assert_eq!(unsafe { W::compare_exchange(at, W::from_bits(2), ones) }.bits(), 2);
    // SAFETY: see above.
    assert_eq!(unsafe { W::load(at) }, ones);
    // SAFETY: see above.
    unsafe { W::store(at, before) };
    assert_eq!(place, before);
}

#[test]
fn words_of_every_size_behave_like_integers() {
    operations_are_those_of_an_integer::<u8>();
    operations_are_those_of_an_integer::<u16>();
    operations_are_those_of_an_integer::<u32>();
    operations_are_those_of_an_integer::<u64>();
}

#[test]
fn no_addition_of_two_threads_is_lost() {
    fn check<W: Word>() {
        struct Shared(UnsafeCell<u64>);
        // SAFETY: the threads access it only by the functions under test, in one size.
        unsafe impl Sync for Shared {}
        let shared = Shared(UnsafeCell::new(0));
        let shared = &shared;
        let rounds = if cfg!(miri) { 10 } else { 10_000 };
        let one = W::from_bits(1);
        std::thread::scope(|scope| {
            let adds = scope.spawn(move || {
                for _ in 0..rounds {
                    // SAFETY: (here and below) it is aligned, and large enough.
                    unsafe { W::fetch_add(shared.0.get().cast(), one) };
                }
            });
            let exchanges = scope.spawn(move || {
                for _ in 0..rounds {
                    let mut found = one;
                    loop {
                        let more = W::from_bits(found.bits() + 1);
                        // SAFETY: see above.
                        let before = unsafe { W::compare_exchange(shared.0.get().cast(), found, more) };
                        if before == found {
                            break;
                        }
                        found = before;
                    }
                }
            });
            // ThreadSanitizer understands `join`, but not that a scope waits at its end.
            adds.join().unwrap();
            exchanges.join().unwrap();
        });
        // SAFETY: see above.
        let sum = unsafe { W::load(shared.0.get().cast()) };
        assert_eq!(sum, W::from_bits(2 * rounds));
    }
    check::<u8>();
    check::<u16>();
    check::<u32>();
    check::<u64>();
}
