//! What host to simulate.

use crate::types::{Domid, FRAME_SIZE};

/// The kind of domain that the simulated host's kernel runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dom0 {
    /// A PV dom0: failed frames are a SIGBUS.
    #[default]
    Pv,
    /// An x86 PVH dom0: failed frames read as 0xFF.
    Pvh,
    /// An Arm dom0: an access to a failed frame kills the process. Here it aborts, with an explanation on stderr.
    ///
    /// There are no PV guests, and no frames of Xen's own to be mapped.
    Arm,
}

/// What host to simulate; by default a PV dom0 with Linux 6.1, with this year's fixes.
///
/// ```
/// use xenmap::HostKind;
/// use xenmap::mock::{Dom0, HostConfig, MockHost};
///
/// let mut config = HostConfig::default();
/// config.dom0 = Dom0::Pvh;
/// config.kernel = (4, 14);
/// assert_eq!(MockHost::with_config(config).open()?.host_kind(), HostKind::AutoTranslated);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct HostConfig {
    /// The kind of domain.
    pub dom0: Dom0,
    /// The version of its Linux, 3.8 or later. It decides which ioctls there are (RESTRICT since 4.11, `MMAP_RESOURCE`
    /// since 4.18, asking for a resource's size since 5.12), when ENOENT is reported, and what a failed frame is.
    pub kernel: (u16, u16),
    /// Whether a part of a mapping can be unmapped, as before XSA-487 (April 2026). In an auto-translated domain that
    /// frees frames twice, so the simulated kernel panics.
    pub allows_splits: bool,
    /// `Some` if it is not the initial domain, with the domain that its handles are restricted to from the start
    /// (XSA-482), if any.
    pub unprivileged: Option<Option<Domid>>,
    /// The version of Xen, which decides what its toolstack's interfaces are (4.11 to 4.22; those of any other are of
    /// versions that no caller knows), and whether it knows how large a resource is (since 4.15).
    pub xen: (u16, u16),
    /// Whether /sys/hypervisor says what kind of domain it is.
    pub sysfs: bool,
    /// Bytes of a page of its kernel: 4096, and on Arm also 16 or 64 KiB. Frames have 4096 bytes all the same.
    pub page_size: usize,
    /// How many frames an auto-translated domain can map at a time, where each takes as much of its own memory (Linux
    /// without `XEN_UNPOPULATED_ALLOC`, as is Debian's 6.1 on Arm); beyond that mapping fails with ENOMEM. What the
    /// last page has room for counts, too. `None`: as many as it likes.
    pub dom0_free_frames: Option<usize>,
}

impl Default for HostConfig {
    fn default() -> HostConfig {
        HostConfig {
            dom0: Dom0::Pv,
            kernel: (6, 1),
            allows_splits: false,
            unprivileged: None,
            xen: (4, 17),
            sysfs: true,
            page_size: FRAME_SIZE,
            dom0_free_frames: None,
        }
    }
}
