//! A guest's RAM, mapped as a whole, through rust-vmm's vm-memory traits.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::sync::atomic::Ordering;

use crate::common::{FRAME, Guest as TestGuest, Host, mock, on_each_host, pfns};
use crate::hole::{at, gfn, with_a_hole};
use vm_memory::{
    Bytes, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestRegionCollection, MemoryRegionAddress,
};
use xenmap::mock::Dom0;
use xenmap::vm_memory::RamRegion;
use xenmap::{Error, Guest, GuestKind, NumberRange, Pfn};

fn map_all(host: &Host, guest: &TestGuest) -> GuestRegionCollection<RamRegion> {
    Guest::open(&host.open(), guest.domid()).unwrap().map_ram(&[0..8, 8..16].map(pfns)).unwrap()
}

fn regions(ram: &GuestRegionCollection<RamRegion>) -> Vec<(u64, u64)> {
    ram.iter().map(|region| (region.start_addr().0 / FRAME as u64, region.len() / FRAME as u64)).collect()
}

#[test]
fn each_region_ends_at_a_hole() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let ram = map_all(host, &guest);
        assert_eq!(regions(&ram), [(0, 5), (6, 10)]);
        let failed = ram.find_region(at(6, 0)).unwrap().mapping().failed();
        assert_eq!(failed.iter().map(|e| (e.index, e.errno)).collect::<Vec<_>>(), [(5, libc::EINVAL)]);
    });
}

#[test]
fn writes_reach_the_guest() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let ram = map_all(host, &guest);
        assert_eq!(ram.read_obj::<u64>(at(7, 0)).unwrap(), 7);
        ram.write_slice(b"a text across the border", at(7, FRAME - 6)).unwrap();
        assert_eq!(guest.read(gfn(7), FRAME - 6, 6), b"a text");
        assert_eq!(guest.read(gfn(8), 0, 18), b" across the border");
        guest.write(gfn(15), 4, &0x1234_5678_u32.to_ne_bytes());
        assert_eq!(ram.load::<u32>(at(15, 4), Ordering::Acquire).unwrap(), 0x1234_5678);
        ram.store(9_u16, at(15, FRAME - 2), Ordering::Release).unwrap();
        assert_eq!(guest.read(gfn(15), FRAME - 2, 2), 9_u16.to_ne_bytes());
    });
}

#[test]
fn no_slice_spans_a_hole() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let ram = map_all(host, &guest);
        assert!(ram.get_slice(at(4, 1), FRAME - 1).is_ok());
        assert!(ram.get_slice(at(4, 1), FRAME).is_err());
        assert!(ram.get_slice(at(5, 0), 1).is_err());
        let slices: Vec<_> = GuestMemoryBackend::get_slices(&ram, at(4, 0), 3 * FRAME).collect();
        assert_eq!(slices.len(), 2, "a slice follows the error");
        assert_eq!(slices[0].as_ref().unwrap().len(), FRAME);
        assert!(matches!(slices[1], Err(GuestMemoryError::InvalidGuestAddress(a)) if a == at(5, 0)));
    });
}

#[test]
fn access_to_a_hole_is_an_error() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let ram = map_all(host, &guest);
        assert!(ram.read_obj::<u64>(at(5, 8)).is_err());
        assert!(ram.read_obj::<u64>(at(4, FRAME - 4)).is_err());
        assert!(ram.write_obj(1_u64, at(4, FRAME - 4)).is_err());
        assert!(ram.load::<u8>(at(5, 0), Ordering::Relaxed).is_err());
        assert!(ram.store(1_u8, at(16, 0), Ordering::Relaxed).is_err());
        assert!(!GuestMemoryBackend::check_range(&ram, at(4, 0), 2 * FRAME));
    });
}

#[test]
fn no_access_reaches_past_a_region() {
    on_each_host(|host| {
        let guest = with_a_hole(host);
        let ram = map_all(host, &guest);
        let region = ram.find_region(at(0, 0)).unwrap();
        let end = MemoryRegionAddress(region.len());
        assert_eq!(region.get_slice(end, 0).unwrap().len(), 0);
        for (offset, count) in [(0, 5 * FRAME + 1), (region.len(), 1), (1, usize::MAX), (u64::MAX, 0), (u64::MAX, 2)] {
            assert!(region.get_slice(MemoryRegionAddress(offset), count).is_err(), "{count} bytes at {offset}");
        }
        assert!(region.get_host_address(end).is_err());
        let first = region.get_host_address(MemoryRegionAddress(0)).unwrap();
        assert_eq!(region.as_volatile_slice().unwrap().ptr_guard().as_ptr(), first.cast_const());
        assert!(region.read(&mut [0], end).is_err());
        assert!(region.write_obj(1_u64, MemoryRegionAddress(region.len() - 4)).is_err());
    });
}

#[test]
fn ranges_may_come_in_any_order() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let guest = Guest::open(&memory, guest.domid()).unwrap();
        let ram = guest.map_ram(&[8..12, 3..3, 0..2, 10..14, 2..3].map(pfns)).unwrap();
        assert_eq!(regions(&ram), [(0, 3), (8, 6)]);
    });
}

#[test]
fn no_ram_at_all_is_an_error() {
    on_each_host(|host| {
        let test_guest = host.create(GuestKind::Hvm, 16);
        let memory = host.open();
        let guest = Guest::open(&memory, test_guest.domid()).unwrap();
        assert!(matches!(guest.map_ram(&[]), Err(Error::Empty)));
        assert!(matches!(guest.map_ram(&[4..4, 9..9].map(pfns)), Err(Error::Empty)));
        assert!(
            matches!(guest.map_ram(&[100..102, 104..105].map(pfns)), Err(Error::Frames(e)) if e.failed().len() == 3)
        );
        assert!(guest.map_ram(&[0..1, (1 << 40) - 1..1 << 40].map(pfns)).is_ok(), "the second range has no RAM");
        assert!(matches!(guest.map_ram(&[0..1 << 40, 0..1].map(pfns)), Err(Error::TooManyFrames { .. })));
        for numbers in [u64::MAX - 1..u64::MAX, 0..u64::MAX] {
            assert!(NumberRange::<Pfn>::try_from(numbers).is_err());
        }
        drop(test_guest);
        assert_eq!(guest.map_ram(&[0..8, 8..16].map(pfns)).unwrap_err().errno(), libc::ESRCH);
    });
}

#[test]
fn memory_is_released_with_the_last_region() {
    on_each_host(|host| {
        let mut guest = with_a_hole(host);
        let ram = map_all(host, &guest);
        let region = ram.find_region(at(0, 0)).unwrap().clone();
        let other = ram.clone();
        drop((ram, other));
        guest.destroy();
        assert_eq!(host.owned(guest.domid()), Some(15), "a zombie");
        assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(4096)).unwrap(), 1, "still mapped");
        drop(region);
        assert_eq!(host.owned(guest.domid()), None);
    });
}

#[test]
fn access_makes_no_hypercall() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Hvm, 16);
    let memory = host.open().unwrap();
    let ram = Guest::open(&memory, domain.domid()).unwrap().map_ram(&[0..8, 8..16].map(pfns)).unwrap();
    let before = host.hypercalls();
    for i in 0..1000 {
        ram.write_obj(i, at(i % 15, FRAME - 4)).unwrap();
        assert_eq!(ram.read_obj::<u64>(at(i % 15, FRAME - 4)).unwrap(), i);
    }
    assert_eq!(host.hypercalls(), before);
    assert_eq!(host.references(domain.domid()), 16, "each frame is mapped once");
}
