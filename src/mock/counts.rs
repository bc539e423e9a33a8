//! How often the simulated kernel enters the hypervisor.

/// The number of times that a kernel would have entered Xen for what was mapped and unmapped, and for device models.
///
/// The figures follow what Linux 6.1 did on Xen 4.17. They leave out updates of page tables, which depend on the
/// addresses of a mapping.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{GuestKind, Protection};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 64);
/// drop(host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &guest.frames())?);
///
/// let cost = host.hypercalls();
/// assert_eq!((cost.mmu_update, cost.pte_writes), (4, 64));
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Hypercalls {
    /// `mmu_update`: a PV dom0 maps up to 16 frames with one, and needs one more after each failed frame.
    pub mmu_update: u64,
    /// `mmuext_op`: a PV dom0 flushes the TLB.
    pub mmuext_op: u64,
    /// Writes to page-table entries that trap into Xen: a PV dom0 unmaps each frame with one.
    pub pte_writes: u64,
    /// `memory_op`: an auto-translated dom0 maps each frame with one (each page, if its pages are larger), and unmaps
    /// each frame with one.
    pub memory_op: u64,
    /// `domctl` and `sysctl`: queries about domains and their frames.
    pub toolstack: u64,
    /// `dm_op`: device model operations.
    pub dm_op: u64,
    /// `event_channel_op`: events that were sent. What it takes to bind, unbind and unmask ports is not counted.
    pub event_channel_op: u64,
}

/// Frames that the kernel handles at a time.
const BLOCK: usize = 512;
/// Frames of one `mmu_update`.
const QUANTUM: usize = 16;
/// The most frames that a PV kernel flushes from the TLB one by one; for more it flushes everything.
const SINGLE_FLUSHES: usize = 33;

impl Hypercalls {
    /// Counts a batch that is mapped in a PV dom0; `failed` says which of its frames were not.
    pub(super) fn map_pv(&mut self, failed: &[bool]) {
        for block in failed.chunks(BLOCK) {
            self.mmuext_op += 1;
            for quantum in block.chunks(QUANTUM) {
                let (_, but_last) = quantum.split_last().unwrap_or((&false, &[]));
                self.mmu_update += 1 + but_last.iter().filter(|&&failed| failed).count() as u64;
            }
        }
    }

    /// Counts mapped frames that are unmapped in a PV dom0.
    pub(super) fn unmap_pv(&mut self, frames: usize) {
        self.pte_writes += frames as u64;
        self.mmuext_op += if frames <= SINGLE_FLUSHES { frames as u64 } else { 1 };
    }

    /// Counts what an auto-translated dom0 maps (its pages) or unmaps (frames, including failed ones).
    pub(super) fn translate(&mut self, count: usize) {
        self.memory_op += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::Hypercalls;

    #[test]
    fn mapping_in_a_pv_dom0_costs_as_much_as_measured() {
        let mut cost = Hypercalls::default();
        cost.map_pv(&[false; 512]);
        assert_eq!((cost.mmu_update, cost.mmuext_op), (32, 1));

        // 64 frames, 16 of them bad.
        let mut failed = [false; 64];
        for i in 0..16 {
            failed[4 * i] = true;
        }
        let mut cost = Hypercalls::default();
        cost.map_pv(&failed);
        assert_eq!((cost.mmu_update, cost.mmuext_op), (20, 1));
    }
}
