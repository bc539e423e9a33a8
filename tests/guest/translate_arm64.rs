//! Translation of virtual addresses of arm64 guests, through tables that the tests build in a guest's RAM.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;

use crate::common::translation::{last, reason, translate, translate_by};
use crate::common::{FRAME, Guest, Host, on_each_host};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use xenmap::{Error, GuestKind, PageTables};

const VALID: u64 = 1;
const TABLE: u64 = 2;
/// No-execute, accessed, shareable, EL0, contiguous, dirty, and the bits for software.
const EVERY_BIT_BUT_THE_ADDRESS: u64 = 0xFFF8_0000_0000_0C7C;

/// The address of the tables, after the frames for data. There is room for all tables of a walk, of 64 KiB each.
const TABLES: u64 = 0x10_0000;
const FRAMES: usize = 0x100 + 16 * 8;

/// The format of an address space: the bits of its pages and addresses, and whether it uses LPA2 (`TCR_EL1.DS`).
#[derive(Clone, Copy, Debug)]
struct Made {
    page_bits: u32,
    address_bits: u32,
    ds: bool,
}

const fn made(page_bits: u32, address_bits: u32) -> Made {
    Made { page_bits, address_bits, ds: false }
}

/// All page sizes, all numbers of levels, and small top-level tables.
const ALL: [Made; 14] = [
    made(12, 48),
    made(12, 42),
    made(12, 39),
    made(12, 30),
    made(12, 16),
    made(14, 48),
    made(14, 47),
    made(14, 36),
    made(14, 25),
    made(16, 48),
    made(16, 42),
    made(16, 52),
    Made { page_bits: 12, address_bits: 52, ds: true },
    Made { page_bits: 14, address_bits: 52, ds: true },
];

impl Made {
    fn index_bits(self) -> u32 {
        self.page_bits - 3
    }

    fn levels(self) -> u32 {
        (self.address_bits - self.page_bits).div_ceil(self.index_bits())
    }

    /// Returns the bytes that an entry of a level covers; levels count from the bottom, from 1.
    fn covered(self, level: u32) -> u64 {
        1 << (self.page_bits + self.index_bits() * (level - 1))
    }

    /// Returns the highest level that has pages: of 1 GiB, 32 MiB, 512 MiB; with LPA2 of 512 GiB and 64 GiB.
    fn highest_page(self) -> u32 {
        let highest = if self.page_bits == 12 { 3 } else { 2 };
        self.levels().min(highest + u32::from(self.ds))
    }

    /// Returns `TCR_EL1` for an address space with this format in both halves.
    fn tcr(self) -> u64 {
        let size = u64::from(64 - self.address_bits);
        let (tg0, tg1) = match self.page_bits {
            12 => (0, 2),
            14 => (2, 1),
            _ => (1, 3),
        };
        size | tg0 << 14 | size << 16 | tg1 << 30 | 5 << 32 | u64::from(self.ds) << 59
    }

    /// Returns an address in each half, with no index of 0.
    fn addresses(self) -> [u64; 2] {
        let each = |level| 1_u64.checked_shl(self.page_bits + self.index_bits() * level).unwrap_or(0) * 5;
        let low = (0..self.levels()).map(each).fold(0, |address, index| address | index);
        let low = low & ((1 << self.address_bits) - 1);
        [low, low | u64::MAX << self.address_bits]
    }
}

/// Builds tables before a guest gets them: entries by address.
struct Builder {
    made: Made,
    entries: BTreeMap<u64, u64>,
    next_table: u64,
}

impl Builder {
    fn new(made: Made) -> Builder {
        Builder { made, entries: BTreeMap::new(), next_table: TABLES + (2 << made.page_bits) }
    }

    fn root(&self, address: u64) -> u64 {
        TABLES + (u64::from(address >> 63 == 1) << self.made.page_bits)
    }

    fn tables(&self) -> PageTables {
        PageTables::Arm64 { ttbr0: self.root(0), ttbr1: self.root(u64::MAX), tcr: self.made.tcr() }
    }

