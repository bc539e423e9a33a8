//! A cache of small buckets, and the shortest way to use it.

#![expect(unreachable_pub, reason = "is for the tests of the other modules")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use xenmap::{CacheConfig, Domid, Error, ForeignMemory, Guest, MapCache, Pinned, Protection, Result};

use crate::common::FRAME;

/// The frames of a bucket.
pub const FRAMES: u64 = 4;
pub const BUCKET: usize = 4 * FRAME;

/// A cache with room for so many buckets.
pub fn cache(memory: &ForeignMemory, domid: Domid, buckets: usize) -> MapCache {
    let mut config = CacheConfig::default();
    (config.bucket_size, config.budget) = (BUCKET, buckets * BUCKET);
    MapCache::with_config(Guest::open(memory, domid).unwrap(), config).unwrap()
}

/// Pins 8 bytes at the beginning of a frame.
pub fn get(cache: &MapCache, protection: Protection, frame: u64) -> Result<Pinned<'_>> {
    cache.get(protection, frame * FRAME as u64, 8)
}

pub fn mapped_buckets(cache: &MapCache) -> usize {
    cache.statistics().mapped_bytes / BUCKET
}

/// The address and the errno that an error names.
pub fn refused<T: std::fmt::Debug>(result: Result<T>) -> (u64, i32) {
    match result {
        Err(Error::GuestAddress { address, errno, .. }) => (address, errno),
        other => panic!("{other:?}"),
    }
}
