//! The parts of a pinned range, one per bucket.

#![expect(unsafe_code, reason = "promises that what is pinned is mapped")]

use super::{Bucket, Pin};
use crate::error::{Error, Result};
use crate::mapping::pieces::Pieces;
use crate::mapping::{Access, View};
use crate::types::Protection;

/// The buckets of a pinned range.
///
/// This is a copy of what a [`Pinned`](super::Pinned) holds. Functions that are not inlined take the copy, so that a
/// guard of one bucket, which is the usual case, can stay in registers. Storing it in memory would double the cost of
/// using it.
#[derive(Clone, Copy)]
pub(super) struct Parts<'p> {
    pub(super) first: &'p Bucket,
    pub(super) between: &'p [Pin<'p>],
    pub(super) last: Option<&'p Bucket>,
    /// The offset of the range in the first bucket, in bytes.
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) bucket_size: usize,
    pub(super) protection: Protection,
}

impl<'p> Parts<'p> {
    /// Returns the bytes from `offset` to the end of that bucket, or of the range.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] if there is no byte at `offset`.
    pub(super) fn view(self, offset: usize) -> Result<View<'p>> {
        // Does not overflow: both are within the guest's address space.
        let at = self.start + offset;
        // A bucket's size is a power of two.
        let (n, at) = (at >> self.bucket_size.trailing_zeros(), at & (self.bucket_size - 1));
        let bucket = match n {
            0 => self.first,
            n => self.between.get(n - 1).map(Pin::bucket).or(self.last).unwrap_or(self.first),
        };
        bucket.view(self.protection, at, (self.bucket_size - at).min(self.len.saturating_sub(offset)))
    }
}

// SAFETY: each bucket of a `Pinned` was pinned by `MapCache::get`, where `Bucket::has` found it mapped with the
// protection and without a hole in the range's piece; or by `MapCache::pin`, which gets a bucket mapped with the
// protection (`Source::serves`, or just mapped so) and itself checks for holes. A bucket does not change while it is
// pinned. Each view that `of` returns lies in the range and in one bucket (`view`). A bucket starts at a page boundary
// and consists of whole pages, so an aligned integer does not span two buckets.
unsafe impl<'p> Pieces<'p> for Parts<'p> {
    fn check(self, protection: Protection, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::OutOfBounds { offset, len, size: self.len });
        }
        match (protection, self.protection) {
            (Protection::ReadWrite, Protection::ReadOnly) => Err(Error::ReadOnly { offset }),
            _ => Ok(()),
        }
    }

    fn of(self, offset: usize, len: usize) -> impl Iterator<Item = View<'p>> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let view = self.view(offset + done).and_then(|view| view.slice(0, view.len().min(len - done)));
            debug_assert!(view.is_ok(), "`check` found the range inside");
            done += view.as_ref().map_or(0, View::len);
            view.ok()
        })
    }
}
