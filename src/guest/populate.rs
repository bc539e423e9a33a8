//! Checking whether a guest's frames can be touched without crashing it.

use super::Guest;
use crate::error::{Error, Result};
use crate::handle::PopulateOnDemand;
use crate::types::GuestKind;

impl Guest {
    /// Checks that touching every frame of the guest does not crash it: that Xen has set aside memory for all frames
    /// that have none yet ([`PopulateOnDemand`]).
    ///
    /// The result holds unless the toolstack lowers the guest's memory (`xl mem-set`) before the guest's balloon driver
    /// has started.
    ///
    /// Call this before touching frames that the guest may not have used yet. [`ram_map`](Guest::ram_map) and
    /// [`scan`](Guest::scan) call it themselves; mapping, reading and writing do not, since the caller may know that
    /// the frames are in use.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, host.create_domain(GuestKind::Hvm, 16).domid())?;
    /// guest.check_populated()?;
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::PopulateOnDemand`] if there is too little memory for all frames; [`Error::Hypercall`] and
    /// [`Error::HypercallBuffer`].
    pub fn check_populated(&self) -> Result<()> {
        if self.kind == GuestKind::Pv {
            return Ok(());
        }
        let on_demand = self.memory.populate_on_demand(self.domid)?;
        if on_demand.is_covered() {
            return Ok(());
        }
        let PopulateOnDemand { unpopulated, pool } = on_demand;
        Err(Error::PopulateOnDemand { domid: self.domid, unpopulated, pool })
    }
}
