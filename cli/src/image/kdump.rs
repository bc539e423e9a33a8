//! kdump-compressed dumps of makedumpfile and QEMU, of 64-bit little-endian machines: headers, two bitmaps of frames (those
//! that are RAM, and those that the dump has), and for each frame of the second one a descriptor of its compressed page
//! (makedumpfile's IMPLEMENTATION and `diskdump_mod.h`).

use std::fs::File;
use std::ops::Range;

use flate2::{Decompress, FlushDecompress, Status};
use xenmap::Gfn;
use zstd::bulk::Decompressor;

use super::FRAME;
use super::contents::Contents;
use super::machine::{self, Architecture, Machine};
use super::runs::{Run, Source};
use super::unpacked::Unpacked;
use crate::Result;
use crate::progress::Progress;

pub(super) const MAGIC: [u8; 8] = *b"KDUMP   ";

/// The sizes of blocks, which are the sizes of pages.
const BLOCK_SIZES: [u64; 3] = [4 << 10, 16 << 10, 64 << 10];
const DESCRIPTOR: u64 = 24;
/// The most bytes of a VMCOREINFO note that are read.
const MAX_VMCOREINFO: u64 = 1 << 20;

/// How a page is compressed: flags of its descriptor.
const ZLIB: u32 = 1 << 0;
const LZO: u32 = 1 << 1;
const SNAPPY: u32 = 1 << 2;
const ZSTD: u32 = 1 << 5;

struct Header {
    block_size: u64,
    /// The offsets of the second bitmap and of what follows it.
    bitmap: u64,
    descriptors: u64,
    machine: Machine,
}

/// Decompresses a dump. Returns a file with its pages, what that has at which address, and what the dump says of the
/// machine.
pub(super) fn unpack(file: &Contents) -> Result<(File, Vec<Run>, Machine)> {
    let header = Header::read(file)?;
    let mut to = Unpacked::create()?;
    let Header { block_size, descriptors, .. } = header;
    let frames = header.pages(file).count() as u64 * (block_size / FRAME);
    let progress = Progress::new("decompressing", frames)?;
    let mut runs: Vec<Run> = Vec::new();
    let mut decoder = PageDecoder::new(usize::try_from(block_size)?)?;
    let mut at = descriptors;
    for address in header.pages(file) {
        let address = address?;
        let descriptor = file.get(at, DESCRIPTOR).ok_or("it is cut off")?;
        let page = decoder.decode(file, descriptor).map_err(|e| format!("the page at {address:#x}: {e}"))?;
        let run = Run::new(address, block_size, Source::File(to.len))?;
        to.append(page)?;
        add(&mut runs, run);
        at += DESCRIPTOR;
        progress.set(to.len / FRAME);
    }
    Ok((to.finish()?, runs, header.machine))
}

/// Returns what a dump has at which address, as zeros, and what it says of the machine, without decompressing it.
pub(super) fn without_pages(file: &Contents) -> Result<(Vec<Run>, Machine)> {
    let header = Header::read(file)?;
    let mut runs = Vec::new();
    for address in header.pages(file) {
        add(&mut runs, Run::new(address?, header.block_size, Source::Zeros)?);
    }
    Ok((runs, header.machine))
}

fn add(runs: &mut Vec<Run>, run: Option<Run>) {
    match (runs.last_mut(), run) {
        (Some(last), Some(run)) if last.is_continued_by(&run) => last.addresses.end = run.addresses.end,
        (_, run) => runs.extend(run),
    }
}

impl Header {
    fn read(file: &Contents) -> Result<Header> {
        const CUT_OFF: &str = "it is cut off";
        let word = |at: u64| -> Result<u64> {
            let bytes = file.get(at, 4).and_then(|bytes| bytes.first_chunk()).ok_or(CUT_OFF)?;
            Ok(u32::from_le_bytes(*bytes).into())
        };
        let long = |at: u64| -> Result<u64> {
            let bytes = file.get(at, 8).and_then(|bytes| bytes.first_chunk()).ok_or(CUT_OFF)?;
            Ok(u64::from_le_bytes(*bytes))
        };
        // Offsets in struct disk_dump_header of a 64-bit machine.
        let [version, block_size] = [word(8)?, word(428)?];
        let [sub_header_blocks, bitmap_blocks] = [word(432)?, word(436)?];
        if !BLOCK_SIZES.contains(&block_size) {
            return Err(
                "it is a kdump of a machine that is not 64-bit and little-endian, or damaged: read it with crash, \
                        or dump the guest as an elf core"
                    .into(),
            );
        }
        // Products of two numbers of 32 bits.
        let sub_header = block_size;
        let first_bitmap = sub_header + sub_header_blocks * block_size;
        let descriptors = first_bitmap + bitmap_blocks * block_size;
        let bitmap = first_bitmap + (descriptors - first_bitmap) / 2;
        if descriptors > file.len() {
            return Err(CUT_OFF.into());
        }
        // Offsets in struct kdump_sub_header; later versions have more fields.
        if version >= 2 && word(sub_header + 12)? != 0 {
            return Err("it is one of several parts of a dump: join them first (makedumpfile --reassemble)".into());
        }
        let name = file.get(12 + 4 * 65, 65).unwrap_or_default();
        let is = |machine: &[u8]| name.strip_prefix(machine).is_some_and(|rest| rest.first() == Some(&0));
        let architecture = if is(b"x86_64") {
            Some(Architecture::X86_64)
        } else if is(b"aarch64") {
            Some(Architecture::Arm64)
        } else {
            None
        };
        let mut machine = Machine { architecture, ..Machine::default() };
        if version >= 4 {
            let [start, len] = [long(sub_header + 48)?, long(sub_header + 56)?];
            let notes = machine::notes(file, start..start.saturating_add(len));
            machine::add_notes_64(&mut machine, notes);
        }
        if version >= 3 {
            let [start, len] = [long(sub_header + 32)?, long(sub_header + 40)?];
            let text = file.get(start, len.min(MAX_VMCOREINFO)).filter(|text| !text.is_empty());
            machine.vmcoreinfo = text.map(<[u8]>::to_vec).or(machine.vmcoreinfo);
        }
        Ok(Header { block_size, bitmap, descriptors, machine })
    }

