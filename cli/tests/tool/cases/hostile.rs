//! Dumps whose headers claim much more than the files hold: `xenmap diff` must spend neither time nor memory on claims.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;
use xenmap::FRAME_SIZE;

use crate::dumps::*;
use crate::harness::*;

const PROGRAM_HEADER: u64 = 56;

/// Makes a sparse file with these bytes at these offsets.
fn sparse(path: &Path, len: u64, content: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    for (offset, bytes) in content {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file.set_len(len).unwrap();
}

/// Returns a section header: name, type, offset, size and information.
fn section(name: u32, kind: u32, offset: u64, size: u64, info: u32) -> Vec<u8> {
    let mut header = [name, kind].map(u32::to_le_bytes).concat();
    header.extend([0, 0, offset, size].map(u64::to_le_bytes).concat());
    header.extend([0, info].map(u32::to_le_bytes).concat());
    header.extend([0_u8; 16]);
    header
}

#[test]
fn claimed_sections_are_refused_at_once() {
    let folder = folder("hostile-sections");
    let core = [elf_header(0, 0, 64, 0), section(0, 0, 0, 1 << 26, 0)].concat();
    sparse(&folder.join("core"), 64 + (64 << 26), &[(0, &core)]);
    let line = refusal(&run_limited(&folder, "diff core core")).to_owned();
    assert!(line.contains("it is a core without memory"), "{line}");
}

#[test]
fn claimed_program_headers_are_refused_at_once() {
    let folder = folder("hostile-segments");
    let mut core = [elf_header(128, 0xffff, 64, 1), section(0, 0, 0, 0, u32::MAX)].concat();
    // No section holds the names of sections.
    core[62] = 0;
    sparse(&folder.join("core"), 128 + PROGRAM_HEADER * u64::from(u32::MAX), &[(0, &core)]);
    let line = refusal(&run_limited(&folder, "diff core core")).to_owned();
    assert!(line.contains("it is a core without memory"), "{line}");
}

#[test]
fn table_of_frames_that_is_a_hole_is_refused_at_once() {
    let folder = folder("hostile-table");
    let names = b"\0.shstrtab\0.xen_pages\0.xen_pfn\0";
    let (names_at, table_at, frames) = (1024, 4096, 1 << 30);
    let pages_at = table_at + 8 * frames;
    let core = [
        elf_header(0, 0, 64, 4),
        section(0, 0, 0, 0, 0),
        section(1, 3, names_at, names.len() as u64, 0),
        section(11, 1, pages_at, frames * 4096, 0),
        section(22, 1, table_at, frames * 8, 0),
    ]
    .concat();
    sparse(&folder.join("core"), pages_at + frames * 4096, &[(0, &core), (names_at, names)]);
    let line = refusal(&run_limited(&folder, "diff core core")).to_owned();
    assert!(line.ends_with("a part of its table of frames is a hole of the file"), "{line}");

    // The same with entries before and after the hole.
    let entries = [1_u64, 2, 3].map(u64::to_le_bytes).concat();
    let content = [(0, &core[..]), (names_at, names), (table_at, &entries), (pages_at - 24, &entries)];
    sparse(&folder.join("core"), pages_at + frames * 4096, &content);
    let line = refusal(&run_limited(&folder, "diff core core")).to_owned();
    assert!(line.ends_with("a part of its table of frames is a hole of the file"), "{line}");
}

#[test]
fn entry_of_frame_0_in_a_hole_is_read() {
    let folder = folder("hostile-entry");
    let names = b"\0.shstrtab\0.xen_pages\0.xen_pfn\0";
    // The first entry is in a block of zeros only.
    let (names_at, table_at, pages_at) = (1024, 2 * 4096 - 8, 4 * 4096);
    let core = [
        elf_header(0, 0, 64, 4),
        section(0, 0, 0, 0, 0),
        section(1, 3, names_at, names.len() as u64, 0),
        section(11, 1, pages_at, 3 * 4096, 0),
        section(22, 1, table_at, 3 * 8, 0),
    ]
    .concat();
    let entries = [1_u64, 2].map(u64::to_le_bytes).concat();
    let pages = [page(b'x'), page(b'y'), page(b'z')].concat();
    let content = [(0, &core[..]), (names_at, names), (table_at + 8, &entries), (pages_at, &pages)];
    sparse(&folder.join("core"), pages_at + 3 * 4096, &content);
    assert_eq!(extents(&folder.join("core")), [(0, 4096), (8192, 12288), (16384, 28672)]);
    fs::write(folder.join("raw"), pages).unwrap();
    let output = run_limited(&folder, "diff core raw");
    let same = "3 the same, 0 different, 0 only in OLD, 0 only in NEW\n";
    assert_eq!((text(&output.stdout), text(&output.stderr)), (same, ""));
}

#[test]
fn unterminated_names_of_sections_are_searched_once() {
    let folder = folder("hostile-names");
    let (count, names) = (65_000, vec![b'.'; 1 << 24]);
    let names_at = 64 + 64 * count;
    let mut core = elf_header(0, 0, 64, count);
    for _ in 0..count {
        core.extend(section(7, 3, names_at, names.len() as u64, 0));
    }
    core.extend(names);
    fs::write(folder.join("core"), core).unwrap();
    let line = refusal(&run_limited(&folder, "diff core core")).to_owned();
    assert!(line.contains("it is a core without memory"), "{line}");
}

#[test]
fn pages_in_holes_cost_nothing() {
    let folder = folder("hostile-holes");
    let tebibyte = 1 << 40;
    // One segment of 1 TiB, and 1000 parts of 1 GiB.
    let core = elf_of_segments(&[Segment::whole(4096 - 64 - PROGRAM_HEADER, 0, tebibyte)], b"");
    sparse(&folder.join("core"), 4096 + tebibyte, &[(0, &core)]);
    let part = 1 << 30;
    let headers: Vec<(u64, Vec<u8>)> = (0..1000)
        .map(|i| {
            let range = [i * part, i * part + part - 1, 0].map(u64::to_le_bytes).concat();
            (i * (32 + part), [b"EMiL\x01\0\0\0".to_vec(), range].concat())
        })
        .collect();
    let content: Vec<(u64, &[u8])> = headers.iter().map(|(offset, header)| (*offset, &header[..])).collect();
    sparse(&folder.join("lime"), 1000 * (32 + part), &content);
    let output = run_limited(&folder, "diff core lime");
    let frames = part * 1000 / 4096;
    let only_old = tebibyte / 4096 - frames;
    let summary = format!("{frames} the same, 0 different, {only_old} only in OLD, 0 only in NEW\n");
    assert!(text(&output.stdout).ends_with(&summary), "{} {}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn overlapping_segments_cost_no_more_than_the_file() {
    let folder = folder("hostile-overlaps");
    let bytes = pattern(1000 * FRAME_SIZE);
    let (len, count) = (bytes.len() as u64, 60_000);

    let same = vec![Segment::whole(0, 0, len); count];
    fs::write(folder.join("same"), elf_of_segments(&same, &bytes)).unwrap();
    let output = run_limited(&folder, "diff same same");
    assert_eq!(text(&output.stdout), "1000 the same, 0 different, 0 only in OLD, 0 only in NEW\n");

    let elsewhere: Vec<Segment> = (0..count as u64).map(|i| Segment::whole(0, i << 24, len)).collect();
    fs::write(folder.join("elsewhere"), elf_of_segments(&elsewhere, &bytes)).unwrap();
    let line = refusal(&run_limited(&folder, "diff elsewhere elsewhere")).to_owned();
    assert!(line.ends_with("are the same bytes of the file"), "{line}");

    // Each in its own hole of 64 MiB, one frame after the previous one.
    let hole = 1 << 26;
    let body_at = 1 << 22;
    let offset = |i: u64| body_at - 64 - PROGRAM_HEADER * count as u64 + i * hole;
    let nested: Vec<Segment> = (0..count as u64).map(|i| Segment::whole(offset(i), frame(i), hole)).collect();
    let core = elf_of_segments(&nested, b"");
    sparse(&folder.join("nested"), body_at + hole * count as u64, &[(0, &core)]);
    let output = run_limited(&folder, "diff nested nested");
    let frames = count as u64 - 1 + hole / 4096;
    let summary = format!("{frames} the same, 0 different, 0 only in OLD, 0 only in NEW\n");
    assert_eq!(text(&output.stdout), summary, "{}", text(&output.stderr));
}

#[test]
fn segments_in_holes_at_any_address_cost_nothing() {
    let folder = folder("hostile-steps");
    let count = 16_000_u64;
    // Each in its own hole, one byte after the previous one.
    let body_at = 1 << 20;
    let offset = |i: u64| body_at - 64 - PROGRAM_HEADER * count + i * 8192;
    let steps: Vec<Segment> = (0..count).map(|i| Segment::whole(offset(i), i, 4096)).collect();
    sparse(&folder.join("holes"), body_at + 8192 * count, &[(0, &elf_of_segments(&steps, b""))]);
    let output = run_limited(&folder, "diff holes holes");
    let stdout = text(&output.stdout);
    assert_eq!(stdout, "5 the same, 0 different, 0 only in OLD, 0 only in NEW\n", "{}", text(&output.stderr));

    // The same with data: each byte is compared once.
    let count = 4000;
    let steps: Vec<Segment> = (0..count).map(|i| Segment::whole(4096 * i, i, 4096)).collect();
    let bytes = vec![b'x'; 4096 * usize::try_from(count).unwrap()];
    fs::write(folder.join("data"), elf_of_segments(&steps, &bytes)).unwrap();
    let output = run_limited(&folder, "diff data data");
    let stdout = text(&output.stdout);
    assert_eq!(stdout, "2 the same, 0 different, 0 only in OLD, 0 only in NEW\n", "{}", text(&output.stderr));

    // All over the same bytes of the file.
    let steps: Vec<Segment> = (0..60_000).map(|i| Segment::whole(i % 4096, i, 4096)).collect();
    fs::write(folder.join("aliased"), elf_of_segments(&steps, &bytes)).unwrap();
    let line = refusal(&run_limited(&folder, "diff aliased aliased")).to_owned();
    assert!(line.ends_with("are the same bytes of the file"), "{line}");
}

#[test]
fn frame_in_thousands_of_pieces_is_compared() {
    let folder = folder("hostile-pieces");
    // Every other byte of 32 frames.
    let bytes = pattern(32 * FRAME_SIZE);
    let odd: Vec<Segment> = (0..bytes.len() as u64 / 2).map(|i| Segment::whole(2 * i, 2 * i, 1)).collect();
    let odd = &odd[..65_000];
    fs::write(folder.join("odd"), elf_of_segments(odd, &bytes)).unwrap();
    let output = run_limited(&folder, "diff odd odd");
    assert_eq!(text(&output.stdout), "32 the same, 0 different, 0 only in OLD, 0 only in NEW\n");
}

#[test]
fn core_with_more_segments_than_its_header_can_count_is_read() {
    let folder = folder("hostile-many");
    // A page in every other frame. Nearly all are zeros, which take no space in the dump; the RAM takes none on the disk.
    let frames = 65_600_u64;
    let file = File::from(memfd_create("ram", MFdFlags::MFD_CLOEXEC).unwrap());
    for pfn in 0..frames {
        file.write_all_at(&page(u8::from(pfn % 1000 == 0)), frame(2 * pfn)).unwrap();
    }
    let ram = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    assert!(run_in(&folder, &format!("--mock {ram} dump core --format elf")).status.success());
    let output = run_in(&folder, &format!("--mock {ram} diff core"));
    let summary = format!("{frames} the same, 0 different, 0 only in OLD, 0 only in NEW\n");
    assert_eq!((text(&output.stdout), text(&output.stderr)), (&summary[..], ""));
    file.write_all_at(b"x", frame(2 * 65_599)).unwrap();
    let output = run_in(&folder, &format!("diff core {ram}"));
    let expected = "0x2007e000 to 0x2007efff: 1 page different\n";
    assert!(text(&output.stdout).starts_with(expected), "{}", text(&output.stdout));
}

/// Returns numbers that overflow, or nearly do.
fn any_number() -> impl Strategy<Value = u64> {
    let near = |border: u64| (0..5000_u64).prop_map(move |n| border.wrapping_add(n).wrapping_sub(2500));
    prop_oneof![
        near(0),
        near(1 << 12),
        near(1 << 31),
        near(1 << 32),
        near(1 << 52),
        near(1 << 63),
        Just(u64::MAX),
        any::<u64>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// With any headers, the tool answers or refuses; it never crashes.
    #[test]
    fn no_header_crashes_it(
        format in 0..FORMATS.len(),
        changes in prop::collection::vec((0..48_usize, any_number(), 1..9_usize), 1..5),
        as_class_32 in prop::bool::weighted(0.1),
    ) {
        let folder = folder("hostile-any");
        let mut dump = FORMATS[format].1(&[(2, page(b'a')), (3, page(b'b')), (40, page(0))].into());
        for (word, number, len) in changes {
            // Words of the headers, or of the tables at the end.
            let at = if word < 40 { word * 8 } else { dump.len() - (word - 39) * 8 };
            dump[at..at + len].copy_from_slice(&number.to_le_bytes()[..len]);
        }
        if as_class_32 {
            dump[4] = 1;
        }
        fs::write(folder.join("any"), dump).unwrap();
        fs::write(folder.join("good"), raw(&[(2, page(b'a'))].into())).unwrap();
        for args in ["diff any good", "diff good any", "diff any any", "--mock good picture png --since any"] {
            let output = run_limited(&folder, args);
            let stderr = text(&output.stderr);
            prop_assert!(matches!(output.status.code(), Some(0..=2)), "{args}: {:?} {stderr}", output.status);
            prop_assert!(stderr.lines().count() <= 1 && !stderr.contains("panicked"), "{args}: {stderr}");
        }
    }
}