    /// Returns the addresses of a virtual address's entries from the top level down, to the first missing one or a
    /// page.
    fn path(&self, address: u64) -> Vec<u64> {
        let mut path = Vec::new();
        let mut table = self.root(address);
        let address = address & ((1 << self.made.address_bits) - 1);
        for level in (1..=self.made.levels()).rev() {
            let index = address / self.made.covered(level) % (1 << self.made.index_bits());
            path.push(table + index * 8);
            match self.entries.get(&(table + index * 8)) {
                Some(entry) if level > 1 && entry & TABLE != 0 => table = entry & !0xFFF,
                _ => break,
            }
        }
        path
    }

    /// Maps a page at a level. Returns false if something else is mapped there.
    fn map(&mut self, address: u64, physical: u64, level: u32) -> bool {
        let depth = (self.made.levels() - level + 1) as usize;
        loop {
            let path = self.path(address);
            let last = path[path.len() - 1];
            if path.len() > depth || self.entries.contains_key(&last) {
                return false;
            }
            if path.len() == depth {
                self.entries.insert(last, physical | if level == 1 { TABLE | VALID } else { VALID });
                return true;
            }
            self.entries.insert(last, self.next_table | TABLE | VALID);
            self.next_table += 1 << self.made.page_bits;
        }
    }

    fn give(&self, guest: &Guest) {
        let gfns = guest.gfns();
        for (at, entry) in &self.entries {
            let gfn = gfns[usize::try_from(at / FRAME as u64).unwrap()];
            guest.write(gfn, usize::try_from(at % FRAME as u64).unwrap(), &entry.to_le_bytes());
        }
    }
}

fn guest_with(host: &Host, builder: &Builder) -> Guest {
    let guest = host.create(GuestKind::Pvh, FRAMES);
    builder.give(&guest);
    guest
}

#[test]
fn pages_of_each_size_are_found_in_both_halves() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Pvh, FRAMES);
        for made in ALL {
            for level in 1..=made.highest_page() {
                let size = made.covered(level);
                let mut builder = Builder::new(made);
                let addresses = made.addresses().map(|address| address / size * size);
                for (address, physical) in addresses.into_iter().zip([3 * size, 6 * size]) {
                    assert!(builder.map(address, physical, level), "{made:?}");
                }
                builder.give(&guest);
                for (address, physical) in addresses.into_iter().zip([3 * size, 6 * size]) {
                    for offset in [0, 1, size / 2 + 0x123, size - 1] {
                        let found = translate(host, &guest, builder.tables(), address + offset);
                        assert_eq!(found.unwrap(), physical + offset, "{made:?}, level {level}, {address:#x}");
                    }
                }
                for gfn in &guest.gfns()[0x100..] {
                    guest.write(*gfn, 0, &[0; FRAME]);
                }
            }
        }
    });
}

#[test]
fn bits_outside_the_address_are_ignored() {
    on_each_host(|host| {
        for made in ALL.into_iter().filter(|made| !made.ds) {
            let mut builder = Builder::new(made);
            for (address, page) in made.addresses().into_iter().zip([3, 4]) {
                assert!(builder.map(address, page << made.page_bits, 1));
            }
            for entry in builder.entries.values_mut() {
                *entry |= EVERY_BIT_BUT_THE_ADDRESS;
            }
            let guest = guest_with(host, &builder);
            // The ASID and CnP.
            let number = 0xBEEF << 48 | 1;
            let PageTables::Arm64 { ttbr0, ttbr1, tcr } = builder.tables() else { unreachable!() };
            let tables = PageTables::Arm64 { ttbr0: ttbr0 | number, ttbr1: ttbr1 | number, tcr };
            for (address, page) in made.addresses().into_iter().zip([3, 4]) {
                assert_eq!(translate(host, &guest, tables, address).unwrap(), page << made.page_bits, "{made:?}");
            }
        }
    });
}

