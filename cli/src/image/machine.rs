//! What a dump says of its machine besides RAM: registers, the kernel's note, the machine frames of a PV guest.

use std::ops::Range;
use std::sync::OnceLock;

use object::elf::{FileHeader64, Machine as ElfMachine, NT_PRSTATUS};
use object::read::elf::{FileHeader, NoteIterator};
use object::{Endian, Endianness, elf};

use super::FRAME;
use super::contents::Contents;
use crate::registers::Registers;

/// The most bytes of notes that are read: enough for thousands of vcpus.
const MAX_NOTES: u64 = 16 << 20;

#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) architecture: Option<Architecture>,
    /// The registers of each vcpu of an x86-64 machine, as far as they are known.
    pub(crate) vcpus: Vec<Registers>,
    /// The text of the kernel's VMCOREINFO note.
    pub(crate) vmcoreinfo: Option<Vec<u8>>,
    /// Where in the file a PV guest's table of frames is.
    pub(super) p2m: Option<P2m>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    X86,
    X86_64,
    Arm64,
}

impl Architecture {
    /// Returns the architecture that an ELF header names, if it is a known one.
    pub(super) fn of_elf(machine: ElfMachine) -> Option<Architecture> {
        match machine {
            elf::EM_386 => Some(Architecture::X86),
            elf::EM_X86_64 => Some(Architecture::X86_64),
            elf::EM_AARCH64 => Some(Architecture::Arm64),
            _ => None,
        }
    }
}

/// A PV guest's table of frames in a core of xl: pairs of a pfn and a machine frame.
pub(super) struct P2m {
    table: Range<u64>,
    endian: Endianness,
    by_mfn: OnceLock<Pairs>,
    by_pfn: OnceLock<Pairs>,
}

/// Pairs of a frame number and the one that it leads to, in ascending order.
type Pairs = Vec<(u64, u64)>;

impl P2m {
    /// `table` is the place of the table in the file.
    pub(super) fn new(table: Range<u64>, endian: Endianness) -> P2m {
        P2m { table, endian, by_mfn: OnceLock::new(), by_pfn: OnceLock::new() }
    }

    /// Returns the pfn of a machine frame.
    fn pfn(&self, mfn: u64, file: &Contents) -> Option<u64> {
        let pairs = self.by_mfn.get_or_init(|| sorted(self.pairs(file).map(|(pfn, mfn)| (mfn, pfn)).collect()));
        find(pairs, mfn)
    }

    /// Returns the machine frames of some frames.
    pub(super) fn machine_frames(&self, pfns: Range<u64>, file: &Contents) -> Vec<Option<u64>> {
        let pairs = self.by_pfn.get_or_init(|| sorted(self.pairs(file).collect()));
        pfns.map(|pfn| find(pairs, pfn)).collect()
    }

    fn pairs<'a>(&self, file: &'a Contents) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let endian = self.endian;
        let table = file.get(self.table.start, self.table.end - self.table.start).unwrap_or_default();
        let (words, _) = table.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        pairs.iter().map(move |[pfn, mfn]| (endian.read_u64(*pfn), endian.read_u64(*mfn)))
    }
}

fn sorted(mut pairs: Pairs) -> Pairs {
    pairs.sort_unstable();
    pairs
}

fn find(pairs: &Pairs, frame: u64) -> Option<u64> {
    let index = pairs.binary_search_by_key(&frame, |(frame, _)| *frame).ok()?;
    pairs.get(index).map(|(_, other)| *other)
}

/// Returns the notes at a place in a file, only up to a hole of the file, which would be endless notes.
pub(super) fn notes(file: &Contents, place: Range<u64>) -> &[u8] {
    let data = file.data_in(place.clone()).find(|data| data.start == place.start);
    data.and_then(|data| file.get(data.start, (data.end - data.start).min(MAX_NOTES))).unwrap_or_default()
}

/// Adds what notes say. Notes after a broken one are not read.
pub(super) fn add_notes<Elf: FileHeader>(machine: &mut Machine, notes: &[u8], endian: Elf::Endian) {
    let Ok(mut notes) = NoteIterator::<Elf>::new(endian, Elf::Word::default(), notes) else { return };
    let (mut of_status, mut of_qemu) = (Vec::new(), Vec::new());
    while let Ok(Some(note)) = notes.next() {
        match note.name() {
            b"CORE" if note.n_type(endian) == NT_PRSTATUS => of_status.push(Registers::from_prstatus(note.desc())),
            b"QEMU" => of_qemu.push(Registers::from_qemu(note.desc())),
            b"VMCOREINFO" => machine.vmcoreinfo = Some(note.desc().to_vec()),
            _ => {}
        }
    }
    if machine.architecture == Some(Architecture::X86_64) {
        // Those of QEMU have control registers.
        let vcpus = if of_qemu.len() < of_status.len() { of_status } else { of_qemu };
        machine.vcpus = vcpus.into_iter().flatten().collect();
    }
}

/// Adds what the notes of a 64-bit little-endian machine say.
pub(super) fn add_notes_64(machine: &mut Machine, notes: &[u8]) {
    add_notes::<FileHeader64<Endianness>>(machine, notes, Endianness::Little);
}

/// Returns the registers in a section `.xen_prstatus`.
pub(super) fn registers_of_xen(section: &[u8]) -> Vec<Registers> {
    section.chunks_exact(Registers::XEN).filter_map(Registers::from_xen).collect()
}

/// Returns the address of a machine address's frame among a guest's own, with the same offset.
pub(super) fn pseudo_physical(p2m: &P2m, machine_address: u64, file: &Contents) -> Option<u64> {
    let pfn = p2m.pfn(machine_address / FRAME, file)?;
    pfn.checked_mul(FRAME)?.checked_add(machine_address % FRAME)
}
