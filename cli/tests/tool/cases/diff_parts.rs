//! `xenmap diff` on dumps whose parts are not whole frames, or overlap, as in dumps of real machines.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use proptest::prelude::*;
use xenmap::FRAME_SIZE;

use crate::dumps::*;
use crate::harness::*;

const SAME: &str = "4 the same, 0 different, 0 only in OLD, 0 only in NEW\n";

/// Returns four frames without a zero byte.
fn memory() -> Vec<u8> {
    pattern(4 * FRAME_SIZE).into_iter().map(|byte| byte | 1).collect()
}

/// Makes a folder with all of [`memory`] as a raw dump, called `ram`.
fn folder_with_ram(test: &str) -> PathBuf {
    let folder = folder(test);
    fs::write(folder.join("ram"), memory()).unwrap();
    folder
}

/// Returns parts of [`memory`], each given by its first address and the one past its last.
fn parts(ranges: &[(usize, usize)]) -> Vec<(u64, Vec<u8>)> {
    ranges.iter().map(|&(start, end)| (start as u64, memory()[start..end].to_vec())).collect()
}

/// Returns a core with parts as its segments.
fn elf_of_parts(parts: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut segments = Vec::new();
    for (address, bytes) in parts {
        segments.push(Segment::whole(body.len() as u64, *address, bytes.len() as u64));
        body.extend(bytes);
    }
    elf_of_segments(&segments, &body)
}

/// Writes parts as `lime` and as `elf`.
fn write_both(folder: &Path, parts: &[(u64, Vec<u8>)]) {
    fs::write(folder.join("lime"), lime_of_parts(parts)).unwrap();
    fs::write(folder.join("elf"), elf_of_parts(parts)).unwrap();
}

#[track_caller]
fn assert_diff(output: &Output, stdout: &str) {
    assert_eq!((text(&output.stdout), text(&output.stderr)), (stdout, ""));
    assert_eq!(output.status.code(), Some(i32::from(stdout != SAME)));
}

#[test]
fn unaligned_part_is_read() {
    let folder = folder_with_ram("parts-unaligned");
    // As on a PC with a BIOS, where the first part of RAM does not end at a page border.
    write_both(&folder, &parts(&[(0x1000, 0x1c00), (0x2000, 0x4000)]));
    let expected = "\
0x0 to 0xfff: 1 page only in NEW
0x1c00 to 0x1fff: 1024 bytes only in NEW
2 the same, 0 different, 0 only in OLD, 2 only in NEW
";
    let other_way = "\
0x0 to 0xfff: 1 page only in OLD
0x1c00 to 0x1fff: 1024 bytes only in OLD
2 the same, 0 different, 2 only in OLD, 0 only in NEW
";
    for dump in ["lime", "elf"] {
        assert_diff(&run_in(&folder, &format!("diff {dump} ram")), expected);
        assert_diff(&run_in(&folder, &format!("--mock ram diff {dump}")), expected);
        assert_diff(&run_in(&folder, &format!("diff ram {dump}")), other_way);
        let itself = "3 the same, 0 different, 0 only in OLD, 0 only in NEW\n";
        assert_eq!(text(&run_in(&folder, &format!("diff {dump} lime")).stdout), itself);
    }
}

#[test]
fn bytes_that_differ_in_a_torn_page_are_shown() {
    let folder = folder_with_ram("parts-differ");
    let mut torn = parts(&[(0, 0x1400), (0x1800, 0x4000)]);
    torn[1].1[0x10] ^= 0xFF;
    write_both(&folder, &torn);
    let expected = "\
0x1400 to 0x17ff: 1024 bytes only in NEW
0x1800 to 0x1fff: 2048 bytes different
3 the same, 1 different, 0 only in OLD, 0 only in NEW
";
    assert_diff(&run_in(&folder, "diff lime ram"), expected);
    assert_diff(&run_in(&folder, "diff elf ram"), expected);
}

