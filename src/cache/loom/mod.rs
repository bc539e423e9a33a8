//! Model checks of the cache's protocol: loom runs it in all interleavings of the threads, on a simulated source.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib --target-dir target/loom cache::`
//!
//! Loom does not track the `OnceLock`s that hold the slots. They are set under the lock, before a slot's number is
//! stored in the index.

mod failing;
mod lookups;

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ::loom::cell::UnsafeCell;
use ::loom::model::Builder;
use ::loom::sync::Arc;
use ::loom::sync::atomic::{self as loom_atomic, AtomicU64};
use ::loom::thread;

use super::buckets::{Buckets, CannotMap, Pin, Source};
use crate::error::{Error, Result};
use crate::types::Domid;

const SIZE: usize = 0x1000;

/// The payload of a map that panics.
const PANIC: &str = "while it maps";

/// Whether the caller needs to write.
type Writes = bool;
const READ: Writes = false;
const WRITE: Writes = true;

/// A simulated host. The atomics and locks of the standard library only count: loom does not see any ordering in them.
#[derive(Debug, Default)]
struct Host {
    /// Incremented when the guest changes its memory.
    generation: AtomicU64,
    being_mapped: Mutex<BTreeSet<u64>>,
    maps: AtomicUsize,
    alive: std::sync::Arc<AtomicUsize>,
    /// The limit of mapped buckets, if there is one. Beyond it, mapping fails with ENOMEM.
    room: Option<usize>,
    /// Whether writers find a hole in generation 0.
    has_hole: bool,
    /// Whether the next map panics.
    panics: AtomicBool,
    /// How many requests ended in an error or a panic.
    failed: AtomicUsize,
    /// Whether the cache was closed. (A loom atomic, so that loom tries a map before and after.)
    is_closed: loom_atomic::AtomicBool,
    /// How many writes were gathered.
    gathered: AtomicUsize,
    /// Pins that were turned into numbers.
    raw_pins: Mutex<Vec<u32>>,
}

/// A mapping tracked by loom, which reports it as a race if it is unmapped while it may be in use.
#[derive(Debug)]
struct Mapped {
    number: u64,
    generation: u64,
    writable: bool,
    address: usize,
    /// Whether it was mapped after the cache was closed.
    is_late: bool,
    /// The writes that were not gathered yet.
    written: AtomicU64,
    memory: UnsafeCell<()>,
    alive: std::sync::Arc<AtomicUsize>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.memory.with_mut(|_| ());
        }
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Host {
    fn gather(&self, mapped: &Mapped) {
        let written = mapped.written.swap(0, Ordering::Relaxed);
        self.gathered.fetch_add(usize::try_from(written).unwrap(), Ordering::Relaxed);
    }
}

impl Source for Host {
    type Bucket = Mapped;
    type Request = Writes;

    fn map(&self, number: u64, writable: Writes) -> Result<Mapped> {
        assert!(self.being_mapped.lock().unwrap().insert(number), "mapped twice at a time");
        let generation = self.generation.load(Ordering::Relaxed); // loom may switch threads here
        assert!(self.being_mapped.lock().unwrap().remove(&number));
        if self.panics.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new(PANIC));
        }
        if self.room.is_some_and(|room| self.alive.load(Ordering::Relaxed) >= room) {
            return Err(error(number, libc::ENOMEM));
        }
        self.alive.fetch_add(1, Ordering::Relaxed);
        Ok(Mapped {
            number,
            generation,
            writable: writable && !(self.has_hole && generation == 0),
            address: (self.maps.fetch_add(1, Ordering::Relaxed) + 1) * SIZE,
            is_late: self.is_closed.load(Ordering::Relaxed),
            written: AtomicU64::new(0),
            memory: UnsafeCell::new(()),
            alive: self.alive.clone(),
        })
    }

    fn cannot_map(&self, bucket: u64, _: CannotMap) -> Error {
        error(bucket, libc::ESRCH)
    }

    fn serves(&self, mapped: &Mapped, bucket: u64, writes: Writes) -> bool {
        mapped.memory.with(|_| ());
        mapped.number == bucket && (mapped.writable || !writes)
    }

    fn place(&self, mapped: &Mapped) -> (u64, usize) {
        (mapped.number, mapped.address)
    }

    fn removed(&self, mapped: &Mapped) {
        mapped.memory.with_mut(|_| ()); // no other thread uses it
        self.gather(mapped);
    }
}

