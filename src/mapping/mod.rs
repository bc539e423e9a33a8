//! A mapping of foreign frames, which owns them and gives them back.

use std::ops::Range;
use std::ptr::NonNull;

mod access;
pub(crate) mod copy;
pub(crate) mod dirty;
pub(crate) mod pieces;
pub(crate) mod region;
mod transfer;
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
/// Made by [`ForeignMemory::map_foreign_batch`](crate::ForeignMemory::map_foreign_batch) and its sisters, and
/// independent of the handle it was made with. It may be used from and dropped on any thread.
///
/// # Giving the references back
///
/// While a frame is mapped, Xen holds a reference to it: the machine page stays what it is even if the guest balloons
/// it out or dies (the domain then lingers as a zombie). `Drop` runs munmap(2) on exactly what was mapped, and the
/// kernel does the rest: in a PV domain each page-table entry that it clears traps into Xen, which drops the entry's
/// reference; in an auto-translated one the close hook of the privcmd mapping removes each frame from our physmap.
/// When `drop` returns, the references are gone. A process that dies gives them back in the same way.
///
/// In a forked child the mapping does not exist: `Drop` does nothing there, and it must not be accessed (whoever forks
/// a process answers for what the child does with it: something else may be at these addresses).
///
/// # Why there is no `as_slice`
///
/// The guest writes this memory whenever it likes. A `&[u8]` promises the compiler that nobody does, so merely having
/// one is undefined behaviour; that holds for `&AtomicU8` too as soon as another access has another size. Data is
/// copied in and out through a [`View`], by accesses that stand for relaxed atomic ones, byte by byte. What was
/// copied can be examined at leisure; what is read twice may differ, and a check must be made on the copy that is
/// used.
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
    /// `failed` is in the order of the batch.
    pub(crate) fn new(
        region: Region,
        frames: usize,
        domid: Domid,
        protection: Protection,
        failed: Vec<FrameError>,
    ) -> ForeignMapping {
        ForeignMapping { region, frames, domid, protection, failed }
    }

    /// Gives the mapping up without unmapping it: its address, and the frames that failed. The caller unmaps it.
    pub(crate) fn release(self) -> (NonNull<u8>, Vec<FrameError>) {
        (self.region.release(), self.failed)
    }

    /// The domain whose frames these are.
    #[must_use]
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// How many frames there are, failed ones included.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// What it is mapped for.
    #[must_use]
    #[inline]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The frames that could not be mapped, in the order of the batch; empty unless the mapping is a
    /// [partial](crate::ForeignMemory::map_foreign_batch_partial) one.
    #[must_use]
    #[inline]
    pub fn failed(&self) -> &[FrameError] {
        &self.failed
    }

    /// The parts of the mapping, in bytes from its start, that are mapped: all of it, or what is between failed frames.
    pub fn mapped_ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = std::iter::once(0).chain(self.failed.iter().map(|e| (e.index + 1) * FRAME_SIZE));
        let ends = self.failed.iter().map(|e| e.index * FRAME_SIZE).chain([self.frames * FRAME_SIZE]);
        starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty())
    }

    /// All of it, for reading and, if it is mapped so, writing.
    #[must_use]
    #[inline]
    pub fn view(&self) -> View<'_> {
        View::new(&self.region, self.frames * FRAME_SIZE, self.protection, &self.failed)
    }
}
