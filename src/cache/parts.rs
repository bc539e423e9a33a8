//! A pinned range, bucket by bucket.

#![expect(unsafe_code, reason = "answers for what is pinned")]

use super::{Bucket, Pin};
use crate::error::{Error, Result};
use crate::mapping::pieces::Pieces;
use crate::mapping::{Access, View};
use crate::types::Protection;

/// Where a pinned range is.
///
/// It is a copy of what a guard knows. What is not inlined works with the copy, so that a guard of one bucket, which is
/// the usual one, need never be in memory: that is half of what using it would cost.
#[derive(Clone, Copy)]
pub(super) struct Parts<'p> {
    pub(super) first: &'p Bucket,
    pub(super) between: &'p [Pin<'p>],
    pub(super) last: Option<&'p Bucket>,
    /// Where in the first bucket the range begins, in bytes.
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) bucket_size: usize,
    pub(super) protection: Protection,
}

impl<'p> Parts<'p> {
    /// The bytes from `offset` on that lie in one bucket.
    ///
    /// # Errors
    ///
    /// Out of bounds, if there is no byte at `offset`.
    pub(super) fn view(self, offset: usize) -> Result<View<'p>> {
        // It is inside an address space.
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

// SAFETY: each bucket of a `Pinned` was pinned by `MapCache::get`, where `Bucket::has` found it mapped for the
// protection and without a hole in the range's piece, or by `MapCache::pin`, which gets it mapped for the protection
// (`Source::serves`, or just mapped so) and looks for holes itself. A bucket stays as it is while it is pinned. The
// pieces that `of` gives are in the range and in one bucket each (`view`); a bucket begins at a page and is whole
// pages, so an aligned integer does not reach from one into the next.
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
            debug_assert!(view.is_ok(), "it is inside");
            done += view.as_ref().map_or(0, View::len);
            view.ok()
        })
    }
}
