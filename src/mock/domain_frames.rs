//! What happens to single frames of a simulated guest: ballooning, paging, failing memory, page tables, resources.

use std::io;

use super::config::Dom0;
use super::domain::{MockDomain, alive, domain_in};
use super::state::{DOMID_COW, Domain, Frame, OWNER_OF_RESOURCES, State};
use crate::handle::Resource;
use crate::types::{FRAME_SIZE, Gfn, GuestKind};

impl MockDomain {
    /// Takes a frame from the guest, as if it were ballooned out. While the frame is mapped, the mapping keeps its
    /// page.
    ///
    /// If the guest has ioreq servers that are enabled, its vcpu 0 then waits until all of them have invalidated what
    /// they have mapped: so serve them on other threads. If no server is enabled, or the guest is paused, the guest does this at its next access.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Hvm, 4);
    /// let gfn = guest.frames()[1];
    /// guest.balloon_out(gfn);
    ///
    /// let error = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &[gfn]).unwrap_err();
    /// assert_eq!(error.errno(), libc::EINVAL);
    /// guest.populate(&[gfn]); // the guest gets it back, with another page
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest does not have the frame.
    pub fn balloon_out(&self, gfn: Gfn) {
        let is_untouched = |domain: &Domain| domain.frames.get(&gfn.get()).is_some_and(Frame::is_untouched);
        let page = if self.with(|_, domain| is_untouched(domain)) { None } else { Some(self.page(gfn)) };
        let mut state = self.host.lock();
        let State { pages, domains, .. } = &mut *state;
        let domain = alive(domains, self.domid);
        domain.frames.remove(&gfn.get());
        let unpopulated = domain.unpopulated();
        match page {
            // Xen keeps the memory, zeroed, while other frames may need it (`p2m_pod_decrease_reservation`).
            Some(page) if domain.pool.len() < unpopulated => {
                domain.pool.push(page);
                let cleared = self.host.ram.write(page * FRAME_SIZE, &[0; FRAME_SIZE]);
                cleared.unwrap_or_else(|e| panic!("the mock cannot write its memory: {e}"));
            }
            Some(page) if pages[page].owner == Some(DOMID_COW) => state.release_unused_shares(),
            Some(page) => pages[page].allocated = false,
            None => {
                for page in domain.pool.drain(unpopulated.min(domain.pool.len())..) {
                    pages[page].allocated = false;
                }
            }
        }
        drop(state);
        self.invalidate_device_models();
    }

    /// Pages a frame out. Mapping it then fails with ENOENT `attempts` times before the frame is back. An
    /// auto-translated dom0 cannot have it paged in: there mapping always fails with EINVAL.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Hvm, 1);
    /// let gfn = guest.frames()[0];
    /// guest.write(gfn, 0, b"kept");
    /// guest.page_out(gfn, 2).unwrap();
    ///
    /// // The library retries until the frame is back.
    /// let mapping = host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &[gfn])?;
    /// assert!(mapping.view().eq_bytes(0, b"kept")?);
    /// assert!(guest.page_out(gfn, 2).is_err()); // it is mapped
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// EBUSY if the frame is mapped.
    ///
    /// # Panics
    ///
    /// If the guest does not have the frame, or is a PV guest (Xen pages out only frames of HVM guests).
    pub fn page_out(&self, gfn: Gfn, attempts: u32) -> io::Result<()> {
        let page = self.page(gfn);
        let mut content = vec![0; FRAME_SIZE];
        self.host.ram.read(page * FRAME_SIZE, &mut content)?;
        let state = &mut self.host.lock();
        if self.host.reclaim(state).of(page) != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let domain = domain_in(state, self.domid);
        assert_ne!(domain.kind, GuestKind::Pv, "frames of PV guests are not paged out");
        domain.frames.insert(gfn.get(), Frame::PagedOut(content, attempts));
        state.pages[page].allocated = false;
        self.host.reclaim(state);
        Ok(())
    }

    /// Makes the machine's memory fail at a frame.
    ///
    /// # Panics
    ///
    /// If the guest does not have the frame.
    pub fn break_frame(&self, gfn: Gfn) {
        let page = self.page(gfn);
        self.with(|_, domain| domain.frames.insert(gfn.get(), Frame::Broken(page)));
    }

    /// Puts a frame of Xen's own at this number, as Xen does with a grant table: it can be mapped, but does not count
    /// as the guest's. A frame that the guest has there is freed.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed or is a PV guest, or there is no memory.
    pub fn lend(&self, gfn: Gfn) {
        let mut state = self.host.lock();
        let page = self.host.lend(&mut state, self.domid.get());
        let State { pages, domains, .. } = &mut *state;
        let domain = alive(domains, self.domid);
        assert_ne!(domain.kind, GuestKind::Pv, "the frames of a PV guest do not include Xen's own");
        domain.highest = domain.highest.max(gfn.get());
        if let Some(Frame::Ram(before) | Frame::Broken(before)) = domain.frames.insert(gfn.get(), Frame::Ram(page)) {
            pages[before].allocated = false;
        }
    }

    /// Makes a PV guest use a frame as a page table (`MMUEXT_PIN_L1_TABLE`).
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Pv, 4);
    /// let gfns = guest.frames();
    /// guest.pin_page_table(gfns[0]).unwrap();
    ///
    /// let memory = host.open()?;
    /// let error = memory.map_foreign_batch(guest.domid(), Protection::ReadWrite, &gfns).unwrap_err();
    /// assert_eq!(error.errno(), libc::EBUSY);
    /// assert!(memory.map_foreign_batch(guest.domid(), Protection::ReadOnly, &gfns).is_ok());
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// EINVAL while a PV dom0 maps the frame writable.
    ///
    /// # Panics
    ///
    /// If the guest does not have the frame, or is not a PV guest.
    pub fn pin_page_table(&self, gfn: Gfn) -> io::Result<()> {
        let page = self.page(gfn);
        let state = &mut self.host.lock();
        assert_eq!(domain_in(state, self.domid).kind, GuestKind::Pv, "only a PV guest pins page tables");
        let references = self.host.reclaim(state);
        if self.host.config.dom0 == Dom0::Pv && references.writable(page) != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        state.pages[page].pinned = true;
        Ok(())
    }

    /// Makes a PV guest stop using a frame as a page table.
    ///
    /// # Panics
    ///
    /// If the guest does not have the frame.
    pub fn unpin_page_table(&self, gfn: Gfn) {
        let page = self.page(gfn);
        self.host.lock().pages[page].pinned = false;
    }

    /// Gives the guest a resource of this many frames, filled with zeros, in place of any that it had before.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, GuestKind, Protection, Resource};
    ///
    /// let host = MockHost::new();
    /// let guest = host.create_domain(GuestKind::Hvm, 1);
    /// guest.add_resource(Resource::GrantTable, 2);
    ///
    /// let memory = host.open()?;
    /// let grants = memory.map_resource(guest.domid(), Protection::ReadWrite, Resource::GrantTable, 0, 2)?;
    /// assert_eq!(grants.view().len(), 2 * 4096);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed, or there is no memory.
    pub fn add_resource(&self, resource: Resource, frames: usize) {
        let mut state = self.host.lock();
        let pages = self.host.grow(&mut state, |state| state.allocate(OWNER_OF_RESOURCES, frames));
        let before = domain_in(&mut state, self.domid).resources.insert(resource.type_and_id(), pages);
        for page in before.into_iter().flatten() {
            state.pages[page].allocated = false;
        }
    }
}
