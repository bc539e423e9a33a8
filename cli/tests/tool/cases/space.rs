//! The page tables that the tool uses.

use xenmap::mock::{Dom0, HostConfig, MockHost, Vcpu};
use xenmap::{Guest, GuestKind, PageTables, PagingMode};

use crate::args::SpaceArgs;
use crate::harness::{CANARY, folder, ram, refusal, run_in};
use crate::kernel::Kernel;
use crate::ram::Ram;
use crate::space::Space;

/// The tables for a given base, or the error, on a host whose guest has this vcpu, or none.
fn tables(dom0: Dom0, vcpu: Option<Vcpu>) -> Result<PageTables, String> {
    let mut config = HostConfig::default();
    config.dom0 = dom0;
    let host = MockHost::with_config(config);
    let domain = host.create_domain(GuestKind::Hvm, 1);
    if let Some(vcpu) = vcpu {
        domain.set_vcpu(0, vcpu);
    }
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let vcpu = u32::from(vcpu.is_none()) * 99;
    let args = SpaceArgs { r#virtual: true, vcpu, cr3: Some(0x5000) };
    match Space::new(&ram, &args, &Kernel::new(&ram)).map_err(|e| e.to_string())? {
        Space::Virtual(tables) => Ok(tables),
        Space::Physical => panic!("it is a virtual space"),
    }
}

#[test]
fn given_base_replaces_the_one_of_the_vcpu() {
    let mut vcpu = Vcpu::default();
    (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) = (1 << 31, 0x1000, 1 << 12, 1 << 10);
    let expected = PageTables::X86 { cr3: 0x5000, mode: PagingMode::FiveLevels };
    assert_eq!(tables(Dom0::Pvh, Some(vcpu)), Ok(expected));
    let mut vcpu = Vcpu::default();
    (vcpu.sctlr, vcpu.ttbr0, vcpu.ttbr1, vcpu.tcr) = (1, 0x1000, 0x2000, 0x10);
    let expected = PageTables::Arm64 { ttbr0: 0x5000, ttbr1: 0x2000, tcr: 0x10 };
    assert_eq!(tables(Dom0::Arm, Some(vcpu)), Ok(expected));
}

#[test]
fn paging_mode_is_assumed_on_x86_only() {
    let four_levels = PageTables::X86 { cr3: 0x5000, mode: PagingMode::FourLevels };
    assert_eq!(tables(Dom0::Pvh, Some(Vcpu::default())), Ok(four_levels));
    assert_eq!(tables(Dom0::Pvh, None), Ok(four_levels));
    let error = tables(Dom0::Arm, Some(Vcpu::default())).unwrap_err();
    assert!(error.contains("paging is off"), "{error}");
    let error = tables(Dom0::Arm, None).unwrap_err();
    assert!(error.contains("XEN_DOMCTL_getvcpucontext"), "{error}");
}

#[test]
fn virtual_address_of_a_guest_without_vcpus_needs_a_base() {
    let folder = folder("space-no-vcpus");
    ram(&folder, &[(0, CANARY)]);
    let output = run_in(&folder, "read --mock ram --virtual 0 16");
    assert_eq!(refusal(&output), "domain 1 has no vcpus: give --cr3");
}
