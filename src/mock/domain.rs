//! A simulated guest, and what it and its toolstack do.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::config::Dom0;
use super::machine::{Host, machine_frame};
use super::state::{DOMID_COW, Domain, Frame, OWNER_OF_RESOURCES, State};
use crate::abi;
use crate::types::{Domid, FRAME_SIZE, Gfn, GuestKind};

/// A guest of a [`MockHost`](super::MockHost).
///
/// Dropping it changes nothing: the guest runs until it is [destroyed](MockDomain::destroy). Frames are read and
/// written here as the guest does it, without a mapping.
///
/// A guest that has been destroyed, or a frame that it does not have, makes its methods panic: it is the test that is
/// wrong then.
#[derive(Clone, Debug)]
pub struct MockDomain {
    pub(super) host: Arc<Host>,
    domid: Domid,
}

impl MockDomain {
    /// Creates a guest with the lowest free number and so many frames.
    pub(super) fn create(host: &Arc<Host>, kind: GuestKind, frames: usize) -> MockDomain {
        assert!(kind != GuestKind::Pv || host.config.dom0 != Dom0::Arm, "there are no PV guests on Arm");
        let mut state = host.lock();
        host.reclaim(&mut state);
        let free = (1..abi::FIRST_RESERVED_DOMID).find(|id| !state.domains.contains_key(id));
        let Some(domid) = free else { panic!("the mock has as many domains as there are numbers") };
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

    /// Its number.
    #[must_use]
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// The frames that it has now, paged-out ones included, in ascending order.
    ///
    /// # Panics
    ///
    /// If it has been destroyed.
    #[must_use]
    pub fn frames(&self) -> Vec<Gfn> {
        self.with(|_, domain| domain.frames.keys().filter_map(|&gfn| Gfn::new(gfn).ok()).collect())
    }

    /// How many frames it owns, those included that only mappings keep; `None` once it is gone.
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

    /// Gives it a name, as xenstore has it.
    ///
    /// Destroying it takes the name away, as toolstacks do. A [zombie](super::MockHost::zombies) can be given one again:
    /// then the toolstack was killed before it had cleaned up.
    ///
    /// # Panics
    ///
    /// If it is gone.
    pub fn set_name(&self, name: &str) {
        match self.host.lock().domains.get_mut(&self.domid.get()) {
            Some(domain) => domain.name = Some(name.to_owned()),
            None => panic!("domain {} is gone", self.domid),
        }
    }

    /// Keeps it from running, as its toolstack does; Xen counts how often.
    ///
    /// # Panics
    ///
    /// If it has been destroyed, or is paused 255 times already.
    pub fn pause(&self) {
        let paused = self.with(|_, domain| domain.pause());
        assert_eq!(paused, Ok(()), "domain {} is paused 255 times", self.domid);
    }

    /// Takes one pause back.
    ///
    /// # Panics
    ///
    /// If it has been destroyed, or is not paused.
    pub fn unpause(&self) {
        let unpaused = self.with(|_, domain| domain.unpause());
        assert_eq!(unpaused, Ok(()), "domain {} is not paused", self.domid);
    }

    /// Whether it is paused.
    ///
    /// # Panics
    ///
    /// If it has been destroyed.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.with(|_, domain| domain.pauses != 0)
    }

    /// Lets it own so many frames, as `xl mem-max` does. It may have more already.
    ///
    /// # Panics
    ///
    /// If it has been destroyed.
    pub fn set_max_frames(&self, frames: u64) {
        self.with(|_, domain| domain.max_pages = frames);
    }

