//! Dumps, of every format that this tool writes and `xl dump-core`, to be read.
//!
//! A dump may come from anywhere, so nothing that it says of itself is believed without a check. It must not be
//! changed while it is read: it is mapped, and a file that is cut off then is a SIGBUS.

#![expect(unsafe_code, reason = "maps a file")]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use object::elf::{ET_CORE, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable};
use object::{Endian, Endianness};
use xenmap::{FRAME_SIZE, Gfn};

use crate::Result;

pub(crate) type Page = [u8; FRAME_SIZE];
pub(crate) const ZEROS: Page = [0; FRAME_SIZE];

const FRAME: u64 = FRAME_SIZE as u64;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// What marks an entry of xl's table of frames that stands for nothing (libxc's `XC_CORE_INVALID_PFN`).
const NO_FRAME: u64 = u64::MAX;

type Elf = FileHeader64<Endianness>;

pub(crate) struct Image {
    file: Mmap,
    /// In ascending order, without overlap.
    runs: Vec<Run>,
    /// Whether a page that is missing may be one of zeros.
    pub(crate) hides_zeros: bool,
}

/// Consecutive frames, at least one, and where in the file their pages are; frames of zeros are nowhere.
struct Run {
    pfns: Range<u64>,
    offset: Option<usize>,
}

/// What there is of some frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Pages,
    Zeros,
}

impl Image {
    pub(crate) fn open(path: &Path) -> Result<Image> {
        Image::read(path).map_err(|e| format!("cannot use {} as a dump: {e}", path.display()).into())
    }

    fn read(path: &Path) -> Result<Image> {
        // Looked at before it is opened: opening a pipe would wait for a writer.
        if !path.metadata()?.is_file() {
            return Err("not a regular file".into());
        }
        let file = File::open(path)?;
        // SAFETY: nobody changes the file, as the person is asked to see to.
        let map = unsafe { Mmap::map(&file) }?;
        let bytes: &[u8] = &map;
        let (runs, hides_zeros) = if bytes.starts_with(b"\x7fELF") {
            (elf(bytes)?, false)
        } else if bytes.starts_with(&LIME_MAGIC) {
            (lime(bytes)?, false)
        } else if bytes.starts_with(&ZSTD_MAGIC) {
            return Err("it is compressed: decompress it first (zstd -d)".into());
        } else {
            (raw(&file, bytes.len())?, true)
        };
        Ok(Image { runs: in_order(runs, bytes.len())?, file: map, hides_zeros })
    }

    /// The frames that it has, in ascending order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Range<u64>, Part)> {
        self.runs.iter().map(|run| (run.pfns.clone(), if run.offset.is_some() { Part::Pages } else { Part::Zeros }))
    }

    /// The page of a frame, if the dump has it.
    pub(crate) fn page(&self, pfn: u64) -> Option<&Page> {
        let after = self.runs.partition_point(|run| run.pfns.end <= pfn);
        let run = self.runs.get(after).filter(|run| run.pfns.contains(&pfn))?;
        let Some(offset) = run.offset else { return Some(&ZEROS) };
        // `in_order` has found every page of the run within the file.
        let start = offset + usize::try_from((pfn - run.pfns.start) * FRAME).ok()?;
        self.file.get(start..)?.first_chunk()
    }
}

/// The runs by frame, neighbours joined, if they make sense: none twice, and all within a file of so many bytes.
fn in_order(mut runs: Vec<Run>, file_len: usize) -> Result<Vec<Run>> {
    runs.sort_by_key(|run| run.pfns.start);
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        let last = run.pfns.end - 1;
        if last > Gfn::MAX.get() {
            return Err(format!("it has a frame {last:#x}: the highest possible is {}", Gfn::MAX).into());
        }
        let len = (run.pfns.end - run.pfns.start) * FRAME;
        let end = |offset: usize| offset.checked_add(usize::try_from(len).ok()?);
        if run.offset.is_some_and(|offset| end(offset).is_none_or(|end| end > file_len)) {
            return Err("it is cut off: pages that it lists are not in it".into());
        }
        match joined.last_mut() {
            Some(last) if last.pfns.end > run.pfns.start => {
                return Err(format!("it has frame {:#x} twice", run.pfns.start).into());
            }
            Some(last) if last.continues_with(&run) => last.pfns.end = run.pfns.end,
            _ => joined.push(run),
        }
    }
    Ok(joined)
}

impl Run {
    fn continues_with(&self, next: &Run) -> bool {
        let end = |offset: usize| Some(offset + usize::try_from((self.pfns.end - self.pfns.start) * FRAME).ok()?);
        self.pfns.end == next.pfns.start && self.offset.map(end) == next.offset.map(Some)
    }

    /// `len` bytes from an address on, which must be whole frames.
    fn new(address: u64, len: u64, offset: Option<usize>) -> Result<Run> {
        if !address.is_multiple_of(FRAME) || !len.is_multiple_of(FRAME) {
            return Err(format!("its part at {address:#x} does not begin and end with a frame").into());
        }
        let start = address / FRAME;
        // Both are at most 2^52.
        Ok(Run { pfns: start..start + len / FRAME, offset })
    }
}

