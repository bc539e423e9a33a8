//! What is known of a Linux kernel by its VMCOREINFO note.

use std::cell::OnceCell;

use xenmap::{PageTables, PagingMode};

use crate::ram::Ram;
use crate::vmcoreinfo::{self, X86_IMAGE, number, symbol, value};
use crate::{Result, say};

/// The running kernel's note, which is looked for once, and only if it is needed.
pub(crate) struct Kernel<'a> {
    ram: &'a Ram,
    note: OnceCell<Option<Vec<u8>>>,
}

impl<'a> Kernel<'a> {
    pub(crate) fn new(ram: &'a Ram) -> Kernel<'a> {
        Kernel { ram, note: OnceCell::new() }
    }

    /// Returns the text of the note: the one that a dump has besides RAM, or else the one in RAM.
    pub(crate) fn note(&self) -> Result<Option<&[u8]>> {
        if self.note.get().is_none() {
            let mut note = self.ram.vmcoreinfo().map(<[u8]>::to_vec);
            if note.is_none() {
                let (found, doubt) = vmcoreinfo::find(self.ram)?;
                note = found;
                if let Some(doubt) = doubt {
                    say(&doubt);
                }
            }
            // It was not set a moment ago.
            let _ = self.note.set(note);
        }
        Ok(self.note.get().and_then(Option::as_deref))
    }
}

/// Returns the symbols of a kernel that a note lists, and their addresses.
pub(crate) fn symbols(text: &[u8]) -> impl Iterator<Item = (&str, u64)> {
    let lines = std::str::from_utf8(text).unwrap_or_default().lines();
    lines.filter_map(|line| {
        let (name, address) = line.strip_prefix("SYMBOL(")?.split_once(")=")?;
        Some((name, u64::from_str_radix(address, 16).ok()?))
    })
}

/// Returns the release of the kernel that a note describes.
pub(crate) fn release(text: &[u8]) -> Option<&str> {
    value(text, "OSRELEASE")
}

/// Returns the page tables of the kernel that a note describes, if it is one of x86-64 or arm64.
pub(crate) fn page_tables(text: &[u8]) -> Option<PageTables> {
    let symbol = |name| symbol(text, name);
    if let Some(voffset) = number(text, "NUMBER(kimage_voffset)") {
        let size = number(text, "NUMBER(TCR_EL1_T1SZ)").or(Some(64 - number(text, "NUMBER(VA_BITS)")?.min(64)))?;
        // TG1, the size of pages (Arm's Architecture Reference Manual for A-profile, `TCR_EL1`).
        let granule: u64 = match number(text, "PAGESIZE")? {
            0x4000 => 0b01,
            0x1_0000 => 0b11,
            _ => 0b10,
        };
        // EPD0: there are no tables of a program.
        let tcr = granule << 30 | (size & 0x3F) << 16 | 1 << 7;
        let ttbr1 = symbol("swapper_pg_dir")?.wrapping_sub(voffset);
        return Some(PageTables::Arm64 { ttbr0: 0, ttbr1, tcr });
    }
    // It has the second name since Linux 4.13, and the first one before.
    let top = ["init_level4_pgt", "init_top_pgt", "swapper_pg_dir"].into_iter().find_map(symbol)?;
    let cr3 = top.checked_sub(X86_IMAGE)?.wrapping_add(number(text, "NUMBER(phys_base)").unwrap_or(0));
    let has_five_levels = number(text, "NUMBER(pgtable_l5_enabled)") == Some(1);
    Some(PageTables::X86 { cr3, mode: if has_five_levels { PagingMode::FiveLevels } else { PagingMode::FourLevels } })
}
