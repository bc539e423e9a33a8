//! Reading and writing.

use xenmap::{AddressSpace, Error, GuestKind, PageTables, PagingMode};

use crate::common::{FRAME, on_each_host};
use crate::tables::{ALL, GIB_1, KIB_4, LARGE, MIB_2, Tables, untranslated};

const NOT_PRESENT: &str = "its entry in the page table (level 1) is not present";

/// Maps four pages to frames that are not neighbours, the last before a page that is not mapped.
fn scattered(tables: &Tables, address: u64) {
    for (page, frame) in [9, 4, 5, 0].into_iter().enumerate() {
        tables.map(address + page as u64 * KIB_4, frame);
    }
}

#[test]
fn words_are_read_and_written_wherever_they_are() {
    on_each_host(|host| {
        for (mode, address) in [
            (PagingMode::Pae, 0xC060_1000),
            (PagingMode::FourLevels, 0xFFFF_8881_4060_1000),
            (PagingMode::FiveLevels, 0xFF42_0881_4060_1000),
        ] {
            let tables = Tables::new(host, mode);
            scattered(&tables, address);
            let memory = host.open();
            let space = tables.open(&memory);
            for round in 0..2_u8 {
                for offset in [0, 8, 0xFF8, 0xFF9, 0xFFC, 0xFFF, 0x1FFE] {
                    let word = 0x0123_4567_89AB_CDE0 + u64::from(round);
                    space.write(address + offset, word).unwrap();
                    assert_eq!(space.read::<u64>(address + offset).unwrap(), word, "{mode:?} {offset:#x}");
                    let [frame, next] = if offset < 0x1000 { [9, 4] } else { [4, 5] };
                    let both = [tables.read(frame, 0, FRAME), tables.read(next, 0, FRAME)].concat();
                    let at = usize::try_from(offset % KIB_4).unwrap();
                    assert_eq!(both[at..at + 8], word.to_ne_bytes(), "{mode:?} {offset:#x}");
                }
                space.write(address + 0x100, 7_u8 + round).unwrap();
                space.write(address + 0x1FFF, 0x0809_u16).unwrap();
                assert_eq!(space.read::<u8>(address + 0x100).unwrap(), 7 + round);
                assert_eq!(space.read::<u16>(address + 0x1FFF).unwrap(), 0x0809);
                assert_eq!(space.read::<u32>(address + 0x1FFF).unwrap() & 0xFFFF, 0x0809);
            }
        }
    });
}

#[test]
fn bytes_are_read_and_written_across_pages_that_are_not_neighbours() {
    on_each_host(|host| {
        let (tables, address) = (Tables::four_levels(host), 0x7F00_0020_0000);
        scattered(&tables, address);
        let memory = host.open();
        let space = tables.open(&memory);
        let text: Vec<u8> = (0..=250).cycle().take(3 * FRAME).collect();

        space.write_bytes(address + 0xF00, &text).unwrap();
        let parts = [
            tables.read(9, 0xF00, 0x100),
            tables.read(4, 0, FRAME),
            tables.read(5, 0, FRAME),
            tables.read(0, 0, 0xF00),
        ];
        assert_eq!(parts.concat(), text);
        assert_eq!(tables.read(9, 0xE00, 0x100), [0; 0x100], "nothing is written before it");
        assert_eq!(tables.read(0, 0xF00, 0x100), [0; 0x100], "nothing is written after it");

        let mut read = vec![0; text.len()];
        space.read_bytes(address + 0xF00, &mut read).unwrap();
        assert_eq!(read, text);
        space.read_bytes(1 << 47, &mut []).unwrap();
        space.write_bytes(1 << 47, &[]).unwrap();
    });
}

#[test]
fn read_some_says_how_far_it_came() {
    on_each_host(|host| {
        let (tables, address) = (Tables::four_levels(host), 0x7F00_0020_0000);
        scattered(&tables, address);
        tables.number_frames();
        let memory = host.open();
        let space = tables.open(&memory);
        let mut bytes = vec![0xAA; 5 * FRAME];
        assert_eq!(space.read_some(address + 8, &mut bytes).unwrap(), 4 * FRAME - 8);
        assert_eq!(bytes[..FRAME - 8], 9_u64.to_ne_bytes().repeat(FRAME / 8 - 1));
        assert_eq!(bytes[4 * FRAME - 8..], [0xAA; FRAME + 8], "the rest is left alone");
        assert_eq!(space.read_some(address, &mut bytes[..10]).unwrap(), 10);
        assert_eq!(space.read_some(address + 4 * KIB_4, &mut []).unwrap(), 0);
        let end = address + 4 * KIB_4;
        assert_eq!(untranslated(space.read_some(end, &mut bytes)), (end, NOT_PRESENT));
        assert_eq!(untranslated(space.read_bytes(address, &mut bytes)), (end, NOT_PRESENT));
        assert_eq!(untranslated(space.write_bytes(end - 4, &[0; 8])), (end, NOT_PRESENT));
        assert_eq!(untranslated(space.read::<u64>(end - 4)), (end, NOT_PRESENT));
    });
}

