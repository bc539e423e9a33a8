//! The page tables that a guest's vcpus use.

mod common;

use common::{mock, on_each_host};
use xenmap::mock::{Dom0, MockDomain, MockHost, Vcpu};
use xenmap::{Guest, GuestKind, PageTables, PagingMode};

#[test]
fn vcpu_that_is_missing_is_an_error() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 8);
        let memory = host.open();
        let error = Guest::open(&memory, guest.domid()).unwrap().page_tables(0).unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT, "{error}");
        assert!(error.to_string().ends_with("(no such vcpu, or it is not up)"), "{error}");
    });
}

/// A translated guest whose vcpu 1 has these registers.
fn guest_with_vcpu(host: &MockHost, vcpu: Vcpu) -> MockDomain {
    let domain = host.create_domain(GuestKind::Hvm, 8);
    domain.set_vcpu(1, vcpu);
    domain
}

#[test]
fn vcpu_tells_its_page_tables() {
    let host = mock(Dom0::Pv);
    let memory = host.open().unwrap();
    let (cr0, cr3) = (0x8005_0033, 0x0123_4567_8000);
    let cases = [
        (
            Vcpu { cr0, cr3: 0x1020, cr4: 1 << 5, efer: 0, ..Vcpu::default() },
            PageTables { cr3: 0x1020, mode: PagingMode::Pae },
        ),
        (
            Vcpu { cr0, cr3, cr4: 1 << 5, efer: 0xD01, ..Vcpu::default() },
            PageTables { cr3, mode: PagingMode::FourLevels },
        ),
        (
            Vcpu { cr0, cr3, cr4: 1 << 12 | 1 << 5, efer: 0xD01, ..Vcpu::default() },
            PageTables { cr3, mode: PagingMode::FiveLevels },
        ),
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
    let domain = guest_with_vcpu(&host, Vcpu { cr0: 0x8000_0001, cr3: 0x1000, cr4: 0, ..Vcpu::default() });
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let number = domain.domid();
    assert_eq!(
        guest.page_tables(0).unwrap_err().to_string(),
        format!("no page tables of vcpu 0 of domain {number}: its paging is off")
    );
    assert_eq!(
        guest.page_tables(1).unwrap_err().to_string(),
        format!(
            "no page tables of vcpu 1 of domain {number}: it uses 32-bit paging without PAE, which is not known here"
        )
    );
}
