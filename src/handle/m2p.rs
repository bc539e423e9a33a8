//! Xen's table from machine frames to pseudo-physical frames (the M2P), one for all PV guests.

#![expect(unsafe_code, reason = "asks Xen where its table is")]

use std::collections::BTreeMap;
use std::mem::{offset_of, take};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ForeignMemory;
use super::domctl::u64_at;
use crate::abi::{self, MachphysMfnList};
use crate::error::Result;
use crate::mapping::{Access, ForeignMapping};
use crate::types::{Domid, FRAME_SIZE, Gfn, Protection};

const ENTRY_BYTES: usize = size_of::<u64>();
/// The entries in an extent, a contiguous part of the table: 2 MiB.
const EXTENT_ENTRIES: u64 = (2 << 20) / ENTRY_BYTES as u64;
const FRAME_ENTRIES: u64 = (FRAME_SIZE / ENTRY_BYTES) as u64;

/// How many of the table's frames a [`MachineToPhys`] keeps mapped: the entries of 128 MiB of machine memory.
const MAX_FRAMES: usize = 64;

/// Where the table is. This does not change, except that Xen may add memory, and so entries.
#[derive(Debug, Default)]
pub(super) struct Extents {
    /// The last machine frame that has an entry.
    last: u64,
    /// The first frame of each extent; `None` in a gap.
    first_frames: Vec<Option<u64>>,
}

/// Reads the table, and keeps the frames that it has read mapped. What the entries say is read anew each time.
#[derive(Debug, Default)]
pub(crate) struct MachineToPhys {
    /// Not locked while a frame is mapped or unmapped.
    frames: Mutex<BTreeMap<Gfn, Arc<ForeignMapping>>>,
}

impl MachineToPhys {
    /// Returns the table's entry for a machine frame; `None` in a gap of the table or past its end.
    pub(crate) fn get(&self, memory: &ForeignMemory, mfn: Gfn) -> Result<Option<u64>> {
        let Some(frame) = memory.machine_to_phys_frame(mfn)? else { return Ok(None) };
        let mapped = self.frames().get(&frame).cloned();
        let mapping = match mapped {
            Some(mapping) => mapping,
            None => self.map(memory, frame)?,
        };
        let entry = (mfn.get() % FRAME_ENTRIES) as usize;
        mapping.view().read(entry * ENTRY_BYTES).map(Some)
    }

    fn map(&self, memory: &ForeignMemory, frame: Gfn) -> Result<Arc<ForeignMapping>> {
        let mapping = Arc::new(memory.map_foreign_batch(Domid::XEN, Protection::ReadOnly, &[frame])?);
        let mut frames = self.frames();
        let unmapped = if frames.len() == MAX_FRAMES { take(&mut *frames) } else { BTreeMap::new() };
        let replaced = frames.insert(frame, mapping.clone());
        drop(frames);
        drop((unmapped, replaced));
        Ok(mapping)
    }

    fn frames(&self) -> MutexGuard<'_, BTreeMap<Gfn, Arc<ForeignMapping>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ForeignMemory {
    /// Returns the frame of the table that has a machine frame's entry.
    fn machine_to_phys_frame(&self, mfn: Gfn) -> Result<Option<Gfn>> {
        let mut extents = self.shared.machine_to_phys.lock().unwrap_or_else(PoisonError::into_inner);
        // The frame number may be any, so check that the table reaches that far.
        if mfn.get() > extents.last || extents.first_frames.is_empty() {
            let last = self.maximum_ram_page()?;
            if last > extents.last {
                *extents = Extents { last, first_frames: self.machine_to_phys_extents(last / EXTENT_ENTRIES + 1)? };
            }
            if mfn.get() > last {
                return Ok(None);
            }
        }
        let index = usize::try_from(mfn.get() / EXTENT_ENTRIES).unwrap_or(usize::MAX);
        let Some(&Some(first)) = extents.first_frames.get(index) else { return Ok(None) };
        Ok(Some(Gfn::new(first + mfn.get() % EXTENT_ENTRIES / FRAME_ENTRIES)?))
    }

    /// Returns the first frame of each of the first extents (`XENMEM_machphys_mfn_list`).
    fn machine_to_phys_extents(&self, count: u64) -> Result<Vec<Option<u64>>> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let list = self.hypercall_buffer(ENTRY_BYTES * count as usize)?;
        let mut buffer = self.hypercall_buffer(size_of::<MachphysMfnList>())?;
        let (max, start) = (offset_of!(MachphysMfnList, max_extents), offset_of!(MachphysMfnList, extent_start));
        buffer.bytes_mut()[max..max + 4].copy_from_slice(&count.to_ne_bytes());
        buffer.bytes_mut()[start..start + 8].copy_from_slice(&list.address().to_ne_bytes());
        let arg = [u64::from(abi::XENMEM_MACHPHYS_MFN_LIST), buffer.address(), 0, 0, 0];
        // SAFETY: it reads and writes the structure, and writes at most `max_extents` words, for which the list is
        // large enough.
        unsafe { self.hypercall("XENMEM_machphys_mfn_list", abi::HYPERVISOR_MEMORY_OP.into(), arg) }?;
        // An entry that Xen has not written is 0. In a gap Xen repeats the extent before it (x86_64/mm.c, up to Xen
        // 4.22), although its header says 0.
        let mut before = 0;
        let extents = list.bytes().chunks_exact(ENTRY_BYTES).take(count as usize).map(|word| {
            let found = u64_at(word, 0);
            let is_gap = found == 0 || found == before;
            before = found;
            (!is_gap).then_some(found)
        });
        Ok(extents.collect())
    }
}
