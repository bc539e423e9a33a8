//! The parts of this crate that the C library in `capi/` needs; not part of the API, may change in any release.
//!
//! Here a mapping is an address that the caller unmaps, the caller chooses where frames are mapped, and domains and
//! resources are named by Xen's own numbers.

#![expect(unsafe_code, reason = "maps where a C caller says, and unmaps what it was given")]

use std::ffi::c_int;
use std::io;
use std::ptr::NonNull;

use crate::abi;
use crate::backend::Place;
use crate::error::{FrameError, Result};
use crate::handle::ForeignMemory;
use crate::mapping::region::{Region, Reservation};
use crate::types::{Domid, Gfn, Protection};

/// Accepts any domain number, even one that Xen reserves: C callers are expected to know what they do.
#[must_use]
pub fn domid(number: u16) -> Domid {
    Domid::as_given(number)
}

/// Maps frames in one piece, where mmap(2) puts it for `addr` and `flags`. Maps all frames or none; with `partial`,
/// maps those that can be mapped, and returns the ones that failed.
///
/// The caller unmaps all of it, by [`unmap`] or munmap(2). If the call fails after it has replaced something
/// (`MAP_FIXED`), `PROT_NONE` memory stays at the addresses.
///
/// # Errors
///
/// Those of [`ForeignMemory::map_foreign_batch`].
///
/// # Safety
///
/// If `flags` make it replace what is at `addr`, the caller owns all the pages that the frames take, and nothing uses
/// them.
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

/// Maps `PROT_NONE` memory where `frames` frames at `addr` would be, and leaves it there.
///
/// # Errors
///
/// The error of mmap(2); EEXIST if anything is mapped there.
pub fn reserve_at(memory: &ForeignMemory, addr: NonNull<u8>, frames: usize) -> io::Result<()> {
    Reservation::at(addr, memory.backend().mapped_bytes(frames)).map(Reservation::keep)
}

/// Unmaps what [`map_at`] or [`map_resource`] has mapped.
///
/// # Errors
///
/// The error of munmap(2).
///
/// # Safety
///
/// The `frames` frames at `addr` are one whole mapping, which the caller owns and made with this device, and nothing
/// uses them any more.
pub unsafe fn unmap(memory: &ForeignMemory, addr: NonNull<u8>, frames: usize) -> io::Result<()> {
    let backend = memory.backend();
    // SAFETY: the caller's promise; `mapped_bytes` is the size that was mapped for that many frames.
    unsafe { backend.unmapper().munmap(addr, backend.mapped_bytes(frames)) }
}

/// Maps frames of the resource with a type and id. The address is a hint: nothing is replaced.
///
/// The caller unmaps them, by [`unmap`] or munmap(2).
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

/// Returns the size, in frames, of the resource with a type and id.
///
/// # Errors
///
/// Those of [`ForeignMemory::resource_size`].
pub fn resource_size(memory: &ForeignMemory, domid: Domid, type_and_id: (u32, u32)) -> Result<u64> {
    memory.resource_size_of(domid, type_and_id)
}

/// Makes a device model operation, whose first buffer is its argument, as the kernel takes it. Works with restricted
/// handles.
///
/// # Errors
///
/// The error of the kernel or Xen.
pub fn dm_op(memory: &ForeignMemory, domid: Domid, buffers: &mut [&mut [u8]]) -> io::Result<()> {
    let buffers: Vec<abi::DmOpBuffer> = buffers
        .iter_mut()
        .map(|buffer| abi::DmOpBuffer { uptr: buffer.as_mut_ptr().cast(), size: buffer.len() })
        .collect();
    // SAFETY: the buffers are borrowed, and hold bytes: any answer is valid. These operations contain no other
    // addresses of ours.
    unsafe { memory.backend().dm_op(domid, &buffers) }
}

/// Returns the errno with which this kernel answers an unknown ioctl: ENOTTY since Linux 4.11, EINVAL before.
#[must_use]
pub fn unimplemented_errno(memory: &ForeignMemory) -> i32 {
    memory.backend().unimplemented_errno()
}
