//! The configuration of a simulated host.

use crate::types::{Domid, FRAME_SIZE};

/// The kind of domain in which the simulated kernel runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dom0 {
    /// A PV dom0: touching a failed frame raises SIGBUS.
    #[default]
    Pv,
    /// An x86 PVH dom0: failed frames read as 0xFF.
    Pvh,
    /// An Arm dom0: touching a failed frame kills the process. The mock aborts it, with an explanation on stderr.
    ///
    /// There are no PV guests, and no frames of Xen's own that can be mapped.
    Arm,
}

/// The host to simulate. By default it is a PV dom0 with Linux 6.1, including the fix of XSA-487, on Xen 4.17.
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
    /// The version of Linux, 3.8 or later. It decides which ioctls exist (RESTRICT since 4.11, `MMAP_RESOURCE` since
    /// 4.18, the query for a resource's size since 5.12), when the call as a whole fails with ENOENT, and what a failed
    /// frame is.
    pub kernel: (u16, u16),
    /// Whether a part of a mapping can be unmapped, as before XSA-487 (April 2026). An auto-translated domain then
    /// frees frames twice, so the simulated kernel panics.
    pub allows_splits: bool,
    /// `Some` unless this is the initial domain. The inner value is the domain to which its handles are restricted from
    /// the start (XSA-482); with `None` there is no such domain, and they can map nothing.
    pub unprivileged: Option<Option<Domid>>,
    /// The version of Xen. It decides the versions of the toolstack's interfaces (4.11 to 4.22; for any other, versions
    /// that no caller knows), and whether Xen reports the size of a resource (since 4.15).
    pub xen: (u16, u16),
    /// Whether /sys/hypervisor shows the kind of domain.
    pub sysfs: bool,
    /// The size of the kernel's pages in bytes: 4096, or on Arm also 16 or 64 KiB. A frame always has 4096 bytes.
    pub page_size: usize,
    /// The number of frames that an auto-translated domain can map at a time, for kernels that back each with a frame
    /// of the domain's own memory (Linux without `XEN_UNPOPULATED_ALLOC`, such as Debian's 6.1 on Arm). Beyond it,
    /// mapping fails with ENOMEM. Frames are counted in whole pages of the kernel. `None` means no limit.
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
