//! The bytes of a file, and where it has data.

#![expect(unsafe_code, reason = "maps a file")]

use std::fs::File;
use std::ops::Range;

use memmap2::{Advice, Mmap};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::Result;

/// A file whose holes are known: they are zeros, and cost nothing, whatever headers claim that they hold.
pub(super) struct Contents {
    map: Mmap,
    /// In ascending order, without overlap.
    data: Vec<Range<u64>>,
}

impl Contents {
    pub(super) fn new(file: &File) -> Result<Contents> {
        // SAFETY: nobody changes the file, as the help of `diff` and `picture` asks.
        let map = unsafe { Mmap::map(file) }?;
        // Otherwise the kernel also reads what follows a header, and that may be an endless hole.
        map.advise(Advice::Random)?;
        let data = data(file, map.len() as u64)?;
        Ok(Contents { map, data })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(super) fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Returns some bytes; `None` if the file does not have all of them.
    pub(super) fn get(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.map.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    }

    /// Begins to read bytes that will be needed soon.
    pub(super) fn prefetch(&self, bytes: Range<u64>) {
        for data in self.data_in(bytes) {
            let range = [data.start, data.end - data.start].map(usize::try_from);
            if let [Ok(start), Ok(len)] = range {
                // After a failure the bytes are read when they are needed.
                let _ = self.map.advise_range(Advice::WillNeed, start, len);
            }
        }
    }

    /// Returns where there is data among some bytes.
    pub(super) fn data_in(&self, bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.data.partition_point(|data| data.end <= bytes.start);
        let meets = self.data[first..].iter().take_while(move |data| data.start < bytes.end);
        meets.map(move |data| data.start.max(bytes.start)..data.end.min(bytes.end))
    }
}

/// Returns where a file has data: everywhere, on a file system that does not know its holes.
fn data(file: &File, len: u64) -> Result<Vec<Range<u64>>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    let mut next = 0;
    while next < len {
        let start = match lseek(file, i64::try_from(next)?, Whence::SeekData) {
            Ok(start) => u64::try_from(start)?,
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = u64::try_from(lseek(file, i64::try_from(start)?, Whence::SeekHole)?)?.min(len);
        if start < next || start >= end {
            return Err("it is being changed; try again when nobody writes to it".into());
        }
        all.push(start..end);
        next = end;
    }
    Ok(all)
}
