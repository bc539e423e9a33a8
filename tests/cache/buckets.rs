//! A cache of small buckets, and shortcuts to use it.

#![expect(unreachable_pub, reason = "shared by the other modules")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use xenmap::{CacheConfig, Domid, Error, ForeignMemory, Guest, MapCache, Pinned, Protection, Result};

use crate::common::FRAME;

/// The frames of a bucket.
pub const FRAMES: u64 = 4;
pub const BUCKET: usize = 4 * FRAME;

/// Creates a cache with room for `buckets` buckets.
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

/// Returns the address and the errno of an error.
pub fn refused<T: std::fmt::Debug>(result: Result<T>) -> (u64, i32) {
    match result {
        Err(Error::GuestAddress { address, errno, .. }) => (address, errno),
        other => panic!("{other:?}"),
    }
}
