//! Address spaces of PV guests, whose page tables hold machine frames.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use xenmap::mock::{Dom0, MockDomain, MockHost, PvKernel, Vcpu};
use xenmap::{Access, AddressSpace, Error, Gfn, Guest, GuestKind, PagingMode};

use crate::common::{FRAME, ReadOnly, mock, pfn};

const KIB_4: u64 = 1 << 12;

/// Runs a test in each x86 dom0 with a 64-bit and a 32-bit PV guest that has 64 frames.
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

fn mfn(domain: &MockDomain, number: u64) -> Gfn {
    domain.mfn(pfn(number)).unwrap()
}

/// Writes page tables that map these machine frames from address 0 on, into the guest's frames 0 to 3.
fn map_at_zero(domain: &MockDomain, mode: PagingMode, targets: &[Gfn]) {
    let tables: Vec<Gfn> = (0..if mode == PagingMode::Pae { 3 } else { 4 }).map(|n| mfn(domain, n)).collect();
    let entry = |gfn: &Gfn| ((gfn.get() << 12) | 0x67).to_ne_bytes();
    for (table, next) in tables.iter().zip(&tables[1..]) {
        domain.write(*table, 0, &entry(next));
    }
    let mut vcpu = Vcpu::default();
    vcpu.cr3 = tables[0].get() << 12;
    domain.set_vcpu(0, vcpu);
    domain.write(*tables.last().unwrap(), 0, &targets.iter().flat_map(entry).collect::<Vec<u8>>());
    for table in tables {
        domain.pin_page_table(table).unwrap();
    }
}

fn open(host: &MockHost, domain: &MockDomain) -> AddressSpace {
    let guest = Guest::open(&host.open().unwrap(), domain.domid()).unwrap();
    let tables = guest.page_tables(0).unwrap();
    AddressSpace::new(guest, tables)
}

#[test]
fn memory_is_read_and_written_at_its_virtual_addresses() {
    with_each_pv_guest(|host, domain, mode| {
        map_at_zero(domain, mode, &[mfn(domain, 19), mfn(domain, 14)]);
        let space = open(host, domain);
        for _ in 0..2 {
            assert_eq!(space.translate(0x123).unwrap().physical, 19 * KIB_4 + 0x123);
            assert_eq!(space.translate(0x1FFF).unwrap().physical, 14 * KIB_4 + 0xFFF);
        }
        space.write_bytes(0xFFE, b"four").unwrap();
        assert_eq!(domain.read(mfn(domain, 19), 0xFFE, 2), b"fo");
        assert_eq!(domain.read(mfn(domain, 14), 0, 2), b"ur");
        assert_eq!(space.read_c_string(0xFFE, 16).unwrap(), b"four");
        assert_eq!(space.map(ReadOnly, 0xFFE, 4).unwrap().view().read::<u32>(0xFFE).unwrap().to_ne_bytes(), *b"four");
    });
}

#[test]
fn warm_reads_make_no_hypercall() {
    with_each_pv_guest(|host, domain, mode| {
        let targets: Vec<Gfn> = (8..40).map(|number| mfn(domain, number)).collect();
        map_at_zero(domain, mode, &targets);
        let space = open(host, domain);
        let read_all = || {
            for page in 0..32 {
                space.read::<u64>(page * KIB_4).unwrap();
            }
        };
        read_all();
        let before = host.hypercalls();
        read_all();
        assert_eq!(host.hypercalls(), before);
    });
}

#[test]
fn new_page_of_a_known_region_costs_no_lookup_of_machine_frames() {
    with_each_pv_guest(|host, domain, mode| {
        let targets: Vec<Gfn> = (8..40).map(|number| mfn(domain, number)).collect();
        map_at_zero(domain, mode, &targets);
        let space = open(host, domain);
        space.read::<u64>(0).unwrap();
        space.cache().prefetch(ReadOnly, 0..64 * KIB_4).unwrap();
        let before = host.hypercalls();
        for page in 1..32 {
            space.read::<u64>(page * KIB_4).unwrap();
        }
        assert_eq!(host.hypercalls(), before);
    });
}

