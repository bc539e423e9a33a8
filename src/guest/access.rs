//! Opening a guest, and accessing it by its guest-physical addresses.

use std::sync::Arc;

use super::Guest;
use super::p2m::P2m;
use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::handle::{ForeignMemory, check_frames};
use crate::mapping::{Access, ForeignMapping};
use crate::types::{Domid, FRAME_SIZE, Gfn, GuestKind, InvalidNumber, NumberRange, Pfn, Protection};

/// Frames mapped at a time to read or write a range.
pub(super) const WINDOW: u64 = 1024;

impl Guest {
    /// Opens the guest with this domain number, and asks Xen for its kind. The guest keeps a clone of the handle.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`]: with ESRCH if there is no such domain.
    pub fn open(memory: &ForeignMemory, domid: Domid) -> Result<Guest> {
        // Asked first, so that the kind comes from this interface if it is known.
        let is_interface_known = memory.domctl_version().is_some();
        let kind = memory.guest_kind(domid)?;
        let is_kind_certain = is_interface_known || kind != GuestKind::Hvm;
        Ok(Guest { is_kind_certain, ..Guest::with_kind(memory, domid, kind) })
    }

    /// Opens the guest with this domain number without asking Xen for its kind: for a
    /// [restricted](ForeignMemory::restrict) handle, which allows no such hypercall.
    ///
    /// The kind must be right: [interrupt lines](crate::device_model::Interrupts) of a PVH guest that is called an HVM
    /// guest may harm the host. So take it from the guest's configuration, or from [`Guest::open`] in a privileged
    /// process, and not from a [`DomainInfo`](crate::DomainInfo), which cannot always tell the two apart.
    ///
    /// The first access to a PV guest asks Xen where the guest's p2m is, which a restricted handle does not allow
    /// either. So for a PV guest, call [`open`](Guest::open), and look up some [`gfns`](Guest::gfns), before
    /// restricting the handle.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// memory.restrict(domain.domid())?;
    ///
    /// assert!(Guest::open(&memory, domain.domid()).is_err());
    /// let guest = Guest::with_kind(&memory, domain.domid(), GuestKind::Hvm);
    /// guest.write(0x1000, b"allowed")?;
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    #[must_use]
    pub fn with_kind(memory: &ForeignMemory, domid: Domid, kind: GuestKind) -> Guest {
        let p2m = (kind == GuestKind::Pv).then(Arc::default);
        Guest { memory: memory.clone(), domid, kind, is_kind_certain: true, p2m }
    }

    /// Returns the guest's domain number.
    #[must_use]
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// Returns the kind of guest: how its memory is managed.
    ///
    /// [`open`](Guest::open) reports a PVH guest as HVM if the toolstack's interface is unknown
    /// ([`ForeignMemory::domctl_version`]).
    #[must_use]
    pub fn kind(&self) -> GuestKind {
        self.kind
    }

    /// Returns whether the guest has this kind for sure: Xen or whoever opened the guest has said so.
    pub(crate) fn is_certainly(&self, kind: GuestKind) -> bool {
        self.is_kind_certain && self.kind == kind
    }

    /// Returns the handle that the guest was opened with.
    #[must_use]
    pub fn memory(&self) -> &ForeignMemory {
        &self.memory
    }

    /// Copies bytes out of the guest, starting at a guest-physical address.
    ///
    /// This maps the memory anew for each call. For many small reads, use a [`MapCache`](crate::MapCache).
    ///
    /// The guest may write at the same time: each byte is one that was there at some moment of the call. For an
    /// example, see [`Guest`].
    ///
    /// # Errors
    ///
    /// [`Error::GuestAddress`] with the first address that cannot be read; `to` may be partly filled then.
    /// [`Error::InvalidNumber`] if the range reaches past the last valid frame number. Otherwise those of
    /// [`Guest::map`].
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<()> {
        let mut rest = to;
        self.each_window(Protection::ReadOnly, address, rest.len(), |mapping, offset, len| {
            let (part, more) = std::mem::take(&mut rest).split_at_mut(len);
            rest = more;
            mapping.view().read_bytes(offset, part)
        })
    }