#[test]
fn page_of_which_each_dump_has_another_part_is_shown() {
    let folder = folder("parts-other");
    fs::write(folder.join("old"), lime_of_parts(&parts(&[(0x800, 0xc00), (0x1000, 0x1001)]))).unwrap();
    fs::write(folder.join("new"), elf_of_parts(&parts(&[(0xb00, 0x1001)]))).unwrap();
    let expected = "\
0x800 to 0xaff: 768 bytes only in OLD
0xc00 to 0xfff: 1024 bytes only in NEW
1 the same, 0 different, 1 only in OLD, 0 only in NEW
";
    assert_diff(&run_in(&folder, "diff old new"), expected);
}

#[test]
fn parts_that_share_a_frame_are_one_page() {
    let folder = folder_with_ram("parts-shared");
    let mut shared = parts(&[(0, 0x1c00), (0x1c00, 0x2001), (0x2001, 0x4000)]);
    write_both(&folder, &shared);
    assert_diff(&run_in(&folder, "diff lime ram"), SAME);
    assert_diff(&run_in(&folder, "diff elf lime"), SAME);
    shared[1].1[0] ^= 0xFF;
    write_both(&folder, &shared);
    let expected = "0x1000 to 0x1fff: 1 page different\n3 the same, 1 different, 0 only in OLD, 0 only in NEW\n";
    assert_diff(&run_in(&folder, "diff lime ram"), expected);
    assert_diff(&run_in(&folder, "diff elf ram"), expected);
}

#[test]
fn zeros_that_a_raw_dump_may_hide_are_the_same_in_a_torn_page_too() {
    let folder = folder("parts-hidden");
    fs::write(folder.join("raw"), raw(&[(0, page(0)), (1, page(7))].into())).unwrap();
    let zeros = (0, vec![0; 0x100]);
    fs::write(folder.join("lime"), lime_of_parts(&[zeros, (0x1000, vec![7; 0x1000]), (0x2800, vec![0; 0x100])]))
        .unwrap();
    // Where the raw dump has zeros there may be no RAM, and past its end there may be zeros.
    let expected = "3 the same, 0 different, 0 only in OLD, 0 only in NEW\n";
    let output = run_in(&folder, "diff raw lime");
    assert_eq!((text(&output.stdout), output.status.code()), (expected, Some(0)));
}

#[test]
fn same_bytes_twice_are_not_a_conflict() {
    let folder = folder_with_ram("parts-overlap");
    let text_too = [Segment::whole(0, 0, 0x4000), Segment::whole(0x1000, 0x1000, 0x1800)];
    fs::write(folder.join("same-offset"), elf_of_segments(&text_too, &memory())).unwrap();
    let with_copy = [memory(), memory()[0x1800..0x2400].to_vec()].concat();
    let copied = [Segment::whole(0x4000, 0x1800, 0xc00), Segment::whole(0, 0, 0x4000)];
    fs::write(folder.join("copied"), elf_of_segments(&copied, &with_copy)).unwrap();
    fs::write(folder.join("lime"), lime_of_parts(&parts(&[(0, 0x2800), (0x1400, 0x4000), (0x10, 0x20)]))).unwrap();
    for dump in ["same-offset", "copied", "lime"] {
        assert_diff(&run_in(&folder, &format!("diff {dump} ram")), SAME);
        assert_diff(&run_in(&folder, &format!("--mock ram diff {dump}")), SAME);
    }
}

#[test]
fn different_bytes_for_an_address_are_refused() {
    let folder = folder_with_ram("parts-conflict");
    let mut conflicting = parts(&[(0, 0x4000), (0x1000, 0x3000)]);
    conflicting[1].1[0x1800] ^= 0xFF;
    write_both(&folder, &conflicting);
    // A hole of the file is zeros, too.
    let part_in_a_hole = [b"EMiL\x01\0\0\0".to_vec(), [0, 0xffff, 0_u64].map(u64::to_le_bytes).concat()].concat();
    let mut hole = File::create(folder.join("hole")).unwrap();
    hole.write_all(&lime_of_parts(&[(0, vec![0; 0x3000]), (0x3000, vec![1; 0x1000])])).unwrap();
    hole.write_all(&part_in_a_hole).unwrap();
    hole.set_len(hole.metadata().unwrap().len() + 0x1_0000).unwrap();

    for (dump, frame) in [("lime", 2), ("elf", 2), ("hole", 3)] {
        let expected = format!("cannot use {dump} as a dump: it has frame {frame:#x} twice, with different bytes");
        assert_eq!(refusal(&run_in(&folder, &format!("diff {dump} {dump}"))), expected);
    }
}

