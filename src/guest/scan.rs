//! The search for a guest's RAM: which frames to visit, and of which kind they are.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::ram_map::{Extents, FrameKind, RamMap, Search};
use super::route::{Route, SearchRange, Window};
use super::{Guest, arm_layout};
use crate::abi;
use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::handle::DomainState;
use crate::types::{Architecture, Gfn, GuestKind, HostKind, NumberRange, Pfn, Protection};

/// Frames per step: Xen describes at most this many in one call.
const WINDOW: u64 = 1024;
/// Frames per step for a PV guest. A frame of the p2m holds 512 entries, and a PV dom0 maps 16 frames in one call: 15
/// of the p2m, and the shared info page.
const PV_WINDOW: u64 = 15 * 512;

/// The longest run of frames next to RAM to try to map, and how many frames to try in all. A frame of Xen that
/// replaces RAM, such as the shared info page, is in a short run. But a guest that was ballooned down has such runs
/// everywhere, and in a PVH dom0 each frame costs two hypercalls.
const SHORT_RUN: usize = 16;
const MAX_TRIES: usize = 256;

/// A search for a guest's RAM, one step at a time, for callers that show progress or set a limit.
///
/// Created by [`Guest::scan`]. To search without a limit, call [`Guest::ram_map`].
///
/// # How it searches
///
/// Xen has no call that returns where a guest's RAM is. An x86 guest has most of its RAM at the bottom, often some at
/// the top, and a large hole in between. So the search begins at the top, follows a run of RAM to its end, and then
/// switches to the other end. It ends when it has found as many frames as Xen counts for the domain, but not within a
/// run, because frames that belong to Xen are not counted. If it finds more frames than Xen counts, it cannot know when
/// it has found all of them, and searches every frame number. It also does so for a PV guest's p2m, and where Xen
/// cannot be asked what a frame is.
///
/// On Arm, Xen cannot be asked, and trying to map a frame costs two hypercalls. But the toolstack puts RAM in two
/// banks, which start at 1 GiB and 8 GiB. If the domain owns more frames than the search finds there, it tries one
/// frame per 2 MiB elsewhere and, where that is RAM, those around it; then every frame below 1 TiB.
///
/// # How to stop it
///
/// A guest chooses its highest frame number, and can own a frame that cannot be found. Both together make a search
/// visit 2^36 frame numbers, which takes hours. Set a limit for [`idle_time`](RamScan::idle_time):
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
///         break; // `scan.not_searched()` returns what is left
///     }
/// }
/// assert_eq!(scan.into_map().ranges(), [0..160, 1 << 35..(1 << 35) + 1]);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Debug)]
pub struct RamScan {
    guest: Guest,
    search: Search,
    /// Whether Xen can be asked what a frame is. Otherwise, the search tries to map it.
    asks_xen: bool,
    route: Route,
    /// All frame numbers are below this one.
    end: u64,
    /// Whether the last window ended within a run of RAM.
    in_run: bool,
    /// How many paged-out frames are left to find, once everything else was found.
    missing: Option<u64>,
    /// How many frames that are not known to be RAM were tried; at most [`MAX_TRIES`].
    tries: usize,
    /// How many frames to map at a time: in some domains, each takes a page of this domain's own memory.
    max_mapped: usize,
    found: u64,
    special: u64,
    paged_out: u64,
    /// How many frames Xen counted for the domain when the search began.
    counted: u64,
    extents: Extents,
    /// The time spent in steps that found no RAM.
    idle: Duration,
    ended: bool,
}

