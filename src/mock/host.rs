//! The simulated host as a whole.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::config::{Dom0, HostConfig};
use super::counts::Hypercalls;
use super::domain::MockDomain;
use super::driver::MockDevice;
use super::fault::Fault;
use super::machine::{Host, machine_frame};
use super::state::DOM0;
use crate::error::{Error, Result};
use crate::handle::ForeignMemory;
use crate::types::{Domid, Gfn, GuestKind, Protection};

/// Frames that Xen shows read-only under `DOMID_XEN`.
const XEN_FRAMES: usize = 4;
/// Frames that the domain we are has.
const DOM0_FRAMES: usize = 4;

/// A simulated Xen host, with its hypervisor, the kernel that maps, and its guests.
///
/// Clones are the same host. It goes when the last clone, handle, mapping and domain of it has gone.
#[derive(Clone, Debug)]
pub struct MockHost(pub(super) Arc<Host>);

impl Default for MockHost {
    fn default() -> MockHost {
        MockHost::new()
    }
}

impl MockHost {
    /// A host whose dom0 is a PV domain.
    ///
    /// # Panics
    ///
    /// If this system has no memory files (`memfd_create`, Linux 3.17), or pages larger than 4 KiB.
    #[must_use]
    pub fn new() -> MockHost {
        MockHost::with_config(HostConfig::default())
    }

    /// A host of another kind.
    ///
    /// # Panics
    ///
    /// If this system has no memory files (`memfd_create`, Linux 3.17), or pages larger than 4 KiB; or if there is no
    /// such kernel: [`page_size`](HostConfig::page_size).
    #[must_use]
    pub fn with_config(config: HostConfig) -> MockHost {
        assert_eq!(
            crate::backend::page_size(),
            crate::types::FRAME_SIZE,
            "the mock maps single frames of a file, which needs a kernel with pages of 4 KiB"
        );
        let page_sizes: &[usize] = if config.dom0 == Dom0::Arm { &[0x1000, 0x4000, 0x1_0000] } else { &[0x1000] };
        assert!(page_sizes.contains(&config.page_size), "no {:?} kernel has such pages", config.dom0);
        if config.dom0 == Dom0::Arm {
            super::fatal::watch();
        }
        let host = Host::new(config);
        // On Arm Xen shows nothing of its own.
        let xen_frames = if host.config.dom0 == Dom0::Arm { 0 } else { XEN_FRAMES };
        host.grow(&mut host.lock(), |state| state.add_xen(xen_frames));
        host.grow(&mut host.lock(), |state| state.add_dom0(host.config.dom0, DOM0_FRAMES));
        MockHost(Arc::new(host))
    }

    /// The kind of domain that its kernel runs in.
    #[must_use]
    pub fn dom0(&self) -> Dom0 {
        self.0.config.dom0
    }

