//! Translation of virtual addresses, through page tables that the tests build in a guest's RAM.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;

use crate::common::translation::{last, reason, translate};
use crate::common::{FRAME, Guest, Host, mock, on_each_host};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use xenmap::mock::Dom0;
use xenmap::{Error, GuestKind, PageTables, PagingMode};

use PagingMode::{FiveLevels, FourLevels, Pae};

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Present, writable, user, accessed, dirty, no-execute, and the bits for software.
const EVERY_BIT_BUT_THE_ADDRESS: u64 = 0xFFF0_0000_0000_0E67;

const KIB_4: u64 = 1 << 12;
const MIB_2: u64 = 1 << 21;
const GIB_1: u64 = 1 << 30;

/// The frames of a guest. The first are data; page tables begin at `TABLES`.
const FRAMES: usize = 48;
const TABLES: u64 = 16;

/// The address of the top-level table.
const ROOT: u64 = TABLES * KIB_4;

/// Builds page tables before a guest gets them: entries by address.
struct Builder {
    mode: PagingMode,
    entries: BTreeMap<u64, u64>,
    next_frame: u64,
}

impl Builder {
    fn new(mode: PagingMode) -> Builder {
        Builder { mode, entries: BTreeMap::new(), next_frame: TABLES + 1 }
    }

    fn levels(&self) -> u32 {
        match self.mode {
            Pae => 3,
            FourLevels => 4,
            _ => 5,
        }
    }

    fn tables(&self) -> PageTables {
        PageTables::X86 { cr3: ROOT, mode: self.mode }
    }

    /// Returns the addresses of a virtual address's entries from the top level down, to the first missing one or a
    /// page.
    fn path(&self, address: u64) -> Vec<u64> {
        let mut path = Vec::new();
        let mut table = ROOT;
        for level in (1..=self.levels()).rev() {
            let at = table + (address >> (12 + 9 * (level - 1))) % 512 * 8;
            path.push(at);
            match self.entries.get(&at) {
                Some(entry) if entry & LARGE == 0 => table = entry & 0x000F_FFFF_FFFF_F000,
                _ => break,
            }
        }
        path
    }

    /// Maps a page of `size` bytes. Returns false if something else is mapped there.
    fn map(&mut self, address: u64, physical: u64, size: u64) -> bool {
        let (leaf, flags) = match size {
            KIB_4 => (1, PRESENT),
            MIB_2 => (2, PRESENT | LARGE),
            _ => (3, PRESENT | LARGE),
        };
        let depth = (self.levels() - leaf + 1) as usize;
        loop {
            let path = self.path(address);
            let last = path[path.len() - 1];
            if path.len() > depth || self.entries.contains_key(&last) {
                return false;
            }
            if path.len() == depth {
                self.entries.insert(last, physical | flags);
                return true;
            }
            self.entries.insert(last, (self.next_frame * KIB_4) | PRESENT);
            self.next_frame += 1;
        }
    }

    /// Returns the contents of the tables' frames, by number.
    fn frames(&self) -> BTreeMap<u64, Vec<u8>> {
        let mut frames = BTreeMap::new();
        for (at, entry) in &self.entries {
            let frame = frames.entry(at / KIB_4).or_insert_with(|| vec![0; FRAME]);
            frame[(at % KIB_4) as usize..][..8].copy_from_slice(&entry.to_le_bytes());
        }
        frames
    }
}

fn guest_with(host: &Host, builder: &Builder) -> Guest {
    let guest = host.create(GuestKind::Hvm, FRAMES);
    let gfns = guest.gfns();
    for (frame, bytes) in builder.frames() {
        guest.write(gfns[usize::try_from(frame).unwrap()], 0, &bytes);
    }
    guest
}

/// Returns an address in each half of the address space, with no index of 0.
fn addresses(mode: PagingMode) -> Vec<u64> {
    match mode {
        Pae => vec![0x4060_1000, 0xC080_3000],
        FourLevels => vec![0x0000_0081_4060_1000, 0xFFFF_8881_4060_1000],
        _ => vec![0x0042_0081_4060_1000, 0xFF42_0881_4060_1000],
    }
}

