//! Finding the page tables of a guest's vcpus.

use crate::common::{mock, mock_with, on_each_host};
use xenmap::mock::{Dom0, HostConfig, MockDomain, MockHost, PvKernel, Vcpu};
use xenmap::{Gfn, Guest, GuestKind, PageTables, PagingMode};

#[test]
fn vcpu_that_is_missing_is_an_error() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 8);
        let memory = host.open();
        let error = Guest::open(&memory, guest.domid()).unwrap().page_tables(0).unwrap_err();
        assert_eq!(error.errno(), host.missing_vcpu_errno(), "{error}");
        assert!(error.to_string().ends_with("(no such vcpu, or it is not up)"), "{error}");
    });
}

/// Returns an x86 vcpu with these values of CR0, CR3, CR4 and EFER.
fn x86(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Vcpu {
    let mut vcpu = Vcpu::default();
    (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) = (cr0, cr3, cr4, efer);
    vcpu
}

/// Creates an HVM or PVH guest whose vcpu 1 has these registers.
fn guest_with_vcpu(host: &MockHost, vcpu: Vcpu) -> MockDomain {
    let domain = host.create_domain(GuestKind::Hvm, 8);
    domain.set_vcpu(1, vcpu);
    domain
}

#[test]
fn page_tables_of_a_vcpu_are_found() {
    let host = mock(Dom0::Pv);
    let memory = host.open().unwrap();
    let (cr0, cr3) = (0x8005_0033, 0x0123_4567_8000);
    let cases = [
        (x86(cr0, 0x1020, 1 << 5, 0), PageTables::X86 { cr3: 0x1020, mode: PagingMode::Pae }),
        (x86(cr0, 0x1018, 1 << 4, 0), PageTables::X86 { cr3: 0x1018, mode: PagingMode::TwoLevels }),
        (x86(cr0, cr3, 1 << 5, 0xD01), PageTables::X86 { cr3, mode: PagingMode::FourLevels }),
        (x86(cr0, cr3, 1 << 12 | 1 << 5, 0xD01), PageTables::X86 { cr3, mode: PagingMode::FiveLevels }),
    ];
    for (vcpu, tables) in cases {
        let domain = guest_with_vcpu(&host, vcpu);
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        assert_eq!(guest.page_tables(1).unwrap(), tables);
        assert_eq!(guest.page_tables(2).unwrap_err().errno(), libc::ENOENT);
    }
}

#[test]
fn vcpu_without_paging_is_an_error() {
    let host = mock(Dom0::Pvh);
    let memory = host.open().unwrap();
    let domain = guest_with_vcpu(&host, x86(0x8000_0001, 0x1000, 0, 0));
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let number = domain.domid();
    assert_eq!(
        guest.page_tables(0).unwrap_err().to_string(),
        format!("vcpu 0 of domain {number} has no usable page tables: its paging is off")
    );
}

#[test]
fn translation_tables_of_an_arm64_vcpu_are_found() {
    for xen in [(4, 11), (4, 15), (4, 16), (4, 22)] {
        let mut config = HostConfig::default();
        (config.dom0, config.xen) = (Dom0::Arm, xen);
        let host = mock_with(config);
        let memory = host.open().unwrap();
        // As Linux 6.1 sets them, for 4 KiB pages and 48 bits of address.
        let (ttbr0, ttbr1, tcr) = (0x0123_0000_4175_2000, 0x0001_0000_4147_D000, 0x0080_0075_B550_3510);
        let mut vcpu = Vcpu::default();
        (vcpu.cpsr, vcpu.sctlr, vcpu.tcr) = (0x6000_0005, 0x3450_5D9D, tcr);
        (vcpu.ttbr0, vcpu.ttbr1) = (ttbr0, ttbr1);
        let domain = host.create_domain(GuestKind::Pvh, 8);
        domain.set_vcpu(1, vcpu);
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        assert_eq!(guest.page_tables(1).unwrap(), PageTables::Arm64 { ttbr0, ttbr1, tcr }, "{xen:?}");
        assert!(guest.page_tables(0).unwrap_err().to_string().ends_with("its paging is off"), "{xen:?}");
        assert_eq!(guest.page_tables(2).unwrap_err().errno(), libc::EINVAL);

        // A 32-bit kernel.
        let mut vcpu = Vcpu::default();
        (vcpu.cpsr, vcpu.sctlr, vcpu.tcr, vcpu.ttbr0) = (0x13, 1, 0x8000_0000, ttbr0);
        domain.set_vcpu(0, vcpu);
        assert!(guest.page_tables(0).unwrap_err().to_string().contains("32-bit"), "{xen:?}");
    }
}

#[test]
fn arm64_guest_memory_is_read_at_its_virtual_addresses() {
    let host = mock(Dom0::Arm);
    let domain = host.create_domain(GuestKind::Pvh, 0);
    let gfns: Vec<Gfn> = (0x4_0000..0x4_0008).map(|gfn| Gfn::new(gfn).unwrap()).collect();
    domain.populate(&gfns);
    // With pages of 16 KiB and addresses of 36 bits, the first entry of the top-level table points to the next table,
    // whose last entry is the page at 0x40004000.
    let (table, page) = (3, 3);
    domain.write(gfns[0], 0, &(0x4000_0000_u64 | table).to_ne_bytes());
    domain.write(gfns[3], 0xFF8, &(0x4000_4000_u64 | page).to_ne_bytes());
    domain.write(gfns[7], 0xFFA, b"canary");
    let tcr = 28 << 16 | 1 << 30 | 5 << 32;
    let mut vcpu = Vcpu::default();
    (vcpu.cpsr, vcpu.sctlr, vcpu.tcr, vcpu.ttbr1) = (5, 1, tcr, 0x4000_0000);
    domain.set_vcpu(0, vcpu);

    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let tables = guest.page_tables(0).unwrap();
    let mut text = [0; 6];
    guest.read_virtual(&tables, 0xFFFF_FFF0_01FF_FFFA, &mut text).unwrap();
    assert_eq!(&text, b"canary");
    assert_eq!(guest.translate(&tables, 0xFFFF_FFF0_01FF_FFFF).unwrap(), 0x4000_7FFF);
    assert!(guest.translate(&tables, 0xFFFF_FFF0_0200_0000).is_err());
}

#[test]
fn registers_of_a_vcpu_are_those_of_its_kernel() {
    let registers = |dom0, kind, in_program| {
        let host = mock(dom0);
        let domain = host.create_domain(kind, 64);
        if kind == GuestKind::Pv {
            domain.start_kernel(&PvKernel::default());
        }
        let mut vcpu = Vcpu::default();
        (vcpu.pc, vcpu.lstar, vcpu.idt_base) = (0x8100_0010, 0x8180_0000, 0xF000);
        (vcpu.gs_base, vcpu.shadow_gs_base) = if in_program { (0x5000, 0x8880_0000) } else { (0x8880_0000, 0x5000) };
        vcpu.in_program = in_program;
        domain.set_vcpu(1, vcpu);
        let guest = Guest::open(&host.open().unwrap(), domain.domid()).unwrap();
        assert!(guest.registers(2).is_err());
        let found = guest.registers(1).unwrap();
        assert_eq!(found.instruction_pointer, 0x8100_0010);
        [found.kernel_gs_base, found.lstar, found.idt_base]
    };
    for in_program in [false, true] {
        for dom0 in [Dom0::Pv, Dom0::Pvh] {
            let hvm = [Some(0x8880_0000), Some(0x8180_0000), Some(0xF000)];
            assert_eq!(registers(dom0, GuestKind::Hvm, in_program), hvm);
            assert_eq!(registers(dom0, GuestKind::Pv, in_program), [hvm[0], hvm[1], None]);
        }
        assert_eq!(registers(Dom0::Arm, GuestKind::Pvh, in_program), [None; 3]);
    }
}

#[test]
fn registers_of_a_32_bit_pv_guest_are_its_instruction_pointer_alone() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Pv, 64);
    let mut kernel = PvKernel::default();
    kernel.is_64_bit = false;
    domain.start_kernel(&kernel);
    let mut vcpu = Vcpu::default();
    (vcpu.pc, vcpu.lstar) = (0xC100_0010, 0xC180_0000);
    domain.set_vcpu(0, vcpu);
    let found = Guest::open(&host.open().unwrap(), domain.domid()).unwrap().registers(0).unwrap();
    assert_eq!(found.instruction_pointer, 0xC100_0010);
    assert_eq!([found.kernel_gs_base, found.lstar, found.idt_base], [None; 3]);
}
