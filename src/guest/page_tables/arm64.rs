//! Translation tables of arm64 (Arm's Architecture Reference Manual for A-profile, chapter D8).

use std::ops::Range;

use super::{ENTRY_BYTES, NO_SUCH_PAGE};
use crate::error::{Error, Result};

/// Bits of a descriptor, which is what an entry is called: whether there is something, and whether that is a table (at
/// level 3 a page) or a large page.
const VALID: u64 = 1;
const TABLE: u64 = 1 << 1;

/// Bits of `TCR_EL1`.
const EPD0: u32 = 7;
const TG0: u32 = 14;
const T1SZ: u32 = 16;
const EPD1: u32 = 23;
const TG1: u32 = 30;
const IPS: u32 = 32;
const TBI0: u32 = 37;
const TBI1: u32 = 38;
const DS: u32 = 59;
/// The value of its field IPS with which physical addresses have 52 bits.
const IPS_52_BITS: u64 = 6;

/// By the levels from the bottom up.
const NOT_VALID: [&str; 5] = [
    "its entry in the table of level 3 is not valid",
    "its entry in the table of level 2 is not valid",
    "its entry in the table of level 1 is not valid",
    "its entry in the table of level 0 is not valid",
    "its entry in the table of level -1 is not valid",
];

/// The half of the virtual addresses that an address is in, which has tables of its own.
struct Half {
    ttbr: u64,
    /// Bits of an address within a page of the smallest size: 12, 14 or 16 for 4, 16 or 64 KiB, the granule.
    page_bits: u32,
    /// Bits of an address that are translated.
    address_bits: u32,
    /// Whether the tables hold physical addresses of 52 bits, not of 48.
    wide: bool,
}

impl Half {
    /// The half of an address, or why no processor translates it.
    fn of(ttbr0: u64, ttbr1: u64, tcr: u64, address: u64) -> std::result::Result<Half, &'static str> {
        let field = |shift: u32, bits: u32| tcr >> shift & ((1 << bits) - 1);
        let upper = address >> 55 & 1 == 1;
        let (ttbr, size, disabled, ignores_top_byte) = if upper {
            (ttbr1, field(T1SZ, 6), field(EPD1, 1), field(TBI1, 1))
        } else {
            (ttbr0, field(0, 6), field(EPD0, 1), field(TBI0, 1))
        };
        if disabled == 1 {
            return Err("its half of the addresses is turned off (EPD in TCR_EL1)");
        }
        let page_bits = match (upper, field(if upper { TG1 } else { TG0 }, 2)) {
            (false, 0) | (true, 2) => 12,
            (false, 2) | (true, 1) => 14,
            (false, 1) | (true, 3) => 16,
            _ => return Err("the page size of its half (TG in TCR_EL1) is none that there is"),
        };
        let wide = if page_bits == 16 { field(IPS, 3) == IPS_52_BITS } else { field(DS, 1) == 1 };
        let most_bits = if wide || page_bits == 16 { 52 } else { 48 };
        // It is 6 bits wide.
        let address_bits = 64 - u32::try_from(size).unwrap_or_default();
        if address_bits <= page_bits || address_bits > most_bits {
            return Err("the size of its half (T0SZ or T1SZ in TCR_EL1) is none that there is");
        }
        // A tag in the top byte may be ignored. All other bits above those that are translated repeat bit 55.
        let tag_bits = if ignores_top_byte == 1 { 8 } else { 0 };
        let untagged = (address << tag_bits).cast_signed() >> tag_bits;
        if !matches!(untagged >> address_bits, 0 | -1) {
            return Err("it is in neither half of the addresses (T0SZ and T1SZ in TCR_EL1)");
        }
        Ok(Half { ttbr, page_bits, address_bits, wide })
    }

    /// Bits of an address that an entry of a table is chosen by; of the top table it may be fewer.
    fn index_bits(&self) -> u32 {
        self.page_bits - ENTRY_BYTES.trailing_zeros()
    }

    fn levels(&self) -> u32 {
        (self.address_bits - self.page_bits).div_ceil(self.index_bits())
    }

    /// The highest level whose entries can be pages, counted from the bottom up, from 1 on.
    fn highest_page(&self) -> u32 {
        let highest = if self.page_bits == 12 { 3 } else { 2 };
        if self.wide { highest + 1 } else { highest }
    }

    /// Where the top table is, which begins at a multiple of its size.
    fn top_table(&self) -> u64 {
        let entries = 1 << (self.address_bits - self.page_bits - self.index_bits() * (self.levels() - 1));
        let size: u64 = ENTRY_BYTES * entries;
        if self.wide {
            // What would be the lowest bits of the address, were it not a multiple of 64, are the highest.
            (self.ttbr & low_bits(48) | (self.ttbr >> 2 & 0xF) << 48) & !(size.max(64) - 1)
        } else {
            self.ttbr & low_bits(48) & !(size - 1)
        }
    }

    /// The address of a table or page that an entry holds.
    fn address_in(&self, entry: u64) -> u64 {
        let page = !low_bits(self.page_bits);
        match (self.page_bits, self.wide) {
            (16, true) => entry & low_bits(48) & page | (entry >> 12 & 0xF) << 48,
            (_, true) => entry & low_bits(50) & page | (entry >> 8 & 3) << 50,
            (_, false) => entry & low_bits(48) & page,
        }
    }
}

fn low_bits(count: u32) -> u64 {
    (1 << count) - 1
}

/// Follows translation tables from the top down; see [`PageTables::walk`](super::PageTables::walk).
pub(super) fn walk(
    [ttbr0, ttbr1, tcr]: [u64; 3],
    address: u64,
    read_entry: impl Fn(u64) -> Result<u64>,
) -> Result<Range<u64>> {
    let error = |reason| Error::Translation { address, reason };
    let half = Half::of(ttbr0, ttbr1, tcr, address).map_err(error)?;
    let translated = address & low_bits(half.address_bits);
    let mut level = half.levels();
    let mut table = half.top_table();
    // The guest may have tables refer to each other in circles: each step is one level down all the same.
    loop {
        let covered_bits = half.page_bits + half.index_bits() * (level - 1);
        let index = translated >> covered_bits & low_bits(half.index_bits());
        let entry = read_entry(table + index * ENTRY_BYTES)?;
        let is_table = entry & TABLE != 0;
        // At the lowest level an entry in the form of a large page is not valid.
        if entry & VALID == 0 || level == 1 && !is_table {
            return Err(error(NOT_VALID[level as usize - 1]));
        }
        if level == 1 || !is_table {
            if level > half.highest_page() {
                return Err(error(NO_SUCH_PAGE));
            }
            let page = half.address_in(entry) & !low_bits(covered_bits);
            return Ok(page + (address & low_bits(covered_bits))..page + (1 << covered_bits));
        }
        table = half.address_in(entry);
        level -= 1;
    }
}