#[test]
fn pages_of_4_kib_are_found() {
    on_each_host(|host| {
        for mode in [Pae, FourLevels, FiveLevels] {
            let mut builder = Builder::new(mode);
            for (page, address) in addresses(mode).into_iter().enumerate() {
                assert!(builder.map(address, (page as u64 + 3) * KIB_4, KIB_4));
            }
            let guest = guest_with(host, &builder);
            for (page, address) in addresses(mode).into_iter().enumerate() {
                let physical = (page as u64 + 3) * KIB_4;
                for offset in [0, 1, 0xFFF] {
                    let found = translate(host, &guest, builder.tables(), address + offset).unwrap();
                    assert_eq!(found, physical + offset, "{mode:?} {address:#x}");
                }
                let error = translate(host, &guest, builder.tables(), address + KIB_4);
                assert_eq!(reason(error), "its entry in the page table (level 1) is not present");
            }
        }
    });
}

#[test]
fn pages_of_2_mib_are_found() {
    on_each_host(|host| {
        for mode in [Pae, FourLevels, FiveLevels] {
            let mut builder = Builder::new(mode);
            let address = addresses(mode)[1] / MIB_2 * MIB_2;
            assert!(builder.map(address, 6 * MIB_2, MIB_2));
            let guest = guest_with(host, &builder);
            for offset in [0, 0x1234, MIB_2 - 1] {
                let found = translate(host, &guest, builder.tables(), address + offset).unwrap();
                assert_eq!(found, 6 * MIB_2 + offset, "{mode:?}");
            }
        }
    });
}

#[test]
fn pages_of_1_gib_are_found() {
    on_each_host(|host| {
        for mode in [FourLevels, FiveLevels] {
            let mut builder = Builder::new(mode);
            let address = addresses(mode)[1] / GIB_1 * GIB_1;
            assert!(builder.map(address, 5 * GIB_1, GIB_1));
            let guest = guest_with(host, &builder);
            for offset in [0, 0x1234_5678, GIB_1 - 1] {
                let found = translate(host, &guest, builder.tables(), address + offset).unwrap();
                assert_eq!(found, 5 * GIB_1 + offset, "{mode:?}");
            }
        }
    });
}

#[test]
fn bits_outside_the_address_are_ignored() {
    on_each_host(|host| {
        let address = addresses(FourLevels)[1];
        let mut builder = Builder::new(FourLevels);
        assert!(builder.map(address, 3 * KIB_4, KIB_4));
        let large = address + MIB_2;
        // Bit 12 of a large page is its PAT bit.
        assert!(builder.map(large / MIB_2 * MIB_2, 4 * MIB_2 + KIB_4, MIB_2));
        for entry in builder.entries.values_mut() {
            *entry |= EVERY_BIT_BUT_THE_ADDRESS;
        }
        let guest = guest_with(host, &builder);
        let tables = PageTables::X86 { cr3: ROOT | 0xE000_0000_0000_0FFF, mode: FourLevels };
        assert_eq!(translate(host, &guest, tables, address).unwrap(), 3 * KIB_4);
        assert_eq!(translate(host, &guest, tables, large).unwrap(), 4 * MIB_2 + large % MIB_2);
    });
}

#[test]
fn entry_that_is_not_present_is_an_error_that_names_its_level() {
    let names = ["page table (level 1)", "page directory (level 2)", "(level 3)", "PML4 (level 4)", "PML5 (level 5)"];
    on_each_host(|host| {
        for mode in [Pae, FourLevels, FiveLevels] {
            let address = addresses(mode)[1];
            let mut builder = Builder::new(mode);
            assert!(builder.map(address, 3 * KIB_4, KIB_4));
            let guest = guest_with(host, &builder);
            // From the bottom up, since a missing entry hides the levels below it. The other bits stay set.
            for ((at, name), level) in builder.path(address).into_iter().rev().zip(names).zip(0..) {
                let gfn = guest.gfns()[usize::try_from(at / KIB_4).unwrap()];
                guest.write(gfn, (at % KIB_4) as usize, &(builder.entries[&at] & !PRESENT).to_le_bytes());
                let translated = translate(host, &guest, builder.tables(), address);
                assert_eq!(last(&translated), address | ((KIB_4 << (9 * level)) - 1), "{mode:?} {name}");
                let reason = reason(translated);
                assert!(reason.contains(name) && reason.ends_with("is not present"), "{mode:?} {name}: {reason}");
            }
        }
    });
}

