//! From a guest's virtual addresses to its physical ones.

mod arm64;
mod x86;

use std::ops::Range;

use super::Guest;
use crate::error::{Error, Result};
use crate::handle::ForeignMemory;
use crate::mapping::Access;
use crate::types::{Domid, FRAME_SIZE, Gfn, GuestKind, Protection};
pub use x86::PagingMode;

const FRAME: u64 = FRAME_SIZE as u64;
const ENTRY_BYTES: u64 = 8;

const NO_SUCH_PAGE: &str = "an entry says that it is a page, but there are none of that size";

/// The page tables of an address space of a guest, by what the registers of its processor hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PageTables {
    /// Those of an x86 guest.
    X86 {
        /// The top table's address in bytes, as the guest's CR3 holds it (other bits there are ignored); of a PV guest
        /// a machine address, of a 32-bit one too, whose CR3 holds it rotated.
        cr3: u64,
        /// How they are made.
        mode: PagingMode,
    },
    /// Those of an arm64 guest, at exception level 1: with pages of 4, 16 or 64 KiB, and addresses of up to 52 bits.
    Arm64 {
        /// `TTBR0_EL1`, for addresses whose bit 55 is clear: those of a program.
        ttbr0: u64,
        /// `TTBR1_EL1`, for addresses whose bit 55 is set: those of the kernel.
        ttbr1: u64,
        /// `TCR_EL1`, which says how both are made.
        tcr: u64,
    },
}

impl PageTables {
    /// Follows the tables from the top down. Returns what the last entry holds for the address, up to the end of its
    /// page: guest-physical addresses, or of a PV guest machine ones.
    fn walk(&self, address: u64, read_entry: impl Fn(u64) -> Result<u64>) -> Result<Range<u64>> {
        match *self {
            PageTables::X86 { cr3, mode } => x86::walk(cr3, mode, address, read_entry),
            PageTables::Arm64 { ttbr0, ttbr1, tcr } => arm64::walk([ttbr0, ttbr1, tcr], address, read_entry),
        }
    }
}

impl Guest {
    /// The guest-physical address of a virtual one.
    ///
    /// This maps a frame for each level of the tables, one after the other. Of a PV guest, whose tables hold machine
    /// frames, it also asks Xen for the frame's number in the guest, and checks that the guest's p2m agrees.
    ///
    /// Which accesses the entries allow does not matter. The guest may change its tables meanwhile.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, Guest, GuestKind, PageTables, PagingMode};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// // Entry 1 of the top table (frame 4) is another one (frame 5), whose entry 0 is a page of 1 GiB from 0 on.
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
    /// [`Error::Translation`] if it is not mapped or, in a PV guest, leads to a frame that is not the guest's own;
    /// [`Error::GuestAddress`] if a table is not in the guest's RAM, with the address of its entry (of a PV guest a
    /// machine address); those of mapping, and [`Error::Hypercall`].
    pub fn translate(&self, tables: &PageTables, address: u64) -> Result<u64> {
        Ok(self.rest_of_page(tables, address)?.start)
    }

    /// Copies bytes from a virtual address on; see [`Guest::read`]. All of it is translated before anything is read.
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

    /// Copies bytes to a virtual address; see [`Guest::write`]. All of it is translated before anything is written.
    ///
    /// It is written whether or not the guest itself could write there.
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

    /// Where the bytes of a virtual range are. Parts that follow each other are one.
    fn translate_all(&self, tables: &PageTables, address: u64, len: usize) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        let mut done = 0;
        while done < len {
            let past_the_end = Error::Translation { address, reason: "the range reaches past the last address" };
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

    /// The guest-physical addresses from that of a virtual one to the end of its page.
    fn rest_of_page(&self, tables: &PageTables, address: u64) -> Result<Range<u64>> {
        let found = tables.walk(address, |entry| read_entry(&self.memory, self.domid, entry))?;
        if self.kind != GuestKind::Pv {
            return Ok(found);
        }
        // It is a machine address, and its neighbours in a larger page may be anywhere.
        let foreign =
            Error::Translation { address, reason: "it leads to a frame that is not the guest's own, by its p2m" };
        let first = self.pfn_of(Gfn::containing(found.start)?)?.ok_or(foreign)?.address();
        Ok(first + found.start % FRAME..first + FRAME)
    }
}

/// A part of a virtual range: bytes that follow each other in the guest's physical addresses.
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
    // Aligned to its size, so it is read as the processor reads it, in one.
    mapping.map_err(outside)?.view().read((address % FRAME) as usize)
}
