//! Mapping for C. It checks what Rust's types guarantee elsewhere.

#![expect(unsafe_code, reason = "takes and returns pointers of C")]

use std::ffi::{c_int, c_ulong, c_void};
use std::ptr::NonNull;

use xenmap::{Error, FRAME_SIZE, ForeignMemory, Gfn, Protection, raw};

use crate::Errno;
use crate::handle::{Handle, chain};

/// The flags of mmap(2) that a mapping of a resource may have. It is always shared.
const RESOURCE_FLAGS: c_int = libc::MAP_SHARED | libc::MAP_PRIVATE;

/// Where to map: `addr` and `flags` of mmap(2). By default the kernel picks the address.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) addr: usize,
    pub(super) flags: c_int,
}

impl Place {
    /// Creates a place from the arguments of mmap(2). With both flags, `MAP_FIXED_NOREPLACE` counts: `MAP_FIXED` is
    /// dropped, because Linux before 4.17 does not know the other flag, and would replace what is there.
    pub(super) fn requested(addr: usize, flags: c_int) -> Place {
        let drop = if flags & libc::MAP_FIXED_NOREPLACE != 0 { libc::MAP_FIXED } else { 0 };
        Place { addr, flags: flags & !drop }
    }

    /// Returns whether the mapping may replace others.
    fn replaces(self) -> bool {
        self.flags & libc::MAP_FIXED != 0
    }

    /// Returns whether the mapping must be at address 0, where Rust cannot have memory.
    fn is_at_null(self) -> bool {
        self.addr == 0 && self.flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0
    }
}

/// The arguments of `xenforeignmemory_map2`.
pub(super) struct Request {
    pub(super) dom: u32,
    pub(super) place: Place,
    pub(super) prot: c_int,
    pub(super) pages: usize,
    pub(super) arr: *const u64,
    pub(super) err: *mut c_int,
}

/// Maps frames: with `err` those that can be mapped, without it all or none.
///
/// # Safety
///
/// As for `xenforeignmemory_map2`.
pub(super) unsafe fn map(handle: &Handle, request: &Request) -> Result<*mut c_void, Errno> {
    let &Request { place, pages, arr, err, .. } = request;
    let domid = u16::try_from(request.dom).map(raw::domid).map_err(|_| libc::EINVAL)?;
    let protection = protection(request.prot)?;
    check_pages(pages)?;
    if arr.is_null() || place.is_at_null() || place.flags & libc::MAP_ANONYMOUS != 0 {
        return Err(libc::EINVAL);
    }
    let mut gfns = Vec::new();
    gfns.try_reserve_exact(pages).map_err(|_| libc::ENOMEM)?;
    gfns.extend((0..pages).map(|page| {
        // SAFETY: `arr` has `pages` entries (the caller's promise).
        let number = unsafe { arr.add(page) };
        // SAFETY: as above.
        let number = unsafe { number.read_unaligned() };
        // The highest possible frame number stands for larger ones: there is no RAM at either. A PV dom0 would truncate
        // the number.
        Gfn::new(number).unwrap_or(Gfn::MAX)
    }));
    let memory = handle.memory()?;
    // SAFETY: the caller's promise.
    let mapped = unsafe { raw::map_at(memory, (place.addr, place.flags), domid, protection, &gfns, !err.is_null()) };
    let (addr, failed) = mapped.map_err(|error| errno_of_failure(handle, memory, request, &error))?;
    if !err.is_null() {
        // SAFETY: `err` has `pages` entries (the caller's promise).
        unsafe { err.write_bytes(0, pages) };
        for frame in failed {
            // SAFETY: `err` has an entry for each frame of the request, and the index is that of one of them.
            let entry = unsafe { err.add(frame.index) };
            // SAFETY: as above.
            unsafe { entry.write(-frame.errno) };
        }
    }
    Ok(addr.as_ptr().cast())
}

/// Returns the errno for a mapping that failed, and logs the error unless it is only that frames cannot be mapped.
fn errno_of_failure(handle: &Handle, memory: &ForeignMemory, request: &Request, error: &Error) -> Errno {
    let &Request { place, pages, .. } = request;
    // With MAP_FIXED the range is still reserved now, except if mmap(2) ran out of memory after it had unmapped the old
    // mapping. Then the range is free, and must be reserved before another thread gets it, because the caller believes
    // that it owns the range. mmap(2) finds all other errors before it unmaps anything.
    let may_be_gone = place.replaces() && matches!(error, Error::Reserve { .. }) && error.errno() == libc::ENOMEM;
    let addr = NonNull::new(std::ptr::with_exposed_provenance_mut(place.addr)).filter(|_| may_be_gone);
    match addr.map(|addr| raw::reserve_at(memory, addr, pages)) {
        Some(Err(e)) if e.raw_os_error() != Some(libc::EEXIST) => {
            handle.log(&format!("{}; its address range cannot be reserved either: {e}", chain(error)));
            return error.errno();
        }
        _ => {}
    }
    handle.errno_of(error)
}

/// Unmaps a mapping.
///
/// # Safety
///
/// As for `xenforeignmemory_unmap`.
pub(super) unsafe fn unmap(handle: &Handle, addr: *mut c_void, pages: usize) -> Result<(), Errno> {
    check_pages(pages)?;
    let addr = NonNull::new(addr).ok_or(libc::EINVAL)?;
    let memory = handle.memory()?;
    // SAFETY: the caller's promise.
    unsafe { raw::unmap(memory, addr.cast(), pages) }.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
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
    /// Nothing uses the mapping any more.
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
    let memory = handle.memory()?;
    let mapped = raw::map_resource(memory, hint.addr, raw::domid(domid), protection, name, first, pages);
    let base = mapped.map_err(|error| handle.errno_of_resource(&error))?;
    Ok(MappedResource { base, pages })
}

/// Returns the size of a resource in bytes.
pub(super) fn resource_size(handle: &Handle, domid: u16, name: (u32, u32)) -> Result<usize, Errno> {
    let size = raw::resource_size(handle.memory()?, raw::domid(domid), name);
    let frames = size.map_err(|error| handle.errno_of_resource_size(&error))?;
    usize::try_from(frames).ok().and_then(|frames| frames.checked_mul(FRAME_SIZE)).ok_or(libc::EOVERFLOW)
}

/// Checks the number of frames of a mapping, which the kernel counts in 32 bits.
fn check_pages(pages: usize) -> Result<(), Errno> {
    let fits = u32::try_from(pages).is_ok_and(|pages| pages != 0);
    if fits { Ok(()) } else { Err(libc::EINVAL) }
}

/// Translates `prot`. Memory that can be written can be read, too, so `PROT_WRITE` alone means both.
fn protection(prot: c_int) -> Result<Protection, Errno> {
    match prot {
        libc::PROT_READ => Ok(Protection::ReadOnly),
        _ if prot & !(libc::PROT_READ | libc::PROT_WRITE) == 0 && prot != libc::PROT_NONE => Ok(Protection::ReadWrite),
        _ => Err(libc::EINVAL),
    }
}