#[test]
fn address_that_no_processor_accepts_is_an_error() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, FRAMES);
        let wrong = [
            (Pae, 1 << 32, "it has more than 32 bits", u64::MAX),
            (Pae, u64::MAX, "it has more than 32 bits", u64::MAX),
            (FourLevels, 1 << 47, "it is not canonical", 0xFFFF_7FFF_FFFF_FFFF),
            (FourLevels, !(1 << 47), "it is not canonical", 0xFFFF_7FFF_FFFF_FFFF),
            (FourLevels, 0xFFFF_7FFF_FFFF_FFFF, "it is not canonical", 0xFFFF_7FFF_FFFF_FFFF),
            (FiveLevels, 1 << 56, "it is not canonical", 0xFEFF_FFFF_FFFF_FFFF),
            (FiveLevels, 0xFEFF_FFFF_FFFF_FFFF, "it is not canonical", 0xFEFF_FFFF_FFFF_FFFF),
        ];
        for (mode, address, why, last_wrong) in wrong {
            let tables = PageTables::X86 { cr3: ROOT, mode };
            let translated = translate(host, &guest, tables, address);
            assert_eq!(last(&translated), last_wrong, "{mode:?} {address:#x}");
            assert_eq!(reason(translated), why, "{mode:?} {address:#x}");
        }
        let right = [
            (Pae, u64::from(u32::MAX)),
            (FourLevels, (1 << 47) - 1),
            (FourLevels, 0xFFFF_8000_0000_0000),
            (FiveLevels, (1 << 56) - 1),
            (FiveLevels, 0xFF00_0000_0000_0000),
        ];
        for (mode, address) in right {
            let tables = PageTables::X86 { cr3: ROOT, mode };
            let reason = reason(translate(host, &guest, tables, address));
            assert!(reason.ends_with("is not present"), "{mode:?} {address:#x}: {reason}");
        }
    });
}

#[test]
fn page_of_an_unsupported_size_is_an_error() {
    on_each_host(|host| {
        for mode in [Pae, FourLevels, FiveLevels] {
            let mut builder = Builder::new(mode);
            let address = addresses(mode)[1];
            assert!(builder.map(address, 3 * KIB_4, KIB_4));
            let top = builder.path(address)[0];
            *builder.entries.get_mut(&top).unwrap() |= LARGE;
            let guest = guest_with(host, &builder);
            let reason = reason(translate(host, &guest, builder.tables(), address));
            assert_eq!(reason, "an entry maps a page of a size that does not exist");
        }
    });
}

#[test]
fn table_outside_of_ram_is_an_error_that_names_its_address() {
    on_each_host(|host| {
        let address = addresses(FourLevels)[0];
        let mut builder = Builder::new(FourLevels);
        assert!(builder.map(address, 3 * KIB_4, KIB_4));
        let guest = host.create(GuestKind::Hvm, FRAMES);
        let hole = guest.hole().get() * KIB_4;
        let path = builder.path(address);
        let third = path[2] % KIB_4;
        builder.entries.insert(path[1], hole | PRESENT);
        let gfns = guest.gfns();
        for (frame, bytes) in builder.frames() {
            guest.write(gfns[usize::try_from(frame).unwrap()], 0, &bytes);
        }
        match translate(host, &guest, builder.tables(), address) {
            Err(Error::GuestAddress { domid, address, errno: libc::EINVAL }) => {
                assert_eq!((domid, address), (guest.domid(), hole + third));
            }
            other => panic!("{other:x?}"),
        }
        for cr3 in [hole, 0x000F_FFFF_FFFF_F000, u64::MAX] {
            let tables = PageTables::X86 { cr3, mode: FourLevels };
            let error = translate(host, &guest, tables, address).unwrap_err();
            assert!(matches!(error, Error::GuestAddress { .. }), "{cr3:#x}: {error}");
        }
    });
}

