//! A guest as a whole: what is known of it, where its RAM is, and access by its own addresses.

mod arm_layout;
mod m2p;
mod p2m;
mod page_tables;
mod pause;
mod populate;
mod ram_map;
mod route;
mod scan;
mod vcpu;

use std::sync::{Arc, OnceLock};

pub use page_tables::{PageTables, PagingMode};
pub use pause::Paused;
pub use ram_map::{Extent, FrameKind, RamMap, Search};
pub use scan::RamScan;

use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::handle::{ForeignMemory, check_frames};
use crate::mapping::{Access, ForeignMapping};
use crate::types::{Domid, FRAME_SIZE, Gfn, GuestKind, InvalidNumber, NumberRange, Pfn, Protection};
use p2m::P2m;

/// Frames that are mapped at a time to read or write a range of a guest.
const WINDOW: u64 = 1024;

/// A guest, by its own physical addresses.
///
/// Those of a PV guest are pseudo-physical; which machine frame is behind each is looked up in the guest's own table
/// (its p2m). So the same addresses lead to the same bytes that the guest's kernel sees there, whatever kind it is. A
/// pfn here is such an address divided by [`FRAME_SIZE`].
///
/// A guest whose `maxmem` is larger than its `memory` is [populated on demand](crate::PopulateOnDemand). Mapping,
/// reading or writing a frame that it has not used yet gives memory to that frame, and Xen crashes the guest when it
/// has none left. Looking for its RAM is refused for that reason; for all else there is
/// [`check_populated`](Guest::check_populated).
///
/// A PV guest can name in its table whatever Xen maps for it. That is not its own memory only: a stub domain can show
/// that of the guest that it serves, and a guest with a device of its own the device's registers, which may act when
/// they are read.
///
/// A clone is the same guest, and shares what was learned of it.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// let memory = host.open()?;
/// let guest = Guest::open(&memory, domain.domid())?;
///
/// guest.write(0x1FFE, b"across a border")?;
/// let mut text = [0; 15];
/// guest.read(0x1FFE, &mut text)?;
/// assert_eq!(&text, b"across a border");
/// assert!(guest.read(0x10000, &mut text).is_err()); // past its RAM
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Guest {
    memory: ForeignMemory,
    domid: Domid,
    kind: GuestKind,
    /// Of a PV guest, its table, found when it is first needed.
    p2m: Option<Arc<OnceLock<P2m>>>,
}

impl Guest {
    /// The guest with this number. It keeps a clone of the handle.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], with ESRCH if there is no such domain.
    pub fn open(memory: &ForeignMemory, domid: Domid) -> Result<Guest> {
        Ok(Guest::with_kind(memory, domid, memory.guest_kind(domid)?))
    }

    /// The guest with this number, which is of a kind that the caller knows: for a
    /// [restricted](ForeignMemory::restrict) handle, through which Xen cannot be asked.
    ///
    /// A PV guest's table is found by asking Xen, when it is first needed; so that cannot be through a restricted
    /// handle. [`open`](Guest::open) such a guest, and ask for some [`gfns`](Guest::gfns), before the handle is
    /// restricted.
    #[must_use]
    pub fn with_kind(memory: &ForeignMemory, domid: Domid, kind: GuestKind) -> Guest {
        Guest { memory: memory.clone(), domid, kind, p2m: (kind == GuestKind::Pv).then(Arc::default) }
    }

    /// Its number.
    #[must_use]
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// How its memory is managed.
    #[must_use]
    pub fn kind(&self) -> GuestKind {
        self.kind
    }

    /// The handle that it is looked at through.
    #[must_use]
    pub fn memory(&self) -> &ForeignMemory {
        &self.memory
    }

    /// The gfns to map for some pfns; `None` where a PV guest's table says that there is no RAM of its own.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyFrames`]; for a PV guest [`Error::P2m`] if its table cannot be used, and those of reading it.
    pub fn gfns(&self, pfns: NumberRange<Pfn>) -> Result<Vec<Option<Gfn>>> {
        if pfns.is_empty() {
            return Ok(Vec::new());
        }
        // Before there are very many to make.
        check_frames(pfns.len())?;
        if let Some(p2m) = self.p2m()? {
            return p2m.lookup(&self.memory, pfns);
        }
        let mut gfns = Vec::new();
        gfns.try_reserve_exact(pfns.len()).map_err(|_| Error::TooManyFrames { frames: pfns.len() })?;
        // Xen translates the guest's own numbers.
        for pfn in pfns {
            gfns.push(Some(Gfn::new(pfn.get())?));
        }
        Ok(gfns)
    }

