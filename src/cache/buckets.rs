//! The cache's protocol: how buckets are mapped, pinned, evicted and invalidated.
//!
//! - A **hit** takes no lock. The [`Index`] gives the slot, which is pinned by an atomic operation on its state; then
//!   the caller checks that the slot holds the requested bucket. The bucket stays in its slot until it is unpinned.
//! - A **miss** marks the bucket as pending under the lock, and maps it without the lock. Threads that request the same
//!   bucket meanwhile wait for it; threads that request another bucket do not.
//! - To **remove** a bucket, its slot is retired under the lock, so that it gets no new pin. The bucket is taken out of
//!   the slot at once if it is not pinned, otherwise by the thread that drops the last pin; it is unmapped without the
//!   lock.
//!
//! What a bucket is and how one is mapped is up to the [`Source`].

#![expect(unsafe_code, reason = "fills and empties slots")]

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{OnceLock, PoisonError};

use super::index::{Index, MAX_SLOTS};
use super::slot::{Slot, Visit};
use super::sync::{Condvar, Mutex, MutexGuard};
use crate::error::Result;

/// Where buckets come from.
pub(crate) trait Source {
    /// A mapped bucket. Dropping it unmaps it.
    type Bucket: Debug;

    /// What a caller needs from a bucket.
    type Request: Copy;

    /// Maps a bucket. Called without the lock.
    fn map(&self, bucket: u64, request: Self::Request) -> Result<Self::Bucket>;

    /// Returns the error for a bucket that the cache does not even try to map.
    fn cannot_map(&self, bucket: u64, why: CannotMap) -> crate::error::Error;

    /// Returns whether this is the requested bucket, and has all that was requested. Otherwise each caller
    /// maps it again, once, because the guest may have received the missing frames since.
    fn serves(&self, mapped: &Self::Bucket, bucket: u64, request: Self::Request) -> bool;

    /// Returns the bucket's number, and the address of its first byte in this process.
    fn place(&self, mapped: &Self::Bucket) -> (u64, usize);

    /// Called with the lock when a bucket was taken out of its slot.
    fn removed(&self, mapped: &Self::Bucket);
}

/// Why the cache does not map a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CannotMap {
    /// The cache is closed.
    Closed,
    /// All slots are in use.
    Full,
}

/// Slots in the first chunk. Each further chunk has twice as many as the one before.
const FIRST_CHUNK: usize = if cfg!(loom) { 2 } else { 64 };

/// Slots, allocated when the first of them is needed.
type Chunk<B> = OnceLock<Box<[Slot<B>]>>;

/// The buckets of a cache.
///
/// A hit only reads this struct, and writes only to a slot. To avoid false sharing, this struct has cache lines of its
/// own, and so have the fields that a miss writes.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Buckets<S: Source> {
    source: S,
    bucket_size: usize,
    budget: usize,
    index: Index,
    /// Chunks are not moved or freed while the cache lives, so reading them needs no lock.
    chunks: [Chunk<S::Bucket>; 24],
    misses: Misses,
}

#[derive(Debug)]
#[repr(align(128))]
struct Misses {
    state: Mutex<State>,
    /// Notified when a map has succeeded or failed, and when buckets were unmapped.
    changed: Condvar,
}

/// The state of all slots.
#[derive(Debug, Default)]
struct State {
    /// Bucket numbers to slots, without retired slots.
    buckets: BTreeMap<u64, u32>,
    /// The address of each mapped bucket's first byte to its slot, with retired slots.
    addresses: BTreeMap<usize, u32>,
    /// The buckets that a thread is mapping, and whether they were invalidated since it began.
    pending: BTreeMap<u64, bool>,
    /// Empty slots that were used before.
    free: Vec<u32>,
    /// How many slots were ever used.
    slots: u32,
    /// The slot that the clock hand visits next.
    hand: u32,
    /// Bytes that are mapped or being mapped.
    mapped_bytes: usize,
    /// Hits counted in slots that were emptied since.
    hits: u64,
    misses: u64,
    evictions: u64,
    /// How many buckets were ever taken out of their slots, and how many of these were unmapped.
    taken: u64,
    unmapped: u64,
    is_closed: bool,
}

/// See [`super::CacheStatistics`].
pub(super) struct Counts {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) evictions: u64,
    pub(super) mapped_bytes: usize,
    pub(super) pinned: usize,
}

/// Keeps a bucket mapped until dropped.
pub(crate) struct Pin<'c, S: Source> {
    buckets: &'c Buckets<S>,
    slot: &'c Slot<S::Bucket>,
}

