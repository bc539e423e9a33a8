//! A guest's RAM for rust-vmm devices: implements the traits of the crate `vm-memory` (feature `vm-memory`).
//!
//! A device that is generic over [`GuestAddressSpace`](::vm_memory::GuestAddressSpace) works with either of these:
//!
//! - [`Guest::map_ram`](crate::Guest::map_ram) maps all of the guest's RAM once. This is the simplest and fastest to
//!   use. But all RAM stays mapped, ballooning goes unnoticed, and dirty frames are not tracked.
//! - [`CachedMemory`] maps only what is used, through a [`MapCache`](crate::MapCache). The cache has a budget, can be
//!   invalidated when the guest balloons, and tracks dirty frames for migration: each slice has a [`DirtySlice`], which
//!   marks the frames that are written. ([`DirtyBitmap`] only serves to name that type.)
//!
//! # Versions
//!
//! The traits are those of `vm-memory` 0.18; types of another version are incompatible. A release of this crate that
//! changes to an incompatible version of `vm-memory` is itself an incompatible release.
//!
//! # Soundness
//!
//! Slices give weaker guarantees than a [`View`](crate::View):
//!
//! Safe code can write to any [`VolatileSlice`](::vm_memory::VolatileSlice), even if it was requested for reading. So
//! all memory is mapped read-write here, and what can only be mapped read-only (a PV guest's page tables) is a hole.
//!
//! `vm-memory` copies by plain, volatile and atomic accesses. This is not sound while the guest writes the same bytes;
//! copies through a [`View`](crate::View) are sound.
//!
//! Slices also lend references. The safe method [`get_atomic_ref`](::vm_memory::VolatileMemory::get_atomic_ref) returns
//! a `&AtomicU16` or similar into the guest's memory; [`load`](::vm_memory::Bytes::load) and
//! [`store`](::vm_memory::Bytes::store) use such a reference for the duration of an access. Rust allows this only while
//! all writes to the same bytes are atomic accesses of the same size. A guest follows no such rule, so this is not
//! sound either. It works with today's compilers: on x86-64 and arm64, each access is one instruction, which reads a
//! value that was written or, if its bytes were written separately, a mixture.
//!
//! - Use `load` and `store` for single accesses, and do not keep a reference from `get_atomic_ref`.
//! - In your own threads, never access the same bytes at the same time by atomics and by copies, or by atomics of
//!   different sizes.
//! - For sound accesses, use the view of [`RamRegion::mapping`], or a [`Pinned`](crate::Pinned) from the cache: their
//!   [`read`](crate::Access::read), [`write`](crate::Access::write) and atomic operations lend no references.

mod cached;
mod dirty;
mod mapped;

pub use cached::{CachedMemory, PinnedMemory};
pub use dirty::{DirtyBitmap, DirtySlice};
pub use mapped::RamRegion;

use crate::types::{FRAME_SIZE, NumberRange, Pfn};

const FRAME: u64 = FRAME_SIZE as u64;

/// Sorts ranges in ascending order, merges those that overlap or are adjacent, and removes empty ones.
fn normalize(ranges: &[NumberRange<Pfn>]) -> Vec<NumberRange<Pfn>> {
    let mut ranges: Vec<NumberRange<Pfn>> = ranges.iter().filter(|range| !range.is_empty()).copied().collect();
    ranges.sort_by_key(NumberRange::start);
    ranges.dedup_by(|next, last| {
        let touches = next.start() <= last.end();
        if touches {
            *last = NumberRange::checked(last.start(), last.end().max(next.end()));
        }
        touches
    });
    ranges
}
