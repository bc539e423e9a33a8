//! A simulated guest: its RAM, its life, and what its toolstack does with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::Dom0;
use super::machine::{Host, machine_frame};
use super::state::{Domain, Frame, Page, State};
use crate::abi;
use crate::types::{Domid, FRAME_SIZE, Gfn, GuestKind};

/// A guest of a [`MockHost`](super::MockHost).
///
/// Its methods act as the guest, its toolstack or Xen would: they need no mapping. Dropping it changes nothing; the
/// guest runs until it is [destroyed](MockDomain::destroy).
///
/// A test that uses a destroyed guest, or a frame that the guest does not have, is wrong, so the methods panic then.
///
/// ```
/// use xenmap::GuestKind;
/// use xenmap::mock::MockHost;
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4);
/// let gfn = guest.frames()[2];
/// guest.write(gfn, 0xFF0, b"over the end of a frame");
/// assert_eq!(guest.read(gfn, 0xFF5, 7), b"the end");
/// ```
#[derive(Clone, Debug)]
pub struct MockDomain {
    pub(super) host: Arc<Host>,
    pub(super) domid: Domid,
}

impl MockDomain {
    /// Creates a guest with the lowest free number and this many frames.
    pub(super) fn create(host: &Arc<Host>, kind: GuestKind, frames: usize) -> MockDomain {
        assert!(kind != GuestKind::Pv || host.config.dom0 != Dom0::Arm, "there are no PV guests on Arm");
        let mut state = host.lock();
        host.reclaim(&mut state);
        let free = (1..abi::FIRST_RESERVED_DOMID).find(|id| !state.domains.contains_key(id));
        let Some(domid) = free else { panic!("the mock has no domain number left") };
        let mut domain = Domain::new(kind);
        if kind == GuestKind::Pv {
            domain.shared_info = Some(host.lend(&mut state, domid));
        }
        state.domains.insert(domid, domain);
        drop(state);
        let Ok(domid) = Domid::new(domid) else { unreachable!("only unreserved numbers were tried") };
        let guest = MockDomain::new(Arc::clone(host), domid);
        guest.add_frames(frames);
        guest
    }

    pub(super) fn new(host: Arc<Host>, domid: Domid) -> MockDomain {
        MockDomain { host, domid }
    }

    /// Returns the guest's number.
    #[must_use]
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// Returns the guest's current frames, including paged-out ones, in ascending order.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    #[must_use]
    pub fn frames(&self) -> Vec<Gfn> {
        self.with(|_, domain| domain.frames.keys().filter_map(|&gfn| Gfn::new(gfn).ok()).collect())
    }

    /// Reads `len` bytes as the guest does. They begin `offset` bytes into a frame, and may continue in the frames
    /// after it.
    ///
    /// # Panics
    ///
    /// If the guest does not have the frames.
    #[must_use]
    pub fn read(&self, gfn: Gfn, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        for (at, len) in pieces(gfn, offset, len) {
            let (piece, more) = rest.split_at_mut(len);
            let read = self.host.ram.read(self.page(at.0) * FRAME_SIZE + at.1, piece);
            read.unwrap_or_else(|e| panic!("the mock cannot read its memory: {e}"));
            rest = more;
        }
        bytes
    }

    /// Writes as the guest does. The bytes begin `offset` bytes into a frame, and may continue in the frames after it.
    ///
    /// # Panics
    ///
    /// If the guest does not have the frames.
    pub fn write(&self, gfn: Gfn, offset: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for (at, len) in pieces(gfn, offset, bytes.len()) {
            let (piece, more) = rest.split_at(len);
            self.touch(at.0, true);
            let written = self.host.ram.write(self.page(at.0) * FRAME_SIZE + at.1, piece);
            written.unwrap_or_else(|e| panic!("the mock cannot write its memory: {e}"));
            rest = more;
        }
    }