#[test]
fn frame_that_is_not_the_guests_own_is_an_error() {
    with_each_pv_guest(|host, domain, mode| {
        let other = host.create_domain(GuestKind::Pv, 1).frames()[0];
        let forged = mfn(domain, 20);
        domain.set_pfn(forged, 21);
        map_at_zero(domain, mode, &[other, forged, Gfn::new(1).unwrap(), mfn(domain, 30)]);
        let space = open(host, domain);
        for at in [0, 0x1000, 0x2000] {
            match space.read::<u64>(at) {
                Err(Error::Translation { address, reason, .. }) => {
                    assert_eq!(address, at);
                    assert!(reason.contains("not the guest's own"), "{reason}");
                }
                other => panic!("{other:x?}"),
            }
        }
        let found: Vec<_> =
            space.extents(0..0x10_0000).map(|found| found.ok().map(|e| (e.address, e.physical))).collect();
        assert_eq!(found, [None, None, None, Some((0x3000, 30 * KIB_4))]);
    });
}

#[test]
fn extents_are_contiguous_in_the_guests_own_addresses() {
    with_each_pv_guest(|host, domain, mode| {
        let targets: Vec<Gfn> = [8, 9, 10, 20, 21, 30].map(|number| mfn(domain, number)).into();
        map_at_zero(domain, mode, &targets);
        let space = open(host, domain);
        let found: Vec<_> =
            space.extents(0..0x10_0000).map(|e| e.map(|e| (e.address, e.physical, e.len)).unwrap()).collect();
        let page = FRAME as u64;
        let expected = [(0, 8 * page, 3 * page), (3 * page, 20 * page, 2 * page), (5 * page, 30 * page, page)];
        assert_eq!(found, expected);
    });
}

#[test]
fn xens_own_part_is_no_extent() {
    with_each_pv_guest(|host, domain, mode| {
        if mode == PagingMode::Pae {
            return;
        }
        let xens = host.create_domain(GuestKind::Pv, 1).frames()[0];
        let tables = mfn(domain, 0);
        for slot in [256, 271] {
            domain.write(tables, slot * 8, &((xens.get() << 12) | 0x67).to_ne_bytes());
        }
        map_at_zero(domain, mode, &[mfn(domain, 19)]);
        let next = mfn(domain, 1);
        domain.write(tables, 272 * 8, &((next.get() << 12) | 0x67).to_ne_bytes());
        let space = open(host, domain);
        for (range, expected) in [
            (0..=u64::MAX, vec![0, 0xFFFF_8800_0000_0000]),
            (0xFFFF_8000_0000_0000..=0xFFFF_87FF_FFFF_FFFF, vec![]),
            (0xFFFF_8700_0000_0000..=u64::MAX, vec![0xFFFF_8800_0000_0000]),
        ] {
            let found: Vec<u64> = space.extents(range.clone()).map(|extent| extent.unwrap().address).collect();
            assert_eq!(found, expected, "{range:x?}");
        }
        assert!(matches!(space.read::<u8>(0xFFFF_8000_0000_0000), Err(Error::GuestAddress { .. })));
    });
}

#[test]
fn machine_frame_that_moved_is_found_after_invalidation() {
    with_each_pv_guest(|host, domain, mode| {
        map_at_zero(domain, mode, &[mfn(domain, 19)]);
        let space = open(host, domain);
        domain.write(mfn(domain, 19), 0, &19_u64.to_ne_bytes());
        domain.write(mfn(domain, 20), 0, &20_u64.to_ne_bytes());
        assert_eq!(space.read::<u64>(0).unwrap(), 19);
        let lowest = mfn(domain, if mode == PagingMode::Pae { 2 } else { 3 });
        domain.write(lowest, 0, &((mfn(domain, 20).get() << 12) | 0x67).to_ne_bytes());
        assert_eq!(space.read::<u64>(0).unwrap(), 19, "stale");
        space.invalidate(0..1);
        assert_eq!(space.read::<u64>(0).unwrap(), 20);
    });
}

