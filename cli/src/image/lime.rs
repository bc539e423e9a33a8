//! `LiME`: parts, each after a header of magic, version (u32 each), first and last address (u64) and 8 unused bytes
//! (github.com/504ensicsLabs/LiME, doc/README.md).

use super::contents::Contents;
use super::runs::{Run, Source};
use crate::Result;

pub(super) const MAGIC: [u8; 4] = *b"EMiL";
const HEADER: u64 = 32;

pub(super) fn runs(file: &Contents) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < file.len() {
        let header = file.get(at, HEADER).ok_or("it is cut off")?;
        let word = |i: usize| header[i..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if header[..4] != MAGIC || header[4..8] != 1_u32.to_le_bytes() {
            return Err(format!("there is no lime header, version 1, at byte {at}").into());
        }
        let (first, last) = (word(8), word(16));
        let len =
            last.checked_sub(first).and_then(|more| more.checked_add(1)).ok_or("a part of it ends before it begins")?;
        at += HEADER;
        let next = at.checked_add(len).filter(|next| *next <= file.len()).ok_or("it is cut off")?;
        runs.extend(Run::new(first, len, Source::File(at))?);
        at = next;
    }
    Ok(runs)
}
