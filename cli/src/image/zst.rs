//! Decompressing dumps that are compressed with zstd, into a file without a name.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};

use zstd::stream::read::Decoder;
use zstd::zstd_safe;

use super::FRAME;
use super::contents::Contents;
use super::unpacked::Unpacked;
use crate::Result;
use crate::progress::Progress;

const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// Frames that hold something else, such as a table of contents, begin with one of 16 bytes and these; lz4 has them too
/// (RFC 8878, 3.1.2).
const SKIPPABLE: [u8; 3] = [0x2A, 0x4D, 0x18];

/// The error of zstd for a frame with a window of more than 128 MiB.
const TOO_MUCH_MEMORY: &str = "Frame requires too much memory for decoding";

/// Bytes that are decompressed at a time.
const CHUNK: usize = 1 << 20;

/// Returns whether a file that begins with these bytes is compressed.
pub(super) fn is_compressed(head: &[u8]) -> bool {
    let is_skippable = matches!(head, [0x50..=0x5F, rest @ ..] if rest.starts_with(&SKIPPABLE));
    head.starts_with(&MAGIC) || is_skippable
}

/// Decompresses a file into another one, which disappears when it is closed.
pub(super) fn decompress(file: &File) -> Result<File> {
    let mut to = Unpacked::create()?;
    let progress = Progress::new("decompressing", file.metadata()?.len() / FRAME)?;
    let mut decoder = Decoder::new(file)?;
    let mut chunk = Vec::new();
    loop {
        chunk.clear();
        let read = decoder.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        if let Err(e) = read {
            return Err(format!("it is compressed with zstd, and {}", why_not(file, &e)?).into());
        }
        if chunk.is_empty() {
            break;
        }
        to.append(&chunk)?;
        let mut from: &File = decoder.get_ref().get_ref();
        progress.set(from.stream_position()? / FRAME);
    }
    if to.len == 0 {
        return Err("it is compressed with zstd, and there is nothing in it".into());
    }
    to.finish()
}

/// Says why a compressed file cannot be decompressed.
fn why_not(file: &File, error: &io::Error) -> Result<String> {
    if let Some(end) = end_before_others(file)? {
        return Ok(format!("other bytes follow it at byte {end}: cut them off first (head -c {end})"));
    }
    Ok(match error.kind() {
        ErrorKind::UnexpectedEof => "cut off".to_owned(),
        // The usual limit of zstd. With a higher one, a small file could claim gigabytes.
        _ if error.to_string() == TOO_MUCH_MEMORY => {
            "takes more than 128 MiB of memory to decompress: decompress it first (zstd -d --long=31)".to_owned()
        }
        _ => format!("cannot be decompressed: {error}"),
    })
}

/// Returns where the frames of zstd end, if at least one is whole and something else follows them.
fn end_before_others(file: &File) -> Result<Option<u64>> {
    let file = Contents::new(file)?;
    let mut rest = file.bytes();
    let mut is_any = false;
    while let Ok(len @ 1..) = zstd_safe::find_frame_compressed_size(rest) {
        is_any |= rest.starts_with(&MAGIC);
        rest = rest.get(len..).unwrap_or_default();
    }
    // A frame that is cut off may be shorter than its magic number.
    let may_be_frame = is_compressed(rest) || MAGIC.starts_with(rest);
    Ok((is_any && !may_be_frame).then(|| file.len() - rest.len() as u64))
}
