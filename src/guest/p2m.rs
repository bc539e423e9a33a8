//! A PV guest's p2m: the guest's own table of the machine frame for each of its frames.
//!
//! The guest keeps the p2m in its RAM, and publishes its place in the page that it shares with Xen: as a list of lists
//! of the p2m's frames, as a linear table in its virtual memory (reached through its page tables), or both (`struct
//! arch_shared_info` of xen/include/public/arch-x86/xen.h; Linux' arch/x86/xen/p2m.c).
//!
//! The guest may change all of this at any time, and write anything there. So it can name any frame that Xen maps on
//! its behalf: its own frames and, in a PV dom0 (`get_page_from_l1e` of xen/arch/x86/mm.c), those of the guest that it
//! serves as a stub domain, those of any domain if it is privileged itself, and the registers of a device that was
//! passed through to it. It can access all of these without us: the worst it can do is to make them appear at wrong
//! addresses. Nothing here relies on more than that: what is read from the p2m only selects the frames to map next, and
//! mapped memory is accessed as memory that others write.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::vcpu::{address_size, compat_cr3};
use crate::abi;
use crate::error::{Error, Result};
use crate::handle::ForeignMemory;
use crate::handle::domctl::{u32_at, u64_at};
use crate::mapping::{Access, ForeignMapping, View};
use crate::types::{Domid, FRAME_SIZE, Gfn, NumberRange, Pfn, Protection};

/// How often to look up the p2m while the guest changes it, and the time between two attempts.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(1);

/// Spare entries that a p2m may have. Linux sizes its p2m for 512 GiB (`XEN_BALLOON_MEMORY_HOTPLUG_LIMIT`), or for its
/// RAM if that is more, so a claim of more entries than these plus one for each frame is not credible.
const ROOM: u64 = 1 << 27;

/// Entries of a page table, of a 64-bit or a PAE kernel.
const PTES: u64 = 512;

/// A PV guest's p2m.
#[derive(Debug)]
pub(super) struct P2m {
    domid: Domid,
    width: Width,
    shared_info: Gfn,
    /// The part of a linear table that was used last, which is usually needed next. Lists are not cached: they have no
    /// generation that would reveal a change.
    last: Mutex<Option<Arc<Part>>>,
}

/// The word size of the guest's kernel, and so of the p2m's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits32,
    Bits64,
}

/// What the guest publishes about its p2m.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    max_pfn: u64,
    list: u64,
    cr3: u64,
    vaddr: u64,
    generation: u64,
}

/// Where a lookup starts. What was found from a root is valid as long as the guest publishes the same root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    /// The top page table of the address space that has the p2m at `vaddr`. Another generation means that the p2m may
    /// have moved.
    Linear { cr3: Gfn, vaddr: u64, generation: u64 },
    /// The list of lists.
    List(Gfn),
}

/// The frames of a part of the p2m: as many as one page table or one list refers to.
#[derive(Debug)]
struct Part {
    root: Root,
    number: u64,
    frames: Vec<Option<Gfn>>,
}

impl Width {
    fn entry_bytes(self) -> usize {
        match self {
            Width::Bits32 => 4,
            Width::Bits64 => 8,
        }
    }

    /// The entries in a frame of the p2m, or of a list.
    fn entries(self) -> u64 {
        (FRAME_SIZE / self.entry_bytes()) as u64
    }

    /// Reads the word at an offset.
    fn read(self, memory: &View<'_>, offset: usize) -> Result<u64> {
        match self {
            Width::Bits32 => memory.read::<u32>(offset).map(u64::from),
            Width::Bits64 => memory.read(offset),
        }
    }

    fn values(self, bytes: &[u8]) -> impl Iterator<Item = u64> {
        bytes.chunks_exact(self.entry_bytes()).map(move |word| match self {
            Width::Bits32 => u32_at(word, 0).into(),
            Width::Bits64 => u64_at(word, 0),
        })
    }

    /// Returns the machine frame of an entry. An entry without a frame of the guest's own has all bits set, or one of
    /// the two highest (Linux' `FOREIGN_FRAME_BIT` and `IDENTITY_FRAME_BIT`).
    fn machine_frame(self, entry: u64) -> Option<Gfn> {
        let flags = 0b11 << (8 * self.entry_bytes() - 2);
        if entry & flags == 0 { Gfn::new(entry).ok() } else { None }
    }
}

