//! Handles, what they map, and access to it.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod arm;
mod failures;
mod hypercall;
mod map_batch;
mod map_partial;
mod mock;
mod model;
mod paged_out;
mod prior_art;
mod resource;
mod restrict;
mod unmap;
