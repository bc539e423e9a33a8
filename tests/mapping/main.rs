//! Tests of handles, mappings, and access to them.

#[path = "../common/mod.rs"]
mod common;

#[expect(dead_code, reason = "only parts are used")]
#[path = "../cache/buckets.rs"]
mod buckets;
mod memory;

mod access;
mod arm;
mod failures;
mod handle;
mod hypercall;
mod map_batch;
mod map_partial;
mod mock;
mod model;
mod paged_out;
mod prior_art;
mod resource;
mod restrict;
#[cfg(feature = "zerocopy")]
mod structures;
mod unmap;
