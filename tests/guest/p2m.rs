//! The RAM of PV guests by their own frame numbers, through the table that the guest keeps.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::os::unix::fs::FileExt;

use crate::common::{ReadOnly, ReadWrite, mock, mock_with, on_each_host_with_pv_guests, pfn, pfns};
use proptest::prelude::*;
use xenmap::mock::{Dom0, HostConfig, MockDomain, MockHost, PvHole, PvKernel};
use xenmap::{Domid, Error, ForeignMemory, Gfn, Guest, GuestKind, InvalidNumber, NumberRange, Pfn, RamMap};

/// Offsets in a 64-bit guest's `shared_info` (xen/include/public/arch-x86/xen.h).
const MAX_PFN: usize = 3088;
const LIST_LIST: usize = 3096;
const P2M_CR3: usize = 3112;
const P2M_VADDR: usize = 3120;
const P2M_GENERATION: usize = 3128;

fn kernel(is_64_bit: bool, has_list: bool, has_linear: bool) -> PvKernel {
    let mut kernel = PvKernel::default();
    (kernel.is_64_bit, kernel.has_list, kernel.has_linear) = (is_64_bit, has_list, has_linear);
    kernel
}

/// Creates a guest with 3000 frames and holes of each kind.
fn start(host: &MockHost, mut kernel: PvKernel) -> MockDomain {
    let guest = host.create_domain(GuestKind::Pv, 3000);
    kernel.holes.push((pfns(160..256), PvHole::Identity));
    kernel.holes.push((pfns(1500..1600), PvHole::BalloonedOut));
    kernel.holes.push((pfns(1600..1601), PvHole::Foreign));
    guest.start_kernel(&kernel);
    guest
}

fn set(guest: &MockDomain, offset: usize, value: u64) {
    guest.write(guest.shared_info(), offset, &value.to_ne_bytes());
}

fn word(guest: &MockDomain, gfn: Gfn, index: usize) -> u64 {
    u64::from_ne_bytes(guest.read(gfn, 8 * index, 8).try_into().unwrap())
}

fn frame(number: u64) -> Gfn {
    Gfn::new(number).unwrap()
}

/// Returns the expected contents of the guest's table, up to a few frames past its end.
fn expected(guest: &MockDomain) -> Vec<Option<Gfn>> {
    pfns(0..4000).into_iter().map(|pfn| guest.mfn(pfn)).collect()
}

/// Returns the lowest-level page table that maps the first frame of a 64-bit guest's linear table, and the entry's
/// index.
fn lowest_page_table(guest: &MockDomain) -> (Gfn, usize) {
    let shared_info = guest.read(guest.shared_info(), 0, 4096);
    let at = |offset: usize| u64::from_ne_bytes(shared_info[offset..offset + 8].try_into().unwrap());
    let (cr3, vaddr) = (at(P2M_CR3), at(P2M_VADDR));
    let mut table = frame(cr3 >> 12);
    for shift in [39, 30, 21] {
        let index = usize::try_from(vaddr >> shift & 511).unwrap();
        table = frame(word(guest, table, index) >> 12);
    }
    (table, usize::try_from(vaddr >> 12 & 511).unwrap())
}

fn p2m_error(result: Result<impl Sized, Error>) -> String {
    match result {
        Err(e @ Error::P2m { .. }) => e.to_string(),
        Err(e) => panic!("another error: {e}"),
        Ok(_) => panic!("no error"),
    }
}

fn ram_map(memory: &ForeignMemory, domid: Domid) -> Result<RamMap, Error> {
    Guest::open(memory, domid)?.ram_map()
}

#[test]
fn guest_that_has_not_started_is_a_clear_error() {
    on_each_host_with_pv_guests(|host| {
        let guest = host.create(GuestKind::Pv, 16);
        let message = p2m_error(ram_map(&host.open(), guest.domid()));
        assert!(message.ends_with("the guest has not started"), "{message}");
    });
}

#[test]
fn frames_are_where_the_guests_table_says() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        for (is_64_bit, has_list, has_linear) in
            [(true, true, true), (true, true, false), (true, false, true), (false, true, false), (false, false, true)]
        {
            let host = mock(dom0);
            let guest = start(&host, kernel(is_64_bit, has_list, has_linear));
            let memory = host.open().unwrap();
            let guest_by_pfn = Guest::open(&memory, guest.domid()).unwrap();
            assert_eq!(
                guest_by_pfn.gfns(pfns(0..4000)).unwrap(),
                expected(&guest),
                "{is_64_bit} {has_list} {has_linear}"
            );
            assert_eq!(guest_by_pfn.gfns(pfns(1599..1602)).unwrap(), [None, None, guest.mfn(pfn(1601))]);
            assert_eq!(host.references(guest.domid()), 0, "nothing stays mapped");
        }
    }
}

