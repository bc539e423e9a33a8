//! Remembered translations, which are read without a lock.
//!
//! A walk takes the [time](Tlb::time) before it reads the first table, and an invalidation changes the time. So a walk
//! that began before an invalidation, and may have read the tables of before, does not have its result remembered.

use std::ops::RangeInclusive;
use std::sync::{OnceLock, PoisonError};

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, fence};

/// Entries in a chunk: the translations of a contiguous range of pages. A chunk is small, because a page of memory that
/// is used for the first time costs as much as many reads.
const CHUNK: usize = if cfg!(loom) { 2 } else { 64 };
/// Chunks of small pages (of 4 KiB, for 128 MiB) and of large ones (of 2 MiB, for 2 GiB).
const SMALL: usize = if cfg!(loom) { 1 } else { 512 };
const LARGE: usize = if cfg!(loom) { 1 } else { 16 };

const SMALL_BITS: u32 = 12;
const LARGE_BITS: u32 = 21;

/// No page has this number.
const NO_PAGE: u64 = u64::MAX;

/// The translations of pages, each either of 4 KiB or of 2 MiB. Pages of other sizes are remembered in parts.
#[derive(Debug)]
pub(super) struct Tlb {
    small: Pages<SMALL_BITS, SMALL>,
    large: Pages<LARGE_BITS, LARGE>,
    /// Changes with each invalidation. Written with the lock.
    time: AtomicU64,
    lock: Mutex<()>,
}

/// The translations of pages of 2^BITS bytes: at most one for each place. A page has one place.
#[derive(Debug)]
struct Pages<const BITS: u32, const CHUNKS: usize> {
    /// Allocated when the first entry is stored, and not freed before this is dropped.
    chunks: Box<[Chunk; CHUNKS]>,
}

type Chunk = OnceLock<Box<[Entry; CHUNK]>>;

/// A page and its translation. Readers see both as they were stored together, or neither.
#[derive(Debug)]
struct Entry {
    /// Odd while the entry is being written.
    version: AtomicU64,
    page: AtomicU64,
    value: AtomicU64,
}

impl Tlb {
    pub(super) fn new() -> Tlb {
        Tlb { small: Pages::new(), large: Pages::new(), time: AtomicU64::new(0), lock: Mutex::new(()) }
    }

    /// Returns the translation of an address: what was inserted for its page, plus the offset in the page.
    #[inline]
    pub(super) fn find(&self, address: u64) -> Option<u64> {
        self.large.find(address).or_else(|| self.small.find(address))
    }

    /// Returns a number that every invalidation changes.
    pub(super) fn time(&self) -> u64 {
        // Acquire: whoever sees an invalidation also sees what was written before it.
        self.time.load(Ordering::Acquire)
    }

    /// Remembers the translation of an address for its page, unless anything was invalidated since `time`.
    pub(super) fn insert(&self, time: u64, address: u64, page_size: u64, value: u64) {
        let _lock = self.lock();
        if self.time.load(Ordering::Relaxed) != time {
            // The tables have changed.
        } else if page_size >> LARGE_BITS == 0 {
            self.small.insert(address, value);
        } else {
            self.large.insert(address, value);
        }
    }