#[test]
fn addresses_of_52_bits_are_assembled() {
    on_each_host(|host| {
        // Entries hold the upper address bits elsewhere, depending on the page size.
        for (page_bits, entry_bits) in [(12, 0x300), (14, 0x300), (16, 0xF000)] {
            let made = Made { page_bits, address_bits: 48, ds: page_bits != 16 };
            let mut builder = Builder::new(made);
            let address = made.addresses()[0];
            assert!(builder.map(address, 3 << page_bits | entry_bits, 1));
            let guest = guest_with(host, &builder);
            let upper = if page_bits == 16 { 0xF_u64 << 48 } else { 3 << 50 };
            let PageTables::Arm64 { ttbr0, ttbr1, tcr } = builder.tables() else { unreachable!() };
            // IPS = 6: physical addresses have 52 bits. With pages of 64 KiB, nothing else says so.
            let tcr = tcr & !(7 << 32) | 6 << 32;
            let tables = PageTables::Arm64 { ttbr0, ttbr1, tcr };
            let found = translate(host, &guest, tables, address + 0x123).unwrap();
            assert_eq!(found, upper | 3 << page_bits | 0x123, "{made:?}");

            let tables = PageTables::Arm64 { ttbr0: ttbr0 | 0x3C, ttbr1, tcr };
            let error = translate(host, &guest, tables, address).unwrap_err();
            let Error::GuestAddress { address: entry, .. } = error else { panic!("{error}") };
            assert_eq!(entry, 0xF << 48 | builder.path(address)[0], "{made:?}");
        }
    });
}

#[test]
fn entry_that_is_not_valid_is_an_error_that_names_its_level() {
    on_each_host(|host| {
        for made in ALL {
            let address = made.addresses()[1];
            let mut builder = Builder::new(made);
            assert!(builder.map(address, 3 << made.page_bits, 1));
            let guest = guest_with(host, &builder);
            // From the bottom up, since an invalid entry hides the levels below it. The other bits stay set.
            for (at, level) in builder.path(address).into_iter().rev().zip([3, 2, 1, 0, -1]) {
                let gfn = guest.gfns()[usize::try_from(at / FRAME as u64).unwrap()];
                let entry = builder.entries[&at];
                // At the lowest level, an entry for a large page is invalid too.
                let bad = if level == 3 { vec![entry & !VALID, entry & !TABLE, 0] } else { vec![entry & !VALID, 0] };
                for bad in bad {
                    guest.write(gfn, usize::try_from(at % FRAME as u64).unwrap(), &bad.to_le_bytes());
                    let translated = translate(host, &guest, builder.tables(), address);
                    let covered = made.covered(u32::try_from(4 - level).unwrap());
                    assert_eq!(last(&translated), address | (covered - 1), "{made:?}");
                    let reason = reason(translated);
                    assert_eq!(reason, format!("its entry in the table of level {level} is not valid"), "{made:?}");
                }
            }
        }
    });
}

#[test]
fn page_of_an_unsupported_size_is_an_error() {
    on_each_host(|host| {
        for made in ALL.into_iter().filter(|made| made.levels() > made.highest_page()) {
            let address = made.addresses()[0];
            let mut builder = Builder::new(made);
            assert!(builder.map(address, 3 << made.page_bits, 1));
            let level = builder.path(address)[(made.levels() - made.highest_page() - 1) as usize];
            *builder.entries.get_mut(&level).unwrap() &= !TABLE;
            let guest = guest_with(host, &builder);
            let reason = reason(translate(host, &guest, builder.tables(), address));
            assert_eq!(reason, "an entry maps a page of a size that does not exist", "{made:?}");
        }
    });
}

#[test]
fn top_table_of_few_entries_may_be_anywhere_in_a_frame() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Pvh, 16);
        // 16 entries for pages of 4 KiB, and 2 entries for tables of 2048 pages of 16 KiB.
        guest.write(guest.gfns()[2], 0xF78, &(0x5000 | TABLE | VALID).to_le_bytes());
        guest.write(guest.gfns()[2], 0xF88, &(0x8000 | TABLE | VALID).to_le_bytes());
        guest.write(guest.gfns()[8], 0, &(0xC000 | TABLE | VALID).to_le_bytes());
        let tables = PageTables::Arm64 { ttbr0: 0x2F00, ttbr1: 0x2F80, tcr: made(12, 16).tcr() & 0xFFFF };
        assert_eq!(translate(host, &guest, tables, 0xF123).unwrap(), 0x5123);
        let tables = PageTables::Arm64 { ttbr0: 0x2F80, ttbr1: 0x2F80, tcr: made(14, 26).tcr() };
        assert_eq!(translate(host, &guest, tables, 1 << 25 | 0x123).unwrap(), 0xC123);
    });
}

