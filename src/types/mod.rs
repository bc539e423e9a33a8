//! The basic types: domain and frame numbers, protection, and the kinds of hosts and guests.

mod number;
mod range;

pub use number::{Domid, Gfn, InvalidNumber, Pfn};
pub use range::{NumberRange, Numbers};

/// The size of a Xen frame in bytes: 4096 on every host, whatever the kernel's page size.
pub const FRAME_SIZE: usize = 4096;

/// The most frames in one mapping: those that fit into 2^47 bytes, the address space of a process.
pub(crate) const MAX_FRAMES: usize = (1 << 47) / FRAME_SIZE;

/// Whether a mapping can only be read, or also written.
///
/// Map read-only unless you write: a PV guest's page tables cannot be mapped writable, and in a PV dom0 a writable
/// mapping keeps a PV guest from using the frame as a page table.
///
/// There will never be a third variant, so a `match` can name both.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, Error, GuestKind, Protection};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4);
/// let (memory, gfns) = (host.open()?, guest.frames());
/// let mapping = memory.map_foreign_batch(guest.domid(), Protection::ReadOnly, &gfns)?;
///
/// assert_eq!(mapping.view().read::<u32>(0)?, 0);
/// assert!(matches!(mapping.view().write(0, 7_u32), Err(Error::ReadOnly { offset: 0 })));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// The mapping can be read.
    ReadOnly,
    /// The mapping can be read and written.
    ReadWrite,
}

/// How the memory of the domain that we run in is managed.
///
/// This decides what a mapping costs, and what happens if a frame that failed to map is touched.
///
/// ```
/// use xenmap::HostKind;
/// use xenmap::mock::MockHost;
///
/// assert_eq!(MockHost::new().open()?.host_kind(), HostKind::Pv);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostKind {
    /// A PV domain: mapping writes its page tables through the hypervisor.
    Pv,
    /// A PVH, HVM or Arm domain: Xen translates its physical addresses, and a mapping enters its physmap.
    AutoTranslated,
    /// The kind could not be determined. The crate then follows the stricter rules, those for an auto-translated
    /// domain.
    Unknown,
}

/// How a guest's memory is managed.
///
/// ```
/// use xenmap::GuestKind;
/// use xenmap::mock::MockHost;
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Pvh, 16);
/// assert_eq!(host.open()?.guest_kind(guest.domid())?, GuestKind::Pvh);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuestKind {
    /// A PV guest. Its frames are mapped by machine frame number.
    Pv,
    /// An HVM guest. Its frames are mapped by the guest's own physical frame number. A PVH guest is reported as HVM if
    /// Xen does not tell the two apart.
    Hvm,
    /// A PVH guest: like HVM, but without emulated devices. On Arm every guest is one, and so is dom0.
    Pvh,
}

/// The architecture of a host, and so of its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    X86,
    Arm64,
}