    /// Forgets the translations of a range of addresses.
    pub(super) fn invalidate(&self, addresses: &RangeInclusive<u64>) {
        let _lock = self.lock();
        self.time.fetch_add(1, Ordering::Release);
        self.small.invalidate(addresses);
        self.large.invalidate(addresses);
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<const BITS: u32, const CHUNKS: usize> Pages<BITS, CHUNKS> {
    fn new() -> Self {
        Pages { chunks: Box::new(std::array::from_fn(|_| OnceLock::new())) }
    }

    /// Returns the chunk of a page, and the index in it.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits are used")]
    fn place(&self, page: u64) -> (&Chunk, usize) {
        let range = page / CHUNK as u64;
        // Higher bits are added, because a guest may use ranges that are far apart at equal distances.
        (&self.chunks[(range + range / CHUNKS as u64) as usize % CHUNKS], page as usize % CHUNK)
    }

    #[inline]
    fn find(&self, address: u64) -> Option<u64> {
        let (page, offset) = (address >> BITS, address & ((1 << BITS) - 1));
        let (chunk, index) = self.place(page);
        chunk.get()?[index].find(page).map(|start| start + offset)
    }

    /// Only one thread at a time may call this.
    fn insert(&self, address: u64, value: u64) {
        let (page, offset) = (address >> BITS, address & ((1 << BITS) - 1));
        let (chunk, index) = self.place(page);
        let entries = chunk.get_or_init(|| Box::new(std::array::from_fn(|_| Entry::new())));
        entries[index].set(page, value.wrapping_sub(offset));
    }

    /// Only one thread at a time may call this.
    fn invalidate(&self, addresses: &RangeInclusive<u64>) {
        let pages = addresses.start() >> BITS..=addresses.end() >> BITS;
        let remove = |entry: &Entry| {
            if pages.contains(&entry.page.load(Ordering::Relaxed)) {
                entry.set(NO_PAGE, 0);
            }
        };
        if pages.end() - pages.start() < CHUNK as u64 {
            for page in pages.clone() {
                let (chunk, index) = self.place(page);
                chunk.get().into_iter().for_each(|entries| remove(&entries[index]));
            }
        } else {
            self.chunks.iter().filter_map(OnceLock::get).flat_map(|entries| entries.iter()).for_each(remove);
        }
    }
}

impl Entry {
    fn new() -> Entry {
        Entry { version: AtomicU64::new(0), page: AtomicU64::new(NO_PAGE), value: AtomicU64::new(0) }
    }

    #[inline]
    fn find(&self, page: u64) -> Option<u64> {
        let version = self.version.load(Ordering::Acquire);
        if self.page.load(Ordering::Relaxed) != page {
            return None;
        }
        let value = self.value.load(Ordering::Relaxed);
        fence(Ordering::Acquire); // before the version is read again
        let is_whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        is_whole.then_some(value)
    }

    /// Only one thread at a time may call this.
    fn set(&self, page: u64, value: u64) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release); // after the odd version was written
        self.page.store(page, Ordering::Relaxed);
        self.value.store(value, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const KIB_4: u64 = 1 << 12;
    const MIB_2: u64 = 1 << 21;

    #[test]
    fn translations_are_found_until_they_are_invalidated() {
        let tlb = Tlb::new();
        for (address, size) in [(0x1000, KIB_4), (u64::MAX, KIB_4), (0x4000_0123, MIB_2), (0x8040_0000, 1 << 30)] {
            assert_eq!(tlb.find(address), None);
            tlb.insert(tlb.time(), address, size, address / 2);
            assert_eq!(tlb.find(address), Some(address / 2));
        }
        assert_eq!(tlb.find(0x4000_0000 + MIB_2 - 1), Some(0x2000_0091 - 0x123 + MIB_2 - 1));
        assert_eq!(tlb.find(0x8040_0000 + MIB_2), None, "another part of the page");

        tlb.invalidate(&(0x1FFF..=0x4000_0000));
        assert_eq!([0x1000, 0x4000_0000].map(|address| tlb.find(address)), [None, None]);
        assert!(tlb.find(u64::MAX).is_some() && tlb.find(0x8040_0000).is_some());
        tlb.invalidate(&(0..=u64::MAX));
        assert!(tlb.find(u64::MAX).is_none() && tlb.find(0x8040_0000).is_none());
    }

    #[test]
    fn walk_that_began_before_an_invalidation_is_not_remembered() {
        let tlb = Tlb::new();
        let time = tlb.time();
        tlb.invalidate(&(0..=0));
        tlb.insert(time, 0x5000, KIB_4, 1);
        assert_eq!(tlb.find(0x5000), None);
    }

    #[test]
    fn all_pages_of_a_contiguous_range_have_places_of_their_own() {
        let tlb = Tlb::new();
        // Two of the ranges do not begin at a multiple of their size.
        for start in [0, 0xFFFF_8880_0123_4000, 0x7F12_3450_0000] {
            let pages = || (start..).step_by(4096).take((SMALL - 1) * CHUNK);
            pages().for_each(|address| tlb.insert(tlb.time(), address, KIB_4, address));
            assert!(pages().all(|address| tlb.find(address) == Some(address)), "{start:#x}");
        }
    }

    #[test]
    fn reader_never_sees_the_translation_of_another_page() {
        let tlb = Tlb::new();
        // Both have the same place.
        let pages = [0, ((SMALL * SMALL * CHUNK) as u64) << SMALL_BITS];
        assert!(std::ptr::eq(tlb.small.place(0).0, tlb.small.place(pages[1] >> 12).0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..100_000 {
                    tlb.insert(0, pages[n % 2], KIB_4, pages[n % 2] + 1);
                }
            });
            for n in 0..100_000 {
                let found = tlb.find(pages[n % 2]);
                assert!(found.is_none_or(|value| value == pages[n % 2] + 1), "{found:x?}");
            }
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    const A: u64 = 0;
    /// Another page with the same place as `A`.
    const B: u64 = 2 << 12;

    #[test]
    fn reader_sees_a_page_with_its_translation_or_nothing() {
        loom::model(|| {
            let tlb = Arc::new(Tlb::new());
            tlb.insert(0, A, 4096, 10);
            let writer = {
                let tlb = tlb.clone();
                thread::spawn(move || {
                    tlb.insert(0, B, 4096, 20);
                    tlb.insert(0, A, 4096, 11);
                })
            };
            assert!(matches!(tlb.find(A), None | Some(10 | 11)));
            assert!(matches!(tlb.find(B), None | Some(20)));
            writer.join().unwrap();
        });
    }

    #[test]
    fn invalidation_outlasts_a_walk_that_read_what_was_there_before() {
        loom::model(|| {
            let tlb = Arc::new(Tlb::new());
            // A guest's page table.
            let table = Arc::new(AtomicU64::new(1));
            let walker = {
                let (tlb, table) = (tlb.clone(), table.clone());
                thread::spawn(move || {
                    let time = tlb.time();
                    let entry = table.load(Ordering::Relaxed);
                    tlb.insert(time, A, 4096, entry);
                })
            };
            table.store(2, Ordering::Relaxed);
            tlb.invalidate(&(A..=A));
            assert!(matches!(tlb.find(A), None | Some(2)));
            walker.join().unwrap();
            assert!(matches!(tlb.find(A), None | Some(2)));
        });
    }
}
