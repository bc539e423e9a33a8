//! A slot: the place of one mapped bucket, and its pins.

#![expect(unsafe_code, reason = "accesses a pinned bucket without a lock")]

use super::sync::UnsafeCell;
use super::sync::atomic::{AtomicU64, Ordering, fence};

/// One pin, in the low 31 bits of a slot's state.
const PIN: u64 = 1;
const PINS: u64 = RETIRED - 1;
/// Allows no new pin: the slot is empty, or will be once the last pin is dropped.
const RETIRED: u64 = 1 << 31;
/// The bucket was used since the last visit of the clock hand.
const REFERENCED: u64 = 1 << 32;
/// One hit, in the high 31 bits: counted by the same operation that pins.
const HIT: u64 = 1 << 33;
/// The hit counter is about to overflow: no new pin before [`Slot::take_hits`].
const FULL: u64 = 1 << 63;

/// A slot. It is not freed while the cache lives, so a late reader still finds a valid state.
///
/// The state decides who may access the bucket. Everyone who holds a pin may read it. Exclusive access belongs to the
/// thread that sets [`RETIRED`] while there is no pin, or that drops the last pin after [`RETIRED`] was set.
///
/// A slot takes two cache lines, because processors prefetch lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Slot<B> {
    state: AtomicU64,
    number: u32,
    bucket: UnsafeCell<Option<B>>,
}

// SAFETY: the state decides who may access the bucket, as described above: many threads at once, which share it
// (B: Sync), or one thread exclusively, which may take it (B: Send).
unsafe impl<B: Send + Sync> Sync for Slot<B> {}

/// What the clock hand finds in a slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// The slot is pinned, retired or empty.
    Busy,
    /// The bucket was used since the last visit. The next visit takes it unless it is used again.
    Spared,
    /// The slot is now retired, and the visitor has exclusive access.
    Taken,
}

impl<B> Slot<B> {
    /// Creates an empty slot.
    pub(super) fn new(number: u32) -> Slot<B> {
        Slot { state: AtomicU64::new(RETIRED), number, bucket: UnsafeCell::new(None) }
    }

    /// Returns the slot's number among all slots.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Pins the bucket, and counts a hit. Returns `false` if the slot is retired or empty, or a counter is full.
    #[inline]
    pub(super) fn pin(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & (RETIRED | FULL) != 0 || state & PINS == PINS {
                return false;
            }
            let pinned = (state + PIN + HIT) | REFERENCED;
            match self.state.compare_exchange_weak(state, pinned, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// Drops a pin. Returns `true` if it was the last one of a retired slot: then the caller has exclusive access.
    #[inline]
    #[must_use]
    pub(super) fn unpin(&self) -> bool {
        self.release(PIN)
    }

    /// Like [`unpin`](Slot::unpin), for a pin that turned out to be a miss: takes back the hit.
    #[must_use]
    pub(super) fn unpin_miss(&self) -> bool {
        self.release(PIN + HIT)
    }

    #[inline]
    fn release(&self, what: u64) -> bool {
        let before = self.state.fetch_sub(what, Ordering::Release);
        let is_last = before & (PINS | RETIRED) == RETIRED + PIN;
        if is_last {
            fence(Ordering::Acquire); // after all accesses of those who dropped their pins before
        }
        is_last
    }

    /// Retires the slot. Returns `true` if it is not pinned: then the caller has exclusive access. Must not be called
    /// twice for a bucket.
    #[must_use]
    pub(super) fn retire(&self) -> bool {
        self.state.fetch_or(RETIRED, Ordering::AcqRel) & PINS == 0
    }

    /// Visits the slot as the clock hand: retires it, unless it is pinned or was used since the last visit.
    pub(super) fn visit(&self) -> Visit {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & (PINS | RETIRED) != 0 {
                return Visit::Busy;
            }
            let (next, visit) = match state & REFERENCED {
                0 => (state | RETIRED, Visit::Taken),
                _ => (state & !REFERENCED, Visit::Spared),
            };
            match self.state.compare_exchange(state, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return visit,
                Err(now) => state = now,
            }
        }
    }

    /// Returns whether the slot is pinned.
    pub(super) fn is_pinned(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PINS != 0
    }

    /// Returns the hit counter.
    pub(super) fn hits(&self) -> u64 {
        self.state.load(Ordering::Relaxed) / HIT
    }

    /// If the hit counter is full, subtracts half of it and returns that half; otherwise returns 0.
    pub(super) fn take_hits(&self) -> u64 {
        // Half of it stays, because `unpin_miss` takes hits back.
        const MOVED: u64 = FULL / HIT / 2;
        if self.state.load(Ordering::Relaxed) & FULL == 0 {
            return 0;
        }
        self.state.fetch_sub(MOVED * HIT, Ordering::Relaxed);
        MOVED
    }

    /// Returns the bucket in the slot.
    ///
    /// # Safety
    ///
    /// The slot is filled. As long as the reference is used, the caller holds a pin, or prevents all others from
    /// emptying the slot.
    #[inline]
    pub(super) unsafe fn bucket(&self) -> &B {
        self.bucket.with(|bucket| {
            // SAFETY: the place is written only with exclusive access (`fill`, `empty`), which nobody gets while the
            // caller holds a pin or prevents emptying.
            let bucket = unsafe { &*bucket };
            // SAFETY: the slot is filled by the caller's promise.
            unsafe { bucket.as_ref().unwrap_unchecked() }
        })
    }

    /// Fills the slot, with one pin for the caller.
    ///
    /// # Safety
    ///
    /// The slot is empty, and no other thread fills it at the same time.
    pub(super) unsafe fn fill(&self, bucket: B) {
        self.bucket.with_mut(|place| {
            // SAFETY: an empty slot is retired and has no pin, so no other thread accesses the place; by the caller's
            // promise, it is empty and no other thread fills it.
            unsafe { *place = Some(bucket) };
        });
        // Without REFERENCED: every bucket starts with one use, and only those used again are spared.
        self.state.store(PIN, Ordering::Release);
    }

    /// Takes the bucket out of the slot. Also returns the slot's hits.
    ///
    /// # Safety
    ///
    /// The caller has exclusive access, from [`Slot::retire`], [`Slot::visit`], [`Slot::unpin`] or
    /// [`Slot::unpin_miss`], and prevents accesses without a pin.
    pub(super) unsafe fn empty(&self) -> (Option<B>, u64) {
        let hits = self.hits();
        self.bucket.with_mut(|place| {
            // SAFETY: the caller has exclusive access.
            (unsafe { &mut *place }.take(), hits)
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn slot(state: u64) -> Slot<u8> {
        let slot = Slot::new(0);
        slot.state.store(state, Ordering::Relaxed);
        slot
    }

    #[test]
    fn full_hit_counter_is_halved_and_loses_no_hit() {
        let slot = slot(FULL - HIT);
        assert!(slot.pin());
        assert!(!slot.pin(), "take_hits must come first");
        let before = slot.hits();

        let moved = slot.take_hits();

        assert_eq!((moved + slot.hits(), slot.take_hits()), (before, 0));
        assert!(slot.pin());
        assert!(!slot.unpin() && !slot.unpin() && !slot.is_pinned());
    }

    #[test]
    fn slot_with_the_maximum_of_pins_gets_no_other() {
        let slot = slot(PINS - PIN);
        assert!(slot.pin());
        assert!(!slot.pin());
        assert!(!slot.retire(), "it is pinned");
        assert!(!slot.unpin(), "not the last");
    }
}
