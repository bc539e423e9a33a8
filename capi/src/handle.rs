//! `xenforeignmemory_handle`.

#![expect(unsafe_code, reason = "C holds pointers to it")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::OnceLock;

use xenmap::{Error, ForeignMemory, raw};

use crate::xentool::{ActiveHandle, Logger, XentoollogLogger};
use crate::{Errno, answer};

/// An open handle, which threads may share.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Handle {
    /// The first field, so that a pointer to it is also one to the handle.
    active: ActiveHandle,
    /// Set when the device is opened, after the registration.
    memory: OnceLock<ForeignMemory>,
    logger: Logger,
}

const _: fn() = || {
    fn assert_sync<T: Sync>() {}
    assert_sync::<Handle>();
};

impl Handle {
    /// Creates a handle that is not registered with libxentoolcore yet.
    pub(super) fn new(logger: Logger, memory: OnceLock<ForeignMemory>) -> Handle {
        Handle { active: ActiveHandle::new(restrict), memory, logger }
    }

    /// # Safety
    ///
    /// `logger` is null, or lives until the handle is closed.
    pub(super) unsafe fn open(logger: *mut XentoollogLogger) -> Result<NonNull<Handle>, Errno> {
        // SAFETY: the caller's promise.
        let logger = unsafe { Logger::new(logger) }?;
        let handle = NonNull::from(Box::leak(Box::new(Handle::new(logger, OnceLock::new()))));
        // Before the device is opened: otherwise xentoolcore_restrict_all could miss an open handle.
        // SAFETY: the handle is new, so it is not in the list. It is boxed, so it does not move, and only `close` frees
        // it, after taking it out of the list.
        unsafe { ActiveHandle::register(handle.cast()) };
        // SAFETY: just boxed, and there are only shared references to it until it is closed.
        let opened = unsafe { handle.as_ref() }.open_device();
        if opened.is_err() {
            // SAFETY: boxed and registered above, and the caller does not have it.
            unsafe { Handle::close(handle) };
        }
        opened.map(|()| handle)
    }

    /// # Safety
    ///
    /// The handle was created by `open`, and nothing uses it any more.
    pub(super) unsafe fn close(handle: NonNull<Handle>) {
        // SAFETY: `open` registered it.
        unsafe { ActiveHandle::deregister(handle.cast()) };
        // SAFETY: `open` boxed it. The caller does not use it (its promise), and libxentoolcore no longer does.
        drop(unsafe { Box::from_raw(handle.as_ptr()) });
    }

    fn open_device(&self) -> Result<(), Errno> {
        let memory = open_memory().map_err(|e| self.errno_of(&e))?;
        self.memory.set(memory).map_err(|_| libc::EBUSY)
    }

    pub(super) fn log(&self, message: &str) {
        self.logger.error(message);
    }

    pub(super) fn memory(&self) -> Result<&ForeignMemory, Errno> {
        self.memory.get().ok_or(libc::EINVAL)
    }

    pub(super) fn restrict(&self, domid: u16) -> Result<(), Errno> {
        self.memory()?.restrict(raw::domid(domid)).map_err(|error| self.errno_of(&error))
    }

    /// Returns the errno for C, and logs the error unless it is only that frames cannot be mapped.
    pub(super) fn errno_of(&self, error: &Error) -> Errno {
        if !matches!(error, Error::Frames(_)) {
            self.log(&chain(error));
        }
        error.errno()
    }

    /// Does the same for the mapping of a resource. A missing feature is not logged, because callers try another way.
    pub(super) fn errno_of_resource(&self, error: &Error) -> Errno {
        match self.errno_of_resource_size(error) {
            libc::EOPNOTSUPP => libc::EOPNOTSUPP,
            _ => self.errno_of(error),
        }
    }

    /// Returns the errno for the size of a resource, and logs nothing. If an old kernel does not support resources, it
    /// is EOPNOTSUPP.
    pub(super) fn errno_of_resource_size(&self, error: &Error) -> Errno {
        let errno = error.errno();
        let is_missing = match errno {
            libc::ENOTTY => true,
            // Before Linux 4.11 an unknown ioctl fails with EINVAL, as does a bad argument.
            libc::EINVAL => self.memory.get().is_some_and(|memory| raw::unimplemented_errno(memory) == errno),
            _ => false,
        };
        if is_missing { libc::EOPNOTSUPP } else { errno }
    }
}

/// Formats an error with its causes: `what: why`.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Restricts a handle. `xentoolcore_restrict_all` calls it, on any thread.
unsafe extern "C" fn restrict(active: *mut ActiveHandle, domid: u16) -> c_int {
    let handle: *const Handle = active.cast_const().cast();
    answer(-1, || {
        // SAFETY: `active` is the first field of a handle, because only `open` registers any. `close` frees a handle
        // only after taking it out of the list, which libxentoolcore keeps locked during this call.
        let handle = unsafe { handle.as_ref() }.ok_or(libc::EINVAL)?;
        // A handle that is still being opened may stay unrestricted.
        if handle.memory.get().is_none() { Ok(0) } else { handle.restrict(domid).map(|()| 0) }
    })
}

fn open_memory() -> Result<ForeignMemory, Error> {
    #[cfg(feature = "mock")]
    if let Some(host) = crate::simulated::host()? {
        return host.open();
    }
    ForeignMemory::open()
}
