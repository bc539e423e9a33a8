//! Tests of the map cache.

#[path = "../common/allocations.rs"]
mod allocations;
#[path = "../common/mod.rs"]
mod common;

mod access;
mod basics;
mod buckets;
mod defects;
mod dirty;
mod failures;
mod hit;
mod invalidate;
mod model;
mod soak;
mod stress;
mod transfer;
