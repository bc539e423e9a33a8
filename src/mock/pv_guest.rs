//! The kernel of a simulated PV guest: the table of its frames (p2m) that it keeps in its RAM for the toolstack.
//!
//! The layout is that of xen/include/public/arch-x86/xen.h (`struct arch_shared_info`), and of Linux's p2m.c.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use super::domain::MockDomain;
use super::load::frames_in;
use crate::abi;
use crate::types::{FRAME_SIZE, Gfn, NumberRange, Pfn};

/// The layout of a simulated PV guest's kernel and pseudo-physical memory.
///
/// ```
/// use xenmap::mock::{MockHost, PvHole, PvKernel};
/// use xenmap::{Guest, GuestKind, Pfn};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pv, 64);
/// let mut kernel = PvKernel::default();
/// kernel.holes.push((Pfn::new(8)?.range(8)?, PvHole::BalloonedOut));
/// domain.start_kernel(&kernel);
///
/// let memory = host.open()?;
/// Guest::open(&memory, domain.domid())?.write(0x10_000, b"after the hole")?;
/// assert_eq!(domain.read(domain.mfn(Pfn::new(0x10)?).unwrap(), 0, 14), b"after the hole");
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PvKernel {
    /// Whether the kernel is a 64-bit one.
    pub is_64_bit: bool,
    /// Whether it publishes its table as a list of lists (`pfn_to_mfn_frame_list_list`).
    pub has_list: bool,
    /// Whether it publishes its table as one range of virtual memory (`p2m_vaddr`).
    pub has_linear: bool,
    /// The frame numbers that are not RAM of the guest's own. Its RAM has the numbers between them.
    pub holes: Vec<(NumberRange<Pfn>, PvHole)>,
}

impl Default for PvKernel {
    fn default() -> PvKernel {
        PvKernel { is_64_bit: true, has_list: true, has_linear: true, holes: Vec::new() }
    }
}

/// The reason why a PV guest has no RAM of its own at a frame number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PvHole {
    /// The guest returned the RAM to Xen, or never had any.
    BalloonedOut,
    /// The guest maps a frame of another domain there.
    Foreign,
    /// The guest maps the machine frame with the same number there.
    Identity,
}

/// The address of the linear table, which is not at the start of a page table's range.
const VADDR_64: u64 = 0xFFFF_C900_0000_5000;
const VADDR_32: u64 = 0xF500_5000;
/// Frames that are consecutive in the machine, too; chunks are in reverse order.
const CHUNK: usize = 8;
/// Entries of a page table of a 64-bit or a PAE kernel.
const PTES: u64 = 512;
/// Present, writable, accessed, dirty.
const PTE_FLAGS: u64 = 0x63;

impl PvKernel {
    fn entry_bytes(&self) -> u64 {
        if self.is_64_bit { 8 } else { 4 }
    }

    /// Returns how many entries a frame of the table or of a list has.
    fn entries(&self) -> u64 {
        FRAME_SIZE as u64 / self.entry_bytes()
    }

    /// Returns how many frames the table needs, plus a few more, if `count` entries from `first` on are for these
    /// frames.
    fn frames_for(&self, p2m: &BTreeMap<u64, Gfn>, first: u64, count: u64) -> u64 {
        let pages = (first + count).div_ceil(self.entries());
        let filled = (0..first.div_ceil(self.entries())).filter(|&page| !self.is_empty(p2m, page)).count() as u64;
        let lists = pages.div_ceil(self.entries());
        let page_tables = pages / PTES + pages / PTES / PTES;
        filled + count.div_ceil(self.entries()) + lists + page_tables + 10
    }

    /// Returns whether all entries in a frame of the table are invalid.
    fn is_empty(&self, p2m: &BTreeMap<u64, Gfn>, page: u64) -> bool {
        let pfns = page * self.entries()..(page + 1) * self.entries();
        let overlaps = |hole: &NumberRange<Pfn>| hole.start() < pfns.end && pfns.start < hole.end();
        let mut holes = self.holes.iter().filter(|(_, kind)| *kind != PvHole::BalloonedOut);
        !holes.any(|(hole, _)| overlaps(hole)) && p2m.range(pfns.clone()).next().is_none()
    }

    fn hole(&self, pfn: u64) -> Option<PvHole> {
        self.holes.iter().find(|(pfns, _)| pfns.numbers().contains(&pfn)).map(|(_, hole)| *hole)
    }

    fn invalid(&self) -> u64 {
        if self.is_64_bit { u64::MAX } else { u32::MAX.into() }
    }

