//! The handle: opening and confining it, and all that is asked of the host through it.

#![expect(unsafe_code, reason = "takes over a file descriptor that is said to be the device's")]

mod batch;
mod domains;
pub(crate) mod domctl;
mod hypercall;
mod m2p;
mod populate;
mod populated;
mod resource;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

pub use domains::{DomainInfo, DomainState};
pub use hypercall::{HypercallBuffer, XenVersion};
pub use populate::PopulateOnDemand;
pub use resource::{Resource, ResourceMapping};

pub(crate) use batch::check_frames;

use crate::backend::{Backend, KernelDevice};
use crate::error::{Error, Result};
use crate::types::{Domid, HostKind};
use domctl::Version;

/// How long a frame that is paged out is waited for, unless the user says otherwise.
const PAGED_OUT_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on the host's privcmd device, with which memory of other domains is mapped.
///
/// A clone is the same handle, costs next to nothing, and is as good for any thread: it has the same open device, so
/// what restricts one restricts all. Only the [timeout](ForeignMemory::with_paged_out_timeout) is each clone's own.
/// Mappings outlive all of them.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Gfn, GuestKind, Protection};
///
/// let host = MockHost::new(); // on Xen: let memory = xenmap::ForeignMemory::open()?;
/// let memory = host.open()?;
///
/// let guest = host.create_domain(GuestKind::Hvm, 16);
/// let mapping = memory.map_foreign_range(guest.domid(), Protection::ReadOnly, Gfn::new(2)?, 4)?;
/// assert_eq!(host.references(guest.domid()), 4);
///
/// drop(mapping);
/// assert_eq!(host.references(guest.domid()), 0);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ForeignMemory {
    shared: Arc<Shared>,
    paged_out_timeout: Duration,
}

/// What all clones of a handle have in common.
#[derive(Debug)]
struct Shared {
    backend: Box<dyn Backend>,
    host_kind: HostKind,
    /// What the toolstack's interfaces are.
    domctl_version: Version,
    sysctl_version: Version,
}

impl ForeignMemory {
    /// Opens the device of the host that this runs on: /dev/xen/privcmd, or /proc/xen/privcmd of old kernels.
    ///
    /// Needs Linux 3.8 (2013), a domain that is privileged over others (dom0, as a rule), and the rights to the
    /// device (root, by default).
    ///
    /// # Errors
    ///
    /// [`Error::Open`], which says what to do if the device is missing or forbidden.
    pub fn open() -> Result<ForeignMemory> {
        let device = KernelDevice::open().map_err(|(path, source)| Error::Open { path, source })?;
        Ok(ForeignMemory::with_backend(device))
    }

    /// Uses a privcmd device that has been opened elsewhere, by a privileged parent for example.
    ///
    /// To map writable memory it must be open for reading and writing.
    ///
    /// # Safety
    ///
    /// It is an open privcmd device. The same calls on another device mean something else.
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

    /// Sets how long a mapping call waits for frames that are paged out (the default is 5 s); zero does not wait.
    #[must_use]
    pub fn with_paged_out_timeout(mut self, timeout: Duration) -> ForeignMemory {
        self.paged_out_timeout = timeout;
        self
    }

    /// What kind of domain we are in ourselves.
    #[must_use]
    pub fn host_kind(&self) -> HostKind {
        self.shared.host_kind
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.shared.backend
    }

    /// Confines this handle to one domain, for good; what is mapped already stays.
    ///
    /// From then on every mapping of another domain is refused, and so is every hypercall. A device model should do
    /// it as soon as it has started. It holds for copies of the file descriptor too, but not for other handles.
    ///
    /// # Errors
    ///
    /// [`Error::Restrict`] if the handle is confined to another domain already, or before Linux 4.11.
    #[doc(alias = "IOCTL_PRIVCMD_RESTRICT")]
    #[doc(alias = "xenforeignmemory_restrict")]
    pub fn restrict(&self, domid: Domid) -> Result<()> {
        self.backend().restrict(domid).map_err(|source| Error::Restrict { domid, source })
    }
}

/// The open privcmd device: to hand it to a child or to [`ForeignMemory::from_owned_fd`] of another process, or for
/// ioctls that this crate does not make.
///
/// All copies of it are one open file, so what [restricts](ForeignMemory::restrict) one restricts all. Whoever makes
/// ioctls or mappings of it keeps off the address ranges of this crate's mappings: nothing may populate, replace or
/// unmap these. Nothing can be read from it, written to it, or waited for. It is closed on exec.
///
/// The simulated host has no device: there it is an empty file, on which every ioctl of the device fails with ENOTTY.
impl AsFd for ForeignMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend().fd()
    }
}