/// Raw: the page of frame n is n * 4096 bytes from the start; holes of a sparse file are zeros, or no RAM.
fn raw(file: &File, len: usize) -> Result<Vec<Run>> {
    if !len.is_multiple_of(FRAME_SIZE) {
        return Err("it is neither elf nor lime, and as a raw dump it is cut off: its last frame is not whole".into());
    }
    let mut runs = Vec::new();
    let mut next = 0;
    // Files of this length have been mapped, so offsets fit any integer here.
    while next < len {
        let data = match lseek(file, i64::try_from(next)?, Whence::SeekData) {
            Ok(data) => usize::try_from(data)?,
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let hole = usize::try_from(lseek(file, i64::try_from(data)?, Whence::SeekHole)?)?;
        let start = (data - data % FRAME_SIZE).max(next);
        next = hole.next_multiple_of(FRAME_SIZE).min(len);
        if start >= next {
            return Err("it is being changed".into());
        }
        runs.push(Run::new(start as u64, (next - start) as u64, Some(start))?);
    }
    Ok(runs)
}

const LIME_MAGIC: [u8; 4] = *b"EMiL";
const LIME_HEADER: usize = 32;

/// `LiME`: parts, each behind a header of magic, version (u32 each), first and last address (u64) and 8 unused bytes
/// (github.com/504ensicsLabs/LiME, doc/README.md).
fn lime(file: &[u8]) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < file.len() {
        let Some(header) = file[at..].first_chunk::<LIME_HEADER>() else { return Err("it is cut off".into()) };
        let word = |i: usize| header[i..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if header[..4] != LIME_MAGIC || header[4..8] != 1_u32.to_le_bytes() {
            return Err(format!("there is no lime header, version 1, at byte {at}").into());
        }
        let (first, last) = (word(8), word(16));
        let len =
            last.checked_sub(first).and_then(|more| more.checked_add(1)).ok_or("a part of it ends before it begins")?;
        at += LIME_HEADER;
        runs.push(Run::new(first, len, Some(at))?);
        let next = usize::try_from(len).ok().and_then(|len| at.checked_add(len));
        at = next.filter(|next| *next <= file.len()).ok_or("it is cut off")?;
    }
    Ok(runs)
}

/// An ELF core: that of `xl dump-core` has its pages in a section, any other in segments.
fn elf(file: &[u8]) -> Result<Vec<Run>> {
    let bad = |e: object::Error| format!("it is a broken elf file: {e}");
    if file.get(4) != Some(&2) {
        return Err("it is not a 64-bit elf file".into());
    }
    let header = Elf::parse(file).map_err(bad)?;
    let endian = header.endian().map_err(bad)?;
    if header.e_type(endian) != ET_CORE {
        return Err("it is an elf file, but no core".into());
    }
    let sections = header.sections(endian, file).map_err(bad)?;
    if let Some((_, pages)) = sections.section_by_name(endian, b".xen_pages") {
        let (start, len) = pages.file_range(endian).ok_or("its section of pages is not in the file")?;
        let (start, len) = (usize::try_from(start)?, usize::try_from(len)?);
        if start.checked_add(len).is_none_or(|end| end > file.len()) {
            return Err("it is cut off: its section of pages is not whole".into());
        }
        return xen(&sections, endian, file, (start, len));
    }
    let mut runs = Vec::new();
    for segment in header.program_headers(endian, file).map_err(bad)? {
        let (address, in_file, in_memory) =
            (segment.p_paddr(endian), segment.p_filesz(endian), segment.p_memsz(endian));
        if segment.p_type(endian) != PT_LOAD || in_memory == 0 {
            continue;
        }
        let zeros = in_memory.checked_sub(in_file).ok_or("a segment has more bytes in the file than in memory")?;
        let zeros_at = address.checked_add(in_file).ok_or("a segment reaches beyond the last address")?;
        if in_file > 0 {
            runs.push(Run::new(address, in_file, Some(usize::try_from(segment.p_offset(endian))?))?);
        }
        if zeros > 0 {
            runs.push(Run::new(zeros_at, zeros, None)?);
        }
    }
    if runs.is_empty() {
        // xl writes the names of its sections last.
        return Err("it is a core without memory; if it comes from xl dump-core, it is cut off".into());
    }
    Ok(runs)
}

/// The core of `xl dump-core` (xen's docs/misc/dump-core-format.txt): a section of pages, and one that says of which
/// frames they are: `.xen_pfn` with a word for each page, or `.xen_p2m` of a PV guest with two, the pfn and the machine
/// frame.
fn xen(sections: &SectionTable<'_, Elf>, endian: Endianness, file: &[u8], pages: (usize, usize)) -> Result<Vec<Run>> {
    let table = |name: &[u8]| -> Result<Option<&[[u8; 8]]>> {
        let Some((_, section)) = sections.section_by_name(endian, name) else { return Ok(None) };
        let bytes = section.data(endian, file).map_err(|_| "it is cut off: its table of frames is not whole")?;
        Ok(Some(bytes.as_chunks().0))
    };
    let (words, words_each) = match table(b".xen_pfn")? {
        Some(words) => (words, 1),
        None => (table(b".xen_p2m")?.ok_or("it has pages, but no table of their frames")?, 2),
    };
    let (start, len) = pages;
    if words.len() / words_each > len / FRAME_SIZE {
        return Err("it is cut off: it lists more frames than it has pages".into());
    }
    let mut runs: Vec<Run> = Vec::new();
    for (entry, offset) in words.chunks_exact(words_each).zip((start..).step_by(FRAME_SIZE)) {
        if entry.iter().any(|word| *word == NO_FRAME.to_ne_bytes()) {
            continue;
        }
        let pfn = endian.read_u64(entry[0]);
        let run = Run { pfns: pfn..pfn.saturating_add(1), offset: Some(offset) };
        match runs.last_mut() {
            Some(last) if last.continues_with(&run) => last.pfns.end = run.pfns.end,
            // A table may be a hole of the file, of any size.
            Some(last) if last.pfns.contains(&pfn) => {
                return Err(format!("it has frame {pfn:#x} twice").into());
            }
            _ => runs.push(run),
        }
    }
    Ok(runs)
}
