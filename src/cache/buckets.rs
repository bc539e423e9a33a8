//! The cache's protocol: who maps a bucket, who uses it, and when it goes.
//!
//! - A **hit** takes no lock: the [`Index`] tells a slot, the slot's state takes a pin, and what is pinned is looked at
//!   to see whether it is the bucket that was wanted. It stays until the pin is given back.
//! - A **miss** notes under the lock that it maps the bucket, and maps it without the lock. Whoever wants the same
//!   bucket meanwhile waits for it; whoever wants another one does not.
//! - A bucket **goes** when its slot is made gone under the lock, so that nobody gets a new pin. It is taken out of the
//!   slot at once, or by whoever gives back the last pin, and dropped without the lock.
//!
//! What a bucket is and how one is made is the [`Source`]'s business.

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

/// What is cached, and where it comes from.
pub(crate) trait Source {
    /// A mapped bucket; dropping it unmaps it.
    type Bucket: Debug;

    /// What somebody wants of a bucket.
    type Want: Copy;

    /// Maps one. No lock is held.
    fn map(&self, bucket: u64, want: Self::Want) -> Result<Self::Bucket>;

    /// The error for a cache that is closed, or has no place left.
    fn cannot_map(&self, bucket: u64, why: CannotMap) -> crate::error::Error;

    /// Whether it is this bucket, and to map it anew would not serve better.
    fn serves(&self, mapped: &Self::Bucket, bucket: u64, want: Self::Want) -> bool;

    /// Its number, and the address of its first byte in this process.
    fn place(&self, mapped: &Self::Bucket) -> (u64, usize);

    /// It goes. The lock is held.
    fn goes(&self, mapped: &Self::Bucket);
}

/// Why a bucket is not mapped, although nobody has tried.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CannotMap {
    Closed,
    Full,
}

/// Slots of the first chunk; each further one has twice as many as the one before.
const FIRST_CHUNK: usize = if cfg!(loom) { 2 } else { 64 };

/// Slots, made when the first of them is needed.
type Chunk<B> = OnceLock<Box<[Slot<B>]>>;

/// Mapped buckets.
///
/// A hit reads it and writes only to a slot. So that it does not wait for whoever writes next to it in memory, this has
/// cache lines of its own, and so has what a miss writes.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Buckets<S: Source> {
    source: S,
    bucket_size: usize,
    budget: usize,
    index: Index,
    /// They never move and are never freed, so that a reader needs no lock.
    chunks: [Chunk<S::Bucket>; 24],
    misses: Misses,
}

#[derive(Debug)]
#[repr(align(128))]
struct Misses {
    state: Mutex<State>,
    /// Somebody has mapped a bucket, or failed to, or has unmapped some.
    changed: Condvar,
}

/// What is known of all slots.
#[derive(Debug, Default)]
struct State {
    /// The slots of the buckets that can be had, by number.
    buckets: BTreeMap<u64, u32>,
    /// The slots of all that is mapped, by the address of the first byte.
    addresses: BTreeMap<usize, u32>,
    /// The buckets that somebody is mapping, and whether they were invalidated since that began.
    pending: BTreeMap<u64, bool>,
    free: Vec<u32>,
    /// How many slots have been used.
    slots: u32,
    /// The slot that the clock's hand comes to next.
    hand: u32,
    /// What is mapped, or is being mapped.
    mapped_bytes: usize,
    hits: u64,
    misses: u64,
    evictions: u64,
    /// How many buckets were ever taken out of their slots, and how many of those are unmapped.
    taken: u64,
    unmapped: u64,
    is_closed: bool,
}

/// What there is and was; see [`super::CacheStatistics`].
pub(super) struct Counts {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) evictions: u64,
    pub(super) mapped_bytes: usize,
    pub(super) pinned: usize,
}

