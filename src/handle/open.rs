//! Opens the device.

#![expect(unsafe_code, reason = "takes a file descriptor that the caller says is the device's")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::domctl::Version;
use super::{ForeignMemory, Shared};
use crate::backend::{Backend, KernelDevice};
use crate::error::{Error, Result};
use crate::types::HostKind;

/// How long a mapping call waits for paged-out frames by default.
const PAGED_OUT_TIMEOUT: Duration = Duration::from_secs(5);

impl ForeignMemory {
    /// Opens the device of the host that this program runs on: /dev/xen/privcmd, or /proc/xen/privcmd on old kernels.
    ///
    /// Needs Linux 3.8 (2013), a domain that has privilege over others (usually dom0), and permission to open the
    /// device (by default only root has it).
    ///
    /// ```no_run
    /// use xenmap::{Access, Domid, ForeignMemory, Gfn, Protection};
    ///
    /// let memory = ForeignMemory::open()?;
    /// let (domid, gfns) = (Domid::new(5)?, [Gfn::new(0x100)?]);
    /// let mapping = memory.map_foreign_batch(domid, Protection::ReadOnly, &gfns)?;
    /// println!("{:#x}", mapping.view().read::<u64>(0)?);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Open`], which says what to do if the device is missing or access is denied.
    pub fn open() -> Result<ForeignMemory> {
        let device = KernelDevice::open().map_err(|(path, source)| Error::Open { path, source })?;
        Ok(ForeignMemory::with_backend(device))
    }

    /// Uses a privcmd device that has been opened elsewhere, for example by a privileged parent process.
    ///
    /// To map writable memory, the descriptor must be open for reading and writing.
    ///
    /// # Safety
    ///
    /// The descriptor is an open privcmd device. On any other device the same calls have another meaning.
    #[must_use]
    pub unsafe fn from_owned_fd(fd: OwnedFd) -> ForeignMemory {
        ForeignMemory::with_backend(KernelDevice::from(fd))
    }

    pub(crate) fn with_backend(backend: impl Backend + 'static) -> ForeignMemory {
        let shared = Shared {
            host_kind: backend.host_kind(),
            backend: Box::new(backend),
            domctl_version: Version::new(),
            sysctl_version: Version::new(),
            machine_to_phys: Mutex::default(),
        };
        let mut memory = ForeignMemory { shared: Arc::new(shared), paged_out_timeout: PAGED_OUT_TIMEOUT };
        if memory.host_kind() == HostKind::Unknown
            && let Ok(kind) = memory.host_kind_by_hypercall()
            && let Some(shared) = Arc::get_mut(&mut memory.shared)
        {
            shared.host_kind = kind;
        }
        memory
    }

    /// Sets how long a mapping call waits for frames that are paged out. The default is 5 s; zero does not wait.
    #[must_use]
    pub fn with_paged_out_timeout(mut self, timeout: Duration) -> ForeignMemory {
        self.paged_out_timeout = timeout;
        self
    }

    /// Returns the kind of the domain that this program runs in.
    #[must_use]
    pub fn host_kind(&self) -> HostKind {
        self.shared.host_kind
    }
}

/// Borrows the open privcmd device: to pass it to a child process, to pass it to [`ForeignMemory::from_owned_fd`] in
/// another process, or for ioctls that this crate does not make.
///
/// All copies of the descriptor are one open file, so what [restricts](ForeignMemory::restrict) one restricts all. Code
/// that makes ioctls or mappings with it must not populate, replace or unmap the address ranges of this crate's
/// mappings. The descriptor cannot be read, written or polled. It is closed on exec.
///
/// The simulated host has no device: its descriptor is an empty file, on which every ioctl of the device fails with
/// ENOTTY.
impl AsFd for ForeignMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend().fd()
    }
}
