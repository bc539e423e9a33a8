//! A view of a mapping or a part of it, which checks every access.

#![expect(unsafe_code, reason = "vouches for what is mapped, after checking bounds, holes and protection")]
#![expect(clippy::inline_always, reason = "a guard of the map cache must not go through memory: see cache/parts.rs")]

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::error::{Error, FrameError, Result};
use crate::mapping::access::Access;
use crate::mapping::dirty::Dirty;
use crate::mapping::pieces::{Memory, Pieces};
use crate::mapping::region::Region;
use crate::types::{FRAME_SIZE, Protection};

/// A mapping or a part of one, borrowed for reading and writing by the methods of [`Access`].
///
/// Every access is checked: it must be inside the view, touch no frame that failed to map, and write only if the
/// mapping is writable. Offsets are in bytes from the start of the view.
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Access, GuestKind, Protection};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4);
/// let (memory, gfns) = (host.open()?, guest.frames());
/// let mapping = memory.map_foreign_batch(guest.domid(), Protection::ReadWrite, &gfns)?;
///
/// let page = mapping.view().slice(4096, 4096)?;
/// page.write_bytes(0, b"hello")?;
/// page.write(8, 7_u32)?;
///
/// let mut text = [0; 5];
/// page.read_bytes(0, &mut text)?;
/// assert_eq!(&text, b"hello");
/// assert_eq!(page.read::<u32>(8)?, 7);
/// assert!(page.read::<u32>(4093).is_err()); // one byte past the end
/// # Ok::<(), xenmap::Error>(())
/// ```
///
/// A view cannot outlive its mapping:
///
/// ```compile_fail
/// fn outlives(mapping: xenmap::ForeignMapping) -> xenmap::View<'static> {
///     mapping.view()
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    base: NonNull<u8>,
    /// Where the view starts in its mapping, in bytes.
    start: usize,
    len: usize,
    protection: Protection,
    /// In the order of their index, which counts from the start of the mapping.
    failed: &'a [FrameError],
    /// The dirty bits of the mapping, if it tracks writes.
    dirty: Option<&'a Dirty>,
    mapping: PhantomData<&'a Region>,
}