#[test]
fn walk_of_self_referencing_tables_ends() {
    on_each_host(|host| {
        let mut builder = Builder::new(FiveLevels);
        builder.entries.insert(ROOT + 0x110 * 8, ROOT | PRESENT);
        let guest = guest_with(host, &builder);
        // Every index is 0x110.
        let address = (0..5).fold(0xFE00_0000_0000_0000, |address, level| address | 0x110 << (12 + 9 * level));
        assert_eq!(translate(host, &guest, builder.tables(), address + 0x880).unwrap(), ROOT + 0x880);
    });
}

#[test]
fn pae_root_may_be_anywhere_in_a_frame() {
    on_each_host(|host| {
        let guest = host.create(GuestKind::Hvm, FRAMES);
        let gfns = guest.gfns();
        // The root is the last 32 bytes of frame 2. Its last entry is a directory in frame 3, whose last entry maps 2
        // MiB at 4 MiB.
        guest.write(gfns[2], 0xFF8, &((3 * KIB_4) | PRESENT).to_le_bytes());
        guest.write(gfns[3], 0xFF8, &((2 * MIB_2) | PRESENT | LARGE).to_le_bytes());
        let tables = PageTables::X86 { cr3: 2 * KIB_4 + 0xFE0 + 0x18, mode: Pae };
        assert_eq!(translate(host, &guest, tables, 0xFFFF_FFFF).unwrap(), 3 * MIB_2 - 1);
    });
}

#[test]
fn bytes_are_read_and_written_across_pages_that_are_not_neighbours() {
    on_each_host(|host| {
        let address = addresses(FourLevels)[1];
        let mut builder = Builder::new(FourLevels);
        for (page, frame) in [9, 4, 5, 0].into_iter().enumerate() {
            assert!(builder.map(address + page as u64 * KIB_4, frame * KIB_4, KIB_4));
        }
        let guest = guest_with(host, &builder);
        let gfns = guest.gfns();
        let memory = host.open();
        let virtually = xenmap::Guest::open(&memory, guest.domid()).unwrap();
        let tables = builder.tables();
        let text: Vec<u8> = (0..=250).cycle().take(3 * FRAME).collect();

        virtually.write_virtual(&tables, address + 0xF00, &text).unwrap();
        let parts = [
            guest.read(gfns[9], 0xF00, 0x100),
            guest.read(gfns[4], 0, FRAME),
            guest.read(gfns[5], 0, FRAME),
            guest.read(gfns[0], 0, 0xF00),
        ];
        assert_eq!(parts.concat(), text);
        assert_eq!(guest.read(gfns[9], 0xE00, 0x100), [0; 0x100], "nothing is written before it");
        assert_eq!(guest.read(gfns[0], 0xF00, 0x100), [0; 0x100], "nothing is written after it");

        let mut read = vec![0; text.len()];
        virtually.read_virtual(&tables, address + 0xF00, &mut read).unwrap();
        assert_eq!(read, text);
        virtually.read_virtual(&tables, 1 << 47, &mut []).unwrap();
    });
}

#[test]
fn nothing_is_written_if_a_part_is_not_mapped() {
    on_each_host(|host| {
        let address = addresses(FourLevels)[1];
        let mut builder = Builder::new(FourLevels);
        assert!(builder.map(address, 3 * KIB_4, KIB_4));
        let guest = guest_with(host, &builder);
        let memory = host.open();
        let virtually = xenmap::Guest::open(&memory, guest.domid()).unwrap();
        match virtually.write_virtual(&builder.tables(), address + 0xFFF, b"two") {
            Err(Error::Translation { address: at, .. }) => assert_eq!(at, address + 0x1000),
            other => panic!("{other:?}"),
        }
        assert_eq!(guest.read(guest.gfns()[3], 0xFFF, 1), [0]);
        assert!(virtually.read_virtual(&builder.tables(), address + 0xFFF, &mut [0; 2]).is_err());
    });
}

