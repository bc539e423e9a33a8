//! The state of the simulated host: machine memory, domains, and what is mapped where.

use std::collections::BTreeMap;

use super::config::Dom0;
use super::counts::Hypercalls;
use super::fault::Faults;
use crate::abi;
use crate::backend::ProcessId;
use crate::types::{Domid, GuestKind, Protection};

/// The machine frame number of page 0 of the RAM file: below it is no RAM.
pub(super) const FIRST_MFN: u64 = 0x1_0000;

/// The domain we are.
pub(super) const DOM0: u16 = 0;
const DOMID_SELF: u16 = 0x7FF0;
const DOMID_IO: u16 = 0x7FF1;
/// Whose shared pages are.
pub(super) const DOMID_COW: u16 = 0x7FF2;
/// Whose the pages of resources are: Xen's own, but shown to nobody as frames (`DOMID_IDLE`).
pub(super) const OWNER_OF_RESOURCES: u16 = 0x7FFF;

/// A page of machine memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Page {
    pub(super) owner: Option<u16>,
    /// Whether its owner still has it, or only mappings keep it.
    pub(super) allocated: bool,
    /// Whether its owner, a PV guest, uses it as a page table.
    pub(super) pinned: bool,
    /// Of a PV guest's page, the guest's own number for it.
    pub(super) pfn: Option<u64>,
    /// Whether it is Xen's own, which its owner may use: it does not count as the owner's.
    pub(super) lent: bool,
}

/// What a domain's frame number stands for.
#[derive(Debug)]
pub(super) enum Frame {
    Ram(usize),
    /// Its content, and how often it must be asked for until it is back.
    PagedOut(Vec<u8>, u32),
    /// The machine's memory failed there.
    Broken(usize),
    /// A frame of a populate-on-demand guest that nobody has touched yet.
    Unpopulated,
    /// A frame of a fork that nobody has touched yet: it is its parent's.
    OfParent,
}

impl Frame {
    pub(super) fn is_untouched(&self) -> bool {
        matches!(self, Frame::Unpopulated | Frame::OfParent)
    }
}

/// What a virtual processor's registers hold, as far as page tables need them; at first its paging is off. Those of
/// another architecture than the host's are of no account.
///
/// ```
/// let mut vcpu = xenmap::mock::Vcpu::default();
/// vcpu.cr3 = 0x1000;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Vcpu {
    /// Control register 0: bit 31 (PG) says that paging is on.
    pub cr0: u64,
    /// Control register 3: the address of the top page table, of a PV guest a machine address.
    pub cr3: u64,
    /// Control register 4: bit 5 (PAE) and bit 12 (LA57) say how the tables are made.
    pub cr4: u64,
    /// The MSR EFER: bit 10 (LMA) says that it is in 64-bit mode.
    pub efer: u64,
    /// `SPSR_EL2` of arm64, what the processor was doing: bit 4 says that it was 32-bit code.
    pub cpsr: u64,
    /// `SCTLR_EL1` of arm64: bit 0 (M) says that paging is on.
    pub sctlr: u64,
    /// `TCR_EL1` of arm64, which says how its tables are made.
    pub tcr: u64,
    /// `TTBR0_EL1` of arm64, the address of the top table of the lower half.
    pub ttbr0: u64,
    /// `TTBR1_EL1` of arm64, that of the upper half.
    pub ttbr1: u64,
}

#[derive(Debug)]
pub(super) struct Domain {
    pub(super) kind: GuestKind,
    pub(super) dying: bool,
    pub(super) frames: BTreeMap<u64, Frame>,
    /// The highest frame number it has ever had.
    pub(super) highest: u64,
    /// The most frames that it may own.
    pub(super) max_pages: u64,
    /// Whether it was given frames that are filled in when they are first touched.
    pub(super) is_lazy: bool,
    /// Pages for its frames that have none yet, if it is populated on demand. They count as its own.
    pub(super) pool: Vec<usize>,
    /// Whether Xen has crashed it.
    pub(super) crashed: bool,
    /// The domain that it is a fork of.
    pub(super) parent: Option<u16>,
    /// How often its toolstack has paused it, less how often it has unpaused it.
    pub(super) pauses: u8,
    pub(super) name: Option<String>,
    /// The page of Xen's that a PV guest shares with it.
    pub(super) shared_info: Option<usize>,
    /// Bits of an address in its kernel, of a PV guest.
    pub(super) address_size: u32,
    /// Its virtual processors.
    pub(super) vcpus: Vec<Vcpu>,
    /// Pages of its resources, by type and id. Xen's own, so they do not count as the domain's.
    pub(super) resources: BTreeMap<(u32, u32), Vec<usize>>,
}

