//! The registers of vcpus, in dumps of other tools and in our own.

use std::fs;
use std::path::Path;

use object::LittleEndian as LE;
use object::elf::{FileHeader64, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use proptest::array::{uniform5, uniform15};
use proptest::prelude::*;
use xenmap::mock::{MockHost, PvKernel, Vcpu};
use xenmap::{Guest, GuestKind, PageTables, PagingMode};

use crate::args::SearchArgs;
use crate::cases::dump_parts::dump_to;
use crate::dump::Dump;
use crate::dumps::*;
use crate::harness::*;
use crate::map;
use crate::ram::Ram;
use crate::registers::{Registers, Selectors};

/// Returns registers that are all different.
fn some_registers(first: u64) -> Registers {
    let mut next = first;
    let mut more = || {
        next += 0x1001;
        next
    };
    let general = std::array::from_fn(|_| more());
    let [rip, rflags, rsp, fs_base, gs_base, other_gs_base, gdt_base, idt_base, cr2, cr3] =
        std::array::from_fn(|_| more());
    let selectors = Selectors { cs: 0x10, ds: 1, es: 2, fs: 3, gs: 4, ss: 0x18 };
    let control = [1 << 31 | 1, 0, cr2, cr3, 1 << 5];
    let in_pv_kernel = false;
    Registers {
        general,
        rip,
        rflags,
        rsp,
        selectors,
        fs_base,
        gs_base,
        other_gs_base,
        gdt_base,
        idt_base,
        control,
        in_pv_kernel,
    }
}

/// Returns the contents of the notes of an ELF core that have a name.
fn notes(core: &[u8], name: &[u8]) -> Vec<Vec<u8>> {
    let header = FileHeader64::<LE>::parse(core).unwrap();
    let segments = header.program_headers(LE, core).unwrap();
    let segment = segments.iter().find(|segment| segment.p_type.get(LE) == PT_NOTE).unwrap();
    let mut notes = segment.notes(LE, core).unwrap().unwrap();
    let mut contents = Vec::new();
    while let Some(note) = notes.next().unwrap() {
        if note.name() == name {
            contents.push(note.desc().to_vec());
        }
    }
    contents
}

fn convert(folder: &Path, from: &str, to: &str, format: &str) -> Vec<u8> {
    let _ = fs::remove_file(folder.join(to));
    let output = run_in(folder, &format!("dump --dump {from} {to} --format {format}"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::read(folder.join(to)).unwrap()
}

#[test]
fn converted_dumps_keep_the_registers() {
    let folder = folder("registers");
    let vcpus: Vec<Registers> = (1..=300).map(|vcpu| some_registers(vcpu << 32)).collect();
    let of_status: Vec<u8> = (0..).zip(&vcpus).flat_map(|(i, vcpu)| note(b"CORE\0", 1, &vcpu.to_prstatus(i))).collect();
    let of_qemu: Vec<u8> = vcpus.iter().flat_map(|vcpu| note(b"QEMU\0", 0, &vcpu.to_qemu())).collect();
    let pages: Pages = [(1, page(1))].into();
    fs::write(folder.join("core"), elf_with_notes(&pages, &[of_status, of_qemu].concat())).unwrap();

    for (from, to) in [("core", "elf"), ("core", "elf.stream")] {
        let core = if to == "elf" {
            convert(&folder, from, to, "elf")
        } else {
            run_in(&folder, "dump --dump core - --format elf").stdout
        };
        let read: Vec<_> = notes(&core, b"QEMU").iter().map(|note| Registers::from_qemu(note).unwrap()).collect();
        assert!(read == vcpus, "{to}");
        let read: Vec<_> = notes(&core, b"CORE").iter().map(|note| Registers::from_prstatus(note).unwrap()).collect();
        assert_eq!(read.len(), 300);
        assert_eq!((read[7].general, read[7].rip, read[7].rsp), (vcpus[7].general, vcpus[7].rip, vcpus[7].rsp));
        assert_eq!(notes(&core, b"XENMAP").len(), 1);
    }
    convert(&folder, "elf", "xen", "xen");
    let core = convert(&folder, "xen", "again", "elf");
    let read = notes(&core, b"QEMU");
    // Xen's context of a vcpu has no bases of descriptor tables.
    let expected = vcpus.iter().map(|vcpu| Registers { gdt_base: 0, idt_base: 0, ..vcpu.clone() });
    assert!(read.iter().map(|note| Registers::from_qemu(note).unwrap()).eq(expected));
}

#[test]
fn registers_without_control_registers_are_kept_too() {
    let folder = folder("registers-status");
    let vcpu = Registers { control: [0; 5], ..some_registers(7) };
    let core = elf_with_notes(&[(1, page(1))].into(), &note(b"CORE\0", 1, &vcpu.to_prstatus(0)));
    fs::write(folder.join("core"), core).unwrap();
    let core = convert(&folder, "core", "elf", "elf");
    assert_eq!([notes(&core, b"CORE").len(), notes(&core, b"QEMU").len()], [1, 0]);
    assert_eq!(Registers::from_prstatus(&notes(&core, b"CORE")[0]).unwrap().rip, vcpu.rip);
}

#[test]
fn note_of_the_kernel_is_kept_even_if_it_is_not_in_ram() {
    let folder = folder("registers-vmcoreinfo");
    let text = b"OSRELEASE=6.1.0\n";
    fs::write(folder.join("core"), elf_with_notes(&[(1, page(1))].into(), &note(b"VMCOREINFO\0", 0, text))).unwrap();
    let core = convert(&folder, "core", "elf", "elf");
    assert_eq!(notes(&core, b"VMCOREINFO"), [text]);
}

fn registers() -> impl Strategy<Value = Registers> {
    let others = (any::<[u64; 3]>(), any::<[u16; 6]>(), any::<[u64; 5]>());
    (uniform15(any::<u64>()), uniform5(any::<u64>()), others).prop_map(|(general, control, (pc, selectors, bases))| {
        let [rip, rflags, rsp] = pc;
        let [cs, ds, es, fs, gs, ss] = selectors.map(u64::from);
        let [fs_base, gs_base, other_gs_base, gdt_base, idt_base] = bases;
        let selectors = Selectors { cs, ds, es, fs, gs, ss };
        let in_pv_kernel = false;
        Registers {
            general,
            rip,
            rflags,
            rsp,
            selectors,
            fs_base,
            gs_base,
            other_gs_base,
            gdt_base,
            idt_base,
            control,
            in_pv_kernel,
        }
    })
}

/// Dumps a guest with two vcpus, one in the kernel and one in a program.
fn dump_of_guest(kind: GuestKind, format: &str) -> (Vec<u8>, [Vcpu; 2]) {
    let host = MockHost::new();
    let domain = host.create_domain(kind, 16);
    if kind == GuestKind::Pv {
        domain.start_kernel(&PvKernel::default());
    }
    let vcpus = [false, true].map(|in_program| {
        let mut vcpu = Vcpu::default();
        (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) = (1 << 31 | 1, 0x1000, 1 << 5, 0xD01);
        vcpu.general = std::array::from_fn(|i| 0x100 + i as u64);
        (vcpu.pc, vcpu.sp, vcpu.gs_base, vcpu.shadow_gs_base, vcpu.idt_base) = (1, 2, 3, 4, 5);
        vcpu.in_program = in_program;
        vcpu
    });
    (0..).zip(vcpus).for_each(|(number, vcpu)| domain.set_vcpu(number, vcpu));
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let found = map::find(&ram, SearchArgs::default()).unwrap();
    let out = folder(&format!("registers-guest-{kind:?}-{format}")).join("out");
    let (source, args, output) = dump_to(&out, &format!("--format {format}"));
    Dump { ram: &ram, args: &args, source: &source, output: Some(&output) }.write(&found).unwrap();
    output.finish().unwrap();
    (fs::read(out).unwrap(), vcpus)
}

#[test]
fn dump_of_a_guest_has_the_registers_of_its_vcpus() {
    let (core, vcpus) = dump_of_guest(GuestKind::Pvh, "elf");
    assert_eq!(notes(&core, b"CORE").len(), 2);
    for (note, vcpu) in notes(&core, b"CORE").iter().zip(vcpus) {
        let registers = Registers::from_prstatus(note).unwrap();
        assert_eq!((registers.general, registers.rip, registers.rsp), (vcpu.general, vcpu.pc, vcpu.sp));
        assert_eq!(registers.gs_base, vcpu.gs_base);
    }
    let of_qemu: Vec<_> = notes(&core, b"QEMU").iter().map(|note| Registers::from_qemu(note).unwrap()).collect();
    assert_eq!(of_qemu.len(), 2);
    for registers in of_qemu {
        assert_eq!(registers.page_tables(), Some(PageTables::X86 { cr3: 0x1000, mode: PagingMode::FourLevels }));
        assert_eq!([registers.gs_base, registers.other_gs_base, registers.idt_base], [3, 4, 5]);
    }
}

#[test]
fn dump_of_a_pv_guest_has_no_machine_addresses_where_nothing_resolves_them() {
    let (core, _) = dump_of_guest(GuestKind::Pv, "elf");
    assert_eq!([notes(&core, b"CORE").len(), notes(&core, b"QEMU").len()], [2, 0]);
    let registers = Registers::from_prstatus(&notes(&core, b"CORE")[0]).unwrap();
    assert_eq!((registers.rip, registers.gs_base), (1, 3), "the kernel's");
}

#[test]
fn core_of_xl_has_the_contexts_of_vcpus_and_their_number() {
    for kind in [GuestKind::Pvh, GuestKind::Pv] {
        let (core, vcpus) = dump_of_guest(kind, "xen");
        let header = FileHeader64::<LE>::parse(&*core).unwrap();
        let sections = header.sections(LE, &*core).unwrap();
        let section = sections.section_by_name(LE, b".xen_prstatus").unwrap().1;
        let contexts = section.data(LE, &*core).unwrap();
        assert_eq!(contexts.len(), 2 * Registers::XEN, "{kind:?}");
        for (context, vcpu) in contexts.chunks(Registers::XEN).zip(vcpus) {
            let registers = Registers::from_xen(context).unwrap();
            assert_eq!((registers.general, registers.rip, registers.gs_base), (vcpu.general, 1, 3), "{kind:?}");
            assert_eq!(registers.in_pv_kernel, kind == GuestKind::Pv && !vcpu.in_program, "{kind:?}");
        }
    }
}

proptest! {
    #[test]
    fn registers_are_read_as_they_were_written(registers in registers()) {
        prop_assert_eq!(Registers::from_qemu(&registers.to_qemu()), Some(registers.clone()));
        let of_xen = Registers { gdt_base: 0, idt_base: 0, ..registers.clone() };
        prop_assert_eq!(Registers::from_xen(&registers.to_xen()), Some(of_xen.clone()));
        let of_status = Registers { other_gs_base: 0, control: [0; 5], ..of_xen };
        prop_assert_eq!(Registers::from_prstatus(&registers.to_prstatus(3)), Some(of_status));
    }

    #[test]
    fn any_bytes_are_registers_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = (Registers::from_qemu(&bytes), Registers::from_xen(&bytes), Registers::from_prstatus(&bytes));
    }
}