#[test]
fn read_and_write_take_the_guests_own_addresses() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, PvKernel::default());
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    // Frames 7 and 8 are not adjacent in machine memory.
    guest.write(8 * 4096 - 6, b"across a border").unwrap();
    assert_eq!(domain.read(domain.mfn(pfn(7)).unwrap(), 4090, 6), b"across");
    assert_eq!(domain.read(domain.mfn(pfn(8)).unwrap(), 0, 9), b" a border");
    let mut text = [0; 15];
    guest.read(8 * 4096 - 6, &mut text).unwrap();
    assert_eq!(&text, b"across a border");
}

#[test]
fn access_to_a_frame_without_ram_names_its_address() {
    for dom0 in [Dom0::Pv, Dom0::Pvh] {
        let host = mock(dom0);
        let domain = start(&host, PvKernel::default());
        let memory = host.open().unwrap();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let result = guest.read(1499 * 4096, &mut [0; 8192]);
        let Err(Error::GuestAddress { address, errno, .. }) = result else { panic!("no such error: {result:?}") };
        assert_eq!((address, errno), (1500 * 4096, libc::EINVAL));
        let mapping = guest.map_partial(ReadOnly, pfns(1499..1602)).unwrap();
        assert_eq!(mapping.failed().iter().map(|e| e.index).collect::<Vec<usize>>(), (1..102).collect::<Vec<usize>>());
    }
}

#[test]
fn page_tables_can_be_read_and_not_written() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, PvKernel::default());
    let (table, _) = lowest_page_table(&domain);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let table = pfns(0..4000).into_iter().find(|&pfn| domain.mfn(pfn) == Some(table)).unwrap().range(1).unwrap();
    guest.map(ReadOnly, table).unwrap();
    assert_eq!(guest.map(ReadWrite, table).unwrap_err().errno(), libc::EBUSY);
}

#[test]
fn table_that_has_moved_is_found_again() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, kernel(true, false, true));
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    assert_eq!(guest.gfns(pfns(0..1)).unwrap(), [domain.mfn(pfn(0))]);

    // The guest moves the first frame of its table, and changes the first entry.
    let new = domain.mfn(pfn(2999)).unwrap();
    domain.write(new, 0, &domain.mfn(pfn(5)).unwrap().get().to_ne_bytes());
    let (table, index) = lowest_page_table(&domain);
    domain.write(table, 8 * index, &(new.get() << 12 | 0x63).to_ne_bytes());
    set(&domain, P2M_GENERATION, 2);
    assert_eq!(guest.gfns(pfns(0..1)).unwrap(), [domain.mfn(pfn(5))]);
}

#[test]
fn constantly_changing_table_is_an_error() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, kernel(true, false, true));
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    set(&domain, P2M_GENERATION, 7);
    let message = p2m_error(guest.gfns(pfns(0..1)));
    assert!(message.ends_with("pause the guest"), "{message}");
    set(&domain, P2M_GENERATION, 8);
    assert_eq!(guest.gfns(pfns(0..1)).unwrap(), [domain.mfn(pfn(0))]);
}

#[test]
fn list_is_used_where_the_linear_table_cannot_be() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, PvKernel::default());
    let memory = host.open().unwrap();
    for (offset, value) in [(P2M_GENERATION, 7), (P2M_CR3, 0x1234_5678 << 12), (P2M_VADDR, 3)] {
        let before = domain.read(domain.shared_info(), offset, 8);
        set(&domain, offset, value);
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        assert_eq!(guest.gfns(pfns(0..4000)).unwrap(), expected(&domain));
        domain.write(domain.shared_info(), offset, &before);
    }
}

#[test]
fn frames_above_4_gib_of_a_32_bit_guest_are_named_by_a_folded_cr3() {
    // See xen_pfn_to_cr3 in x86_32.h. A simulated machine has no such frames, so the test sees that none is found.
    let host = mock(Dom0::Pv);
    let domain = start(&host, kernel(false, false, true));
    let memory = host.open().unwrap();
    let cr3 = u32::from_ne_bytes(domain.read(domain.shared_info(), 2328, 4).try_into().unwrap());
    domain.write(domain.shared_info(), 2328, &(cr3 | 1).to_ne_bytes());
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let message = p2m_error(guest.gfns(pfns(0..1)));
    assert!(message.ends_with("it leads to frames that are not the guest's"), "{message}");
}

