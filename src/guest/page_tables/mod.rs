//! Translating a guest's virtual addresses to its physical ones.

mod arm64;
mod extents;
mod walk;
mod x86;

use std::ops::Range;

use super::Guest;
use crate::error::{Error, Result};
use crate::handle::ForeignMemory;
use crate::mapping::Access;
use crate::types::{Domid, FRAME_SIZE, Gfn, GuestKind, Protection};
pub use extents::{VirtualExtent, VirtualExtents};
pub use x86::PagingMode;

const FRAME: u64 = FRAME_SIZE as u64;
const ENTRY_BYTES: u64 = 8;

const NO_SUCH_PAGE: &str = "an entry maps a page of a size that does not exist";

/// The page tables of an address space of a guest, described by the vcpu registers that select them.
///
/// Use [`Guest::page_tables`] for those that a vcpu is using, or fill in the registers:
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Gfn, Guest, GuestKind, PageTables, PagingMode};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// // In the top table (frame 4), entry 0 refers to a table (frame 5), whose entry 0 maps 1 GiB at address 0.
/// domain.write(Gfn::new(4)?, 0, &0x5001_u64.to_ne_bytes());
/// domain.write(Gfn::new(5)?, 0, &0x0081_u64.to_ne_bytes());
///
/// let memory = host.open()?;
/// let guest = Guest::open(&memory, domain.domid())?;
/// let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
/// guest.write_virtual(&tables, 0x1FFE, b"across two pages")?;
/// let mut text = [0; 16];
/// guest.read_virtual(&tables, 0x1FFE, &mut text)?;
/// assert_eq!(&text, b"across two pages");
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PageTables {
    /// The page tables of an x86 guest.
    X86 {
        /// The top table's address in bytes, as in the guest's CR3 (other bits of CR3 are ignored). For a PV guest,
        /// this is a machine address, also for a 32-bit one, whose CR3 holds it rotated.
        cr3: u64,
        /// The format of the tables.
        mode: PagingMode,
    },
    /// The translation tables of an arm64 guest at exception level 1: pages of 4, 16 or 64 KiB, and addresses of up to
    /// 52 bits.
    Arm64 {
        /// `TTBR0_EL1`, for addresses whose bit 55 is clear: those of programs.
        ttbr0: u64,
        /// `TTBR1_EL1`, for addresses whose bit 55 is set: those of the kernel.
        ttbr1: u64,
        /// `TCR_EL1`, which gives the format of both tables.
        tcr: u64,
    },
}

/// Where a virtual address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Translation {
    /// The physical address, in bytes. For a PV guest, [`PageTables::translate_with`] returns a machine address; all
    /// else returns a pseudo-physical one.
    pub physical: u64,
    /// The size in bytes of the page that the address is in.
    pub page_size: u64,
    /// What the guest may do with the page.
    pub rights: AccessRights,
}

/// What a guest may do with a page, by all entries that lead to it. Every page can be read.
///
/// Other limits are not considered: control registers (such as SMEP and SMAP on x86, WXN and PAN on Arm), protection
/// keys and, on Arm, permission indirection (`FEAT_S1PIE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AccessRights {
    /// Whether the page can be written: by the kernel and, if `user` is set, by programs.
    pub writable: bool,
    /// Whether programs can access the page. In a 64-bit PV guest, that includes the kernel's pages, because the kernel
    /// runs in user mode there.
    pub user: bool,
    /// Whether anyone, the kernel or programs, can execute code in the page.
    pub executable: bool,
}

