//! The search for a guest's RAM: which frames to look at, in which order, and what they are.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::ram_map::{Extents, FrameKind, RamMap, Search};
use super::route::{Route, SearchRange, Window};
use super::{Guest, arm_layout};
use crate::abi;
use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::handle::DomainState;
use crate::types::{Architecture, Gfn, GuestKind, HostKind, NumberRange, Pfn, Protection};

/// Frames of a step: Xen tells about so many with one call.
const WINDOW: u64 = 1024;
/// The same for a PV guest, whose table has 512 of them in a frame, of which a PV dom0 maps 16 with one call.
const PV_WINDOW: u64 = 15 * 512;

/// The longest run of frames next to RAM that is tried by mapping, and how many frames are in all. A frame of Xen's
/// that took the place of RAM, as the shared info page does, is in a short run. But a guest that has given RAM back has
/// such runs everywhere, and in a PVH dom0 each frame costs two hypercalls.
const SHORT_RUN: usize = 16;
const MAX_TRIES: usize = 256;

/// A search for a guest's RAM, step by step, for callers that show progress or set a limit.
///
/// No call tells where a guest's RAM is. On x86 it has most of it at the bottom, often some at the top, and a large
/// hole in between. So the search begins at the top, follows a run of RAM to its end, and there goes on at the other
/// end. It is over when as many frames were found as Xen counts for the domain, but never within a run, since what Xen
/// lends is not counted. If more frames are found than Xen counts, it cannot tell when it has found all of them, and
/// goes through every frame number. So it does with a PV guest's table, and where Xen cannot be asked what a frame is.
///
/// On Arm Xen cannot be asked, so each frame is tried by mapping it, which costs two hypercalls. But it is known where
/// the toolstack puts RAM: in two banks, which begin at 1 and 8 GiB. It looks elsewhere only if less was found than
/// the domain owns: at one frame of each 2 MiB and, if that is RAM, at those around it; then at each frame below 1 TiB.
///
/// A guest decides what its highest frame is, and can own a frame that cannot be found. Both together make a search
/// go through 2^36 frame numbers, which takes hours. [`idle_time`](RamScan::idle_time) bounds that:
///
/// ```
/// use std::time::Duration;
/// use xenmap::mock::MockHost;
/// use xenmap::{Gfn, Guest, GuestKind, Search};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 160);
/// domain.populate(&[Gfn::new(1 << 35)?]);
///
/// let memory = host.open()?;
/// let guest = Guest::open(&memory, domain.domid())?;
/// let mut scan = guest.scan(Search::default())?;
/// while scan.step()? {
///     if scan.idle_time() > Duration::from_secs(60) {
///         break; // `scan.not_searched()` tells what is left
///     }
/// }
/// assert_eq!(scan.into_map().ranges(), [0..160, 1 << 35..(1 << 35) + 1]);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Debug)]
pub struct RamScan {
    guest: Guest,
    search: Search,
    /// Whether Xen tells what a frame is. Else it is tried by mapping it.
    asks_xen: bool,
    route: Route,
    end: u64,
    in_run: bool,
    /// Whether the search is over but for paged-out frames, of which it looks for so many.
    missing: Option<u64>,
    tries: usize,
    /// How many frames are mapped at a time at most: in some domains each takes a page of our own memory.
    most_mapped: usize,
    found: u64,
    special: u64,
    paged_out: u64,
    /// How many frames Xen counted for the domain when the search began.
    counted: u64,
    extents: Extents,
    idle: Duration,
    ended: bool,
}

impl RamScan {
    /// Takes the next step; `false` once the search is over. After an error it can be taken again.
    ///
    /// # Errors
    ///
    /// Those of mapping, [`Error::Hypercall`] (with `ESRCH` if the domain has died meanwhile), and of a PV guest
    /// [`Error::P2m`].
    pub fn step(&mut self) -> Result<bool> {
        let (start, before) = (Instant::now(), self.found + self.paged_out);
        let more = self.take_step();
        if self.found + self.paged_out == before {
            self.idle += start.elapsed();
        }
        self.ended = matches!(more, Ok(false));
        more
    }

