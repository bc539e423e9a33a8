//! The simulated machine: its memory, and the state of its hypervisor, kernel and guests.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::config::{Dom0, HostConfig};
use super::memory::MemoryFile;
use super::state::{FIRST_MFN, Frame, State};
use crate::backend::ProcessId;
use crate::types::{Architecture, FRAME_SIZE, Gfn, HostKind};

/// The part of a [`MockHost`](super::MockHost) that all its handles, domains and mappings share.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) config: HostConfig,
    pub(super) ram: MemoryFile,
    pub(super) empty: MemoryFile,
    pub(super) junk: MemoryFile,
    pub(super) fatal: MemoryFile,
    /// The process that created the host.
    creator: ProcessId,
    state: Mutex<State>,
    /// Notified when something happens for which a guest may wait.
    pub(super) changed: Condvar,
}

/// Returns the machine frame number of a page.
pub(super) fn machine_frame(page: usize) -> Gfn {
    let Ok(gfn) = Gfn::new(FIRST_MFN + page as u64) else { unreachable!("a file has fewer pages") };
    gfn
}

impl Host {
    /// # Panics
    ///
    /// If this system has no memory files.
    pub(super) fn new(config: HostConfig) -> Host {
        let file = |made: io::Result<MemoryFile>| made.unwrap_or_else(|e| panic!("the mock needs memory files: {e}"));
        Host {
            config,
            ram: file(MemoryFile::ram()),
            empty: file(MemoryFile::empty()),
            junk: file(MemoryFile::junk()),
            fatal: file(MemoryFile::fatal()),
            creator: ProcessId::current(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Locks the state. In a forked child it first drops the parent's mappings, which the child has not inherited.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let process = Some(ProcessId::current());
        if state.process != process {
            state.process = process;
            state.vmas.clear();
            state.leaks.clear();
            state.taken_ranges.clear();
            state.buffers.clear();
        }
        state
    }

    /// Waits until something has happened for which a guest may wait.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether this is the process that created the host, not a child with a copy of its state.
    pub(super) fn is_in_creator(&self) -> bool {
        self.creator == ProcessId::current()
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

    /// Allocates pages by `take`, and makes the RAM file large enough for them.
    ///
    /// # Panics
    ///
    /// In a child of the process that created the host: its state is a copy, but the memory is shared.
    pub(super) fn grow<T>(&self, state: &mut State, take: impl FnOnce(&mut State) -> T) -> T {
        assert!(self.is_in_creator(), "only the process that created the mock can give its domains memory");
        let before = state.pages.len();
        let taken = take(state);
        if state.pages.len() > before
            && let Err(e) = self.ram.resize(state.pages.len())
        {
            panic!("the mock has no memory for {} frames: {e}", state.pages.len());
        }
        taken
    }

    /// Allocates a page that belongs to Xen itself and that a domain may use.
    pub(super) fn lend(&self, state: &mut State, domid: u16) -> usize {
        let page = self.grow(state, |state| state.allocate(domid, 1))[0];
        state.pages[page].lent = true;
        page
    }

    /// Pages a frame in.
    pub(super) fn page_in(&self, state: &mut State, domid: u16, gfn: u64) {
        let page = self.grow(state, |state| state.allocate(domid, 1))[0];
        let Some(domain) = state.domains.get_mut(&domid) else { return };
        if let Some(Frame::PagedOut(content, _)) = domain.frames.insert(gfn, Frame::Ram(page))
            && let Err(e) = self.ram.write(page * FRAME_SIZE, &content)
        {
            panic!("the mock cannot page a frame in: {e}");
        }
    }
}