    /// Returns the entry of a number without RAM (Linux's `FOREIGN_FRAME` and `IDENTITY_FRAME`).
    fn hole_entry(&self, pfn: u64, hole: PvHole) -> u64 {
        let top = 8 * self.entry_bytes() - 1;
        match hole {
            PvHole::BalloonedOut => self.invalid(),
            PvHole::Foreign => 1 << top | pfn,
            PvHole::Identity => 1 << (top - 1) | pfn,
        }
    }
}

impl MockDomain {
    /// Starts a PV guest's kernel: it numbers its frames, in another order than the machine's, and builds its tables in
    /// additional frames, which get the highest numbers.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed or is not a PV guest, or there is no memory.
    pub fn start_kernel(&self, kernel: &PvKernel) {
        let ram = self.frames();
        let chunks = ram.chunks(CHUNK).rev().flatten().copied();
        let pfns = (0..).filter(|&pfn| kernel.hole(pfn).is_none());
        let mut p2m: BTreeMap<u64, Gfn> = pfns.zip(chunks).collect();

        let after_ram = p2m.keys().next_back().map_or(0, |last| last + 1);
        let first = kernel.holes.iter().map(|(pfns, _)| pfns.end()).fold(after_ram, u64::max);
        // The table's own frames need entries, too.
        let mut count = 0;
        while kernel.frames_for(&p2m, first, count) > count {
            count = kernel.frames_for(&p2m, first, count);
        }
        let frames = self.add_frames(usize::try_from(count).unwrap_or(usize::MAX));
        p2m.extend((first..).zip(frames.iter().copied()));
        self.with(|pages, _| {
            for (&pfn, mfn) in &p2m {
                if let Some(page) = page_number(*mfn).and_then(|page| pages.get_mut(page)) {
                    page.pfn = Some(pfn);
                }
            }
        });
        self.host.update_machine_to_phys(&self.host.lock());
        Tables { guest: self, kernel, max_pfn: first + count, free: frames.into_iter() }.set_up(&p2m);
    }

    /// Returns the machine frame at a frame number of a PV guest whose kernel was [started](MockDomain::start_kernel).
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed.
    #[must_use]
    pub fn mfn(&self, pfn: Pfn) -> Option<Gfn> {
        let owner = Some(self.domid().get());
        let has = |page: &super::state::Page| page.owner == owner && page.allocated && page.pfn == Some(pfn.get());
        self.with(|pages, _| pages.iter().position(has)).map(super::machine::machine_frame)
    }

    /// Returns the frame that Xen shares with a PV guest (`struct shared_info`), which the guest can read and write.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed, or is not a PV guest.
    #[must_use]
    pub fn shared_info(&self) -> Gfn {
        let page = self.with(|_, domain| domain.shared_info);
        let Some(page) = page else { panic!("domain {} is not a PV guest", self.domid()) };
        super::machine::machine_frame(page)
    }

    /// Gives a guest without frames those for which a file holds data, with that data, and starts its kernel.
    pub(super) fn load_pv_file(&self, file: &File) -> io::Result<()> {
        let mut kernel = PvKernel::default();
        let (mut next, mut count) = (0, 0);
        let ranges = frames_in(file)?;
        for frames in &ranges {
            kernel.holes.push((NumberRange::checked(next, frames.start), PvHole::BalloonedOut));
            next = frames.end;
            count += frames.end - frames.start;
        }
        self.add_frames(usize::try_from(count).map_err(io::Error::other)?);
        self.start_kernel(&kernel);
        let numbers = self.frames().into_iter().filter_map(|mfn| {
            let page = page_number(mfn)?;
            Some((self.with(|pages, _| pages[page].pfn)?, mfn))
        });
        for (pfn, mfn) in numbers.filter(|&(pfn, _)| pfn < next) {
            self.load_frame(file, pfn, mfn)?;
        }
        Ok(())
    }
}

fn page_number(mfn: Gfn) -> Option<usize> {
    mfn.get().checked_sub(super::state::FIRST_MFN).and_then(|page| usize::try_from(page).ok())
}

/// Builds the tables of a kernel that starts.
struct Tables<'a> {
    guest: &'a MockDomain,
    kernel: &'a PvKernel,
    max_pfn: u64,
    free: std::vec::IntoIter<Gfn>,
}

