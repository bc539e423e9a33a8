//! Restricts the handle to one domain.

use super::ForeignMemory;
use crate::error::{Error, Result};
use crate::types::Domid;

impl ForeignMemory {
    /// Permanently restricts this handle to one domain. Existing mappings stay.
    ///
    /// From then on the kernel refuses every mapping of another domain, and every hypercall. A device model should call
    /// this as soon as it has started. The restriction also holds for clones and for copies of the file descriptor, but
    /// not for other handles.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let [served, other] = [1, 1].map(|frames| host.create_domain(GuestKind::Hvm, frames));
    /// let memory = host.open()?;
    /// memory.restrict(served.domid())?;
    ///
    /// let map = |domid| memory.map_foreign_batch(domid, Protection::ReadWrite, &[Gfn::new(0)?]);
    /// assert!(map(served.domid()).is_ok());
    /// assert_eq!(map(other.domid()).unwrap_err().errno(), 1); // EPERM
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Restrict`] if the handle is already restricted to another domain, or before Linux 4.11.
    #[doc(alias = "IOCTL_PRIVCMD_RESTRICT")]
    #[doc(alias = "xenforeignmemory_restrict")]
    pub fn restrict(&self, domid: Domid) -> Result<()> {
        self.backend().restrict(domid).map_err(|source| Error::Restrict { domid, source })
    }
}
