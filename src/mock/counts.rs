//! How often the simulated hypervisor is entered.

/// How often a kernel would have entered Xen for what was mapped and unmapped.
///
/// Counted by what Linux 6.1 on Xen 4.17 was seen to do, without what depends on where in the address space a mapping
/// lies (page tables).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Hypercalls {
    /// `mmu_update`: a PV dom0 maps 16 frames with one, and takes one more after each failed frame.
    pub mmu_update: u64,
    /// `mmuext_op`: a PV dom0 flushes the TLB.
    pub mmuext_op: u64,
    /// Writes to page-table entries that trap into Xen: a PV dom0 unmaps each frame with one.
    pub pte_writes: u64,
    /// `memory_op`: an auto-translated dom0 maps each frame with one (if its pages are larger, all of a page), and
    /// unmaps each with one.
    pub memory_op: u64,
    /// `domctl` and `sysctl`: the toolstack's questions about domains and their frames.
    pub toolstack: u64,
}

/// Frames that the kernel takes on at a time.
const BLOCK: usize = 512;
/// Frames of one `mmu_update`.
const QUANTUM: usize = 16;
/// Frames up to which a PV kernel flushes each from the TLB instead of all.
const SINGLE_FLUSHES: usize = 33;

impl Hypercalls {
    /// A batch is mapped in a PV dom0; `failed` says which frames were not.
    pub(super) fn map_pv(&mut self, failed: &[bool]) {
        for block in failed.chunks(BLOCK) {
            self.mmuext_op += 1;
            for quantum in block.chunks(QUANTUM) {
                let (_, but_last) = quantum.split_last().unwrap_or((&false, &[]));
                self.mmu_update += 1 + but_last.iter().filter(|&&failed| failed).count() as u64;
            }
        }
    }

    /// Frames that were mapped are unmapped in a PV dom0.
    pub(super) fn unmap_pv(&mut self, frames: usize) {
        self.pte_writes += frames as u64;
        self.mmuext_op += if frames <= SINGLE_FLUSHES { frames as u64 } else { 1 };
    }

    /// Frames, failed ones included, are unmapped in an auto-translated dom0; or mapped there, and these are its pages.
    pub(super) fn translate(&mut self, count: usize) {
        self.memory_op += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::Hypercalls;

    #[test]
    fn mapping_in_a_pv_dom0_costs_what_was_measured() {
        let mut cost = Hypercalls::default();
        cost.map_pv(&[false; 512]);
        assert_eq!((cost.mmu_update, cost.mmuext_op), (32, 1));

        // 64 frames of which 16 are bad.
        let mut failed = [false; 64];
        for i in 0..16 {
            failed[4 * i] = true;
        }
        let mut cost = Hypercalls::default();
        cost.map_pv(&failed);
        assert_eq!((cost.mmu_update, cost.mmuext_op), (20, 1));
    }
}