// SAFETY: a view is a shared borrow of a `Region`, of `FrameError`s and of a `Dirty`, all of which are Sync. It
// accesses the memory only by the functions of mapping/copy and by system calls, which any number of threads may use at
// once.
unsafe impl Send for View<'_> {}
// SAFETY: as above; no method changes the view itself.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// Makes a view of the first `len` bytes of a region, which has that many; `failed` are the frames in it that are
    /// not mapped.
    #[inline]
    pub(crate) fn new(region: &'a Region, len: usize, protection: Protection, failed: &'a [FrameError]) -> View<'a> {
        View { base: region.base(), start: 0, len, protection, failed, dirty: None, mapping: PhantomData }
    }

    /// Returns the same view, which sets the dirty bits of the frames that it writes.
    #[inline]
    pub(crate) fn tracked(self, dirty: &'a Dirty) -> View<'a> {
        View { dirty: Some(dirty), ..self }
    }

    /// Returns the same view, read-only.
    #[inline]
    pub(crate) fn read_only(self) -> View<'a> {
        View { protection: Protection::ReadOnly, ..self }
    }

    /// Returns a view of the `len` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] if they are not all inside. They may include failed frames, which each access checks for.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Result<View<'a>> {
        self.check_bounds(offset, len)?;
        // SAFETY: `check_bounds` found the bytes inside.
        Ok(unsafe { self.part(offset, len) })
    }

    /// Like [`slice`](View::slice), but unchecked.
    ///
    /// # Safety
    ///
    /// The bytes are all inside.
    #[inline]
    unsafe fn part(&self, offset: usize, len: usize) -> View<'a> {
        // SAFETY: by the caller's promise, `offset` is inside the mapping, or one past its end.
        let base = unsafe { self.base.add(offset) };
        View { base, start: self.start + offset, len, ..*self }
    }

    /// Returns the address of the first byte, for code that needs a pointer.
    ///
    /// Accesses through the pointer are not checked. Depending on the host, touching a failed frame kills the process
    /// or reads garbage. Plain accesses race with the guest. If the kernel's pages are larger than a frame, the memory
    /// after the last frame must not be touched. The pointer is valid as long as the mapping lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Returns the dirty bits, if writes are tracked, and the offset in them at which the view begins.
    #[inline]
    pub(crate) fn tracking(&self) -> Option<(&'a Dirty, usize)> {
        self.dirty.map(|dirty| (dirty, self.start))
    }

    /// Marks what has been written as dirty, if writes are tracked.
    #[inline]
    pub(crate) fn note(&self, offset: usize, len: usize) {
        if let Some(dirty) = self.dirty {
            dirty.mark(self.start + offset, len);
        }
    }

    /// Returns whether the `len` bytes at `offset` are all inside, and the mapping has no holes. Short copies take a
    /// fast path in this usual case. It only saves time: no test fails if this is always false.
    #[inline]
    fn is_whole(&self, offset: usize, len: usize) -> bool {
        self.failed.is_empty() && self.len.checked_sub(offset).is_some_and(|rest| len <= rest)
    }

    #[inline]
    fn check_bounds(&self, offset: usize, len: usize) -> Result<()> {
        match self.len.checked_sub(offset) {
            Some(rest) if len <= rest => Ok(()),
            _ => Err(Error::OutOfBounds { offset, len, size: self.len }),
        }
    }

    /// Returns the first failed frame among the `len` bytes at `offset`. Cold, so that mappings without holes do not
    /// pay for it.
    #[cold]
    fn first_hole(self, offset: usize, len: usize) -> Option<&'a FrameError> {
        let start = self.start + offset;
        let last = (start + len.checked_sub(1)?) / FRAME_SIZE;
        let next = self.failed.partition_point(|e| e.index < start / FRAME_SIZE);
        self.failed.get(next).filter(|e| e.index <= last)
    }

    /// See [`Memory::quick`].
    #[inline(always)]
    pub(crate) fn if_whole(self, protection: Protection, offset: usize, len: usize) -> Option<View<'a>> {
        if !self.is_for(protection) || !self.is_whole(offset, len) {
            return None;
        }
        // SAFETY: `is_whole` found the bytes inside.
        Some(unsafe { self.part(offset, len) })
    }

    #[inline]
    fn is_for(&self, protection: Protection) -> bool {
        protection == Protection::ReadOnly || self.protection == Protection::ReadWrite
    }
}

impl Access for View<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }
}

// SAFETY: `if_whole` returns bytes that are inside a mapping without holes, and writable if that is requested.
unsafe impl Memory for View<'_> {
    #[inline(always)]
    fn quick(&self, protection: Protection, offset: usize, len: usize) -> Option<View<'_>> {
        self.if_whole(protection, offset, len)
    }

    #[inline(always)]
    fn pieces(&self) -> impl Pieces<'_> {
        *self
    }
}

// SAFETY: `check` checks bounds, holes and protection. A view is a single piece of contiguous addresses, so `of`
// returns all bytes in their order, and an integer never spans two pieces.
unsafe impl<'a> Pieces<'a> for View<'a> {
    fn check(self, protection: Protection, offset: usize, len: usize) -> Result<()> {
        self.check_bounds(offset, len)?;
        if !self.failed.is_empty()
            && let Some(&frame) = self.first_hole(offset, len)
        {
            return Err(Error::Hole { offset, frame });
        }
        if self.is_for(protection) { Ok(()) } else { Err(Error::ReadOnly { offset }) }
    }

    fn of(self, offset: usize, len: usize) -> impl Iterator<Item = View<'a>> {
        self.slice(offset, len).into_iter()
    }
}
