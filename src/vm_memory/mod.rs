//! A guest's RAM as the devices of rust-vmm want it: the traits of the crate `vm-memory` (feature `vm-memory`).
//!
//! There are two ways, and a device that is generic over [`GuestAddressSpace`](::vm_memory::GuestAddressSpace) takes
//! either:
//!
//! - [`Guest::map_ram`](crate::Guest::map_ram) maps all of it, once. Nothing is simpler or faster to use; but all of
//!   the guest's RAM is mapped, ballooning goes unnoticed, and dirty frames are not tracked.
//! - [`CachedMemory`] maps what is used, through a [`MapCache`](crate::MapCache), which is told of ballooning, has a
//!   budget, and tracks dirty frames for migration: each slice has a [`DirtySlice`], which marks what is written
//!   ([`DirtyBitmap`] is only there to name that type).
//!
//! # Versions
//!
//! The traits are those of `vm-memory` 0.18, and a type of another version does not fit. A release of this crate that
//! moves to another incompatible version of `vm-memory` is an incompatible release itself.
//!
//! # What is weaker than a view
//!
//! A [`VolatileSlice`](::vm_memory::VolatileSlice) can be written by safe code, whatever it was asked for. So all
//! memory is mapped read-write here, and what can only be mapped read-only (a PV guest's page tables) counts as a hole.
//!
//! What is copied through slices is copied by `vm-memory`, with plain, volatile and atomic accesses, which is not sound
//! while the guest writes the same bytes; the copies of a [`View`](crate::View) are.
//!
//! And slices lend references. [`get_atomic_ref`](::vm_memory::VolatileMemory::get_atomic_ref) is a safe method that
//! returns a `&AtomicU16` or the like into the guest's memory, and [`load`](::vm_memory::Bytes::load) and
//! [`store`](::vm_memory::Bytes::store) use one for the length of an access. Rust allows one only while nobody writes
//! the same bytes except by atomic accesses of the same size. A guest keeps to no such rule, so this is not sound
//! either. It works because of what compilers make of it today: on x86-64 and arm64 each access is one instruction,
//! which reads a value that was written, or a mixture where its bytes were written separately.
//!
//! - Use `load` and `store` for single accesses, and do not keep a reference from `get_atomic_ref`.
//! - In your own threads, never access the same bytes at the same time by atomics and by copies, or by atomics of
//!   different sizes.
//! - For accesses that are sound, use the view of [`RamRegion::mapping`], or a [`Pinned`](crate::Pinned) of the cache:
//!   their [`read`](crate::Access::read), [`write`](crate::Access::write) and atomic operations lend nothing.

mod cached;
mod dirty;
mod mapped;

pub use cached::{CachedMemory, PinnedMemory};
pub use dirty::{DirtyBitmap, DirtySlice};
pub use mapped::RamRegion;

use crate::types::{FRAME_SIZE, NumberRange, Pfn};

const FRAME: u64 = FRAME_SIZE as u64;

/// Ranges in ascending order; those that overlap or touch are one, and empty ones are gone.
fn in_order(ranges: &[NumberRange<Pfn>]) -> Vec<NumberRange<Pfn>> {
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
