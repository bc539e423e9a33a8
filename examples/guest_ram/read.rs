//! `read`: bytes of the guest's RAM, wherever they begin and end.

use std::io::Write;

use xenmap::{Error, FRAME_SIZE, Gfn, Protection};

use crate::Result;
use crate::guest::Guest;
use crate::hexdump;

/// Bytes that are mapped and shown at a time: all of them or, if one of their frames is no RAM, none.
const WINDOW: usize = 256 * FRAME_SIZE;

pub(crate) fn read(guest: &Guest, gpa: u64, len: u64, out: &mut impl Write) -> Result<()> {
    let beyond_first = len.checked_sub(1).ok_or("LEN is 0: there is nothing to read")?;
    let last = gpa.checked_add(beyond_first).ok_or("GPA and LEN reach beyond the last address")?;
    // Addresses are far below 2^64 from here on, and so are sums.
    Gfn::containing(last)?;
    for start in (gpa..=last).step_by(WINDOW) {
        let len = (last - start + 1).min(WINDOW as u64);
        let bytes = read_window(guest, start, usize::try_from(len)?)?;
        hexdump::rows(out, start, &bytes)?;
    }
    hexdump::end(out, last + 1)?;
    Ok(())
}

fn read_window(guest: &Guest, start: u64, len: usize) -> Result<Vec<u8>> {
    let offset = usize::try_from(start % FRAME_SIZE as u64)?;
    let frames = (offset + len).div_ceil(FRAME_SIZE);
    let mapped = guest.memory.map_foreign_range(guest.domid, Protection::ReadOnly, Gfn::containing(start)?, frames);
    let mapping = mapped.map_err(|error| where_it_fails(error, start))?;
    let mut bytes = vec![0; len];
    mapping.view().read_bytes(offset, &mut bytes)?;
    Ok(bytes)
}

/// Names the first address that cannot be read.
fn where_it_fails(error: Error, start: u64) -> Box<dyn std::error::Error> {
    match &error {
        Error::Frames(errors) => match errors.failed().first() {
            Some(frame) => {
                let address = start.max(frame.gfn.get() * FRAME_SIZE as u64);
                format!("cannot read domain {} at {address:#x}: {}", errors.domid(), frame.reason()).into()
            }
            None => error.into(),
        },
        _ => error.into(),
    }
}
