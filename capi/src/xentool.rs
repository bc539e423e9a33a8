//! Bindings to libxentoolcore, which keeps a list of all handles of a process, and to libxentoollog.
//!
//! `install` links with both. The unit tests use test doubles, so that they run where Xen's libraries are missing.

#![expect(unsafe_code, reason = "calls C")]

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::NonNull;

use crate::Errno;
#[cfg(test)]
use crate::tests::doubles as libraries;

/// `xentoollog_logger`, an opaque type.
#[repr(C)]
#[derive(Debug)]
pub(super) struct XentoollogLogger(UnsafeCell<[u8; 0]>);

/// `Xentoolcore__Active_Handle`: an entry of libxentoolcore's list of handles. Only that library uses its links
/// (`tools/include/xentoolcore_internal.h` of Xen 4.11 and later).
#[repr(C)]
#[derive(Debug)]
pub(super) struct ActiveHandle {
    pub(super) restrict: unsafe extern "C" fn(*mut ActiveHandle, u16) -> c_int,
    links: UnsafeCell<[*mut c_void; 2]>,
}

/// `XTL_PROGRESS`, the lowest level that libxenforeignmemory's own logger shows.
const XTL_PROGRESS: c_int = 4;
/// `XTL_ERROR`.
const XTL_ERROR: c_int = 8;

#[cfg(not(test))]
mod libraries {
    use std::ffi::{c_char, c_int, c_uint};

    use super::{ActiveHandle, XentoollogLogger};

    unsafe extern "C" {
        pub(super) fn xentoolcore__register_active_handle(handle: *mut ActiveHandle);
        pub(super) fn xentoolcore__deregister_active_handle(handle: *mut ActiveHandle);
        pub(super) fn xtl_createlogger_stdiostream(
            file: *mut libc::FILE,
            min: c_int,
            flags: c_uint,
        ) -> *mut XentoollogLogger;
        pub(super) fn xtl_logger_destroy(logger: *mut XentoollogLogger);
        pub(super) fn xtl_log(
            logger: *mut XentoollogLogger,
            level: c_int,
            errno: c_int,
            context: *const c_char,
            format: *const c_char,
            ...
        );
    }
}

unsafe extern "C" {
    static mut stderr: *mut libc::FILE;
}

// SAFETY: only libxentoolcore uses the links, and only while it holds the lock of its list. `restrict` does not change.
unsafe impl Sync for ActiveHandle {}

impl ActiveHandle {
    pub(super) fn new(restrict: unsafe extern "C" fn(*mut ActiveHandle, u16) -> c_int) -> ActiveHandle {
        ActiveHandle { restrict, links: UnsafeCell::new([std::ptr::null_mut(); 2]) }
    }

    /// Adds a handle to the list. From now on any thread may call its `restrict`.
    ///
    /// # Safety
    ///
    /// The handle is not in the list, and is neither moved nor freed before `deregister`.
    pub(super) unsafe fn register(handle: NonNull<ActiveHandle>) {
        // SAFETY: the caller's promise.
        unsafe { libraries::xentoolcore__register_active_handle(handle.as_ptr()) }
    }

    /// # Safety
    ///
    /// The handle is in the list.
    pub(super) unsafe fn deregister(handle: NonNull<ActiveHandle>) {
        // SAFETY: the caller's promise.
        unsafe { libraries::xentoolcore__deregister_active_handle(handle.as_ptr()) }
    }
}

/// The logger of a handle.
#[derive(Debug)]
pub(super) struct Logger {
    logger: NonNull<XentoollogLogger>,
    is_ours: bool,
}

// SAFETY: any thread can use libxentoollog's own loggers, and a caller who shares a handle among threads must have
// passed a logger that any thread can use.
unsafe impl Sync for Logger {}

impl Logger {
    /// Uses the caller's logger, or creates one that writes to stderr.
    ///
    /// # Safety
    ///
    /// `logger` is null, or outlives this.
    pub(super) unsafe fn new(logger: *mut XentoollogLogger) -> Result<Logger, Errno> {
        if let Some(logger) = NonNull::new(logger) {
            return Ok(Logger { logger, is_ours: false });
        }
        // SAFETY: a program that assigns to stderr must make sure that no other thread uses it meanwhile.
        let file = unsafe { stderr };
        // SAFETY: stderr is an open stream.
        let logger = NonNull::new(unsafe { libraries::xtl_createlogger_stdiostream(file, XTL_PROGRESS, 0) });
        Ok(Logger { logger: logger.ok_or(libc::ENOMEM)?, is_ours: true })
    }

    pub(super) fn error(&self, message: &str) {
        let context: &CStr = c"xenforeignmemory";
        let Ok(message) = CString::new(message) else { return };
        // The message already contains the errno.
        let no_errno = -1;
        // SAFETY: the logger is alive (`new`), both strings end with a null byte, and the format takes one string.
        unsafe {
            libraries::xtl_log(
                self.logger.as_ptr(),
                XTL_ERROR,
                no_errno,
                context.as_ptr(),
                c"%s".as_ptr(),
                message.as_ptr(),
            );
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        if self.is_ours {
            // SAFETY: `new` created the logger, and nothing uses it any more.
            unsafe { libraries::xtl_logger_destroy(self.logger.as_ptr()) }
        }
    }
}