#[test]
fn invalid_registers_are_an_error() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Pvh, 1);
        let reason = |tcr, address| {
            reason(translate(host, &guest, PageTables::Arm64 { ttbr0: 0, ttbr1: 0, tcr }, address)).to_owned()
        };
        // Addresses with fewer bits than a page, or more than 48 bits; 52 with LPA2 or pages of 64 KiB.
        let ds = 1 << 59;
        for (page, size) in [(0, 52), (0, 63), (0, 15), (0, 0), (2, 50), (2, 15), (1, 48), (1, 11)] {
            assert!(reason(page << 14 | size, 0).contains("size of its half"), "{page} {size}");
        }
        for (page, size) in [(0, 11), (2, 11)] {
            assert!(reason(ds | page << 14 | size, 0).contains("size of its half"), "{page} {size}");
        }
        for (tcr, address) in [(3 << 14 | 16, 0), (16 << 16, u64::MAX)] {
            assert!(reason(tcr, address).contains("page size"), "{tcr:#x}");
        }
        for (page, size) in [(0, 51), (0, 16), (2, 49), (2, 16), (1, 47), (1, 12)] {
            assert!(reason(page << 14 | size, 0).ends_with("is not valid"), "{page} {size}");
        }
    });
}

#[test]
fn address_in_neither_half_is_an_error() {
    on_each_host(|host| {
        for made in ALL {
            let mut builder = Builder::new(made);
            let [low, high] = made.addresses();
            assert!(builder.map(low, 3 << made.page_bits, 1) && builder.map(high, 4 << made.page_bits, 1));
            let guest = guest_with(host, &builder);
            let outside = 1 << made.address_bits;
            for address in [low | outside, high & !outside, low | 1 << 55, high & !(1 << 55), low | 1 << 63] {
                let result = translate(host, &guest, builder.tables(), address);
                assert!(last(&result) >= address | ((1 << made.page_bits) - 1), "{made:?} {address:#x}");
                assert!(reason(result).starts_with("it is in neither half"), "{made:?} {address:#x}");
            }
        }
    });
}

#[test]
fn tag_in_the_top_byte_is_ignored_if_the_processor_ignores_it() {
    on_each_host(|host| {
        let made = made(12, 39);
        let mut builder = Builder::new(made);
        let [low, high] = made.addresses();
        assert!(builder.map(low, 0x3000, 1) && builder.map(high, 0x4000, 1));
        let guest = guest_with(host, &builder);
        let tagged = [low | 0xA5 << 56, high & !(0xFF << 56) | 0x5A << 56];
        for tbi in 0..4_u64 {
            let PageTables::Arm64 { ttbr0, ttbr1, tcr } = builder.tables() else { unreachable!() };
            let tables = PageTables::Arm64 { ttbr0, ttbr1, tcr: tcr | tbi << 37 };
            let found = tagged.map(|address| translate(host, &guest, tables, address).ok());
            let expected = [(tbi & 1 != 0).then_some(0x3000), (tbi & 2 != 0).then_some(0x4000)];
            assert_eq!(found, expected);
        }
    });
}

#[test]
fn halves_may_differ() {
    on_each_host(|host| {
        let (mut small, mut large) = (Builder::new(made(12, 39)), Builder::new(made(14, 47)));
        assert!(small.map(small.made.addresses()[0], 0x3000, 1));
        large.next_table += 0x2_0000;
        assert!(large.map(large.made.addresses()[1], 0x8000, 1));
        let guest = guest_with(host, &small);
        large.give(&guest);
        // Lower half: 4 KiB and 39 bits. Upper half: 16 KiB and 47 bits.
        let tcr = 0x4011_0019;
        let tables = PageTables::Arm64 { ttbr0: small.root(0), ttbr1: large.root(u64::MAX), tcr };
        assert_eq!(translate(host, &guest, tables, small.made.addresses()[0] + 0xFFF).unwrap(), 0x3FFF);
        assert_eq!(translate(host, &guest, tables, large.made.addresses()[1] + 0x3FFF).unwrap(), 0xBFFF);
        for (off, address) in [(7, 0), (23, u64::MAX)] {
            let tables = PageTables::Arm64 { ttbr0: small.root(0), ttbr1: large.root(u64::MAX), tcr: tcr | 1 << off };
            assert!(reason(translate(host, &guest, tables, address)).contains("turned off"));
        }
    });
}