fn error(bucket: u64, errno: i32) -> Error {
    Error::GuestAddress { domid: Domid::XEN, address: bucket, errno }
}

type Cache = Buckets<Host>;

/// Uses a pinned bucket, and returns its generation.
fn use_bucket(pin: &Pin<'_, Host>, number: u64, writes: Writes) -> u64 {
    let mapped = pin.bucket();
    assert_eq!(mapped.number, number, "another bucket");
    assert!(mapped.writable || !writes, "mapped read-only");
    assert!(!mapped.is_late, "mapped after the cache was closed");
    mapped.memory.with(|_| ());
    thread::yield_now();
    mapped.memory.with(|_| ());
    if writes {
        mapped.written.fetch_add(1, Ordering::Relaxed);
    }
    mapped.generation
}

fn get(cache: &Cache, number: u64, writes: Writes) -> u64 {
    use_bucket(&cache.pin(number, writes).unwrap(), number, writes)
}

/// Changes the guest's memory, and invalidates a bucket.
fn change(cache: &Cache, number: u64) {
    cache.source().generation.fetch_add(1, Ordering::Relaxed);
    cache.invalidate(number..number + 1);
}

fn maps(cache: &Cache) -> usize {
    cache.source().maps.load(Ordering::Relaxed)
}

fn failed(cache: &Cache) -> usize {
    cache.source().failed.load(Ordering::Relaxed)
}

fn alive(cache: &Cache) -> usize {
    cache.source().alive.load(Ordering::Relaxed)
}

/// Sets up a cache with a budget of some buckets, runs threads on it, and checks what is left.
fn check<const THREADS: usize>(
    budget: usize,
    set_up: fn(&Cache),
    threads: [fn(&Cache); THREADS],
    then: impl Fn(&Cache) + Send + Sync + 'static,
) {
    check_on(Host::default, budget, set_up, threads, then);
}

/// Like `check`, on the given host.
fn check_on<const THREADS: usize>(
    host: fn() -> Host,
    budget: usize,
    set_up: fn(&Cache),
    threads: [fn(&Cache); THREADS],
    then: impl Fn(&Cache) + Send + Sync + 'static,
) {
    let mut builder = Builder::new();
    // All interleavings for two threads. For more, only those with at most two preemptions: all would take hours.
    builder.preemption_bound = (THREADS > 2).then_some(2);
    builder.check(move || {
        let cache = Arc::new(Cache::new(host(), SIZE, budget * SIZE));
        set_up(&cache);
        let spawn = |run: fn(&Cache)| {
            let cache = cache.clone();
            thread::spawn(move || run(&cache))
        };
        let others: Vec<_> = threads[1..].iter().map(|&run| spawn(run)).collect();
        threads[0](&cache);
        others.into_iter().for_each(|thread| thread.join().unwrap());

        then(&cache);
        let counts = cache.counts();
        assert_eq!((counts.mapped_bytes, counts.pinned), (alive(&cache) * SIZE, 0), "nothing leaks");
        assert_eq!(counts.misses, (maps(&cache) + failed(&cache)) as u64);
        cache.invalidate(0..u64::MAX);
        assert_eq!(alive(&cache), 0, "no unreachable bucket stays mapped");
    });
}

fn nothing(_: &Cache) {}

fn read_1(cache: &Cache) {
    get(cache, 1, READ);
}

fn read_2(cache: &Cache) {
    get(cache, 2, READ);
}

fn write_1(cache: &Cache) {
    get(cache, 1, WRITE);
}

#[test]
fn bucket_that_two_threads_request_is_mapped_once() {
    check(2, nothing, [read_1, read_1], |cache| {
        let counts = cache.counts();
        assert_eq!((counts.hits, counts.misses, maps(cache)), (1, 1, 1));
    });
}

#[test]
fn bucket_is_not_evicted_while_it_is_hit() {
    check(1, read_1, [read_1, read_2], |cache| {
        let counts = cache.counts();
        assert_eq!(counts.evictions as usize + alive(cache), maps(cache));
    });
}

