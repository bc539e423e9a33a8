//! What a device model sees of the simulated host: ioreq servers, event channels, and the guest's processors and
//! interrupts.

mod access;
mod buffered;
mod dm_op;
mod events;
mod interrupts;
mod rep;
mod requests;
mod servers;
mod vcpu;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use interrupts::MockLine;
pub use rep::MockRep;
pub use vcpu::{MockVcpu, VcpuStopped};

pub(super) use events::{EventFiles, MockEvents};
pub(super) use servers::{MAX_VCPUS, SERVER_FRAMES};

use interrupts::Interrupts;
use servers::Server;

/// What a domain has for its device models.
#[derive(Debug, Default)]
pub(super) struct DeviceModelState {
    pub(super) life: Life,
    pub(super) servers: BTreeMap<u16, Server>,
    /// The ports that Xen offers to dom0, and the file and local port that are bound to each.
    pub(super) ports: BTreeMap<u32, Option<(u64, u32)>>,
    /// The last of these ports.
    pub(super) last_port: u32,
    /// The ports on which dom0 has sent an event that nothing has seen yet.
    pub(super) notified: BTreeSet<u32>,
    /// What the guest has last written to port 0xCF8.
    pub(super) cf8: u32,
    /// Whether the guest has given memory back, and device models do not know it yet.
    pub(super) must_invalidate: bool,
    /// The vcpus that are in an instruction.
    pub(super) busy: BTreeSet<u32>,
    pub(super) interrupts: Interrupts,
    /// The frames that were reported as modified; `None` while Xen does not log.
    pub(super) dirty: Option<BTreeSet<u64>>,
    /// Why Xen has crashed the guest.
    pub(super) crash: Option<String>,
}

/// Tells a domain from others that have its number before or after it. Holds the lock that the guest's kernel takes
/// while it uses ports 0xCF8 and 0xCFC.
#[derive(Clone, Debug, Default)]
pub(super) struct Life(Arc<Mutex<()>>);

impl PartialEq for Life {
    fn eq(&self, other: &Life) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Life {
    fn lock_pci(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
