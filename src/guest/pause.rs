//! Keeping a guest from running while it is looked at.

#![expect(unsafe_code, reason = "makes hypercalls")]

use std::error::Error as _;

use super::Guest;
use crate::abi;
use crate::backend::ProcessId;
use crate::error::Result;
use crate::handle::domctl::ARGUMENTS;

/// A guest that stands still until this is dropped.
///
/// Xen counts pauses: a guest that was paused before stays so. If this process is killed, the guest stays paused as
/// well, until `xl unpause`. In a forked child, dropping the copy of this does nothing: the pause is the parent's.
#[derive(Debug)]
#[must_use = "the guest runs again when this is dropped"]
pub struct Paused {
    guest: Guest,
    process: ProcessId,
}

impl Guest {
    /// Pauses the guest (`XEN_DOMCTL_pausedomain`): when this returns, none of its vcpus runs.
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
    /// [`Error::Hypercall`](crate::Error::Hypercall), with EACCES where the toolstack's interface is not understood
    /// ([`domctl_version`](crate::ForeignMemory::domctl_version)), with EINVAL for the domain we are in.
    #[doc(alias = "XEN_DOMCTL_pausedomain")]
    pub fn pause(&self) -> Result<Paused> {
        let (name, command) = ("XEN_DOMCTL_pausedomain", abi::XEN_DOMCTL_PAUSEDOMAIN);
        // SAFETY: it has no arguments.
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
        // SAFETY: it has no arguments.
        match unsafe { memory.domctl(name, command, *domid, [0; ARGUMENTS]) } {
            Ok(_) => {}
            // Destroyed meanwhile.
            Err(e) if e.errno() == libc::ESRCH => {}
            Err(e) => {
                let cause = e.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                log::error!("domain {domid} stays paused: {e}{cause}");
            }
        }
    }
}