    /// Copies bytes into the guest, starting at a guest-physical address. Like [`read`](Guest::read), this maps the
    /// memory anew for each call.
    ///
    /// # Errors
    ///
    /// [`Error::GuestAddress`] with the first address that cannot be written; part of a range that spans more than
    /// 4 MiB may have been written then. Otherwise as for [`Guest::read`].
    pub fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        let mut rest = from;
        self.each_window(Protection::ReadWrite, address, rest.len(), |mapping, offset, len| {
            let (part, more) = rest.split_at(len);
            rest = more;
            mapping.view().write_bytes(offset, part)
        })
    }

    /// Maps consecutive frames of the guest: all of them or none.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, Guest, GuestKind, Pfn, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    ///
    /// let mapping = guest.map(Protection::ReadWrite, Pfn::containing(0x3000)?.range(2)?)?;
    /// mapping.view().write(0x1008, 7_u32)?; // at the guest's address 0x4008
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// Frame numbers have their own type, so an address cannot be passed by mistake:
    ///
    /// ```compile_fail
    /// # fn f(guest: &xenmap::Guest) -> xenmap::Result<xenmap::ForeignMapping> {
    /// guest.map(xenmap::Protection::ReadOnly, 0x1000..0x2000)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ForeignMemory::map_foreign_batch`] and of [`Guest::gfns`]. The index of a failed frame counts from
    /// the first pfn.
    pub fn map(&self, protection: Protection, pfns: NumberRange<Pfn>) -> Result<ForeignMapping> {
        self.memory.map_foreign_batch(self.domid, protection, &self.mappable(pfns)?)
    }

    /// Maps consecutive frames of the guest, and leaves a hole for each frame that cannot be mapped; see
    /// [`ForeignMemory::map_foreign_batch_partial`].
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, Guest, GuestKind, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// domain.balloon_out(Gfn::new(4)?);
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    ///
    /// let mapping = guest.map_partial(Protection::ReadOnly, (3..6).try_into()?)?;
    /// assert_eq!(mapping.failed().len(), 1);
    /// assert_eq!(mapping.failed()[0].index, 1);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ForeignMemory::map_foreign_batch_partial`] and of [`Guest::gfns`].
    pub fn map_partial(&self, protection: Protection, pfns: NumberRange<Pfn>) -> Result<ForeignMapping> {
        self.memory.map_foreign_batch_partial(self.domid, protection, &self.mappable(pfns)?)
    }

    /// Like [`map_partial`](Guest::map_partial), but does not wait for paged-out frames.
    pub(crate) fn map_at_once(&self, protection: Protection, pfns: NumberRange<Pfn>) -> Result<ForeignMapping> {
        self.memory.map_at_once(self.domid, protection, &self.mappable(pfns)?)
    }

    /// Returns the gfn to map for each pfn; `None` where a PV guest's p2m has no frame of the guest's own.
    ///
    /// Does not check that there is RAM: for any other kind of guest, each gfn is the pfn's number.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Pvh, 16);
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    /// assert_eq!(guest.gfns((3..5).try_into()?)?, [Some(Gfn::new(3)?), Some(Gfn::new(4)?)]);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::TooManyFrames`] if the range is longer than a mapping can be. For a PV guest also [`Error::P2m`] if its
    /// p2m cannot be used, and the errors of reading the p2m: [`Error::Hypercall`] and those of mapping.
    pub fn gfns(&self, pfns: NumberRange<Pfn>) -> Result<Vec<Option<Gfn>>> {
        if pfns.is_empty() {
            return Ok(Vec::new());
        }
        // Before the result is allocated.
        check_frames(pfns.len())?;
        if let Some(p2m) = self.p2m()? {
            return p2m.lookup(&self.memory, pfns);
        }
        let mut gfns = Vec::new();
        gfns.try_reserve_exact(pfns.len()).map_err(|_| Error::TooManyFrames { frames: pfns.len() })?;
        // Xen itself translates this guest's frame numbers.
        for pfn in pfns {
            gfns.push(Some(Gfn::new(pfn.get())?));
        }
        Ok(gfns)
    }

    /// Maps a range of bytes one window at a time, and passes each mapping to `f`, with the offset and length of the
    /// range's part in it.
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
            // At most the rest of `len`.
            let part = usize::try_from(stop - next).unwrap_or(len);
            f(&mapping, (next % FRAME) as usize, part)?;
            next = stop;
        }
        Ok(())
    }

    /// Returns a PV guest's p2m, which it finds first if necessary.
    pub(super) fn p2m(&self) -> Result<Option<&P2m>> {
        let Some(p2m) = &self.p2m else { return Ok(None) };
        if p2m.get().is_none() {
            // If another thread was faster, its p2m is as good as ours.
            let _ = p2m.set(P2m::find(&self.memory, self.domid)?);
        }
        Ok(p2m.get())
    }

    /// Returns the gfn to map for each pfn; `Gfn::MAX`, which fails to map, where there is none.
    fn mappable(&self, pfns: NumberRange<Pfn>) -> Result<Vec<Gfn>> {
        Ok(self.gfns(pfns)?.into_iter().map(|gfn| gfn.unwrap_or(Gfn::MAX)).collect())
    }

    /// Turns the error of mapping a window that begins at frame `first` into one about an address, `from` at least.
    fn at_address(&self, error: Error, first: u64, from: u64) -> Error {
        let Error::Frames(FrameErrors { failed, .. }) = &error else { return error };
        let Some(&FrameError { index, errno, .. }) = failed.first() else { return error };
        let address = from.max((first + index as u64) * FRAME_SIZE as u64);
        Error::GuestAddress { domid: self.domid, address, errno }
    }
}