    /// Bytes of a page of its kernel.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.0.config.page_size
    }

    /// Opens the simulated device, as [`ForeignMemory::open`] does the real one.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if such a [fault](Fault::Open) is due.
    pub fn open(&self) -> Result<ForeignMemory> {
        self.open_for(Protection::ReadWrite)
    }

    /// Opens the simulated device for reading only; writable mappings are refused (EACCES).
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if such a [fault](Fault::Open) is due.
    pub fn open_read_only(&self) -> Result<ForeignMemory> {
        self.open_for(Protection::ReadOnly)
    }

    fn open_for(&self, access: Protection) -> Result<ForeignMemory> {
        let fault = |fault| if let Fault::Open(errno) = fault { Some(errno) } else { None };
        let strike = || self.0.lock().faults.strike(fault);
        // The standard library tries again after EINTR, and so does this.
        let failed = std::iter::repeat_with(strike).find(|errno| *errno != Some(libc::EINTR)).flatten();
        if let Some(errno) = failed {
            return Err(Error::Open {
                path: "(the mock's device)".into(),
                source: io::Error::from_raw_os_error(errno),
            });
        }
        Ok(ForeignMemory::with_backend(MockDevice::new(Arc::clone(&self.0), access)))
    }

    /// Creates a guest with the lowest free number and so many frames of RAM, all zero. An HVM (or PVH) guest's are
    /// numbered from 0 on; a PV guest's are machine frames.
    ///
    /// # Panics
    ///
    /// If there is no memory left, or no number; or for a PV guest, if the host is an Arm one.
    #[must_use]
    pub fn create_domain(&self, kind: GuestKind, frames: usize) -> MockDomain {
        MockDomain::create(&self.0, kind, frames)
    }

    /// The guest with this number, unless it has been destroyed.
    #[must_use]
    pub fn domain(&self, domid: Domid) -> Option<MockDomain> {
        let state = self.0.lock();
        let alive = state.domains.get(&domid.get()).is_some_and(|domain| !domain.dying);
        (alive && domid != Domid::XEN && domid.get() != DOM0).then(|| MockDomain::new(Arc::clone(&self.0), domid))
    }

    /// Creates a PVH guest whose RAM is what a file holds, from frame 0 on. A hole of a sparse file that covers a
    /// whole frame is a hole in the guest; what is missing of the last frame is zero.
    ///
    /// # Errors
    ///
    /// What reading the file says.
    ///
    /// # Panics
    ///
    /// As [`create_domain`](MockHost::create_domain).
    pub fn create_domain_from_file(&self, file: &File) -> io::Result<MockDomain> {
        let guest = self.create_domain(GuestKind::Pvh, 0);
        guest.load_file(file)?;
        Ok(guest)
    }

    /// The same for a PV guest, with a [kernel](super::PvKernel) that has started: what the file holds is at its
    /// pseudo-physical addresses. Its tables follow.
    ///
    /// # Errors
    ///
    /// What reading the file says.
    ///
    /// # Panics
    ///
    /// As [`create_domain`](MockHost::create_domain).
    pub fn create_pv_domain_from_file(&self, file: &File) -> io::Result<MockDomain> {
        let guest = self.create_domain(GuestKind::Pv, 0);
        guest.load_pv_file(file)?;
        Ok(guest)
    }

    /// Frames that Xen itself shows, under [`Domid::XEN`]; on Arm none.
    #[must_use]
    pub fn xen_frames(&self) -> Vec<Gfn> {
        self.0.lock().pages_of(Domid::XEN).map(machine_frame).collect()
    }

    /// How many references to a domain's frames there are: each mapping of each frame is one.
    ///
    /// # Panics
    ///
    /// If a mapping was split, reprotected or moved: on Xen that loses or leaks references, or worse.
    #[must_use]
    pub fn references(&self, domid: Domid) -> usize {
        let state = &mut self.0.lock();
        let references = self.0.reclaim(state);
        state.pages_of(domid).map(|page| references.of(page)).sum()
    }

    /// Domains that have been destroyed, but live on because their frames are mapped.
    ///
    /// # Panics
    ///
    /// As [`references`](MockHost::references).
    #[must_use]
    pub fn zombies(&self) -> Vec<Domid> {
        let state = &mut self.0.lock();
        self.0.reclaim(state);
        let dying = state.domains.iter().filter(|(_, domain)| domain.dying);
        dying.filter_map(|(&domid, _)| Domid::new(domid).ok()).collect()
    }

    /// What all mapping and unmapping so far would have cost on Xen.
    ///
    /// # Panics
    ///
    /// As [`references`](MockHost::references).
    #[must_use]
    pub fn hypercalls(&self) -> Hypercalls {
        let state = &mut self.0.lock();
        self.0.reclaim(state);
        state.hypercalls
    }

    /// Has the next call fail that can fail in this way.
    pub fn inject(&self, fault: Fault) {
        self.inject_after(0, fault);
    }

    /// The same, after so many calls that go well.
    pub fn inject_after(&self, calls: usize, fault: Fault) {
        self.0.lock().faults.push(calls, fault);
    }
}
