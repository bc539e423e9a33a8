//! The simulated hypervisor's table from machine frames to guest frames (the M2P).

#![expect(unsafe_code, reason = "reads and writes hypercall buffers")]

use std::mem::offset_of;

use super::config::Dom0;
use super::hypercalls::{copy_from, copy_to};
use super::machine::{Host, machine_frame};
use super::state::{FIRST_MFN, Page, State};
use crate::abi::{self, MachphysMfnList};
use crate::types::FRAME_SIZE;

/// The table consists of extents of 2 MiB.
const EXTENT_FRAMES: usize = (2 << 20) / FRAME_SIZE;
const EXTENT_ENTRIES: u64 = (2 << 20) / 8;

/// The entry of a frame that belongs to no guest (`INVALID_M2P_ENTRY` of xen/arch/x86/include/asm/mm.h).
const INVALID: u64 = u64::MAX;
/// An entry that was never set, such as one for a frame that is not RAM.
const NEVER_SET: u64 = 0x5555_5555_5555_5555;

impl Host {
    /// `XENMEM_machphys_mfn_list`.
    ///
    /// # Safety
    ///
    /// As for [`hypercall`](Host::hypercall).
    pub(super) unsafe fn machphys_mfn_list(&self, state: &mut State, arg: u64) -> Result<u64, i32> {
        if self.config.dom0 == Dom0::Arm {
            return Err(libc::ENOSYS);
        }
        // SAFETY: the caller's promise.
        let mut list: [u8; size_of::<MachphysMfnList>()] = unsafe { copy_from(state, arg) }?;
        let max = crate::handle::domctl::u32_at(&list, offset_of!(MachphysMfnList, max_extents));
        let array = crate::handle::domctl::u64_at(&list, offset_of!(MachphysMfnList, extent_start));
        self.create_machine_to_phys(state);
        let mut written: u32 = 0;
        for &page in state.m2p.iter().take(max as usize) {
            let mfn = machine_frame(page).get().to_ne_bytes();
            // SAFETY: the caller's promise.
            unsafe { copy_to(state, array + 8 * u64::from(written), &mfn) }?;
            written += 1;
        }
        list[offset_of!(MachphysMfnList, nr_extents)..][..4].copy_from_slice(&written.to_ne_bytes());
        // SAFETY: the caller's promise.
        unsafe { copy_to(state, arg, &list) }?;
        Ok(0)
    }

    /// Creates the table, or the rest of it, with entries for its own frames.
    fn create_machine_to_phys(&self, state: &mut State) {
        while state.m2p.len() as u64 * EXTENT_ENTRIES < FIRST_MFN + state.pages.len() as u64 {
            let first = self.grow(state, State::add_m2p_extent);
            self.write_extent(first, 0, &NEVER_SET.to_ne_bytes().repeat(EXTENT_FRAMES * FRAME_SIZE / 8));
        }
        self.update_machine_to_phys(state);
    }

    /// Writes the entries of all pages, as far as the table was created.
    pub(super) fn update_machine_to_phys(&self, state: &State) {
        for (&table, covered) in state.m2p.iter().zip((0..).step_by(EXTENT_FRAMES * FRAME_SIZE / 8)) {
            // The pages whose entries are in this extent.
            let page = |mfn: u64| usize::try_from(mfn.saturating_sub(FIRST_MFN)).unwrap_or(usize::MAX);
            let pages = page(covered)..page(covered + EXTENT_ENTRIES).min(state.pages.len());
            let Some(first) = pages.clone().next() else { continue };
            let pfn = |page: &Page| page.owner.and(page.pfn).unwrap_or(INVALID);
            let entries = state.pages[pages].iter().flat_map(|page| pfn(page).to_ne_bytes());
            let offset = (machine_frame(first).get() % EXTENT_ENTRIES) as usize * 8;
            self.write_extent(table, offset, &entries.collect::<Vec<u8>>());
        }
    }

    fn write_extent(&self, page: usize, offset: usize, entries: &[u8]) {
        let written = self.ram.write(page * FRAME_SIZE + offset, entries);
        written.unwrap_or_else(|e| panic!("the mock cannot write its memory: {e}"));
    }
}

impl State {
    /// Takes consecutive pages for another extent of the table, and returns the first.
    fn add_m2p_extent(&mut self) -> usize {
        let first = self.pages.len();
        let page = Page { owner: Some(abi::XEN_DOMID), allocated: true, ..Page::default() };
        self.pages.resize(first + EXTENT_FRAMES, page);
        self.m2p.push(first);
        first
    }
}
