//! Pausing a guest.

#![expect(unsafe_code, reason = "makes hypercalls")]

use std::error::Error as _;

use super::Guest;
use crate::abi;
use crate::backend::ProcessId;
use crate::error::Result;
use crate::handle::domctl::ARGUMENTS;

/// Keeps a guest paused until dropped; created by [`Guest::pause`].
///
/// Xen counts pauses: on drop, a guest that was already paused stays paused. If this process is killed, the guest also
/// stays paused, until `xl unpause`. In a forked child, dropping this does nothing: the pause belongs to the parent.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{DomainState, Guest, GuestKind};
///
/// let host = MockHost::new();
/// let memory = host.open()?;
/// let guest = Guest::open(&memory, host.create_domain(GuestKind::Pvh, 16).domid())?;
///
/// let (first, second) = (guest.pause()?, guest.pause()?);
/// drop(first);
/// assert_eq!(memory.domain_info(guest.domid())?.state, Some(DomainState::Paused));
/// drop(second);
/// assert_eq!(memory.domain_info(guest.domid())?.state, Some(DomainState::Running));
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping this unpauses the guest"]
pub struct Paused {
    guest: Guest,
    process: ProcessId,
}

impl Guest {
    /// Pauses the guest (`XEN_DOMCTL_pausedomain`) until the returned value is dropped. When this returns, none of its
    /// vcpus is running.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{DomainState, Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domid = host.create_domain(GuestKind::Pvh, 16).domid();
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domid)?;
    ///
    /// let paused = guest.pause()?;
    /// assert_eq!(memory.domain_info(domid)?.state, Some(DomainState::Paused));
    /// drop(paused);
    /// assert_eq!(memory.domain_info(domid)?.state, Some(DomainState::Running));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`](crate::Error::Hypercall): with EACCES if this crate does not know the toolstack interface
    /// of the running Xen ([`domctl_version`](crate::ForeignMemory::domctl_version)), with EINVAL if the guest is the
    /// caller's own domain.
    #[doc(alias = "XEN_DOMCTL_pausedomain")]
    pub fn pause(&self) -> Result<Paused> {
        let (name, command) = ("XEN_DOMCTL_pausedomain", abi::XEN_DOMCTL_PAUSEDOMAIN);
        // SAFETY: this domctl takes no arguments, so none of them is an address.
        unsafe { self.memory.domctl(name, command, self.domid, [0; ARGUMENTS]) }?;
        Ok(Paused { guest: self.clone(), process: ProcessId::current() })
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if ProcessId::current() != self.process {
            return;
        }
        let Guest { memory, domid, .. } = &self.guest;
        let (name, command) = ("XEN_DOMCTL_unpausedomain", abi::XEN_DOMCTL_UNPAUSEDOMAIN);
        // SAFETY: this domctl takes no arguments, so none of them is an address.
        match unsafe { memory.domctl(name, command, *domid, [0; ARGUMENTS]) } {
            Ok(_) => {}
            // The guest was destroyed.
            Err(e) if e.errno() == libc::ESRCH => {}
            Err(e) => {
                let cause = e.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                log::error!("domain {domid} stays paused: {e}{cause}");
            }
        }
    }
}
