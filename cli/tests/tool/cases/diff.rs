//! `xenmap diff`, run as a person does, on dumps of each format.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use proptest::prelude::*;
use serde_json::{Value, json};
use xenmap::mock::MockHost;
use xenmap::{FRAME_SIZE, Gfn, Guest, GuestKind};

use crate::args::SearchArgs;
use crate::diff;
use crate::dumps::*;
use crate::harness::*;
use crate::ram::Ram;

/// Makes a folder with a dump of frames 2, 3 (both data) and 40 (zeros) in each format.
fn folder_with_dumps(test: &str) -> PathBuf {
    let folder = folder(test);
    for (name, make) in FORMATS {
        fs::write(folder.join(name), make(&pages())).unwrap();
    }
    folder
}

fn pages() -> Pages {
    [(2, page(b'a')), (3, page(b'b')), (40, page(0))].into()
}

#[track_caller]
fn assert_same(output: &Output) {
    assert!(text(&output.stdout).ends_with(" the same, 0 different, 0 only in OLD, 0 only in NEW\n"));
    assert_eq!((text(&output.stdout).lines().count(), text(&output.stderr)), (1, ""));
    assert_eq!(output.status.code(), Some(0));
}

#[track_caller]
fn assert_different(output: &Output, stdout: &str) {
    assert_eq!((text(&output.stdout), text(&output.stderr)), (stdout, ""));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn dumps_of_the_same_pages_are_the_same_in_any_two_formats() {
    let folder = folder_with_dumps("diff-same");
    for (old, _) in FORMATS {
        for (new, _) in FORMATS {
            assert_same(&run_in(&folder, &format!("diff {old} {new}")));
        }
    }
}

#[test]
fn dump_and_its_guest_are_the_same() {
    let folder = folder_with_dumps("diff-guest");
    ram(&folder, &pages().iter().map(|(pfn, page)| (frame(*pfn), page.as_slice())).collect::<Vec<_>>());
    for (old, _) in FORMATS {
        assert_same(&run_in(&folder, &format!("--mock ram diff {old}")));
    }
}

#[test]
fn dump_that_the_tool_has_made_and_its_guest_are_the_same() {
    let folder = folder("diff-dumped");
    ram(&folder, &[(0, &pattern(5 * FRAME_SIZE)), (frame(3), &page(0)), (frame(9000), b"x")]);
    for kind in ["pv", "pvh"] {
        for format in ["raw", "elf", "lime", "xen"] {
            let guest = format!("--mock ram --mock-kind {kind}");
            assert!(run_in(&folder, &format!("{guest} dump {kind}-{format} --format {format}")).status.success());
            assert_same(&run_in(&folder, &format!("{guest} diff {kind}-{format}")));
        }
        assert_same(&run_in(&folder, &format!("diff {kind}-elf {kind}-xen")));
    }
    let differs = run_in(&folder, "--mock ram --mock-kind pvh diff pv-elf");
    assert!(text(&differs.stdout).contains("only in OLD\n"), "{}", text(&differs.stdout));
    assert_eq!(differs.status.code(), Some(1));
}

#[test]
fn page_that_differs_is_shown_in_any_two_formats() {
    let folder = folder_with_dumps("diff-page");
    for (name, make) in FORMATS {
        let mut pages = pages();
        pages.get_mut(&3).unwrap()[4095] = 0;
        fs::write(folder.join(format!("{name}-new")), make(&pages)).unwrap();
    }
    for (old, _) in FORMATS {
        for (new, _) in FORMATS {
            let output = run_in(&folder, &format!("diff {old} {new}-new"));
            let shown = text(&output.stdout);
            assert!(shown.starts_with("0x3000 to 0x3fff: 1 page different\n"), "{old} {new}: {shown}");
            assert!(shown.ends_with(" 1 different, 0 only in OLD, 0 only in NEW\n"), "{old} {new}: {shown}");
            assert_eq!(output.status.code(), Some(1));
        }
    }
}

#[test]
fn pages_that_one_dump_lacks_are_shown() {
    let folder = folder_with_dumps("diff-lacks");
    let pages: Pages = [(3, page(b'b')), (41, page(0)), (42, page(b'c'))].into();
    fs::write(folder.join("new"), elf(&pages)).unwrap();
    let expected = "\
0x2000 to 0x2fff: 1 page only in OLD
0x28000 to 0x28fff: 1 page only in OLD
0x29000 to 0x2afff: 2 pages only in NEW
1 the same, 0 different, 2 only in OLD, 2 only in NEW
";
    assert_different(&run_in(&folder, "diff lime new"), expected);
    // Where a raw dump has zeros, there may be a page of zeros or no page.
    let expected = "\
0x2000 to 0x2fff: 1 page only in OLD
0x2a000 to 0x2afff: 1 page different
41 the same, 1 different, 1 only in OLD, 0 only in NEW
";
    assert_different(&run_in(&folder, "diff raw new"), expected);
}

#[test]
fn page_that_the_guest_has_changed_since_the_dump_is_shown() {
    let folder = folder("diff-changed");
    ram(&folder, &[(0, CANARY), (frame(600), b"\0")]);
    fs::write(folder.join("old"), lime(&[(0, page(0)), (700, page(0))].into())).unwrap();
    let expected = "\
0x0 to 0xfff: 1 page different
0x258000 to 0x258fff: 1 page only in NEW
0x2bc000 to 0x2bcfff: 1 page only in OLD
0 the same, 1 different, 1 only in OLD, 1 only in NEW
";
    assert_different(&run_in(&folder, "--mock ram diff old"), expected);
}

#[test]
fn segment_that_is_larger_than_its_part_of_the_file_ends_with_zeros() {
    let folder = folder("diff-bss");
    let mut core = elf(&[(7, page(b'x'))].into());
    // The size in memory: up to the last possible address.
    core[64 + 40..64 + 48].copy_from_slice(&frame((1 << 40) - 7).to_le_bytes());
    fs::write(folder.join("large"), core).unwrap();
    fs::write(folder.join("small"), raw(&[(7, page(b'x'))].into())).unwrap();
    assert_same(&run_in(&folder, "diff large small"));
}

#[test]
fn unused_table_entries_are_skipped() {
    let folder = folder("diff-invalid");
    let table = [u64::MAX, 9].map(u64::to_le_bytes).concat();
    fs::write(folder.join("core"), xen(&[(0, page(b'?')), (1, page(b'x'))].into(), ".xen_pfn", &table, 8)).unwrap();
    fs::write(folder.join("raw"), raw(&[(9, page(b'x'))].into())).unwrap();
    assert_same(&run_in(&folder, "diff core raw"));
}

#[test]
fn frame_that_a_table_lists_twice_is_read_if_its_bytes_are_the_same() {
    let folder = folder("diff-twice");
    fs::write(folder.join("lime"), lime(&[(5, page(b'x')), (7, page(b'y'))].into())).unwrap();
    for table in [[5, 5, 7], [5, 7, 5], [7, 5, 5]] {
        let pages = (0..).zip(table.map(|pfn| page(if pfn == 5 { b'x' } else { b'y' }))).collect();
        let pfn = table.map(u64::to_le_bytes).concat();
        fs::write(folder.join("pfn"), xen(&pages, ".xen_pfn", &pfn, 8)).unwrap();
        let p2m = table.map(|pfn| [pfn, 0x1000].map(u64::to_le_bytes).concat()).concat();
        fs::write(folder.join("p2m"), xen(&pages, ".xen_p2m", &p2m, 16)).unwrap();
        assert_same(&run_in(&folder, "diff pfn lime"));
        assert_same(&run_in(&folder, "diff p2m lime"));
    }
}

#[test]
fn hole_of_a_raw_dump_is_zeros() {
    let folder = folder("diff-sparse");
    ram(&folder, &[(frame(1), &page(b'x')), (frame(1 << 30), &page(0))]);
    fs::write(folder.join("small"), raw(&[(1, page(b'x'))].into())).unwrap();
    assert_same(&run_in(&folder, "diff ram small"));
    assert_same(&run_in(&folder, "diff small ram"));
}

#[test]
fn file_that_is_not_a_dump_is_refused_in_one_line() {
    let folder = folder_with_dumps("diff-bad");
    let good = |make: Format| make(&pages());
    let cut = |make: Format, by: usize| good(make)[..good(make).len() - by].to_vec();
    let with = |make: Format, at: usize, bytes: &[u8]| {
        let mut dump = good(make);
        dump[at..at + bytes.len()].copy_from_slice(bytes);
        dump
    };
    let twice = |table: &[u64], name| {
        let table: Vec<u8> = table.iter().flat_map(|word| word.to_le_bytes()).collect();
        xen(&[(0, page(1)), (1, page(2))].into(), name, &table, 8)
    };
    for (dump, expected) in [
        (b"some text".to_vec(), "it is of no known kind, and not raw RAM: its length is not a multiple of 4096"),
        (cut(raw, 1), "it is of no known kind, and not raw RAM: its length is not a multiple of 4096"),
        (Vec::new(), "it is empty"),
        (b"\x7fELF".to_vec(), "a broken elf file"),
        (with(elf, 4, &[3]), "its class is neither 32-bit nor 64-bit"),
        (with(elf, 16, &[2]), "an elf file, but not a core"),
        (with(elf, 32, &[0xFF; 8]), "a broken elf file"),
        (with(elf, 64 + 8, &[0xFF; 8]), "it is cut off"),
        (with(elf, 64 + 32, &[0xFF; 8]), "more bytes in the file than in memory"),
        (with(elf, 64 + 24, &(u64::MAX - 1).to_le_bytes()), "past the last address"),
        (with(elf, 64 + 24, &[0xFF; 8]), "its segments have no physical addresses"),
        (with(elf, 64 + 24, &frame(40).to_le_bytes()), "it has frame 0x28 twice"),
        (cut(elf, 1), "it is cut off"),
        (cut(lime, 1), "it is cut off"),
        (cut(lime, 4096 + 1), "it is cut off"),
        (with(lime, 4, &[2]), "no lime header, version 1, at byte 0"),
        (with(lime, 16, &[0; 8]), "ends before it begins"),
        (with(lime, 16, &[0xFF; 8]), "it is cut off"),
        (cut(xen_pfn, 1), "it is cut off"),
        (with(xen_pfn, 64 + 2 * 64 + 24, &[0xFF; 8]), "it is cut off"),
        (twice(&[5, 5], ".xen_pfn"), "it has frame 0x5 twice, with different bytes"),
        (twice(&[5, 1 << 40], ".xen_pfn"), "it has a frame 0x10000000000"),
        (twice(&[5, 6, 7], ".xen_pfn"), "more frames than it has pages"),
        (twice(&[5, 6], ".xen_p3m"), "no table of their frames"),
    ] {
        fs::write(folder.join("bad"), dump).unwrap();
        let output = run_in(&folder, "diff bad raw");
        assert_eq!(output.status.code(), Some(2), "{expected}");
        let line = refusal(&output);
        assert!(line.starts_with("cannot use bad as a dump: "), "{line}");
        assert!(line.contains(expected), "{expected}: {line}");
        assert_eq!(text(&output.stdout), "");
    }
}

/// Returns the document that a comparison prints.
#[track_caller]
fn document(output: &Output) -> Value {
    let line = text(&output.stdout).strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "{line}");
    serde_json::from_str(line).unwrap()
}