impl Guest {
    /// Translates a virtual address to a guest-physical address.
    ///
    /// This maps one frame per level of the tables, one after another. A PV guest's tables hold machine frames: for
    /// such a guest, this also asks Xen for the frame's pfn, and checks that the guest's p2m agrees.
    ///
    /// Access permissions are ignored. The guest may change its tables meanwhile.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, Guest, GuestKind, PageTables, PagingMode};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// // In the top table (frame 4), entry 1 refers to a table (frame 5), whose entry 0 maps 1 GiB at address 0.
    /// domain.write(Gfn::new(4)?, 8, &0x5001_u64.to_ne_bytes());
    /// domain.write(Gfn::new(5)?, 0, &0x0081_u64.to_ne_bytes());
    ///
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    /// let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
    /// assert_eq!(guest.translate(&tables, 0x80_0000_1234)?, 0x1234);
    /// let error = guest.translate(&tables, 0).unwrap_err();
    /// assert_eq!(error.to_string(), "virtual address 0x0: its entry in the PML4 (level 4) is not present");
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Translation`] if the address is not mapped or, in a PV guest, leads to a frame that is not the guest's
    /// own. [`Error::GuestAddress`] if a table is not in the guest's RAM, with the address of the table's entry (for a
    /// PV guest, a machine address). Those of mapping, and [`Error::Hypercall`].
    pub fn translate(&self, tables: &PageTables, address: u64) -> Result<u64> {
        Ok(self.rest_of_page(tables, address)?.start)
    }

    /// Copies bytes out of the guest, starting at a virtual address; see [`Guest::read`]. The whole range is translated
    /// before any of it is read.
    ///
    /// Access permissions are ignored. For an example, see [`PageTables`].
    ///
    /// # Errors
    ///
    /// Those of [`Guest::translate`], for the first address that fails, and of [`Guest::read`].
    pub fn read_virtual(&self, tables: &PageTables, address: u64, to: &mut [u8]) -> Result<()> {
        let mut rest = to;
        for part in self.translate_all(tables, address, rest.len())? {
            let (bytes, more) = rest.split_at_mut(part.len);
            self.read(part.address, bytes)?;
            rest = more;
        }
        Ok(())
    }

    /// Copies bytes into the guest, starting at a virtual address; see [`Guest::write`]. The whole range is translated
    /// before any of it is written.
    ///
    /// Access permissions are ignored: this also writes where the guest itself could not. For an example, see
    /// [`PageTables`].
    ///
    /// # Errors
    ///
    /// Those of [`Guest::translate`], for the first address that fails, and of [`Guest::write`].
    pub fn write_virtual(&self, tables: &PageTables, address: u64, from: &[u8]) -> Result<()> {
        let mut rest = from;
        for part in self.translate_all(tables, address, rest.len())? {
            let (bytes, more) = rest.split_at(part.len);
            self.write(part.address, bytes)?;
            rest = more;
        }
        Ok(())
    }

    /// Translates a virtual range. Parts that are adjacent in physical memory are merged.
    fn translate_all(&self, tables: &PageTables, address: u64, len: usize) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        let mut done = 0;
        while done < len {
            let past_the_end =
                Error::Translation { address, last: address, reason: "the range reaches past the last address" };
            let next = address.checked_add(done as u64).ok_or(past_the_end)?;
            let page = self.rest_of_page(tables, next)?;
            let page_bytes = usize::try_from(page.end - page.start).unwrap_or(usize::MAX);
            let part = Part { address: page.start, len: page_bytes.min(len - done) };
            done += part.len;
            match parts.last_mut() {
                Some(last) if last.address + last.len as u64 == part.address => last.len += part.len,
                _ => parts.push(part),
            }
        }
        Ok(parts)
    }

    /// Returns the guest-physical addresses from that of a virtual address to the end of its page.
    fn rest_of_page(&self, tables: &PageTables, address: u64) -> Result<Range<u64>> {
        let found = tables.translate_with(address, |entry| read_entry(&self.memory, self.domid, entry))?;
        if self.kind != GuestKind::Pv {
            return Ok(found.physical..(found.physical | (found.page_size - 1)) + 1);
        }
        // These are machine addresses: even within a large page, the next frame's pfn may be any.
        let foreign = Error::Translation {
            address,
            last: address | (FRAME - 1),
            reason: "it leads to a frame that is not the guest's own, by its p2m",
        };
        let first = self.pfn_of(Gfn::containing(found.physical)?)?.ok_or(foreign)?.address();
        Ok(first + found.physical % FRAME..first + FRAME)
    }
}

/// A part of a virtual range that is contiguous in guest-physical memory.
struct Part {
    address: u64,
    len: usize,
}

fn read_entry(memory: &ForeignMemory, domid: Domid, address: u64) -> Result<u64> {
    // A PV guest's tables cannot be mapped writable.
    let mapping = memory.map_foreign_batch(domid, Protection::ReadOnly, &[Gfn::containing(address)?]);
    let outside = |e| match e {
        Error::Frames(errors) => Error::GuestAddress { domid, address, errno: Error::Frames(errors).errno() },
        e => e,
    };
    // An entry is aligned to its size, so this is a single access, like the processor's.
    mapping.map_err(outside)?.view().read((address % FRAME) as usize)
}