impl Anchor {
    /// Reads what the guest publishes, from the page that it shares with Xen.
    fn read(width: Width, page: &View<'_>) -> Result<Anchor> {
        let offsets = match width {
            Width::Bits32 => [
                abi::SHARED_INFO_32_MAX_PFN,
                abi::SHARED_INFO_32_FRAME_LIST_LIST,
                abi::SHARED_INFO_32_P2M_CR3,
                abi::SHARED_INFO_32_P2M_VADDR,
                abi::SHARED_INFO_32_P2M_GENERATION,
            ],
            Width::Bits64 => [
                abi::SHARED_INFO_64_MAX_PFN,
                abi::SHARED_INFO_64_FRAME_LIST_LIST,
                abi::SHARED_INFO_64_P2M_CR3,
                abi::SHARED_INFO_64_P2M_VADDR,
                abi::SHARED_INFO_64_P2M_GENERATION,
            ],
        };
        let mut words = [0; 5];
        for (word, offset) in words.iter_mut().zip(offsets) {
            *word = width.read(page, offset as usize)?;
        }
        let [max_pfn, list, cr3, vaddr, generation] = words;
        Ok(Anchor { max_pfn, list, cr3, vaddr, generation })
    }

    /// Returns the linear table, if the guest has one, even while the guest changes it.
    fn linear(&self, width: Width) -> Option<Root> {
        if self.cr3 == 0 || !self.vaddr.is_multiple_of(FRAME_SIZE as u64) {
            return None;
        }
        let cr3 = match width {
            Width::Bits32 => compat_cr3(u32::try_from(self.cr3).ok()?),
            Width::Bits64 => self.cr3,
        };
        Some(Root::Linear { cr3: Gfn::containing(cr3).ok()?, vaddr: self.vaddr, generation: self.generation })
    }

    /// Returns the list of lists, if the guest has one. 0 means not yet, all ones never.
    fn list(&self, width: Width) -> Option<Root> {
        if self.list == 0 { None } else { width.machine_frame(self.list).map(Root::List) }
    }

    /// Returns whether what was found from this root is still valid.
    fn has(&self, width: Width, root: Root) -> bool {
        [self.linear(width), self.list(width)].contains(&Some(root)) && root.is_settled()
    }
}

impl Root {
    /// Returns whether the guest is not changing the p2m: while it does, the generation is odd.
    fn is_settled(self) -> bool {
        !matches!(self, Root::Linear { generation, .. } if !generation.is_multiple_of(2))
    }

    /// Returns the number of the part that has this frame of the p2m, and the frame's index in that part.
    fn place(self, width: Width, page: u64) -> Option<(u64, u64)> {
        match self {
            Root::List(_) => Some((page / width.entries(), page % width.entries())),
            Root::Linear { vaddr, .. } => {
                let number = (vaddr / FRAME_SIZE as u64).checked_add(page)?;
                Some((number / PTES, number % PTES))
            }
        }
    }
}

impl P2m {
    /// Finds the p2m of a guest.
    pub(super) fn find(memory: &ForeignMemory, domid: Domid) -> Result<P2m> {
        let error = |reason| Error::P2m { domid, reason };
        let width = match address_size(memory, domid)? {
            32 => Width::Bits32,
            64 => Width::Bits64,
            _ => return Err(error("the guest is neither 32-bit nor 64-bit")),
        };
        let shared_info = memory.shared_info_frame(domid)?;
        let p2m = P2m { domid, width, shared_info, last: Mutex::default() };
        let anchor = p2m.anchor(memory)?;
        if anchor.max_pfn == 0 || (anchor.cr3 == 0 && anchor.list == 0) {
            return Err(error("the guest has not started"));
        }
        if anchor.linear(width).or(anchor.list(width)).is_none() {
            return Err(error("the guest does not say where it is"));
        }
        Ok(p2m)
    }