/// Sets an entry of the guest's p2m, as the guest would; to no frame if `gfn` is `None`.
fn set_p2m(domain: &MockDomain, mode: PagingMode, pfn: u64, gfn: Option<Gfn>) {
    let size = if mode == PagingMode::Pae { 4 } else { 8 };
    let entry = |gfn: Option<Gfn>| gfn.map_or([0xFF; 8], |gfn| gfn.get().to_ne_bytes())[..size].to_vec();
    let first: Vec<u8> = (0..8).flat_map(|number| entry(Some(mfn(domain, number)))).collect();
    let table = domain.frames().into_iter().find(|gfn| domain.read(*gfn, 0, first.len()) == first).unwrap();
    domain.write(table, usize::try_from(pfn).unwrap() * size, &entry(gfn));
}

#[test]
fn frame_that_the_guest_gets_is_found_as_soon_as_it_is_in_the_p2m() {
    with_each_pv_guest(|host, domain, mode| {
        map_at_zero(domain, mode, &[mfn(domain, 19), mfn(domain, 30)]);
        set_p2m(domain, mode, 30, None);
        let space = open(host, domain);
        assert_eq!(space.translate(0).unwrap().physical, 19 * KIB_4);
        assert!(matches!(space.translate(0x1000), Err(Error::Translation { address: 0x1000, .. })));
        set_p2m(domain, mode, 30, Some(mfn(domain, 30)));
        assert_eq!(space.translate(0x1000).unwrap().physical, 30 * KIB_4, "failures are not remembered");
    });
}

#[test]
fn what_the_p2m_said_is_forgotten_with_translations() {
    with_each_pv_guest(|host, domain, mode| {
        map_at_zero(domain, mode, &[mfn(domain, 19), mfn(domain, 20)]);
        let space = open(host, domain);
        assert_eq!(space.translate(0).unwrap().physical, 19 * KIB_4);
        set_p2m(domain, mode, 19, None);
        set_p2m(domain, mode, 20, None);
        assert_eq!(space.translate(0).unwrap().physical, 19 * KIB_4, "stale");
        assert_eq!(space.translate(0x1000).unwrap().physical, 20 * KIB_4, "stale");
        space.invalidate(0..1);
        for address in [0, 0x1000] {
            assert_eq!(space.translate(address).is_err(), address == 0, "only one was invalidated");
        }
        space.invalidate_all();
        assert!(space.translate(0x1000).is_err());
    });
}

#[test]
fn frames_of_a_large_page_are_looked_up_one_by_one() {
    with_each_pv_guest(|host, domain, mode| {
        // Xen allows no such entries, but a caller may pass tables that are none.
        map_at_zero(domain, mode, &[]);
        let directory = mfn(domain, if mode == PagingMode::Pae { 1 } else { 2 });
        let large = mfn(domain, 8).address() & !0x1F_FFFF;
        domain.write(directory, 0, &(large | 0xE7).to_ne_bytes());
        let space = open(host, domain);
        let inside: Vec<(u64, u64)> = (8..64)
            .map(|number| (mfn(domain, number).address().wrapping_sub(large), number * KIB_4))
            .filter(|(address, _)| *address < 0x20_0000)
            .collect();
        assert!(inside.len() > 16);
        for _ in 0..2 {
            for (address, physical) in &inside {
                let found = space.translate(address + 5).unwrap();
                assert_eq!((found.physical, found.page_size), (physical + 5, KIB_4));
            }
        }
        let extents: Vec<_> = space.extents(0..0x20_0000).flatten().collect();
        for (address, physical) in inside {
            let extent = extents.iter().find(|e| (e.address..e.address + e.len).contains(&address)).unwrap();
            assert_eq!((extent.physical + (address - extent.address), extent.page_size), (physical, KIB_4));
        }
    });
}