#[test]
fn guest_with_neither_table_is_a_clear_error() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, kernel(true, false, false));
    let message = p2m_error(ram_map(&host.open().unwrap(), domain.domid()));
    assert!(message.ends_with("the guest does not say where it is"), "{message}");
}

#[test]
fn without_the_toolstacks_interface_a_pv_guest_is_a_clear_error() {
    let mut config = HostConfig::default();
    config.xen = (4, 10);
    let host = mock_with(config);
    let domain = start(&host, PvKernel::default());
    let message = ram_map(&host.open().unwrap(), domain.domid()).unwrap_err().to_string();
    assert!(message.contains("this xen's toolstack interface has an unknown version"), "{message}");
}

#[test]
fn growing_table_is_searched_to_its_new_end() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, PvKernel::default());
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let full = guest.ram_map().unwrap();
    let max_pfn = word(&domain, domain.shared_info(), MAX_PFN / 8);
    domain.write(domain.shared_info(), MAX_PFN, &(max_pfn - 10).to_ne_bytes());
    assert_ne!(guest.ram_map().unwrap(), full);
    domain.write(domain.shared_info(), MAX_PFN, &max_pfn.to_ne_bytes());
    assert_eq!(guest.ram_map().unwrap(), full);
}

#[test]
fn guest_that_died_is_an_error() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, PvKernel::default());
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    guest.gfns(pfns(0..1)).unwrap();
    domain.destroy();
    assert_eq!(guest.gfns(pfns(0..1)).unwrap_err().errno(), libc::ESRCH);
}

#[test]
fn lookup_costs_one_small_mapping() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, PvKernel::default());
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    guest.gfns(pfns(0..1024)).unwrap();
    let before = host.hypercalls();
    guest.gfns(pfns(1024..2048)).unwrap();
    let after = host.hypercalls();
    assert_eq!(after.mmu_update - before.mmu_update, 1);
    assert_eq!(after.pte_writes - before.pte_writes, 3, "shared_info, and two frames of the table");
}

#[test]
fn threads_look_up_concurrently() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, PvKernel::default());
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let expected = expected(&domain);
    std::thread::scope(|scope| {
        for first in [0_u16, 1000, 2000, 2900] {
            let (guest, expected) = (&guest, &expected);
            scope.spawn(move || {
                for _ in 0..20 {
                    let found = guest.gfns(pfns(u64::from(first)..u64::from(first) + 500));
                    assert_eq!(found.unwrap(), expected[first.into()..][..500]);
                }
            });
        }
    });
}

#[test]
fn file_is_a_pv_guests_ram_by_its_own_addresses() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("file_is_a_pv_guests_ram");
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(b"last", 64 << 20).unwrap();
    let host = mock(Dom0::Pv);
    let domain = host.create_pv_domain_from_file(&file).unwrap();
    std::fs::remove_file(path).unwrap();
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let mut bytes = [0; 6];
    guest.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"first\0");
    guest.read(64 << 20, &mut bytes).unwrap();
    assert_eq!(&bytes, b"last\0\0");
    assert!(guest.read(32 << 20, &mut bytes).is_err());
    assert!(memory.current_reservation(domain.domid()).unwrap() < 100);
}

#[test]
fn endless_table_is_searched_only_where_a_guest_may_have_frames() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, PvKernel::default());
    set(&domain, MAX_PFN, u64::MAX);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    assert!(guest.scan(xenmap::Search::default()).unwrap().untried() <= (1 << 27) + 4000);
    assert_eq!(guest.gfns(pfns(0..1)).unwrap(), [domain.mfn(pfn(0))]);
    assert!(guest.gfns(pfns((1 << 40) - 3..1 << 40)).is_ok_and(|gfns| gfns == [None; 3]));
    for numbers in [(1 << 40) - 3..(1 << 40) + 1, u64::MAX - 3..u64::MAX] {
        assert!(matches!(NumberRange::<Pfn>::try_from(numbers), Err(InvalidNumber::Frame { .. })));
    }
    assert!(matches!(guest.gfns(pfns(0..1 << 40)), Err(Error::TooManyFrames { .. })));
}

