//! The format of `xl dump-core`: an ELF file with sections (Xen's docs/misc/dump-core-format.txt).
//!
//! The shared-info page is not read: there is no `.xen_shared_info`.

use std::ops::Range;

use object::{elf, pod};
use xenmap::{FRAME_SIZE, ForeignMemory, Guest};

use super::copy::Tally;
use super::elf::{HEADER, SECTION, file_header, note, section_header};
use super::layout::{FRAME, Layout, in_a_row};
use super::sink::Sink;
use crate::Result;
use crate::args::Format;
use crate::ram::Ram;
use crate::registers::Registers;

// xen/include/public/elfnote.h; the contents of the notes and their magic numbers are in tools/libs/ctrl/xc_core.h.
const NOTE_NONE: u32 = 0x200_0000;
const NOTE_HEADER: u32 = 0x200_0001;
const NOTE_XEN_VERSION: u32 = 0x200_0002;
const NOTE_FORMAT_VERSION: u32 = 0x200_0003;
const MAGIC_PV: u64 = 0xF00F_EBED;
const MAGIC_HVM: u64 = 0xF00F_EBEE;

/// The number of a lost frame.
const INVALID: u64 = u64::MAX;

/// The number of frame numbers that are written at a time.
const CHUNK: u64 = 4096;

pub(super) fn layout(ram: &Ram, ranges: &[Range<u64>]) -> Result<Layout> {
    let frames: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let contexts: Vec<u8> = ram.registers().iter().flat_map(Registers::to_xen).collect();
    let notes = notes(ram, frames, contexts.len() / Registers::XEN)?;
    let (table, entry) = if ram.is_pv() { (".xen_p2m", 16) } else { (".xen_pfn", 8) };
    // Must be in the order of the sections: volatility3 takes the n-th name for that of the n-th section.
    let names = ["", ".shstrtab", ".note.Xen", ".xen_prstatus", ".xen_pages", table];
    let names_start = HEADER + names.len() as u64 * SECTION;
    let names_end = names_start + names.map(|name| name.len() as u64 + 1).iter().sum::<u64>();
    let notes_start = names_end.next_multiple_of(8);
    let notes_end = notes_start + notes.len() as u64;
    let contexts_end = notes_end + contexts.len() as u64;
    let pages_start = contexts_end.next_multiple_of(FRAME);
    let (parts, pages_end) = in_a_row(ranges, pages_start, 0);
    let table_end = pages_end + frames * entry;

    let sections = [
        (elf::SHT_NULL, 0..0, 0),
        (elf::SHT_STRTAB, names_start..names_end, 0),
        (elf::SHT_NOTE, notes_start..notes_end, 0),
        (elf::SHT_PROGBITS, notes_end..contexts_end, Registers::XEN as u64),
        (elf::SHT_PROGBITS, pages_start..pages_end, FRAME),
        (elf::SHT_PROGBITS, pages_end..table_end, entry),
    ];
    let mut head = pod::bytes_of(&file_header(ram, u16::try_from(sections.len())?, 1)?).to_vec();
    let mut table_of_names = Vec::new();
    for (name, (kind, range, entry)) in names.iter().zip(sections) {
        let place = u32::try_from(table_of_names.len())?;
        head.extend_from_slice(pod::bytes_of(&section_header(place, kind, range, entry)));
        table_of_names.extend_from_slice(name.as_bytes());
        table_of_names.push(0);
    }
    head.extend_from_slice(&table_of_names);
    head.resize(head.len().next_multiple_of(8), 0);
    head.extend_from_slice(&notes);
    head.extend_from_slice(&contexts);
    Ok(Layout { format: Format::Xen, head, parts, late: pages_end, vcpus: Vec::new(), len: table_end })
}

fn notes(ram: &Ram, frames: u64, vcpus: usize) -> Result<Vec<u8>> {
    let magic = if ram.is_pv() { MAGIC_PV } else { MAGIC_HVM };
    let header: Vec<u8> = [magic, vcpus as u64, frames, FRAME].iter().flat_map(|word| word.to_le_bytes()).collect();
    Ok([
        note(b"Xen\0", NOTE_NONE, b""),
        note(b"Xen\0", NOTE_HEADER, &header),
        note(b"Xen\0", NOTE_XEN_VERSION, &version(ram)?),
        note(b"Xen\0", NOTE_FORMAT_VERSION, &1_u64.to_le_bytes()),
    ]
    .concat())
}

/// Returns a `struct xen_dumpcore_elfnote_xen_version_desc`; its fields about the build of Xen are empty, and for a dump all are.
fn version(ram: &Ram) -> Result<Vec<u8>> {
    let memory = ram.guest().map(Guest::memory);
    let (major, minor, extra) = match memory.map(ForeignMemory::xen_version).transpose()? {
        Some(version) => (version.major, version.minor, version.extra),
        None => Default::default(),
    };
    let capabilities = memory.map(ForeignMemory::xen_capabilities).transpose()?.unwrap_or_default();
    let mut note = [major.into(), minor.into()].map(u64::to_le_bytes).concat();
    // A string and its NUL in a field of `len` bytes.
    let mut field = |text: &str, len: usize| {
        let end = note.len() + len;
        note.extend(text.bytes().take(len - 1));
        note.resize(end, 0);
    };
    field(&extra, 16);
    field("", 64 + 16 + 32 + 32); // compile_info
    field(&capabilities, 1024);
    field("", 64); // changeset
    field("", 8); // platform_parameters.virt_start
    note.extend_from_slice(&(FRAME_SIZE as u64).to_le_bytes());
    Ok(note)
}

/// Writes the frame number of each page, and for a PV guest also the machine frame number.
pub(super) fn write_frame_numbers(ram: &Ram, layout: &Layout, tally: &Tally, sink: &mut dyn Sink) -> Result<()> {
    let mut offset = layout.late;
    for part in &layout.parts {
        let mut first = part.pfns.start;
        while first < part.pfns.end {
            let pfns = first..part.pfns.end.min(first + CHUNK);
            let mut table = Vec::new();
            let entry = |pfn: u64| if tally.is_lost(pfn) { INVALID } else { pfn };
            if ram.is_pv() {
                for (pfn, gfn) in pfns.clone().zip(ram.gfns(pfns.clone())?) {
                    let pfn = entry(pfn);
                    let mfn = gfn.filter(|_| pfn != INVALID).map_or(INVALID, xenmap::Gfn::get);
                    table.extend([pfn, mfn].map(u64::to_le_bytes).concat());
                }
            } else {
                table.extend(pfns.clone().flat_map(|pfn| entry(pfn).to_le_bytes()));
            }
            sink.bytes(offset, &table)?;
            offset += table.len() as u64;
            first = pfns.end;
        }
    }
    Ok(())
}
