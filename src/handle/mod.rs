//! The handle, and everything that is asked of the host through it.

// rustdoc shows the methods of `ForeignMemory` in the order of these modules: opening, mapping, domains, hypercalls.
// The blank lines keep rustfmt from sorting them.
mod open;

mod batch;

mod restrict;

mod resource;

mod domains;

mod populate;

mod hypercall;

mod dm_op;
pub(crate) mod domctl;
mod m2p;
mod populated;

use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use domains::{DomainInfo, DomainState};
pub use hypercall::{HypercallBuffer, XenVersion};
pub use populate::PopulateOnDemand;
pub use resource::{Resource, ResourceMapping};

pub(crate) use batch::check_frames;
pub(crate) use dm_op::{DmOpName, MAX_EXTENTS};
pub(crate) use m2p::MachineToPhys;

use crate::backend::Backend;
use crate::types::HostKind;
use domctl::Version;

/// A handle on the host's privcmd device, through which other domains' memory is mapped.
///
/// Clones are cheap and share the open device, so what [restricts](ForeignMemory::restrict) one restricts all. Only the
/// [timeout](ForeignMemory::with_paged_out_timeout) is separate. Every clone can be used on any thread. Mappings stay
/// valid after all clones are dropped.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Gfn, GuestKind, Protection};
///
/// let host = MockHost::new(); // on Xen: let memory = xenmap::ForeignMemory::open()?;
/// let memory = host.open()?;
///
/// let domid = host.create_domain(GuestKind::Hvm, 16).domid();
/// let mapping = memory.map_foreign_range(domid, Protection::ReadOnly, Gfn::new(2)?, 4)?;
/// assert_eq!(host.references(domid), 4);
///
/// drop(mapping);
/// assert_eq!(host.references(domid), 0);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ForeignMemory {
    shared: Arc<Shared>,
    paged_out_timeout: Duration,
}

/// What all clones of a handle share.
#[derive(Debug)]
struct Shared {
    backend: Box<dyn Backend>,
    host_kind: HostKind,
    /// The versions of the toolstack's interfaces.
    domctl_version: Version,
    sysctl_version: Version,
    machine_to_phys: Mutex<m2p::Extents>,
}

impl ForeignMemory {
    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.shared.backend
    }
}
