//! Translating, reading and writing a guest's virtual addresses, by calls that keep nothing mapped.

use super::{PageTables, Translation};
use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::guest::Guest;
use crate::guest::access::WINDOW;
use crate::guest::m2p::MachineFrames;
use crate::mapping::{Access, ForeignMapping};
use crate::types::{FRAME_SIZE, Gfn, GuestKind, Pfn, Protection};

const FRAME: u64 = FRAME_SIZE as u64;

/// How many frames of page tables stay mapped during a call: one for each level and as many more.
const MAX_TABLES: usize = 10;

impl Guest {
    /// Translates a virtual address to a guest-physical address.
    ///
    /// This maps one frame per level of the tables, one after another. To translate many addresses, use an
    /// [`AddressSpace`](crate::AddressSpace), which keeps the tables mapped and remembers translations. A PV guest's
    /// tables hold machine frames: for such a guest, this also looks up the frame's [pfn](Guest::pfn_of).
    ///
    /// Access permissions are ignored. The guest may change its tables meanwhile.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, Guest, GuestKind, PageTables, PagingMode};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// // In the top table (frame 4), entry 1 refers to a table (frame 5), whose entry 0 maps 1 GiB at address 0.
    /// domain.write(Gfn::new(4)?, 8, &0x5001_u64.to_ne_bytes());
    /// domain.write(Gfn::new(5)?, 0, &0x0081_u64.to_ne_bytes());
    ///
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    /// let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
    /// assert_eq!(guest.translate(&tables, 0x80_0000_1234)?, 0x1234);
    /// let error = guest.translate(&tables, 0).unwrap_err();
    /// assert_eq!(error.to_string(), "virtual address 0x0: its entry in the PML4 (level 4) is not present");
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Translation`] if the address is not mapped or, in a PV guest, leads to a frame that is not the guest's
    /// own. [`Error::GuestAddress`] if a table is not in the guest's RAM, with the address of the table's entry (for a
    /// PV guest, a machine address). Those of mapping, and [`Error::Hypercall`].
    pub fn translate(&self, tables: &PageTables, address: u64) -> Result<u64> {
        Ok(Walker::new(self).translate(tables, address)?.physical)
    }

    /// Copies bytes out of the guest, starting at a virtual address; see [`Guest::read`]. The whole range is translated
    /// before any of it is read.
    ///
    /// This maps the page tables and the memory anew for each call. For many small reads, use an
    /// [`AddressSpace`](crate::AddressSpace).
    ///
    /// Access permissions are ignored. For an example, see [`PageTables`].
    ///
    /// # Errors
    ///
    /// Those of [`Guest::translate`], for the first address that fails, and of [`Guest::read`].
    pub fn read_virtual(&self, tables: &PageTables, address: u64, to: &mut [u8]) -> Result<()> {
        let mut rest = to;
        self.each_virtual_window(tables, Protection::ReadOnly, address, rest.len(), |mapping, offset, len| {
            let (bytes, more) = std::mem::take(&mut rest).split_at_mut(len);
            rest = more;
            mapping.view().read_bytes(offset, bytes)
        })
    }

    /// Copies bytes into the guest, starting at a virtual address; see [`Guest::write`]. The whole range is translated
    /// before any of it is written.
    ///
    /// Like [`read_virtual`](Guest::read_virtual), this maps everything anew for each call.
    ///
    /// Access permissions are ignored: this also writes where the guest itself could not. For an example, see
    /// [`PageTables`].
    ///
    /// # Errors
    ///
    /// Those of [`Guest::translate`], for the first address that fails, and of [`Guest::write`].
    pub fn write_virtual(&self, tables: &PageTables, address: u64, from: &[u8]) -> Result<()> {
        let mut rest = from;
        self.each_virtual_window(tables, Protection::ReadWrite, address, rest.len(), |mapping, offset, len| {
            let (bytes, more) = rest.split_at(len);
            rest = more;
            mapping.view().write_bytes(offset, bytes)
        })
    }

    /// Maps the frames of a virtual range one window at a time, and passes each mapping to `f`, with the offset and
    /// length of the range's part in it.
    fn each_virtual_window(
        &self,
        tables: &PageTables,
        protection: Protection,
        address: u64,
        len: usize,
        mut f: impl FnMut(&ForeignMapping, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let pages = Walker::new(self).pages(tables, address, len)?;
        let mut offset = (address % FRAME) as usize;
        let mut rest = len;
        for window in pages.chunks(usize::try_from(WINDOW).unwrap_or(1)) {
            let gfns: Vec<Gfn> = window.iter().map(|page| page.gfn).collect();
            let mapping = self.memory.map_foreign_batch(self.domid, protection, &gfns);
            let mapping = mapping.map_err(|e| {
                let Error::Frames(FrameErrors { failed, .. }) = &e else { return e };
                let Some(&FrameError { index, errno, .. }) = failed.first() else { return e };
                let start = if index == 0 { offset as u64 } else { 0 };
                Error::GuestAddress { domid: self.domid, address: window[index].physical + start, errno }
            })?;
            let part = rest.min(window.len() * FRAME_SIZE - offset);
            f(&mapping, offset, part)?;
            rest -= part;
            offset = 0;
        }
        Ok(())
    }
}

/// A page of a virtual range.
struct Page {
    /// Its guest-physical address.
    physical: u64,
    /// The frame to map.
    gfn: Gfn,
}

/// Walks page tables, and keeps what it has mapped until it is dropped.
struct Walker<'g> {
    guest: &'g Guest,
    /// The frames used last, the latest at the end.
    tables: Vec<(Gfn, ForeignMapping)>,
    machine: MachineFrames,
}

impl<'g> Walker<'g> {
    fn new(guest: &'g Guest) -> Walker<'g> {
        Walker { guest, tables: Vec::new(), machine: MachineFrames::default() }
    }

    /// Returns where an address leads in guest-physical memory.
    fn translate(&mut self, tables: &PageTables, address: u64) -> Result<Translation> {
        let found = tables.translate_with(address, |at| self.read_entry(at))?;
        if self.guest.kind != GuestKind::Pv {
            return Ok(found);
        }
        self.machine.physical_of(self.guest, address, found)
    }

    /// Returns the pages of a range, each of the size of a frame.
    fn pages(&mut self, tables: &PageTables, address: u64, len: usize) -> Result<Vec<Page>> {
        let past_the_end =
            Error::Translation { address, last: address, reason: "the range reaches past the last address" };
        let Some(more) = (len as u64).checked_sub(1) else { return Ok(Vec::new()) };
        let last = address.checked_add(more).ok_or(past_the_end)?;
        let mut pages = Vec::new();
        // The rest of the page that was found last, except for a PV guest's: there, the next frame's pfn may be any.
        let mut known: Option<Translation> = None;
        for frame in address / FRAME..=last / FRAME {
            let start = address.max(frame * FRAME);
            let found = match known {
                Some(before) if !start.is_multiple_of(before.page_size) => {
                    Translation { physical: before.physical - before.physical % FRAME + FRAME, ..before }
                }
                _ => self.translate(tables, start)?,
            };
            known = Some(found);
            let physical = found.physical - found.physical % FRAME;
            let gfn = match self.guest.kind {
                GuestKind::Pv => {
                    let gfn = self.machine.gfn_of(self.guest, Pfn::containing(physical)?)?;
                    gfn.unwrap_or(Gfn::MAX) // which fails to map
                }
                _ => Gfn::containing(physical)?,
            };
            pages.push(Page { physical, gfn });
        }
        Ok(pages)
    }

    fn read_entry(&mut self, address: u64) -> Result<u64> {
        let frame = Gfn::containing(address)?;
        if let Some(at) = self.tables.iter().position(|(mapped, _)| *mapped == frame) {
            self.tables[at..].rotate_left(1);
        } else {
            let domid = self.guest.domid;
            // A PV guest's tables cannot be mapped writable.
            let mapping = self.guest.memory.map_foreign_batch(domid, Protection::ReadOnly, &[frame]);
            let outside = |e| match e {
                Error::Frames(errors) => Error::GuestAddress { domid, address, errno: Error::Frames(errors).errno() },
                e => e,
            };
            if self.tables.len() == MAX_TABLES {
                self.tables.remove(0);
            }
            self.tables.push((frame, mapping.map_err(outside)?));
        }
        let (_, mapping) = &self.tables[self.tables.len() - 1];
        // An entry is aligned to its size, so this is a single access, like the processor's.
        mapping.view().read((address % FRAME) as usize)
    }
}
