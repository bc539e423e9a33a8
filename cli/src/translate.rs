//! `translate`: from addresses to the frames that hold them.

use std::io::Write;

use serde_json::{Map, Value};
use xenmap::{Gfn, Guest, GuestKind, Pfn};

use crate::Result;
use crate::chain::chain;
use crate::palette::palette;
use crate::space::Space;
use crate::{printable, say};

/// Prints the translation of each address, or an error. Returns whether there was no error.
pub(crate) fn translate(
    guest: &Guest,
    space: &Space,
    addresses: &[u64],
    as_json: bool,
    out: &mut impl Write,
) -> Result<bool> {
    let (given, given_name) = match space {
        Space::Physical => ("physical", "physical address"),
        Space::Virtual(_) => ("virtual", "virtual address"),
    };
    let (frame, frame_name) = match guest.kind() {
        GuestKind::Pv => ("mfn", "machine frame (mfn)"),
        _ => ("gfn", "guest frame (gfn)"),
    };
    let style = palette().name;
    let mut objects = Vec::new();
    let mut all = true;
    let mut is_first = true;
    for &address in addresses {
        let found = find(guest, space, address);
        all &= found.is_ok();
        if as_json {
            let mut object = Map::from_iter([(given.to_owned(), address.into())]);
            object.extend(match found {
                Ok((physical, number)) => {
                    vec![("physical".to_owned(), physical.into()), (frame.to_owned(), number.get().into())]
                }
                Err(e) => vec![("error".to_owned(), chain(&*e).into())],
            });
            objects.push(Value::Object(object));
            continue;
        }
        match found {
            Ok((physical, number)) => {
                if !std::mem::take(&mut is_first) {
                    writeln!(out)?;
                }
                let mut lines = vec![(given_name, address), ("physical address", physical), (frame_name, number.get())];
                lines.dedup_by_key(|(name, _)| *name);
                for (name, value) in lines {
                    writeln!(out, "{style}{:21}{style:#}{value:#x}", format!("{name}:"))?;
                }
            }
            Err(e) => say(&chain(&*e)),
        }
    }
    if as_json {
        writeln!(out, "{}", printable::json(&Map::from_iter([("translations".to_owned(), objects.into())]))?)?;
    }
    Ok(all)
}

/// Returns the physical address of an address, and the frame that is mapped to access it.
fn find(guest: &Guest, space: &Space, address: u64) -> Result<(u64, Gfn)> {
    let physical = space.translate(guest, address)?;
    let gfns = guest.gfns(Pfn::containing(physical)?.range(1)?)?;
    match gfns[..] {
        [Some(gfn)] => Ok((physical, gfn)),
        _ => Err(format!("physical address {physical:#x}: the guest's p2m has no machine frame for it").into()),
    }
}
