//! The place of one mapped bucket, and how many use it.

#![expect(unsafe_code, reason = "a bucket is reached by whoever has it pinned, without a lock")]

use super::sync::UnsafeCell;
use super::sync::atomic::{AtomicU64, Ordering, fence};

/// One pin, in the low 31 bits of a slot's state.
const PIN: u64 = 1;
const PINS: u64 = GONE - 1;
/// Nobody gets a new pin: it is empty, or will be when the last pin goes.
const GONE: u64 = 1 << 31;
/// It was asked for since the clock's hand came by.
const REFERENCED: u64 = 1 << 32;
/// One hit, in the high 31 bits: counted by the same operation that pins.
const HIT: u64 = 1 << 33;
/// The hits are about to overflow: [`Slot::take_hits`] before there is another pin.
const FULL: u64 = 1 << 63;

/// A slot, which is not freed as long as the cache lives, so that a late reader finds a state at least.
///
/// The state says who may touch the bucket in it: whoever holds a pin reads it; whoever has made it [`GONE`] while it
/// had no pin, or has dropped the last pin after it was gone, has it alone. Two cache lines, since a processor fetches
/// its neighbour with each.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Slot<B> {
    state: AtomicU64,
    number: u32,
    bucket: UnsafeCell<Option<B>>,
}

// SAFETY: the state decides who reaches the bucket, as is said above: many at once (B: Sync), or one that may take it
// to another thread (B: Send).
unsafe impl<B: Send + Sync> Sync for Slot<B> {}

/// What the clock's hand finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// It is pinned, or empty.
    Busy,
    /// It was asked for lately; it has been now.
    Spared,
    /// It is gone, and the visitor has it alone.
    Taken,
}

impl<B> Slot<B> {
    /// An empty one.
    pub(super) fn new(number: u32) -> Slot<B> {
        Slot { state: AtomicU64::new(GONE), number, bucket: UnsafeCell::new(None) }
    }

    /// Its place among all slots.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Pins what is in it, if there is something; counts it as a hit.
    #[inline]
    pub(super) fn pin(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & (GONE | FULL) != 0 || state & PINS == PINS {
                return false;
            }
            let pinned = (state + PIN + HIT) | REFERENCED;
            match self.state.compare_exchange_weak(state, pinned, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
    }

    /// Gives a pin back. True if it was the last of a bucket that is gone: it is the caller's alone then.
    #[inline]
    #[must_use]
    pub(super) fn unpin(&self) -> bool {
        self.release(PIN)
    }

    /// Gives back a pin that was of no use, and so no hit.
    #[must_use]
    pub(super) fn unpin_useless(&self) -> bool {
        self.release(PIN + HIT)
    }

    #[inline]
    fn release(&self, what: u64) -> bool {
        let before = self.state.fetch_sub(what, Ordering::Release);
        let is_last = before & (PINS | GONE) == GONE + PIN;
        if is_last {
            fence(Ordering::Acquire); // what others did with the bucket is over
        }
        is_last
    }

    /// Lets nobody pin it any more. True if nobody has: it is the caller's alone then. Not to be called twice.
    #[must_use]
    pub(super) fn retire(&self) -> bool {
        self.state.fetch_or(GONE, Ordering::AcqRel) & PINS == 0
    }

    /// What the clock's hand does.
    pub(super) fn visit(&self) -> Visit {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & (PINS | GONE) != 0 {
                return Visit::Busy;
            }
            let (next, visit) = match state & REFERENCED {
                0 => (state | GONE, Visit::Taken),
                _ => (state & !REFERENCED, Visit::Spared),
            };
            match self.state.compare_exchange(state, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return visit,
                Err(now) => state = now,
            }
        }
    }

    /// Whether somebody has it pinned.
    pub(super) fn is_pinned(&self) -> bool {
        self.state.load(Ordering::Relaxed) & PINS != 0
    }

    /// How many hits it counts.
    pub(super) fn hits(&self) -> u64 {
        self.state.load(Ordering::Relaxed) / HIT
    }

    /// Makes room in the counter if it is full; what it has to give is no longer counted here.
    pub(super) fn take_hits(&self) -> u64 {
        // Half of it stays: some may have to be taken back.
        const MOVED: u64 = FULL / HIT / 2;
        if self.state.load(Ordering::Relaxed) & FULL == 0 {
            return 0;
        }
        self.state.fetch_sub(MOVED * HIT, Ordering::Relaxed);
        MOVED
    }

    /// What is in it.
    ///
    /// # Safety
    ///
    /// The slot is filled, and as long as the reference is used, the caller holds a pin, or keeps everybody from
    /// emptying it.
    #[inline]
    pub(super) unsafe fn bucket(&self) -> &B {
        self.bucket.with(|bucket| {
            // SAFETY: it is only written when nobody has it pinned, and by whoever has it alone.
            let bucket = unsafe { &*bucket };
            // SAFETY: the caller says that it is filled.
            unsafe { bucket.as_ref().unwrap_unchecked() }
        })
    }

    /// Fills it, pinned once for the caller.
    ///
    /// # Safety
    ///
    /// It is empty, and nobody else is about to fill it.
    pub(super) unsafe fn fill(&self, bucket: B) {
        self.bucket.with_mut(|place| {
            // SAFETY: it is gone and has no pin (the caller says that it is empty), so nobody reaches it.
            unsafe { *place = Some(bucket) };
        });
        // Not referenced: to be asked for once is how all begin, and only those stay that are asked for again.
        self.state.store(PIN, Ordering::Release);
    }

    /// Empties it; also returns the hits that it has counted.
    ///
    /// # Safety
    ///
    /// It is the caller's alone, as [`Slot::retire`], [`Slot::visit`] or [`Slot::unpin`] has said.
    pub(super) unsafe fn empty(&self) -> (Option<B>, u64) {
        let hits = self.hits();
        self.bucket.with_mut(|place| {
            // SAFETY: the caller has it alone.
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
    fn full_counter_of_hits_is_moved_and_loses_none() {
        let slot = slot(FULL - HIT);
        assert!(slot.pin());
        assert!(!slot.pin(), "it must be moved first");
        let before = slot.hits();

        let moved = slot.take_hits();

        assert_eq!((moved + slot.hits(), slot.take_hits()), (before, 0));
        assert!(slot.pin());
        assert!(!slot.unpin() && !slot.unpin() && !slot.is_pinned());
    }

    #[test]
    fn slot_with_as_many_pins_as_can_be_gets_no_other() {
        let slot = slot(PINS - PIN);
        assert!(slot.pin());
        assert!(!slot.pin());
        assert!(!slot.retire(), "it is pinned");
        assert!(!slot.unpin(), "not the last");
    }
}
