//! What the C library in `capi/` is made of; not part of the API, may change in any release.
//!
//! Here a mapping is an address that its caller unmaps, frames go where the caller says, and domains and resources are
//! the numbers that Xen has for them.

#![expect(unsafe_code, reason = "maps where C says, and unmaps what C was given")]

use std::ffi::c_int;
use std::io;
use std::ptr::NonNull;

use crate::backend::Place;
use crate::error::{FrameError, Result};
use crate::handle::ForeignMemory;
use crate::mapping::region::{Region, Reservation};
use crate::types::{Domid, Gfn, Protection};

/// The domain with any number, one included that Xen keeps for itself: for callers who speak C and know what they do.
#[must_use]
pub fn domid(number: u16) -> Domid {
    Domid::as_given(number)
}

/// Maps frames in one piece, where mmap(2) puts it for `addr` and `flags`: all of them or none, or with `partial` those
/// that can be mapped, and tells which failed.
///
/// Whoever calls it unmaps all of it, by [`unmap`] or munmap(2). If it fails after it has replaced something
/// (`MAP_FIXED`), the addresses stay taken by memory that cannot be accessed.
///
/// # Errors
///
/// Those of [`ForeignMemory::map_foreign_batch`].
///
/// # Safety
///
/// If `flags` have it replace what is at `addr`, that is the caller's own, all the pages that the frames take, and
/// nothing uses them.
pub unsafe fn map_at(
    memory: &ForeignMemory,
    (addr, flags): (usize, c_int),
    domid: Domid,
    protection: Protection,
    gfns: &[Gfn],
    partial: bool,
) -> Result<(NonNull<u8>, Vec<FrameError>)> {
    // SAFETY: the caller's promise.
    let mapping = unsafe { memory.map_at(Place { addr, flags }, domid, protection, gfns, partial) }?;
    Ok(mapping.release())
}

/// Takes the addresses that `frames` frames at `addr` would have, for good, by memory that cannot be accessed.
///
/// # Errors
///
/// What mmap(2) said; EEXIST if anything is there.
pub fn reserve_at(memory: &ForeignMemory, addr: NonNull<u8>, frames: usize) -> io::Result<()> {
    Reservation::at(addr, memory.backend().mapped_bytes(frames)).map(Reservation::keep)
}

/// Unmaps what [`map_at`] or [`map_resource`] has mapped.
///
/// # Errors
///
/// What munmap(2) said.
///
/// # Safety
///
/// The `frames` frames at `addr` are all of a mapping of the caller's that was made with this device, and nothing uses
/// them any more.
pub unsafe fn unmap(memory: &ForeignMemory, addr: NonNull<u8>, frames: usize) -> io::Result<()> {
    let backend = memory.backend();
    // SAFETY: the caller's promise; so many bytes were mapped for so many frames.
    unsafe { backend.unmapper().munmap(addr, backend.mapped_bytes(frames)) }
}

/// Maps frames of the resource of a type and id, near an address if the kernel likes; it replaces nothing.
///
/// Whoever calls it unmaps them, by [`unmap`] or munmap(2).
///
/// # Errors
///
/// Those of [`ForeignMemory::map_resource`].
pub fn map_resource(
    memory: &ForeignMemory,
    near: usize,
    domid: Domid,
    protection: Protection,
    type_and_id: (u32, u32),
    first: u32,
    frames: usize,
) -> Result<NonNull<u8>> {
    memory.map_resource_near(near, domid, protection, type_and_id, first, frames).map(Region::release)
}

/// How many frames the resource of a type and id has.
///
/// # Errors
///
/// Those of [`ForeignMemory::resource_size`].
pub fn resource_size(memory: &ForeignMemory, domid: Domid, type_and_id: (u32, u32)) -> Result<u64> {
    memory.resource_size_of(domid, type_and_id)
}

/// What this kernel answers to an ioctl that it does not have: ENOTTY since Linux 4.11, EINVAL before.
#[must_use]
pub fn unimplemented_errno(memory: &ForeignMemory) -> i32 {
    memory.backend().unimplemented_errno()
}