#[test]
fn buckets_of_two_threads_evict_each_other() {
    check(1, nothing, [read_1, read_2], |cache| assert!(alive(cache) <= 2));
}

#[test]
fn invalidated_bucket_is_unmapped_with_its_last_guard_and_not_found_again() {
    let change = |cache: &Cache| {
        change(cache, 1);
        assert_eq!(get(cache, 1, READ), 1, "stale");
    };
    check(2, read_1, [read_1, change], |cache| {
        assert_eq!((alive(cache), maps(cache)), (1, 2));
        assert_eq!(get(cache, 1, READ), 1);
    });
}

#[test]
fn guard_that_outlives_an_invalidation_keeps_its_bucket() {
    let hold = |cache: &Cache| {
        let first = cache.pin(1, READ).unwrap();
        let generation = use_bucket(&first, 1, READ);
        assert!(get(cache, 1, READ) >= generation);
        assert_eq!(use_bucket(&first, 1, READ), generation);
    };
    check(2, read_1, [hold, |cache| change(cache, 1)], |cache| assert!(alive(cache) <= 1));
}

#[test]
fn slot_with_another_bucket_is_not_mistaken_for_the_old_one() {
    let refill = |cache: &Cache| {
        cache.invalidate(1..2);
        get(cache, 2, READ);
    };
    check(1, read_1, [read_1, refill], |_| ());
}

#[test]
fn bucket_that_is_invalidated_while_it_is_mapped_serves_no_later_request() {
    let change = |cache: &Cache| {
        change(cache, 1);
        assert_eq!(get(cache, 1, READ), 1, "stale");
    };
    check(2, nothing, [read_1, change], |cache| {
        assert_eq!(get(cache, 1, READ), 1);
        assert_eq!(alive(cache), 1);
    });
}

#[test]
fn bucket_serves_readers_while_it_is_upgraded() {
    check(2, read_1, [read_1, write_1], |cache| {
        get(cache, 1, WRITE);
        assert_eq!((alive(cache), maps(cache)), (1, 2));
    });
}

#[test]
fn bucket_that_is_invalidated_while_a_writer_finds_it_read_only_is_unmapped() {
    check(2, read_1, [write_1, |cache| change(cache, 1)], |cache| assert!(alive(cache) <= 1));
}

#[test]
fn writer_and_reader_of_a_new_bucket_both_get_it() {
    check(2, nothing, [read_1, write_1], |cache| {
        get(cache, 1, WRITE);
        assert_eq!(alive(cache), 1);
    });
}

fn with_hole() -> Host {
    Host { has_hole: true, ..Host::default() }
}

/// Requests the hole, and returns whether it is filled.
fn request_hole(cache: &Cache) -> bool {
    let pin = cache.pin(1, WRITE).unwrap();
    use_bucket(&pin, 1, READ);
    pin.bucket().writable
}

#[test]
fn bucket_with_a_hole_is_mapped_again_once_for_each_request_of_the_hole() {
    let request = |cache: &Cache| assert!(!request_hole(cache));
    check_on(with_hole, 2, read_1, [request, request, nothing], |cache| {
        assert_eq!((alive(cache), maps(cache)), (1, 3));
    });
}

#[test]
fn hole_that_was_filled_is_found_without_an_invalidation() {
    let request = |cache: &Cache| {
        request_hole(cache);
    };
    let fill = |cache: &Cache| {
        cache.source().generation.fetch_add(1, Ordering::Relaxed);
        assert!(request_hole(cache));
    };
    check_on(with_hole, 2, read_1, [request, fill, nothing], |cache| {
        assert!(request_hole(cache));
        assert_eq!(alive(cache), 1);
    });
}

#[test]
fn three_threads_find_map_and_evict() {
    check(1, read_1, [read_1, read_2, read_1], |_| ());
    check(1, nothing, [read_1, write_1, read_2], |_| ());
}

#[test]
fn three_threads_find_upgrade_and_invalidate() {
    check(2, read_1, [read_1, write_1, |cache| change(cache, 1)], |cache| assert_eq!(get(cache, 1, READ), 1));
    check(2, nothing, [read_1, read_1, |cache| change(cache, 1)], |cache| assert_eq!(get(cache, 1, READ), 1));
}
