//! Device model operations (`HYPERVISOR_dm_op`), through an ioctl that restricted handles may make too.

#![expect(unsafe_code, reason = "passes structures to Xen")]

use super::ForeignMemory;
use crate::abi;
use crate::error::{Error, Result};
use crate::types::{Domid, NumberRange, Pfn};

/// The structure of a device model operation.
///
/// # Safety
///
/// Any bytes are a valid value, and it contains no pointer that Xen would follow.
pub(crate) unsafe trait DmOpFields: Copy {}

// SAFETY: it consists of integers.
unsafe impl DmOpFields for abi::CreateIoreqServer {}
// SAFETY: it consists of integers.
unsafe impl DmOpFields for abi::DestroyIoreqServer {}
// SAFETY: it consists of integers.
unsafe impl DmOpFields for abi::InjectMsi {}
// SAFETY: it consists of integers.
unsafe impl DmOpFields for abi::IoreqServerInfo {}
// SAFETY: it consists of integers.
unsafe impl DmOpFields for abi::IoreqServerRange {}
// SAFETY: it consists of integers.
unsafe impl DmOpFields for abi::IoreqServerState {}
// SAFETY: it consists of integers.
unsafe impl DmOpFields for abi::IsaIrqLevel {}
// SAFETY: it consists of integers.
unsafe impl DmOpFields for abi::PciIntxLevel {}

/// The name and number of an operation.
pub(crate) type DmOpName = (&'static str, u32);

/// The most ranges that are reported as modified at a time: the kernel takes 4 KiB in a buffer.
pub(crate) const MAX_EXTENTS: usize = 4096 / size_of::<abi::ModifiedMemoryExtent>();

impl ForeignMemory {
    /// Makes a device model operation, and returns its structure as Xen leaves it.
    pub(crate) fn dm_op<T: DmOpFields>(&self, domid: Domid, (name, op): DmOpName, fields: T) -> Result<T> {
        let mut argument = abi::DmOpArgument { op, pad: 0, fields };
        let buffer = abi::DmOpBuffer { uptr: (&raw mut argument).cast(), size: size_of_val(&argument) };
        // SAFETY: Xen reads and writes only the buffer, a local variable in which any answer is valid (`DmOpFields`).
        let done = unsafe { self.backend().dm_op(domid, &[buffer]) };
        done.map_err(|source| Error::DmOp { name, domid, source })?;
        Ok(argument.fields)
    }

    /// Tells Xen that frames were modified, in at most [`MAX_EXTENTS`] ranges.
    pub(crate) fn modified_memory(&self, domid: Domid, pfns: &[NumberRange<Pfn>]) -> Result<()> {
        let extent = |pfns: &NumberRange<Pfn>| {
            // A longer range would be of more than 16 TiB.
            let nr = u32::try_from(pfns.len()).unwrap_or(u32::MAX);
            abi::ModifiedMemoryExtent { nr, pad: 0, first_pfn: pfns.numbers().start }
        };
        let mut extents: Vec<_> = pfns.iter().map(extent).collect();
        let nr_extents = u32::try_from(extents.len()).unwrap_or(u32::MAX);
        let fields = abi::ModifiedMemory { nr_extents, opaque: 0 };
        let mut argument = abi::DmOpArgument { op: abi::XEN_DMOP_MODIFIED_MEMORY, pad: 0, fields };
        let buffers = [
            abi::DmOpBuffer { uptr: (&raw mut argument).cast(), size: size_of_val(&argument) },
            abi::DmOpBuffer { uptr: extents.as_mut_ptr().cast(), size: size_of_val(&*extents) },
        ];
        // SAFETY: Xen reads and writes only the buffers, a local variable and a vector in which any bytes are valid.
        let done = unsafe { self.backend().dm_op(domid, &buffers) };
        done.map_err(|source| Error::DmOp { name: "XEN_DMOP_modified_memory", domid, source })
    }
}