    fn take_step(&mut self) -> Result<bool> {
        if self.missing == Some(0) || self.is_over() {
            return self.look_for_paged_out();
        }
        let before = self.route.clone();
        let Some(window) = self.route.next(self.in_run) else { return self.look_for_paged_out() };
        let kinds = match self.look_at(&window) {
            Ok(kinds) => kinds,
            Err(e) => {
                self.route = before;
                return Err(e);
            }
        };
        if window.step > 1 {
            self.look_around(&window, &kinds);
            return Ok(true);
        }
        let mut pfn = window.pfns.start;
        for run in kinds.chunk_by(|a, b| a == b) {
            let pfns = pfn..pfn + run.len() as u64;
            pfn = pfns.end;
            if let Some(kind) = run[0] {
                self.note(pfns, kind);
            }
        }
        let innermost = if window.at_top { kinds.first() } else { kinds.last() };
        self.in_run = !window.ends_range && innermost.is_some_and(Option::is_some);
        Ok(true)
    }

    /// What the frames of a window are.
    fn look_at(&mut self, window: &Window) -> Result<Vec<Option<FrameKind>>> {
        let pv = self.guest.kind == GuestKind::Pv;
        let named = self.found + self.special;
        if pv && named > self.counted.saturating_mul(2).saturating_add(PV_WINDOW) {
            let reason = "it names the same frames again and again";
            return Err(Error::P2m { domid: self.guest.domid, reason });
        }
        let asks = self.asks_xen && self.missing.is_none();
        let gfns = if pv || asks { self.guest.gfns(window.pfns.clone().try_into()?)? } else { self.unknown(window)? };
        let kinds = self.classify(&gfns)?.into_iter();
        Ok(kinds.map(|kind| kind.or(pv.then_some(FrameKind::BalloonedOut))).collect())
    }

    /// How many frames of RAM were found so far.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// How many frames the domain owns or shares, which is about how many will be found.
    #[must_use]
    pub fn owned(&self) -> u64 {
        self.counted
    }

    /// How many tries are left if the search has to look everywhere; on Arm more, once RAM is found where none was
    /// expected. Some are left if it is over before.
    #[must_use]
    pub fn untried(&self) -> u64 {
        self.route.left()
    }

    /// How long the steps have taken that found no RAM. This is the only part of a search that a guest can prolong
    /// without owning more memory.
    #[must_use]
    pub fn idle_time(&self) -> Duration {
        self.idle
    }

    /// The frame numbers that are still to be looked at, in ascending order; none once the search is over.
    #[must_use]
    pub fn not_searched(&self) -> Vec<NumberRange<Pfn>> {
        if self.ended { Vec::new() } else { self.extents.missing_of(self.route.ranges_left()) }
    }

    /// What was found so far.
    #[must_use]
    pub fn into_map(self) -> RamMap {
        self.extents.into_map(self.counted.saturating_sub(self.found))
    }

    /// Whether all was found that is looked for, and the last window did not end within a run.
    fn is_over(&self) -> bool {
        if self.in_run || self.route.is_needed() {
            return false;
        }
        if self.guest.memory.architecture() == Architecture::Arm64 {
            return self.found >= self.counted;
        }
        // Xen counts a fork's frames only once they were touched, so the few at the top could be taken for all: the
        // bottom, where every guest has RAM, tells. Counting again would not, since it counts what was just touched.
        self.found == self.counted && self.route.has_seen_bottom()
    }

