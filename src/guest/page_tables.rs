//! From a guest's virtual addresses to its physical ones.

use std::ops::Range;

use super::Guest;
use crate::error::{Error, Result};
use crate::foreign::ForeignMemory;
use crate::types::{Domid, FRAME_SIZE, Gfn, GuestKind, Protection};

/// Bits of an entry (Intel's manual, volume 3, "Paging"; AMD's, volume 2, "Page Translation and Protection").
const PRESENT: u64 = 1;
const PAGE_SIZE: u64 = 1 << 7;
/// Where an entry, or CR3, holds the address of a table or page.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// The same of PAE's CR3: its top table is 4 entries only.
const PAE_ADDRESS: u64 = 0x000F_FFFF_FFFF_FFE0;

const FRAME: u64 = FRAME_SIZE as u64;
const ENTRIES: u64 = 512;
const ENTRY_BYTES: u64 = 8;

const NOT_PRESENT: [&str; 5] = [
    "its entry in the page table (level 1) is not present",
    "its entry in the page directory (level 2) is not present",
    "its entry in the page-directory-pointer table (level 3) is not present",
    "its entry in the PML4 (level 4) is not present",
    "its entry in the PML5 (level 5) is not present",
];

/// How an x86 guest's page tables are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PagingMode {
    /// 32-bit virtual addresses, 3 levels.
    Pae,
    /// 48-bit virtual addresses, 4 levels.
    FourLevels,
    /// 57-bit virtual addresses, 5 levels.
    FiveLevels,
}

impl PagingMode {
    fn levels(self) -> u32 {
        match self {
            PagingMode::Pae => 3,
            PagingMode::FourLevels => 4,
            PagingMode::FiveLevels => 5,
        }
    }

    /// The highest level whose entries can be pages: of 2 MiB or of 1 GiB.
    fn highest_page(self) -> u32 {
        match self {
            PagingMode::Pae => 2,
            PagingMode::FourLevels | PagingMode::FiveLevels => 3,
        }
    }

    /// Whether a processor takes such an address: the upper bits of a 64-bit one repeat the highest that is translated.
    fn has_address(self, address: u64) -> bool {
        let upper = |bits: u32| address.cast_signed() >> (bits - 1);
        match self {
            PagingMode::Pae => address >> 32 == 0,
            PagingMode::FourLevels => matches!(upper(48), 0 | -1),
            PagingMode::FiveLevels => matches!(upper(57), 0 | -1),
        }
    }
}

/// The page tables of an address space of an x86 guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTables {
    /// The top table's address in bytes, as the guest's CR3 holds it (other bits there are ignored); of a PV guest a
    /// machine address, of a 32-bit one too, whose CR3 holds it rotated.
    pub cr3: u64,
    /// How they are made.
    pub mode: PagingMode,
}

impl Guest<'_> {
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
    /// let tables = PageTables { cr3: 0x4000, mode: PagingMode::FourLevels };
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
        let found = walk(&self.memory, self.domid, tables, address)?;
        if self.kind != GuestKind::Pv {
            return Ok(found);
        }
        // It is a machine address, and its neighbours in a larger page may be anywhere.
        let foreign =
            Error::Translation { address, reason: "it leads to a frame that is not the guest's own, by its p2m" };
        let first = self.pfn_of(Gfn::containing(found.start)?)?.ok_or(foreign)? * FRAME;
        Ok(first + found.start % FRAME..first + FRAME)
    }
}

/// A part of a virtual range: bytes that follow each other in the guest's physical addresses.
struct Part {
    address: u64,
    len: usize,
}

/// Follows page tables from the top down. Returns what the last entry holds for the address, up to the end of its page:
/// guest-physical addresses, or of a PV guest machine ones.
fn walk(memory: &ForeignMemory, domid: Domid, tables: &PageTables, address: u64) -> Result<Range<u64>> {
    let error = |reason| Error::Translation { address, reason };
    if !tables.mode.has_address(address) {
        return Err(error(match tables.mode {
            PagingMode::Pae => "it has more than 32 bits",
            PagingMode::FourLevels | PagingMode::FiveLevels => "it is not canonical",
        }));
    }
    let mut level = tables.mode.levels();
    let mut table = tables.cr3 & if tables.mode == PagingMode::Pae { PAE_ADDRESS } else { ADDRESS };
    // The guest may have tables refer to each other in circles: each step is one level down all the same.
    loop {
        let covered = FRAME * ENTRIES.pow(level - 1);
        let entry = read_entry(memory, domid, table + address / covered % ENTRIES * ENTRY_BYTES)?;
        if entry & PRESENT == 0 {
            return Err(error(NOT_PRESENT[level as usize - 1]));
        }
        if level == 1 || entry & PAGE_SIZE != 0 {
            if level > tables.mode.highest_page() {
                return Err(error("an entry says that it is a page, but there are none of that size"));
            }
            let page = (entry & ADDRESS) / covered * covered;
            return Ok(page + address % covered..page + covered);
        }
        table = entry & ADDRESS;
        level -= 1;
    }
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
