//! Flattened dumps, as makedumpfile (`-F`) and QEMU write them to a pipe: pieces of another file in any order, each after
//! its offset and length (makedumpfile's IMPLEMENTATION and `diskdump_mod.h`). All numbers are big-endian.

use std::fs::File;

use super::FRAME;
use super::contents::Contents;
use super::unpacked::Unpacked;
use crate::Result;
use crate::progress::Progress;

pub(super) const MAGIC: [u8; 16] = *b"makedumpfile\0\0\0\0";
const HEADER: u64 = 4096;
const TYPE_AND_VERSION: [u64; 2] = [1, 1];
const PIECE_HEADER: u64 = 16;
const END: u64 = u64::MAX;

/// Puts the pieces together into another file.
pub(super) fn rearrange(file: &Contents) -> Result<File> {
    let words = |at: u64| -> Result<[u64; 2]> {
        let (words, _) = file.get(at, PIECE_HEADER).ok_or("it is cut off")?.as_chunks();
        let word = |i: usize| words.get(i).map_or(0, |word| u64::from_be_bytes(*word));
        Ok([word(0), word(1)])
    };
    if words(MAGIC.len() as u64)? != TYPE_AND_VERSION {
        return Err("it is a flattened dump of an unknown version".into());
    }
    let mut to = Unpacked::create()?;
    let progress = Progress::new("rearranging", file.len() / FRAME)?;
    let mut at = HEADER;
    loop {
        let [offset, len] = words(at)?;
        if offset == END {
            return to.finish();
        }
        // A hole of the file would be endless pieces without bytes.
        if [offset, len] == [0, 0] {
            return Err("it is damaged: there is no piece where one should be".into());
        }
        if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err("it is damaged: a piece of it is past the end of any file".into());
        }
        at += PIECE_HEADER;
        if len > file.len() - at {
            return Err("it is cut off".into());
        }
        // A later piece replaces an earlier one.
        to.clear(offset..offset + len)?;
        for data in file.data_in(at..at + len) {
            to.write(offset + (data.start - at), file.get(data.start, data.end - data.start).unwrap_or_default())?;
        }
        at += len;
        progress.set(at / FRAME);
    }
}
