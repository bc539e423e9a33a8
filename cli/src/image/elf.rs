//! ELF cores: one of `xl dump-core` has its pages in a section, any other has them in segments.

use std::iter::once;
use std::ops::Range;

use object::elf::{ET_CORE, FileHeader32, FileHeader64, NT_PRPSINFO, PT_LOAD, PT_NOTE, SHN_UNDEF};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader};
use object::{Endian, Endianness};

use super::FRAME;
use super::contents::Contents;
use super::machine::{self, Architecture, Machine, P2m};
use super::runs::{Run, Source};
use crate::Result;

pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

/// Marks an unused entry of xl's table of frames (libxc's `XC_CORE_INVALID_PFN`).
const NO_FRAME: u64 = u64::MAX;

/// What a core is, what it claims to have of RAM, and what it says of the machine.
type Core = (&'static str, Vec<Run>, Machine);

pub(super) fn read(file: &Contents) -> Result<Core> {
    match file.bytes().get(4) {
        Some(1) => core::<FileHeader32<Endianness>>(file),
        Some(2) => core::<FileHeader64<Endianness>>(file),
        _ => Err("it is a broken elf file: its class is neither 32-bit nor 64-bit".into()),
    }
}

fn broken(error: object::Error) -> String {
    format!("it is a broken elf file: {error}")
}

fn core<Elf: FileHeader<Endian = Endianness>>(file: &Contents) -> Result<Core> {
    let header = Elf::parse(file.bytes()).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    if header.e_type(endian) != ET_CORE {
        return Err("it is an elf file, but not a core".into());
    }
    let mut machine = Machine { architecture: Architecture::of_elf(header.e_machine(endian)), ..Machine::default() };
    let sections = Sections::new(header, endian, file)?;
    if let Some(pages) = sections.find(".xen_pages")? {
        let runs = xen(&sections, pages, file, &mut machine)?;
        return Ok(("xen", runs, machine));
    }
    let runs = segments(header, endian, file, &mut machine)?;
    if runs.is_empty() {
        // xl writes the names of its sections last.
        return Err("it is a core without memory; if it comes from xl dump-core, it is cut off".into());
    }
    Ok(("elf", runs, machine))
}

fn segments<Elf: FileHeader<Endian = Endianness>>(
    header: &Elf,
    endian: Endianness,
    file: &Contents,
    machine: &mut Machine,
) -> Result<Vec<Run>> {
    let headers = header.program_headers(endian, file.bytes()).map_err(broken)?;
    let table_start: u64 = header.e_phoff(endian).into();
    let size = size_of::<Elf::ProgramHeader>() as u64;
    let table = table_start..table_start + headers.len() as u64 * size;
    file.prefetch(table.clone());
    let mut runs = Vec::new();
    let mut origin = Origin::new(header.is_type_64());
    let mut next = 0;
    // Headers in a hole of the file are empty, however many there are.
    for data in file.data_in(table) {
        let first = usize::try_from((data.start - table_start) / size)?.max(next);
        next = usize::try_from((data.end - table_start).div_ceil(size))?;
        for segment in &headers[first..next] {
            origin.add::<Elf>(segment, endian)?;
            if segment.p_type(endian) == PT_LOAD {
                runs.extend(load::<Elf>(segment, endian)?.into_iter().flatten());
            }
        }
    }
    let notes = origin.notes.clone().map(|place| machine::notes(file, place)).unwrap_or_default();
    origin.check::<Elf>(endian, notes)?;
    machine::add_notes::<Elf>(machine, notes, endian);
    Ok(runs)
}

/// Tells the core of a machine from that of a process, in which all physical addresses are 0.
struct Origin {
    /// The value that means no physical address in /proc/kcore.
    no_address: u64,
    /// Whether a segment has a physical address other than 0.
    has_physical: bool,
    first_virtual: Option<u64>,
    has_other_virtual: bool,
    /// Where the first notes are in the file.
    notes: Option<Range<u64>>,
}

impl Origin {
    fn new(is_64: bool) -> Origin {
        let no_address = if is_64 { u64::MAX } else { u32::MAX.into() };
        Origin { no_address, has_physical: false, first_virtual: None, has_other_virtual: false, notes: None }
    }

    fn add<Elf: FileHeader>(&mut self, segment: &Elf::ProgramHeader, endian: Elf::Endian) -> Result<()> {
        let (physical, virt): (u64, u64) = (segment.p_paddr(endian).into(), segment.p_vaddr(endian).into());
        let (offset, in_file, in_memory): (u64, u64, u64) =
            (segment.p_offset(endian).into(), segment.p_filesz(endian).into(), segment.p_memsz(endian).into());
        match segment.p_type(endian) {
            PT_LOAD if in_memory > 0 => {
                if physical == self.no_address {
                    let line = "its segments have no physical addresses; if it is a copy of /proc/kcore, dump the guest \
                                instead";
                    return Err(line.into());
                }
                self.has_physical |= physical != 0;
                self.has_other_virtual |= *self.first_virtual.get_or_insert(virt) != virt;
            }
            PT_NOTE if self.notes.is_none() => self.notes = Some(offset..offset.saturating_add(in_file)),
            _ => {}
        }
        Ok(())
    }

    fn check<Elf: FileHeader>(&self, endian: Elf::Endian, notes: &[u8]) -> Result<()> {
        if self.has_physical || self.first_virtual.is_none() {
            return Ok(());
        }
        if self.has_other_virtual || has_note_of_process::<Elf>(endian, notes) {
            return Err("it is the core of a process, not of a machine".into());
        }
        Ok(())
    }
}

/// Returns whether there is a note that only cores of processes have. `NT_PRSTATUS` is not one: QEMU and the kernel
/// write it for a machine, too.
fn has_note_of_process<Elf: FileHeader>(endian: Elf::Endian, notes: &[u8]) -> bool {
    let Ok(mut notes) = NoteIterator::<Elf>::new(endian, Elf::Word::default(), notes) else { return false };
    // Notes after a broken one are not read.
    while let Ok(Some(note)) = notes.next() {
        if note.n_type(endian) == NT_PRPSINFO && [&b"CORE"[..], b"FreeBSD"].contains(&note.name()) {
            return true;
        }
    }
    false
}

/// Returns the bytes of a segment that are in the file, and the zeros after them.
fn load<Elf: FileHeader>(segment: &Elf::ProgramHeader, endian: Elf::Endian) -> Result<[Option<Run>; 2]> {
    let (address, in_file, in_memory): (u64, u64, u64) =
        (segment.p_paddr(endian).into(), segment.p_filesz(endian).into(), segment.p_memsz(endian).into());
    if in_memory == 0 {
        return Ok([None, None]);
    }
    let zeros = in_memory.checked_sub(in_file).ok_or("a segment has more bytes in the file than in memory")?;
    let zeros_at = address.checked_add(in_file).ok_or("a segment reaches past the last address")?;
    Ok([
        Run::new(address, in_file, Source::File(segment.p_offset(endian).into()))?,
        Run::new(zeros_at, zeros, Source::Zeros)?,
    ])
}

/// The sections of a core, by name.
struct Sections<'a, Elf: FileHeader> {
    endian: Elf::Endian,
    headers: &'a [Elf::SectionHeader],
    /// The names, each followed by a NUL.
    names: &'a [u8],
}

