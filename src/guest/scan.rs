//! The search for a guest's RAM: which frames to look at, in which order, and what they are.

use std::ops::Range;

use super::Guest;
use super::domains::DomainState;
use super::ram_map::{Extents, FrameKind, RamMap, Search};
use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::types::{Gfn, GuestKind, HostKind, Protection};
use crate::uapi;

/// Frames of a step: Xen tells about so many with one call.
const WINDOW: u64 = 1024;
/// The same for a PV guest, whose table has 512 of them in a frame, of which a PV dom0 maps 16 with one call.
const PV_WINDOW: u64 = 15 * 512;

/// The longest run of frames beside RAM that is tried by mapping, and how many frames are in all. A frame of Xen's that
/// took the place of RAM, as the shared info page does, is in a short run. But a guest that has given RAM back has such
/// runs everywhere, and in a PVH dom0 each frame costs two hypercalls.
const SHORT_RUN: usize = 16;
const MAX_TRIES: usize = 256;

/// A search for a guest's RAM, step by step, for those who show how far it is.
///
/// No call tells where a guest's RAM is. It has most of it at the bottom, often some at the top, and a large hole in
/// between. So the search begins at the top, follows a run of RAM to its end, and there goes on at the other end. It
/// is over when as many frames were found as the domain owns, but never within a run: what Xen lends is not among
/// those it owns. A PV guest's table is looked through to its end, and so is everything where Xen cannot be asked
/// what a frame is.
#[derive(Debug)]
pub struct RamScan<'g, 'm> {
    guest: &'g Guest<'m>,
    search: Search,
    /// Whether Xen tells what a frame is. Else it is tried by mapping it.
    asks_xen: bool,
    rest: Range<u64>,
    end: u64,
    at_top: bool,
    in_run: bool,
    /// Whether the search is over but for paged-out frames, of which it looks for so many.
    missing: Option<u64>,
    tries: usize,
    found: u64,
    special: u64,
    paged_out: u64,
    owned: u64,
    extents: Extents,
}

impl RamScan<'_, '_> {
    /// Takes the next step; `false` once the search is over. After an error it can be taken again.
    ///
    /// # Errors
    ///
    /// Those of mapping, [`Error::Hypercall`] (with `ESRCH` if the domain has died meanwhile), and of a PV guest
    /// [`Error::P2m`].
    pub fn step(&mut self) -> Result<bool> {
        if self.missing == Some(0) || self.rest.is_empty() || self.is_over() {
            return self.look_for_paged_out();
        }
        let (rest, at_top) = (self.rest.clone(), self.at_top);
        let window = self.next_window();
        let kinds = match self.look_at(window.clone()) {
            Ok(kinds) => kinds,
            Err(e) => {
                (self.rest, self.at_top) = (rest, at_top);
                return Err(e);
            }
        };
        let mut pfn = window.start;
        for run in kinds.chunk_by(|a, b| a == b) {
            let pfns = pfn..pfn + run.len() as u64;
            pfn = pfns.end;
            if let Some(kind) = run[0] {
                self.note(pfns, kind);
            }
        }
        let innermost = if self.at_top { kinds.first() } else { kinds.last() };
        self.in_run = innermost.is_some_and(Option::is_some);
        Ok(true)
    }

    /// What the frames of a window are.
    fn look_at(&mut self, window: Range<u64>) -> Result<Vec<Option<FrameKind>>> {
        let pv = self.guest.kind == GuestKind::Pv;
        let named = self.found + self.special;
        if pv && named > self.owned.saturating_mul(2).saturating_add(PV_WINDOW) {
            let reason = "it names the same frames again and again";
            return Err(Error::P2m { domid: self.guest.domid, reason });
        }
        let gfns = if self.missing.is_some() { self.unknown(window)? } else { self.guest.gfns(window)? };
        let kinds = self.classify(&gfns)?.into_iter();
        Ok(kinds.map(|kind| kind.or(pv.then_some(FrameKind::BalloonedOut))).collect())
    }

