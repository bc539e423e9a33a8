//! The C interface of libxenforeignmemory 1.4, so that programs written for it run on xenmap.
//!
//! The functions, their arguments, results and errno are those of xenforeignmemory.h. Where that library truncates
//! numbers, waits forever or leaves a hole, this one does not; xenmap's docs/c-library.md lists the differences. The
//! script `install` builds the library. Only it links with libxentoolcore and libxentoollog.
//!
//! Nothing unwinds into C or out of it: a panic, which would be a bug, becomes an error with errno `ENOTRECOVERABLE`,
//! and a thread is not cancelled in the middle of a call.

#![expect(unsafe_code, reason = "C calls it with pointers")]

mod handle;
mod map;
#[cfg(feature = "mock")]
mod simulated;
#[cfg(test)]
mod tests;
mod xentool;

use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};

use handle::Handle;
use map::{MappedResource, Place, Request};
use xentool::XentoollogLogger;

/// An error number, which C finds in errno.
type Errno = c_int;

const PTHREAD_CANCEL_DISABLE: c_int = 1;

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// Returns the value of `body`, or sets errno and returns `failure`.
fn answer<T>(failure: T, body: impl FnOnce() -> Result<T, Errno>) -> T {
    let mut state = 0;
    // pthread_cancel(3) would unwind the thread through Rust, which ends the process instead. So cancellation waits
    // until the call is over.
    // SAFETY: writes one integer, to our own variable.
    unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut state) };
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(libc::ENOTRECOVERABLE));
    // SAFETY: as above; it restores the state that the thread had.
    unsafe { pthread_setcancelstate(state, &raw mut state) };
    result.unwrap_or_else(|errno| {
        nix::errno::Errno::set_raw(errno);
        failure
    })
}

/// # Safety
///
/// `handle` is null, or comes from `xenforeignmemory_open` and has not been closed.
unsafe fn open_handle<'a>(handle: *const Handle) -> Result<&'a Handle, Errno> {
    // SAFETY: the caller's promise; there are only shared references to a handle until it is closed.
    unsafe { handle.as_ref() }.ok_or(libc::EINVAL)
}

/// # Safety
///
/// `logger` is null, or a logger of libxentoollog that lives until the handle is closed.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_open(logger: *mut XentoollogLogger, _open_flags: c_uint) -> *mut Handle {
    answer(ptr::null_mut(), || {
        // SAFETY: the caller's promise.
        unsafe { Handle::open(logger) }.map(NonNull::as_ptr)
    })
}

/// # Safety
///
/// `handle` is null, or comes from `xenforeignmemory_open` and is not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_close(handle: *mut Handle) -> c_int {
    answer(-1, || {
        if let Some(handle) = NonNull::new(handle) {
            // SAFETY: the caller's promise.
            unsafe { Handle::close(handle) };
        }
        Ok(0)
    })
}

/// # Safety
///
/// As for `xenforeignmemory_map2`.
unsafe fn map(handle: *const Handle, request: &Request) -> *mut c_void {
    answer(ptr::null_mut(), || {
        // SAFETY: the caller's promise.
        let handle = unsafe { open_handle(handle) }?;
        // SAFETY: the caller's promise.
        unsafe { map::map(handle, request) }
    })
}

/// # Safety
///
/// As for `xenforeignmemory_map2`.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_map(
    handle: *const Handle,
    dom: u32,
    prot: c_int,
    pages: usize,
    arr: *const u64,
    err: *mut c_int,
) -> *mut c_void {
    let request = Request { dom, place: Place::default(), prot, pages, arr, err };
    // SAFETY: the caller's promise.
    unsafe { map(handle, &request) }
}

/// # Safety
///
/// `handle` is null or open. `arr` is null or points to `pages` frame numbers, `err` is null or points to as many
/// integers, and nothing else uses either array during the call. With `MAP_FIXED` and without `MAP_FIXED_NOREPLACE`,
/// the range at `addr` is the caller's own, and nothing uses it.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_map2(
    handle: *const Handle,
    dom: u32,
    addr: *mut c_void,
    prot: c_int,
    flags: c_int,
    pages: usize,
    arr: *const u64,
    err: *mut c_int,
) -> *mut c_void {
    let request = Request { dom, place: Place::requested(addr.expose_provenance(), flags), prot, pages, arr, err };
    // SAFETY: the caller's promise.
    unsafe { map(handle, &request) }
}

/// # Safety
///
/// `handle` is null or open. The `pages` frames at `addr` are a mapping of the caller's, which nothing uses any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_unmap(handle: *const Handle, addr: *mut c_void, pages: usize) -> c_int {
    answer(-1, || {
        // SAFETY: the caller's promise.
        let handle = unsafe { open_handle(handle) }?;
        // SAFETY: the caller's promise.
        unsafe { map::unmap(handle, addr, pages) }.map(|()| 0)
    })
}

/// # Safety
///
/// `handle` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_restrict(handle: *const Handle, domid: u16) -> c_int {
    answer(-1, || {
        // SAFETY: the caller's promise.
        let handle = unsafe { open_handle(handle) }?;
        handle.restrict(domid).map(|()| 0)
    })
}

/// # Safety
///
/// `handle` is null or open. `paddr` is null or points to an address.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_map_resource(
    handle: *const Handle,
    domid: u16,
    type_: c_uint,
    id: c_uint,
    frame: c_ulong,
    nr_frames: c_ulong,
    paddr: *mut *mut c_void,
    prot: c_int,
    flags: c_int,
) -> *mut MappedResource {
    answer(ptr::null_mut(), || {
        // SAFETY: the caller's promise.
        let handle = unsafe { open_handle(handle) }?;
        let paddr = NonNull::new(paddr).ok_or(libc::EINVAL)?;
        // SAFETY: the caller's promise.
        let addr = unsafe { paddr.read() };
        let hint = Place { addr: addr.expose_provenance(), flags };
        let resource = map::map_resource(handle, domid, (type_, id), frame, nr_frames, hint, prot)?;
        // SAFETY: the caller's promise.
        unsafe { paddr.write(resource.addr()) };
        Ok(Box::into_raw(Box::new(resource)))
    })
}

/// # Safety
///
/// `handle` is null or open. `resource` is null, or comes from `xenforeignmemory_map_resource` and is not used any
/// more, nor is its memory.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_unmap_resource(handle: *const Handle, resource: *mut MappedResource) -> c_int {
    answer(-1, || {
        // SAFETY: the caller's promise.
        let handle = unsafe { open_handle(handle) }?;
        let Some(resource) = NonNull::new(resource) else { return Ok(0) };
        // SAFETY: `xenforeignmemory_map_resource` boxed it, and nothing uses it any more (the caller's promise).
        let resource = unsafe { Box::from_raw(resource.as_ptr()) };
        // SAFETY: the caller's promise.
        unsafe { resource.unmap(handle) }.map(|()| 0)
    })
}

/// # Safety
///
/// `handle` is null or open. `size` is null or points to a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenforeignmemory_resource_size(
    handle: *const Handle,
    domid: u16,
    type_: c_uint,
    id: c_uint,
    size: *mut usize,
) -> c_int {
    answer(-1, || {
        // SAFETY: the caller's promise.
        let handle = unsafe { open_handle(handle) }?;
        let size = NonNull::new(size).ok_or(libc::EINVAL)?;
        let bytes = map::resource_size(handle, domid, (type_, id))?;
        // SAFETY: the caller's promise.
        unsafe { size.write(bytes) };
        Ok(0)
    })
}
