//! An ELF core of the guest's physical memory, as QEMU's `dump-guest-memory` and kdump write them.
//!
//! It consists of a header, program headers, notes, and the frames of each extent. Virtual addresses are the same as
//! physical ones, because gdb uses the virtual ones. `crash` expects the notes before the frames. In a stream the notes
//! come last, because their content is known only then.

use std::ops::Range;

use object::endian::{LittleEndian as LE, U16, U32, U64};
use object::{elf, pod};
use xenmap::FRAME_SIZE;

use super::copy::Tally;
use super::layout::{FRAME, Layout, in_a_row};
use super::report;
use crate::args::Format;
use crate::image::Architecture;
use crate::ram::Ram;
use crate::registers::Registers;
use crate::{Result, vmcoreinfo};

/// Bytes of the kernel's note and this tool's, which fills the rest.
const NOTES_LEN: usize = 16 << 10;

/// Bytes of a note's header and a short name.
const NOTE_HEADER: usize = 20;
/// Bytes of the notes of a vcpu.
const VCPU_NOTES: usize = 2 * NOTE_HEADER + Registers::PRSTATUS + Registers::QEMU;

/// With this many program headers or more, a section header has their number.
const MANY: usize = elf::PN_XNUM as usize;

/// Bytes of a file header, a section header and a program header.
pub(super) const HEADER: u64 = size_of::<elf::FileHeader64<LE>>() as u64;
pub(super) const SECTION: u64 = size_of::<elf::SectionHeader64<LE>>() as u64;
const SEGMENT: u64 = size_of::<elf::ProgramHeader64<LE>>() as u64;

pub(super) fn layout(ram: &Ram, ranges: &[Range<u64>], is_stream: bool) -> Result<Layout> {
    let vcpus = ram.registers();
    let count = ranges.len() + 1;
    let sections = u16::from(count >= MANY);
    let sections_end = HEADER + u64::from(sections) * SECTION;
    let head_end = sections_end + count as u64 * SEGMENT;
    let notes_len = (NOTES_LEN + vcpus.len() * VCPU_NOTES).next_multiple_of(FRAME_SIZE) as u64;

    let frames_start = if is_stream { head_end } else { head_end + notes_len }.next_multiple_of(FRAME);
    let (parts, frames_end) = in_a_row(ranges, frames_start, 0);
    let (late, len) = if is_stream { (frames_end, frames_end + notes_len) } else { (head_end, frames_end) };

    let mut header = file_header(ram, sections, 0)?;
    header.e_phoff = U64::new(LE, sections_end);
    header.e_phnum = U16::new(LE, u16::try_from(count.min(MANY))?);
    let mut head = pod::bytes_of(&header).to_vec();
    if sections != 0 {
        let mut section = section_header(0, elf::SHT_NULL, 0..0, 0);
        section.sh_info = U32::new(
            LE,
            count
                .try_into()
                .map_err(|_| "the guest's RAM is in too many pieces for an ELF file: give another --format")?,
        );
        head.extend_from_slice(pod::bytes_of(&section));
    }
    head.extend_from_slice(pod::bytes_of(&segment(elf::PT_NOTE, late, 0, notes_len)));
    for part in &parts {
        let (address, len) = (part.pfns.start * FRAME, part.frames() * FRAME);
        head.extend_from_slice(pod::bytes_of(&segment(elf::PT_LOAD, part.offset, address, len)));
    }
    Ok(Layout { format: Format::Elf, head, parts, late, vcpus, len })
}

/// Returns the header of a core with this number of sections, whose headers follow; section `names` has their names.
pub(super) fn file_header(ram: &Ram, sections: u16, names: u16) -> Result<elf::FileHeader64<LE>> {
    let machine = match ram.architecture() {
        Architecture::X86 => elf::EM_386,
        Architecture::X86_64 => elf::EM_X86_64,
        Architecture::Arm64 => elf::EM_AARCH64,
    };
    Ok(elf::FileHeader64 {
        e_ident: elf::Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(LE, elf::ET_CORE),
        e_machine: U16::new(LE, machine),
        e_version: U32::new(LE, 1),
        e_entry: U64::new(LE, 0),
        e_phoff: U64::new(LE, 0),
        e_shoff: U64::new(LE, if sections == 0 { 0 } else { HEADER }),
        e_flags: U32::new(LE, elf::FileFlags(0)),
        e_ehsize: U16::new(LE, u16::try_from(HEADER)?),
        e_phentsize: U16::new(LE, u16::try_from(SEGMENT)?),
        e_phnum: U16::new(LE, 0),
        e_shentsize: U16::new(LE, u16::try_from(SECTION)?),
        e_shnum: U16::new(LE, sections),
        e_shstrndx: U16::new(LE, elf::SymbolSection(names)),
    })
}