impl Domain {
    pub(super) fn new(kind: GuestKind) -> Domain {
        Domain {
            kind,
            dying: false,
            frames: BTreeMap::new(),
            highest: 0,
            max_pages: 0,
            is_lazy: false,
            pool: Vec::new(),
            crashed: false,
            parent: None,
            pauses: 0,
            name: None,
            shared_info: None,
            address_size: 64,
            vcpus: Vec::new(),
            resources: BTreeMap::new(),
        }
    }
}

impl Domain {
    /// How many of its frames have no memory yet.
    pub(super) fn unpopulated(&self) -> usize {
        if !self.is_lazy {
            return 0;
        }
        self.frames.values().filter(|frame| matches!(frame, Frame::Unpopulated)).count()
    }
}

/// What a page of a device mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pte {
    None,
    /// A page of the RAM file.
    Page(usize),
    /// A frame that failed in an x86 PVH dom0, or that is not a guest's.
    Junk,
    /// A frame that failed in an Arm dom0, or the end of the last page past the last frame, as a page of that file.
    Fatal(usize),
}

/// A device mapping.
#[derive(Debug)]
pub(super) struct Vma {
    pub(super) protection: Protection,
    pub(super) populated: bool,
    pub(super) ptes: Vec<Pte>,
}

impl Vma {
    /// The page as an index, and what comes after its run: a run is consecutive pages of the file, or of one kind.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize, Pte)> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = next;
            let first = *self.ptes.get(start)?;
            let continues = |i: &usize| match (first, self.ptes[*i]) {
                (Pte::Page(page), Pte::Page(other)) | (Pte::Fatal(page), Pte::Fatal(other)) => {
                    other == page + (i - start)
                }
                (first, other) => first == other,
            };
            next = (start + 1..self.ptes.len()).find(|i| !continues(i)).unwrap_or(self.ptes.len());
            Some((start, next, first))
        })
    }

    pub(super) fn mapped(&self) -> usize {
        self.ptes.iter().filter(|&&pte| pte != Pte::None).count()
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) pages: Vec<Page>,
    pub(super) domains: BTreeMap<u16, Domain>,
    /// The first page of each extent of the M2P table.
    pub(super) m2p: Vec<usize>,
    /// The device mappings of `process`, by address.
    pub(super) vmas: BTreeMap<usize, Vma>,
    /// Mappings that stand for references that Xen did not get back, as address and bytes.
    pub(super) leaks: Vec<(usize, usize)>,
    /// What another thread has mapped, as it were, where a mapping could not be replaced, as address and bytes.
    pub(super) strangers: Vec<(usize, usize)>,
    /// Memory for hypercalls, as address and bytes.
    pub(super) buffers: BTreeMap<usize, usize>,
    /// Whose state these are: a child has its own copy.
    pub(super) process: Option<ProcessId>,
    pub(super) faults: Faults,
    pub(super) hypercalls: Hypercalls,
}

