//! Mapping for C: what Rust's types promise is checked here.

#![expect(unsafe_code, reason = "takes C's pointers, and hands mappings out as such")]

use std::ffi::{c_int, c_ulong, c_void};
use std::ptr::NonNull;

use super::Errno;
use super::handle::Handle;
use crate::error::Error;
use crate::backend::Place;
use crate::mapping::region::{Region, Reservation};
use crate::types::{Domid, FRAME_SIZE, Gfn, Protection};

/// What of mmap(2)'s flags a mapping of a resource may have. It is shared in any case.
const RESOURCE_FLAGS: c_int = libc::MAP_SHARED | libc::MAP_PRIVATE;

/// The arguments of `xenforeignmemory_map2`.
pub(super) struct Request {
    pub(super) dom: u32,
    pub(super) place: Place,
    pub(super) prot: c_int,
    pub(super) pages: usize,
    pub(super) arr: *const u64,
    pub(super) err: *mut c_int,
}

/// Maps frames: with `err` those that can be mapped, else all or none.
///
/// # Safety
///
/// As `xenforeignmemory_map2` says.
pub(super) unsafe fn map(handle: &Handle, request: &Request) -> Result<*mut c_void, Errno> {
    let &Request { place, pages, arr, err, .. } = request;
    let domid = u16::try_from(request.dom).map(Domid::as_given).map_err(|_| libc::EINVAL)?;
    let protection = protection(request.prot)?;
    check_pages(pages)?;
    if arr.is_null() || place.is_nowhere() || place.flags & libc::MAP_ANONYMOUS != 0 {
        return Err(libc::EINVAL);
    }
    let mut gfns = Vec::new();
    gfns.try_reserve_exact(pages).map_err(|_| libc::ENOMEM)?;
    gfns.extend((0..pages).map(|page| {
        // SAFETY: the caller's promise.
        let number = unsafe { arr.add(page) };
        // SAFETY: the caller's promise.
        let number = unsafe { number.read_unaligned() };
        // The last frame that there could be stands for those beyond: there is no RAM either. A PV dom0 would take the
        // number's lower part for the whole.
        Gfn::new(number).unwrap_or(Gfn::MAX)
    }));
    let memory = handle.memory()?;
    // SAFETY: the caller's promise.
    let mapped = unsafe { memory.map_at(place, domid, protection, &gfns, !err.is_null()) };
    let mapping = mapped.map_err(|error| failed(handle, place, memory.device().mapped_bytes(pages), &error))?;
    if !err.is_null() {
        // SAFETY: the caller's promise.
        unsafe { err.write_bytes(0, pages) };
        for frame in mapping.failed() {
            // SAFETY: the index is that of a frame of the request.
            let entry = unsafe { err.add(frame.index) };
            // SAFETY: the caller's promise.
            unsafe { entry.write(-frame.errno) };
        }
    }
    Ok(mapping.into_region().release().as_ptr().cast())
}

/// What C is told of a mapping that failed.
fn failed(handle: &Handle, place: Place, len: usize, error: &Error) -> Errno {
    // What it was to go over is reserved already, or nobody's, if the kernel ran out of memory after it had unmapped
    // what was there: then it must not become somebody else's while the caller believes that it is its own. Whatever
    // else mmap(2) minds, it finds before it unmaps anything.
    let may_be_gone = place.is_over() && matches!(error, Error::Reserve { .. }) && error.errno() == libc::ENOMEM;
    let addr = NonNull::new(std::ptr::with_exposed_provenance_mut(place.addr)).filter(|_| may_be_gone);
    match addr.map(|addr| Reservation::at(addr, len)) {
        Some(Ok(reservation)) => reservation.keep(),
        Some(Err(e)) if e.raw_os_error() != Some(libc::EEXIST) => {
            handle.log(&format!("{error}; nor can its addresses be reserved: {e}"));
            return error.errno();
        }
        _ => {}
    }
    handle.errno_of(error)
}

/// Unmaps what C has been given.
///
/// # Safety
///
/// As `xenforeignmemory_unmap` says.
pub(super) unsafe fn unmap(handle: &Handle, addr: *mut c_void, pages: usize) -> Result<(), Errno> {
    check_pages(pages)?;
    let addr = NonNull::new(addr).ok_or(libc::EINVAL)?;
    let device = handle.memory()?.device();
    // SAFETY: the caller's promise.
    unsafe { device.unmapper().munmap(addr.cast(), device.mapped_bytes(pages)) }.map_err(|e| errno(&e))
}

/// `xenforeignmemory_resource_handle`.
#[derive(Debug)]
pub(super) struct MappedResource {
    base: NonNull<u8>,
    pages: usize,
}

impl MappedResource {
    pub(super) fn addr(&self) -> *mut c_void {
        self.base.as_ptr().cast()
    }

    /// # Safety
    ///
    /// Nothing uses it any more.
    pub(super) unsafe fn unmap(&self, handle: &Handle) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        unsafe { unmap(handle, self.addr(), self.pages) }
    }
}

pub(super) fn map_resource(
    handle: &Handle,
    domid: u16,
    name: (u32, u32),
    frame: c_ulong,
    nr_frames: c_ulong,
    hint: Place,
    prot: c_int,
) -> Result<MappedResource, Errno> {
    let protection = protection(prot)?;
    let pages = usize::try_from(nr_frames).map_err(|_| libc::EINVAL)?;
    check_pages(pages)?;
    let first = u32::try_from(frame).map_err(|_| libc::EINVAL)?;
    if hint.flags & !RESOURCE_FLAGS != 0 {
        return Err(libc::EINVAL);
    }
    let mapped = handle.memory()?.map_resource_near(hint.addr, Domid::as_given(domid), protection, name, first, pages);
    let base = mapped.map(Region::release).map_err(|error| handle.errno_of_resource(&error))?;
    Ok(MappedResource { base, pages })
}

/// The size of a resource in bytes.
pub(super) fn resource_size(handle: &Handle, domid: u16, name: (u32, u32)) -> Result<usize, Errno> {
    let size = handle.memory()?.resource_size_of(Domid::as_given(domid), name);
    let frames = size.map_err(|error| handle.errno_of_resource_size(&error))?;
    usize::try_from(frames).ok().and_then(|frames| frames.checked_mul(FRAME_SIZE)).ok_or(libc::EOVERFLOW)
}

/// That a mapping can have so many frames: the kernel counts them in 32 bits.
fn check_pages(pages: usize) -> Result<(), Errno> {
    let fits = u32::try_from(pages).is_ok_and(|pages| pages != 0);
    if fits { Ok(()) } else { Err(libc::EINVAL) }
}

/// The kernel has no memory that can be written and not read, so `PROT_WRITE` alone is both.
fn protection(prot: c_int) -> Result<Protection, Errno> {
    match prot {
        libc::PROT_READ => Ok(Protection::ReadOnly),
        _ if prot & !(libc::PROT_READ | libc::PROT_WRITE) == 0 && prot != libc::PROT_NONE => Ok(Protection::ReadWrite),
        _ => Err(libc::EINVAL),
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().unwrap_or(libc::EIO)
}