#[test]
fn zeros_that_are_not_in_the_file_give_way_to_bytes() {
    let folder = folder_with_ram("parts-filled");
    // QEMU's dump-guest-memory with paging=true: mappings of addresses without RAM, or that reach past its end.
    let segments = [
        Segment { offset: 0, address: 0x1000, in_file: 0, in_memory: 0x3000 },
        Segment { offset: 0, address: 0, in_file: 0x1800, in_memory: 0x2000 },
        Segment::whole(0, 0, 0x4000),
        Segment { offset: u64::MAX - 0x1000, address: 0x2000, in_file: 0, in_memory: 0 },
    ];
    fs::write(folder.join("elf"), elf_of_segments(&segments, &memory())).unwrap();
    assert_diff(&run_in(&folder, "diff elf ram"), SAME);
}

#[test]
fn bytes_of_the_file_that_stand_for_two_addresses_are_refused() {
    let folder = folder_with_ram("parts-aliased");
    let segments = [Segment::whole(0, 0, 0x4000), Segment::whole(0x1000, 0x8000, 0x1000)];
    fs::write(folder.join("elf"), elf_of_segments(&segments, &memory())).unwrap();
    let expected = "cannot use elf as a dump: its parts at 0x0 and 0x8000 are the same bytes of the file";
    assert_eq!(refusal(&run_in(&folder, "diff elf ram")), expected);
}