impl<'a, Elf: FileHeader<Endian = Endianness>> Sections<'a, Elf> {
    fn new(header: &'a Elf, endian: Endianness, file: &'a Contents) -> Result<Sections<'a, Elf>> {
        // A core with more sections than the header can count is not xl's, and may claim any number of them.
        if header.e_shnum(endian) == 0 || header.e_shstrndx(endian) == SHN_UNDEF {
            return Ok(Sections { endian, headers: &[], names: &[] });
        }
        let headers = header.section_headers(endian, file.bytes()).map_err(broken)?;
        let of_names = header.section_strings_index(endian, file.bytes()).map_err(broken)?;
        let of_names = headers.get(of_names.0).ok_or("it is a broken elf file: its sections have no names")?;
        let names = of_names.data(endian, file.bytes()).unwrap_or_default();
        Ok(Sections { endian, headers, names })
    }

    /// Returns where the section of this name is in the file, if there is one.
    fn find(&self, name: &str) -> Result<Option<Range<u64>>> {
        let is_it = |section: &&Elf::SectionHeader| {
            let names = usize::try_from(section.sh_name(self.endian)).ok().and_then(|start| self.names.get(start..));
            let rest = names.and_then(|names| names.strip_prefix(name.as_bytes()));
            rest.is_some_and(|rest| rest.first() == Some(&0))
        };
        let Some(section) = self.headers.iter().find(is_it) else { return Ok(None) };
        let (start, len) = section.file_range(self.endian).ok_or_else(|| format!("its section {name} is empty"))?;
        let end = start.checked_add(len).ok_or_else(|| cut_off(name))?;
        Ok(Some(start..end))
    }
}

