//! A mapped part of a guest, and how one is mapped.

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

/// A mapped part of a guest.
#[derive(Debug)]
pub(crate) struct Bucket {
    number: u64,
    mapping: ForeignMapping,
    dirty: Dirty,
}

/// What somebody wants of a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    protection: Protection,
    /// The first and the last frame, counted from the bucket's beginning.
    first: usize,
    last: usize,
}

impl Want {
    /// The frames of a piece, which is not empty.
    #[inline]
    pub(super) fn new(protection: Protection, piece: &Piece) -> Want {
        let (first, last) = (piece.offset / FRAME_SIZE, (piece.offset + piece.len - 1) / FRAME_SIZE);
        Want { protection, first, last }
    }

    /// No frame in particular.
    pub(super) fn nothing(protection: Protection) -> Want {
        Want { protection, first: 1, last: 0 }
    }
}

impl Bucket {
    /// Whether it has a piece, mapped for this, without a hole.
    #[inline]
    pub(super) fn has(&self, protection: Protection, piece: &Piece) -> bool {
        let is_whole = self.mapping.failed().is_empty() || self.has_no_hole(Want::new(protection, piece));
        self.number == piece.bucket && self.is_for(protection) && is_whole
    }

    #[cold]
    fn has_no_hole(&self, want: Want) -> bool {
        self.failed(want).is_empty()
    }

    #[inline]
    fn is_for(&self, protection: Protection) -> bool {
        protection == Protection::ReadOnly || self.mapping.protection() == Protection::ReadWrite
    }

    /// `len` bytes at an offset, as far as the caller may access them.
    #[inline]
    pub(super) fn view(&self, protection: Protection, offset: usize, len: usize) -> Result<View<'_>> {
        let view = self.mapping.view().slice(offset, len)?;
        Ok(match protection {
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

    /// The frames that failed, of those that are wanted.
    #[inline]
    pub(super) fn failed(&self, want: Want) -> &[FrameError] {
        failed(&self.mapping, want)
    }

    /// The guest's address of a byte; `None` in a hole.
    pub(super) fn address_at(&self, offset: usize) -> Option<u64> {
        let frame = offset / FRAME_SIZE;
        let is_hole = self.mapping.failed().binary_search_by_key(&frame, |e| e.index).is_ok();
        let start = self.number * (self.mapping.frames() * FRAME_SIZE) as u64;
        (!is_hole).then(|| start + offset as u64)
    }
}

#[inline]
fn failed(mapping: &ForeignMapping, want: Want) -> &[FrameError] {
    let failed = mapping.failed();
    if failed.is_empty() {
        return failed;
    }
    let start = failed.partition_point(|e| e.index < want.first);
    let end = failed.partition_point(|e| e.index <= want.last);
    &failed[start..end]
}

/// Whether a frame that failed so will do so again, until the guest changes its memory.
fn is_for_good(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::EPERM)
}

/// A guest as the source of buckets.
#[derive(Debug)]
pub(crate) struct Guests {
    guest: Guest,
    frames: usize,
    track_dirty: Arc<AtomicBool>,
    /// The pfns of frames that were written, as far as they have been gathered.
    dirty: Mutex<BTreeSet<u64>>,
}

impl Guests {
    pub(super) fn new(guest: Guest, bucket_size: usize) -> Guests {
        Guests { guest, frames: bucket_size / FRAME_SIZE, track_dirty: Arc::default(), dirty: Mutex::default() }
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(super) fn track_dirty(&self) -> &AtomicBool {
        &self.track_dirty
    }

    /// Gathers what was written in a bucket.
    pub(super) fn gather_dirty(&self, bucket: &Bucket) {
        let first = bucket.number * self.frames as u64;
        let frames = bucket.dirty.take();
        if !frames.is_empty() {
            self.dirty().extend(frames.into_iter().map(|frame| first + frame as u64));
        }
    }

    /// What has been gathered, as ranges of pfns.
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

    fn dirty(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Guests {
    type Bucket = Bucket;
    type Want = Want;

    fn map(&self, number: u64, want: Want) -> Result<Bucket> {
        let first = number * self.frames as u64;
        let pfns = NumberRange::try_from(first..first + self.frames as u64)?;
        // The neighbours of what is wanted are not waited for.
        let mut mapping = self.guest.map_at_once(want.protection, pfns)?;
        if failed(&mapping, want).iter().any(|e| e.errno == libc::ENOENT) {
            let wanted = (first + want.first as u64..first + want.last as u64 + 1).try_into()?;
            // What has come back stays while it is mapped.
            let _waited = self.guest.map_partial(want.protection, wanted)?;
            mapping = self.guest.map_at_once(want.protection, pfns)?;
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
    fn serves(&self, mapped: &Bucket, number: u64, want: Want) -> bool {
        let is_final = || mapped.failed(want).iter().all(|e| is_for_good(e.errno));
        mapped.number == number && mapped.is_for(want.protection) && is_final()
    }

    fn place(&self, mapped: &Bucket) -> (u64, usize) {
        (mapped.number, mapped.mapping.view().as_ptr().addr())
    }

    fn goes(&self, mapped: &Bucket) {
        self.gather_dirty(mapped);
    }
}
