//! From a PV guest's machine frames to its pfns.

use super::Guest;
use crate::error::Result;
use crate::types::{Gfn, Pfn};

impl Guest {
    /// Returns the pfn of a PV guest's machine frame; `None` if it has none, or the guest's p2m has another frame
    /// there.
    ///
    /// Costs two hypercalls, a mapping, and a p2m lookup.
    pub(super) fn pfn_of(&self, mfn: Gfn) -> Result<Option<Pfn>> {
        let Some(pfn) = self.memory.machine_to_phys(mfn)?.and_then(|pfn| Pfn::new(pfn).ok()) else {
            return Ok(None);
        };
        // The domain that owns the frame can set its m2p entry to anything.
        let own = self.gfns(pfn.range(1)?)?.first() == Some(&Some(mfn));
        Ok(own.then_some(pfn))
    }
}

#[cfg(all(test, feature = "mock"))]
#[expect(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use crate::error::Error;
    use crate::guest::{Guest, PageTables, PagingMode};
    use crate::mock::{Dom0, HostConfig, MockDomain, MockHost};
    use crate::types::{Gfn, GuestKind};

    fn host(dom0: Dom0) -> MockHost {
        MockHost::with_config(HostConfig { dom0, ..HostConfig::default() })
    }

    /// Runs a test in each kind of x86 dom0, with a PV guest in whose p2m each pfn is its mfn.
    fn with_identical_guest(test: impl Fn(&Guest, &MockDomain)) {
        for host in [Dom0::Pv, Dom0::Pvh].map(host) {
            let memory = host.open().unwrap();
            let domain = host.create_domain(GuestKind::Pv, 8);
            test(&Guest { p2m: None, ..Guest::with_kind(&memory, domain.domid(), GuestKind::Pv) }, &domain);
        }
    }

    /// Turns the guest's first frames into a PV guest's page tables: they hold machine frames, and are pinned.
    fn map_at_zero(domain: &MockDomain, mode: PagingMode, target: Gfn) -> PageTables {
        let levels = if mode == PagingMode::Pae { 3 } else { 4 };
        let tables = &domain.frames()[..levels];
        let entries = tables[1..].iter().chain([&target]).map(|gfn| gfn.get() << 12 | 1);
        for (&table, entry) in tables.iter().zip(entries) {
            domain.write(table, 0, &entry.to_ne_bytes());
            domain.pin_page_table(table).unwrap();
        }
        PageTables::X86 { cr3: tables[0].get() << 12, mode }
    }

    #[test]
    fn machine_frames_become_pfns() {
        with_identical_guest(|guest, domain| {
            let frames = domain.frames();
            for &gfn in &frames {
                domain.set_pfn(gfn, gfn.get());
            }
            for mode in [PagingMode::Pae, PagingMode::FourLevels] {
                let tables = map_at_zero(domain, mode, frames[6]);
                assert_eq!(guest.translate(&tables, 0x123).unwrap(), frames[6].get() << 12 | 0x123);
                guest.write_virtual(&tables, 0xFFE, b"ab").unwrap();
                assert_eq!(domain.read(frames[6], 0xFFE, 2), b"ab");
                // Virtual address 0x1000 is not mapped.
                assert!(matches!(guest.read_virtual(&tables, 0xFFE, &mut [0; 3]), Err(Error::Translation { .. })));
            }
        });
    }

    #[test]
    fn frame_that_is_not_the_guests_own_by_its_p2m_is_an_error() {
        with_identical_guest(|guest, domain| {
            let frames = domain.frames();
            let tables = map_at_zero(domain, PagingMode::FourLevels, frames[6]);
            // The m2p entry is unset, then that of another frame, then two that are out of range.
            for pfn in [None, Some(frames[5].get()), Some(Gfn::MAX.get() + 1), Some(u64::MAX - 1)] {
                if let Some(pfn) = pfn {
                    domain.set_pfn(frames[6], pfn);
                }
                let reason = match guest.translate(&tables, 0) {
                    Err(Error::Translation { address: 0, reason, .. }) => reason,
                    other => panic!("{other:x?}"),
                };
                assert!(reason.contains("not the guest's own"), "{pfn:x?}: {reason}");
            }
        });
    }

    #[test]
    fn machine_frame_that_does_not_exist_is_an_error() {
        with_identical_guest(|guest, domain| {
            // Below the RAM, past its end, and the last frame that an entry can name.
            for mfn in [0, 1, 0xFFFF, 0x1_0000_0000, Gfn::MAX.get()] {
                let tables = map_at_zero(domain, PagingMode::FourLevels, Gfn::new(mfn).unwrap());
                let error = guest.translate(&tables, 0).unwrap_err();
                assert!(matches!(error, Error::Translation { .. }), "{mfn:#x}: {error}");
            }
        });
    }

    #[test]
    fn m2p_covers_all_memory_and_itself() {
        let host = MockHost::new();
        let memory = host.open().unwrap();
        // More frames than one extent of the table covers.
        let domain = host.create_domain(GuestKind::Pv, 0x4_0000);
        let frames = domain.frames();
        let picked = [frames[0], frames[0x1_FFFF], frames[0x2_FFFF], frames[0x3_0000], frames[0x3_FFFF]];
        for (pfn, gfn) in picked.into_iter().enumerate() {
            domain.set_pfn(gfn, pfn as u64);
        }
        let pfns = picked.map(|gfn| memory.machine_to_phys(gfn).unwrap());
        assert_eq!(pfns, [0, 1, 2, 3, 4].map(Some));
        assert_eq!(memory.machine_to_phys(frames[1]).unwrap(), Some(u64::MAX), "not set yet");
        assert_eq!(memory.machine_to_phys(Gfn::new(0).unwrap()).unwrap(), Some(0x5555_5555_5555_5555), "no RAM");
        let last = Gfn::new(memory.maximum_ram_page().unwrap()).unwrap();
        assert_eq!(memory.machine_to_phys(last).unwrap(), Some(u64::MAX), "Xen's own");
    }

    #[test]
    fn frame_that_was_freed_has_no_pfn() {
        let host = MockHost::new();
        let memory = host.open().unwrap();
        let domain = host.create_domain(GuestKind::Pv, 2);
        let frame = domain.frames()[1];
        domain.set_pfn(frame, 1);
        assert_eq!(memory.machine_to_phys(frame).unwrap(), Some(1));
        domain.balloon_out(frame);
        assert_eq!(host.references(domain.domid()), 0, "counting references frees the frame");
        assert_eq!(memory.machine_to_phys(frame).unwrap(), Some(u64::MAX));
    }

    #[test]
    fn arm_has_no_m2p() {
        let host = host(Dom0::Arm);
        let error = host.open().unwrap().machine_to_phys(Gfn::new(0x1_0000).unwrap()).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSYS);
    }
}
