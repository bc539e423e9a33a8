//! Threads use a small cache while the guest changes its memory.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::buckets::{BUCKET, cache};
use crate::common::{FRAME, ReadOnly, ReadWrite, mock, mock_with_pages};
use xenmap::mock::{Dom0, MockDomain, MockHost};
use xenmap::{Access, GuestKind, MapCache, Pinned};

const FRAMES: usize = 64;
/// The guest exchanges the frames from this one on.
const EXCHANGED: usize = 32;
const THREADS: u64 = 4;
const OPERATIONS: u64 = 4000;
/// The offset of the writers' counter in a frame.
const COUNTER: usize = 16;

/// xorshift64
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// For each frame, twice the number of its exchanges, plus one during an exchange.
struct Generations([AtomicU64; FRAMES]);

/// The contents of a frame after `generation` exchanges.
fn content(frame: usize, generation: u64) -> u64 {
    (frame as u64 + 1) << 32 | generation
}

fn exchange(domain: &MockDomain, cache: &MapCache, generations: &Generations, frame: usize) {
    let gfn = xenmap::Gfn::new(frame as u64).unwrap();
    let generation = &generations.0[frame];
    let next = generation.fetch_add(1, Ordering::SeqCst) / 2 + 1;
    domain.balloon_out(gfn);
    domain.populate(&[gfn]);
    domain.write(gfn, 0, &content(frame, next).to_ne_bytes());
    cache.invalidate((frame * FRAME) as u64..(frame * FRAME) as u64 + 1);
    generation.store(2 * next, Ordering::SeqCst);
}

/// Checks a random range once. Returns its guard, unless the guest was exchanging a frame.
fn look<'c>(
    cache: &'c MapCache,
    generations: &Generations,
    random: &mut Random,
    counted: &mut u64,
) -> Option<(usize, Pinned<'c>)> {
    let first = random.below(FRAMES);
    let frames = (1 + random.below(6)).min(FRAMES - first);
    let writable = random.below(3) == 0;
    let now = || -> Vec<u64> {
        generations.0[first..first + frames].iter().map(|generation| generation.load(Ordering::SeqCst)).collect()
    };
    let before = now();
    let protection = if writable { ReadWrite } else { ReadOnly };
    let pinned = cache.get(protection, (first * FRAME) as u64, frames * FRAME);
    let found: Option<Vec<u64>> =
        pinned.as_ref().ok().map(|pinned| (0..frames).map(|i| pinned.read(i * FRAME).unwrap()).collect());
    for (i, (before, after)) in before.into_iter().zip(now()).enumerate() {
        let frame = first + i;
        if before == after && before % 2 == 0 {
            let expected = content(frame, before / 2);
            assert!(found.as_ref().is_none_or(|found| found[i] == expected), "frame {frame}: {found:x?} {expected:x}");
        } else if let Some(found) = &found {
            // A new frame that may not be written yet, or the one from before the exchange in progress.
            let is_its_own =
                found[i] == 0 || found[i] >= content(frame, before / 2) && found[i] >> 32 == frame as u64 + 1;
            assert!(is_its_own, "frame {frame}: {:x}", found[i]);
        }
    }
    let Ok(pinned) = pinned else {
        assert!(first + frames > EXCHANGED, "these frames are never exchanged");
        return None;
    };
    if writable && first < EXCHANGED {
        pinned.fetch_add(COUNTER, 1_u64).unwrap();
        *counted += 1;
    }
    Some((first, pinned))
}

/// Runs one thread, which keeps its last few guards. Returns how often it has counted in a frame.
fn work(cache: &MapCache, generations: &Generations, seed: u64) -> u64 {
    let (mut random, mut counted, mut held) = (Random(seed), 0, VecDeque::new());
    for _ in 0..OPERATIONS {
        held.extend(look(cache, generations, &mut random, &mut counted));
        if held.len() > random.below(4) {
            let (first, pinned): (usize, Pinned<'_>) = held.pop_front().unwrap();
            let number = pinned.read::<u64>(0).unwrap() >> 32;
            assert!(number == first as u64 + 1 || number == 0 && first >= EXCHANGED, "frame {first}: {number}");
            let at = pinned.view(0).unwrap().as_ptr();
            assert_eq!(cache.address_of(at), Some((first * FRAME) as u64));
        }
    }
    counted
}

fn stress(host: &MockHost) {
    let domain = host.create_domain(GuestKind::Hvm, FRAMES);
    for (frame, gfn) in domain.frames().into_iter().enumerate() {
        domain.write(gfn, 0, &content(frame, 0).to_ne_bytes());
    }
    let memory = host.open().unwrap();
    let cache = cache(&memory, domain.domid(), 4);
    let (generations, is_over) = (Generations([const { AtomicU64::new(0) }; FRAMES]), AtomicBool::new(false));

    let counted: u64 = std::thread::scope(|scope| {
        let (cache, domain, generations, is_over) = (&cache, &domain, &generations, &is_over);
        let changes = |change: fn(&MapCache, &MockDomain, &Generations, &mut Random)| {
            move || {
                let mut random = Random(99);
                while !is_over.load(Ordering::Relaxed) {
                    change(cache, domain, generations, &mut random);
                    std::thread::yield_now();
                }
            }
        };
        scope.spawn(changes(|cache, _, _, random| {
            let (start, len) = (random.below(FRAMES * FRAME) as u64, random.below(BUCKET) as u64);
            cache.invalidate(start..start + len);
        }));
        scope.spawn(changes(|cache, domain, generations, random| {
            exchange(domain, cache, generations, EXCHANGED + random.below(FRAMES - EXCHANGED));
        }));
        let workers: Vec<_> = (1..=THREADS).map(|seed| scope.spawn(move || work(cache, generations, seed))).collect();
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        results.into_iter().map(|result| result.unwrap()).sum()
    });

    let statistics = cache.statistics();
    assert!(statistics.hits > 0 && statistics.evictions > 0 && counted > 0);
    assert_eq!(statistics.pinned, 0);
    assert_eq!(host.references(domain.domid()) * FRAME, statistics.mapped_bytes, "a hole or a reference is left");
    let counters = domain.frames().into_iter().map(|gfn| domain.read(gfn, COUNTER, 8));
    let sum: u64 = counters.map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap())).sum();
    assert_eq!(sum, counted, "a write was lost");
    drop(cache);
    assert_eq!(host.references(domain.domid()), 0);
}

#[test]
fn threads_read_current_data_and_lose_no_write_in_a_pv_dom0() {
    stress(&mock(Dom0::Pv));
}

#[test]
fn threads_read_current_data_and_lose_no_write_in_a_pvh_dom0() {
    stress(&mock(Dom0::Pvh));
}

#[test]
fn threads_read_current_data_and_lose_no_write_in_an_arm_dom0_with_large_pages() {
    stress(&mock_with_pages(Dom0::Arm, 4 * FRAME));
}
