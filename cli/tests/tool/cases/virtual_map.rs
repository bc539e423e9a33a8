//! `map --virtual`: what page tables map.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::dumps::*;
use crate::harness::*;

/// Where the tables below map pages: in the entry 511, 510, 0 of the upper three levels.
const BASE: u64 = 0xFFFF_FFFF_8000_0000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Returns four levels of tables in frames 1 to 4, whose entries have `offset` added to their frames.
fn tables(offset: u64) -> Pages {
    let mut pages: Pages = (1..=11).map(|pfn| (pfn, page(0))).collect();
    let all = PRESENT | WRITABLE | USER;
    for (pfn, index, entry) in [
        (1, 511, frame(2 + offset) | all),
        (2, 510, frame(3 + offset) | all),
        (3, 0, frame(4 + offset) | all),
        // Two pages that continue each other, one with other rights, and one elsewhere.
        (4, 8, frame(7 + offset) | PRESENT | WRITABLE),
        (4, 9, frame(8 + offset) | PRESENT | WRITABLE),
        (4, 10, frame(9 + offset) | PRESENT | USER | NO_EXECUTE),
        (4, 20, frame(11 + offset) | PRESENT),
    ] {
        pages.get_mut(&pfn).unwrap()[index * 8..index * 8 + 8].copy_from_slice(&u64::to_le_bytes(entry));
    }
    pages
}

fn map(folder: &Path, args: &str) -> Vec<Value> {
    let output = run_in(folder, &format!("map --virtual --json {args}"));
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)), "{args}");
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn expected() -> Vec<Value> {
    let extent = |page: u64, pages: u64, physical: u64, [writable, executable, user]: [bool; 3]| {
        let (first, bytes) = (BASE + frame(page), frame(pages));
        json!({
            "first": first, "last": first + bytes - 1, "bytes": bytes, "physical": frame(physical),
            "page_bytes": 4096, "writable": writable, "executable": executable, "user": user,
        })
    };
    vec![
        extent(8, 2, 7, [true, true, false]),
        extent(10, 1, 9, [false, false, true]),
        extent(20, 1, 11, [false, true, false]),
    ]
}

#[test]
fn mapped_ranges_are_shown_with_their_rights() {
    let folder = folder("virtual-map");
    fs::write(folder.join("elf"), elf(&tables(0))).unwrap();
    fs::write(folder.join("pv"), xen_p2m(&tables(0x1000))).unwrap();
    fs::write(folder.join("ram"), raw(&tables(0))).unwrap();
    assert_eq!(map(&folder, "--dump elf --cr3 0x1000"), expected());
    assert_eq!(map(&folder, "--mock ram --cr3 0x1000"), expected());
    // A PV guest's tables hold machine addresses.
    assert_eq!(map(&folder, "--dump pv --cr3 0x1001000"), expected());
    let output = run_in(&folder, "map --dump elf --virtual --cr3 0x1000");
    let expected = "             first                last        size        physical      page  rights
0xffffffff80008000  0xffffffff80009fff       8 KiB          0x7000     4 KiB  rwx-
0xffffffff8000a000  0xffffffff8000afff       4 KiB          0x9000     4 KiB  r--u
0xffffffff80014000  0xffffffff80014fff       4 KiB          0xb000     4 KiB  r-x-
";
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn last_page_and_large_pages_are_shown() {
    let folder = folder("virtual-map-last");
    let mut pages: Pages = (1..=2).map(|pfn| (pfn, page(0))).collect();
    for (pfn, entry) in [(1, frame(2) | PRESENT), (2, LARGE | PRESENT)] {
        pages.get_mut(&pfn).unwrap()[511 * 8..].copy_from_slice(&entry.to_le_bytes());
    }
    fs::write(folder.join("elf"), elf(&pages)).unwrap();
    let [extent] = &map(&folder, "--dump elf --cr3 0x1000")[..] else { panic!("one page") };
    assert_eq!([&extent["last"], &extent["page_bytes"]], [&json!(u64::MAX), &json!(1 << 30)]);
}

#[test]
fn table_that_is_missing_makes_the_map_incomplete() {
    let folder = folder("virtual-map-missing");
    let mut pages = tables(0);
    pages.remove(&4);
    fs::write(folder.join("elf"), elf(&pages)).unwrap();
    let output = run_in(&folder, "map --dump elf --virtual --cr3 0x1000 --json");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), ""));
    assert_eq!(text(&output.stderr), "xenmap: 1 page table or page cannot be read\n");
}

#[test]
fn search_options_do_not_go_with_virtual_addresses() {
    let folder = folder("virtual-map-usage");
    for option in ["--thorough", "--search-limit 1"] {
        let output = run_in(&folder, &format!("map --mock ram --virtual {option}"));
        assert!(usage_error(&output).starts_with("the argument '--virtual' cannot be used with '--"));
    }
}

#[test]
fn endless_tables_are_shown_as_they_are_found() {
    let folder = folder("virtual-map-endless");
    let mut pages: Pages = [(1, page(0))].into();
    let table = pages.get_mut(&1).unwrap();
    // Each entry leads to the table itself, so that no two pages continue each other.
    table.as_chunks_mut::<8>().0.iter_mut().for_each(|entry| *entry = (frame(1) | PRESENT).to_le_bytes());
    fs::write(folder.join("elf"), elf(&pages)).unwrap();
    let output =
        shell(&folder, "\"$0\" map --dump elf --virtual --cr3 0x1000 | head -n 1000 | wc -l").output().unwrap();
    assert_eq!((text(&output.stdout).trim(), text(&output.stderr)), ("1000", ""));
}