#[test]
fn table_outside_of_ram_is_an_error_that_names_its_address() {
    on_each_host(|host| {
        let made = made(14, 47);
        let mut builder = Builder::new(made);
        let address = made.addresses()[0];
        assert!(builder.map(address, 3 << 14, 1));
        let guest = host.create(GuestKind::Pvh, FRAMES);
        let hole = guest.hole().get() * FRAME as u64;
        let path = builder.path(address);
        builder.entries.insert(path[1], hole | TABLE | VALID);
        builder.give(&guest);
        match translate(host, &guest, builder.tables(), address) {
            Err(Error::GuestAddress { domid, address, errno: libc::EINVAL }) => {
                assert_eq!((domid, address), (guest.domid(), hole + path[2] % (1 << 14)));
            }
            other => panic!("{other:x?}"),
        }
    });
}

#[test]
fn walk_of_self_referencing_tables_ends() {
    on_each_host(|host| {
        let mut builder = Builder::new(made(12, 48));
        builder.entries.insert(TABLES + 0x110 * 8, TABLES | TABLE | VALID);
        let guest = guest_with(host, &builder);
        // Every index is 0x110: in the upper half, the top index must be 0x100 or more.
        let PageTables::Arm64 { ttbr0, tcr, .. } = builder.tables() else { unreachable!() };
        let tables = PageTables::Arm64 { ttbr0, ttbr1: ttbr0, tcr };
        let address = (0..4).fold(0xFFFF_0000_0000_0000, |address, level| address | 0x110 << (12 + 9 * level));
        assert_eq!(translate(host, &guest, tables, address + 0x880).unwrap(), TABLES + 0x880);
    });
}

#[test]
fn bytes_are_read_and_written_across_pages_of_16_kib() {
    on_each_host(|host| {
        let made = made(14, 47);
        let address = made.addresses()[1];
        let mut builder = Builder::new(made);
        for (page, frame) in [9, 4, 5].into_iter().enumerate() {
            assert!(builder.map(address + (page as u64 * 0x4000), frame * 0x4000, 1));
        }
        let guest = guest_with(host, &builder);
        let memory = host.open();
        let guest = xenmap::Guest::open(&memory, guest.domid()).unwrap();
        let text: Vec<u8> = (0..=250).cycle().take(0x8000).collect();
        guest.write_virtual(&builder.tables(), address + 0x2F00, &text).unwrap();
        let mut read = vec![0; text.len()];
        guest.read_virtual(&builder.tables(), address + 0x2F00, &mut read).unwrap();
        assert_eq!(read, text);
        guest.read(5 * 0x4000, &mut read[..0x2F00]).unwrap();
        assert_eq!(read[..0x2F00], text[0x5100..]);
        assert!(guest.read_virtual(&builder.tables(), address + 0xBFFF, &mut [0; 2]).is_err());
    });
}

#[test]
fn random_registers_and_tables_are_at_most_an_error() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Pvh, 16);
        let memory = host.open();
        let opened = xenmap::Guest::open(&memory, guest.domid()).unwrap();
        let registers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        // Entries that often point to frames of the guest.
        let entry = (0_u64..18, any::<u64>()).prop_map(|(gfn, bits)| gfn << 12 | bits & 0xFF00_0000_0000_0F83 | 1);
        let strategy = (registers, prop::collection::vec(entry, 1..64), 0_u64..40, any::<bool>());
        let cases = if matches!(host, Host::Mock(_)) { 96 } else { 16 };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        runner
            .run(&strategy, |((ttbr0, ttbr1, tcr, address), entries, size, real)| {
                for gfn in guest.gfns() {
                    let bytes: Vec<u8> = entries.iter().cycle().take(512).flat_map(|e| e.to_le_bytes()).collect();
                    guest.write(gfn, 0, &bytes);
                }
                let tables = PageTables::Arm64 { ttbr0, ttbr1, tcr };
                let _ = translate_by(&opened, &tables, address);
                // Again with plausible registers, so that the tables are used.
                let tcr = tcr & !(0x3F_003F | 1 << 7 | 1 << 23 | 3 << 14) | size | size << 16 | u64::from(real) << 15;
                let tables = PageTables::Arm64 { ttbr0: ttbr0 & 0xF000, ttbr1: ttbr1 & 0xF000, tcr };
                let _ = translate_by(&opened, &tables, address & ((1 << 40) - 1));
                Ok(())
            })
            .unwrap();
    });
}
