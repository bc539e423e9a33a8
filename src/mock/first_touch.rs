//! Frames that get memory when they are first touched: those of populate-on-demand guests and of forks.

use super::config::Dom0;
use super::domain::MockDomain;
use super::machine::Host;
use super::state::{DOMID_COW, Domain, Frame, State};
use crate::types::{FRAME_SIZE, Gfn, GuestKind};

impl MockDomain {
    /// Gives the guest frames that get memory when they are first touched, by the guest or by whoever maps them or asks
    /// about them. The memory comes from a pool of `pool` frames.
    ///
    /// This is what `xl create` does if `maxmem` is larger than `memory`. Touching more frames than the pool has memory
    /// for [crashes](MockDomain::has_crashed) the guest (Xen, `p2m_pod_demand_populate`).
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Error, Gfn, Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Pvh, 16);
    /// domain.populate_on_demand(&[Gfn::new(16)?, Gfn::new(17)?], 1);
    ///
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    /// assert!(matches!(guest.check_populated(), Err(Error::PopulateOnDemand { unpopulated: 2, pool: 1, .. })));
    /// assert!(!domain.has_crashed());
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed, is a PV guest or already has one of the frames; if there is no memory; or on an
    /// Arm host.
    pub fn populate_on_demand(&self, gfns: &[Gfn], pool: usize) {
        assert_ne!(self.host.config.dom0, Dom0::Arm, "Xen has no populate-on-demand guests on Arm");
        let mut state = self.host.lock();
        let pages = self.host.grow(&mut state, |state| state.allocate(self.domid().get(), pool));
        drop(state);
        self.with(|_, domain| {
            assert_ne!(domain.kind, GuestKind::Pv, "a PV guest is never populated on demand");
            domain.is_lazy = true;
            domain.pool.extend(pages);
            for gfn in gfns {
                domain.highest = domain.highest.max(gfn.get());
                let before = domain.frames.insert(gfn.get(), Frame::Unpopulated);
                assert!(before.is_none(), "the guest has frame {gfn} already");
            }
        });
    }

    /// Returns whether Xen has crashed the guest.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.with(|_, domain| domain.crashed)
    }

    /// Shares frames, as Xen's memory sharing does: they stay RAM, but Xen no longer counts them as the guest's own.
    ///
    /// ```
    /// use xenmap::GuestKind;
    /// use xenmap::mock::MockHost;
    ///
    /// let guest = MockHost::new().create_domain(GuestKind::Hvm, 8);
    /// guest.share(&guest.frames()[..2]);
    /// assert_eq!((guest.frames().len(), guest.owned_frames()), (8, Some(6)));
    /// guest.write(guest.frames()[0], 0, b"x"); // gives the guest a copy of its own
    /// assert_eq!(guest.owned_frames(), Some(7));
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed, is a PV guest, or does not have one of the frames.
    pub fn share(&self, gfns: &[Gfn]) {
        for &gfn in gfns {
            let page = self.page(gfn);
            self.with(|pages, domain| {
                assert_ne!(domain.kind, GuestKind::Pv, "frames of a PV guest are not shared");
                pages[page].owner = Some(DOMID_COW);
            });
        }
    }

    /// Forks the guest: creates a paused guest that has no frames of its own, and shares a frame with this one when the
    /// frame is first touched.
    ///
    /// ```
    /// use xenmap::GuestKind;
    /// use xenmap::mock::MockHost;
    ///
    /// let parent = MockHost::new().create_domain(GuestKind::Hvm, 8);
    /// let gfn = parent.frames()[0];
    /// parent.write(gfn, 0, b"parent");
    ///
    /// let fork = parent.fork();
    /// assert_eq!(fork.read(gfn, 0, 6), b"parent");
    /// fork.write(gfn, 0, b"forked");
    /// assert_eq!(parent.read(gfn, 0, 6), b"parent");
    /// assert_eq!(fork.owned_frames(), Some(1));
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed or is a PV guest, if there is no domain number left, or on an Arm host.
    #[must_use]
    pub fn fork(&self) -> MockDomain {
        assert_ne!(self.host.config.dom0, Dom0::Arm, "Xen does not fork guests on Arm");
        let (kind, highest, gfns) =
            self.with(|_, domain| (domain.kind, domain.highest, domain.frames.keys().copied().collect::<Vec<u64>>()));
        assert_ne!(kind, GuestKind::Pv, "PV guests are not forked");
        let fork = MockDomain::create(&self.host, kind, 0);
        fork.pause();
        fork.with(|_, domain| {
            (domain.highest, domain.is_lazy) = (highest, true);
            domain.parent = Some(self.domid().get());
            domain.frames.extend(gfns.into_iter().map(|gfn| (gfn, Frame::OfParent)));
        });
        fork
    }

    /// Gives a frame memory if this is its first use, as Xen does.
    pub(super) fn touch(&self, gfn: Gfn, writes: bool) {
        self.host.touch(&mut self.host.lock(), self.domid().get(), gfn.get(), writes);
    }
}

