//! Raw: the page of frame n is n * 4096 bytes from the start; holes of a sparse file are zeros, or no RAM.

use super::FRAME;
use super::contents::Contents;
use super::runs::{Run, Source};
use crate::Result;

pub(super) fn runs(file: &Contents) -> Result<Vec<Run>> {
    if !file.len().is_multiple_of(FRAME) {
        return Err("not raw RAM: its length is not a multiple of 4096".into());
    }
    let mut runs = Vec::new();
    for data in file.data_in(0..file.len()) {
        let start = data.start - data.start % FRAME;
        runs.extend(Run::new(start, data.end.next_multiple_of(FRAME) - start, Source::File(start))?);
    }
    Ok(runs)
}
