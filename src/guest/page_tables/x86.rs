//! Page tables of x86.

use std::ops::{Range, RangeInclusive};

use super::{ENTRY_BYTES, FRAME, NO_SUCH_PAGE};
use crate::error::{Error, Result};

/// Bits of a page-table entry (Intel's manual, volume 3, "Paging"; AMD's, volume 2, "Page Translation and Protection").
const PRESENT: u64 = 1;
const PAGE_SIZE: u64 = 1 << 7;
/// The bits of an entry, or of CR3, that hold the address of a table or page.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// The same for CR3 with PAE, where the top table has only 4 entries.
const PAE_ADDRESS: u64 = 0x000F_FFFF_FFFF_FFE0;

const ENTRIES: u64 = 512;

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

    /// Returns the highest level whose entries can map pages: of 2 MiB or of 1 GiB.
    fn highest_page(self) -> u32 {
        match self {
            PagingMode::Pae => 2,
            PagingMode::FourLevels | PagingMode::FiveLevels => 3,
        }
    }

    /// Returns the invalid addresses. In a valid 64-bit address, all upper bits repeat the highest translated bit.
    fn invalid_addresses(self) -> RangeInclusive<u64> {
        match self {
            PagingMode::Pae => 1 << 32..=u64::MAX,
            PagingMode::FourLevels => 1 << 47..=(u64::MAX << 47) - 1,
            PagingMode::FiveLevels => 1 << 56..=(u64::MAX << 56) - 1,
        }
    }
}

/// Walks the page tables from the top down; see [`PageTables::walk`](super::PageTables::walk).
pub(super) fn walk(
    cr3: u64,
    mode: PagingMode,
    address: u64,
    read_entry: impl Fn(u64) -> Result<u64>,
) -> Result<Range<u64>> {
    let invalid = mode.invalid_addresses();
    if invalid.contains(&address) {
        let reason = match mode {
            PagingMode::Pae => "it has more than 32 bits",
            PagingMode::FourLevels | PagingMode::FiveLevels => "it is not canonical",
        };
        return Err(Error::Translation { address, last: *invalid.end(), reason });
    }
    let mut level = mode.levels();
    let mut table = cr3 & if mode == PagingMode::Pae { PAE_ADDRESS } else { ADDRESS };
    // This ends even if the guest's tables form a cycle, because each step goes one level down.
    loop {
        let covered = FRAME * ENTRIES.pow(level - 1);
        let entry = read_entry(table + address / covered % ENTRIES * ENTRY_BYTES)?;
        let error = |reason| Error::Translation { address, last: address | (covered - 1), reason };
        if entry & PRESENT == 0 {
            return Err(error(NOT_PRESENT[level as usize - 1]));
        }
        if level == 1 || entry & PAGE_SIZE != 0 {
            if level > mode.highest_page() {
                return Err(error(NO_SUCH_PAGE));
            }
            let page = (entry & ADDRESS) / covered * covered;
            return Ok(page + address % covered..page + covered);
        }
        table = entry & ADDRESS;
        level -= 1;
    }
}
