//! A lock-free hint of which slot holds a bucket.

use super::sync::atomic::{AtomicU64, Ordering};

/// Entries in a set: the places that a bucket can have in the index.
const WAYS: usize = 4;

/// The low bits of an entry, which hold the slot's number plus one. The other bits hold the bucket's number.
const SLOT_BITS: u32 = 24;

const SLOT: u64 = (1 << SLOT_BITS) - 1;

/// The maximum number of slots.
pub(super) const MAX_SLOTS: u32 = (1 << SLOT_BITS) - 1;

/// Maps the number of a bucket to that of its slot; read without a lock.
///
/// It is only a hint. An entry may be missing, if others have replaced it, or stale. So readers need no synchronisation
/// with removals, and the index never grows. Neighbouring buckets are in different sets.
#[derive(Debug)]
pub(super) struct Index {
    /// The binary logarithm of the number of sets.
    shift: u32,
    entries: Box<[[AtomicU64; WAYS]]>,
}

impl Index {
    /// Creates an index for the number of buckets that the budget allows. It has room for twice as many.
    pub(super) fn new(buckets: usize) -> Index {
        // At most a million buckets, which take 16 MiB: a larger budget means that the caller wants no limit.
        let sets = (2 * buckets.clamp(1, 1 << 20)).div_ceil(WAYS).next_power_of_two();
        Index {
            shift: sets.trailing_zeros(),
            entries: (0..sets).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
        }
    }

    #[inline]
    fn set(&self, bucket: u64) -> &[AtomicU64; WAYS] {
        // The number of sets is a power of two. Higher bits are mixed in, because a guest may use buckets that are far
        // apart at equal distances.
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits are used")]
        let place = (bucket ^ (bucket >> self.shift)) as usize & (self.entries.len() - 1);
        &self.entries[place]
    }

    /// Returns the slot that probably holds a bucket.
    #[inline]
    pub(super) fn find(&self, bucket: u64) -> Option<u32> {
        self.set(bucket).iter().find_map(|entry| {
            // Acquire: the slot was allocated before its number was stored here.
            let entry = entry.load(Ordering::Acquire);
            if entry >> SLOT_BITS != bucket {
                return None;
            }
            u32::try_from(entry & SLOT).ok()?.checked_sub(1)
        })
    }

    /// Stores the slot of a bucket. The bucket's number must be below 2^40. Only one thread at a time may call this.
    pub(super) fn insert(&self, bucket: u64, slot: u32) {
        let set = self.set(bucket);
        let holds = |entry: &&AtomicU64| {
            let entry = entry.load(Ordering::Relaxed);
            entry == 0 || entry >> SLOT_BITS == bucket
        };
        // If all places are taken, the slot's number selects the one to replace.
        let place = set.iter().find(holds).unwrap_or(&set[slot as usize % WAYS]);
        place.store(bucket << SLOT_BITS | u64::from(slot + 1), Ordering::Release);
    }

    /// Removes the entry of a bucket.
    pub(super) fn remove(&self, bucket: u64) {
        for entry in self.set(bucket) {
            if entry.load(Ordering::Relaxed) >> SLOT_BITS == bucket {
                entry.store(0, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bucket_is_found_in_the_slot_inserted_last() {
        const HIGHEST: u64 = (1 << (64 - SLOT_BITS)) - 1;
        let index = Index::new(8);
        for bucket in [0, 5, HIGHEST] {
            assert_eq!(index.find(bucket), None);
            for slot in [0, MAX_SLOTS - 1, 7] {
                index.insert(bucket, slot);
                assert_eq!(index.find(bucket), Some(slot), "bucket {bucket}");
            }
        }

        index.remove(5);

        assert_eq!([0, 5, HIGHEST].map(|bucket| index.find(bucket)), [Some(7), None, Some(7)]);
    }

    #[test]
    fn twice_as_many_buckets_fit_at_any_distance() {
        const BUCKETS: u32 = 1024;
        for distance in [1, 2, 8, 64, 512] {
            let index = Index::new(BUCKETS as usize);
            for slot in 0..2 * BUCKETS {
                index.insert(u64::from(slot) * distance, slot);
            }
            let lost = (0..2 * BUCKETS).filter(|&slot| index.find(u64::from(slot) * distance) != Some(slot)).count();
            assert_eq!(lost, 0, "{distance} apart");
        }
    }

    #[test]
    fn buckets_without_a_free_place_replace_others_in_turn() {
        let index = Index::new(1); // a single set
        for slot in 0..6 {
            index.insert(u64::from(slot), slot);
        }
        let found = [0, 1, 2, 3, 4, 5].map(|bucket| index.find(bucket));
        assert_eq!(found, [None, None, Some(2), Some(3), Some(4), Some(5)]);
    }
}
