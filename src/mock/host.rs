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
/// Frames of dom0.
const DOM0_FRAMES: usize = 4;

/// A simulated Xen host: the hypervisor, the kernel of the dom0 that maps, and the guests.
///
/// Clones are the same host. It exists until its last clone, handle, mapping and [`MockDomain`] are dropped.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, GuestKind, Protection};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 8);
/// guest.write(guest.frames()[3], 0, b"in frame 3");
///
/// let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &guest.frames())?;
/// assert!(mapping.view().eq_bytes(3 * 4096, b"in frame 3")?);
///
/// guest.destroy();
/// assert_eq!(host.zombies(), [guest.domid()]); // its frames are still mapped
/// drop(mapping);
/// assert_eq!(host.zombies(), []);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MockHost(pub(super) Arc<Host>);

impl Default for MockHost {
    fn default() -> MockHost {
        MockHost::new()
    }
}

impl MockHost {
    /// Creates a host whose dom0 is a PV domain.
    ///
    /// # Panics
    ///
    /// If this system has no memory files (`memfd_create`, Linux 3.17), or has pages larger than 4 KiB.
    #[must_use]
    pub fn new() -> MockHost {
        MockHost::with_config(HostConfig::default())
    }

    /// Creates a host of another kind.
    ///
    /// ```
    /// use xenmap::mock::{Dom0, HostConfig, MockHost};
    /// use xenmap::{GuestKind, Protection};
    ///
    /// let mut config = HostConfig::default();
    /// config.dom0 = Dom0::Arm;
    /// config.page_size = 0x4000; // 16 KiB, which is four frames
    /// let host = MockHost::with_config(config);
    /// let guest = host.create_domain(GuestKind::Pvh, 8);
    ///
    /// let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &guest.frames())?;
    /// assert_eq!(host.hypercalls().memory_op, 2); // one for each page
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If this system has no memory files (`memfd_create`, Linux 3.17), or has pages larger than 4 KiB; or if no such
    /// kernel exists: see [`page_size`](HostConfig::page_size).
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
            super::fatal::install_handler();
        }
        let host = Host::new(config);
        // On Arm Xen shows no frames of its own.
        let xen_frames = if host.config.dom0 == Dom0::Arm { 0 } else { XEN_FRAMES };
        host.grow(&mut host.lock(), |state| state.add_xen(xen_frames));
        host.grow(&mut host.lock(), |state| state.add_dom0(host.config.dom0, DOM0_FRAMES));
        MockHost(Arc::new(host))
    }

    /// Creates a guest with the lowest free number and this many frames of RAM, filled with zeros. The frames of an HVM
    /// or PVH guest are numbered from 0; those of a PV guest are machine frames.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, GuestKind};
    ///
    /// let guest = MockHost::new().create_domain(GuestKind::Hvm, 4);
    /// assert_eq!(guest.domid().get(), 1);
    /// assert_eq!(guest.frames()[3], Gfn::new(3)?);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If there is no memory or domain number left, or for a PV guest on an Arm host.
    #[must_use]
    pub fn create_domain(&self, kind: GuestKind, frames: usize) -> MockDomain {
        MockDomain::create(&self.0, kind, frames)
    }

    /// Creates a PVH guest whose RAM, from frame 0, is the content of a file. A hole of a sparse file that covers a
    /// whole frame is a hole in the guest. If the file ends inside a frame, the rest of that frame is zero.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    ///
    /// let file = std::fs::File::open(std::env::current_exe()?)?;
    /// let guest = MockHost::new().create_domain_from_file(&file)?;
    /// assert_eq!(guest.read(guest.frames()[0], 0, 4), b"\x7FELF");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error with which the file cannot be read.
    ///
    /// # Panics
    ///
    /// As [`create_domain`](MockHost::create_domain).
    pub fn create_domain_from_file(&self, file: &File) -> io::Result<MockDomain> {
        let guest = self.create_domain(GuestKind::Pvh, 0);
        guest.load_file(file)?;
        Ok(guest)
    }

    /// Creates a PV guest whose [kernel](super::PvKernel) is running, and whose pseudo-physical memory is the content
    /// of a file. The kernel's tables follow the content.
    ///
    /// # Errors
    ///
    /// The error with which the file cannot be read.
    ///
    /// # Panics
    ///
    /// As [`create_domain`](MockHost::create_domain).
    pub fn create_pv_domain_from_file(&self, file: &File) -> io::Result<MockDomain> {
        let guest = self.create_domain(GuestKind::Pv, 0);
        guest.load_pv_file(file)?;
        Ok(guest)
    }

    /// Returns the guest with this number, unless it has been destroyed.
    #[must_use]
    pub fn domain(&self, domid: Domid) -> Option<MockDomain> {
        let state = self.0.lock();
        let alive = state.domains.get(&domid.get()).is_some_and(|domain| !domain.dying);
        (alive && domid != Domid::XEN && domid.get() != DOM0).then(|| MockDomain::new(Arc::clone(&self.0), domid))
    }

    /// Opens the simulated device, as [`ForeignMemory::open`] does the real one.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if such a [fault](Fault::Open) is due.
    pub fn open(&self) -> Result<ForeignMemory> {
        self.open_for(Protection::ReadWrite)
    }

    /// Opens the simulated device read-only: writable mappings are refused (EACCES).
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
        // The standard library retries after EINTR.
        let failed = std::iter::repeat_with(strike).find(|errno| *errno != Some(libc::EINTR)).flatten();
        if let Some(errno) = failed {
            return Err(Error::Open {
                path: "(the mock's device)".into(),
                source: io::Error::from_raw_os_error(errno),
            });
        }
        Ok(ForeignMemory::with_backend(MockDevice::new(Arc::clone(&self.0), access)))
    }

    /// Makes the next call that can fail in this way fail.
    ///
    /// ```
    /// use xenmap::GuestKind;
    /// use xenmap::mock::{Fault, MockHost};
    ///
    /// let host = MockHost::new();
    /// host.inject(Fault::Open(libc::EACCES));
    /// assert_eq!(host.open().unwrap_err().errno(), libc::EACCES);
    /// assert!(host.open().is_ok());
    /// ```
    pub fn inject(&self, fault: Fault) {
        self.inject_after(0, fault);
    }

    /// Like [`inject`](MockHost::inject), but lets `calls` such calls succeed first.
    ///
    /// ```
    /// use xenmap::mock::{Fault, MockHost};
    ///
    /// let host = MockHost::new();
    /// host.inject_after(2, Fault::Open(libc::ENOENT));
    /// assert_eq!([(); 4].map(|()| host.open().is_ok()), [true, true, false, true]);
    /// ```
    pub fn inject_after(&self, calls: usize, fault: Fault) {
        self.0.lock().faults.push(calls, fault);
    }

    /// Returns the number of references to a domain's frames: each mapping of each frame is one.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Hvm, 8);
    /// let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &guest.frames()[..3])?;
    /// assert_eq!(host.references(guest.domid()), 3);
    /// drop(mapping);
    /// assert_eq!(host.references(guest.domid()), 0);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If a mapping was split, moved, or had its protection changed. On Xen, that loses or leaks references, or worse.
    #[must_use]
    pub fn references(&self, domid: Domid) -> usize {
        let state = &mut self.0.lock();
        let references = self.0.reclaim(state);
        state.pages_of(domid).map(|page| references.of(page)).sum()
    }

    /// Returns the domains that have been destroyed, but still exist because some of their frames are mapped.
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

    /// Returns what all mapping and unmapping so far, and all device models, would have cost on Xen.
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

    /// Returns the frames that Xen itself shows under [`Domid::XEN`]; on Arm there are none.
    #[must_use]
    pub fn xen_frames(&self) -> Vec<Gfn> {
        self.0.lock().pages_of(Domid::XEN).map(machine_frame).collect()
    }

    /// Returns the kind of domain in which the host's kernel runs.
    #[must_use]
    pub fn dom0(&self) -> Dom0 {
        self.0.config.dom0
    }

    /// Returns the size of the kernel's pages in bytes.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.0.config.page_size
    }
}
