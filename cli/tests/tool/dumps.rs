//! Dumps of each format, made by hand.

use std::collections::BTreeMap;
use std::ops::Range;

use xenmap::FRAME_SIZE;

pub(crate) type Page = [u8; FRAME_SIZE];
/// Pages by frame.
pub(crate) type Pages = BTreeMap<u64, Page>;

/// Makes a dump of some pages.
pub(crate) type Format = fn(&Pages) -> Vec<u8>;

pub(crate) const FORMATS: [(&str, Format); 5] =
    [("raw", raw), ("lime", lime), ("elf", elf), ("xen-pfn", xen_pfn), ("xen-p2m", xen_p2m)];

const FRAME: u64 = FRAME_SIZE as u64;
const ELF_HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

pub(crate) fn page(byte: u8) -> Page {
    [byte; FRAME_SIZE]
}

/// Returns all frames up to the last one, with zeros for missing ones.
pub(crate) fn raw(pages: &Pages) -> Vec<u8> {
    let end = pages.last_key_value().map_or(0, |(pfn, _)| pfn + 1);
    (0..end).flat_map(|pfn| pages.get(&pfn).copied().unwrap_or(page(0))).collect()
}

pub(crate) fn lime(pages: &Pages) -> Vec<u8> {
    let parts: Vec<(u64, Vec<u8>)> =
        runs(pages).into_iter().map(|pfns| (pfns.start * FRAME, pfns.flat_map(|pfn| pages[&pfn]).collect())).collect();
    lime_of_parts(&parts)
}

/// Returns a lime dump of bytes at any addresses.
pub(crate) fn lime_of_parts<T: AsRef<[u8]>>(parts: &[(u64, T)]) -> Vec<u8> {
    let mut dump = Vec::new();
    for (address, bytes) in parts {
        let bytes = bytes.as_ref();
        dump.extend_from_slice(b"EMiL\x01\0\0\0");
        dump.extend(words(&[*address, address + bytes.len() as u64 - 1, 0]));
        dump.extend(bytes);
    }
    dump
}

pub(crate) fn elf(pages: &Pages) -> Vec<u8> {
    core_of(&loads(pages).collect::<Vec<_>>(), &pages.values().flatten().copied().collect::<Vec<u8>>())
}

/// Returns the segments of pages that follow each other in the body.
fn loads(pages: &Pages) -> impl Iterator<Item = (u32, Segment)> {
    let mut offset = 0;
    runs(pages).into_iter().map(move |pfns| {
        let len = (pfns.end - pfns.start) * FRAME;
        offset += len;
        (PT_LOAD, Segment::whole(offset - len, pfns.start * FRAME, len))
    })
}

/// The fields of a program header: an offset in the body, a physical address, sizes in the file and in memory.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) in_file: u64,
    pub(crate) in_memory: u64,
}

impl Segment {
    /// Returns a segment all of which is in the file.
    pub(crate) fn whole(offset: u64, address: u64, len: u64) -> Segment {
        Segment { offset, address, in_file: len, in_memory: len }
    }
}

/// Returns a core of some pages that has notes after them.
pub(crate) fn elf_with_notes(pages: &Pages, notes: &[u8]) -> Vec<u8> {
    let body: Vec<u8> = pages.values().flatten().copied().chain(notes.iter().copied()).collect();
    let notes = Segment::whole((pages.len() * FRAME_SIZE) as u64, 0, notes.len() as u64);
    core_of(&[(PT_NOTE, notes)].into_iter().chain(loads(pages)).collect::<Vec<_>>(), &body)
}