#[test]
fn range_past_the_last_address_is_an_error() {
    on_each_host(|host| {
        let last = u64::MAX - 0xFFF;
        let mut builder = Builder::new(FourLevels);
        assert!(builder.map(last, 3 * KIB_4, KIB_4));
        assert!(builder.map(0, 4 * KIB_4, KIB_4));
        let guest = guest_with(host, &builder);
        let memory = host.open();
        let virtually = xenmap::Guest::open(&memory, guest.domid()).unwrap();
        virtually.read_virtual(&builder.tables(), u64::MAX, &mut [0]).unwrap();
        let error = virtually.read_virtual(&builder.tables(), u64::MAX, &mut [0; 2]).unwrap_err();
        assert!(matches!(error, Error::Translation { .. }), "{error}");
    });
}

#[test]
fn random_mappings_translate_back() {
    on_each_host(|host| {
        let page = (0_u64..3, 0_u64..512, 0_u64..16, 0_usize..3);
        let strategy = (0_usize..3, prop::collection::vec((page, 0_u64..1 << 30), 1..6), any::<u64>());
        let cases = if matches!(host, Host::Mock(_)) { 48 } else { 12 };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        runner
            .run(&strategy, |(mode, pages, anywhere)| {
                let mode = [Pae, FourLevels, FiveLevels][mode];
                let mut builder = Builder::new(mode);
                let mut model = Vec::new();
                for ((upper, page, physical, size), offset) in pages {
                    let size = if mode == Pae { [KIB_4, KIB_4, MIB_2][size] } else { [KIB_4, MIB_2, GIB_1][size] };
                    let region = addresses(mode)[usize::try_from(upper % 2).unwrap()];
                    let address = (region / size + page % (GIB_1 / size).min(512)) * size;
                    if mode == Pae && address >> 32 != 0 {
                        continue;
                    }
                    if builder.map(address, physical * size, size) {
                        model.push((address, physical * size, size, offset % size));
                    }
                }
                let guest = guest_with(host, &builder);
                for &(address, physical, _, offset) in &model {
                    let found = translate(host, &guest, builder.tables(), address + offset).unwrap();
                    prop_assert_eq!(found, physical + offset);
                }
                let inside = |&&(address, _, size, _): &&(u64, u64, u64, u64)| anywhere.wrapping_sub(address) < size;
                let expected = model.iter().find(inside).map(|(address, physical, ..)| physical + (anywhere - address));
                prop_assert_eq!(translate(host, &guest, builder.tables(), anywhere).ok(), expected);
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn translation_maps_one_frame_per_level() {
    let address = addresses(FourLevels)[0];
    let mut builder = Builder::new(FourLevels);
    assert!(builder.map(address, 3 * KIB_4, KIB_4));
    let host = mock(Dom0::Pv);
    let guest = guest_with(&Host::Mock(host.clone()), &builder);
    let memory = host.open().unwrap();
    let guest = xenmap::Guest::open(&memory, guest.domid()).unwrap();
    let before = host.hypercalls();
    guest.translate(&builder.tables(), address).unwrap();
    assert_eq!(host.hypercalls().mmu_update - before.mmu_update, 4);
}

#[test]
fn one_call_maps_each_table_once() {
    let address = addresses(FourLevels)[0];
    let mut builder = Builder::new(FourLevels);
    for page in 0..16 {
        assert!(builder.map(address + page * KIB_4, (15 - page) * KIB_4, KIB_4));
    }
    let host = mock(Dom0::Pv);
    let guest = guest_with(&Host::Mock(host.clone()), &builder);
    let memory = host.open().unwrap();
    let guest = xenmap::Guest::open(&memory, guest.domid()).unwrap();
    let before = host.hypercalls();
    guest.read_virtual(&builder.tables(), address, &mut vec![0; 16 * FRAME]).unwrap();
    assert_eq!(host.hypercalls().mmu_update - before.mmu_update, 4 + 1, "four tables, and all pages at once");
}