#[test]
fn strings_end_at_the_zero_byte_or_the_limit() {
    on_each_host(|host| {
        let (tables, address) = (Tables::four_levels(host), 0x7F00_0020_0000);
        scattered(&tables, address);
        let memory = host.open();
        let space = tables.open(&memory);
        let end = address + 4 * KIB_4;
        let long = [b'x'; 150];
        space.write_bytes(address + KIB_4 - 100, &long).unwrap();
        space.write_bytes(end - 5, b"last\0").unwrap();

        assert_eq!(space.read_c_string(address + KIB_4 - 100, usize::MAX).unwrap(), long);
        assert_eq!(space.read_c_string(address + KIB_4 - 100, 120).unwrap(), long[..120]);
        assert_eq!(space.read_c_string(address, 10).unwrap(), b"");
        assert_eq!(space.read_c_string(address + 4 * KIB_4, 0).unwrap(), b"");
        assert_eq!(space.read_c_string(end - 5, 100).unwrap(), b"last");
        space.write_bytes(end - 5, b"lasts").unwrap();
        assert_eq!(untranslated(space.read_c_string(end - 5, 100)), (end, NOT_PRESENT));
        assert_eq!(space.read_c_string(end - 5, 5).unwrap(), b"lasts");
    });
}

#[test]
fn chains_of_pointers_are_followed_by_the_guests_pointer_size() {
    on_each_host(|host| {
        for (mode, size) in [(PagingMode::Pae, 4), (PagingMode::FourLevels, 8)] {
            let tables = Tables::new(host, mode);
            scattered(&tables, 0x60_0000);
            let memory = host.open();
            let space = tables.open(&memory);
            let put = |at: u64, pointer: u64| space.write_bytes(at, &pointer.to_ne_bytes()[..size]).unwrap();
            // The second pointer is the last of its page, and a lower address than the first.
            put(0x60_1008, 0x60_0000);
            put(0x60_1000 - size as u64, 0x60_3000);
            let to_last = 0x1000 - size as u64;
            assert_eq!(space.follow(0x60_1000, &[8, to_last]).unwrap(), 0x60_3000);
            assert_eq!(space.follow(0x60_1010, &[0_u64.wrapping_sub(8)]).unwrap(), 0x60_0000);
            assert_eq!(space.follow(5, &[]).unwrap(), 5);
            assert_eq!(untranslated(space.follow(0x60_1000, &[8, 0x4000])).0, 0x60_4000);
        }
    });
}

#[test]
fn translation_has_the_size_and_the_rights_of_the_page() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.set(GIB_1, 3, (5 * GIB_1) | LARGE | 1);
        tables.set(2 * GIB_1, 2, (7 * MIB_2) | LARGE | ALL);
        tables.set(3 * GIB_1, 1, (9 * KIB_4) | ALL | 1 << 63);
        let memory = host.open();
        let space = tables.open(&memory);
        let cases = [
            (GIB_1 + 0x1234_5678, 5 * GIB_1 + 0x1234_5678, GIB_1, [false, false, true]),
            (2 * GIB_1 + 0x12_3456, 7 * MIB_2 + 0x12_3456, MIB_2, [true, true, true]),
            (3 * GIB_1 + 0x123, 9 * KIB_4 + 0x123, KIB_4, [true, true, false]),
        ];
        // The second time, the translations are remembered.
        for _ in 0..2 {
            for (address, physical, page_size, rights) in cases {
                let found = space.translate(address).unwrap();
                assert_eq!((found.physical, found.page_size), (physical, page_size), "{address:#x}");
                let of = found.rights;
                assert_eq!([of.writable, of.user, of.executable], rights, "{address:#x}");
            }
        }
    });
}

#[test]
fn memory_that_does_not_exist_is_an_error_with_its_physical_address() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        let hole = tables.guest.hole().get();
        tables.map(0x1000, hole);
        tables.set(0x4000_0000, 3, hole << 12 | ALL); // a table that does not exist
        let memory = host.open();
        let space = tables.open(&memory);
        for _ in 0..2 {
            match space.read::<u64>(0x1008) {
                Err(Error::GuestAddress { domid, address, .. }) => {
                    assert_eq!((domid, address), (tables.guest.domid(), hole * KIB_4 + 8));
                }
                other => panic!("{other:x?}"),
            }
            match space.read::<u64>(0x4020_0000) {
                Err(Error::GuestAddress { address, .. }) => assert_eq!(address, hole * KIB_4 + 8),
                other => panic!("{other:x?}"),
            }
        }
        assert_eq!(untranslated(space.read::<u64>(1 << 47)), (1 << 47, "it is not canonical"));
        assert_eq!(untranslated(space.read::<u64>(u64::MAX)).1, "its entry in the PML4 (level 4) is not present");
    });
}

