//! The state of the simulated host: machine memory, domains, and mappings.

use std::collections::BTreeMap;

use super::config::Dom0;
use super::counts::Hypercalls;
use super::device_model::{DeviceModelState, EventFiles};
use super::fault::Faults;
use crate::abi;
use crate::backend::ProcessId;
use crate::types::{Domid, GuestKind, Protection};

/// The machine frame number of page 0 of the RAM file. There is no RAM below it.
pub(super) const FIRST_MFN: u64 = 0x1_0000;

/// The domain in which this process runs.
pub(super) const DOM0: u16 = 0;
const DOMID_SELF: u16 = 0x7FF0;
const DOMID_IO: u16 = 0x7FF1;
/// The owner of shared pages.
pub(super) const DOMID_COW: u16 = 0x7FF2;
/// The owner of the pages of resources, which are Xen's own, but no domain's frames (`DOMID_IDLE`).
pub(super) const OWNER_OF_RESOURCES: u16 = 0x7FFF;

/// A page of machine memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Page {
    pub(super) owner: Option<u16>,
    /// Whether its owner still has the page. If not, only mappings keep it.
    pub(super) allocated: bool,
    /// Whether its owner, a PV guest, uses it as a page table.
    pub(super) pinned: bool,
    /// The PV guest's own number for the page.
    pub(super) pfn: Option<u64>,
    /// Whether the page is Xen's own, and its owner only uses it. It does not count as the owner's.
    pub(super) lent: bool,
}

/// The memory at a domain's frame number.
#[derive(Debug)]
pub(super) enum Frame {
    Ram(usize),
    /// The frame's content, and how many more attempts to map it fail before it is back.
    PagedOut(Vec<u8>, u32),
    /// The machine's memory failed at this page.
    Broken(usize),
    /// A frame of a populate-on-demand guest that has not been touched yet.
    Unpopulated,
    /// A frame of a fork that has not been touched yet, and still is its parent's.
    OfParent,
}

impl Frame {
    pub(super) fn is_untouched(&self) -> bool {
        matches!(self, Frame::Unpopulated | Frame::OfParent)
    }
}

/// The registers of a virtual processor, as far as translating addresses needs them. By default its paging is off.
/// Registers of another architecture than the host's are ignored.
///
/// ```
/// use xenmap::GuestKind;
/// use xenmap::mock::{MockHost, Vcpu};
///
/// let guest = MockHost::new().create_domain(GuestKind::Hvm, 4);
/// let mut vcpu = Vcpu::default();
/// (vcpu.cr0, vcpu.cr3) = (1 << 31, 0x1000); // paging is on, with the top table in frame 1
/// guest.set_vcpu(0, vcpu);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Vcpu {
    /// Control register 0: bit 31 (PG) is set if paging is on.
    pub cr0: u64,
    /// Control register 3: the address of the top page table; in a PV guest, a machine address.
    pub cr3: u64,
    /// Control register 4: bit 5 (PAE) and bit 12 (LA57) determine the format of the page tables.
    pub cr4: u64,
    /// The MSR EFER: bit 10 (LMA) is set in 64-bit mode.
    pub efer: u64,
    /// The address of the next instruction: RIP or, on arm64, PC.
    pub pc: u64,
    /// The general-purpose registers of x86: R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI and RDI.
    pub general: [u64; 15],
    /// The stack pointer of x86: RSP.
    pub sp: u64,
    /// Whether the processor runs a program, and not the kernel. (On arm64, `cpsr` says this.)
    pub in_program: bool,
    /// The GS base that is in use.
    pub gs_base: u64,
    /// The GS base that SWAPGS exchanges it with.
    pub shadow_gs_base: u64,
    /// The MSR LSTAR, where SYSCALL enters the kernel; in a PV guest, the callback in its place.
    pub lstar: u64,
    /// The address of the interrupt descriptor table.
    pub idt_base: u64,
    /// `SPSR_EL2` of arm64, the processor's state: bit 4 is set if it ran 32-bit code.
    pub cpsr: u64,
    /// `SCTLR_EL1` of arm64: bit 0 (M) is set if paging is on.
    pub sctlr: u64,
    /// `TCR_EL1` of arm64, which determines the format of the page tables.
    pub tcr: u64,
    /// `TTBR0_EL1` of arm64, the address of the top page table of the lower half.
    pub ttbr0: u64,
    /// `TTBR1_EL1` of arm64, the address of the top page table of the upper half.
    pub ttbr1: u64,
}