    /// Has the blocks looked at of which one frame is RAM, and those next to them.
    fn look_around(&mut self, window: &Window, kinds: &[Option<FrameKind>]) {
        let mut around: Vec<Range<u64>> = Vec::new();
        for (pfn, _) in window.tried().zip(kinds).filter(|(_, kind)| kind.is_some()) {
            let pfns = pfn.saturating_sub(window.step)..(pfn + 2 * window.step).min(self.end);
            match around.last_mut() {
                Some(last) if last.end >= pfns.start => last.end = pfns.end,
                _ => around.push(pfns),
            }
        }
        for pfns in around {
            self.route.look_closely(pfns);
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
            let info = self.guest.memory.page_frame_info(self.guest.domid, &asked)?;
            let frames = kinds.iter_mut().zip(gfns).filter(|(_, gfn)| gfn.is_some());
            for ((kind, _), info) in frames.zip(info) {
                *kind = kind_of(info);
            }
        }
        let tries = self.worth_trying(gfns, &kinds);
        if tries.is_empty() {
            return Ok(kinds);
        }
        let frames: Vec<Gfn> = tries.iter().filter_map(|&index| gfns[index]).collect();
        let failed = self.try_to_map(&frames)?;
        if failed.len() == frames.len() && failed.iter().all(|e| e.errno == libc::ESRCH) {
            return Err(Error::Frames(FrameErrors { domid: self.guest.domid, requested: frames.len(), failed }));
        }
        for &index in &tries {
            kinds[index] = gfns[index].map(|gfn| self.kind_of_mapped(gfn));
        }
        for FrameError { index, errno, .. } in failed {
            kinds[tries[index]] = (errno == libc::ENOENT).then_some(FrameKind::PagedOut);
        }
        Ok(kinds)
    }

    /// Maps frames, in parts if there is too little memory of our own for all at once, and returns those that fail.
    fn try_to_map(&mut self, gfns: &[Gfn]) -> Result<Vec<FrameError>> {
        let Guest { ref memory, domid, .. } = self.guest;
        let (mut failed, mut done) = (Vec::new(), 0);
        while done < gfns.len() {
            let rest = &gfns[done..];
            let part = &rest[..rest.len().min(self.most_mapped)];
            match memory.map_at_once(domid, Protection::ReadOnly, part) {
                Ok(mapping) => {
                    failed.extend(mapping.failed().iter().map(|e| FrameError { index: done + e.index, ..*e }));
                    done += part.len();
                }
                Err(e) if e.errno() == libc::ENOMEM && part.len() > 1 => self.most_mapped = part.len() / 2,
                Err(e) => return Err(e),
            }
        }
        Ok(failed)
    }

    /// What a frame is that can be mapped, though Xen has not said that it is RAM.
    fn kind_of_mapped(&self, gfn: Gfn) -> FrameKind {
        let special = match self.guest.memory.architecture() {
            // It has said that it is none.
            Architecture::X86 => self.asks_xen,
            Architecture::Arm64 => arm_layout::is_special(gfn.get()),
        };
        if special { FrameKind::Special } else { FrameKind::Ram }
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
        let Guest { ref memory, domid, kind, .. } = self.guest;
        if self.missing.is_some() || memory.domctl_version().is_none() {
            // An error if the domain has gone.
            return memory.current_reservation(domid).map(|_| false);
        }
        let info = memory.get_domain_info(domid)?;
        if self.found < self.counted && info.state == Some(DomainState::Dying) {
            let source = std::io::Error::from_raw_os_error(libc::ESRCH);
            return Err(Error::Hypercall { name: "XEN_DOMCTL_getdomaininfo", domid: Some(domid), source });
        }
        // Only a PV dom0 is told that a frame is paged out, and only when it maps it.
        let missing = info.paged_out.unwrap_or(0).saturating_sub(self.paged_out);
        if missing == 0 || kind == GuestKind::Pv || memory.host_kind() != HostKind::Pv {
            return Ok(false);
        }
        let all = SearchRange { pfns: 0..self.end, step: 1, needed: true };
        (self.route, self.missing) = (Route::in_order([all], WINDOW), Some(missing));
        Ok(true)
    }

    /// The frames that a window tries and that were not found to be anything.
    fn unknown(&self, window: &Window) -> Result<Vec<Option<Gfn>>> {
        let unknown = |pfn| if self.extents.has(pfn) { Ok(None) } else { Ok(Some(Gfn::new(pfn)?)) };
        window.tried().map(unknown).collect()
    }
}