    /// How many frames were found so far that the domain owns.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// How many frames the domain owns, which is about how many will be found.
    #[must_use]
    pub fn owned(&self) -> u64 {
        self.owned
    }

    /// How many frame numbers have not been looked at.
    #[must_use]
    pub fn untried(&self) -> u64 {
        self.rest.end - self.rest.start
    }

    /// What was found so far.
    #[must_use]
    pub fn into_map(self) -> RamMap {
        self.extents.into_map(self.owned.saturating_sub(self.found))
    }

    /// Whether all was found that is looked for, and the last window did not end within a run. A PV guest's table is
    /// read to its end: what it has no RAM for is of interest, too.
    fn is_over(&self) -> bool {
        // What Xen lends can be told from RAM only where Xen can be asked.
        let all_found = self.found >= self.owned && self.search == Search::UntilAllFound && self.asks_xen;
        all_found && !self.in_run && self.missing.is_none() && self.guest.kind != GuestKind::Pv
    }

    fn next_window(&mut self) -> Range<u64> {
        let pv = self.guest.kind == GuestKind::Pv;
        let Range { start, end } = self.rest;
        let size = (end - start).min(if pv { PV_WINDOW } else { WINDOW });
        if !self.in_run && !pv && self.missing.is_none() {
            self.at_top = !self.at_top;
        }
        if self.at_top {
            self.rest.end -= size;
            self.rest.end..end
        } else {
            self.rest.start += size;
            start..self.rest.start
        }
    }

    fn note(&mut self, pfns: Range<u64>, kind: FrameKind) {
        let count = pfns.end - pfns.start;
        match kind {
            FrameKind::Ram | FrameKind::PageTable | FrameKind::Broken => self.found += count,
            FrameKind::PagedOut => {
                self.paged_out += count;
                self.missing = self.missing.map(|missing| missing.saturating_sub(count));
            }
            FrameKind::Special => self.special += count,
            FrameKind::BalloonedOut => {}
        }
        self.extents.add(pfns, kind);
    }

    /// What frames are; of `None` nothing is asked.
    fn classify(&mut self, gfns: &[Option<Gfn>]) -> Result<Vec<Option<FrameKind>>> {
        let mut kinds = vec![None; gfns.len()];
        if self.asks_xen && self.missing.is_none() {
            let asked: Vec<Gfn> = gfns.iter().flatten().copied().collect();
            match self.guest.memory.page_frame_info(self.guest.domid, &asked) {
                Ok(info) => {
                    let frames = kinds.iter_mut().zip(gfns).filter(|(_, gfn)| gfn.is_some());
                    for ((kind, _), info) in frames.zip(info) {
                        *kind = kind_of(info);
                    }
                }
                // Not every Xen has it: on Arm there is none.
                Err(e) if e.errno() == libc::ENOSYS => self.asks_xen = false,
                Err(e) => return Err(e),
            }
        }
        let tries = self.worth_trying(gfns, &kinds);
        if tries.is_empty() {
            return Ok(kinds);
        }
        let frames: Vec<Gfn> = tries.iter().filter_map(|&index| gfns[index]).collect();
        let mapping = self.guest.memory.map_at_once(self.guest.domid, Protection::ReadOnly, &frames)?;
        let failed = mapping.failed();
        if failed.len() == frames.len() && failed.iter().all(|e| e.errno == libc::ESRCH) {
            return Err(Error::Frames(FrameErrors {
                domid: self.guest.domid,
                requested: frames.len(),
                failed: failed.to_vec(),
            }));
        }
        // Where Xen says that there is no RAM, it is a frame of its own.
        let mapped = if self.asks_xen { FrameKind::Special } else { FrameKind::Ram };
        for &index in &tries {
            kinds[index] = Some(mapped);
        }
        for &FrameError { index, errno, .. } in failed {
            kinds[tries[index]] = (errno == libc::ENOENT).then_some(FrameKind::PagedOut);
        }
        Ok(kinds)
    }