#[derive(Debug)]
pub(super) struct Domain {
    pub(super) kind: GuestKind,
    pub(super) dying: bool,
    pub(super) frames: BTreeMap<u64, Frame>,
    /// The highest frame number that it has ever had.
    pub(super) highest: u64,
    /// The most frames that it may own.
    pub(super) max_pages: u64,
    /// Whether it was given frames that get memory when they are first touched.
    pub(super) is_lazy: bool,
    /// The pages for its unpopulated frames, if it is populated on demand. They count as its own.
    pub(super) pool: Vec<usize>,
    /// Whether Xen has crashed it.
    pub(super) crashed: bool,
    /// The domain of which it is a fork.
    pub(super) parent: Option<u16>,
    /// How many more times its toolstack has paused than unpaused it.
    pub(super) pauses: u8,
    pub(super) name: Option<String>,
    /// The page that Xen shares with a PV guest.
    pub(super) shared_info: Option<usize>,
    /// The bits of an address in a PV guest's kernel.
    pub(super) address_size: u32,
    pub(super) vcpus: Vec<Vcpu>,
    /// The pages of its resources, by type and id. They are Xen's own and do not count as the domain's.
    pub(super) resources: BTreeMap<(u32, u32), Vec<usize>>,
    pub(super) device_model: DeviceModelState,
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
            device_model: DeviceModelState::default(),
        }
    }

    /// Returns how many of its frames have no memory yet.
    pub(super) fn unpopulated(&self) -> usize {
        if !self.is_lazy {
            return 0;
        }
        self.frames.values().filter(|frame| matches!(frame, Frame::Unpopulated)).count()
    }
}

/// The memory at a page of a device mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pte {
    None,
    /// A page of the RAM file.
    Page(usize),
    /// A frame that failed in an x86 PVH dom0, or that belongs to no guest.
    Junk,
    /// A page of the fatal file: a frame that failed in an Arm dom0, or memory past the last frame in its page.
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
    /// Splits the mapping into runs of consecutive pages of a file, or of pages of one kind. Each run has the index of
    /// its first page, the index after its last one, and the first page itself.
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
    /// Mappings that stand for those of another thread, where a mapping could not be replaced, as address and bytes.
    pub(super) taken_ranges: Vec<(usize, usize)>,
    /// Memory for hypercalls, as address and bytes.
    pub(super) buffers: BTreeMap<usize, usize>,
    /// The process to which the mappings belong: a child has its own copy of the state.
    pub(super) process: Option<ProcessId>,
    /// The open files of the device of event channels.
    pub(super) events: EventFiles,
    pub(super) faults: Faults,
    pub(super) hypercalls: Hypercalls,
}

impl State {
    /// Returns the page at a frame number of a domain, as the batch call of this kind of dom0 finds it, or an errno.
    ///
    /// `referenced` returns whether a page of a dying domain is still mapped.
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
            // A PV dom0 gets its own machine frames, or raw MMIO, and the call succeeds.
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
            // The frame number goes into a page-table entry, which has no room for the upper bits.
            let gfn = if pv { gfn & ((1 << 40) - 1) } else { gfn };
            return match domain.frames.get_mut(&gfn) {
                // An auto-translated dom0 cannot map shared frames (Xen, `p2m_add_foreign`).
                Some(Frame::Ram(page)) if !pv && self.pages[*page].owner == Some(DOMID_COW) => Err(libc::EINVAL),
                Some(Frame::Ram(page)) => Ok(Pte::Page(*page)),
                Some(Frame::PagedOut(_, attempts)) if pv => {
                    *attempts = attempts.saturating_sub(1);
                    Err(libc::ENOENT)
                }
                Some(Frame::PagedOut(..) | Frame::Broken(_) | Frame::Unpopulated | Frame::OfParent) | None => {
                    Err(libc::EINVAL)
                }
            };
        }
        // All ones stand for "no frame".
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

    /// Allocates `count` pages, consecutive ones if possible, for a domain or for Xen.
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

    /// Returns the mapping that contains an address, and where it starts.
    pub(super) fn vma_at(&mut self, addr: usize) -> Option<(usize, &mut Vma)> {
        let (&start, vma) = self.vmas.range_mut(..=addr).next_back()?;
        (addr < start + vma.ptes.len() * crate::types::FRAME_SIZE).then_some((start, vma))
    }

    /// Adds the frames that Xen owns and shows to others, as those of a domain.
    pub(super) fn add_xen(&mut self, frames: usize) -> Vec<usize> {
        let domain = Domain::new(GuestKind::Pv);
        self.domains.insert(abi::XEN_DOMID, domain);
        self.allocate(abi::XEN_DOMID, frames)
    }

    /// Adds dom0, with a few pages.
    pub(super) fn add_dom0(&mut self, dom0: Dom0, frames: usize) -> Vec<usize> {
        let kind = if dom0 == Dom0::Pv { GuestKind::Pv } else { GuestKind::Pvh };
        let name = Some("Domain-0".to_owned());
        self.domains.insert(DOM0, Domain { name, vcpus: vec![Vcpu::default()], ..Domain::new(kind) });
        self.allocate(DOM0, frames)
    }

    /// Returns how many frames a domain owns, including those that only mappings keep.
    pub(super) fn owned_by(&self, domid: u16) -> u64 {
        self.pages.iter().filter(|page| page.owner == Some(domid) && !page.lent).count() as u64
    }

    /// Returns the pages of a domain, including those that Xen lends to it.
    pub(super) fn pages_of(&self, domid: Domid) -> impl Iterator<Item = usize> {
        let pages = self.pages.iter().enumerate();
        pages.filter(move |(_, page)| page.owner == Some(domid.get())).map(|(i, _)| i)
    }
}
