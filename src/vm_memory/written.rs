//! Which frames were written through slices of vm-memory.

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::written::Written;

/// Reports to the map cache which frames of a slice are written, while it
/// [records writes](crate::MapCache::record_writes).
///
/// The methods of a `VolatileSlice` do so on their own. Who writes through its pointer calls
/// [`mark_dirty`](Bitmap::mark_dirty) afterwards.
#[derive(Clone, Copy, Debug)]
pub struct WrittenPart<'a> {
    written: &'a Written,
    /// Where the slice begins in its bucket, in bytes.
    start: usize,
    len: usize,
}

impl<'a> WrittenPart<'a> {
    /// The `len` bytes from `start` on, which are inside the bucket.
    pub(super) fn new(written: &'a Written, start: usize, len: usize) -> WrittenPart<'a> {
        WrittenPart { written, start, len }
    }
}

impl Bitmap for WrittenPart<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        // What is not in the slice is not ours to tell.
        let len = len.min(self.len.saturating_sub(offset));
        if len != 0 {
            self.written.mark(self.start + offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        offset < self.len && self.written.is_marked(self.start + offset)
    }

    fn slice_at(&self, offset: usize) -> Self {
        let offset = offset.min(self.len);
        WrittenPart { start: self.start + offset, len: self.len - offset, ..*self }
    }
}

impl WithBitmapSlice<'_> for WrittenPart<'_> {
    type S = Self;
}

impl BitmapSlice for WrittenPart<'_> {}

/// Says that slices have a [`WrittenPart`]: a bitmap of all memory, which does not exist.
#[derive(Clone, Copy, Debug)]
pub enum WrittenFrames {}

impl<'a> WithBitmapSlice<'a> for WrittenFrames {
    type S = WrittenPart<'a>;
}

impl Bitmap for WrittenFrames {
    fn mark_dirty(&self, _offset: usize, _len: usize) {
        match *self {}
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        match *self {}
    }

    fn slice_at(&self, _offset: usize) -> WrittenPart<'_> {
        match *self {}
    }
}