impl Guest {
    /// Begins a search for the guest's RAM. It touches every frame of the guest.
    ///
    /// It checks first that this does no harm ([`check_populated`](Guest::check_populated)). Only a control domain may
    /// ask Xen about that: a device model's own domain uses [`scan_populating`](Guest::scan_populating).
    ///
    /// # Errors
    ///
    /// [`Error::PopulateOnDemand`] if that would crash the guest; [`Error::Hypercall`], and of a PV guest
    /// [`Error::P2m`].
    pub fn scan(&self, search: Search) -> Result<RamScan> {
        self.check_populated()?;
        self.scan_populating(search)
    }

    /// Begins a search that does not spare a [populate-on-demand](crate::PopulateOnDemand) guest: each of its frames
    /// gets memory, and Xen crashes the guest when that is used up.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], and of a PV guest [`Error::P2m`].
    pub fn scan_populating(&self, search: Search) -> Result<RamScan> {
        let end = match self.p2m()? {
            Some(p2m) => p2m.end(&self.memory)?,
            None => self.memory.maximum_gpfn(self.domid)?.min(Gfn::MAX.get()) + 1,
        };
        let on_arm = self.memory.architecture() == Architecture::Arm64;
        let asks_xen = self.memory.domctl_version().is_some() && !on_arm;
        let (counted, shares) = self.counted_frames()?;
        Ok(RamScan {
            guest: self.clone(),
            search,
            asks_xen,
            route: self.route(search, end, asks_xen && !shares)?,
            end,
            in_run: false,
            missing: None,
            tries: 0,
            most_mapped: usize::MAX,
            found: 0,
            special: 0,
            paged_out: 0,
            counted,
            extents: Extents::default(),
            idle: Duration::ZERO,
            ended: false,
        })
    }

    /// How many frames Xen counts for the domain: those that it owns and those that it shares with others; and whether
    /// there are any of the latter.
    fn counted_frames(&self) -> Result<(u64, bool)> {
        let on_arm = self.memory.architecture() == Architecture::Arm64;
        if on_arm || self.memory.domctl_version().is_none() {
            // On Arm no frames are shared.
            return Ok((self.memory.current_reservation(self.domid)?, false));
        }
        let info = self.memory.get_domain_info(self.domid)?;
        let shared = info.shared.unwrap_or(0);
        Ok((info.pages.saturating_add(shared), shared > 0))
    }

    /// In which order to look at the frames below `end`. Without `counts_add_up`, all of them are looked at: Xen counts
    /// a fork's frames only once they were touched, and what it lends can be told from RAM only where it can be asked.
    fn route(&self, search: Search, end: u64, counts_add_up: bool) -> Result<Route> {
        let on_arm = self.memory.architecture() == Architecture::Arm64;
        let whole = |needed| SearchRange { pfns: 0..end, step: 1, needed };
        Ok(match search {
            // What a PV guest has no RAM for is of interest, too.
            _ if self.kind == GuestKind::Pv => Route::in_order([whole(true)], PV_WINDOW),
            Search::UntilAllFound if on_arm => {
                let max_pages = self.memory.maximum_reservation(self.domid)?;
                Route::in_order(arm_layout::ranges(end, max_pages), WINDOW)
            }
            Search::UntilAllFound => Route::from_both_ends(whole(!counts_add_up), WINDOW),
            Search::EveryFrame => Route::from_both_ends(whole(true), WINDOW),
        })
    }
}

/// What a frame is by what Xen says of it; `None` if it says that there is no RAM.
fn kind_of(info: u32) -> Option<FrameKind> {
    match info & abi::XEN_DOMCTL_PFINFO_LTAB_MASK {
        abi::XEN_DOMCTL_PFINFO_XTAB => None,
        abi::XEN_DOMCTL_PFINFO_BROKEN => Some(FrameKind::Broken),
        tab if tab & abi::XEN_DOMCTL_PFINFO_LTABTYPE_MASK != 0 => Some(FrameKind::PageTable),
        _ => Some(FrameKind::Ram),
    }
}