    /// Destroys the guest. Mapped frames keep it alive as a [zombie](super::MockHost::zombies) until the last one is
    /// unmapped; so do the pages of its ioreq servers, which are destroyed too. Whoever waits for the guest, on whatever
    /// thread, goes on: a [`MockVcpu`](super::MockVcpu) returns an error.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Hvm, 8);
    /// let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &guest.frames()[..3])?;
    /// guest.destroy();
    /// assert_eq!((host.zombies(), guest.owned_frames()), (vec![guest.domid()], Some(3)));
    /// drop(mapping);
    /// assert_eq!((host.zombies(), guest.owned_frames()), (vec![], None));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed already.
    pub fn destroy(&self) {
        let state = &mut self.host.lock();
        domain_in(state, self.domid).dying = true;
        state.destroy_servers(self.domid.get());
        let Some(domain) = state.domains.get_mut(&self.domid.get()) else { return };
        domain.name = None;
        domain.frames.clear();
        domain.pool.clear();
        let resources: Vec<usize> = std::mem::take(&mut domain.resources).into_values().flatten().collect();
        let pages: Vec<usize> = state.pages_of(self.domid).chain(resources).collect();
        for page in pages {
            state.pages[page].allocated = false;
        }
        state.release_unused_shares();
        self.host.reclaim(state);
        self.host.changed.notify_all();
    }