    /// Returns the address of each page that the dump has.
    fn pages(&self, file: &Contents) -> impl Iterator<Item = Result<u64>> {
        let (block_size, last) = (self.block_size, Gfn::MAX.get() / (self.block_size / FRAME));
        set_bits(file, self.bitmap..self.descriptors).map(move |number| {
            if number > last {
                return Err("it has a frame past the last possible one".into());
            }
            Ok(number * block_size)
        })
    }
}

/// Returns the numbers of the bits that are set in a part of a file. Holes of the file are skipped.
fn set_bits(file: &Contents, bitmap: Range<u64>) -> impl Iterator<Item = u64> {
    let start = bitmap.start;
    file.data_in(bitmap).flat_map(move |data| {
        let bytes = file.get(data.start, data.end - data.start).unwrap_or_default();
        let numbered = bytes.iter().zip(data.start - start..).filter(|(byte, _)| **byte != 0);
        numbered
            .flat_map(|(byte, index)| (0..8).filter(move |bit| byte >> bit & 1 != 0).map(move |bit| index * 8 + bit))
    })
}

/// Decompresses pages.
struct PageDecoder {
    page: Vec<u8>,
    zlib: Decompress,
    zstd: Decompressor<'static>,
    snappy: snap::raw::Decoder,
}

impl PageDecoder {
    fn new(page_size: usize) -> Result<PageDecoder> {
        Ok(PageDecoder {
            page: vec![0; page_size],
            zlib: Decompress::new(true),
            zstd: Decompressor::new()?,
            snappy: snap::raw::Decoder::new(),
        })
    }

    /// Returns the page of a descriptor: offset (8 bytes), size and flags (4 bytes each), and 8 bytes of flags of the
    /// kernel.
    fn decode<'a>(&'a mut self, file: &'a Contents, descriptor: &[u8]) -> Result<&'a [u8]> {
        let word = |at: usize| descriptor.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let offset = descriptor.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let (Some(offset), Some(size), Some(flags)) = (offset, word(8), word(12)) else {
            return Err("its descriptor is cut off".into());
        };
        let bytes = file.get(offset, size.into()).ok_or("it is cut off")?;
        // A page that does not become smaller is stored as it is. Without the check, each descriptor could lead to all of
        // the file.
        if bytes.len() > self.page.len() {
            return Err("it is damaged: it takes more bytes than a page".into());
        }
        let len = match flags & (ZLIB | LZO | SNAPPY | ZSTD) {
            0 if bytes.len() == self.page.len() => return Ok(bytes),
            0 => bytes.len(),
            ZLIB => self.inflate(bytes)?,
            LZO => lzokay::decompress::decompress(bytes, &mut self.page).map_err(|e| damaged(&e))?,
            SNAPPY => {
                let len = snap::raw::decompress_len(bytes).map_err(|e| damaged(&e))?;
                let to = self.page.get_mut(..len).ok_or("it is damaged: it is larger than a page")?;
                self.snappy.decompress(bytes, to).map_err(|e| damaged(&e))?
            }
            ZSTD => self.zstd.decompress_to_buffer(bytes, &mut self.page[..]).map_err(|e| damaged(&e))?,
            _ => return Err("it is compressed in an unknown way".into()),
        };
        if len != self.page.len() {
            return Err(format!("it is damaged: it has {len} bytes").into());
        }
        Ok(&self.page)
    }

    fn inflate(&mut self, bytes: &[u8]) -> Result<usize> {
        self.zlib.reset(true);
        let status = self.zlib.decompress(bytes, &mut self.page, FlushDecompress::Finish).map_err(|e| damaged(&e))?;
        if status != Status::StreamEnd {
            return Err("it is damaged: it does not end".into());
        }
        Ok(usize::try_from(self.zlib.total_out())?)
    }
}

fn damaged(error: &dyn std::fmt::Display) -> String {
    format!("it is damaged: {error}")
}