fn cut_off(section: &str) -> String {
    format!("it is cut off: its section {section} is not whole")
}

/// Reads a core of `xl dump-core` (Xen's docs/misc/dump-core-format.txt): a section of pages, and one with their frame
/// numbers. That is `.xen_pfn` with a word for each page, or for a PV guest `.xen_p2m` with two, the pfn and the machine
/// frame.
fn xen<Elf: FileHeader<Endian = Endianness>>(
    sections: &Sections<'_, Elf>,
    pages: Range<u64>,
    file: &Contents,
    machine: &mut Machine,
) -> Result<Vec<Run>> {
    let table = |name: &str, words_each: u64| -> Result<Option<&[[u8; 8]]>> {
        let Some(section) = sections.find(name)? else { return Ok(None) };
        let bytes = file.get(section.start, section.end - section.start).ok_or_else(|| cut_off(name))?;
        check_holes(section.clone(), 8 * words_each, file)?;
        file.prefetch(section);
        Ok(Some(bytes.as_chunks().0))
    };
    if pages.end > file.len() {
        return Err(cut_off(".xen_pages").into());
    }
    let (words, words_each) = match table(".xen_pfn", 1)? {
        Some(words) => (words, 1),
        None => (table(".xen_p2m", 2)?.ok_or("it has pages, but no table of their frames")?, 2),
    };
    if (words.len() / words_each) as u64 > (pages.end - pages.start) / FRAME {
        return Err("it is cut off: it lists more frames than it has pages".into());
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut offset = pages.start;
    for entry in words.chunks_exact(words_each) {
        let here = offset;
        offset += FRAME;
        if entry.iter().any(|word| *word == NO_FRAME.to_ne_bytes()) {
            continue;
        }
        let pfn = sections.endian.read_u64(entry[0]);
        let run = Run::frame(pfn, here)?;
        match runs.last_mut() {
            Some(last) if last.is_continued_by(&run) => last.addresses.end = run.addresses.end,
            _ => runs.push(run),
        }
    }
    if words_each == 2 {
        let table = sections.find(".xen_p2m")?.unwrap_or_default();
        machine.p2m = Some(P2m::new(table, sections.endian));
    }
    if machine.architecture == Some(Architecture::X86_64) {
        let section = sections.find(".xen_prstatus").ok().flatten();
        machine.vcpus = section.map(|place| machine::registers_of_xen(machine::notes(file, place))).unwrap_or_default();
    }
    Ok(runs)
}

/// Refuses a table of frames with more than one entry in a hole of the file: it may be of any size, and lists frame 0
/// again and again. A single entry for frame 0 may well be in a block of zeros that was left out.
fn check_holes(table: Range<u64>, entry: u64, file: &Contents) -> Result<()> {
    let mut hole_start = table.start;
    for data in file.data_in(table.clone()).chain(once(table.end..table.end)) {
        let [first, end] = [(hole_start - table.start).div_ceil(entry), (data.start - table.start) / entry];
        if end.saturating_sub(first) > 1 {
            return Err("a part of its table of frames is a hole of the file".into());
        }
        hole_start = data.end;
    }
    Ok(())
}