impl RamScan {
    /// Takes the next step, which searches a few thousand frames at most. Returns `false` once the search has ended.
    /// After an error, the step can be retried.
    ///
    /// # Errors
    ///
    /// Those of mapping; [`Error::Hypercall`] (with ESRCH if the domain has died); for a PV guest, [`Error::P2m`].
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
            return self.search_paged_out();
        }
        let before = self.route.clone();
        let Some(window) = self.route.next(self.in_run) else { return self.search_paged_out() };
        let kinds = match self.search_window(&window) {
            Ok(kinds) => kinds,
            Err(e) => {
                self.route = before;
                return Err(e);
            }
        };
        if window.step > 1 {
            self.search_around(&window, &kinds);
            return Ok(true);
        }
        let mut pfn = window.pfns.start;
        for run in kinds.chunk_by(|a, b| a == b) {
            let pfns = pfn..pfn + run.len() as u64;
            pfn = pfns.end;
            if let Some(kind) = run[0] {
                self.record(pfns, kind);
            }
        }
        let innermost = if window.at_top { kinds.first() } else { kinds.last() };
        self.in_run = !window.ends_range && innermost.is_some_and(Option::is_some);
        Ok(true)
    }

    /// Returns the kind of each frame that a window visits.
    fn search_window(&mut self, window: &Window) -> Result<Vec<Option<FrameKind>>> {
        let pv = self.guest.kind == GuestKind::Pv;
        let named = self.found + self.special;
        if pv && named > self.counted.saturating_mul(2).saturating_add(PV_WINDOW) {
            let reason = "it names the same frames over and over";
            return Err(Error::P2m { domid: self.guest.domid, reason });
        }
        let asks = self.asks_xen && self.missing.is_none();
        let gfns = if pv || asks { self.guest.gfns(window.pfns.clone().try_into()?)? } else { self.unknown(window)? };
        let kinds = self.classify(&gfns)?.into_iter();
        Ok(kinds.map(|kind| kind.or(pv.then_some(FrameKind::BalloonedOut))).collect())
    }

    /// Returns how many frames of RAM were found so far.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Returns how many frames the domain owned or shared when the search began: about as many as the search will find.
    #[must_use]
    pub fn owned(&self) -> u64 {
        self.counted
    }

    /// Returns how many frames are left to visit if the search has to go everywhere, for showing progress.
    ///
    /// On Arm this number grows when RAM is found where none was expected. It is not 0 when the search ends early
    /// because all RAM was found.
    #[must_use]
    pub fn untried(&self) -> u64 {
        self.route.left()
    }

    /// Returns how long the steps that found no RAM have taken. This is the only part of a search that a guest can
    /// prolong without owning more memory.
    #[must_use]
    pub fn idle_time(&self) -> Duration {
        self.idle
    }

    /// Returns the frame numbers left to search, in ascending order; none once the search has ended.
    #[must_use]
    pub fn not_searched(&self) -> Vec<NumberRange<Pfn>> {
        if self.ended { Vec::new() } else { self.extents.missing_from(self.route.ranges_left()) }
    }

    /// Returns what was found so far.
    #[must_use]
    pub fn into_map(self) -> RamMap {
        self.extents.into_map(self.counted.saturating_sub(self.found))
    }

    /// Returns whether all RAM was found and the last window did not end within a run.
    fn is_over(&self) -> bool {
        if self.in_run || self.route.is_needed() {
            return false;
        }
        if self.guest.memory.architecture() == Architecture::Arm64 {
            return self.found >= self.counted;
        }
        // Xen counts a frame of a fork only once it was touched, so the few at the top could be mistaken for all. The
        // bottom, where every guest has RAM, settles it; counting again would not, since the search touches frames.
        self.found == self.counted && self.route.has_seen_bottom()
    }

    /// Queues the blocks of which the visited frame is RAM, and the blocks next to them.
    fn search_around(&mut self, window: &Window, kinds: &[Option<FrameKind>]) {
        let mut around: Vec<Range<u64>> = Vec::new();
        for (pfn, _) in window.visited().zip(kinds).filter(|(_, kind)| kind.is_some()) {
            let pfns = pfn.saturating_sub(window.step)..(pfn + 2 * window.step).min(self.end);
            match around.last_mut() {
                Some(last) if last.end >= pfns.start => last.end = pfns.end,
                _ => around.push(pfns),
            }
        }
        for pfns in around {
            self.route.search_next(pfns);
        }
    }

    fn record(&mut self, pfns: Range<u64>, kind: FrameKind) {
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

    /// Returns the kind of each frame; `None` stays `None`.
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
        let tries = self.frames_to_try(gfns, &kinds);
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

    /// Maps frames, in parts if this domain has too little memory for all at once. Returns those that failed.
    fn try_to_map(&mut self, gfns: &[Gfn]) -> Result<Vec<FrameError>> {
        let Guest { ref memory, domid, .. } = self.guest;
        let (mut failed, mut done) = (Vec::new(), 0);
        while done < gfns.len() {
            let rest = &gfns[done..];
            let part = &rest[..rest.len().min(self.max_mapped)];
            match memory.map_at_once(domid, Protection::ReadOnly, part) {
                Ok(mapping) => {
                    failed.extend(mapping.failed().iter().map(|e| FrameError { index: done + e.index, ..*e }));
                    done += part.len();
                }
                Err(e) if e.errno() == libc::ENOMEM && part.len() > 1 => self.max_mapped = part.len() / 2,
                Err(e) => return Err(e),
            }
        }
        Ok(failed)
    }

    /// Returns the kind of a frame that can be mapped although Xen did not report it as RAM.
    fn kind_of_mapped(&self, gfn: Gfn) -> FrameKind {
        let special = match self.guest.memory.architecture() {
            // Xen, if it was asked, has reported that it is not RAM.
            Architecture::X86 => self.asks_xen,
            Architecture::Arm64 => arm_layout::is_special(gfn.get()),
        };
        if special { FrameKind::Special } else { FrameKind::Ram }
    }

    /// Returns the indices of the frames to try to map, of those that Xen did not report as RAM.
    fn frames_to_try(&mut self, gfns: &[Option<Gfn>], kinds: &[Option<FrameKind>]) -> Vec<usize> {
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

    /// Called when the frames that the domain owns were found. Returns whether paged-out frames are left to find.
    fn search_paged_out(&mut self) -> Result<bool> {
        let Guest { ref memory, domid, kind, .. } = self.guest;
        if self.missing.is_some() || memory.domctl_version().is_none() {
            // Fails if the domain is gone.
            return memory.current_reservation(domid).map(|_| false);
        }
        let info = memory.get_domain_info(domid)?;
        if self.found < self.counted && info.state == Some(DomainState::Dying) {
            let source = std::io::Error::from_raw_os_error(libc::ESRCH);
            return Err(Error::Hypercall { name: "XEN_DOMCTL_getdomaininfo", domid: Some(domid), source });
        }
        // Only a PV dom0 learns that a frame is paged out, and only by mapping it.
        let missing = info.paged_out.unwrap_or(0).saturating_sub(self.paged_out);
        if missing == 0 || kind == GuestKind::Pv || memory.host_kind() != HostKind::Pv {
            return Ok(false);
        }
        let all = SearchRange { pfns: 0..self.end, step: 1, needed: true };
        (self.route, self.missing) = (Route::in_order([all], WINDOW), Some(missing));
        Ok(true)
    }

    /// Returns the frames that a window visits; `None` for those whose kind is known.
    fn unknown(&self, window: &Window) -> Result<Vec<Option<Gfn>>> {
        let unknown = |pfn| if self.extents.has(pfn) { Ok(None) } else { Ok(Some(Gfn::new(pfn)?)) };
        window.visited().map(unknown).collect()
    }
}

impl Guest {
    /// Begins a search for the guest's RAM, which touches every frame of the guest.
    ///
    /// Checks first that this does not crash the guest ([`check_populated`](Guest::check_populated)). Only a control
    /// domain may ask Xen about that: in a device model's own domain, use [`scan_populating`](Guest::scan_populating).
    ///
    /// For an example, see [`RamScan`].
    ///
    /// # Errors
    ///
    /// [`Error::PopulateOnDemand`] if the search would crash the guest; [`Error::Hypercall`]; for a PV guest,
    /// [`Error::P2m`].
    pub fn scan(&self, search: Search) -> Result<RamScan> {
        self.check_populated()?;
        self.scan_populating(search)
    }

    /// Begins a search without checking for [populate on demand](crate::PopulateOnDemand): the search allocates memory
    /// for each frame of such a guest, and Xen crashes the guest when it has no memory left for it.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`]; for a PV guest, [`Error::P2m`].
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
            max_mapped: usize::MAX,
            found: 0,
            special: 0,
            paged_out: 0,
            counted,
            extents: Extents::default(),
            idle: Duration::ZERO,
            ended: false,
        })
    }

    /// Returns how many frames Xen counts for the domain (those that it owns or shares), and whether it shares any.
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

    /// Returns the order in which to search the frames below `end`. Without `counts_add_up`, that is all of them: Xen
    /// counts a fork's frames only once they were touched, and only Xen can tell its own frames from RAM.
    fn route(&self, search: Search, end: u64, counts_add_up: bool) -> Result<Route> {
        let on_arm = self.memory.architecture() == Architecture::Arm64;
        let whole = |needed| SearchRange { pfns: 0..end, step: 1, needed };
        Ok(match search {
            // A PV guest's map includes the entries without RAM.
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

/// Converts what Xen reports about a frame; `None` if there is no RAM.
fn kind_of(info: u32) -> Option<FrameKind> {
    match info & abi::XEN_DOMCTL_PFINFO_LTAB_MASK {
        abi::XEN_DOMCTL_PFINFO_XTAB => None,
        abi::XEN_DOMCTL_PFINFO_BROKEN => Some(FrameKind::Broken),
        tab if tab & abi::XEN_DOMCTL_PFINFO_LTABTYPE_MASK != 0 => Some(FrameKind::PageTable),
        _ => Some(FrameKind::Ram),
    }
}