#[test]
fn frames_next_to_a_hole_are_accessible() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.number_frames();
        tables.guest.balloon_out(tables.gfns[4]);
        tables.map(0x1000, 4);
        tables.map(0x2000, 5);
        let memory = host.open();
        let space = tables.open(&memory);
        for word in 7..9_u64 {
            assert!(space.read::<u64>(0x1000).is_err());
            space.write(0x2008, word).unwrap();
            assert_eq!(space.read::<u64>(0x2008).unwrap(), word);
            assert_eq!(tables.read(5, 8, 8), word.to_ne_bytes());
        }
        // The same through a page of 2 MiB.
        tables.set(0x40_0000, 2, LARGE | ALL);
        assert_eq!(space.read::<u64>(0x40_6000).unwrap(), 6);
        assert!(space.read::<u64>(0x40_4000).is_err());
    });
}

#[test]
fn range_past_the_last_address_is_an_error() {
    on_each_host(|host| {
        let tables = Tables::four_levels(host);
        tables.map(u64::MAX - 0xFFF, 3);
        let memory = host.open();
        let space = tables.open(&memory);
        assert_eq!(space.read::<u8>(u64::MAX).unwrap(), 0);
        assert_eq!(untranslated(space.read::<u16>(u64::MAX)).1, "the range reaches past the last address");
        assert_eq!(space.read_some(u64::MAX - 3, &mut [0; 16]).unwrap(), 4);
        space.write_bytes(u64::MAX - 3, b"last").unwrap();
        tables.map(0, 4);
        assert_eq!(untranslated(space.read_c_string(u64::MAX - 3, 16)).1, "the range reaches past the last address");
        assert_eq!(space.read_c_string(u64::MAX - 3, 4).unwrap(), b"last");
    });
}

#[test]
fn arm64_pages_and_tags_are_understood() {
    on_each_host(|host| {
        // Pages of 16 KiB, 36 bits of address, and tags in the top byte.
        let guest = host.create(GuestKind::Pvh, 64);
        let gfns = guest.gfns();
        guest.write(gfns[0], 0, &(0x4000_u64 | 3).to_ne_bytes());
        guest.write(gfns[4], 0xFF8, &(0x8000_u64 | 3 | 1 << 6).to_ne_bytes());
        guest.write(gfns[11], 0xFF0, &[7; 16]);
        let tcr = 28 << 16 | 1 << 30 | 5 << 32 | 1 << 38;
        let memory = host.open();
        let tables = PageTables::Arm64 { ttbr0: 0, ttbr1: 0, tcr };
        let space = AddressSpace::new(xenmap::Guest::open(&memory, guest.domid()).unwrap(), tables);
        let address = 0xFFFF_FFF0_007F_C000;
        for _ in 0..2 {
            for address in [address, address & !(0x0F << 56), address & !(0xFF << 56)] {
                let found = space.translate(address + 0x3FF0).unwrap();
                assert_eq!((found.physical, found.page_size), (0xBFF0, 0x4000), "{address:#x}");
                assert!(found.rights.user);
                assert_eq!(space.read::<u64>(address + 0x3FF8).unwrap(), 0x0707_0707_0707_0707);
            }
        }
        // A tag does not matter for what is invalidated, either.
        let tagged = address & !(0xFF << 56);
        for invalidated in
            [address..=address + 0x3FFF, tagged..=tagged + 0x3FFF, 5..=tagged + 0x3FFF, 1 << 59..=1 << 60]
        {
            guest.write(gfns[4], 0xFF8, &(0x8000_u64 | 3 | 1 << 6).to_ne_bytes());
            for address in [address, tagged] {
                assert_eq!(space.translate(address + 0x3FF0).unwrap().physical, 0xBFF0);
            }
            guest.write(gfns[4], 0xFF8, &[0; 8]);
            space.invalidate(invalidated.clone());
            for address in [address, tagged] {
                assert!(space.translate(address + 0x3FF0).is_err(), "{address:#x} {invalidated:x?}");
            }
        }
    });
}

#[cfg(feature = "zerocopy")]
#[test]
fn structures_are_read_and_written_across_pages() {
    use zerocopy::{FromBytes, Immutable, IntoBytes};

    #[derive(Debug, PartialEq, FromBytes, IntoBytes, Immutable)]
    #[repr(C)]
    struct Descriptor {
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    }

    on_each_host(|host| {
        let (tables, address) = (Tables::four_levels(host), 0x7F00_0020_0000);
        scattered(&tables, address);
        let memory = host.open();
        let space = tables.open(&memory);
        for offset in [0x10, 0xFF1] {
            let written = Descriptor { address: 1 << 40, len: 2 << 20, flags: 3, next: 4 };
            space.write_as(address + offset, &written).unwrap();
            assert_eq!(space.read_as::<Descriptor>(address + offset).unwrap(), written);
            let mut words = vec![0_u64; 2];
            space.read_into(address + offset, &mut words[..]).unwrap();
            assert_eq!(words, [1 << 40, 0x0004_0003_0020_0000]);
        }
        assert!(space.read_as::<[u64; 0x1000]>(address).is_err());
    });
}