impl Tables<'_> {
    fn set_up(mut self, p2m: &BTreeMap<u64, Gfn>) {
        let pages = self.table(p2m);
        let list = if self.kernel.has_list { self.list(&pages) } else { self.kernel.invalid() };
        let (cr3, vaddr) = if self.kernel.has_linear { self.linear(&pages) } else { (0, 0) };
        let offsets = if self.kernel.is_64_bit {
            [
                abi::SHARED_INFO_64_MAX_PFN,
                abi::SHARED_INFO_64_FRAME_LIST_LIST,
                abi::SHARED_INFO_64_P2M_CR3,
                abi::SHARED_INFO_64_P2M_VADDR,
            ]
        } else {
            [
                abi::SHARED_INFO_32_MAX_PFN,
                abi::SHARED_INFO_32_FRAME_LIST_LIST,
                abi::SHARED_INFO_32_P2M_CR3,
                abi::SHARED_INFO_32_P2M_VADDR,
            ]
        };
        for (offset, value) in offsets.into_iter().zip([self.max_pfn, list, cr3, vaddr]) {
            self.write(self.guest.shared_info(), u64::from(offset), value);
        }
        self.guest.with(|_, domain| {
            domain.address_size = if self.kernel.is_64_bit { 64 } else { 32 };
            domain.highest = self.max_pfn - 1;
        });
    }

    /// Builds the table, and returns its frames in order. All parts without RAM share one frame, as in Linux.
    fn table(&mut self, p2m: &BTreeMap<u64, Gfn>) -> Vec<Gfn> {
        let entries = self.kernel.entries();
        let none = self.take();
        self.fill(none, &vec![self.kernel.invalid(); FRAME_SIZE / self.entry_bytes()]);
        let mut pages = Vec::new();
        for number in 0..self.max_pfn.div_ceil(entries) {
            if self.kernel.is_empty(p2m, number) {
                pages.push(none);
                continue;
            }
            let entry = |pfn| match (p2m.get(&pfn), self.kernel.hole(pfn)) {
                (Some(mfn), _) => mfn.get(),
                (None, hole) => self.kernel.hole_entry(pfn, hole.unwrap_or(PvHole::BalloonedOut)),
            };
            let content: Vec<u64> = (number * entries..(number + 1) * entries).map(entry).collect();
            let page = self.take();
            self.fill(page, &content);
            pages.push(page);
        }
        pages
    }

    /// Builds the list of lists of the table's frames, and returns its frame number.
    fn list(&mut self, pages: &[Gfn]) -> u64 {
        let mut lists = Vec::new();
        for part in pages.chunks(FRAME_SIZE / self.entry_bytes()) {
            let list = self.take();
            self.fill(list, &part.iter().map(|page| page.get()).collect::<Vec<u64>>());
            lists.push(list.get());
        }
        let top = self.take();
        self.fill(top, &lists);
        top.get()
    }

    /// Builds page tables that map the table's frames consecutively. Returns their CR3, and the address of the first
    /// frame.
    fn linear(&mut self, pages: &[Gfn]) -> (u64, u64) {
        let (vaddr, shifts): (u64, &[u32]) =
            if self.kernel.is_64_bit { (VADDR_64, &[39, 30, 21, 12]) } else { (VADDR_32, &[30, 21, 12]) };
        let top = self.take();
        let mut tables = BTreeMap::from([(top, BTreeMap::new())]);
        for (&page, address) in pages.iter().zip((vaddr..).step_by(FRAME_SIZE)) {
            let mut table = top;
            for &shift in shifts {
                let index = if shift == 30 && !self.kernel.is_64_bit { address >> 30 } else { address >> shift & 511 };
                let known = tables.get(&table).and_then(|entries| entries.get(&index)).copied();
                let next = known.unwrap_or_else(|| if shift == 12 { page } else { self.take() });
                tables.entry(table).or_default().insert(index, next);
                table = next;
            }
        }
        for (table, entries) in tables {
            for (index, frame) in entries {
                let pte = frame.get() << 12 | PTE_FLAGS;
                self.guest.write(table, usize::try_from(index * 8).unwrap_or(FRAME_SIZE), &pte.to_ne_bytes());
            }
            let pinned = self.guest.pin_page_table(table);
            pinned.unwrap_or_else(|e| panic!("frame {table} cannot be a page table: {e}"));
        }
        // xen_pfn_to_cr3: a 32-bit register holds the upper bits in its lower ones.
        let cr3 = top.get() << 12;
        (if self.kernel.is_64_bit { cr3 } else { cr3 & 0xFFFF_F000 | top.get() >> 20 }, vaddr)
    }

    fn entry_bytes(&self) -> usize {
        if self.kernel.is_64_bit { 8 } else { 4 }
    }

    fn take(&mut self) -> Gfn {
        let Some(frame) = self.free.next() else { unreachable!("`frames_for` counted them") };
        frame
    }

    fn fill(&self, frame: Gfn, values: &[u64]) {
        let width = self.entry_bytes();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()[..width].to_vec()).collect();
        self.guest.write(frame, 0, &bytes);
    }

    /// Writes a value with the width of the kernel's words.
    fn write(&self, frame: Gfn, offset: u64, value: u64) {
        let offset = usize::try_from(offset).unwrap_or(FRAME_SIZE);
        self.guest.write(frame, offset, &value.to_ne_bytes()[..self.entry_bytes()]);
    }
}
