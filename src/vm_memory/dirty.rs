//! Which frames were written through slices of vm-memory.

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::mapping::dirty::Dirty;

/// Reports to the map cache which frames of a slice are written, while it
/// [tracks dirty frames](crate::MapCache::track_dirty).
///
/// The methods of a `VolatileSlice` do so on their own. Whoever writes through its pointer calls
/// [`mark_dirty`](Bitmap::mark_dirty) afterwards.
#[derive(Clone, Copy, Debug)]
pub struct DirtySlice<'a> {
    dirty: &'a Dirty,
    /// Where the slice begins in its bucket, in bytes.
    start: usize,
    len: usize,
}

impl<'a> DirtySlice<'a> {
    /// The `len` bytes from `start` on, which are inside the bucket.
    pub(super) fn new(dirty: &'a Dirty, start: usize, len: usize) -> DirtySlice<'a> {
        DirtySlice { dirty, start, len }
    }
}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        // What is not in the slice is not ours to tell.
        let len = len.min(self.len.saturating_sub(offset));
        if len != 0 {
            self.dirty.mark(self.start + offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        offset < self.len && self.dirty.is_marked(self.start + offset)
    }

    fn slice_at(&self, offset: usize) -> Self {
        let offset = offset.min(self.len);
        DirtySlice { start: self.start + offset, len: self.len - offset, ..*self }
    }
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

/// Says that slices have a [`DirtySlice`]: a bitmap of all memory, which does not exist.
#[derive(Clone, Copy, Debug)]
pub enum DirtyBitmap {}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = DirtySlice<'a>;
}

impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, _offset: usize, _len: usize) {
        match *self {}
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        match *self {}
    }

    fn slice_at(&self, _offset: usize) -> DirtySlice<'_> {
        match *self {}
    }
}
