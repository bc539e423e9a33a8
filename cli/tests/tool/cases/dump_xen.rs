//! `xenmap dump --format xen`: its sections are where the readers of `xl dump-core` look for them.

use std::fs;
use std::ops::Range;
use std::path::Path;

use object::LittleEndian as LE;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

use crate::dumps::{self, Pages, page};
use crate::harness::*;

const BANNER: &[u8] = b"Linux version 6.1.0-test (a@b) (gcc 12.2.0, GNU ld 2.40) #1 SMP TEST\n\0";

fn dump(folder: &Path, kind: &str) -> Vec<u8> {
    let output = run_in(folder, &format!("--mock ram --mock-kind {kind} dump --format xen {kind}.xen"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::read(folder.join(format!("{kind}.xen"))).unwrap()
}

/// Returns the sections as volatility3 finds them: the n-th name in the table is that of the n-th section.
fn sections_by_order(file: &[u8]) -> Vec<(String, Range<usize>)> {
    let header = FileHeader64::<LE>::parse(file).unwrap();
    let sections = header.section_headers(LE, file).unwrap();
    let names = sections[usize::from(header.e_shstrndx(LE).0)].data(LE, file).unwrap();
    let names = names.strip_suffix(b"\0").unwrap().split(|&byte| byte == 0).map(|name| text(name).to_owned());
    let start = |n: usize| usize::try_from(sections[n].sh_offset.get(LE)).unwrap();
    let end = |n: usize| start(n) + usize::try_from(sections[n].sh_size.get(LE)).unwrap();
    let in_order: Vec<_> = names.enumerate().map(|(n, name)| (name, start(n)..end(n))).collect();
    assert_eq!(in_order.len(), sections.len());
    in_order
}

#[test]
fn names_are_in_the_order_of_the_sections() {
    let folder = folder("xen-order");
    ram(&folder, &[(0, &pattern(8 << 10)), (frame(9), CANARY)]);
    for (kind, table) in [("pvh", ".xen_pfn"), ("pv", ".xen_p2m")] {
        let file = dump(&folder, kind);
        // The order of `xl dump-core`, which also has `.xen_shared_info`, before the pages.
        let expected = ["", ".shstrtab", ".note.Xen", ".xen_prstatus", ".xen_pages", table];
        let names: Vec<_> = sections_by_order(&file).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected);
        // The same by the offsets of the names, which every other reader uses.
        let header = FileHeader64::<LE>::parse(&*file).unwrap();
        let sections = header.sections(LE, &*file).unwrap();
        let names: Vec<_> = sections.iter().map(|s| text(sections.section_name(LE, s).unwrap())).collect();
        assert_eq!(names, expected);
    }
}

#[test]
fn reader_that_relies_on_the_order_finds_each_frame_at_its_address() {
    let folder = folder("xen-banner");
    ram(&folder, &[(0, &pattern(1 << 20)), (0x1_5010, BANNER), (frame(0x1234) + 0xFF0, &BANNER[..16])]);
    for (kind, table, entry) in [("pvh", ".xen_pfn", 8), ("pv", ".xen_p2m", 16)] {
        let file = dump(&folder, kind);
        let sections = sections_by_order(&file);
        let section = |name: &str| sections.iter().find(|(found, _)| found == name).unwrap().1.clone();
        let (pages, numbers) = (&file[section(".xen_pages")], &file[section(table)]);
        let read = |address: u64, len: usize| {
            let is_it = |entry: &[u8]| entry[..8] == (address / frame(1)).to_le_bytes();
            let index = numbers.chunks(entry).position(is_it).unwrap();
            let offset = index * 4096 + usize::try_from(address % frame(1)).unwrap();
            &pages[offset..offset + len]
        };
        assert_eq!(text(read(0x1_5010, BANNER.len())), text(BANNER), "{kind}");
        assert_eq!(read(frame(0x1234) + 0xFF0, 16), &BANNER[..16], "{kind}");
        assert_eq!(memchr::memmem::find_iter(pages, BANNER).count(), 1, "{kind}");
    }
}

/// Early dumps have the names of both tables, whichever they have.
#[test]
fn dump_with_names_in_another_order_is_read() {
    let folder = folder("xen-old");
    let pages: Pages = [(0, page(1)), (7, page(2)), (8, page(0))].into();
    ram(&folder, &[(0, &page(1)), (frame(7), &page(2)), (frame(8), &page(0))]);
    let numbers = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let pfn = dumps::xen(&pages, ".xen_pfn\0.xen_p2m", &numbers(&[0, 7, 8]), 8);
    let p2m = dumps::xen(&pages, ".xen_p2m\0.xen_pfn", &numbers(&[0, 70, 7, 77, 8, 78]), 16);
    for dump in [pfn, p2m] {
        fs::write(folder.join("old"), dump).unwrap();
        let output = run_in(&folder, "--mock ram diff old");
        assert_eq!(text(&output.stdout), "3 the same, 0 different, 0 only in OLD, 0 only in NEW\n");
        assert!(output.status.success());
    }
}
