//! AVML, compressed: parts, each after a header as that of `LiME`, with another magic number and version 2. A part's bytes
//! are a stream of snappy frames, and the stream's length follows as 8 bytes (github.com/microsoft/avml).

use std::fs::File;
use std::io::{ErrorKind, Read};

use snap::read::FrameDecoder;

use super::FRAME;
use super::contents::Contents;
use super::runs::{Run, Source};
use super::unpacked::Unpacked;
use crate::Result;
use crate::progress::Progress;

pub(super) const MAGIC: [u8; 4] = *b"AVML";
const HEADER: u64 = 32;
/// Bytes that are decompressed at a time. A part of version 2 has no more.
const CHUNK: u64 = 16 << 20;

/// Decompresses a dump. Returns a file with its RAM, and what that has at which address.
pub(super) fn unpack(file: &Contents) -> Result<(File, Vec<Run>)> {
    let mut to = Unpacked::create()?;
    let progress = Progress::new("decompressing", file.len() / FRAME)?;
    let mut runs = Vec::new();
    let mut at = 0;
    while at < file.len() {
        let header = file.get(at, HEADER).ok_or("it is cut off")?;
        let word = |i: usize| header[i..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if header[..4] != MAGIC || header[4..8] != 2_u32.to_le_bytes() {
            return Err(format!("there is no avml header, version 2, at byte {at}").into());
        }
        let (first, last) = (word(8), word(16));
        let len = last.checked_sub(first).and_then(|more| more.checked_add(1));
        let len = len.ok_or("a part of it ends before it begins")?;
        runs.extend(Run::new(first, len, Source::File(to.len))?);
        at += HEADER;
        let stream_len = unpack_part(file.get(at, file.len() - at).unwrap_or_default(), len, &mut to)?;
        at += stream_len;
        let counted = file.get(at, 8).ok_or("it is cut off")?;
        if *counted != stream_len.to_le_bytes() {
            return Err(format!("it is damaged: the part before byte {at} has another length than it says").into());
        }
        at += 8;
        progress.set(at / FRAME);
    }
    Ok((to.finish()?, runs))
}

/// Appends the `len` bytes of a part; returns the length of its stream.
fn unpack_part(stream: &[u8], len: u64, to: &mut Unpacked) -> Result<u64> {
    let mut decoder = FrameDecoder::new(stream);
    let mut chunk = Vec::new();
    let mut left = len;
    while left > 0 {
        chunk.clear();
        let read = decoder.by_ref().take(left.min(CHUNK)).read_to_end(&mut chunk);
        read.map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => "it is cut off".to_owned(),
            _ => format!("it cannot be decompressed: {e}"),
        })?;
        if chunk.is_empty() {
            return Err("it is cut off".into());
        }
        to.append(&chunk)?;
        left -= chunk.len() as u64;
    }
    Ok((stream.len() - decoder.get_ref().len()) as u64)
}
