//! Walking page tables that a program reads by itself.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use proptest::prelude::*;
use xenmap::{AccessRights, Error, PageTables, PagingMode, Translation, VirtualExtent};

use PagingMode::{FiveLevels, FourLevels, Pae, TwoLevels};

const FRAME: u64 = 4096;
const MIB_2: u64 = 1 << 21;
const GIB_1: u64 = 1 << 30;

/// Bits of an x86 entry: a present table or page with all rights, and a large page.
const ALL: u64 = 0x7;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Entries by address. All others are 0 if they are below the end, and cannot be read above.
#[derive(Clone, Debug)]
struct Memory {
    entries: BTreeMap<u64, u64>,
    end: u64,
    /// How often entries were read.
    reads: Cell<u64>,
}

#[derive(Debug, PartialEq)]
enum Failure {
    Walk { last: u64 },
    Unreadable(u64),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Translation { last, .. } => Failure::Walk { last },
            other => panic!("{other}"),
        }
    }
}

impl Memory {
    fn new(entries: &[(u64, u64)]) -> Memory {
        Memory { entries: entries.iter().copied().collect(), end: 0x10_0000, reads: Cell::new(0) }
    }

    fn read(&self, at: u64, entries: &mut [u64]) -> Result<(), Failure> {
        assert_eq!(at / FRAME, (at + entries.len() as u64 * 8 - 1) / FRAME, "{at:#x}: not in one frame");
        self.reads.set(self.reads.get() + 1);
        if at >= self.end {
            return Err(Failure::Unreadable(at));
        }
        for (entry, at) in entries.iter_mut().zip((at..).step_by(8)) {
            *entry = self.entries.get(&at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn translate(&self, tables: &PageTables, address: u64) -> Result<Translation, Failure> {
        tables.translate_with(address, |at| {
            let mut entry = [0];
            self.read(at, &mut entry).map(|()| entry[0])
        })
    }

    fn extents(
        &self,
        tables: &PageTables,
        range: impl std::ops::RangeBounds<u64>,
    ) -> impl Iterator<Item = Result<VirtualExtent, Failure>> {
        tables.extents_with(range, |at, entries: &mut [u64]| self.read(at, entries))
    }

    /// Returns all extents as (address, physical, len, page size).
    fn all(&self, tables: &PageTables, range: impl std::ops::RangeBounds<u64>) -> Vec<(u64, u64, u64, u64)> {
        let extents = self.extents(tables, range).map(Result::unwrap);
        extents.map(|e| (e.address, e.physical, e.len, e.page_size)).collect()
    }
}

fn x86(mode: PagingMode) -> PageTables {
    PageTables::X86 { cr3: 0x1000, mode }
}

/// Returns the translation tables of an arm64 guest with 4 KiB pages and 39 bits of address in each half.
fn arm64(tcr: u64) -> PageTables {
    PageTables::Arm64 { ttbr0: 0x1000, ttbr1: 0x1000, tcr: 0x19 | 0x19 << 16 | 2 << 30 | tcr }
}

fn rights(writable: bool, user: bool, executable: bool) -> (bool, bool, bool) {
    (writable, user, executable)
}

fn of(AccessRights { writable, user, executable, .. }: AccessRights) -> (bool, bool, bool) {
    (writable, user, executable)
}

#[test]
fn x86_rights_are_those_that_every_level_gives() {
    let without = [
        (0, rights(true, true, true)),
        (1 << 1, rights(false, true, true)),
        (1 << 2, rights(true, false, true)),
        (NO_EXECUTE, rights(true, true, false)),
    ];
    for level in 0..4 {
        for (bit, expected) in without {
            let mut entries = [(0x1000, 0x2000 | ALL), (0x2000, 0x3000 | ALL), (0x3000, 0x4000 | ALL), (0x4000, ALL)];
            entries[level].1 ^= bit;
            let found = Memory::new(&entries).translate(&x86(FourLevels), 0x123).unwrap();
            assert_eq!(of(found.rights), expected, "level {level}, bit {bit:#x}");
            assert_eq!((found.physical, found.page_size), (0x123, FRAME));
        }
    }
}

#[test]
fn top_entries_of_pae_do_not_limit_rights() {
    let memory = Memory::new(&[(0x1000, 0x2001), (0x2000, MIB_2 | LARGE | ALL)]);
    let found = memory.translate(&x86(Pae), 0x123).unwrap();
    assert_eq!(of(found.rights), rights(true, true, true));
    assert_eq!((found.physical, found.page_size), (MIB_2 + 0x123, MIB_2));
}

#[test]
fn two_levels_have_entries_of_4_bytes() {
    // Entries 0 to 3 of the top table: a table; a page of 4 MiB above 4 GiB (PSE-36), for the kernel; nothing; another
    // table, which does not exist. Entries 1 and 2 of the table, and its last one, are pages.
    let memory = Memory::new(&[
        (0x1000, 0x2007 | (0x0080_0000 | 0x5 << 13 | 0x83) << 32),
        (0x1008, 0x0020_0007 << 32),
        (0x2000, 0x5005 << 32),
        (0x2008, 0x6005),
        (0x2FF8, 0x9007 << 32),
    ]);
    let tables = x86(TwoLevels);
    let found: Vec<_> = memory.extents(&tables, ..).map(|e| e.map(|e| (e.address, e.physical, e.len))).collect();
    let mib_4 = 2 * MIB_2;
    let expected = [
        Ok((0x1000, 0x5000, 2 * FRAME)),
        Ok((mib_4 - FRAME, 0x9000, FRAME)),
        Ok((mib_4, 0x5_0080_0000, mib_4)),
        Err(Failure::Unreadable(0x20_0000)),
    ];
    assert_eq!(found, expected);
    for (address, physical, page_size, expected) in [
        (0x2123, 0x6123, FRAME, rights(false, true, true)),
        (mib_4 + 0x12_3456, 0x5_0092_3456, mib_4, rights(true, false, true)),
    ] {
        let found = memory.translate(&tables, address).unwrap();
        assert_eq!((found.physical, found.page_size, of(found.rights)), (physical, page_size, expected));
    }
    assert_eq!(memory.translate(&tables, 0), Err(Failure::Walk { last: 0xFFF }));
    assert_eq!(memory.translate(&tables, 2 * mib_4), Err(Failure::Walk { last: 3 * mib_4 - 1 }));
    assert_eq!(memory.translate(&tables, 1 << 32), Err(Failure::Walk { last: u64::MAX }));
}

#[test]
fn arm64_rights_combine_pages_and_tables() {
    const EL0: u64 = 1 << 6;
    const READ_ONLY: u64 = 1 << 7;
    const DBM: u64 = 1 << 51;
    const PXN: u64 = 1 << 53;
    const UXN: u64 = 1 << 54;
    const PXN_TABLE: u64 = 1 << 59;
    const UXN_TABLE: u64 = 1 << 60;
    const NO_EL0_TABLE: u64 = 1 << 61;
    const READ_ONLY_TABLE: u64 = 1 << 62;
    const HA: u64 = 1 << 39;
    const HD: u64 = 1 << 40;
    const NOT_HIERARCHICAL: u64 = 1 << 41;
    let cases = [
        // Linux' kernel data, kernel code, program data, program code, and code that programs cannot read.
        (0, 0, PXN | UXN, rights(true, false, false)),
        (0, 0, READ_ONLY | UXN, rights(false, false, true)),
        (0, 0, EL0 | PXN | UXN, rights(true, true, false)),
        (0, 0, EL0 | READ_ONLY | PXN, rights(false, true, true)),
        (0, 0, READ_ONLY | PXN, rights(false, false, true)),
        // The kernel cannot execute what programs can write.
        (0, 0, EL0 | UXN, rights(true, true, false)),
        // Limits of tables.
        (0, READ_ONLY_TABLE, EL0, rights(false, true, true)),
        (0, NO_EL0_TABLE, EL0, rights(true, false, true)),
        (0, PXN_TABLE, UXN, rights(true, false, false)),
        (0, UXN_TABLE, PXN, rights(true, false, false)),
        (NOT_HIERARCHICAL, READ_ONLY_TABLE | NO_EL0_TABLE | UXN_TABLE | PXN_TABLE, EL0, rights(true, true, true)),
        // A page that is writable, but was not written yet.
        (0, 0, READ_ONLY | DBM, rights(false, false, true)),
        (HA | HD, 0, READ_ONLY | DBM, rights(true, false, true)),
        (HA | HD, 0, READ_ONLY, rights(false, false, true)),
        (HA | HD, READ_ONLY_TABLE, READ_ONLY | DBM, rights(false, false, true)),
        // HD has no effect without HA.
        (HD, 0, READ_ONLY | DBM, rights(false, false, true)),
    ];
    for (tcr, table, page, expected) in cases {
        let entries = [(0x1000, 0x2003), (0x2000, 0x3003 | table), (0x3000, 0x5003 | page)];
        let found = Memory::new(&entries).translate(&arm64(tcr), 0x10).unwrap();
        assert_eq!(of(found.rights), expected, "{tcr:#x} {table:#x} {page:#x}");
        assert_eq!((found.physical, found.page_size), (0x5010, FRAME));
    }
}

#[test]
fn neighbours_are_one_extent_if_they_agree() {
    let mut entries =
        vec![(0x1000, 0x2000 | ALL), (0x2000, 0x3000 | ALL), (0x3000, 0x4000 | ALL), (0x3008, 0x5000 | ALL)];
    // The last 3 pages of one table and the first 2 of the next are neighbours in physical memory, too.
    entries.extend((0..3).map(|page| (0x4FE8 + page * 8, ((0x20 + page) * FRAME) | ALL)));
    entries.extend((0..2).map(|page| (0x5000 + page * 8, ((0x23 + page) * FRAME) | ALL)));
    // Then one with other rights, a gap in physical memory, and a gap in virtual memory.
    entries.extend([(0x5010, (0x25 * FRAME) | 1), (0x5018, (0x27 * FRAME) | 1), (0x5028, (0x29 * FRAME) | 1)]);
    let at = |page: u64| MIB_2 + page * FRAME - 3 * FRAME;
    let expected = [
        (at(0), 0x20 * FRAME, 5 * FRAME, FRAME),
        (at(5), 0x25 * FRAME, FRAME, FRAME),
        (at(6), 0x27 * FRAME, FRAME, FRAME),
        (at(8), 0x29 * FRAME, FRAME, FRAME),
    ];
    assert_eq!(Memory::new(&entries).all(&x86(FourLevels), ..), expected);
}

#[test]
fn large_pages_are_whole_and_both_halves_are_walked() {
    let memory = Memory::new(&[
        (0x1000, 0x2000 | ALL),
        (0x1FF8, 0x3000 | ALL),
        (0x2008, (5 * GIB_1) | LARGE | ALL),
        (0x3FF8, 0x4000 | ALL),
        (0x4FF0, (7 * MIB_2) | LARGE | ALL),
        (0x4FF8, (8 * MIB_2) | LARGE | ALL),
    ]);
    let last = 0_u64.wrapping_sub(2 * MIB_2);
    let expected = [(GIB_1, 5 * GIB_1, GIB_1, GIB_1), (last, 7 * MIB_2, 2 * MIB_2, MIB_2)];
    assert_eq!(memory.all(&x86(FourLevels), ..), expected);
    assert_eq!(memory.all(&x86(FourLevels), GIB_1 + 5..=GIB_1 + 5), expected[..1], "a part of the page");
    assert_eq!(memory.all(&x86(FourLevels), ..GIB_1), []);
    assert_eq!(memory.all(&x86(FourLevels), u64::MAX..), [(last + MIB_2, 8 * MIB_2, MIB_2, MIB_2)]);
    #[expect(clippy::reversed_empty_ranges, reason = "it is empty")]
    let empty = 8..4;
    assert_eq!(memory.all(&x86(FourLevels), empty), []);
}

#[test]
fn arm64_halves_have_their_own_tables() {
    let memory = Memory::new(&[(0x1000, 0x4000_0001), (0x8008, 0x8000_0001)]);
    let PageTables::Arm64 { tcr, .. } = arm64(0) else { panic!() };
    let tables = PageTables::Arm64 { ttbr0: 0x1000, ttbr1: 0x8000, tcr };
    let upper = 0xFFFF_FF80_0000_0000;
    let expected = [(0, 0x4000_0000, GIB_1, GIB_1), (upper + GIB_1, 0x8000_0000, GIB_1, GIB_1)];
    assert_eq!(memory.all(&tables, ..), expected);
    let lower_off = PageTables::Arm64 { ttbr0: 0x1000, ttbr1: 0x8000, tcr: tcr | 1 << 7 };
    assert_eq!(memory.all(&lower_off, ..), expected[1..]);
}

#[test]
fn table_that_is_empty_in_one_format_of_arm64_may_not_be_in_the_other() {
    // The lower half has pages of 16 KiB, and none of 1 GiB; the upper half has pages of 4 KiB, and of 1 GiB. Both have
    // the table at 0x8000 on level 3.
    let memory = Memory::new(&[(0x4000, 0x8003), (0xC000, 0x8003), (0x8000, 0x4000_0001)]);
    let tcr = 0x10 | 2 << 14 | 0x10 << 16 | 2 << 30;
    let tables = PageTables::Arm64 { ttbr0: 0x4000, ttbr1: 0xC000, tcr };
    assert_eq!(memory.all(&tables, ..), [(0xFFFF_0000_0000_0000, 0x4000_0000, GIB_1, GIB_1)]);
}

#[test]
fn arm64_tables_of_64_kib_are_read_frame_by_frame() {
    // With pages of 64 KiB and 42 bits of address, there are two levels of 8192 entries each.
    let tables = PageTables::Arm64 { ttbr0: 0x1_0000, ttbr1: 0, tcr: 0x16 | 1 << 14 | 1 << 23 };
    let memory = Memory::new(&[(0x1_FFF8, 0x2_0003), (0x2_0000, 0x40_0003), (0x2_FFF8, 0x41_0003)]);
    let start = 8191 << 29;
    let expected = [(start, 0x40_0000, 0x1_0000, 0x1_0000), (start + (8191 << 16), 0x41_0000, 0x1_0000, 0x1_0000)];
    assert_eq!(memory.all(&tables, ..), expected);
    assert_eq!(memory.reads.get(), 2 * 16);
}

#[test]
fn table_that_cannot_be_read_is_one_error_and_the_rest_is_found() {
    let mut memory = Memory::new(&[
        (0x1000, 0x2000 | ALL),
        (0x2000, 0x3000 | ALL),
        (0x3000, (6 * MIB_2) | LARGE | ALL),
        (0x3008, 0x20_0000 | ALL),
        (0x3010, (7 * MIB_2) | LARGE | ALL),
    ]);
    memory.end = 0x10_0000;
    let found: Vec<_> = memory.extents(&x86(FourLevels), ..).map(|found| found.map(|e| e.address)).collect();
    assert_eq!(found, [Ok(0), Err(Failure::Unreadable(0x20_0000)), Ok(2 * MIB_2)]);

    let nowhere = PageTables::X86 { cr3: 0x20_0000, mode: FiveLevels };
    let found: Vec<_> = memory.extents(&nowhere, ..).collect();
    assert_eq!(found, [Err(Failure::Unreadable(0x20_0000)), Err(Failure::Unreadable(0x20_0000))], "one for each half");
}

#[test]
fn attributes_in_the_low_bits_of_a_large_page_are_not_part_of_its_address() {
    const PAT: u64 = 1 << 12;
    let memory = Memory::new(&[
        (0x1000, 0x2000 | ALL),
        (0x2000, (5 * GIB_1) | PAT | LARGE | ALL),
        (0x2008, 0x3000 | ALL),
        (0x3000, (7 * MIB_2) | PAT | LARGE | ALL),
    ]);
    let physical = |address| memory.translate(&x86(FourLevels), address).unwrap().physical;
    assert_eq!([physical(0x123), physical(GIB_1 + 0x123)], [5 * GIB_1 + 0x123, 7 * MIB_2 + 0x123]);
    // The last page of 4 MiB below 2^40.
    let memory = Memory::new(&[(0x1000, 0xFFC0_0000 | 0xFF << 13 | PAT | LARGE | ALL)]);
    assert_eq!(memory.translate(&x86(TwoLevels), 0x123).unwrap().physical, 0xFF_FFC0_0123);
}

#[test]
fn table_that_was_walked_in_part_is_walked_again() {
    // Two entries refer to the same table. Its first entry, before the range, is its only page.
    let memory = Memory::new(&[
        (0x1000, 0x2000 | ALL),
        (0x2000, 0x3000 | ALL),
        (0x2008, 0x3000 | ALL),
        (0x3000, (7 * MIB_2) | LARGE | ALL),
    ]);
    assert_eq!(memory.all(&x86(FourLevels), MIB_2..), [(GIB_1, 7 * MIB_2, MIB_2, MIB_2)]);
}

#[test]
fn table_that_cannot_be_read_is_an_error_wherever_it_is_used() {
    let memory = Memory::new(&[(0x1000, 0x2000 | ALL), (0x2000, 0x20_0000 | ALL), (0x2008, 0x20_0000 | ALL)]);
    let found: Vec<_> = memory.extents(&x86(FourLevels), ..).collect();
    assert_eq!(found, [Err(Failure::Unreadable(0x20_0000)), Err(Failure::Unreadable(0x20_0000))]);
    // A table of 64 KiB, without its last two frames.
    let tables = PageTables::Arm64 { ttbr0: 0x1_0000, ttbr1: 0, tcr: 0x16 | 1 << 14 | 1 << 23 };
    let mut memory = Memory::new(&[]);
    memory.end = 0x1_E000;
    let found: Vec<_> = memory.extents(&tables, ..).collect();
    assert_eq!(found, [Err(Failure::Unreadable(0x1_E000)), Err(Failure::Unreadable(0x1_F000))]);
}

#[test]
fn tables_that_map_nothing_are_walked_once_a_level() {
    // Every entry of each table refers to the next table, and the last one is empty: 512^4 ways lead to it.
    let mut entries = Vec::new();
    for table in 1..5 {
        entries.extend((0..512).map(|index| (table * FRAME + index * 8, ((table + 1) * FRAME) | ALL)));
    }
    let memory = Memory::new(&entries);
    assert_eq!(memory.all(&x86(FiveLevels), ..), []);
    assert_eq!(memory.reads.get(), 2 * 5, "once for each half");
}

#[test]
fn table_that_refers_to_itself_maps_extents_without_end_but_each_comes_soon() {
    let entries: Vec<_> = (0..512).map(|index| (0x1000 + index * 8, 0x1000 | ALL)).collect();
    let memory = Memory::new(&entries);
    let tables = x86(FiveLevels);
    let extents = memory.extents(&tables, ..).take(100_000);
    assert_eq!(extents.map(Result::unwrap).filter(|e| e.physical == 0x1000 && e.len == FRAME).count(), 100_000);
    assert!(memory.reads.get() < 250);
}

/// Page tables in a few frames: any entry may refer to any of them.
fn any_memory() -> impl Strategy<Value = Memory> {
    let entry =
        (1_u64..8, prop::sample::select(vec![0, 1, 2, 255, 256, 510, 511]), 0_u64..10, any::<u8>(), any::<bool>());
    prop::collection::vec(entry, 0..60).prop_map(|entries| {
        let entries = entries.into_iter().map(|(table, index, to, flags, no_execute)| {
            let flags = u64::from(flags & 0x87) | 1;
            (table * FRAME + index * 8, (to * FRAME) | flags | u64::from(no_execute) << 63)
        });
        Memory { entries: entries.collect(), end: 8 * FRAME, reads: Cell::new(0) }
    })
}

/// Finds the extents of a range by translating one address after another.
fn model(memory: &Memory, tables: &PageTables, range: RangeInclusive<u64>) -> Vec<VirtualExtent> {
    let mut found: Vec<VirtualExtent> = Vec::new();
    let mut next = Some(*range.start());
    while let Some(address) = next.filter(|next| range.contains(next)) {
        let last = match memory.translate(tables, address) {
            Ok(Translation { physical, page_size, rights, .. }) => {
                let (start, offset) = (address & !(page_size - 1), address & (page_size - 1));
                let physical = physical - offset;
                match found.last_mut() {
                    Some(e)
                        if e.address.wrapping_add(e.len) == start
                            && e.physical + e.len == physical
                            && (e.page_size, e.rights) == (page_size, rights) =>
                    {
                        e.len += page_size;
                    }
                    _ => {
                        let mut extent = memory.extents(tables, address..=address).next().unwrap().unwrap();
                        (extent.address, extent.physical, extent.len) = (start, physical, page_size);
                        (extent.page_size, extent.rights) = (page_size, rights);
                        found.push(extent);
                    }
                }
                start + (page_size - 1)
            }
            Err(Failure::Walk { last }) => last,
            Err(Failure::Unreadable(_)) => address | (FRAME - 1),
        };
        next = last.checked_add(1);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn extents_are_what_translation_finds(
        memory in any_memory(),
        mode in prop::sample::select(vec![TwoLevels, Pae, FourLevels, FiveLevels]),
        start in prop::sample::select(vec![0, GIB_1 - MIB_2, 0xFFFF_FFFF_FFC0_0000, 0x7FFF_FFC0_0000, 0xC000_0000]),
        pages in 1_u64..1024,
        offset in 0..FRAME,
    ) {
        let tables = x86(mode);
        let range = start + offset..=(start + offset).saturating_add(pages * FRAME);
        let found: Vec<_> = memory.extents(&tables, range.clone()).filter_map(Result::ok).collect();
        let expected = model(&memory, &tables, range);
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_tables_give_extents_in_ascending_order(
        memory in any_memory(),
        mode in prop::sample::select(vec![TwoLevels, Pae, FourLevels, FiveLevels]),
    ) {
        let extents: Vec<_> = memory.extents(&x86(mode), ..).take(1000).filter_map(Result::ok).collect();
        for pair in extents.windows(2) {
            prop_assert!(pair[0].address + (pair[0].len - 1) < pair[1].address);
        }
        for extent in extents {
            let last = extent.len - 1;
            let found = memory.translate(&x86(mode), extent.address + last).unwrap();
            prop_assert_eq!(found.physical, extent.physical + last);
            prop_assert_eq!((found.page_size, found.rights), (extent.page_size, extent.rights));
        }
    }
}
