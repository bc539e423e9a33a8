//! The traits of rust-vmm's vm-memory.

#[path = "../common/mod.rs"]
mod common;

mod cached;
mod hole;
mod mapped;
mod virtio_queue;
