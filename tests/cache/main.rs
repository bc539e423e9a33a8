//! Tests of the map cache.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod allocations;
mod basics;
mod buckets;
mod defects;
mod dirty;
mod failures;
mod invalidate;
mod model;
mod soak;
mod stress;
mod transfer;
