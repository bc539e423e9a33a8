//! `xenforeignmemory_handle`.

#![expect(unsafe_code, reason = "is shared with C by pointer")]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::OnceLock;

use xenmap::{Error, ForeignMemory, raw};

use crate::xentool::{ActiveHandle, Logger, XentoollogLogger};
use crate::{Errno, answer};

/// An open handle, which any number of threads may use.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Handle {
    /// First, so that a pointer to it is one to the handle.
    active: ActiveHandle,
    /// Set once the device is open, which comes after the registration.
    memory: OnceLock<ForeignMemory>,
    logger: Logger,
}

const _: fn() = || {
    fn can_be_shared<T: Sync>() {}
    can_be_shared::<Handle>();
};

impl Handle {
    /// One that libxentoolcore does not know yet.
    pub(super) fn new(logger: Logger, memory: OnceLock<ForeignMemory>) -> Handle {
        Handle { active: ActiveHandle::new(restrict), memory, logger }
    }

    /// # Safety
    ///
    /// `logger` is null, or stays until the handle is closed.
    pub(super) unsafe fn open(logger: *mut XentoollogLogger) -> Result<NonNull<Handle>, Errno> {
        // SAFETY: the caller's promise.
        let logger = unsafe { Logger::new(logger) }?;
        let handle = NonNull::from(Box::leak(Box::new(Handle::new(logger, OnceLock::new()))));
        // Before the device is opened: else a handle could be open that xentoolcore_restrict_all does not know.
        // SAFETY: boxed, and freed by `close` only, which takes it out of the list.
        unsafe { ActiveHandle::register(handle.cast()) };
        // SAFETY: just made.
        let opened = unsafe { handle.as_ref() }.open_device();
        if opened.is_err() {
            // SAFETY: registered, and nobody else has it.
            unsafe { Handle::close(handle) };
        }
        opened.map(|()| handle)
    }

    /// # Safety
    ///
    /// The handle is from `open`, and nothing uses it any more.
    pub(super) unsafe fn close(handle: NonNull<Handle>) {
        // SAFETY: `open` has registered it.
        unsafe { ActiveHandle::deregister(handle.cast()) };
        // SAFETY: `open` has boxed it; nobody else knows of it now.
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

    /// What C is told of an error. The logger is told more, unless it is only that frames cannot be mapped.
    pub(super) fn errno_of(&self, error: &Error) -> Errno {
        if !matches!(error, Error::Frames(_)) {
            self.log(&chain(error));
        }
        error.errno()
    }

    /// The same for the mapping of a resource. That there are none is not worth a message: callers try another way.
    pub(super) fn errno_of_resource(&self, error: &Error) -> Errno {
        match self.errno_of_resource_size(error) {
            libc::EOPNOTSUPP => libc::EOPNOTSUPP,
            _ => self.errno_of(error),
        }
    }

    /// What C is told of a resource's size; the logger is told nothing. Where there are no resources, in an old kernel,
    /// that is EOPNOTSUPP.
    pub(super) fn errno_of_resource_size(&self, error: &Error) -> Errno {
        let errno = error.errno();
        let is_missing = match errno {
            libc::ENOTTY => true,
            // Before Linux 4.11 an unknown ioctl is EINVAL, which an argument may be as well.
            libc::EINVAL => self.memory.get().is_some_and(|memory| raw::unimplemented_errno(memory) == errno),
            _ => false,
        };
        if is_missing { libc::EOPNOTSUPP } else { errno }
    }
}

/// An error with its causes: `what: why`.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Called by `xentoolcore_restrict_all`, on any thread.
unsafe extern "C" fn restrict(active: *mut ActiveHandle, domid: u16) -> c_int {
    let handle: *const Handle = active.cast_const().cast();
    answer(-1, || {
        // SAFETY: only `open` registers handles, of which this is the first field, and `close` does not free one that
        // is in the list; libxentoolcore has its list locked during the call.
        let handle = unsafe { handle.as_ref() }.ok_or(libc::EINVAL)?;
        // What is being opened may or may not be restricted.
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
