//! Mapping for C: what Rust's types promise is checked here.

#![expect(unsafe_code, reason = "takes C's pointers, and hands mappings out as such")]

use std::ffi::{c_int, c_ulong, c_void};
use std::ptr::NonNull;

use xenmap::{Error, FRAME_SIZE, ForeignMemory, Gfn, Protection, raw};

use crate::Errno;
use crate::handle::{Handle, chain};

/// What of mmap(2)'s flags a mapping of a resource may have. It is shared in any case.
const RESOURCE_FLAGS: c_int = libc::MAP_SHARED | libc::MAP_PRIVATE;

/// Where a mapping goes: `addr` and `flags` of mmap(2). By default where the kernel wants.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) addr: usize,
    pub(super) flags: c_int,
}

impl Place {
    /// As a caller of mmap(2) asks for it: with both flags `MAP_FIXED_NOREPLACE` counts, and Linux before 4.17, which
    /// does not know that one, is not told of `MAP_FIXED` then.
    pub(super) fn requested(addr: usize, flags: c_int) -> Place {
        let drop = if flags & libc::MAP_FIXED_NOREPLACE != 0 { libc::MAP_FIXED } else { 0 };
        Place { addr, flags: flags & !drop }
    }

    fn is_over(self) -> bool {
        self.flags & libc::MAP_FIXED != 0
    }

    /// Whether it is to be at address 0 and nowhere else, where memory of Rust's cannot be.
    fn is_nowhere(self) -> bool {
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

/// Maps frames: with `err` those that can be mapped, else all or none.
///
/// # Safety
///
/// As `xenforeignmemory_map2` says.
pub(super) unsafe fn map(handle: &Handle, request: &Request) -> Result<*mut c_void, Errno> {
    let &Request { place, pages, arr, err, .. } = request;
    let domid = u16::try_from(request.dom).map(raw::domid).map_err(|_| libc::EINVAL)?;
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
    let mapped = unsafe { raw::map_at(memory, (place.addr, place.flags), domid, protection, &gfns, !err.is_null()) };
    let (addr, failed) = mapped.map_err(|error| errno_of_failure(handle, memory, request, &error))?;
    if !err.is_null() {
        // SAFETY: the caller's promise.
        unsafe { err.write_bytes(0, pages) };
        for frame in failed {
            // SAFETY: the index is that of a frame of the request.
            let entry = unsafe { err.add(frame.index) };
            // SAFETY: the caller's promise.
            unsafe { entry.write(-frame.errno) };
        }
    }
    Ok(addr.as_ptr().cast())
}

/// What C is told of a mapping that failed.
fn errno_of_failure(handle: &Handle, memory: &ForeignMemory, request: &Request, error: &Error) -> Errno {
    let &Request { place, pages, .. } = request;
    // What it was to go over is reserved already, or nobody's, if the kernel ran out of memory after it had unmapped
    // what was there: then it must not become somebody else's while the caller believes that it is its own. Whatever
    // else mmap(2) minds, it finds before it unmaps anything.
    let may_be_gone = place.is_over() && matches!(error, Error::Reserve { .. }) && error.errno() == libc::ENOMEM;
    let addr = NonNull::new(std::ptr::with_exposed_provenance_mut(place.addr)).filter(|_| may_be_gone);
    match addr.map(|addr| raw::reserve_at(memory, addr, pages)) {
        Some(Err(e)) if e.raw_os_error() != Some(libc::EEXIST) => {
            handle.log(&format!("{}; nor can its addresses be reserved: {e}", chain(error)));
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
    let memory = handle.memory()?;
    let mapped = raw::map_resource(memory, hint.addr, raw::domid(domid), protection, name, first, pages);
    let base = mapped.map_err(|error| handle.errno_of_resource(&error))?;
    Ok(MappedResource { base, pages })
}

/// The size of a resource in bytes.
pub(super) fn resource_size(handle: &Handle, domid: u16, name: (u32, u32)) -> Result<usize, Errno> {
    let size = raw::resource_size(handle.memory()?, raw::domid(domid), name);
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
