//! Xen's table from machine frames to pseudo-physical frames (the M2P), one for all PV guests.

#![expect(unsafe_code, reason = "asks Xen where its table is")]

use std::mem::offset_of;

use super::ForeignMemory;
use super::domctl::u64_at;
use crate::abi::{self, MachphysMfnList};
use crate::error::Result;
use crate::mapping::Access;
use crate::types::{Domid, FRAME_SIZE, Gfn, Protection};

const ENTRY_BYTES: usize = size_of::<u64>();
/// The entries in an extent, a contiguous part of the table: 2 MiB.
const EXTENT_ENTRIES: u64 = (2 << 20) / ENTRY_BYTES as u64;
const FRAME_ENTRIES: u64 = (FRAME_SIZE / ENTRY_BYTES) as u64;

impl ForeignMemory {
    /// Returns the table's entry for a machine frame; `None` in a gap of the table or past its end.
    pub(crate) fn machine_to_phys(&self, mfn: Gfn) -> Result<Option<u64>> {
        // The frame number may be any, so check that the table reaches that far.
        if mfn.get() > self.maximum_ram_page()? {
            return Ok(None);
        }
        let Some(extent) = self.machine_to_phys_extent(mfn.get() / EXTENT_ENTRIES)? else { return Ok(None) };
        let frame = Gfn::new(extent + mfn.get() % EXTENT_ENTRIES / FRAME_ENTRIES)?;
        let mapping = self.map_foreign_batch(Domid::XEN, Protection::ReadOnly, &[frame])?;
        let entry = (mfn.get() % FRAME_ENTRIES) as usize;
        mapping.view().read(entry * ENTRY_BYTES).map(Some)
    }

    /// Returns the first frame of an extent. Xen can only list all extents from the first up to this one
    /// (`XENMEM_machphys_mfn_list`).
    fn machine_to_phys_extent(&self, index: u64) -> Result<Option<u64>> {
        let Ok(index) = u32::try_from(index) else { return Ok(None) };
        let list = self.hypercall_buffer(ENTRY_BYTES * (index as usize + 1))?;
        let mut buffer = self.hypercall_buffer(size_of::<MachphysMfnList>())?;
        let (max, start) = (offset_of!(MachphysMfnList, max_extents), offset_of!(MachphysMfnList, extent_start));
        buffer.bytes_mut()[max..max + 4].copy_from_slice(&(index + 1).to_ne_bytes());
        buffer.bytes_mut()[start..start + 8].copy_from_slice(&list.address().to_ne_bytes());
        let arg = [u64::from(abi::XENMEM_MACHPHYS_MFN_LIST), buffer.address(), 0, 0, 0];
        // SAFETY: it reads and writes the structure, and writes at most `max_extents` words, for which the list is
        // large enough.
        unsafe { self.hypercall("XENMEM_machphys_mfn_list", abi::HYPERVISOR_MEMORY_OP.into(), arg) }?;
        // An entry that Xen has not written is 0. In a gap Xen repeats the extent before it (x86_64/mm.c, up to Xen
        // 4.22), although its header says 0.
        let extent = |index: usize| u64_at(list.bytes(), ENTRY_BYTES * index);
        let (before, found) = (index.checked_sub(1).map(|before| extent(before as usize)), extent(index as usize));
        Ok(Some(found).filter(|&found| found != 0 && before != Some(found)))
    }
}
