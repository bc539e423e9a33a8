//! What a dump says of its machine besides RAM: registers, the kernel's note, the machine frames of a PV guest.

use std::ops::Range;
use std::sync::OnceLock;

use object::elf::{FileHeader64, Machine as ElfMachine, NT_PRSTATUS};
use object::read::elf::{FileHeader, NoteIterator};
use object::{Endian, Endianness, elf};
use xenmap::{PageTables, PagingMode};

use super::FRAME;
use super::contents::Contents;

/// The most bytes of notes that are read: enough for thousands of vcpus.
const MAX_NOTES: u64 = 16 << 20;

/// Bits of the x86 registers (Intel's manual, volume 3, "Control Registers").
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;

#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) architecture: Option<Architecture>,
    /// The control registers of each vcpu, as far as they are known.
    pub(crate) vcpus: Vec<Option<ControlRegisters>>,
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

/// Registers of an x86 vcpu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControlRegisters {
    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
}

impl ControlRegisters {
    /// Returns the page tables that the vcpu uses; `None` if its paging is off or not supported.
    pub(crate) fn page_tables(self, architecture: Option<Architecture>) -> Option<PageTables> {
        let has = |register: u64, bit: u64| register & bit != 0;
        let mode = match (has(self.cr4, CR4_PAE), has(self.cr4, CR4_LA57)) {
            (false, _) => return None,
            (true, _) if architecture == Some(Architecture::X86) => PagingMode::Pae,
            (true, true) => PagingMode::FiveLevels,
            (true, false) => PagingMode::FourLevels,
        };
        has(self.cr0, CR0_PG).then_some(PageTables::X86 { cr3: self.cr3, mode })
    }
}

/// A PV guest's table of frames in a core of xl: pairs of a pfn and a machine frame.
pub(super) struct P2m {
    pub(super) table: Range<u64>,
    pub(super) endian: Endianness,
    /// Pairs of a machine frame and a pfn, in ascending order.
    pub(super) by_machine_frame: OnceLock<Vec<(u64, u64)>>,
}

impl P2m {
    /// Returns the pfn of a machine frame.
    pub(super) fn pfn(&self, mfn: u64, file: &Contents) -> Option<u64> {
        let pairs = self.by_machine_frame.get_or_init(|| {
            let mut pairs: Vec<(u64, u64)> = self.pairs(file).map(|(pfn, mfn)| (mfn, pfn)).collect();
            pairs.sort_unstable();
            pairs
        });
        let index = pairs.binary_search_by_key(&mfn, |(mfn, _)| *mfn).ok()?;
        pairs.get(index).map(|(_, pfn)| *pfn)
    }

    /// Returns the machine frames of some frames.
    pub(super) fn machine_frames(&self, pfns: Range<u64>, file: &Contents) -> Vec<Option<u64>> {
        let mut frames = vec![None; usize::try_from(pfns.end - pfns.start).unwrap_or(0)];
        for (pfn, mfn) in self.pairs(file).filter(|(pfn, _)| pfns.contains(pfn)) {
            if let Some(frame) = usize::try_from(pfn - pfns.start).ok().and_then(|index| frames.get_mut(index)) {
                *frame = Some(mfn);
            }
        }
        frames
    }

    fn pairs<'a>(&self, file: &'a Contents) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let endian = self.endian;
        let table = file.get(self.table.start, self.table.end - self.table.start).unwrap_or_default();
        let (words, _) = table.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        pairs.iter().map(move |[pfn, mfn]| (endian.read_u64(*pfn), endian.read_u64(*mfn)))
    }
}

/// Returns the notes at a place in a file, only up to a hole of the file, which would be endless notes.
pub(super) fn notes(file: &Contents, place: Range<u64>) -> &[u8] {
    let data = file.data_in(place.clone()).find(|data| data.start == place.start);
    data.and_then(|data| file.get(data.start, (data.end - data.start).min(MAX_NOTES))).unwrap_or_default()
}

/// Adds what notes say. Notes after a broken one are not read.
pub(super) fn add_notes<Elf: FileHeader>(machine: &mut Machine, notes: &[u8], endian: Elf::Endian) {
    let Ok(mut notes) = NoteIterator::<Elf>::new(endian, Elf::Word::default(), notes) else { return };
    let mut statuses = 0;
    let mut vcpus = Vec::new();
    while let Ok(Some(note)) = notes.next() {
        match note.name() {
            b"CORE" if note.n_type(endian) == NT_PRSTATUS => statuses += 1,
            b"QEMU" => vcpus.push(registers_of_qemu(note.desc())),
            b"VMCOREINFO" => machine.vmcoreinfo = Some(note.desc().to_vec()),
            _ => {}
        }
    }
    // Only QEMU's have control registers.
    vcpus.resize(vcpus.len().max(statuses), None);
    machine.vcpus = vcpus;
}

/// Adds what the notes of a 64-bit little-endian machine say.
pub(super) fn add_notes_64(machine: &mut Machine, notes: &[u8]) {
    add_notes::<FileHeader64<Endianness>>(machine, notes, Endianness::Little);
}

/// Returns the registers of a `QEMUCPUState` (QEMU's `target/i386/arch_dump.c`): version and size, 18 registers, 10
/// segments of 24 bytes, CR0 to CR4.
fn registers_of_qemu(state: &[u8]) -> Option<ControlRegisters> {
    const CR0: usize = 8 + 18 * 8 + 10 * 24;
    let version = u32::from_le_bytes(*state.first_chunk()?);
    (version == 1).then_some(())?;
    control_registers(state, CR0)
}

/// Returns the registers in a section `.xen_prstatus`: a `vcpu_guest_context` of 64-bit x86 for each vcpu
/// (xen/include/public/arch-x86/xen.h).
pub(super) fn registers_of_xen(section: &[u8]) -> Vec<Option<ControlRegisters>> {
    const CONTEXT: usize = 5168;
    const CR0: usize = 4984;
    section.chunks_exact(CONTEXT).map(|context| control_registers(context, CR0)).collect()
}

/// Reads control registers that begin with CR0, of 8 bytes each. Paging that is off says nothing.
fn control_registers(bytes: &[u8], at: usize) -> Option<ControlRegisters> {
    let (registers, _) = bytes.get(at..)?.as_chunks::<8>();
    let register = |number: usize| registers.get(number).map(|bytes| u64::from_le_bytes(*bytes));
    let registers = ControlRegisters { cr0: register(0)?, cr3: register(3)?, cr4: register(4)? };
    (registers.cr0 & CR0_PG != 0).then_some(registers)
}

/// Returns the address of a machine address's frame among a guest's own, with the same offset.
pub(super) fn pseudo_physical(p2m: &P2m, machine_address: u64, file: &Contents) -> Option<u64> {
    let pfn = p2m.pfn(machine_address / FRAME, file)?;
    pfn.checked_mul(FRAME)?.checked_add(machine_address % FRAME)
}
