//! From a PV guest's machine frames to its pfns.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Guest, Translation};
use crate::error::{Error, Result};
use crate::handle::MachineToPhys;
use crate::types::{FRAME_SIZE, Gfn, GuestKind, NumberRange, Pfn};

const FRAME: u64 = FRAME_SIZE as u64;

/// The entries that are looked up in a guest's p2m at a time, and how many of these parts are remembered: those of 128
/// MiB of a guest's memory.
const PART: u64 = 512;
const MAX_PARTS: usize = 64;

/// Looks up frames of a PV guest, and remembers which of them the guest's p2m has, until it is dropped or told to
/// forget.
#[derive(Debug, Default)]
pub(crate) struct MachineFrames {
    m2p: MachineToPhys,
    /// Not locked while the p2m is read, because the guest may make that take long.
    p2m: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    parts: BTreeMap<u64, Vec<Option<Gfn>>>,
    /// How often all were forgotten.
    forgotten: u64,
}

impl MachineFrames {
    /// Returns the pfn of a machine frame; `None` if it has none, or the guest's p2m has another frame there.
    pub(crate) fn pfn_of(&self, guest: &Guest, mfn: Gfn) -> Result<Option<Pfn>> {
        let Some(pfn) = self.m2p.get(guest.memory(), mfn)?.and_then(|pfn| Pfn::new(pfn).ok()) else {
            return Ok(None);
        };
        // The domain that owns the frame can set its m2p entry to anything.
        let own = self.remembered(pfn) == Some(mfn) || self.look_up(guest, pfn)? == Some(mfn);
        Ok(own.then_some(pfn))
    }

    /// Turns the machine address, to which a virtual address leads, into a guest-physical one.
    pub(crate) fn physical_of(&self, guest: &Guest, address: u64, found: Translation) -> Result<Translation> {
        let foreign = Error::Translation {
            address,
            last: address | (FRAME - 1),
            reason: "it leads to a frame that is not the guest's own, by its p2m",
        };
        let pfn = self.pfn_of(guest, Gfn::containing(found.physical)?)?.ok_or(foreign)?;
        // Even in a large page, the next frame's pfn may be any.
        Ok(Translation { physical: pfn.address() + found.physical % FRAME, page_size: FRAME, ..found })
    }

    /// Returns the machine frame of a pfn, by the guest's p2m.
    pub(crate) fn gfn_of(&self, guest: &Guest, pfn: Pfn) -> Result<Option<Gfn>> {
        match self.remembered(pfn) {
            Some(gfn) => Ok(Some(gfn)),
            None => self.look_up(guest, pfn),
        }
    }

    fn remembered(&self, pfn: Pfn) -> Option<Gfn> {
        let (part, index) = place(pfn);
        self.p2m().parts.get(&part)?.get(index).copied().flatten()
    }

    /// Reads a part of the p2m, and remembers it.
    fn look_up(&self, guest: &Guest, pfn: Pfn) -> Result<Option<Gfn>> {
        let (part, index) = place(pfn);
        let forgotten = self.p2m().forgotten;
        let gfns = guest.gfns(NumberRange::try_from(part * PART..part * PART + PART)?)?;
        let found = gfns.get(index).copied().flatten();
        let mut p2m = self.p2m();
        // Otherwise, what was read may be from before.
        if p2m.forgotten == forgotten {
            if p2m.parts.len() == MAX_PARTS {
                p2m.parts.clear();
            }
            p2m.parts.insert(part, gfns);
        }
        Ok(found)
    }

    /// Forgets what the guest's p2m said.
    pub(crate) fn forget(&self) {
        let mut p2m = self.p2m();
        p2m.parts.clear();
        p2m.forgotten += 1;
    }

    fn p2m(&self) -> MutexGuard<'_, Remembered> {
        self.p2m.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the part that has a pfn, and the pfn's index in it.
fn place(pfn: Pfn) -> (u64, usize) {
    (pfn.get() / PART, (pfn.get() % PART) as usize)
}

impl Guest {
    /// Returns the pfn of a PV guest's machine frame, as its page tables name it; `None` if it has none, or the guest's
    /// p2m has another frame there. The inverse of [`gfns`](Guest::gfns). For any other kind of guest, it is the same
    /// number.
    ///
    /// For a PV guest, this maps a frame of Xen's table of machine frames, and two that have the guest's p2m.
    ///
    /// ```
    /// use xenmap::mock::{MockHost, PvKernel};
    /// use xenmap::{Gfn, Guest, GuestKind, Pfn};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Pv, 64);
    /// domain.start_kernel(&PvKernel::default());
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    ///
    /// let pfn = Pfn::new(19)?;
    /// let mfn = guest.gfns(pfn.range(1)?)?[0].expect("the guest has this frame");
    /// assert_eq!(guest.pfn_of(mfn)?, Some(pfn));
    /// assert_eq!(guest.pfn_of(Gfn::new(1)?)?, None);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`gfns`](Guest::gfns); [`Error::Hypercall`] if Xen does not say where its table is.
    pub fn pfn_of(&self, mfn: Gfn) -> Result<Option<Pfn>> {
        if self.kind != GuestKind::Pv {
            return Ok(Some(Pfn::new(mfn.get())?));
        }
        MachineFrames::default().pfn_of(self, mfn)
    }
}

#[cfg(all(test, feature = "mock"))]
#[expect(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use crate::error::Error;
    use crate::guest::{Guest, PageTables, PagingMode};
    use crate::handle::MachineToPhys;
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
        let pfns = picked.map(|gfn| MachineToPhys::default().get(&memory, gfn).unwrap());
        assert_eq!(pfns, [0, 1, 2, 3, 4].map(Some));
        assert_eq!(MachineToPhys::default().get(&memory, frames[1]).unwrap(), Some(u64::MAX), "not set yet");
        assert_eq!(
            MachineToPhys::default().get(&memory, Gfn::new(0).unwrap()).unwrap(),
            Some(0x5555_5555_5555_5555),
            "no RAM"
        );
        let last = Gfn::new(memory.maximum_ram_page().unwrap()).unwrap();
        assert_eq!(MachineToPhys::default().get(&memory, last).unwrap(), Some(u64::MAX), "Xen's own");
    }

    #[test]
    fn frame_that_was_freed_has_no_pfn() {
        let host = MockHost::new();
        let memory = host.open().unwrap();
        let domain = host.create_domain(GuestKind::Pv, 2);
        let frame = domain.frames()[1];
        domain.set_pfn(frame, 1);
        assert_eq!(MachineToPhys::default().get(&memory, frame).unwrap(), Some(1));
        domain.balloon_out(frame);
        assert_eq!(host.references(domain.domid()), 0, "counting references frees the frame");
        assert_eq!(MachineToPhys::default().get(&memory, frame).unwrap(), Some(u64::MAX));
    }

    #[test]
    fn arm_has_no_m2p() {
        let host = host(Dom0::Arm);
        let error = MachineToPhys::default().get(&host.open().unwrap(), Gfn::new(0x1_0000).unwrap()).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSYS);
    }
}