    /// Gives it more frames, after those that it has, and returns them.
    ///
    /// # Panics
    ///
    /// If it has been destroyed, or there is no memory.
    #[expect(clippy::must_use_candidate, reason = "the guest has them all the same")]
    pub fn add_frames(&self, count: usize) -> Vec<Gfn> {
        let pv_pages = self.with(|_, domain| domain.kind == GuestKind::Pv);
        if pv_pages {
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

    /// Gives it frames with these numbers, zeroed; those of a PV guest cannot be chosen.
    ///
    /// # Panics
    ///
    /// If it has been destroyed, is a PV guest, has one of them already, or there is no memory.
    pub fn populate(&self, gfns: &[Gfn]) {
        let mut state = self.host.lock();
        let pages = self.host.grow(&mut state, |state| state.allocate(self.domid.get(), gfns.len()));
        let domain = domain_in(&mut state, self.domid);
        assert_ne!(domain.kind, GuestKind::Pv, "the frames of a PV guest are Xen's choice: use add_frames");
        for (gfn, page) in gfns.iter().zip(pages) {
            domain.highest = domain.highest.max(gfn.get());
            let before = domain.frames.insert(gfn.get(), Frame::Ram(page));
            assert!(before.is_none(), "domain {} has frame {gfn} already", self.domid);
        }
    }

    /// Takes a frame away, as when the guest balloons it out. While it is mapped, its page stays with the mapping.
    ///
    /// # Panics
    ///
    /// If it does not have the frame.
    pub fn balloon_out(&self, gfn: Gfn) {
        let is_untouched = |domain: &Domain| domain.frames.get(&gfn.get()).is_some_and(Frame::is_untouched);
        let page = if self.with(|_, domain| is_untouched(domain)) { None } else { Some(self.page(gfn)) };
        let state = &mut self.host.lock();
        let State { pages, domains, .. } = &mut **state;
        let domain = alive(domains, self.domid);
        domain.frames.remove(&gfn.get());
        let unpopulated = domain.unpopulated();
        match page {
            // Xen keeps the memory, zeroed, while there are frames that may need it (`p2m_pod_decrease_reservation`).
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
    }

    /// Pages a frame out. Mapping it fails with ENOENT so many times before it is back; in an auto-translated dom0,
    /// which cannot ask for it, always with EINVAL.
    ///
    /// # Errors
    ///
    /// EBUSY if the frame is mapped.
    ///
    /// # Panics
    ///
    /// If it does not have the frame, or is a PV guest (Xen pages out only those of HVM guests).
    pub fn page_out(&self, gfn: Gfn, asks: u32) -> io::Result<()> {
        let page = self.page(gfn);
        let mut content = vec![0; FRAME_SIZE];
        self.host.ram.read(page * FRAME_SIZE, &mut content)?;
        let state = &mut self.host.lock();
        if self.host.reclaim(state).of(page) != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let domain = domain_in(state, self.domid);
        assert_ne!(domain.kind, GuestKind::Pv, "frames of PV guests are not paged out");
        domain.frames.insert(gfn.get(), Frame::PagedOut(content, asks));
        state.pages[page].allocated = false;
        self.host.reclaim(state);
        Ok(())
    }

    /// Has the machine's memory fail where a frame is.
    ///
    /// # Panics
    ///
    /// If it does not have the frame.
    pub fn break_frame(&self, gfn: Gfn) {
        let page = self.page(gfn);
        self.with(|_, domain| domain.frames.insert(gfn.get(), Frame::Broken(page)));
    }

    /// Shows it a frame of Xen's own at this number, as its grant table is: it can be mapped, but does not count as
    /// the guest's. A frame that it has there is given back.
    ///
    /// # Panics
    ///
    /// If it has been destroyed, is a PV guest, or there is no memory.
    pub fn lend(&self, gfn: Gfn) {
        let mut state = self.host.lock();
        let page = self.host.lend(&mut state, self.domid.get());
        let State { pages, domains, .. } = &mut *state;
        let domain = alive(domains, self.domid);
        assert_ne!(domain.kind, GuestKind::Pv, "frames of Xen's are not among those of a PV guest");
        domain.highest = domain.highest.max(gfn.get());
        if let Some(Frame::Ram(before) | Frame::Broken(before)) = domain.frames.insert(gfn.get(), Frame::Ram(page)) {
            pages[before].allocated = false;
        }
    }

    /// Has a PV guest use a frame as a page table (`MMUEXT_PIN_L1_TABLE`).
    ///
    /// # Errors
    ///
    /// EINVAL while a PV dom0 maps it writable.
    ///
    /// # Panics
    ///
    /// If it does not have the frame, or is no PV guest.
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

    /// Has a PV guest no longer use a frame as a page table.
    ///
    /// # Panics
    ///
    /// If it does not have the frame.
    pub fn unpin_page_table(&self, gfn: Gfn) {
        let page = self.page(gfn);
        self.host.lock().pages[page].pinned = false;
    }

    /// Gives it a resource of so many frames, all zero, and forgets what was there before.
    ///
    /// # Panics
    ///
    /// If it has been destroyed, or there is no memory.
    pub fn add_resource(&self, resource: crate::handle::Resource, frames: usize) {
        let mut state = self.host.lock();
        let pages = self.host.grow(&mut state, |state| state.allocate(OWNER_OF_RESOURCES, frames));
        let before = domain_in(&mut state, self.domid).resources.insert(resource.type_and_id(), pages);
        for page in before.into_iter().flatten() {
            state.pages[page].allocated = false;
        }
    }

    /// Destroys it. Frames that are mapped keep it alive as a [zombie](super::MockHost::zombies) until the last is
    /// unmapped.
    ///
    /// # Panics
    ///
    /// If it has been destroyed already.
    pub fn destroy(&self) {
        let state = &mut self.host.lock();
        let domain = domain_in(state, self.domid);
        domain.dying = true;
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
    }

    /// Writes as the guest does, from an offset into a frame on, into that frame and those that follow it.
    ///
    /// # Panics
    ///
    /// If it does not have the frames.
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

    /// Reads as the guest does, from an offset into a frame on, that frame and those that follow it.
    ///
    /// # Panics
    ///
    /// If it does not have the frames.
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

    /// Gives it the frames that a file holds data for, with that data.
    pub(super) fn load_file(&self, file: &File) -> io::Result<()> {
        let gfns = frames_in(file)?.into_iter().flatten().map(Gfn::new);
        let gfns = gfns.collect::<Result<Vec<Gfn>, _>>().map_err(io::Error::other)?;
        self.populate(&gfns);
        gfns.into_iter().try_for_each(|gfn| self.load_frame(file, gfn.get(), gfn))
    }

    /// Fills a frame with that frame of a file; what is missing at its end is zero.
    pub(super) fn load_frame(&self, file: &File, number: u64, gfn: Gfn) -> io::Result<()> {
        let mut frame = [0; FRAME_SIZE];
        let mut len = 0;
        while len < FRAME_SIZE {
            match file.read_at(&mut frame[len..], number * FRAME_SIZE as u64 + len as u64)? {
                0 => break,
                more => len += more,
            }
        }
        self.write(gfn, 0, &frame);
        Ok(())
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut [super::state::Page], &mut Domain) -> T) -> T {
        let State { pages, domains, .. } = &mut *self.host.lock();
        f(pages, alive(domains, self.domid))
    }

    /// The page of a frame that it has and that is not paged out.
    pub(super) fn page(&self, gfn: Gfn) -> usize {
        self.touch(gfn, false);
        let page = self.with(|_, domain| match domain.frames.get(&gfn.get()) {
            Some(Frame::Ram(page)) => Ok(*page),
            Some(Frame::PagedOut(..)) => Err("is paged out"),
            Some(Frame::Broken(_)) => Err("is broken"),
            Some(Frame::Unpopulated) => Err("has no memory: the guest has crashed"),
            Some(Frame::OfParent) => Err("is not its parent's any more"),
            None => domain.shared_info.filter(|&page| machine_frame(page) == gfn).ok_or("does not exist"),
        });
        page.unwrap_or_else(|reason| panic!("frame {gfn} of domain {} {reason}", self.domid))
    }
}

fn domain_in(state: &mut State, domid: Domid) -> &mut Domain {
    alive(&mut state.domains, domid)
}

fn alive(domains: &mut BTreeMap<u16, Domain>, domid: Domid) -> &mut Domain {
    match domains.get_mut(&domid.get()) {
        Some(domain) if !domain.dying => domain,
        _ => panic!("domain {domid} has been destroyed"),
    }
}

/// The frames that a range touches, each with the offset into it and the bytes there.
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

/// The frames that a file holds data for.
pub(super) fn frames_in(file: &File) -> io::Result<Vec<Range<u64>>> {
    let frame_size = FRAME_SIZE as u64;
    let size = file.metadata()?.len();
    let mut frames: Vec<Range<u64>> = Vec::new();
    let mut next = 0;
    while let Some(data) = seek(file, next, Whence::SeekData)?.filter(|&data| data < size) {
        let end = seek(file, data, Whence::SeekHole)?.unwrap_or(size).min(size);
        let (first, last) = ((data / frame_size).max(next.div_ceil(frame_size)), end.div_ceil(frame_size));
        frames.push(first..last);
        next = last * frame_size;
    }
    Ok(frames)
}

/// Where the next data or hole begins; `None` past the last data.
fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
    match lseek(file, from, whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
