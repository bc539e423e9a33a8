//! Test doubles of libxentoolcore and libxentoollog, so that the unit tests link on a machine without them. The tests
//! in C (tests/debian.rs) use the real libraries.

#![expect(non_snake_case, reason = "the names are those of the libraries")]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ptr;
use std::sync::{Mutex, MutexGuard};

use crate::xentool::{ActiveHandle, XentoollogLogger};

/// The list of the process's handles.
static ACTIVE: Mutex<Vec<Listed>> = Mutex::new(Vec::new());

#[derive(Clone, Copy, PartialEq)]
struct Listed(*mut ActiveHandle);

// SAFETY: the library may call a handle on any thread while it holds the list's lock (`xentoolcore_internal.h`).
unsafe impl Send for Listed {}

fn active() -> MutexGuard<'static, Vec<Listed>> {
    ACTIVE.lock().unwrap()
}

pub(crate) unsafe fn xentoolcore__register_active_handle(handle: *mut ActiveHandle) {
    assert!(!is_active(handle), "registered twice");
    active().push(Listed(handle));
}

pub(crate) unsafe fn xentoolcore__deregister_active_handle(handle: *mut ActiveHandle) {
    assert!(is_active(handle), "not registered");
    active().retain(|listed| listed.0 != handle);
}

pub(crate) fn is_active(handle: *mut ActiveHandle) -> bool {
    active().contains(&Listed(handle))
}

/// Restricts all handles, as `xentoolcore_restrict_all` does: it stops at the first that fails.
pub(crate) unsafe fn xentoolcore_restrict_all(domid: u16) -> c_int {
    let handles = active();
    for &Listed(handle) in handles.iter() {
        // SAFETY: a registered handle is alive.
        let restrict = unsafe { (*handle).restrict };
        // SAFETY: as above.
        let result = unsafe { restrict(handle, domid) };
        if result != 0 {
            return result;
        }
    }
    0
}

/// A logger that keeps messages.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// Whether `xtl_createlogger_stdiostream` created the logger. A caller's logger must not be destroyed.
    is_created: bool,
    texts: Mutex<Vec<String>>,
}

impl Messages {
    pub(crate) fn all(&self) -> Vec<String> {
        self.texts.lock().unwrap().clone()
    }

    pub(crate) fn as_logger(&self) -> *mut XentoollogLogger {
        ptr::from_ref(self).cast_mut().cast()
    }
}

pub(crate) unsafe fn xtl_createlogger_stdiostream(
    _file: *mut libc::FILE,
    _min: c_int,
    _flags: c_uint,
) -> *mut XentoollogLogger {
    Box::into_raw(Box::new(Messages { is_created: true, ..Messages::default() })).cast()
}

pub(crate) unsafe fn xtl_logger_destroy(logger: *mut XentoollogLogger) {
    let log: *mut Messages = logger.cast();
    // SAFETY: all loggers of the tests are of this type.
    assert!(unsafe { (*log).is_created }, "a handle must not destroy its caller's logger");
    // SAFETY: `xtl_createlogger_stdiostream` boxed it, and it is not used any more.
    drop(unsafe { Box::from_raw(log) });
}

/// Only the format `%s` is used.
pub(crate) unsafe fn xtl_log(
    logger: *mut XentoollogLogger,
    _level: c_int,
    _errno: c_int,
    _context: *const c_char,
    format: *const c_char,
    message: *const c_char,
) {
    let log: *const Messages = logger.cast_const().cast();
    // SAFETY: the caller passes a C string.
    let format = unsafe { CStr::from_ptr(format) };
    assert_eq!(format, c"%s");
    // SAFETY: the caller passes a C string, by its format.
    let text = unsafe { CStr::from_ptr(message) };
    // SAFETY: all loggers of the tests are of this type.
    unsafe { &*log }.texts.lock().unwrap().push(text.to_str().unwrap().to_owned());
}
