//! The simulated host as a whole.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::{Dom0, HostConfig};
use super::domain::MockDomain;
use super::driver::MockDevice;
use super::fault::Fault;
use super::hypercalls::Hypercalls;
use super::memory::MemoryFile;
use super::references::References;
use super::state::{DOM0, Domain, FIRST_MFN, Frame, State};
use crate::abi;
use crate::backend::ProcessId;
use crate::error::{Error, Result};
use crate::handle::ForeignMemory;
use crate::types::{Architecture, Domid, Gfn, GuestKind, HostKind, Protection};

/// Frames that Xen shows read-only under `DOMID_XEN`.
const XEN_FRAMES: usize = 4;
/// Frames that the domain we are has.
const DOM0_FRAMES: usize = 4;

/// A simulated Xen host, with its hypervisor, the kernel that maps, and its guests.
///
/// Clones are the same host. It goes when the last clone, handle, mapping and domain of it has gone.
#[derive(Clone, Debug)]
pub struct MockHost(pub(super) Arc<Host>);

#[derive(Debug)]
pub(super) struct Host {
    pub(super) config: HostConfig,
    pub(super) ram: MemoryFile,
    pub(super) empty: MemoryFile,
    pub(super) junk: MemoryFile,
    pub(super) fatal: MemoryFile,
    /// The process that made it.
    home: ProcessId,
    state: Mutex<State>,
}

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
        let file = |made: io::Result<MemoryFile>| made.unwrap_or_else(|e| panic!("the mock needs memory files: {e}"));
        let host = Host {
            config,
            ram: file(MemoryFile::ram()),
            empty: file(MemoryFile::empty()),
            junk: file(MemoryFile::junk()),
            fatal: file(MemoryFile::fatal()),
            home: ProcessId::current(),
            state: Mutex::default(),
        };
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
        assert!(kind != GuestKind::Pv || self.dom0() != Dom0::Arm, "there are no PV guests on Arm");
        let mut state = self.0.lock();
        self.0.reclaim(&mut state);
        let free = (1..abi::FIRST_RESERVED_DOMID).find(|id| !state.domains.contains_key(id));
        let Some(domid) = free else { panic!("the mock has as many domains as there are numbers") };
        let mut domain = Domain::new(kind);
        if kind == GuestKind::Pv {
            domain.shared_info = Some(self.0.lend(&mut state, domid));
        }
        state.domains.insert(domid, domain);
        drop(state);
        let Ok(domid) = Domid::new(domid) else { unreachable!("only unreserved numbers were tried") };
        let guest = MockDomain::new(self.clone(), domid);
        guest.add_frames(frames);
        guest
    }

    /// The guest with this number, unless it has been destroyed.
    #[must_use]
    pub fn domain(&self, domid: Domid) -> Option<MockDomain> {
        let state = self.0.lock();
        let alive = state.domains.get(&domid.get()).is_some_and(|domain| !domain.dying);
        (alive && domid != Domid::XEN && domid.get() != DOM0).then(|| MockDomain::new(self.clone(), domid))
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

/// The machine frame number of a page.
pub(super) fn machine_frame(page: usize) -> Gfn {
    let Ok(gfn) = Gfn::new(FIRST_MFN + page as u64) else { unreachable!("a file has fewer pages") };
    gfn
}

impl State {
    /// How many frames a domain owns, those included that only mappings keep.
    pub(super) fn owned_by(&self, domid: u16) -> u64 {
        self.pages.iter().filter(|page| page.owner == Some(domid) && !page.lent).count() as u64
    }

    /// The pages of a domain, with what Xen lends to it.
    pub(super) fn pages_of(&self, domid: Domid) -> impl Iterator<Item = usize> {
        let pages = self.pages.iter().enumerate();
        pages.filter(move |(_, page)| page.owner == Some(domid.get())).map(|(i, _)| i)
    }
}

impl Host {
    /// The state, if need be as a new child has them: without its parent's mappings, which it has not inherited.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let process = Some(ProcessId::current());
        if state.process != process {
            state.process = process;
            state.vmas.clear();
            state.leaks.clear();
            state.strangers.clear();
            state.buffers.clear();
        }
        state
    }

    /// Whether this is the process that made the host, and not a child with a copy of its state.
    fn is_at_home(&self) -> bool {
        self.home == ProcessId::current()
    }

    pub(super) fn host_kind(&self) -> HostKind {
        match self.config.dom0 {
            _ if !self.config.sysfs => HostKind::Unknown,
            Dom0::Pv => HostKind::Pv,
            Dom0::Pvh | Dom0::Arm => HostKind::AutoTranslated,
        }
    }

    pub(super) fn architecture(&self) -> Architecture {
        match self.config.dom0 {
            Dom0::Pv | Dom0::Pvh => Architecture::X86,
            Dom0::Arm => Architecture::Arm64,
        }
    }

    /// Takes pages, and makes the file large enough for them.
    ///
    /// # Panics
    ///
    /// In a child of the process that made the host: its state are a copy, and the memory is not.
    pub(super) fn grow<T>(&self, state: &mut State, take: impl FnOnce(&mut State) -> T) -> T {
        assert!(self.is_at_home(), "only the process that made the mock gives its domains memory");
        let before = state.pages.len();
        let taken = take(state);
        if state.pages.len() > before
            && let Err(e) = self.ram.resize(state.pages.len())
        {
            panic!("the mock has no memory for {} frames: {e}", state.pages.len());
        }
        taken
    }

    /// Counts the references that there are, and frees what nobody has any more: pages that their owner has given up,
    /// and dying domains without pages.
    pub(super) fn reclaim(&self, state: &mut State) -> References {
        let references = References::count(self, state);
        // A child does not see all references, so it frees nothing.
        if !self.is_at_home() {
            return references;
        }
        for (number, page) in state.pages.iter_mut().enumerate() {
            if page.owner.is_some() && !page.allocated && references.of(number) == 0 {
                page.owner = None;
                if let Err(e) = self.ram.scrub(number) {
                    panic!("the mock cannot scrub a free frame: {e}");
                }
            }
        }
        let owners: std::collections::BTreeSet<u16> = state.pages.iter().filter_map(|page| page.owner).collect();
        state.domains.retain(|domid, domain| !domain.dying || owners.contains(domid));
        references
    }

    /// Takes a page for Xen itself, which a domain may use.
    pub(super) fn lend(&self, state: &mut State, domid: u16) -> usize {
        let page = self.grow(state, |state| state.allocate(domid, 1))[0];
        state.pages[page].lent = true;
        page
    }

    /// Brings a paged-out frame back.
    pub(super) fn page_in(&self, state: &mut State, domid: u16, gfn: u64) {
        let page = self.grow(state, |state| state.allocate(domid, 1))[0];
        let Some(domain) = state.domains.get_mut(&domid) else { return };
        if let Some(Frame::PagedOut(content, _)) = domain.frames.insert(gfn, Frame::Ram(page))
            && let Err(e) = self.ram.write(page * crate::types::FRAME_SIZE, &content)
        {
            panic!("the mock cannot bring a frame back: {e}");
        }
    }
}