impl<S: Source> Buckets<S> {
    pub(super) fn new(source: S, bucket_size: usize, budget: usize) -> Buckets<S> {
        Buckets {
            source,
            bucket_size,
            budget,
            index: Index::new(budget / bucket_size),
            chunks: std::array::from_fn(|_| OnceLock::new()),
            misses: Misses { state: Mutex::new(State::default()), changed: Condvar::new() },
        }
    }

    #[inline]
    pub(super) fn bucket_size(&self) -> usize {
        self.bucket_size
    }

    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// Pins a bucket, and maps it if necessary. Even then, it may lack some of what was requested.
    #[inline]
    pub(super) fn pin(&self, bucket: u64, request: S::Request) -> Result<Pin<'_, S>> {
        self.find(bucket, |b| self.source.serves(b, bucket, request))
            .map_or_else(|| self.pin_slowly(bucket, request), Ok)
    }

    /// Pins a bucket if the index has it and `is_good` accepts it.
    #[inline]
    pub(super) fn find(&self, bucket: u64, is_good: impl FnOnce(&S::Bucket) -> bool) -> Option<Pin<'_, S>> {
        self.try_pin(self.index.find(bucket)?, is_good)
    }

    #[inline]
    fn slot(&self, number: u32) -> Option<&Slot<S::Bucket>> {
        let place = number as usize + FIRST_CHUNK;
        let chunk = (place / FIRST_CHUNK).ilog2();
        self.chunks[chunk as usize].get()?.get(place - (FIRST_CHUNK << chunk))
    }

    #[inline]
    fn try_pin(&self, number: u32, is_good: impl FnOnce(&S::Bucket) -> bool) -> Option<Pin<'_, S>> {
        let slot = self.slot(number)?;
        if !slot.pin() {
            return None;
        }
        // SAFETY: a slot can be pinned only while it is filled (`Slot::fill`), and stays filled while we hold a pin.
        if is_good(unsafe { slot.bucket() }) {
            return Some(Pin { buckets: self, slot });
        }
        // Another bucket has taken the slot, or this one was not good enough.
        if slot.unpin_miss() {
            self.remove_retired(number);
        }
        None
    }

    #[cold]
    fn pin_slowly(&self, bucket: u64, request: S::Request) -> Result<Pin<'_, S>> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return Err(self.source.cannot_map(bucket, CannotMap::Closed));
            }
            if let Some(&number) = state.buckets.get(&bucket) {
                state.hits += self.slot(number).map_or(0, Slot::take_hits);
                // A slot in `buckets` is retired only under the lock. So if the pin is useless, dropping it does not
                // remove a retired bucket, which would take the lock again.
                if let Some(pin) = self.try_pin(number, |b| self.source.serves(b, bucket, request)) {
                    self.index.insert(bucket, number);
                    return Ok(pin);
                }
            }
            if state.pending.contains_key(&bucket) {
                state = self.misses.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.misses += 1;
            let pending = Pending::begin(self, bucket, &mut state);
            let evicted = self.make_room(&mut state, self.budget);
            let unmapped = state.unmapped + evicted.len() as u64;
            drop(state);
            self.unmap(evicted);
            let mut mapped = self.source.map(bucket, request);
            // Each mapped frame may take a page of this domain's memory, and the kernel limits the number of mappings:
            // so evicting buckets may help.
            if mapped.as_ref().is_err_and(|e| e.errno() == libc::ENOMEM) && self.evict_all() > unmapped {
                mapped = self.source.map(bucket, request);
            }
            state = self.lock();
            let was_invalidated = pending.end(&mut state);
            let mapped = mapped?;
            if state.is_closed {
                drop(state);
                return Err(self.source.cannot_map(bucket, CannotMap::Closed));
            }
            let Some((number, slot)) = self.free_slot(&mut state) else {
                drop(state);
                return Err(self.source.cannot_map(bucket, CannotMap::Full));
            };
            let (_, address) = self.source.place(&mapped);
            // SAFETY: `free_slot` returned an empty slot, and returns each only once until it is emptied again. Nobody
            // else fills it: that takes the lock, which was not released since.
            unsafe { slot.fill(mapped) };
            state.mapped_bytes += self.bucket_size;
            state.addresses.insert(address, number);
            let replaced = if was_invalidated {
                // The mapping may be stale, so only this caller, who asked before the invalidation, gets it. Mapping it
                // again instead might never end while the guest keeps changing its memory.
                let is_unused = slot.retire();
                debug_assert!(!is_unused, "this thread has it pinned");
                None
            } else {
                let replaced = self.retire(&mut state, bucket);
                state.buckets.insert(bucket, number);
                self.index.insert(bucket, number);
                replaced
            };
            drop(state);
            self.unmap(replaced);
            return Ok(Pin { buckets: self, slot });
        }
    }

    /// Returns an empty slot and its number; `None` if all are in use.
    fn free_slot(&self, state: &mut State) -> Option<(u32, &Slot<S::Bucket>)> {
        let number = match state.free.pop() {
            Some(number) => number,
            None if state.slots == MAX_SLOTS => return None,
            None => {
                let chunk = ((state.slots as usize + FIRST_CHUNK) / FIRST_CHUNK).ilog2();
                self.chunks
                    .get(chunk as usize)?
                    .get_or_init(|| (0..FIRST_CHUNK << chunk).zip(state.slots..).map(|(_, n)| Slot::new(n)).collect());
                state.slots += 1;
                state.slots - 1
            }
        };
        Some((number, self.slot(number)?))
    }

    /// Evicts all buckets that are not pinned, and waits until other threads have unmapped those that they removed.
    /// Returns how many buckets were ever unmapped.
    fn evict_all(&self) -> u64 {
        let mut state = self.lock();
        let evicted = self.make_room(&mut state, 0);
        let taken = state.taken;
        drop(state);
        self.unmap(evicted);
        let mut state = self.lock();
        while state.unmapped < taken {
            state = self.misses.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.unmapped
    }

    /// Unmaps buckets that were taken out of their slots. Called without the lock.
    fn unmap(&self, taken: impl IntoIterator<Item = S::Bucket>) {
        let count = taken.into_iter().map(drop).count() as u64;
        if count != 0 {
            self.lock().unmapped += count;
            self.misses.changed.notify_all();
        }
    }

    /// Evicts buckets that were not used recently, until the rest fits the budget or is pinned. This approximates LRU
    /// by the clock algorithm.
    fn make_room(&self, state: &mut State, budget: usize) -> Vec<S::Bucket> {
        let mut evicted = Vec::new();
        // Two rounds: a bucket that the first one spares is evicted by the second, unless it was used in between.
        let mut visits = 2 * u64::from(state.slots);
        while state.mapped_bytes > budget && visits > 0 {
            visits -= 1;
            let number = state.hand;
            state.hand = if number + 1 < state.slots { number + 1 } else { 0 };
            if self.slot(number).is_some_and(|slot| slot.visit() == Visit::Taken) {
                state.evictions += 1;
                evicted.extend(self.clear(state, number));
            }
        }
        evicted
    }

    /// Retires a bucket's slot, if the bucket is mapped. Returns the bucket if it is not pinned.
    fn retire(&self, state: &mut State, bucket: u64) -> Option<S::Bucket> {
        let number = state.buckets.remove(&bucket)?;
        self.index.remove(bucket);
        if self.slot(number)?.retire() { self.clear(state, number) } else { None }
    }

    /// Empties a slot to which the caller has exclusive access.
    fn clear(&self, state: &mut State, number: u32) -> Option<S::Bucket> {
        // SAFETY: `Slot::retire`, `visit`, `unpin` or `unpin_miss` has given the caller exclusive access among those
        // who use pins. `find_address` and `for_each` access slots without pins, but hold the lock, which we hold.
        let (mapped, hits) = unsafe { self.slot(number)?.empty() };
        let mapped = mapped?;
        state.taken += 1;
        let (bucket, address) = self.source.place(&mapped);
        state.hits += hits;
        state.mapped_bytes -= self.bucket_size;
        state.addresses.remove(&address);
        if state.buckets.get(&bucket) == Some(&number) {
            state.buckets.remove(&bucket);
            self.index.remove(bucket);
        }
        state.free.push(number);
        self.source.removed(&mapped);
        Some(mapped)
    }

    #[cold]
    fn remove_retired(&self, number: u32) {
        let mut state = self.lock();
        let mapped = self.clear(&mut state, number);
        drop(state);
        self.unmap(mapped);
    }

    /// Removes the mapped buckets of a range. A bucket that is being mapped will serve only the caller that is mapping
    /// it.
    pub(super) fn invalidate(&self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut state = self.lock();
        for (_, was_invalidated) in state.pending.range_mut(range.clone()) {
            *was_invalidated = true;
        }
        let mapped: Vec<u64> = state.buckets.range(range).map(|(&bucket, _)| bucket).collect();
        let unmapped: Vec<S::Bucket> = mapped.into_iter().filter_map(|b| self.retire(&mut state, b)).collect();
        drop(state);
        self.unmap(unmapped);
    }

    /// Removes all buckets, and makes every later miss fail.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.invalidate(0..u64::MAX);
    }

    /// Calls `f` with the bucket that is mapped at an address of this process, and the offset of that byte in it.
    pub(super) fn find_address<R>(&self, at: usize, f: impl FnOnce(&S::Bucket, usize) -> R) -> Option<R> {
        let state = self.lock();
        let (&start, &number) = state.addresses.range(..=at).next_back()?;
        if at - start >= self.bucket_size {
            return None;
        }
        // SAFETY: a slot in `addresses` is filled, and is emptied only under the lock, which we hold.
        let mapped = unsafe { self.slot(number)?.bucket() };
        Some(f(mapped, at - start))
    }

    /// Calls `f` with each mapped bucket.
    pub(super) fn for_each(&self, mut f: impl FnMut(&S::Bucket)) {
        let state = self.lock();
        for &number in state.addresses.values() {
            if let Some(slot) = self.slot(number) {
                // SAFETY: a slot in `addresses` is filled, and is emptied only under the lock, which we hold.
                f(unsafe { slot.bucket() });
            }
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let state = self.lock();
        let slots = || state.addresses.values().filter_map(|&number| self.slot(number));
        Counts {
            hits: state.hits + slots().map(Slot::hits).sum::<u64>(),
            misses: state.misses,
            evictions: state.evictions,
            mapped_bytes: state.mapped_bytes,
            pinned: slots().filter(|slot| slot.is_pinned()).count(),
        }
    }

    /// Drops a pin that was turned into a number by [`Pin::into_raw`].
    ///
    /// # Safety
    ///
    /// The number comes from a pin of this cache, and is passed once for each such pin.
    #[cfg(any(feature = "vm-memory", all(test, loom)))]
    pub(super) unsafe fn unpin(&self, number: u32) {
        if self.slot(number).is_some_and(Slot::unpin) {
            self.remove_retired(number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is fine: nothing panics halfway through a change of the state.
        self.misses.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Pin<'_, S> {
    #[inline]
    pub(crate) fn bucket(&self) -> &S::Bucket {
        // SAFETY: a slot can be pinned only while it is filled (`Slot::fill`), and stays filled while we hold a pin.
        unsafe { self.slot.bucket() }
    }

    #[inline]
    pub(super) fn bucket_size(&self) -> usize {
        self.buckets.bucket_size
    }

    /// Turns the pin into a number, to pass to [`Buckets::unpin`]. The bucket stays pinned until then; all pins of one
    /// mapping have the same number.
    #[cfg(any(feature = "vm-memory", all(test, loom)))]
    pub(crate) fn into_raw(self) -> u32 {
        ManuallyDrop::new(self).slot.number()
    }
}

impl<S: Source> Debug for Pin<'_, S> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("slot", &self.slot.number()).finish_non_exhaustive()
    }
}

impl<S: Source> Drop for Pin<'_, S> {
    #[inline]
    fn drop(&mut self) {
        if self.slot.unpin() {
            self.buckets.remove_retired(self.slot.number());
        }
    }
}

/// Marks a bucket as pending until dropped, also if mapping it panics.
struct Pending<'c, S: Source> {
    buckets: &'c Buckets<S>,
    bucket: u64,
}

impl<'c, S: Source> Pending<'c, S> {
    fn begin(buckets: &'c Buckets<S>, bucket: u64, state: &mut State) -> Pending<'c, S> {
        state.pending.insert(bucket, false);
        state.mapped_bytes += buckets.bucket_size;
        Pending { buckets, bucket }
    }

    /// Unmarks the bucket, and returns whether it was invalidated meanwhile.
    fn end(self, state: &mut State) -> bool {
        ManuallyDrop::new(self).finish(state)
    }

    fn finish(&self, state: &mut State) -> bool {
        state.mapped_bytes -= self.buckets.bucket_size;
        self.buckets.misses.changed.notify_all();
        state.pending.remove(&self.bucket) == Some(true)
    }
}

impl<S: Source> Drop for Pending<'_, S> {
    fn drop(&mut self) {
        self.finish(&mut self.buckets.lock());
    }
}