impl State {
    /// The page behind a frame number of a domain, as the batch call of this kind of dom0 would find it; or its errno.
    ///
    /// `referenced` tells whether a page of a dying domain is still mapped by someone.
    pub(super) fn frame(
        &mut self,
        dom0: Dom0,
        domid: u16,
        gfn: u64,
        protection: Protection,
        referenced: impl Fn(usize) -> bool,
    ) -> Result<Pte, i32> {
        let pv = dom0 == Dom0::Pv;
        match domid {
            // A PV dom0 gets its own machine frames, or raw MMIO, and is told that all is well.
            DOMID_SELF | DOMID_IO if pv => return Ok(Pte::Junk),
            DOMID_SELF | DOMID_IO | abi::XEN_DOMID if dom0 == Dom0::Arm => return Err(libc::EINVAL),
            DOM0 => return Err(if dom0 == Dom0::Pvh { libc::EPERM } else { libc::ESRCH }),
            _ => {}
        }
        let domain = self.domains.get_mut(&domid).ok_or(libc::ESRCH)?;
        if domain.kind != GuestKind::Pv {
            if domain.dying {
                return Err(libc::EINVAL);
            }
            // The frame number becomes a page-table entry, which has no room for the upper bits.
            let gfn = if pv { gfn & ((1 << 40) - 1) } else { gfn };
            return match domain.frames.get_mut(&gfn) {
                // An auto-translated dom0 takes no shared frames (Xen, `p2m_add_foreign`).
                Some(Frame::Ram(page)) if !pv && self.pages[*page].owner == Some(DOMID_COW) => Err(libc::EINVAL),
                Some(Frame::Ram(page)) => Ok(Pte::Page(*page)),
                Some(Frame::PagedOut(_, asks)) if pv => {
                    *asks = asks.saturating_sub(1);
                    Err(libc::ENOENT)
                }
                Some(Frame::PagedOut(..) | Frame::Broken(_) | Frame::Unpopulated | Frame::OfParent) | None => {
                    Err(libc::EINVAL)
                }
            };
        }
        // All ones stand for no frame.
        if pv && gfn == crate::types::Gfn::MAX.get() {
            return Err(libc::EINVAL);
        }
        let not_its_own = if pv { libc::EBUSY } else { libc::EINVAL };
        let no_ram = if pv { libc::EPERM } else { libc::EINVAL };
        let number = gfn.checked_sub(FIRST_MFN).and_then(|page| usize::try_from(page).ok()).ok_or(no_ram)?;
        let page = self.pages.get(number).ok_or(no_ram)?;
        if page.owner != Some(domid) {
            return Err(not_its_own);
        }
        if !page.allocated && !referenced(number) {
            return Err(no_ram);
        }
        if pv && page.pinned && protection == Protection::ReadWrite {
            return Err(libc::EBUSY);
        }
        Ok(Pte::Page(number))
    }

    /// Takes `count` free pages, consecutive ones as far as possible, for a domain (or for Xen).
    pub(super) fn allocate(&mut self, owner: u16, count: usize) -> Vec<usize> {
        let free = self.pages.iter().enumerate().filter(|(_, page)| page.owner.is_none()).map(|(i, _)| i);
        let mut taken: Vec<usize> = free.take(count).collect();
        let more = self.pages.len()..self.pages.len() + count - taken.len();
        taken.extend(more.clone());
        self.pages.resize(more.end, Page::default());
        for &page in &taken {
            self.pages[page] = Page { owner: Some(owner), allocated: true, ..Page::default() };
        }
        let pages = self.owned_by(owner);
        if let Some(domain) = self.domains.get_mut(&owner) {
            domain.max_pages = domain.max_pages.max(pages);
        }
        taken
    }

    /// The mapping that holds an address, and where it starts.
    pub(super) fn vma_at(&mut self, addr: usize) -> Option<(usize, &mut Vma)> {
        let (&start, vma) = self.vmas.range_mut(..=addr).next_back()?;
        (addr < start + vma.ptes.len() * crate::types::FRAME_SIZE).then_some((start, vma))
    }

    /// What Xen owns and shows to others: its own frames, as a domain that is not one.
    pub(super) fn add_xen(&mut self, frames: usize) -> Vec<usize> {
        let domain = Domain::new(GuestKind::Pv);
        self.domains.insert(abi::XEN_DOMID, domain);
        self.allocate(abi::XEN_DOMID, frames)
    }

    /// The domain we are, with a few pages.
    pub(super) fn add_dom0(&mut self, dom0: Dom0, frames: usize) -> Vec<usize> {
        let kind = if dom0 == Dom0::Pv { GuestKind::Pv } else { GuestKind::Pvh };
        let name = Some("Domain-0".to_owned());
        self.domains.insert(DOM0, Domain { name, vcpus: vec![Vcpu::default()], ..Domain::new(kind) });
        self.allocate(DOM0, frames)
    }
}

impl State {
    /// How many frames a domain owns, those included that only mappings keep.
    pub(super) fn owned_by(&self, domid: u16) -> u64 {
        self.pages.iter().filter(|page| page.owner == Some(domid) && !page.lent).count() as u64
    }

    /// The pages of a domain, with what Xen lends to it.
    pub(super) fn pages_of(&self, domid: Domid) -> impl Iterator<Item = usize> {
        let pages = self.pages.iter().enumerate();
        pages.filter(move |(_, page)| page.owner == Some(domid.get())).map(|(i, _)| i)
    }
}
