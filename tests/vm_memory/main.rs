//! Tests of rust-vmm's vm-memory traits.

#[path = "../common/mod.rs"]
mod common;

mod cached;
mod hole;
mod mapped;
mod virtio_queue;
