//! A guest as a whole: its RAM map, and access by its own addresses.

// rustdoc lists the methods of `Guest` in the order of these modules: blank lines keep rustfmt from sorting them.
mod access;

mod ram_map;
mod scan;

mod vcpu;

mod registers;

mod page_tables;

mod pause;
mod populate;

mod arm_layout;
mod m2p;
mod p2m;
mod route;

use std::sync::{Arc, OnceLock};

pub(crate) use m2p::MachineFrames;
pub(crate) use page_tables::inclusive;
pub use page_tables::{AccessRights, PageTables, PagingMode, Translation, VirtualExtent, VirtualExtents};
pub use pause::Paused;
pub use ram_map::{Extent, FrameKind, RamMap, Search};
pub use registers::VcpuRegisters;
pub use scan::RamScan;

use crate::handle::ForeignMemory;
use crate::types::{Domid, GuestKind};
use p2m::P2m;

/// A guest, accessed by its own physical addresses.
///
/// The same address leads to the bytes that the guest's kernel sees there, whatever the kind of guest. A PV guest's
/// physical addresses are pseudo-physical: the guest's own table (its p2m) gives the machine frame for each frame. A
/// [`Pfn`](crate::Pfn) is a physical address divided by [`FRAME_SIZE`](crate::FRAME_SIZE).
///
/// A guest whose `maxmem` is larger than its `memory` is [populated on demand](crate::PopulateOnDemand). Mapping,
/// reading or writing a frame that it has not used yet allocates memory for that frame, and Xen crashes the guest when
/// it has no memory left for it. [`ram_map`](Guest::ram_map) and [`scan`](Guest::scan) check for this themselves; for
/// all other accesses, call [`check_populated`](Guest::check_populated) first.
///
/// A PV guest can put any frame into its p2m that Xen lets it map, not only its own memory. A stub domain can name
/// memory of the guest it serves; a guest with a passed-through device can name that device's registers, where a read
/// may have side effects.
///
/// Clones refer to the same guest and share its cached state.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// let memory = host.open()?;
/// let guest = Guest::open(&memory, domain.domid())?;
///
/// guest.write(0x1FFE, b"across two frames")?;
/// let mut text = [0; 17];
/// guest.read(0x1FFE, &mut text)?;
/// assert_eq!(&text, b"across two frames");
/// assert!(guest.read(0x10000, &mut text).is_err()); // past the end of its RAM
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Guest {
    memory: ForeignMemory,
    domid: Domid,
    kind: GuestKind,
    /// Whether the kind is known: if not, a guest that looks like an HVM guest may be a PVH guest.
    is_kind_certain: bool,
    /// A PV guest's p2m, found when it is first needed.
    p2m: Option<Arc<OnceLock<P2m>>>,
}
