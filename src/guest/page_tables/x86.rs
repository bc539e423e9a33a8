//! Page tables of x86.

use super::NO_SUCH_PAGE;
use super::walk::{Entry, Format, Half, Limits, low_bits};
use crate::error::{Error, Result};

/// Bits of a page-table entry (Intel's manual, volume 3, "Paging"; AMD's, volume 2, "Page Translation and Protection").
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const PAGE_SIZE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// The bits of an entry, or of CR3, that hold the address of a table or page.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// The same for CR3 with PAE, where the top table has only 4 entries.
const PAE_ADDRESS: u64 = 0x000F_FFFF_FFFF_FFE0;
/// The same with two levels, and for a page of 4 MiB, whose upper address bits are elsewhere (PSE-36).
const LEGACY_ADDRESS: u64 = 0xFFFF_F000;
const PSE_ADDRESS: u64 = 0xFFC0_0000;
const PSE_UPPER_SHIFT: u32 = 13;
const PSE_UPPER_MASK: u64 = 0xFF;

const PAGE_BITS: u32 = 12;

const NOT_PRESENT: [&str; 5] = [
    "its entry in the page table (level 1) is not present",
    "its entry in the page directory (level 2) is not present",
    "its entry in the page-directory-pointer table (level 3) is not present",
    "its entry in the PML4 (level 4) is not present",
    "its entry in the PML5 (level 5) is not present",
];

/// The format of an x86 guest's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PagingMode {
    /// 32-bit virtual addresses, 2 levels, entries of 4 bytes: 32-bit paging without PAE. Pages of 4 MiB are taken to
    /// be turned on (PSE in CR4).
    TwoLevels,
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
            PagingMode::TwoLevels => 2,
            PagingMode::Pae => 3,
            PagingMode::FourLevels => 4,
            PagingMode::FiveLevels => 5,
        }
    }

    fn address_bits(self) -> u32 {
        match self {
            PagingMode::TwoLevels | PagingMode::Pae => 32,
            PagingMode::FourLevels => 48,
            PagingMode::FiveLevels => 57,
        }
    }

    /// Returns the highest level whose entries can map pages: of 4 MiB, of 2 MiB or of 1 GiB.
    fn highest_page(self) -> u32 {
        match self {
            PagingMode::TwoLevels | PagingMode::Pae => 2,
            PagingMode::FourLevels | PagingMode::FiveLevels => 3,
        }
    }
}

/// Returns the half of the address space that an address is in. Both halves have the same tables.
pub(super) fn half_of(cr3: u64, mode: PagingMode, address: u64) -> Result<Half> {
    let bits = mode.address_bits();
    let invalid = |last, reason| Err(Error::Translation { address, last, reason });
    let (first, last) = if bits == 32 {
        if address >> bits != 0 {
            return invalid(u64::MAX, "it has more than 32 bits");
        }
        (0, low_bits(bits))
    } else {
        // In a valid 64-bit address, all upper bits repeat the highest translated bit.
        let low_last = low_bits(bits - 1);
        if address <= low_last {
            (0, low_last)
        } else if address < !low_last {
            return invalid(!low_last - 1, "it is not canonical");
        } else {
            (!low_last, u64::MAX)
        }
    };
    let (top, entry_bits) = match mode {
        PagingMode::TwoLevels => (cr3 & LEGACY_ADDRESS, 2),
        PagingMode::Pae => (cr3 & PAE_ADDRESS, 3),
        PagingMode::FourLevels | PagingMode::FiveLevels => (cr3 & ADDRESS, 3),
    };
    let format = Format::X86(mode);
    Ok(Half { first, last, top, levels: mode.levels(), address_bits: bits, page_bits: PAGE_BITS, entry_bits, format })
}

/// Decodes an entry of a table of a level.
pub(super) fn decode(mode: PagingMode, level: u32, entry: u64) -> Entry {
    if entry & PRESENT == 0 {
        return Entry::None(NOT_PRESENT[level as usize - 1]);
    }
    let is_page = level == 1 || entry & PAGE_SIZE != 0;
    if is_page && level > mode.highest_page() {
        return Entry::None(NO_SUCH_PAGE);
    }
    let limits = if mode == PagingMode::Pae && level == mode.levels() {
        Limits::NONE // these entries have no such bits
    } else {
        let executable = entry & NO_EXECUTE == 0;
        Limits {
            writable: entry & WRITABLE != 0,
            user: entry & USER != 0,
            user_executable: executable,
            kernel_executable: executable,
        }
    };
    let address = match mode {
        PagingMode::TwoLevels if is_page && level == 2 => {
            entry & PSE_ADDRESS | (entry >> PSE_UPPER_SHIFT & PSE_UPPER_MASK) << 32
        }
        PagingMode::TwoLevels => entry & LEGACY_ADDRESS,
        _ => entry & ADDRESS,
    };
    if is_page { Entry::Page(address, limits) } else { Entry::Table(address, limits) }
}