    /// Maps consecutive frames of the guest: all of them or none.
    ///
    /// Frames have numbers of their own type, so an address cannot be taken for one:
    ///
    /// ```compile_fail
    /// # fn f(guest: &xenmap::Guest) -> xenmap::Result<xenmap::ForeignMapping> {
    /// guest.map(xenmap::Protection::ReadOnly, 0x1000..0x2000)
    /// # }
    /// ```
    ///
    /// ```
    /// # fn f(guest: &xenmap::Guest) -> xenmap::Result<xenmap::ForeignMapping> {
    /// guest.map(xenmap::Protection::ReadOnly, xenmap::Pfn::containing(0x1000)?.range(1)?)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ForeignMemory::map_foreign_batch`] and of [`Guest::gfns`]. The index of a frame that failed counts
    /// from the first pfn.
    pub fn map(&self, protection: Protection, pfns: NumberRange<Pfn>) -> Result<ForeignMapping> {
        self.memory.map_foreign_batch(self.domid, protection, &self.mappable(pfns)?)
    }

    /// Maps those of consecutive frames that can be mapped; see [`ForeignMemory::map_foreign_batch_partial`].
    ///
    /// # Errors
    ///
    /// Those of [`ForeignMemory::map_foreign_batch_partial`] and of [`Guest::gfns`].
    pub fn map_partial(&self, protection: Protection, pfns: NumberRange<Pfn>) -> Result<ForeignMapping> {
        self.memory.map_foreign_batch_partial(self.domid, protection, &self.mappable(pfns)?)
    }

    /// The same, without waiting for frames that are paged out.
    pub(crate) fn map_at_once(&self, protection: Protection, pfns: NumberRange<Pfn>) -> Result<ForeignMapping> {
        self.memory.map_at_once(self.domid, protection, &self.mappable(pfns)?)
    }

    /// Copies bytes from an address of the guest on.
    ///
    /// The guest may write meanwhile: what is read is what was there at some moment, byte by byte.
    ///
    /// # Errors
    ///
    /// [`Error::GuestAddress`] names the first address that is no RAM; nothing is said of what was copied before.
    /// [`Error::InvalidNumber`] if the range reaches past the last frame that has a number. Else those of
    /// [`Guest::map`].
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<()> {
        let mut rest = to;
        self.each_window(Protection::ReadOnly, address, rest.len(), |mapping, offset, len| {
            let (part, more) = std::mem::take(&mut rest).split_at_mut(len);
            rest = more;
            mapping.view().read_bytes(offset, part)
        })
    }

    /// Copies bytes into the guest, from an address on.
    ///
    /// # Errors
    ///
    /// [`Error::GuestAddress`] names the first address that cannot be written; more than 4 MiB may have been written in
    /// part then. Else as for [`Guest::read`].
    pub fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        let mut rest = from;
        self.each_window(Protection::ReadWrite, address, rest.len(), |mapping, offset, len| {
            let (part, more) = rest.split_at(len);
            rest = more;
            mapping.view().write_bytes(offset, part)
        })
    }

    /// Maps the frames of a range of bytes, a window at a time, and calls back with each: where in it the range's next
    /// part is.
    fn each_window(
        &self,
        protection: Protection,
        address: u64,
        len: usize,
        mut f: impl FnMut(&ForeignMapping, usize, usize) -> Result<()>,
    ) -> Result<()> {
        const FRAME: u64 = FRAME_SIZE as u64;
        let past_the_end = InvalidNumber::Frame { number: address.saturating_add(len as u64) / FRAME };
        let end = address.checked_add(len as u64).ok_or(past_the_end)?;
        let mut next = address;
        while next < end {
            let first = next / FRAME;
            let last = (end.div_ceil(FRAME)).min(first + WINDOW);
            let pfns = NumberRange::try_from(first..last)?;
            let mapping = self.map(protection, pfns).map_err(|e| self.at_address(e, first, next))?;
            let stop = end.min(last * FRAME);
            // No more than what is left of `len`.
            let part = usize::try_from(stop - next).unwrap_or(len);
            f(&mapping, (next % FRAME) as usize, part)?;
            next = stop;
        }
        Ok(())
    }

    /// The table of a PV guest.
    fn p2m(&self) -> Result<Option<&P2m>> {
        let Some(p2m) = &self.p2m else { return Ok(None) };
        if p2m.get().is_none() {
            // If another thread has found it meanwhile, either will do.
            let _ = p2m.set(P2m::find(&self.memory, self.domid)?);
        }
        Ok(p2m.get())
    }

    /// The frames of some pfns, as a batch has them: where there is none, the number that no frame has.
    fn mappable(&self, pfns: NumberRange<Pfn>) -> Result<Vec<Gfn>> {
        Ok(self.gfns(pfns)?.into_iter().map(|gfn| gfn.unwrap_or(Gfn::MAX)).collect())
    }

    /// The error of mapping a window that begins at `first`, as one of the address that was asked for.
    fn at_address(&self, error: Error, first: u64, from: u64) -> Error {
        let Error::Frames(FrameErrors { failed, .. }) = &error else { return error };
        let Some(&FrameError { index, errno, .. }) = failed.first() else { return error };
        let address = from.max((first + index as u64) * FRAME_SIZE as u64);
        Error::GuestAddress { domid: self.domid, address, errno }
    }
}
