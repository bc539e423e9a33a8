//! Translation tables of arm64 (Arm's Architecture Reference Manual for A-profile, chapter D8).

use std::ops::Range;

use super::{ENTRY_BYTES, NO_SUCH_PAGE};
use crate::error::{Error, Result};

/// Bits of a descriptor (an entry): whether it is valid, and whether it refers to a table (at level 3, a page) or maps
/// a large page.
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
/// The value of the field IPS for physical addresses of 52 bits.
const IPS_52_BITS: u64 = 6;

/// The errors for each level, from the bottom up.
const NOT_VALID: [&str; 5] = [
    "its entry in the table of level 3 is not valid",
    "its entry in the table of level 2 is not valid",
    "its entry in the table of level 1 is not valid",
    "its entry in the table of level 0 is not valid",
    "its entry in the table of level -1 is not valid",
];

/// The half of the address space that an address is in. Each half has its own tables.
struct Half {
    ttbr: u64,
    /// Address bits within a page of the smallest size (the granule): 12, 14 or 16 for 4, 16 or 64 KiB.
    page_bits: u32,
    /// Address bits that are translated.
    address_bits: u32,
    /// Whether the tables hold physical addresses of 52 bits instead of 48.
    wide: bool,
}

impl Half {
    /// Returns the half that an address is in, or why the address is invalid.
    fn of(ttbr0: u64, ttbr1: u64, tcr: u64, address: u64) -> std::result::Result<Half, &'static str> {
        let field = |shift: u32, bits: u32| tcr >> shift & ((1 << bits) - 1);
        let upper = address >> 55 & 1 == 1;
        let (ttbr, size, disabled, ignores_top_byte) = if upper {
            (ttbr1, field(T1SZ, 6), field(EPD1, 1), field(TBI1, 1))
        } else {
            (ttbr0, field(0, 6), field(EPD0, 1), field(TBI0, 1))
        };
        if disabled == 1 {
            return Err("translation of its half of the addresses is turned off (EPD in TCR_EL1)");
        }
        let page_bits = match (upper, field(if upper { TG1 } else { TG0 }, 2)) {
            (false, 0) | (true, 2) => 12,
            (false, 2) | (true, 1) => 14,
            (false, 1) | (true, 3) => 16,
            _ => return Err("the page size of its half (TG in TCR_EL1) does not exist"),
        };
        let wide = if page_bits == 16 { field(IPS, 3) == IPS_52_BITS } else { field(DS, 1) == 1 };
        let most_bits = if wide || page_bits == 16 { 52 } else { 48 };
        // `size` has 6 bits.
        let address_bits = 64 - u32::try_from(size).unwrap_or_default();
        if address_bits <= page_bits || address_bits > most_bits {
            return Err("the size of its half (T0SZ or T1SZ in TCR_EL1) is out of range");
        }
        // All bits above the translated ones repeat bit 55, except for the top byte if it holds a tag.
        let tag_bits = if ignores_top_byte == 1 { 8 } else { 0 };
        let untagged = (address << tag_bits).cast_signed() >> tag_bits;
        if !matches!(untagged >> address_bits, 0 | -1) {
            return Err("it is in neither half of the addresses (T0SZ and T1SZ in TCR_EL1)");
        }
        Ok(Half { ttbr, page_bits, address_bits, wide })
    }

    /// Address bits that index a table. The top table may have fewer.
    fn index_bits(&self) -> u32 {
        self.page_bits - ENTRY_BYTES.trailing_zeros()
    }

    fn levels(&self) -> u32 {
        (self.address_bits - self.page_bits).div_ceil(self.index_bits())
    }

    /// Returns the highest level whose entries can map pages. The lowest level is 1.
    fn highest_page(&self) -> u32 {
        let highest = if self.page_bits == 12 { 3 } else { 2 };
        if self.wide { highest + 1 } else { highest }
    }

    /// Returns the address of the top table, which is aligned to the table's size.
    fn top_table(&self) -> u64 {
        let entries = 1 << (self.address_bits - self.page_bits - self.index_bits() * (self.levels() - 1));
        let size: u64 = ENTRY_BYTES * entries;
        if self.wide {
            // The address is a multiple of 64; bits 2 to 5 of the register hold bits 48 to 51 of the address.
            (self.ttbr & low_bits(48) | (self.ttbr >> 2 & 0xF) << 48) & !(size.max(64) - 1)
        } else {
            self.ttbr & low_bits(48) & !(size - 1)
        }
    }

    /// Returns the address of the table or page that an entry holds.
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

/// Returns the last of the addresses from `address` on that [`Half::of`] certainly rejects, for the same reason as
/// `address` itself.
fn last_outside(tcr: u64, address: u64) -> u64 {
    let end = address | low_bits(55);
    if address >> 55 & 1 == 0 {
        return end;
    }
    // If bit 55 is set, the addresses that may be translated are the highest.
    let bits = u32::try_from(64 - (tcr >> T1SZ & 0x3F)).unwrap_or(55).min(55);
    let translated = end - low_bits(bits);
    if address < translated { translated - 1 } else { end }
}

/// Walks the translation tables from the top down; see [`PageTables::walk`](super::PageTables::walk).
pub(super) fn walk(
    [ttbr0, ttbr1, tcr]: [u64; 3],
    address: u64,
    read_entry: impl Fn(u64) -> Result<u64>,
) -> Result<Range<u64>> {
    let outside = |reason| Error::Translation { address, last: last_outside(tcr, address), reason };
    let half = Half::of(ttbr0, ttbr1, tcr, address).map_err(outside)?;
    let translated = address & low_bits(half.address_bits);
    let mut level = half.levels();
    let mut table = half.top_table();
    // This ends even if the guest's tables form a cycle, because each step goes one level down.
    loop {
        let covered_bits = half.page_bits + half.index_bits() * (level - 1);
        let index = translated >> covered_bits & low_bits(half.index_bits());
        let entry = read_entry(table + index * ENTRY_BYTES)?;
        let error = |reason| Error::Translation { address, last: address | low_bits(covered_bits), reason };
        let is_table = entry & TABLE != 0;
        // At the lowest level, the form of a large page is not valid.
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
