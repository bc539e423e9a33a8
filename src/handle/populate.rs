//! Checks whether all frames of a populate-on-demand guest can be touched.

#![expect(unsafe_code, reason = "makes a hypercall")]

use std::mem::offset_of;

use super::ForeignMemory;
use super::domctl::u64_at;
use crate::abi::{self, PodTarget};
use crate::error::{Error, Result};
use crate::types::{Architecture, Domid};

/// The memory that a populate-on-demand guest lacks; all zero for any other guest.
///
/// A guest that is created with more `maxmem` than `memory` has frames without memory. Each gets its memory when it is
/// first touched: by the guest, by whoever maps it, or by whoever asks Xen for its type. The guest is expected to start
/// a balloon driver, which returns the frames that it was never meant to use. Until then it has more frames than Xen
/// has set memory aside for, and Xen crashes it once that memory is used up.
///
/// Returned by [`ForeignMemory::populate_on_demand`], which shows an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PopulateOnDemand {
    /// Frames that have no memory yet.
    pub unpopulated: u64,
    /// Frames of memory that Xen has set aside for them.
    pub pool: u64,
}

impl PopulateOnDemand {
    /// Returns whether there is memory for every frame, so that all can be touched.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.unpopulated <= self.pool
    }
}

impl ForeignMemory {
    /// Returns how many frames of a populate-on-demand domain lack memory (`XENMEM_get_pod_target`). Touches no frame.
    ///
    /// Xen tells how many frames have no memory, but not which: every call that asks about a frame populates it.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Pvh, 16);
    /// domain.populate_on_demand(&[Gfn::new(16)?, Gfn::new(17)?], 1);
    /// let on_demand = host.open()?.populate_on_demand(domain.domid())?;
    /// assert_eq!((on_demand.unpopulated, on_demand.pool), (2, 1));
    /// assert!(!on_demand.is_covered());
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    #[doc(alias = "XENMEM_get_pod_target")]
    pub fn populate_on_demand(&self, domid: Domid) -> Result<PopulateOnDemand> {
        if self.architecture() == Architecture::Arm64 {
            // Xen on Arm has no such guests.
            return Ok(PopulateOnDemand::default());
        }
        let mut buffer = self.hypercall_buffer(size_of::<PodTarget>())?;
        let at = offset_of!(PodTarget, domid);
        buffer.bytes_mut()[at..at + 2].copy_from_slice(&domid.get().to_ne_bytes());
        let arg = [abi::XENMEM_GET_POD_TARGET.into(), buffer.address(), 0, 0, 0];
        // SAFETY: it reads and writes one `PodTarget`, for which the buffer is large enough.
        match unsafe { self.backend().hypercall(abi::HYPERVISOR_MEMORY_OP.into(), arg) } {
            Ok(_) => {}
            // EINVAL: a PV guest. ENOSYS: this Xen is built without populate-on-demand.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                return Ok(PopulateOnDemand::default());
            }
            Err(source) => {
                return Err(Error::Hypercall { name: "XENMEM_get_pod_target", domid: Some(domid), source });
            }
        }
        let word = |offset| u64_at(buffer.bytes(), offset);
        Ok(PopulateOnDemand {
            unpopulated: word(offset_of!(PodTarget, pod_entries)),
            pool: word(offset_of!(PodTarget, pod_cache_pages)),
        })
    }
}