#[test]
fn cyclic_page_tables_lead_nowhere() {
    let host = mock(Dom0::Pv);
    let domain = start(&host, kernel(true, false, true));
    // Each entry of the top-level table points to that table.
    let top = domain.mfn(pfn(1)).unwrap();
    domain.write(top, 0, &(top.get() << 12 | 0x63).to_ne_bytes().repeat(512));
    set(&domain, P2M_CR3, top.get() << 12);
    set(&domain, MAX_PFN, u64::MAX);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    // The p2m entries found this way are page-table entries, which name no existing frame.
    let found = guest.gfns(pfns(0..2000)).unwrap();
    assert!(found.iter().flatten().all(|&gfn| gfn.get() == (top.get() << 12 | 0x63)));
    assert!(guest.read(0, &mut [0; 8]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_table_is_read_correctly(
        frames in 1_usize..3000,
        holes in prop::collection::vec((0_u64..6000, 1_u64..2000, 0_usize..3), 0..6),
        is_64_bit in any::<bool>(),
        (has_list, has_linear) in prop::sample::select(vec![(true, true), (true, false), (false, true)]),
        start in 0_u64..9000,
        len in 0_u64..3000,
    ) {
        let host = mock(Dom0::Pv);
        let domain = host.create_domain(GuestKind::Pv, frames);
        let mut kernel = kernel(is_64_bit, has_list, has_linear);
        for (first, len, kind) in holes {
            let kind = [PvHole::BalloonedOut, PvHole::Foreign, PvHole::Identity][kind];
            kernel.holes.push((pfns(first..first + len), kind));
        }
        domain.start_kernel(&kernel);
        let memory = host.open().unwrap();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let expected: Vec<Option<Gfn>> = pfns(start..start + len).into_iter().map(|pfn| domain.mfn(pfn)).collect();
        prop_assert_eq!(guest.gfns(pfns(start..start + len)).unwrap(), expected);
        let map = guest.ram_map().unwrap();
        let ram: u64 = map.ranges().iter().map(|range| range.len() as u64).sum();
        prop_assert_eq!(ram, memory.current_reservation(domain.domid()).unwrap());
    }

    #[test]
    fn garbage_in_the_tables_is_at_most_an_error(
        words in prop::collection::vec((0_usize..512, 0_u64..16, any::<u64>()), 1..200),
        roots in prop::array::uniform5(prop::option::of((0_u64..16, any::<u64>()))),
        is_64_bit in any::<bool>(),
    ) {
        let host = mock(Dom0::Pv);
        let domain = host.create_domain(GuestKind::Pv, 16);
        domain.start_kernel(&kernel(is_64_bit, true, true));
        // The guest's frames, as entries of lists and of tables, and random numbers.
        let frames = domain.frames();
        let near = |number: u64, any: u64| {
            let gfn = frames[usize::try_from(number).unwrap() % frames.len()].get();
            match any % 3 {
                0 => gfn,
                1 => gfn << 12 | 1,
                _ => any,
            }
        };
        for (i, &(index, number, any)) in words.iter().enumerate() {
            domain.write(frames[i % frames.len()], 8 * index, &near(number, any).to_ne_bytes());
        }
        let memory = host.open().unwrap();
        let guest = Guest::open(&memory, domain.domid()).unwrap();
        let offsets_64 = [MAX_PFN, LIST_LIST, P2M_CR3, P2M_VADDR, P2M_GENERATION];
        let offsets = if is_64_bit { offsets_64 } else { [2316, 2320, 2328, 2332, 2336] };
        for (offset, root) in offsets.into_iter().zip(roots) {
            let width = if is_64_bit { 8 } else { 4 };
            if let Some((number, any)) = root {
                domain.write(domain.shared_info(), offset, &near(number, any).to_ne_bytes()[..width]);
            }
        }
        for first in [0, 512, 1 << 18, (1 << 27) - 1, 1 << 39] {
            if let Ok(gfns) = guest.gfns(pfns(first..first + 600)) {
                prop_assert_eq!(gfns.len(), 600);
            }
            let _ = guest.read(first * 4096, &mut [0; 64]);
        }
        if let Ok(guest) = Guest::open(&memory, domain.domid())
            && let Ok(mut scan) = guest.scan(xenmap::Search::default())
        {
            // The search may take long, but each step makes progress.
            for _ in 0..5 {
                let before = scan.untried();
                match scan.step() {
                    Ok(true) => prop_assert!(scan.untried() < before),
                    Ok(false) | Err(_) => break,
                }
            }
        }
        prop_assert_eq!(host.references(domain.domid()), 0);
    }
}
