//! Buckets of a guest's memory, and how they are mapped.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Piece;
use super::buckets::{CannotMap, Source};
use crate::error::{Error, FrameError, FrameErrors, Result};
use crate::guest::Guest;
use crate::mapping::dirty::Dirty;
use crate::mapping::{ForeignMapping, View};
use crate::types::{FRAME_SIZE, NumberRange, Pfn, Protection};

/// A mapped bucket of a guest's memory.
#[derive(Debug)]
pub(crate) struct Bucket {
    number: u64,
    mapping: ForeignMapping,
    dirty: Dirty,
}

/// What a caller needs from a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    protection: Protection,
    /// The first and the last frame, counted from the start of the bucket.
    first: usize,
    last: usize,
}

impl Request {
    /// Requests the frames of a piece, which must not be empty.
    #[inline]
    pub(super) fn new(protection: Protection, piece: &Piece) -> Request {
        let (first, last) = (piece.offset / FRAME_SIZE, (piece.offset + piece.len - 1) / FRAME_SIZE);
        Request { protection, first, last }
    }

    /// Requests no frame in particular.
    pub(super) fn no_frames(protection: Protection) -> Request {
        Request { protection, first: 1, last: 0 }
    }
}

impl Bucket {
    /// Returns whether this is the bucket with this number, mapped as requested and without a hole among those frames.
    #[inline]
    pub(super) fn has(&self, number: u64, request: Request) -> bool {
        let is_whole = self.mapping.failed().is_empty() || self.has_no_hole(request);
        self.number == number && self.is_for(request.protection) && is_whole
    }

    #[cold]
    fn has_no_hole(&self, request: Request) -> bool {
        self.failed(request).is_empty()
    }

    #[inline]
    fn is_for(&self, protection: Protection) -> bool {
        protection == Protection::ReadOnly || self.mapping.protection() == Protection::ReadWrite
    }

    /// Returns `len` bytes at an offset, read-only if the caller may only read.
    #[inline]
    pub(super) fn view(&self, protection: Protection, offset: usize, len: usize) -> Result<View<'_>> {
        let view = self.mapping.view().slice(offset, len)?;
        Ok(match protection {
            Protection::ReadOnly => view.read_only(),
            Protection::ReadWrite => view.tracked(&self.dirty),
        })
    }

    /// Returns `len` bytes at an offset as [`view`](Bucket::view) does, if they are inside and the bucket has no hole.
    #[inline]
    pub(super) fn view_if_whole(&self, protection: Protection, offset: usize, len: usize) -> Option<View<'_>> {
        let view = self.mapping.view().if_whole(protection, offset, len)?;
        Some(match protection {
            Protection::ReadOnly => view.read_only(),
            Protection::ReadWrite => view.tracked(&self.dirty),
        })
    }

    #[cfg(feature = "vm-memory")]
    pub(crate) fn mapping(&self) -> &ForeignMapping {
        &self.mapping
    }

    #[cfg(feature = "vm-memory")]
    pub(crate) fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    /// Returns the requested frames that failed to map.
    #[inline]
    pub(super) fn failed(&self, request: Request) -> &[FrameError] {
        failed(&self.mapping, request)
    }

    /// Returns the guest's address of a byte; `None` in a hole.
    pub(super) fn address_at(&self, offset: usize) -> Option<u64> {
        let frame = offset / FRAME_SIZE;
        let is_hole = self.mapping.failed().binary_search_by_key(&frame, |e| e.index).is_ok();
        let start = self.number * (self.mapping.frames() * FRAME_SIZE) as u64;
        (!is_hole).then(|| start + offset as u64)
    }
}

#[inline]
fn failed(mapping: &ForeignMapping, request: Request) -> &[FrameError] {
    let failed = mapping.failed();
    if failed.is_empty() {
        return failed;
    }
    let start = failed.partition_point(|e| e.index < request.first);
    let end = failed.partition_point(|e| e.index <= request.last);
    &failed[start..end]
}

/// Maps buckets of a guest.
#[derive(Debug)]
pub(crate) struct GuestSource {
    guest: Guest,
    frames: usize,
    track_dirty: Arc<AtomicBool>,
    /// The pfns of dirty frames that were gathered from buckets.
    dirty: Mutex<BTreeSet<u64>>,
}

impl GuestSource {
    pub(super) fn new(guest: Guest, bucket_size: usize) -> GuestSource {
        GuestSource { guest, frames: bucket_size / FRAME_SIZE, track_dirty: Arc::default(), dirty: Mutex::default() }
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(super) fn track_dirty(&self) -> &AtomicBool {
        &self.track_dirty
    }

    /// Gathers the dirty frames of a bucket.
    pub(super) fn gather_dirty(&self, bucket: &Bucket) {
        let first = bucket.number * self.frames as u64;
        let frames = bucket.dirty.take();
        if !frames.is_empty() {
            self.dirty().extend(frames.into_iter().map(|frame| first + frame as u64));
        }
    }

    /// Takes the dirty frames gathered so far, as ranges of pfns.
    pub(super) fn take_dirty(&self) -> Vec<NumberRange<Pfn>> {
        let mut ranges: Vec<NumberRange<Pfn>> = Vec::new();
        for pfn in std::mem::take(&mut *self.dirty()) {
            match ranges.last_mut() {
                Some(range) if range.end() == pfn => *range = NumberRange::checked(range.start(), pfn + 1),
                _ => ranges.push(NumberRange::checked(pfn, pfn + 1)),
            }
        }
        ranges
    }

    /// Makes frames that were taken dirty again.
    pub(super) fn put_back_dirty(&self, ranges: &[NumberRange<Pfn>]) {
        self.dirty().extend(ranges.iter().flat_map(NumberRange::numbers));
    }

    fn dirty(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for GuestSource {
    type Bucket = Bucket;
    type Request = Request;

    fn map(&self, number: u64, request: Request) -> Result<Bucket> {
        let first = number * self.frames as u64;
        let pfns = NumberRange::try_from(first..first + self.frames as u64)?;
        // Do not wait for paged-out frames that were not requested.
        let mut mapping = self.guest.map_at_once(request.protection, pfns)?;
        if failed(&mapping, request).iter().any(|e| e.errno == libc::ENOENT) {
            let requested = (first + request.first as u64..first + request.last as u64 + 1).try_into()?;
            // Frames that were paged in stay so while they are mapped.
            let _paged_in = self.guest.map_partial(request.protection, requested)?;
            mapping = self.guest.map_at_once(request.protection, pfns)?;
        }
        let failed = mapping.failed();
        if failed.len() == self.frames {
            let domid = self.guest.domid();
            return Err(Error::Frames(FrameErrors { domid, requested: self.frames, failed: failed.to_vec() }));
        }
        let dirty = Dirty::new(self.track_dirty.clone(), self.frames);
        Ok(Bucket { number, mapping, dirty })
    }

    #[cold]
    fn cannot_map(&self, number: u64, why: CannotMap) -> Error {
        let (domid, address) = (self.guest.domid(), number * (self.frames * FRAME_SIZE) as u64);
        let errno = match why {
            CannotMap::Closed => libc::ESRCH,
            CannotMap::Full => libc::ENOMEM,
        };
        Error::GuestAddress { domid, address, errno }
    }

    #[inline]
    fn serves(&self, mapped: &Bucket, number: u64, request: Request) -> bool {
        mapped.has(number, request)
    }

    fn place(&self, mapped: &Bucket) -> (u64, usize) {
        (mapped.number, mapped.mapping.view().as_ptr().addr())
    }

    fn removed(&self, mapped: &Bucket) {
        self.gather_dirty(mapped);
    }
}
