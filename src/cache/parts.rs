//! A pinned range, bucket by bucket.

use super::{Bucket, Pin};
use crate::error::Result;
use crate::mapping::View;
use crate::mapping::copy::Word;
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
        let (n, at) = (at / self.bucket_size, at % self.bucket_size);
        let bucket = match n {
            0 => self.first,
            n => self.between.get(n - 1).map(Pin::bucket).or(self.last).unwrap_or(self.first),
        };
        bucket.view(self.protection, at, (self.bucket_size - at).min(self.len.saturating_sub(offset)))
    }

    /// A part of it, which is inside, bucket by bucket.
    pub(super) fn views(self, offset: usize, len: usize) -> impl Iterator<Item = View<'p>> {
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

    pub(super) fn read_bytes(self, offset: usize, to: &mut [u8]) -> Result<()> {
        let mut rest = to;
        for view in self.views(offset, rest.len()) {
            let (to, more) = rest.split_at_mut(view.len());
            view.read_bytes(0, to)?;
            rest = more;
        }
        Ok(())
    }

    /// Reads an integer, which may lie in two buckets.
    pub(super) fn read<T: Word>(self, offset: usize) -> Result<T> {
        let view = self.view(offset)?;
        if view.len() >= size_of::<T>() {
            return view.read(0);
        }
        let mut bytes = [0; size_of::<u64>()];
        let bytes = &mut bytes[..size_of::<T>()];
        self.read_bytes(offset, bytes)?;
        Ok(T::from_bytes(bytes))
    }

    /// Writes an integer, which may lie in two buckets.
    pub(super) fn write<T: Word>(self, offset: usize, value: T) -> Result<()> {
        let view = self.view(offset)?;
        if view.len() >= size_of::<T>() {
            return view.write(0, value);
        }
        self.write_bytes(offset, value.to_bytes().as_ref())
    }

    pub(super) fn write_bytes(self, offset: usize, from: &[u8]) -> Result<()> {
        let mut rest = from;
        for view in self.views(offset, rest.len()) {
            let (from, more) = rest.split_at(view.len());
            view.write_bytes(0, from)?;
            rest = more;
        }
        Ok(())
    }
}
