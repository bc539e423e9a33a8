//! The address spaces of a guest: its physical addresses, and the virtual ones of what it runs.

use xenmap::{Gfn, Guest, PageTables, PagingMode};

use crate::Result;
use crate::args::SpaceArgs;

pub(crate) enum Space {
    Physical,
    Virtual(PageTables),
}

impl Space {
    pub(crate) fn new(guest: &Guest<'_>, args: SpaceArgs) -> Result<Space> {
        if !args.r#virtual {
            return Ok(Space::Physical);
        }
        let of_vcpu = guest.page_tables(args.vcpu);
        Ok(Space::Virtual(match args.cr3 {
            // Nearly every guest has four levels.
            Some(cr3) => PageTables { cr3, mode: of_vcpu.map_or(PagingMode::FourLevels, |tables| tables.mode) },
            None => of_vcpu?,
        }))
    }

    pub(crate) fn read(&self, guest: &Guest<'_>, address: u64, to: &mut [u8]) -> Result<()> {
        match self {
            Space::Physical => guest.read(address, to)?,
            Space::Virtual(tables) => guest.read_virtual(tables, address, to)?,
        }
        Ok(())
    }

    /// The physical address of one in this space.
    pub(crate) fn translate(&self, guest: &Guest<'_>, address: u64) -> Result<u64> {
        match self {
            Space::Physical => {
                Gfn::containing(address)?;
                Ok(address)
            }
            Space::Virtual(tables) => Ok(guest.translate(tables, address)?),
        }
    }
}

/// The address of the last of `len` bytes from `first` on.
pub(crate) fn last(first: u64, len: u64) -> Result<u64> {
    let beyond_first = len.checked_sub(1).ok_or("LEN is 0: there is nothing to do")?;
    Ok(first.checked_add(beyond_first).ok_or("ADDRESS and LEN reach beyond the last address")?)
}
