//! Memory that a request of the guest names.

use std::ops::Range;

use xenmap::{Access, MapCache, Protection};

/// Ranges of guest-physical addresses, in the order of their bytes. A guest may choose any.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Vec<Range<u64>>);

impl Buffers {
    pub(crate) fn push(&mut self, address: u64, len: u32) {
        // A range past the last address is refused when it is used.
        self.0.push(address..address.saturating_add(len.into()));
    }

    pub(crate) fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Returns the length in bytes.
    pub(crate) fn len(&self) -> u64 {
        // Does not overflow: a chain has at most 2^32 bytes.
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Splits the first `len` bytes off, if there are as many.
    pub(crate) fn take_front(&mut self, len: u64) -> Option<Buffers> {
        self.len().checked_sub(len)?;
        let mut front = Buffers::default();
        let mut left = len;
        while left != 0 {
            let range = self.0.first_mut()?;
            let end = range.start + left.min(range.end - range.start);
            front.0.push(range.start..end);
            left -= end - range.start;
            range.start = end;
            if range.is_empty() {
                self.0.remove(0);
            }
        }
        Some(front)
    }

    /// Splits the last `len` bytes off, if there are as many.
    pub(crate) fn take_back(&mut self, len: u64) -> Option<Buffers> {
        let rest = self.len().checked_sub(len)?;
        let front = self.take_front(rest)?;
        Some(std::mem::replace(self, front))
    }

    /// Copies the first bytes, as many as `to` holds, out of the guest.
    pub(crate) fn read(&self, cache: &MapCache, to: &mut [u8]) -> xenmap::Result<()> {
        for (address, part) in self.parts(to.len()) {
            cache.get(Protection::ReadOnly, address, part.len())?.read_bytes(0, &mut to[part])?;
        }
        Ok(())
    }

    /// Copies bytes into the guest, as many as there is room for.
    pub(crate) fn write(&self, cache: &MapCache, from: &[u8]) -> xenmap::Result<()> {
        for (address, part) in self.parts(from.len()) {
            cache.get(Protection::ReadWrite, address, part.len())?.write_bytes(0, &from[part])?;
        }
        Ok(())
    }

    /// Returns the parts of the first `len` bytes: the address of each, and which of those bytes it has.
    fn parts(&self, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
        let mut done = 0;
        self.0.iter().filter_map(move |range| {
            let size = usize::try_from(range.end - range.start).unwrap_or(usize::MAX).min(len - done);
            let part = done..done + size;
            done = part.end;
            (size != 0).then_some((range.start, part))
        })
    }
}