    /// Pauses the guest, as its toolstack does. Xen counts pauses: the guest runs again when each has been undone.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::GuestKind;
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Pvh, 1);
    /// domain.pause();
    /// assert!(domain.is_paused());
    /// domain.unpause();
    /// assert!(!domain.is_paused());
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed, or is paused 255 times already.
    pub fn pause(&self) {
        let paused = self.with(|_, domain| domain.pause());
        assert_eq!(paused, Ok(()), "domain {} is paused 255 times", self.domid);
    }

    /// Undoes one [`pause`](MockDomain::pause).
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed, or is not paused.
    pub fn unpause(&self) {
        let unpaused = self.with(|_, domain| domain.unpause());
        self.host.changed.notify_all();
        assert_eq!(unpaused, Ok(()), "domain {} is not paused", self.domid);
    }

    /// Returns whether the guest is paused.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.with(|_, domain| domain.pauses != 0)
    }

    /// Gives the guest a name, as xenstore has it.
    ///
    /// Destroying the guest removes the name, as toolstacks do. A [zombie](super::MockHost::zombies) can be named
    /// again, as if its toolstack had been killed before the cleanup.
    ///
    /// ```
    /// use xenmap::GuestKind;
    /// use xenmap::mock::MockHost;
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Pvh, 1);
    /// guest.set_name("web");
    ///
    /// let names: Vec<_> = host.open()?.domains()?.into_iter().map(|domain| domain.name).collect();
    /// assert_eq!(names, [Some("Domain-0".to_owned()), Some("web".to_owned())]);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest is gone.
    pub fn set_name(&self, name: &str) {
        match self.host.lock().domains.get_mut(&self.domid.get()) {
            Some(domain) => domain.name = Some(name.to_owned()),
            None => panic!("domain {} is gone", self.domid),
        }
    }

    /// Returns the number of frames that the guest owns, including those that only mappings keep, or `None` once it is
    /// gone.
    ///
    /// # Panics
    ///
    /// As [`MockHost::references`](super::MockHost::references).
    #[must_use]
    pub fn owned_frames(&self) -> Option<usize> {
        let state = &mut self.host.lock();
        self.host.reclaim(state);
        let owned = usize::try_from(state.owned_by(self.domid.get())).unwrap_or(usize::MAX);
        state.domains.contains_key(&self.domid.get()).then_some(owned)
    }

    /// Sets the number of frames that the guest may own, as `xl mem-max` does. It may own more already.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    pub fn set_max_frames(&self, frames: u64) {
        self.with(|_, domain| domain.max_pages = frames);
    }

    /// Gives the guest `count` more frames after its last one, and returns them.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed, or there is no memory.
    #[expect(clippy::must_use_candidate, reason = "a caller need not care about their numbers")]
    pub fn add_frames(&self, count: usize) -> Vec<Gfn> {
        let is_pv = self.with(|_, domain| domain.kind == GuestKind::Pv);
        if is_pv {
            let mut state = self.host.lock();
            let pages = self.host.grow(&mut state, |state| state.allocate(self.domid.get(), count));
            let domain = domain_in(&mut state, self.domid);
            let gfns = pages.into_iter().map(|page| {
                let gfn = machine_frame(page);
                domain.frames.insert(gfn.get(), Frame::Ram(page));
                gfn
            });
            return gfns.collect();
        }
        let next = self.with(|_, domain| domain.frames.keys().next_back().map_or(0, |last| last + 1));
        let gfns: Vec<Gfn> = (next..).take(count).filter_map(|gfn| Gfn::new(gfn).ok()).collect();
        self.populate(&gfns);
        gfns
    }

    /// Gives the guest frames with these numbers, filled with zeros. The frame numbers of a PV guest cannot be chosen.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed, is a PV guest or already has one of the frames, or there is no memory.
    pub fn populate(&self, gfns: &[Gfn]) {
        let mut state = self.host.lock();
        let pages = self.host.grow(&mut state, |state| state.allocate(self.domid.get(), gfns.len()));
        let domain = domain_in(&mut state, self.domid);
        assert_ne!(domain.kind, GuestKind::Pv, "Xen chooses the frames of a PV guest: use add_frames");
        for (gfn, page) in gfns.iter().zip(pages) {
            domain.highest = domain.highest.max(gfn.get());
            let before = domain.frames.insert(gfn.get(), Frame::Ram(page));
            assert!(before.is_none(), "domain {} has frame {gfn} already", self.domid);
        }
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut [Page], &mut Domain) -> T) -> T {
        let State { pages, domains, .. } = &mut *self.host.lock();
        f(pages, alive(domains, self.domid))
    }

    /// Returns the page of a frame that the guest has and that is not paged out.
    pub(super) fn page(&self, gfn: Gfn) -> usize {
        self.touch(gfn, false);
        let page = self.with(|_, domain| match domain.frames.get(&gfn.get()) {
            Some(Frame::Ram(page)) => Ok(*page),
            Some(Frame::PagedOut(..)) => Err("is paged out"),
            Some(Frame::Broken(_)) => Err("is broken"),
            Some(Frame::Unpopulated) => Err("has no memory: the guest has crashed"),
            Some(Frame::OfParent) => Err("no longer belongs to the guest's parent"),
            None => domain.shared_info.filter(|&page| machine_frame(page) == gfn).ok_or("does not exist"),
        });
        page.unwrap_or_else(|reason| panic!("frame {gfn} of domain {} {reason}", self.domid))
    }
}

pub(super) fn domain_in(state: &mut State, domid: Domid) -> &mut Domain {
    alive(&mut state.domains, domid)
}

pub(super) fn alive(domains: &mut BTreeMap<u16, Domain>, domid: Domid) -> &mut Domain {
    match domains.get_mut(&domid.get()) {
        Some(domain) if !domain.dying => domain,
        _ => panic!("domain {domid} has been destroyed"),
    }
}

/// Splits a range at the frames' borders: each piece with its frame, the offset into that frame, and its length.
fn pieces(gfn: Gfn, offset: usize, len: usize) -> impl Iterator<Item = ((Gfn, usize), usize)> {
    let mut next = offset;
    let end = offset + len;
    std::iter::from_fn(move || {
        let at = next;
        let gfn = Gfn::new(gfn.get() + (at / FRAME_SIZE) as u64).ok()?;
        next = (at + FRAME_SIZE - at % FRAME_SIZE).min(end);
        (at < end).then_some(((gfn, at % FRAME_SIZE), next - at))
    })
}
