//! Tests of address spaces: a guest's virtual memory.

#[path = "../common/allocations.rs"]
mod allocations;
#[path = "../common/mod.rs"]
mod common;

mod access;
mod extents;
mod hit;
mod hostile;
mod invalidate;
mod map;
mod model;
mod pv;
mod tables;
