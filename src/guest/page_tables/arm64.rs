//! Translation tables of arm64 (Arm's Architecture Reference Manual for A-profile, chapter D8).

use super::NO_SUCH_PAGE;
use super::walk::{self, Entry, Half, Limits, low_bits};
use crate::error::{Error, Result};

/// Bits of a descriptor (an entry): whether it is valid, and whether it refers to a table (at level 3, a page) or maps
/// a large page.
const VALID: u64 = 1;
const TABLE: u64 = 1 << 1;

/// Bits of a descriptor that maps a page.
const AP_EL0: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const DBM: u64 = 1 << 51;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;

/// Bits of a descriptor that refers to a table.
const PXN_TABLE: u64 = 1 << 59;
const UXN_TABLE: u64 = 1 << 60;
const AP_TABLE_NO_EL0: u64 = 1 << 61;
const AP_TABLE_READ_ONLY: u64 = 1 << 62;

/// The binary logarithm of an entry's size in bytes.
const ENTRY_BITS: u32 = 3;

/// Bits of `TCR_EL1`.
const EPD0: u32 = 7;
const TG0: u32 = 14;
const T1SZ: u32 = 16;
const EPD1: u32 = 23;
const TG1: u32 = 30;
const IPS: u32 = 32;
const TBI0: u32 = 37;
const TBI1: u32 = 38;
const HA: u32 = 39;
const HD: u32 = 40;
const HPD0: u32 = 41;
const HPD1: u32 = 42;
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

/// What determines the meaning of the entries in one half's tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    page_bits: u32,
    /// Whether the tables hold physical addresses of 52 bits instead of 48.
    wide: bool,
    /// Whether entries that refer to tables limit the rights of the pages below.
    is_hierarchical: bool,
    /// Whether the processor makes a page writable at the first write, if its entry says so (DBM).
    tracks_dirty: bool,
}

/// Returns the half of the address space that an address is in.
pub(super) fn half_of([ttbr0, ttbr1, tcr]: [u64; 3], address: u64) -> Result<Half> {
    let outside = |reason| Error::Translation { address, last: last_outside(tcr, address), reason };
    find_half([ttbr0, ttbr1, tcr], address).map_err(outside)
}

/// Returns the half that an address is in, or why the address is invalid.
fn find_half([ttbr0, ttbr1, tcr]: [u64; 3], address: u64) -> std::result::Result<Half, &'static str> {
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
    // A page of the smallest size (the granule) has 4, 16 or 64 KiB.
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
    let is_hierarchical = field(if upper { HPD1 } else { HPD0 }, 1) == 0;
    let (first, last) = if upper { (!low_bits(address_bits), u64::MAX) } else { (0, low_bits(address_bits)) };
    let format = Format { page_bits, wide, is_hierarchical, tracks_dirty: field(HA, 1) & field(HD, 1) == 1 };
    let index_bits = page_bits - ENTRY_BITS;
    let levels = (address_bits - page_bits).div_ceil(index_bits);
    let top = format.top_table(ttbr, address_bits - page_bits - index_bits * (levels - 1));
    let format = walk::Format::Arm64(format);
    Ok(Half { first, last, top, levels, address_bits, page_bits, entry_bits: ENTRY_BITS, format })
}

impl Format {
    /// Returns the highest level whose entries can map pages. The lowest level is 1.
    fn highest_page(self) -> u32 {
        let highest = if self.page_bits == 12 { 3 } else { 2 };
        if self.wide { highest + 1 } else { highest }
    }

    /// Returns the address of the top table, which is aligned to the table's size.
    fn top_table(self, ttbr: u64, index_bits: u32) -> u64 {
        let size = 1_u64 << (index_bits + ENTRY_BITS);
        if self.wide {
            // The address is a multiple of 64; bits 2 to 5 of the register hold bits 48 to 51 of the address.
            (ttbr & low_bits(48) | (ttbr >> 2 & 0xF) << 48) & !(size.max(64) - 1)
        } else {
            ttbr & low_bits(48) & !(size - 1)
        }
    }

    /// Returns the address of the table or page that an entry holds.
    fn address_in(self, entry: u64) -> u64 {
        let page = !low_bits(self.page_bits);
        match (self.page_bits, self.wide) {
            (16, true) => entry & low_bits(48) & page | (entry >> 12 & 0xF) << 48,
            (_, true) => entry & low_bits(50) & page | (entry >> 8 & 3) << 50,
            (_, false) => entry & low_bits(48) & page,
        }
    }

    /// Decodes an entry of a table of a level, counted from the bottom, from 1.
    pub(super) fn decode(self, level: u32, entry: u64) -> Entry {
        let is_table = entry & TABLE != 0;
        // At the lowest level, the form of a large page is not valid.
        if entry & VALID == 0 || level == 1 && !is_table {
            return Entry::None(NOT_VALID[level as usize - 1]);
        }
        let address = self.address_in(entry);
        let has = |bit: u64| entry & bit != 0;
        if level > 1 && is_table {
            let limits = Limits {
                writable: !has(AP_TABLE_READ_ONLY),
                user: !has(AP_TABLE_NO_EL0),
                user_executable: !has(UXN_TABLE),
                kernel_executable: !has(PXN_TABLE),
            };
            return Entry::Table(address, if self.is_hierarchical { limits } else { Limits::NONE });
        }
        if level > self.highest_page() {
            return Entry::None(NO_SUCH_PAGE);
        }
        let limits = Limits {
            writable: !has(AP_READ_ONLY) || self.tracks_dirty && has(DBM),
            user: has(AP_EL0),
            user_executable: !has(UXN),
            kernel_executable: !has(PXN),
        };
        Entry::Page(address, limits)
    }
}

/// Returns the last of the addresses from `address` on that [`find_half`] certainly rejects, for the same reason as
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
