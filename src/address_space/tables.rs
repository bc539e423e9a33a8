//! Walking a guest's page tables through the cache.

use super::{AddressSpace, FRAME};
use crate::error::{Error, Result};
use crate::guest::Translation;
use crate::mapping::Access;
use crate::types::{Gfn, Protection};

impl AddressSpace {
    /// Walks the tables, without remembered translations.
    pub(super) fn walk_tables(&self, address: u64) -> Result<Translation> {
        let found = self.tables.translate_with(address, |at| self.read_entry(at))?;
        match &self.machine {
            Some(machine) => machine.physical_of(self.guest(), address, found),
            None => Ok(found),
        }
    }

    /// Reads an entry of a table. It is aligned to its size, so this is a single access, like the processor's.
    fn read_entry(&self, at: u64) -> Result<u64> {
        let physical = self.physical_of_table(at)?;
        let read = self.cache.with_mapped(Protection::ReadOnly, physical, 8, |view| view.read(0));
        read.unwrap_or_else(|| self.cache.get(Protection::ReadOnly, physical, 8)?.read(0))
    }

    /// Reads consecutive entries of a table, which are in one frame.
    pub(super) fn read_entries(&self, at: u64, entries: &mut [u64]) -> Result<()> {
        let physical = self.physical_of_table(at)?;
        let table = self.cache.get(Protection::ReadOnly, physical, 8 * entries.len())?;
        for (index, entry) in entries.iter_mut().enumerate() {
            *entry = table.read(8 * index)?;
        }
        Ok(())
    }

    /// Returns the guest-physical address of a table's entry, given the address that is in the tables.
    fn physical_of_table(&self, at: u64) -> Result<u64> {
        let Some(machine) = &self.machine else { return Ok(at) };
        let pfn = machine.pfn_of(self.guest(), Gfn::containing(at)?)?;
        let not_own = Error::GuestAddress { domid: self.guest().domid(), address: at, errno: libc::EINVAL };
        Ok(pfn.ok_or(not_own)?.address() + at % FRAME)
    }
}
