//! `write`: changes bytes of the guest's memory.

use std::io::{self, IsTerminal, Write};

use xenmap::{Access, DomainState, Error, FRAME_SIZE, Guest, Pfn, Protection};

use crate::Result;
use crate::number::count;
use crate::ram::Ram;
use crate::space::{self, Space};

const SIMULATED: &str = "nothing was written, because it would be lost: a simulated guest ends with this command, and \
                         the file of --mock is never changed";

/// Writes bytes. If the guest is simulated, checks everything, and then refuses.
pub(crate) fn write(
    ram: &Ram,
    space: &Space,
    (address, bytes): (u64, &[u8]),
    simulated: bool,
    out: &mut impl Write,
) -> Result<()> {
    let guest = ram.guest().ok_or("a dump cannot be changed")?;
    let last = space::last(address, bytes.len() as u64)?;
    // All pages are mapped before any is written, so that either all bytes are written or none.
    let mut pages = Vec::new();
    let mut rest = bytes;
    let mut at = address;
    while !rest.is_empty() {
        let physical = space.translate(ram, at)?;
        let (frame, offset) = (Pfn::containing(physical)?.range(1)?, usize::try_from(physical % FRAME_SIZE as u64)?);
        let mapping = guest.map(Protection::ReadWrite, frame).map_err(|e| cannot_write(e, at))?;
        let (part, more) = rest.split_at(rest.len().min(FRAME_SIZE - offset));
        pages.push((mapping, offset, part));
        rest = more;
        // Not used after the last address.
        at = at.wrapping_add(part.len() as u64);
    }
    if simulated {
        return Err(SIMULATED.into());
    }
    for (mapping, offset, part) in pages {
        mapping.view().write_bytes(offset, part)?;
    }
    writeln!(out, "{} written, {address:#x} to {last:#x}", count(bytes.len() as u64, "byte"))?;
    Ok(())
}

/// Returns whether the guest is certainly paused.
pub(crate) fn is_paused(guest: &Guest) -> Result<bool> {
    Ok(guest.memory().domain_info(guest.domid())?.state == Some(DomainState::Paused))
}

/// Asks whether to write to a guest that may be running. Refuses if there is no terminal to ask on.
pub(crate) fn confirm(guest: &Guest) -> Result<()> {
    if !io::stdin().is_terminal() {
        return Err(format!("domain {} is not paused: pause it, or give --yes", guest.domid()).into());
    }
    write!(io::stderr(), "domain {} is not paused, and may be using these bytes. Write? [y/N] ", guest.domid())?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { Err("nothing was written".into()) }
}

fn cannot_write(error: Error, address: u64) -> Box<dyn std::error::Error> {
    let Error::Frames(errors) = &error else { return error.into() };
    let reason = errors.failed().first().map(xenmap::FrameError::reason).unwrap_or_default();
    format!("cannot write at {address:#x}: {reason}; nothing was written").into()
}
