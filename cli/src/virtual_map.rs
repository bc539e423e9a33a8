//! `map --virtual`: what page tables map.

use std::io::Write;

use serde::Serialize;
use xenmap::{AddressSpace, Error, FRAME_SIZE, PageTables, VirtualExtent};

use crate::image::Image;
use crate::map::AddressRange;
use crate::number::{count, size};
use crate::palette::{Palette, palette};
use crate::printable::write_json;
use crate::ram::{Ram, not_in_dump};
use crate::{Result, say};

const FRAME: u64 = FRAME_SIZE as u64;

/// Prints what the tables map, an extent per line. Returns whether all tables could be read.
pub(crate) fn virtual_map(ram: &Ram, tables: &PageTables, as_json: bool, out: &mut impl Write) -> Result<bool> {
    let palette = palette();
    if !as_json {
        let heading = palette.heading;
        writeln!(
            out,
            "{heading}{:>18}  {:>18}  {:>10}  {:>14}  {:>8}  rights{heading:#}",
            "first", "last", "size", "physical", "page"
        )?;
    }
    let mut unreadable = 0;
    each_extent(ram, tables, |extent| {
        match extent {
            Ok(extent) if as_json => write_json(&mut *out, &Line::from(extent))?,
            Ok(extent) => Line::from(extent).print(palette, out)?,
            Err(Error::GuestAddress { .. } | Error::Translation { .. }) => unreadable += 1,
            Err(e) => return Err(e.into()),
        }
        Ok(())
    })?;
    if unreadable > 0 {
        say(&format!("{} cannot be read", count(unreadable, "page table or page")));
    }
    Ok(unreadable == 0)
}

/// Calls `f` with each extent in ascending order, and with an error for each table that cannot be read.
fn each_extent(
    ram: &Ram,
    tables: &PageTables,
    mut f: impl FnMut(std::result::Result<Extent, Error>) -> Result<()>,
) -> Result<()> {
    match ram {
        Ram::Guest(guest) => {
            let space = AddressSpace::new(guest.clone(), *tables);
            space.extents(..).try_for_each(|extent| f(extent.map(Extent::from)))
        }
        Ram::Dump(image) => {
            let extents = tables.extents_with(.., |at, entries| read_entries(image, at, entries));
            let parts = extents.flat_map(|extent| physical_parts(image, extent));
            let mut last: Option<Extent> = None;
            for part in parts {
                match (&mut last, part) {
                    (Some(last), Ok(part)) if last.is_continued_by(&part) => last.len += part.len,
                    (last, part) => {
                        last.take().map_or(Ok(()), |extent| f(Ok(extent)))?;
                        match part {
                            Ok(part) => *last = Some(part),
                            Err(e) => f(Err(e))?,
                        }
                    }
                }
            }
            last.map_or(Ok(()), |extent| f(Ok(extent)))
        }
    }
}

fn read_entries(image: &Image, at: u64, entries: &mut [u64]) -> std::result::Result<(), Error> {
    let mut bytes = vec![0; size_of_val(entries)];
    image.address(at).and_then(|at| image.read(at, &mut bytes)).map_err(not_in_dump)?;
    for (entry, bytes) in entries.iter_mut().zip(bytes.as_chunks().0) {
        *entry = u64::from_le_bytes(*bytes);
    }
    Ok(())
}

/// Returns an extent with physical addresses. For a PV guest's machine addresses these are pages, which may be anywhere.
fn physical_parts(
    image: &Image,
    extent: std::result::Result<VirtualExtent, Error>,
) -> Box<dyn Iterator<Item = std::result::Result<Extent, Error>> + '_> {
    let extent = match extent {
        Ok(extent) => Extent::from(extent),
        Err(e) => return Box::new(std::iter::once(Err(e))),
    };
    if !image.has_machine_frames() {
        return Box::new(std::iter::once(Ok(extent)));
    }
    let page = move |offset: u64| {
        let physical = image.address(extent.physical + offset).map_err(not_in_dump)?;
        Ok(Extent { address: extent.address + offset, physical, len: FRAME, page_size: FRAME, ..extent })
    };
    Box::new((0..extent.len / FRAME).map(move |index| page(index * FRAME)))
}

/// Consecutive virtual addresses that lead to consecutive physical ones.
#[derive(Clone, Copy)]
struct Extent {
    address: u64,
    physical: u64,
    len: u64,
    page_size: u64,
    writable: bool,
    user: bool,
    executable: bool,
}

impl From<VirtualExtent> for Extent {
    fn from(VirtualExtent { address, physical, len, page_size, rights, .. }: VirtualExtent) -> Extent {
        let (writable, user, executable) = (rights.writable, rights.user, rights.executable);
        Extent { address, physical, len, page_size, writable, user, executable }
    }
}

impl Extent {
    fn is_continued_by(&self, next: &Extent) -> bool {
        let rights = |extent: &Extent| (extent.page_size, extent.writable, extent.user, extent.executable);
        let end = |start: u64| start.wrapping_add(self.len);
        (end(self.address), end(self.physical)) == (next.address, next.physical) && rights(self) == rights(next)
    }
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    range: AddressRange,
    physical: u64,
    page_bytes: u64,
    writable: bool,
    executable: bool,
    /// Whether programs can access it.
    user: bool,
}

impl From<Extent> for Line {
    fn from(Extent { address, physical, len, page_size, writable, user, executable }: Extent) -> Line {
        // The last address of all can be in the range, so its end may not be one.
        let range = AddressRange { first: address, last: address + (len - 1), bytes: len };
        Line { range, physical, page_bytes: page_size, writable, executable, user }
    }
}

impl Line {
    fn print(&self, palette: &Palette, out: &mut impl Write) -> std::io::Result<()> {
        let Line { range: AddressRange { first, last, bytes }, physical, page_bytes, writable, executable, user } =
            *self;
        let style = palette.address;
        let right = |has: bool, letter: char| if has { letter } else { '-' };
        writeln!(
            out,
            "{style}{first:>#18x}  {last:>#18x}{style:#}  {:>10}  {physical:>#14x}  {:>8}  r{}{}{}",
            size(bytes),
            size(page_bytes),
            right(writable, 'w'),
            right(executable, 'x'),
            right(user, 'u')
        )
    }
}
