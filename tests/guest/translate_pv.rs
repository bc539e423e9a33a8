//! Translation of virtual addresses of PV guests, whose page tables hold machine frames.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use crate::common::{FRAME, mock, pfn, pfns};
use xenmap::mock::{Dom0, MockDomain, MockHost, PvKernel, Vcpu};
use xenmap::{Error, Gfn, Guest, GuestKind, PageTables, PagingMode};

/// Runs a test in each x86 dom0 with a 64-bit and a 32-bit PV guest.
fn with_each_pv_guest(test: impl Fn(&MockHost, &MockDomain, PagingMode)) {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        for mode in [PagingMode::FourLevels, PagingMode::Pae] {
            let host = mock(dom0);
            let domain = host.create_domain(GuestKind::Pv, 64);
            let mut kernel = PvKernel::default();
            kernel.is_64_bit = mode == PagingMode::FourLevels;
            domain.start_kernel(&kernel);
            test(&host, &domain, mode);
        }
    }
}

fn mfns(domain: &MockDomain, numbers: &[u64]) -> Vec<Gfn> {
    numbers.iter().map(|&number| domain.mfn(pfn(number)).unwrap()).collect()
}

/// Turns some of the guest's frames into page tables of its vcpu, which map these machine frames from address 0 on.
fn map_at_zero(domain: &MockDomain, mode: PagingMode, targets: &[Gfn]) {
    let tables = mfns(domain, if mode == PagingMode::Pae { &[2, 0, 1] } else { &[2, 0, 1, 3] });
    let entry = |gfn: &Gfn| ((gfn.get() << 12) | 0x67).to_ne_bytes();
    for (table, next) in tables.iter().zip(&tables[1..]) {
        domain.write(*table, 0, &entry(next));
    }
    let last = *tables.last().unwrap();
    domain.write(last, 0, &targets.iter().flat_map(entry).collect::<Vec<u8>>());
    for table in &tables {
        domain.pin_page_table(*table).unwrap();
    }
    let mut vcpu = Vcpu::default();
    vcpu.cr3 = tables[0].get() << 12;
    domain.set_vcpu(0, vcpu);
}

#[test]
fn addresses_lead_through_machine_frames_to_pfns() {
    with_each_pv_guest(|host, domain, mode| {
        map_at_zero(domain, mode, &mfns(domain, &[19, 14]));
        let memory = host.open().unwrap();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let tables = guest.page_tables(0).unwrap();
        assert!(matches!(tables, PageTables::X86 { mode: found, .. } if found == mode));
        assert_eq!(guest.translate(&tables, 0x123).unwrap(), 19 * FRAME as u64 + 0x123);
        assert_eq!(guest.translate(&tables, 0x1FFF).unwrap(), 14 * FRAME as u64 + 0xFFF);

        guest.write_virtual(&tables, 0xFFE, b"four").unwrap();
        assert_eq!(domain.read(domain.mfn(pfn(19)).unwrap(), 0xFFE, 2), b"fo");
        assert_eq!(domain.read(domain.mfn(pfn(14)).unwrap(), 0, 2), b"ur");
        let mut read = [0; 4];
        guest.read_virtual(&tables, 0xFFE, &mut read).unwrap();
        assert_eq!(&read, b"four");
        assert!(guest.page_tables(1).unwrap_err().to_string().ends_with("(no such vcpu, or it is not up)"));
    });
}

#[test]
fn frame_that_is_not_the_guests_own_is_an_error() {
    with_each_pv_guest(|host, domain, mode| {
        let other = host.create_domain(GuestKind::Pv, 1).frames()[0];
        let forged = domain.mfn(pfn(20)).unwrap();
        domain.set_pfn(forged, 21);
        map_at_zero(domain, mode, &[other, forged, Gfn::new(1).unwrap()]);
        let memory = host.open().unwrap();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let tables = guest.page_tables(0).unwrap();
        for at in [0, 0x1000, 0x2000] {
            match guest.translate(&tables, at) {
                Err(Error::Translation { address, reason, .. }) => {
                    assert_eq!(address, at);
                    assert!(reason.contains("not the guest's own"), "{reason}");
                }
                other => panic!("{other:x?}"),
            }
        }
    });
}

#[test]
fn table_of_another_domain_is_an_error() {
    with_each_pv_guest(|host, domain, mode| {
        let other = host.create_domain(GuestKind::Pv, 1).frames()[0];
        let memory = host.open().unwrap();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let tables = PageTables::X86 { cr3: other.get() << 12, mode };
        let error = guest.translate(&tables, 0x8000).unwrap_err();
        assert!(matches!(error, Error::GuestAddress { address, .. } if address == other.get() << 12), "{error}");
    });
}

#[test]
fn kernels_p2m_can_be_read_at_its_virtual_address() {
    // arch.p2m_cr3 and arch.p2m_vaddr of struct shared_info, of a 64-bit guest.
    const P2M_CR3: usize = 3112;
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Pv, 64);
    domain.start_kernel(&PvKernel::default());
    let anchor = domain.read(domain.shared_info(), P2M_CR3, 16);
    let word = |at: usize| u64::from_ne_bytes(anchor[at..at + 8].try_into().unwrap());
    let tables = PageTables::X86 { cr3: word(0), mode: PagingMode::FourLevels };

    let memory = host.open().unwrap();
    let mut entries = [0; 64 * 8];
    Guest::open(&memory, domain.domid()).unwrap().read_virtual(&tables, word(8), &mut entries).unwrap();
    let entries: Vec<u64> = entries.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
    let expected: Vec<u64> = pfns(0..64).into_iter().map(|pfn| domain.mfn(pfn).unwrap().get()).collect();
    assert_eq!(entries, expected);
}

#[test]
fn read_costs_at_most_twice_as_much_as_for_an_hvm_guest() {
    let host = mock(Dom0::Pv);
    let pv = host.create_domain(GuestKind::Pv, 64);
    pv.start_kernel(&PvKernel::default());
    map_at_zero(&pv, PagingMode::FourLevels, &mfns(&pv, &[19]));
    let hvm = host.create_domain(GuestKind::Hvm, 64);
    for frame in 4..8 {
        hvm.write(Gfn::new(frame).unwrap(), 0, &((frame + 1) << 12 | 1).to_ne_bytes());
    }
    let memory = host.open().unwrap();
    let cost = |domain: &MockDomain, tables: &PageTables| {
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let mut word = [0; 8];
        guest.read_virtual(tables, 0, &mut word).unwrap(); // finds the p2m
        let before = host.hypercalls();
        guest.read_virtual(tables, 0, &mut word).unwrap();
        let after = host.hypercalls();
        (after.mmu_update - before.mmu_update) + (after.pte_writes - before.pte_writes)
    };
    let of_pv = cost(&pv, &Guest::open(&memory, pv.domid()).unwrap().page_tables(0).unwrap());
    let of_hvm = cost(&hvm, &PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels });
    assert!(of_pv <= 2 * of_hvm, "{of_pv} hypercalls instead of {of_hvm}");
}
