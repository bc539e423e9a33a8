//! Tests of `xenmap::device_model`.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../common/allocations.rs"]
mod allocations;
#[path = "../common/mod.rs"]
mod common;

mod adopt;
mod balloon;
mod dirty;
mod errors;
mod event_channels;
mod hit_path;
mod interrupts;
mod life;
mod mock;
mod model;
mod pci;
mod raw;
mod requests;
mod restrict;
mod threads;
