//! `translate`: from addresses to the frames that hold them.

use std::io::Write;

use serde::Serialize;
use xenmap::{Gfn, Pfn};

use crate::Result;
use crate::chain::chain;
use crate::palette::palette;
use crate::printable::write_json;
use crate::ram::Ram;
use crate::say;
use crate::space::Space;

#[derive(Serialize)]
struct Document {
    translations: Vec<Translation>,
}

#[derive(Default, Serialize)]
struct Translation {
    #[serde(skip_serializing_if = "Option::is_none")]
    r#virtual: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    physical: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gfn: Option<u64>,
    /// The machine frame, in place of `gfn` for a PV guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    mfn: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prints the translation of each address, or an error. Returns whether there was no error.
pub(crate) fn translate(
    ram: &Ram,
    space: &Space,
    addresses: &[u64],
    as_json: bool,
    out: &mut impl Write,
) -> Result<bool> {
    let translations: Vec<Translation> = addresses.iter().map(|&address| find(ram, space, address)).collect();
    let all = translations.iter().all(|translation| translation.error.is_none());
    if as_json {
        write_json(out, &Document { translations })?;
        return Ok(all);
    }
    let style = palette().name;
    let mut is_first = true;
    for Translation { r#virtual, physical, gfn, mfn, error } in translations {
        if let Some(error) = error {
            say(&error);
            continue;
        }
        if !std::mem::take(&mut is_first) {
            writeln!(out)?;
        }
        for (name, value) in [
            ("virtual address", r#virtual),
            ("physical address", physical),
            ("guest frame (gfn)", gfn),
            ("machine frame (mfn)", mfn),
        ] {
            if let Some(value) = value {
                writeln!(out, "{style}{:21}{style:#}{value:#x}", format!("{name}:"))?;
            }
        }
    }
    Ok(all)
}

/// Returns the translation of an address, or an error.
fn find(ram: &Ram, space: &Space, address: u64) -> Translation {
    let mut translation = match space {
        Space::Physical => Translation { physical: Some(address), ..Translation::default() },
        Space::Virtual(_) => Translation { r#virtual: Some(address), ..Translation::default() },
    };
    match frame_of(ram, space, address) {
        Ok((physical, frame)) => {
            translation.physical = Some(physical);
            let number = Some(frame.get());
            if ram.is_pv() { translation.mfn = number } else { translation.gfn = number }
        }
        Err(e) => translation.error = Some(chain(&*e)),
    }
    translation
}

/// Returns the physical address of an address, and the frame that is mapped to access it.
fn frame_of(ram: &Ram, space: &Space, address: u64) -> Result<(u64, Gfn)> {
    let physical = space.translate(ram, address)?;
    let gfns = ram.gfns(Pfn::containing(physical)?.range(1)?.numbers())?;
    match gfns[..] {
        [Some(gfn)] => Ok((physical, gfn)),
        _ => Err(format!("physical address {physical:#x}: the guest's p2m has no machine frame for it").into()),
    }
}
