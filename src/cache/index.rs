//! Where a mapped bucket probably is.

use super::sync::atomic::{AtomicU64, Ordering};

/// Places that a bucket can have in the index.
const WAYS: usize = 4;

/// The bits of an entry that tell the slot, counted from 1; the others tell the bucket.
const SLOT_BITS: u32 = 24;

const SLOT: u64 = (1 << SLOT_BITS) - 1;

/// How many slots there can be.
pub(super) const MAX_SLOTS: u32 = (1 << SLOT_BITS) - 1;

/// From the number of a bucket to that of its slot, to be read without a lock.
///
/// It is a hint: an entry may be missing, when others took its place, and may be old. So it needs no care when a
/// bucket goes, and never grows. Neighbouring buckets have places of their own.
#[derive(Debug)]
pub(super) struct Index {
    /// The binary logarithm of the number of sets.
    shift: u32,
    entries: Box<[[AtomicU64; WAYS]]>,
}

impl Index {
    /// For so many buckets; twice as many have a place, unless it is meant that there be no limit.
    pub(super) fn new(buckets: usize) -> Index {
        // 16 MiB for a million.
        let sets = (2 * buckets.clamp(1, 1 << 20)).div_ceil(WAYS).next_power_of_two();
        Index {
            shift: sets.trailing_zeros(),
            entries: (0..sets).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
        }
    }

    #[inline]
    fn set(&self, bucket: u64) -> &[AtomicU64; WAYS] {
        // The number of sets is a power of two. Higher bits count too, as what a guest uses may lie far apart, at the
        // same distance.
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits count")]
        let place = (bucket ^ (bucket >> self.shift)) as usize & (self.entries.len() - 1);
        &self.entries[place]
    }

    /// The slot of a bucket, as far as is known.
    #[inline]
    pub(super) fn find(&self, bucket: u64) -> Option<u32> {
        self.set(bucket).iter().find_map(|entry| {
            // Acquire: the slot was made before its number was written here.
            let entry = entry.load(Ordering::Acquire);
            if entry >> SLOT_BITS != bucket {
                return None;
            }
            u32::try_from(entry & SLOT).ok()?.checked_sub(1)
        })
    }

    /// Notes the slot of a bucket, of which the number is below 2^40. Only one thread may do so at a time.
    pub(super) fn note(&self, bucket: u64, slot: u32) {
        let set = self.set(bucket);
        let holds = |entry: &&AtomicU64| {
            let entry = entry.load(Ordering::Relaxed);
            entry == 0 || entry >> SLOT_BITS == bucket
        };
        // With all places taken, one of them changes hands, not always the same.
        let place = set.iter().find(holds).unwrap_or(&set[slot as usize % WAYS]);
        place.store(bucket << SLOT_BITS | u64::from(slot + 1), Ordering::Release);
    }

    /// Forgets where a bucket is.
    pub(super) fn forget(&self, bucket: u64) {
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
    fn bucket_is_found_where_it_was_noted_last() {
        const HIGHEST: u64 = (1 << (64 - SLOT_BITS)) - 1;
        let index = Index::new(8);
        for bucket in [0, 5, HIGHEST] {
            assert_eq!(index.find(bucket), None);
            for slot in [0, MAX_SLOTS - 1, 7] {
                index.note(bucket, slot);
                assert_eq!(index.find(bucket), Some(slot), "bucket {bucket}");
            }
        }

        index.forget(5);

        assert_eq!([0, 5, HIGHEST].map(|bucket| index.find(bucket)), [Some(7), None, Some(7)]);
    }

    #[test]
    fn twice_as_many_buckets_have_a_place_at_whatever_distance() {
        const BUCKETS: u32 = 1024;
        for distance in [1, 2, 8, 64, 512] {
            let index = Index::new(BUCKETS as usize);
            for slot in 0..2 * BUCKETS {
                index.note(u64::from(slot) * distance, slot);
            }
            let lost = (0..2 * BUCKETS).filter(|&slot| index.find(u64::from(slot) * distance) != Some(slot)).count();
            assert_eq!(lost, 0, "{distance} apart");
        }
    }

    #[test]
    fn buckets_without_a_place_take_those_of_others_in_turn() {
        let index = Index::new(1); // a single set
        for slot in 0..6 {
            index.note(u64::from(slot), slot);
        }
        let found = [0, 1, 2, 3, 4, 5].map(|bucket| index.find(bucket));
        assert_eq!(found, [None, None, Some(2), Some(3), Some(4), Some(5)]);
    }
}
