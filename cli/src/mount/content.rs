//! The content of a file: bytes that are kept, and RAM that is read when the file is.

use std::ops::Range;

use crate::args::Format;
use crate::bytes::Bytes;
use crate::dump::copy::{Tally, copy_part};
use crate::dump::layout::{FRAME, Layout};
use crate::dump::sink::Sink;
use crate::map::Found;
use crate::progress::Progress;
use crate::ram::Ram;
use crate::{Result, dump};

pub(crate) struct Content {
    /// In ascending order, without overlap. What is between them is zero.
    pieces: Vec<Piece>,
    pub(crate) len: u64,
}

struct Piece {
    /// The place in the file.
    range: Range<u64>,
    source: Source,
}

enum Source {
    Bytes(Vec<u8>),
    /// RAM, from this address on.
    Ram(u64),
}

impl Content {
    pub(crate) fn of_bytes(bytes: Vec<u8>) -> Content {
        let len = bytes.len() as u64;
        Content { pieces: vec![Piece { range: 0..len, source: Source::Bytes(bytes) }], len }
    }

    /// Returns the content of a dump of the RAM that was found, given its [`survey`]; and why the kernel's note in it may
    /// be the wrong one.
    pub(crate) fn of_dump(
        format: Format,
        ram: &Ram,
        found: &Found,
        tally: &Tally,
    ) -> Result<(Content, Option<String>)> {
        let layout = Layout::new(format, ram, &found.ranges(), false)?;
        let mut pieces = WithoutRam(Vec::new());
        pieces.bytes(0, &layout.head)?;
        for part in &layout.parts {
            layout.write_header(part, &mut pieces)?;
        }
        let doubt = layout.write_late(ram, tally, &mut pieces)?;
        let WithoutRam(mut pieces) = pieces;
        pieces.extend(layout.parts.iter().map(|part| Piece {
            range: part.offset..part.offset + part.frames() * FRAME,
            source: Source::Ram(part.pfns.start * FRAME),
        }));
        pieces.sort_unstable_by_key(|piece| piece.range.start);
        Ok((Content { pieces, len: layout.len }, doubt))
    }

    /// Copies bytes from an offset on, which must not reach past the end. `read_ram` copies bytes from an address on.
    pub(crate) fn read(
        &self,
        offset: u64,
        to: &mut [u8],
        read_ram: impl Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let end = offset + to.len() as u64;
        let mut done = offset;
        for Piece { range, source } in self.pieces_from(offset).take_while(|piece| piece.range.start < end) {
            let part = range.start.max(offset)..range.end.min(end);
            to[index(done, offset)?..index(part.start, offset)?].fill(0);
            let to = &mut to[index(part.start, offset)?..index(part.end, offset)?];
            let skipped = part.start - range.start;
            match source {
                Source::Bytes(bytes) => to.copy_from_slice(&bytes[index(skipped, 0)?..][..to.len()]),
                Source::Ram(address) => read_ram(address + skipped, to)?,
            }
            done = part.end;
        }
        to[index(done, offset)?..].fill(0);
        Ok(())
    }

    /// Returns where the next data is, from an offset on.
    pub(crate) fn next_data(&self, offset: u64) -> Option<u64> {
        Some(self.pieces_from(offset).next()?.range.start.max(offset))
    }

    /// Returns where the next hole is, from an offset on; the file ends with one.
    pub(crate) fn next_hole(&self, offset: u64) -> Option<u64> {
        let mut end = offset;
        for Piece { range, .. } in self.pieces_from(offset) {
            if range.start > end {
                break;
            }
            end = range.end;
        }
        (offset < self.len).then_some(end)
    }

    /// Returns how many bytes of data the file has.
    pub(crate) fn data_len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.range.end - piece.range.start).sum()
    }

    /// Returns the pieces that end after an offset.
    fn pieces_from(&self, offset: u64) -> impl Iterator<Item = &Piece> {
        self.pieces[self.pieces.partition_point(|piece| piece.range.end <= offset)..].iter()
    }
}

/// Returns the index of an offset in bytes that begin at `start`.
fn index(offset: u64, start: u64) -> Result<usize> {
    Ok(usize::try_from(offset - start)?)
}

/// Reads all RAM once, as a dump does: to find what cannot be read, and the kernel's note.
pub(crate) fn survey(ram: &Ram, found: &Found) -> Result<Tally> {
    let layout = Layout::new(Format::Elf, ram, &found.ranges(), false)?;
    let progress = Progress::new("looking for the kernel", layout.frames())?;
    let mut tally = Tally::default();
    for part in &layout.parts {
        copy_part(ram, part, layout.has_notes(), &mut WithoutRam(Vec::new()), |copied, _| {
            tally.add(copied);
            progress.set(tally.frames());
            Ok(())
        })?;
    }
    tally.add(dump::broken(found));
    Ok(tally)
}

/// Keeps the bytes of a dump, except for the RAM.
struct WithoutRam(Vec<Piece>);

impl Sink for WithoutRam {
    fn begin(&mut self, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn bytes(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if !bytes.is_empty() {
            let range = offset..offset + bytes.len() as u64;
            self.0.push(Piece { range, source: Source::Bytes(bytes.to_vec()) });
        }
        Ok(())
    }

    fn ram(&mut self, _: u64, _: Bytes<'_>) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _: u64) -> Result<u64> {
        Ok(0)
    }
}
