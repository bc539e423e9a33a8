//! `read`: bytes of memory, wherever they begin and end.

use std::error::Error;
use std::io::Write;

use serde::Serialize;
use xenmap::Gfn;

use crate::hexdump::{self, Hexdump};
use crate::palette::palette;
use crate::parts::{Hole, Part, each_part};
use crate::printable::write_json;
use crate::ram::Ram;
use crate::space::{self, Space};
use crate::{Result, say};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Hexdump,
    Binary,
    Json,
}

impl Format {
    pub(crate) fn new(binary: bool, json: bool) -> Format {
        match (binary, json) {
            (true, _) => Format::Binary,
            (_, true) => Format::Json,
            _ => Format::Hexdump,
        }
    }
}

/// Prints `len` bytes from an address on. Returns whether all of them could be read; it is an error if none could.
pub(crate) fn read(
    ram: &Ram,
    space: &Space,
    (first, len): (u64, u64),
    format: Format,
    out: &mut impl Write,
) -> Result<bool> {
    let last = space::last(first, len)?;
    if let Space::Physical = space {
        Gfn::containing(last)?;
    }
    let range = (first, last);
    let unread = match format {
        Format::Hexdump => print(ram, space, range, out)?,
        Format::Binary => {
            write_binary(ram, space, range, out)?;
            0
        }
        Format::Json => {
            let document = Document::read(ram, space, range)?;
            let unread = document.unread_bytes();
            if unread < len {
                write_json(&mut *out, &document)?;
            }
            unread
        }
    };
    if unread == len {
        return Err(cannot_read(ram, space, first));
    }
    if unread > 0 {
        say(&format!("{unread} of {len} bytes cannot be read"));
    }
    Ok(unread == 0)
}

/// Prints a hexdump, unless no byte can be read. Returns how many bytes cannot be read.
fn print(ram: &Ram, space: &Space, range: (u64, u64), out: &mut impl Write) -> Result<u64> {
    let mut hexdump = Hexdump::new(palette(), None);
    let mut unread = 0;
    let mut any_read = false;
    // The holes before the first byte.
    let mut held = Vec::new();
    each_part(ram, space, range, |part| {
        match &part {
            Part::Hole(hole) => {
                unread += hole.bytes();
                if !any_read {
                    held.push(Hole::clone(hole));
                    return Ok(());
                }
            }
            Part::Bytes(..) => {
                any_read = true;
                for hole in held.drain(..) {
                    hexdump.part(out, &Part::Hole(&hole))?;
                }
            }
        }
        Ok(hexdump.part(out, &part)?)
    })?;
    if any_read {
        hexdump.end(out)?;
        // The address after the last byte, which may take one digit more than any address.
        writeln!(out, "{:08x}", u128::from(range.1) + 1)?;
    }
    Ok(unread)
}

/// Writes the bytes themselves. If one cannot be read, fails before it writes anything.
fn write_binary(ram: &Ram, space: &Space, range: (u64, u64), out: &mut impl Write) -> Result<()> {
    // The bytes are read twice, because there may be too many to keep.
    each_part(ram, space, range, |part| match part {
        Part::Bytes(..) => Ok(()),
        Part::Hole(hole) => Err(cannot_read(ram, space, hole.first)),
    })?;
    each_part(ram, space, range, |part| match part {
        Part::Bytes(_, bytes) => Ok(out.write_all(bytes)?),
        Part::Hole(hole) => Err(cannot_read(ram, space, hole.first)),
    })
}

/// Returns the library's error for an address that could not be read, which says more than the reason of a hole.
fn cannot_read(ram: &Ram, space: &Space, address: u64) -> Box<dyn Error> {
    match space.read(ram, address, &mut [0]) {
        Err(e) => e,
        Ok(()) => format!("cannot read at {address:#x}: the guest was changing it").into(),
    }
}

/// A range of memory as JSON.
#[derive(Serialize)]
pub(crate) struct Document {
    address: u64,
    bytes: u64,
    parts: Vec<JsonPart>,
}

#[derive(Serialize)]
struct JsonPart {
    first: u64,
    last: u64,
    bytes: u64,
    #[serde(flatten)]
    content: Content,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    Hex(String),
    Error(String),
}

impl Document {
    pub(crate) fn read(ram: &Ram, space: &Space, range: (u64, u64)) -> Result<Document> {
        let (address, last) = range;
        let mut document = Document { address, bytes: last - address + 1, parts: Vec::new() };
        each_part(ram, space, range, |part| {
            document.add(&part);
            Ok(())
        })?;
        Ok(document)
    }

    fn add(&mut self, part: &Part<'_>) {
        match *part {
            Part::Hole(hole) => {
                let Hole { first, last, ref reason } = *hole;
                self.parts.push(JsonPart { first, last, bytes: hole.bytes(), content: Content::Error(reason.clone()) });
            }
            Part::Bytes(first, bytes) => {
                if !matches!(self.parts.last(), Some(JsonPart { content: Content::Hex(_), .. })) {
                    self.parts.push(JsonPart { first, last: first, bytes: 0, content: Content::Hex(String::new()) });
                }
                if let Some(JsonPart { last, bytes: count, content: Content::Hex(hex), .. }) = self.parts.last_mut() {
                    *count += bytes.len() as u64;
                    *last = first + (bytes.len() as u64 - 1);
                    hexdump::push_digits(hex, bytes);
                }
            }
        }
    }

    fn unread_bytes(&self) -> u64 {
        let holes = self.parts.iter().filter(|part| matches!(part.content, Content::Error(_)));
        holes.map(|part| part.bytes).sum()
    }
}