impl Host {
    /// Gives memory to those of some frames that are touched for the first time.
    pub(super) fn touch_all(&self, state: &mut State, domid: u16, gfns: impl Iterator<Item = u64>) {
        // Looking up each frame is slow, and few guests have such frames.
        if state.domains.get(&domid).is_some_and(|domain| domain.is_lazy) {
            gfns.for_each(|gfn| self.touch(state, domid, gfn, false));
        }
    }

    /// Gives a frame memory if this is its first use, and the guest a copy of a shared frame that is to be written.
    pub(super) fn touch(&self, state: &mut State, domid: u16, gfn: u64, writes: bool) {
        let Some(domain) = state.domains.get_mut(&domid).filter(|domain| !domain.dying) else { return };
        match domain.frames.get(&gfn) {
            Some(Frame::Unpopulated) => {
                if let Some(page) = domain.pool.pop() {
                    domain.frames.insert(gfn, Frame::Ram(page));
                } else {
                    domain.crashed = true;
                    self.changed.notify_all();
                }
            }
            Some(Frame::OfParent) => {
                let parent = domain.parent.and_then(|parent| state.domains.get(&parent));
                let Some(&Frame::Ram(page)) = parent.and_then(|parent| parent.frames.get(&gfn)) else { return };
                state.pages[page].owner = Some(DOMID_COW);
                if let Some(domain) = state.domains.get_mut(&domid) {
                    domain.frames.insert(gfn, Frame::Ram(page));
                }
                if writes {
                    self.unshare(state, domid, gfn, page);
                }
            }
            Some(&Frame::Ram(page)) if writes && state.pages[page].owner == Some(DOMID_COW) => {
                self.unshare(state, domid, gfn, page);
            }
            _ => {}
        }
    }

    /// Gives a guest a copy of a shared page.
    fn unshare(&self, state: &mut State, domid: u16, gfn: u64, shared: usize) {
        let copy = self.grow(state, |state| state.allocate(domid, 1))[0];
        let mut content = vec![0; FRAME_SIZE];
        let copied = self.ram.read(shared * FRAME_SIZE, &mut content);
        if let Err(e) = copied.and_then(|()| self.ram.write(copy * FRAME_SIZE, &content)) {
            panic!("the mock cannot copy a shared frame: {e}");
        }
        if let Some(domain) = state.domains.get_mut(&domid) {
            domain.frames.insert(gfn, Frame::Ram(copy));
        }
        state.release_unused_shares();
    }
}

impl State {
    /// Frees the shared pages that no guest has any more.
    pub(super) fn release_unused_shares(&mut self) {
        let frames = self.domains.values().flat_map(|domain| domain.frames.values());
        let used: std::collections::BTreeSet<usize> =
            frames.filter_map(|frame| if let Frame::Ram(page) = frame { Some(*page) } else { None }).collect();
        for (number, page) in self.pages.iter_mut().enumerate() {
            if page.owner == Some(DOMID_COW) && !used.contains(&number) {
                page.allocated = false;
            }
        }
    }

    /// Returns how many frames of a domain are shared.
    pub(super) fn shared_by(&self, domain: &Domain) -> u64 {
        let shared = |frame: &&Frame| matches!(frame, Frame::Ram(page) if self.pages[*page].owner == Some(DOMID_COW));
        domain.frames.values().filter(shared).count() as u64
    }
}
