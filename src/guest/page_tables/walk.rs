//! Walking page tables, of whichever format, from the top down.

use super::x86::PagingMode;
use super::{AccessRights, PageTables, Translation, arm64, x86};
use crate::error::Error;

/// A tree of tables, and the virtual addresses that it translates: one half of the address space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Half {
    pub(super) first: u64,
    pub(super) last: u64,
    /// The address of the top table.
    pub(super) top: u64,
    /// How many levels of tables there are. The lowest level is 1.
    pub(super) levels: u32,
    /// Address bits that are translated, together with those within a page.
    pub(super) address_bits: u32,
    /// Address bits within a page of the smallest size.
    pub(super) page_bits: u32,
    /// The binary logarithm of an entry's size in bytes: 2 or 3.
    pub(super) entry_bits: u32,
    pub(super) format: Format,
}

/// The format of entries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Format {
    X86(PagingMode),
    Arm64(arm64::Format),
}

/// What an entry says.
pub(super) enum Entry {
    /// Nothing is mapped, for this reason.
    None(&'static str),
    /// A table of the next lower level.
    Table(u64, Limits),
    /// A page that begins at this address.
    Page(u64, Limits),
}

/// What the entries on the way to a page allow. Each may take away rights.
#[expect(clippy::struct_excessive_bools, reason = "each is a bit of an entry")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) writable: bool,
    pub(super) user: bool,
    pub(super) user_executable: bool,
    pub(super) kernel_executable: bool,
}

impl Limits {
    pub(super) const NONE: Limits =
        Limits { writable: true, user: true, user_executable: true, kernel_executable: true };

    pub(super) fn and(self, other: Limits) -> Limits {
        Limits {
            writable: self.writable && other.writable,
            user: self.user && other.user,
            user_executable: self.user_executable && other.user_executable,
            kernel_executable: self.kernel_executable && other.kernel_executable,
        }
    }
}

impl Half {
    /// Address bits that index a table below the top one.
    pub(super) fn index_bits(&self) -> u32 {
        self.page_bits - self.entry_bits
    }

    /// Address bits that index a table of a level: the top table may have fewer.
    pub(super) fn index_bits_of(&self, level: u32) -> u32 {
        self.index_bits().min(self.address_bits - self.covered_bits(level))
    }

    /// Returns the bits of the addresses that an entry of a level covers.
    pub(super) fn covered_bits(&self, level: u32) -> u32 {
        self.page_bits + self.index_bits() * (level - 1)
    }

    /// Returns the entry at an address, given the 8 bytes at the multiple of 8 up to there.
    pub(super) fn entry_in(&self, word: u64, at: u64) -> u64 {
        if self.entry_bits == 3 { word } else { word >> (8 * (at & 4)) & u64::from(u32::MAX) }
    }

    /// Decodes an entry of a table of a level.
    pub(super) fn decode(&self, level: u32, entry: u64) -> Entry {
        let decoded = match self.format {
            Format::X86(mode) => x86::decode(mode, level, entry),
            Format::Arm64(format) => format.decode(level, entry),
        };
        match decoded {
            // Lower bits have other meanings in a large page.
            Entry::Page(address, limits) => Entry::Page(address & !low_bits(self.covered_bits(level)), limits),
            other => other,
        }
    }

    /// Returns the rights of a page.
    pub(super) fn rights(&self, limits: Limits) -> AccessRights {
        let Limits { writable, user, user_executable, kernel_executable } = limits;
        let executable = match self.format {
            Format::X86(_) => kernel_executable,
            // The kernel cannot execute what programs can write.
            Format::Arm64(_) => user_executable || kernel_executable && !(user && writable),
        };
        AccessRights { writable, user, executable }
    }

    /// Walks down to the page of an address, which is in this half.
    fn translate<E: From<Error>>(
        &self,
        address: u64,
        mut read_entry: impl FnMut(u64) -> Result<u64, E>,
    ) -> Result<Translation, E> {
        let translated = address & low_bits(self.address_bits);
        let (mut level, mut table, mut limits) = (self.levels, self.top, Limits::NONE);
        // This ends even if the guest's tables form a cycle, because each step goes one level down.
        loop {
            let covered = self.covered_bits(level);
            let index = translated >> covered & low_bits(self.index_bits());
            let at = table + (index << self.entry_bits);
            match self.decode(level, self.entry_in(read_entry(at & !7)?, at)) {
                Entry::None(reason) => {
                    return Err(Error::Translation { address, last: address | low_bits(covered), reason }.into());
                }
                Entry::Table(next, more) => {
                    (level, table, limits) = (level - 1, next, limits.and(more));
                }
                Entry::Page(page, more) => {
                    let physical = page + (address & low_bits(covered));
                    return Ok(Translation {
                        physical,
                        page_size: 1 << covered,
                        rights: self.rights(limits.and(more)),
                    });
                }
            }
        }
    }
}

impl PageTables {
    /// Translates a virtual address by tables that the caller reads, from wherever they are: a dump, for example.
    ///
    /// `read_entry` returns the 8 bytes of an entry (of two, with [`PagingMode::TwoLevels`](super::PagingMode)) as an
    /// integer in little-endian order, given their address: a physical one or, for a PV guest, a machine address. It is
    /// a multiple of 8. The translation's address is of the same kind. `read_entry` is called once per level at most.
    ///
    /// ```
    /// use xenmap::{Error, PageTables, PagingMode};
    ///
    /// // In the top table, at 0x1000, entry 0 refers to the table at 0x2000, whose entry 1 maps a page of 1 GiB.
    /// let mut dump = vec![0; 0x3000];
    /// dump[0x1000..0x1008].copy_from_slice(&0x2007_u64.to_le_bytes());
    /// dump[0x2008..0x2010].copy_from_slice(&0x8000_0081_u64.to_le_bytes());
    /// let read_entry = |at: u64| {
    ///     let bytes = usize::try_from(at).ok().and_then(|at| dump.get(at..at + 8));
    ///     bytes.and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes).ok_or("not in the dump".into())
    /// };
    ///
    /// let tables = PageTables::X86 { cr3: 0x1000, mode: PagingMode::FourLevels };
    /// let found = tables.translate_with::<Box<dyn std::error::Error>>(0x4000_1234, read_entry)?;
    /// assert_eq!((found.physical, found.page_size), (0x8000_1234, 1 << 30));
    /// assert!(!found.rights.writable && !found.rights.user && found.rights.executable);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Translation`] if the address is not mapped, and the errors of `read_entry`.
    pub fn translate_with<E: From<Error>>(
        &self,
        address: u64,
        read_entry: impl FnMut(u64) -> Result<u64, E>,
    ) -> Result<Translation, E> {
        self.half_of(address)?.translate(address, read_entry)
    }

    /// Returns the half of the address space that an address is in.
    pub(super) fn half_of(&self, address: u64) -> Result<Half, Error> {
        match *self {
            PageTables::X86 { cr3, mode } => x86::half_of(cr3, mode, address),
            PageTables::Arm64 { ttbr0, ttbr1, tcr } => arm64::half_of([ttbr0, ttbr1, tcr], address),
        }
    }
}

pub(super) fn low_bits(count: u32) -> u64 {
    (1 << count) - 1
}
