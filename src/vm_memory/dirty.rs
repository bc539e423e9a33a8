//! Tracking of the frames that are written through vm-memory slices.

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::mapping::dirty::Dirty;

/// Marks the frames of a slice as dirty in the map cache, while the cache
/// [tracks dirty frames](crate::MapCache::track_dirty).
///
/// The methods of a `VolatileSlice` call [`mark_dirty`](Bitmap::mark_dirty) themselves. Call it after writing through
/// a pointer.
///
/// ```
/// use std::sync::Arc;
/// use vm_memory::bitmap::Bitmap;
/// use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory};
/// use xenmap::mock::MockHost;
/// use xenmap::vm_memory::CachedMemory;
/// use xenmap::{Guest, GuestKind, MapCache};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// let memory = host.open()?;
/// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
/// cache.track_dirty(true);
/// let space = CachedMemory::new(Arc::clone(&cache), &[(0..16).try_into()?]);
///
/// let request = space.memory();
/// for slice in request.get_slices(GuestAddress(0x3000), 8, vm_memory::Permissions::Write)? {
///     slice?.bitmap().mark_dirty(0, 8); // written through `ptr_guard_mut`, such as by a device's DMA
/// }
/// assert_eq!(cache.take_dirty(), [3..4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct DirtySlice<'a> {
    dirty: &'a Dirty,
    /// The offset of the slice in its bucket, in bytes.
    start: usize,
    len: usize,
}

impl<'a> DirtySlice<'a> {
    /// Tracks the `len` bytes of the bucket from `start` on, which must be inside the bucket.
    pub(super) fn new(dirty: &'a Dirty, start: usize, len: usize) -> DirtySlice<'a> {
        DirtySlice { dirty, start, len }
    }
}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        // Bytes past the end of the slice are not marked.
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

/// Names [`DirtySlice`] as the bitmap of slices. There is no bitmap of the whole memory, so this has no values.
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