/// Returns a note, with a name that ends with a NUL.
pub(crate) fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
    let mut note = [len(name), len(content), kind].map(u32::to_le_bytes).concat();
    for bytes in [name, content] {
        note.extend(bytes);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// Returns a core of memory: header, program headers, body, with nothing between them.
pub(crate) fn elf_of_segments(segments: &[Segment], body: &[u8]) -> Vec<u8> {
    core_of(&segments.iter().map(|segment| (PT_LOAD, *segment)).collect::<Vec<_>>(), body)
}

/// Returns a core of segments of these types.
fn core_of(segments: &[(u32, Segment)], body: &[u8]) -> Vec<u8> {
    let count = segments.len() as u64;
    let body_at = ELF_HEADER + count * PROGRAM_HEADER;
    let mut dump = elf_header(ELF_HEADER, count, 0, 0);
    for (kind, segment) in segments {
        // Readable; offset, virtual and physical address, sizes in the file and in memory, alignment.
        dump.extend([*kind, 4].map(u32::to_le_bytes).concat());
        dump.extend(words(&[body_at + segment.offset, 0, segment.address, segment.in_file, segment.in_memory, FRAME]));
    }
    dump.extend(body);
    dump
}

/// Returns a core as `xl dump-core` writes it for an HVM or PVH guest.
pub(crate) fn xen_pfn(pages: &Pages) -> Vec<u8> {
    xen(pages, ".xen_pfn", &words(&pages.keys().copied().collect::<Vec<u64>>()), 8)
}

/// Returns a core as `xl dump-core` writes it for a PV guest.
pub(crate) fn xen_p2m(pages: &Pages) -> Vec<u8> {
    let table: Vec<u64> = pages.keys().flat_map(|pfn| [*pfn, 0x1000 + pfn]).collect();
    xen(pages, ".xen_p2m", &words(&table), 16)
}

/// Returns a core with pages and a table of their frames.
pub(crate) fn xen(pages: &Pages, table_name: &str, table: &[u8], entry: u64) -> Vec<u8> {
    xen_with(pages, &[(table_name, table, entry)])
}

/// Returns a core: header, section headers, pages, other sections (name, content, size of an entry), names.
pub(crate) fn xen_with(pages: &Pages, others: &[(&str, &[u8], u64)]) -> Vec<u8> {
    const SECTION_HEADER: u64 = 64;
    let pages_at = ELF_HEADER + (3 + others.len() as u64) * SECTION_HEADER;
    let pages_len = pages.len() as u64 * FRAME;
    let mut names = String::from("\0.shstrtab\0.xen_pages\0");
    // Name and type; offset, size, size of an entry.
    let mut sections = vec![(11, 1, pages_at, pages_len, FRAME)];
    let mut at = pages_at + pages_len;
    for (name, content, entry) in others {
        sections.push((u32::try_from(names.len()).unwrap(), 1, at, content.len() as u64, *entry));
        names += name;
        names += "\0";
        at += content.len() as u64;
    }
    sections.splice(0..0, [(0, 0, 0, 0, 0), (1, 3, at, names.len() as u64, 0)]);
    let mut dump = elf_header(0, 0, ELF_HEADER, sections.len() as u64);
    for (name, kind, offset, len, entry) in sections {
        dump.extend([name, kind].map(u32::to_le_bytes).concat());
        // Flags, address, offset, size; link and info; alignment, size of an entry.
        dump.extend(words(&[0, 0, offset, len, 0, 0, entry]));
    }
    dump.extend(pages.values().flatten());
    dump.extend(others.iter().flat_map(|(_, content, _)| *content));
    dump.extend(names.as_bytes());
    dump
}

/// Returns the header of a 64-bit core, given the offsets and numbers of its program headers and section headers.
pub(crate) fn elf_header(segments_at: u64, segments: u64, sections_at: u64, sections: u64) -> Vec<u8> {
    let half = |number: u64| u16::try_from(number).map(u16::to_le_bytes);
    let halves = |numbers: &[u64]| -> Vec<u8> { numbers.iter().flat_map(|&n| half(n).unwrap_or_default()).collect() };
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_CORE, x86-64; version 1; no entry.
    header.extend(halves(&[4, 62, 1, 0]));
    header.extend(words(&[0, segments_at, sections_at]));
    header.extend(halves(&[0, 0, ELF_HEADER, 56, segments, 64, sections, u64::from(sections > 0)]));
    header
}

/// Returns ranges of consecutive frames.
fn runs(pages: &Pages) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &pfn in pages.keys() {
        match runs.last_mut() {
            Some(last) if last.end == pfn => last.end += 1,
            _ => runs.push(pfn..pfn + 1),
        }
    }
    runs
}

pub(crate) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