    /// Returns the end of the p2m: all pfns of the guest are below, until it extends its p2m.
    pub(super) fn end(&self, memory: &ForeignMemory) -> Result<u64> {
        Ok(self.anchor(memory)?.max_pfn.min(memory.current_reservation(self.domid)?.saturating_add(ROOM)))
    }

    /// Returns the machine frame of each pfn; `None` where the guest has no RAM of its own.
    pub(super) fn lookup(&self, memory: &ForeignMemory, pfns: NumberRange<Pfn>) -> Result<Vec<Option<Gfn>>> {
        let mut gfns = Vec::new();
        let Range { start: mut next, end } = pfns.numbers();
        while next < end {
            let found = self.lookup_part(memory, next..end)?;
            next += found.len() as u64;
            gfns.extend(found);
        }
        Ok(gfns)
    }

    /// Returns the machine frames of the first pfns: at least one, and at most those in one part of the p2m.
    fn lookup_part(&self, memory: &ForeignMemory, pfns: Range<u64>) -> Result<Vec<Option<Gfn>>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(part) = last
            && let Some(first) = self.place_in(&part, pfns.start)
            && let Ok(Some(gfns)) = self.read_entries(memory, &part, first, pfns.clone())
        {
            return Ok(gfns);
        }
        let mut failure = self.error("the guest keeps changing it: pause the guest");
        let mut anchor = self.anchor(memory)?;
        for _ in 0..ATTEMPTS {
            // A guest with a linear table may no longer maintain its list, so the linear table comes first.
            let Some(root) = anchor.linear(self.width) else { break };
            if root.is_settled() {
                match self.lookup_from(memory, root, pfns.clone()) {
                    Ok(Some(gfns)) => return Ok(gfns),
                    Err(e @ Error::P2m { .. }) => failure = e,
                    Ok(None) => {}
                    Err(e) => return Err(e),
                }
            }
            anchor = self.anchor(memory)?;
            if anchor.has(self.width, root) {
                // The guest has not changed the p2m, so a retry would fail the same way.
                break;
            }
            std::thread::sleep(PAUSE);
        }
        let Some(root) = anchor.list(self.width) else { return Err(failure) };
        self.lookup_from(memory, root, pfns)?.ok_or(failure)
    }

    /// Like `lookup_part`, from a root; `None` if the guest has changed the p2m meanwhile.
    fn lookup_from(&self, memory: &ForeignMemory, root: Root, pfns: Range<u64>) -> Result<Option<Vec<Option<Gfn>>>> {
        let place = root.place(self.width, pfns.start / self.width.entries());
        let (number, first) =
            place.ok_or_else(|| self.error("it reaches past the end of the guest's virtual memory"))?;
        let part = Arc::new(Part { root, number, frames: self.frames(memory, root, number)? });
        let gfns = self.read_entries(memory, &part, first, pfns)?;
        if gfns.is_some() && matches!(root, Root::Linear { .. }) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(part);
        }
        Ok(gfns)
    }

    /// Returns the index, in a part, of the frame with a pfn's entry; `None` if that frame is in another part.
    fn place_in(&self, part: &Part, pfn: u64) -> Option<u64> {
        let (number, first) = part.root.place(self.width, pfn / self.width.entries())?;
        (number == part.number).then_some(first)
    }

    /// Reads the entries of pfns from the frames of a part, of which frame `first` has the first entry. `None` if the
    /// part is stale.
    fn read_entries(
        &self,
        memory: &ForeignMemory,
        part: &Part,
        first: u64,
        pfns: Range<u64>,
    ) -> Result<Option<Vec<Option<Gfn>>>> {
        let entries = self.width.entries();
        let first_entry = pfns.start - pfns.start % entries;
        let frames = part.frames.iter().skip(usize::try_from(first).unwrap_or(usize::MAX));
        let wanted = usize::try_from((pfns.end - first_entry).div_ceil(entries)).unwrap_or(usize::MAX);
        let frames: Vec<Option<Gfn>> = frames.take(wanted).copied().collect();
        let mapped: Vec<Gfn> = std::iter::once(self.shared_info).chain(frames.iter().flatten().copied()).collect();
        let mapping = self.map(memory, &mapped)?;

        let mut gfns = Vec::new();
        let mut page = [0; FRAME_SIZE];
        let mut next_mapped = 1;
        for (frame, start) in frames.iter().zip((first_entry..).step_by(FRAME_SIZE / self.width.entry_bytes())) {
            let wanted = pfns.start.max(start)..pfns.end.min(start + entries);
            let count = usize::try_from(wanted.end - wanted.start).unwrap_or_default();
            if frame.is_none() {
                gfns.extend((0..count).map(|_| None));
                continue;
            }
            let bytes = &mut page[..count * self.width.entry_bytes()];
            let skipped = usize::try_from(wanted.start - start).unwrap_or_default() * self.width.entry_bytes();
            mapping.view().read_bytes(next_mapped * FRAME_SIZE + skipped, bytes)?;
            gfns.extend(self.width.values(bytes).map(|entry| self.width.machine_frame(entry)));
            next_mapped += 1;
        }
        // Read last: if the generation still matches, nothing that was read before has changed.
        let anchor = Anchor::read(self.width, &mapping.view())?;
        for (gfn, pfn) in gfns.iter_mut().zip(pfns.start..) {
            if pfn >= anchor.max_pfn {
                *gfn = None;
            }
        }
        Ok(anchor.has(self.width, part.root).then_some(gfns))
    }

    /// Finds the frames of a part of the p2m.
    fn frames(&self, memory: &ForeignMemory, root: Root, number: u64) -> Result<Vec<Option<Gfn>>> {
        match root {
            Root::List(top) => {
                let none = vec![None; FRAME_SIZE / self.width.entry_bytes()];
                let lists = self.read_frame(memory, top)?;
                let list = usize::try_from(number).ok().and_then(|number| self.width.values(&lists).nth(number));
                let entry = |entry| if entry == 0 { None } else { self.width.machine_frame(entry) };
                let Some(list) = list.and_then(entry) else { return Ok(none) };
                Ok(self.width.values(&self.read_frame(memory, list)?).map(entry).collect())
            }
            Root::Linear { cr3, .. } => {
                let shifts: &[u32] = match self.width {
                    Width::Bits32 => &[9, 0],
                    Width::Bits64 => &[18, 9, 0],
                };
                let mut table = cr3;
                for shift in shifts {
                    let mapping = self.map(memory, &[table])?;
                    let entry = mapping.view().read((number >> shift & (PTES - 1)) as usize * 8)?;
                    let Some(next) = next_table(entry) else { return Ok(vec![None; 512]) };
                    table = next;
                }
                Ok(Width::Bits64.values(&self.read_frame(memory, table)?).map(next_table).collect())
            }
        }
    }

    fn anchor(&self, memory: &ForeignMemory) -> Result<Anchor> {
        Anchor::read(self.width, &self.map(memory, &[self.shared_info])?.view())
    }

    fn read_frame(&self, memory: &ForeignMemory, frame: Gfn) -> Result<[u8; FRAME_SIZE]> {
        let mut page = [0; FRAME_SIZE];
        self.map(memory, &[frame])?.view().read_bytes(0, &mut page)?;
        Ok(page)
    }

    /// Maps frames read-only, since page tables cannot be mapped writable.
    fn map(&self, memory: &ForeignMemory, frames: &[Gfn]) -> Result<ForeignMapping> {
        match memory.map_foreign_batch(self.domid, Protection::ReadOnly, frames) {
            Err(e @ Error::Frames(_)) if [libc::EINVAL, libc::EPERM, libc::EBUSY].contains(&e.errno()) => {
                log::debug!("the p2m of domain {}: {e}", self.domid);
                Err(self.error("it leads to frames that are not the guest's"))
            }
            mapped => mapped,
        }
    }

    fn error(&self, reason: &'static str) -> Error {
        Error::P2m { domid: self.domid, reason }
    }
}

/// Returns the frame that an entry of a page table refers to. PV guests have no large pages.
fn next_table(entry: u64) -> Option<Gfn> {
    const PRESENT: u64 = 1;
    if entry & PRESENT == 0 { None } else { Gfn::new(entry >> 12 & Gfn::MAX.get()).ok() }
}