#[test]
fn cores_of_32_bits_and_of_either_byte_order_are_read() {
    let folder = folder_with_ram("parts-classes");
    let class_32 = |half: fn(u16) -> [u8; 2], word: fn(u32) -> [u8; 4], order: u8| {
        let mut core = vec![0x7F, b'E', b'L', b'F', 1, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        core.extend([4, 3].map(half).concat());
        core.extend([1, 0, 52, 0, 0].map(word).concat());
        core.extend([52, 32, 1, 40, 0, 0].map(half).concat());
        // PT_LOAD; offset, virtual and physical address, sizes in the file and in memory, flags, alignment.
        core.extend([1, 52 + 32, 0, 0, 0x4000, 0x4000, 4, 0].map(word).concat());
        [core, memory()].concat()
    };
    let class_64_big = || {
        let mut core = vec![0x7F, b'E', b'L', b'F', 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        core.extend([4, 22].map(u16::to_be_bytes).concat());
        core.extend(1_u32.to_be_bytes());
        core.extend([0_u64, 64, 0].map(u64::to_be_bytes).concat());
        core.extend(0_u32.to_be_bytes());
        core.extend([64, 56, 1, 64, 0, 0].map(u16::to_be_bytes).concat());
        core.extend([1, 4].map(u32::to_be_bytes).concat());
        core.extend([64 + 56, 0, 0, 0x4000, 0x4000, 0_u64].map(u64::to_be_bytes).concat());
        [core, memory()].concat()
    };
    for core in [
        class_32(u16::to_le_bytes, u32::to_le_bytes, 1),
        class_32(u16::to_be_bytes, u32::to_be_bytes, 2),
        class_64_big(),
    ] {
        fs::write(folder.join("core"), core).unwrap();
        assert_diff(&run_in(&folder, "diff core ram"), SAME);
    }
}

/// Returns a program header: type, offset, virtual and physical address, size.
fn program_header(kind: u32, offset: u64, virt: u64, physical: u64, len: u64) -> Vec<u8> {
    [[kind, 4].map(u32::to_le_bytes).concat(), [offset, virt, physical, len, len, 0].map(u64::to_le_bytes).concat()]
        .concat()
}

/// Returns a core of notes and [`memory`]. A segment is given by its start and end in that, and its virtual and physical
/// address.
fn core_with_notes(notes: &[u8], segments: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let count = segments.len() as u64 + 1;
    let notes_at = 64 + 56 * count;
    let memory_at = notes_at + notes.len() as u64;
    let mut core = elf_header(64, count, 0, 0);
    core.extend(program_header(4, notes_at, 0, 0, notes.len() as u64));
    for &(start, end, virt, physical) in segments {
        core.extend(program_header(1, memory_at + start, virt, physical, end - start));
    }
    [core, notes.to_vec(), memory()].concat()
}

fn note(name: [u8; 4], kind: u32) -> Vec<u8> {
    [[5, 3, kind].map(u32::to_le_bytes).concat(), name.to_vec(), b"\0\0\0\0abc\0".to_vec()].concat()
}

#[test]
fn core_of_a_process_is_refused() {
    let folder = folder_with_ram("parts-process");
    let of_machine = note(*b"CORE", 1);
    // As gcore and the kernel write them: the note with the registers may come first.
    let of_process = [note(*b"CORE", 1), note(*b"CORE", 3)].concat();
    let several = [(0, 0x1000, 0x40_0000, 0), (0x1000, 0x4000, 0x7fff_0000, 0)];
    let one = [(0, 0x4000, 0x40_0000, 0)];
    for (notes, segments) in [(&of_process, &several[..]), (&of_machine, &several), (&of_process, &one)] {
        fs::write(folder.join("core"), core_with_notes(notes, segments)).unwrap();
        let expected = "cannot use core as a dump: it is the core of a process, not of a machine";
        assert_eq!(refusal(&run_in(&folder, "diff core ram")), expected);
    }
}

#[test]
fn core_of_a_machine_whose_ram_begins_at_0_is_read() {
    let folder = folder_with_ram("parts-machine");
    let of_machine = note(*b"CORE", 1);
    let all_at_0 = (0, 0x4000, 0, 0);
    let mapped_at = 0xffff_8880_0000_0000;
    for (notes, segments) in [
        (&of_machine, vec![all_at_0]),
        (&of_machine, vec![(0, 0x4000, mapped_at, 0)]),
        (&note(*b"QEMU", 3), vec![all_at_0]),
        (&of_machine, vec![(0, 0x1000, mapped_at, 0), (0x1000, 0x4000, mapped_at + 0x1000, 0x1000)]),
    ] {
        fs::write(folder.join("core"), core_with_notes(notes, &segments)).unwrap();
        assert_diff(&run_in(&folder, "diff core ram"), SAME);
    }
}

#[test]
fn core_without_physical_addresses_is_refused() {
    let folder = folder_with_ram("parts-kcore");
    // As /proc/kcore, where some segments have them.
    let segments = [(0, 0x1000, 0xffff_8880_0000_0000, 0), (0x1000, 0x4000, 0xffff_ffff_8000_0000, u64::MAX)];
    fs::write(folder.join("core"), core_with_notes(&note(*b"CORE", 1), &segments)).unwrap();
    let line = refusal(&run_in(&folder, "diff core ram")).to_owned();
    assert!(line.starts_with("cannot use core as a dump: its segments have no physical addresses"), "{line}");
}

#[test]
fn picture_shows_a_torn_page_as_changed_unless_all_of_it_is_the_same() {
    let folder = folder_with_ram("parts-picture");
    fs::write(folder.join("torn"), lime_of_parts(&parts(&[(0, 0x1c00), (0x2000, 0x4000)]))).unwrap();
    fs::write(folder.join("shared"), lime_of_parts(&parts(&[(0, 0x1c00), (0x1c00, 0x4000)]))).unwrap();
    let torn = run_in(&folder, "--mock ram picture torn.png --since torn");
    assert!(text(&torn.stdout).contains("\norange          1  changed since the dump\n"), "{}", text(&torn.stdout));
    let shared = run_in(&folder, "--mock ram picture shared.png --since shared");
    assert!(text(&shared.stdout).contains("\nblue            4  data\n"), "{}", text(&shared.stdout));
}

/// A model of a dump: for each address a byte or nothing.
type Model = Vec<Option<u8>>;

const MODEL_FRAMES: usize = 3;

/// Generates parts that do not overlap, in any order.
fn any_parts() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    // The borders are often those of frames. About half of the parts between them are present.
    let border = prop_oneof![(0..=MODEL_FRAMES).prop_map(|n| n * FRAME_SIZE), 0..=MODEL_FRAMES * FRAME_SIZE];
    let seed = any::<u64>();
    (prop::collection::vec(border, 0..10), seed).prop_map(|(mut borders, seed)| {
        borders.sort_unstable();
        borders.dedup();
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        for (i, pair) in borders.windows(2).enumerate() {
            if seed >> i & 1 == 1 {
                // Most parts have the bytes of the memory, some others.
                let mut bytes = memory()[pair[0]..pair[1]].to_vec();
                if (seed >> (i + 16)).is_multiple_of(8) {
                    bytes[0] ^= 0xFF;
                }
                parts.push((pair[0] as u64, bytes));
            }
        }
        parts.reverse();
        parts
    })
}

fn model(parts: &[(u64, Vec<u8>)]) -> Model {
    let mut model = vec![None; MODEL_FRAMES * FRAME_SIZE];
    for (address, bytes) in parts {
        let start = usize::try_from(*address).unwrap();
        for (there, byte) in model[start..].iter_mut().zip(bytes) {
            *there = Some(*byte);
        }
    }
    model
}

/// Returns the last line of a comparison of two models.
fn summary(old: &Model, new: &Model) -> String {
    let mut counts = [0; 4];
    for (old, new) in old.chunks(FRAME_SIZE).zip(new.chunks(FRAME_SIZE)) {
        let any = |is_so: fn(Option<u8>, Option<u8>) -> bool| old.iter().zip(new).any(|(old, new)| is_so(*old, *new));
        if any(|old, new| old.is_some() && new.is_some() && old != new) {
            counts[1] += 1;
        } else if any(|old, new| old.is_some() && new.is_none()) {
            counts[2] += 1;
        } else if any(|old, new| old.is_none() && new.is_some()) {
            counts[3] += 1;
        } else if any(|old, _| old.is_some()) {
            counts[0] += 1;
        }
    }
    let [same, different, only_old, only_new] = counts;
    format!("{same} the same, {different} different, {only_old} only in OLD, {only_new} only in NEW\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_parts_are_compared_byte_by_byte(old in any_parts(), new in any_parts()) {
        let folder = folder("parts-any");
        // An empty dump is refused, so there is always a page, far away.
        let far = (1 << 30, vec![1; FRAME_SIZE]);
        let [old_far, new_far] = [&old, &new].map(|parts| [&parts[..], std::slice::from_ref(&far)].concat());
        fs::write(folder.join("old"), lime_of_parts(&old_far)).unwrap();
        fs::write(folder.join("new"), elf_of_parts(&new_far)).unwrap();
        let [old_model, new_model] = [&old, &new].map(|parts| [model(parts), vec![Some(1); FRAME_SIZE]].concat());

        let output = run_in(&folder, "diff old new");

        let expected = summary(&old_model, &new_model);
        let shown = text(&output.stdout);
        prop_assert!(shown.ends_with(&expected), "{expected}{shown}{}", text(&output.stderr));
        let is_same = expected.ends_with(" 0 different, 0 only in OLD, 0 only in NEW\n");
        prop_assert_eq!(output.status.code(), Some(i32::from(!is_same)));
        let only = |one: &Model, other: &Model| {
            one.iter().zip(other).filter(|(one, other)| one.is_some() && other.is_none()).count()
        };
        prop_assert_eq!(bytes_shown_as(shown, "only in OLD"), only(&old_model, &new_model));
        prop_assert_eq!(bytes_shown_as(shown, "only in NEW"), only(&new_model, &old_model));
    }
}

/// Returns the number of bytes in the lines with a verdict.
fn bytes_shown_as(shown: &str, verdict: &str) -> usize {
    let lines = shown.lines().filter(|line| line.starts_with("0x") && line.ends_with(verdict));
    let address = |word: &str| usize::from_str_radix(word.strip_prefix("0x").unwrap(), 16).unwrap();
    let range = |line: &str| -> (usize, usize) {
        let mut words = line.split([' ', ':']);
        (address(words.next().unwrap()), address(words.nth(1).unwrap()))
    };
    lines.map(|line| range(line).1 - range(line).0 + 1).sum()
}