/// A bucket that stays until this is dropped.
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

    /// Pins a bucket; maps it if it must. It may still not serve.
    #[inline]
    pub(super) fn pin(&self, bucket: u64, want: S::Want) -> Result<Pin<'_, S>> {
        self.find(bucket, |b| self.source.serves(b, bucket, want)).map_or_else(|| self.pin_slowly(bucket, want), Ok)
    }

    /// Pins a bucket, if it is known to be mapped and is good enough.
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
        // SAFETY: the slot was filled before anybody could pin it, and we have it pinned.
        if is_good(unsafe { slot.bucket() }) {
            return Some(Pin { buckets: self, slot });
        }
        // Another bucket has the slot by now, or this one is not good enough.
        if slot.unpin_useless() {
            self.last_pin_is_gone(number);
        }
        None
    }

    #[cold]
    fn pin_slowly(&self, bucket: u64, want: S::Want) -> Result<Pin<'_, S>> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return Err(self.source.cannot_map(bucket, CannotMap::Closed));
            }
            if let Some(&number) = state.buckets.get(&bucket) {
                state.hits += self.slot(number).map_or(0, Slot::take_hits);
                // What is in the state goes under the lock only. So if the pin is of no use, it is not the last one of
                // a bucket that has gone, which would take the lock again.
                if let Some(pin) = self.try_pin(number, |b| self.source.serves(b, bucket, want)) {
                    self.index.note(bucket, number);
                    return Ok(pin);
                }
            }
            if state.pending.contains_key(&bucket) {
                state = self.misses.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.misses += 1;
            let pending = Pending::begins(self, bucket, &mut state);
            let evicted = self.make_room(&mut state, self.budget);
            let unmapped = state.unmapped + evicted.len() as u64;
            drop(state);
            self.unmap(evicted);
            let mut mapped = self.source.map(bucket, want);
            // Each mapped frame may take a page of our own memory, and each bucket is one of so many mappings.
            if mapped.as_ref().is_err_and(|e| e.errno() == libc::ENOMEM) && self.evict_all() > unmapped {
                mapped = self.source.map(bucket, want);
            }
            state = self.lock();
            let was_invalidated = pending.ends(&mut state);
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
            // SAFETY: `free_slot` gives out empty slots, each once, and the lock has not been let go since.
            unsafe { slot.fill(mapped) };
            state.mapped_bytes += self.bucket_size;
            state.addresses.insert(address, number);
            let replaced = if was_invalidated {
                // It may be what was there before, so it is only for whoever asked before. To map it again instead
                // could go on for as long as the guest changes its memory.
                let is_unused = slot.retire();
                debug_assert!(!is_unused, "it is pinned");
                None
            } else {
                let replaced = self.retire(&mut state, bucket);
                state.buckets.insert(bucket, number);
                self.index.note(bucket, number);
                replaced
            };
            drop(state);
            self.unmap(replaced);
            return Ok(Pin { buckets: self, slot });
        }
    }

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

    /// Evicts all that nobody has pinned, and waits for what other threads are unmapping; returns how many buckets were
    /// ever unmapped.
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

    /// Unmaps what was taken out of its slot. The lock is not held.
    fn unmap(&self, taken: impl IntoIterator<Item = S::Bucket>) {
        let count = taken.into_iter().map(drop).count() as u64;
        if count != 0 {
            self.lock().unmapped += count;
            self.misses.changed.notify_all();
        }
    }

    /// Evicts what was not asked for lately, until a budget is kept or all is pinned.
    fn make_room(&self, state: &mut State, budget: usize) -> Vec<S::Bucket> {
        let mut evicted = Vec::new();
        // Twice around: what is spared at first is taken then, unless it was asked for in between.
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

    /// Makes a bucket go, if it is mapped; returns it if nobody has it pinned.
    fn retire(&self, state: &mut State, bucket: u64) -> Option<S::Bucket> {
        let number = state.buckets.remove(&bucket)?;
        self.index.forget(bucket);
        if self.slot(number)?.retire() { self.clear(state, number) } else { None }
    }

    /// Empties a slot that nobody else reaches any more.
    fn clear(&self, state: &mut State, number: u32) -> Option<S::Bucket> {
        // SAFETY: `retire`, `visit` or `unpin` has said that it is ours alone, and the lock keeps those away who look
        // at all slots.
        let (mapped, hits) = unsafe { self.slot(number)?.empty() };
        let mapped = mapped?;
        state.taken += 1;
        let (bucket, address) = self.source.place(&mapped);
        state.hits += hits;
        state.mapped_bytes -= self.bucket_size;
        state.addresses.remove(&address);
        if state.buckets.get(&bucket) == Some(&number) {
            state.buckets.remove(&bucket);
            self.index.forget(bucket);
        }
        state.free.push(number);
        self.source.goes(&mapped);
        Some(mapped)
    }

    #[cold]
    fn last_pin_is_gone(&self, number: u32) {
        let mut state = self.lock();
        let mapped = self.clear(&mut state, number);
        drop(state);
        self.unmap(mapped);
    }

    /// Makes those buckets of a range go that are mapped; what is being mapped is only for whoever has asked already.
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

    /// Makes all go, for good.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.invalidate(0..u64::MAX);
    }

    /// The bucket that has the byte at an address of this process, and the byte's place in it.
    pub(super) fn find_address<R>(&self, at: usize, f: impl FnOnce(&S::Bucket, usize) -> R) -> Option<R> {
        let state = self.lock();
        let (&start, &number) = state.addresses.range(..=at).next_back()?;
        if at - start >= self.bucket_size {
            return None;
        }
        // SAFETY: it is in the state, so it was filled, and it is emptied under the lock only.
        let mapped = unsafe { self.slot(number)?.bucket() };
        Some(f(mapped, at - start))
    }

    /// Looks at all that is mapped.
    pub(super) fn for_each(&self, mut f: impl FnMut(&S::Bucket)) {
        let state = self.lock();
        for &number in state.addresses.values() {
            if let Some(slot) = self.slot(number) {
                // SAFETY: it is in the state, so it was filled, and it is emptied under the lock only.
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

    /// Gives back a pin that [`Pin::into_raw`] has given away.
    ///
    /// # Safety
    ///
    /// It is this cache's, and is given back once.
    #[cfg(any(feature = "vm-memory", all(test, loom)))]
    pub(super) unsafe fn unpin(&self, number: u32) {
        if self.slot(number).is_some_and(Slot::unpin) {
            self.last_pin_is_gone(number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half way through a change of the state.
        self.misses.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Pin<'_, S> {
    #[inline]
    pub(crate) fn bucket(&self) -> &S::Bucket {
        // SAFETY: the slot was filled before anybody could pin it, and we have it pinned.
        unsafe { self.slot.bucket() }
    }

    #[inline]
    pub(super) fn bucket_size(&self) -> usize {
        self.buckets.bucket_size
    }

    /// Keeps it pinned; the number (which is the same for all pins of a mapping) is for [`Buckets::unpin`].
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
            self.buckets.last_pin_is_gone(self.slot.number());
        }
    }
}

/// Says that a bucket is being mapped, also when that panics.
struct Pending<'c, S: Source> {
    buckets: &'c Buckets<S>,
    bucket: u64,
}

impl<'c, S: Source> Pending<'c, S> {
    fn begins(buckets: &'c Buckets<S>, bucket: u64, state: &mut State) -> Pending<'c, S> {
        state.pending.insert(bucket, false);
        state.mapped_bytes += buckets.bucket_size;
        Pending { buckets, bucket }
    }

    /// Returns whether the bucket was invalidated meanwhile.
    fn ends(self, state: &mut State) -> bool {
        ManuallyDrop::new(self).is_over(state)
    }

    fn is_over(&self, state: &mut State) -> bool {
        state.mapped_bytes -= self.buckets.bucket_size;
        self.buckets.misses.changed.notify_all();
        state.pending.remove(&self.bucket) == Some(true)
    }
}

impl<S: Source> Drop for Pending<'_, S> {
    fn drop(&mut self) {
        self.is_over(&mut self.buckets.lock());
    }
}
