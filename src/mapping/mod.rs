//! A mapping of foreign frames, which owns the references to them.

use std::ops::Range;
use std::ptr::NonNull;

mod access;
pub(crate) mod copy;
pub(crate) mod dirty;
pub(crate) mod pieces;
pub(crate) mod region;
pub(crate) mod transfer;
mod view;

pub use access::Access;
pub use copy::Word;
pub use region::leaked_mappings;
pub use view::View;

use crate::error::FrameError;
use crate::types::{Domid, FRAME_SIZE, Protection};
use region::Region;

/// Frames of another domain, mapped one after the other; dropping it unmaps them.
///
/// Made by [`ForeignMemory::map_foreign_batch`](crate::ForeignMemory::map_foreign_batch), its variants and
/// [`Guest::map`](crate::Guest::map). It is independent of the handle it was made with, and can be used and dropped on
/// any thread.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, Gfn, GuestKind, Protection};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4); // frames 0 to 3
/// let (memory, domid) = (host.open()?, guest.domid());
///
/// let gfns = [Gfn::new(2)?, Gfn::new(9)?, Gfn::new(3)?];
/// let mapping = memory.map_foreign_batch_partial(domid, Protection::ReadOnly, &gfns)?;
/// assert_eq!((mapping.frames(), mapping.failed()[0].gfn), (3, gfns[1]));
/// assert_eq!(mapping.mapped_ranges().collect::<Vec<_>>(), [0..4096, 8192..12288]);
/// assert!(mapping.view().is_zero(8192, 4096)?);
/// # Ok::<(), xenmap::Error>(())
/// ```
///
/// # References
///
/// While a frame is mapped, Xen holds a reference to it: the machine page stays the same even if the guest balloons it
/// out or dies (the domain then lingers as a zombie). `Drop` calls munmap(2) for exactly what was mapped, and the
/// kernel does the rest. In a PV domain, each page-table entry that it clears traps into Xen, which drops the entry's
/// reference; in an auto-translated one, the close hook of the privcmd mapping removes each frame from the domain's
/// physmap. When `drop` returns, the references are gone. If the process dies, they are dropped in the same way.
///
/// A forked child does not have the mapping: `Drop` does nothing there. The child must not access it, because its
/// addresses may hold something else; whoever forks the process must see to that.
///
/// # Why there is no `as_slice`
///
/// The guest may write this memory at any time. A `&[u8]` promises the compiler that nobody does, so merely having one
/// is undefined behaviour; so is having an `&AtomicU8` if another access has another size. Therefore data is copied in
/// and out through a [`View`], by accesses that amount to relaxed atomic ones, byte by byte. Two reads of the same
/// bytes may differ, so check the copy that you use.
///
/// ```compile_fail
/// fn cannot_be_duplicated(mapping: xenmap::ForeignMapping) -> xenmap::ForeignMapping {
///     mapping.clone()
/// }
/// ```
#[derive(Debug)]
pub struct ForeignMapping {
    region: Region,
    frames: usize,
    domid: Domid,
    protection: Protection,
    failed: Vec<FrameError>,
}

impl ForeignMapping {
    /// Makes a mapping of the first `frames` frames of a region. `failed` is in the order of the batch.
    pub(crate) fn new(
        region: Region,
        frames: usize,
        domid: Domid,
        protection: Protection,
        failed: Vec<FrameError>,
    ) -> ForeignMapping {
        ForeignMapping { region, frames, domid, protection, failed }
    }

    /// Returns the address and the frames that failed, and unmaps nothing: the caller does.
    pub(crate) fn release(self) -> (NonNull<u8>, Vec<FrameError>) {
        (self.region.release(), self.failed)
    }

    /// Returns the domain whose frames these are.
    #[must_use]
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// Returns the number of frames, including those that failed.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Returns whether the mapping is read-only or writable.
    #[must_use]
    #[inline]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// Returns the frames that could not be mapped, in the order of the batch. Empty unless this is a
    /// [partial](crate::ForeignMemory::map_foreign_batch_partial) mapping.
    #[must_use]
    #[inline]
    pub fn failed(&self) -> &[FrameError] {
        &self.failed
    }

    /// Returns the ranges that can be accessed, in bytes from the start: everything except the failed frames.
    pub fn mapped_ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = std::iter::once(0).chain(self.failed.iter().map(|e| (e.index + 1) * FRAME_SIZE));
        let ends = self.failed.iter().map(|e| e.index * FRAME_SIZE).chain([self.frames * FRAME_SIZE]);
        starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty())
    }

    /// Returns a view of the whole mapping.
    #[must_use]
    #[inline]
    pub fn view(&self) -> View<'_> {
        View::new(&self.region, self.frames * FRAME_SIZE, self.protection, &self.failed)
    }
}