#[test]
fn ranges_and_counts_are_one_document() {
    let folder = folder_with_dumps("diff-json");
    let pages: Pages = [(3, page(b'B')), (40, page(0)), (41, page(b'c'))].into();
    fs::write(folder.join("new"), elf(&pages)).unwrap();
    let output = run_in(&folder, "diff lime new --json");
    let expected = json!({
        "complete": true,
        "ranges": [
            { "first": 0x2000, "last": 0x2fff, "bytes": 4096, "status": "only_in_old" },
            { "first": 0x3000, "last": 0x3fff, "bytes": 4096, "status": "different" },
            { "first": 0x29000, "last": 0x29fff, "bytes": 4096, "status": "only_in_new" },
        ],
        "pages": { "same": 1, "different": 1, "only_in_old": 1, "only_in_new": 1, "unreadable": 0 },
        "not_searched": [],
    });
    assert_eq!((document(&output), text(&output.stderr)), (expected, ""));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn document_of_the_same_pages_has_no_ranges() {
    let folder = folder_with_dumps("diff-json-same");
    ram(&folder, &pages().iter().map(|(pfn, page)| (frame(*pfn), page.as_slice())).collect::<Vec<_>>());
    let output = run_in(&folder, "--mock ram diff elf --json");
    let document = document(&output);
    assert_eq!((&document["complete"], &document["ranges"]), (&json!(true), &json!([])));
    assert_eq!(document["pages"]["same"], 3);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn document_has_the_bytes_of_torn_pages() {
    let folder = folder("diff-json-torn");
    fs::write(folder.join("old"), lime_of_parts(&[(0, [1; 0x1c00])])).unwrap();
    fs::write(folder.join("new"), raw(&[(0, page(1)), (1, page(1))].into())).unwrap();
    let document = document(&run_in(&folder, "diff old new --json"));
    let range = json!({ "first": 0x1c00, "last": 0x1fff, "bytes": 0x400, "status": "only_in_new" });
    assert_eq!(document["ranges"], json!([range]));
    assert_eq!((&document["pages"]["same"], &document["pages"]["only_in_new"]), (&json!(1), &json!(1)));
}

#[test]
fn document_says_that_nothing_was_compared() {
    let folder = folder("diff-json-limit");
    // It takes minutes to try every frame number.
    ram(&folder, &[(0, b"x"), (frame(1 << 31) - 4096, b"x")]);
    fs::write(folder.join("old"), lime(&[(0, page(0))].into())).unwrap();
    let output = run_in(&folder, "--mock ram diff --thorough --search-limit 1 old --json");
    assert_eq!(output.status.code(), Some(3));
    let document = document(&output);
    let pages = json!({ "same": 0, "different": 0, "only_in_old": 0, "only_in_new": 0, "unreadable": 0 });
    assert_eq!((&document["complete"], &document["pages"]), (&json!(false), &pages));
    assert!(document["not_searched"][0]["bytes"].as_u64().unwrap() > 1 << 30, "{document}");
}

#[test]
fn pages_that_cannot_be_read_are_in_the_document() {
    let folder = folder("diff-json-unreadable");
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 8);
    domain.break_frame(Gfn::new(5).unwrap());
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let old = folder.join("old");
    fs::write(&old, lime(&(0..8).map(|pfn| (pfn, page(0))).collect())).unwrap();

    let mut out = Vec::new();
    let error = diff::dump_and_ram(&old, None, &ram, SearchArgs::default(), true, &mut out).unwrap_err();

    assert_eq!(error.to_string(), "1 page of the guest cannot be read and was not compared");
    let document: Value = serde_json::from_slice(&out).unwrap();
    let range = json!({ "first": 0x5000, "last": 0x5fff, "bytes": 4096, "status": "unreadable" });
    assert_eq!((&document["complete"], &document["ranges"]), (&json!(false), &json!([range])));
    assert_eq!((&document["pages"]["same"], &document["pages"]["unreadable"]), (&json!(7), &json!(1)));
}

#[test]
fn verdicts_are_coloured_where_colours_are_asked_for() {
    let folder = folder_with_dumps("diff-colours");
    let pages: Pages = [(3, page(b'B')), (40, page(0)), (41, page(0))].into();
    fs::write(folder.join("new"), elf(&pages)).unwrap();
    let mut command = tool();
    let coloured =
        command.current_dir(&folder).env("CLICOLOR_FORCE", "1").args(["diff", "lime", "new"]).output().unwrap();
    let expected = "\
\x1b[31m0x2000 to 0x2fff: 1 page only in OLD\x1b[0m
\x1b[33m0x3000 to 0x3fff: 1 page different\x1b[0m
\x1b[32m0x29000 to 0x29fff: 1 page only in NEW\x1b[0m
1 the same, 1 different, 1 only in OLD, 1 only in NEW
";
    assert_eq!(text(&coloured.stdout), expected);
    let document = command.arg("--json").output().unwrap();
    assert!(!text(&document.stdout).contains('\x1b'));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in a file: an answer or a refusal, never a crash.
    #[test]
    fn no_dump_crashes_it(
        format in 0..FORMATS.len(),
        changes in prop::collection::vec(
            (0..600_usize, prop_oneof![Just(0), Just(0xFF), any::<u8>()], 1..9_usize),
            0..4,
        ),
        cut in prop_oneof![Just(0), 0..20_000_usize],
    ) {
        let folder = folder("diff-any");
        let mut dump = FORMATS[format].1(&pages());
        for (at, byte, len) in changes {
            // Where headers are, or tables at the end.
            let at = if at < 400 { at } else { dump.len() - 600 + at };
            for byte_there in dump.iter_mut().skip(at).take(len) {
                *byte_there = byte;
            }
        }
        dump.truncate(dump.len().saturating_sub(cut));
        fs::write(folder.join("any"), dump).unwrap();
        fs::write(folder.join("good"), raw(&pages())).unwrap();
        let output = run_in(&folder, "diff any good");
        prop_assert!(matches!(output.status.code(), Some(0..=2)), "{}", text(&output.stderr));
        prop_assert!(text(&output.stderr).lines().count() <= 1, "{}", text(&output.stderr));
        prop_assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    }
}
