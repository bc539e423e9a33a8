//! The words of the field: domains, frames, protection.

mod number;
mod range;

pub use number::{Domid, Gfn, InvalidNumber, Pfn};
pub use range::{NumberRange, Numbers};

/// Bytes of a Xen frame: 4096 on every host, whatever the page size of the kernel.
pub const FRAME_SIZE: usize = 4096;

/// The most frames of one mapping: as many as 2^47 bytes of addresses hold, which is what a process has.
pub(crate) const MAX_FRAMES: usize = (1 << 47) / FRAME_SIZE;

/// What may be done through a mapping: nothing else ever, so matches on it can name both.
///
/// Map read-only unless you write: a PV guest's page tables can be mapped in no other way, and in a PV dom0 a
/// writable mapping keeps a PV guest from using the frame as a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// How this domain's own memory is managed, which decides what a mapping costs and what a failed frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostKind {
    /// A PV domain: mapping writes its page tables through the hypervisor.
    Pv,
    /// A PVH, HVM or Arm domain: Xen translates its physical addresses, and a mapping enters its physmap.
    AutoTranslated,
    /// It could not be learned; the stricter rules, those of an auto-translated domain, are followed.
    Unknown,
}

/// How a guest's memory is managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuestKind {
    /// A PV guest, whose frames are named by machine frame number.
    Pv,
    /// An HVM guest, whose frames are named by its own physical frame number; also a PVH guest where Xen does not tell
    /// which of the two it is.
    Hvm,
    /// A PVH guest: the same without emulated devices. On Arm every guest is one, and so is dom0.
    Pvh,
}

/// The architecture of a host, and so of its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    X86,
    Arm64,
}