    /// The indices of the frames to try by mapping: of those of which Xen does not say that they are RAM.
    fn worth_trying(&mut self, gfns: &[Option<Gfn>], kinds: &[Option<FrameKind>]) -> Vec<usize> {
        let tries_all = !self.asks_xen || self.missing.is_some() || self.search == Search::EveryFrame;
        if !tries_all && kinds.iter().all(Option::is_none) {
            return Vec::new();
        }
        let unknown = |index: &usize| gfns[*index].is_some() && kinds[*index].is_none();
        let all: Vec<usize> = (0..gfns.len()).filter(unknown).collect();
        if tries_all {
            return all;
        }
        let runs = all.chunk_by(|a, b| a + 1 == *b).filter(|run| run.len() <= SHORT_RUN);
        let tries: Vec<usize> = runs.flatten().copied().take(MAX_TRIES - self.tries).collect();
        self.tries += tries.len();
        tries
    }

    /// When the frames are found that the domain owns: whether there are others left to look for.
    fn look_for_paged_out(&mut self) -> Result<bool> {
        let Guest { ref memory, domid, kind, .. } = *self.guest;
        if self.missing.is_some() || memory.domctl_version().is_none() {
            // An error if the domain has gone.
            return memory.current_reservation(domid).map(|_| false);
        }
        let info = memory.get_domain_info(domid)?;
        if self.found < self.owned && info.state == Some(DomainState::Dying) {
            let source = std::io::Error::from_raw_os_error(libc::ESRCH);
            return Err(Error::Hypercall { name: "XEN_DOMCTL_getdomaininfo", domid: Some(domid), source });
        }
        // Only a PV dom0 is told that a frame is paged out, and only when it maps it.
        let missing = info.paged_out.unwrap_or(0).saturating_sub(self.paged_out);
        if missing == 0 || kind == GuestKind::Pv || memory.host_kind() != HostKind::Pv {
            return Ok(false);
        }
        (self.rest, self.missing, self.at_top) = (0..self.end, Some(missing), false);
        Ok(true)
    }

    /// The frames of a window that were not found to be anything.
    fn unknown(&self, window: Range<u64>) -> Result<Vec<Option<Gfn>>> {
        window.map(|pfn| if self.extents.has(pfn) { Ok(None) } else { Gfn::new(pfn).map(Some) }).collect()
    }
}

impl<'m> Guest<'m> {
    /// Begins a search for the guest's RAM.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], and of a PV guest [`Error::P2m`].
    pub fn scan(&self, search: Search) -> Result<RamScan<'_, 'm>> {
        let end = match self.p2m()? {
            Some(p2m) => p2m.end(&self.memory)?,
            None => self.memory.maximum_gpfn(self.domid)?.min(Gfn::MAX.get()) + 1,
        };
        Ok(RamScan {
            guest: self,
            search,
            asks_xen: self.memory.domctl_version().is_some(),
            rest: 0..end,
            end,
            at_top: false,
            in_run: false,
            missing: None,
            tries: 0,
            found: 0,
            special: 0,
            paged_out: 0,
            owned: self.memory.current_reservation(self.domid)?,
            extents: Extents::default(),
        })
    }
}

/// What a frame is by what Xen says of it; `None` if it says that there is no RAM.
fn kind_of(info: u32) -> Option<FrameKind> {
    match info & uapi::XEN_DOMCTL_PFINFO_LTAB_MASK {
        uapi::XEN_DOMCTL_PFINFO_XTAB => None,
        uapi::XEN_DOMCTL_PFINFO_BROKEN => Some(FrameKind::Broken),
        tab if tab & uapi::XEN_DOMCTL_PFINFO_LTABTYPE_MASK != 0 => Some(FrameKind::PageTable),
        _ => Some(FrameKind::Ram),
    }
}
