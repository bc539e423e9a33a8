//! Whether a guest's frames can be touched without harm to it.

use super::Guest;
use crate::error::{Error, Result};
use crate::handle::PopulateOnDemand;
use crate::types::GuestKind;

impl Guest {
    /// Checks that every frame of the guest can be touched without harm to it: that Xen has memory set aside for all
    /// frames that have none yet.
    ///
    /// This is so until the toolstack lowers the guest's memory (`xl mem-set`) before its balloon driver has started.
    ///
    /// Call it before touching frames that the guest may not have used yet. Looking for the guest's RAM does so by
    /// itself; mapping, reading and writing do not, since they can be of frames that are known to be in use.
    ///
    /// # Errors
    ///
    /// [`Error::PopulateOnDemand`] if there is not enough memory for all frames; [`Error::Hypercall`],
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
