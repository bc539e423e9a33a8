//! Dumps in formats that are unpacked before they are read, made by hand.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use xenmap::FRAME_SIZE;

use crate::dumps::{Page, Pages, words};

const FRAME: u64 = FRAME_SIZE as u64;

/// Returns a compressed dump of avml. Like avml's, its parts are consecutive frames.
pub(crate) fn avml(pages: &Pages) -> Vec<u8> {
    let mut dump = Vec::new();
    for (pfn, page) in pages {
        dump.extend(b"AVML\x02\0\0\0");
        dump.extend(words(&[pfn * FRAME, pfn * FRAME + FRAME - 1, 0]));
        let mut stream = snap::write::FrameEncoder::new(Vec::new());
        stream.write_all(page).unwrap();
        let stream = stream.into_inner().unwrap();
        dump.extend(&stream);
        dump.extend((stream.len() as u64).to_le_bytes());
    }
    dump
}

/// A way to compress a page, and its flag in a kdump.
pub(crate) type Method = (u32, fn(&[u8]) -> Vec<u8>);

pub(crate) const METHODS: [(&str, Method); 5] = [
    ("none", (0, <[u8]>::to_vec)),
    ("zlib", (1, zlib)),
    ("lzo", (2, |page| lzokay::compress::compress(page).unwrap())),
    ("snappy", (4, |page| snap::raw::Encoder::new().compress_vec(page).unwrap())),
    ("zstd", (32, |page| zstd::bulk::compress(page, 0).unwrap())),
];

fn zlib(page: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(page).unwrap();
    encoder.finish().unwrap()
}

/// What a kdump has besides pages.
#[derive(Default)]
pub(crate) struct Kdump<'a> {
    pub(crate) notes: &'a [u8],
    pub(crate) vmcoreinfo: &'a [u8],
}

/// Returns a kdump-compressed dump of a 64-bit machine with frames below 32,768. Pages of zeros share a descriptor's
/// bytes.
pub(crate) fn kdump(pages: &Pages, (flag, compress): Method, Kdump { notes, vmcoreinfo }: &Kdump<'_>) -> Vec<u8> {
    const BLOCKS_BEFORE_PAGES: u64 = 4;
    let mut header = b"KDUMP   \x06\0\0\0".to_vec();
    for name in ["Linux", "host", "6.1.0", "#1 SMP", "x86_64", "(none)"] {
        header.extend(name.as_bytes());
        header.resize(header.len() - name.len() + 65, 0);
    }
    header.resize(428, 0);
    // Block size, blocks of the sub-header and of the bitmaps, the number of frames.
    header.extend([4096, 1, 2, 32_768].map(u32::to_le_bytes).concat());

    let mut descriptors = Vec::new();
    let mut data: Vec<u8> = Vec::new();
    let data_at = BLOCKS_BEFORE_PAGES * FRAME + 24 * pages.len() as u64;
    let mut zeros = None;
    for page in pages.values() {
        let is_zero = *page == [0; FRAME_SIZE];
        let place = zeros.filter(|_| is_zero).unwrap_or_else(|| {
            let bytes = compress(page);
            let place = (data_at + data.len() as u64, bytes.len() as u64);
            data.extend(bytes);
            place
        });
        if is_zero {
            zeros = Some(place);
        }
        descriptors.extend(words(&[place.0, place.1 | u64::from(flag) << 32, 0]));
    }

    let notes_at = data_at + data.len() as u64;
    let vmcoreinfo_at = notes_at + notes.len() as u64;
    let [notes_len, vmcoreinfo_len] = [notes, vmcoreinfo].map(|bytes| bytes.len() as u64);
    let mut sub_header = vec![0; 32];
    sub_header.extend(words(&[vmcoreinfo_at, vmcoreinfo_len, notes_at, notes_len]));

    let mut bitmap: Page = [0; FRAME_SIZE];
    for pfn in pages.keys() {
        bitmap[usize::try_from(pfn / 8).unwrap()] |= 1 << (pfn % 8);
    }
    let mut dump = Vec::new();
    for block in [&header[..], &sub_header, &bitmap, &bitmap] {
        dump.extend(block);
        dump.resize(dump.len().next_multiple_of(FRAME_SIZE), 0);
    }
    dump.extend([&descriptors[..], &data, notes, vmcoreinfo].concat());
    dump
}

/// Returns a file as makedumpfile writes it to a pipe: in pieces, of which the second comes first.
pub(crate) fn flattened(file: &[u8]) -> Vec<u8> {
    let (first, second) = file.split_at(file.len() / 2);
    flattened_pieces(&[(first.len() as u64, second), (0, first)])
}

/// Returns a flattened dump of pieces, each with its offset.
pub(crate) fn flattened_pieces(pieces: &[(u64, &[u8])]) -> Vec<u8> {
    let mut dump = b"makedumpfile\0\0\0\0".to_vec();
    dump.extend([1_u64, 1].map(u64::to_be_bytes).concat());
    dump.resize(4096, 0);
    for (offset, piece) in pieces {
        dump.extend([*offset, piece.len() as u64].map(u64::to_be_bytes).concat());
        dump.extend(*piece);
    }
    dump.extend([0xFF; 16]);
    dump
}
