//! `read`: bytes of the guest's RAM, wherever they begin and end.

use std::io::Write;

use xenmap::{FRAME_SIZE, Gfn, Guest};

use crate::Result;
use crate::hexdump;
use crate::space::{self, Space};

/// Bytes that are mapped and shown at a time: all of them or, if one of their frames is no RAM, none.
const WINDOW: usize = 256 * FRAME_SIZE;

pub(crate) fn read(
    guest: &Guest,
    space: &Space,
    (address, len): (u64, u64),
    binary: bool,
    out: &mut impl Write,
) -> Result<()> {
    let last = space::last(address, len)?;
    if let Space::Physical = space {
        Gfn::containing(last)?;
    }
    let mut bytes = vec![0; WINDOW.min(usize::try_from(len)?)];
    for start in (address..=last).step_by(WINDOW) {
        let len = usize::try_from(last - start)?.saturating_add(1).min(WINDOW);
        let bytes = &mut bytes[..len];
        space.read(guest, start, bytes)?;
        if binary {
            out.write_all(bytes)?;
        } else {
            hexdump::rows(out, start, bytes)?;
        }
    }
    if !binary {
        hexdump::end(out, last)?;
    }
    Ok(())
}