/// Returns a section header. `name` is the offset of the name among the names, and `entry` the bytes of an entry.
pub(super) fn section_header(
    name: u32,
    kind: elf::SectionType,
    range: Range<u64>,
    entry: u64,
) -> elf::SectionHeader64<LE> {
    elf::SectionHeader64 {
        sh_name: U32::new(LE, name),
        sh_type: U32::new(LE, kind),
        sh_flags: U64::new(LE, elf::SectionFlags(0)),
        sh_addr: U64::new(LE, 0),
        sh_offset: U64::new(LE, range.start),
        sh_size: U64::new(LE, range.end - range.start),
        sh_link: U32::new(LE, 0),
        sh_info: U32::new(LE, 0),
        sh_addralign: U64::new(LE, 0),
        sh_entsize: U64::new(LE, entry),
    }
}

fn segment(kind: elf::ProgramType, offset: u64, address: u64, len: u64) -> elf::ProgramHeader64<LE> {
    let flags = if kind == elf::PT_LOAD { elf::PF_R | elf::PF_W | elf::PF_X } else { elf::ProgramFlags(0) };
    elf::ProgramHeader64 {
        p_type: U32::new(LE, kind),
        p_flags: U32::new(LE, flags),
        p_offset: U64::new(LE, offset),
        p_vaddr: U64::new(LE, address),
        p_paddr: U64::new(LE, address),
        p_filesz: U64::new(LE, len),
        p_memsz: U64::new(LE, len),
        // crash tells a kdump from the older netdump by this value.
        p_align: U64::new(LE, 0),
    }
}

/// Returns the notes of vcpus, the kernel's VMCOREINFO note, if it was found, and this tool's; and why the kernel's may be
/// the wrong one.
pub(super) fn notes(ram: &Ram, vcpus: &[Registers], tally: &Tally) -> (Vec<u8>, Option<String>) {
    const { assert!(vmcoreinfo::MAX_TEXT < NOTES_LEN / 2) };
    let len = (NOTES_LEN + vcpus.len() * VCPU_NOTES).next_multiple_of(FRAME_SIZE);
    let (of_kernel, doubt) = match ram.vmcoreinfo().filter(|text| text.len() <= vmcoreinfo::MAX_TEXT) {
        Some(text) => (Some(text.to_vec()), None),
        None => vmcoreinfo::choose(ram, &tally.vmcoreinfo),
    };
    let mut notes = Vec::with_capacity(len);
    for (vcpu, registers) in (0..).zip(vcpus) {
        notes.extend(note(b"CORE\0", elf::NT_PRSTATUS.0, &registers.to_prstatus(vcpu)));
    }
    // Debuggers know the control registers from these. The machine addresses of a PV guest's tables lead nowhere.
    for registers in vcpus.iter().filter(|registers| !ram.is_pv() && registers.page_tables().is_some()) {
        notes.extend(note(b"QEMU\0", 0, &registers.to_qemu()));
    }
    notes.extend(of_kernel.map(|text| note(b"VMCOREINFO\0", 0, &text)).unwrap_or_default());
    let room = len - notes.len() - note(b"XENMAP\0", 0, b"").len();
    let mut text = report::text(ram, tally, room.min(NOTES_LEN)).into_bytes();
    text.resize(room, 0);
    notes.extend(note(b"XENMAP\0", 0, &text));
    (notes, doubt)
}

/// Returns a note. Name and content must be short; they are padded to words of 4 bytes.
pub(super) fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
    let len = |bytes: &[u8]| U32::new(LE, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    let header =
        elf::NoteHeader64 { n_namesz: len(name), n_descsz: len(content), n_type: U32::new(LE, elf::NoteType(kind)) };
    let mut note = pod::bytes_of(&header).to_vec();
    for bytes in [name, content] {
        note.extend_from_slice(bytes);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}
