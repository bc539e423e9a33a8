//! `xenmap read`, run as a person does, and on simulated guests with frames of all kinds.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::json;
use xenmap::mock::MockHost;
use xenmap::{FRAME_SIZE, Gfn, Guest, GuestKind, PageTables, PagingMode};

use crate::harness::*;
use crate::ram::Ram;
use crate::read;
use crate::read::Format;
use crate::said;
use crate::space::Space;

/// The row that `read` prints for [`CANARY`], after its address.
pub(super) const CANARY_ROW: &str = "78 65 6e 6d 61 70 20 63  61 6e 61 72 79           |xenmap canary|\n";

#[test]
fn read_shows_bytes_on_both_sides_of_a_frame_border() {
    let folder = folder("border");
    ram(&folder, &[(frame(2) - 5, CANARY), (frame(3) - 1, b"\xff")]);
    let output = run_in(&folder, "--mock ram read 0x1ff9 20");
    let expected = "\
00001ff9  00 00 78 65 6e 6d 61 70  20 63 61 6e 61 72 79 00  |..xenmap canary.|
00002009  00 00 00 00                                       |....|
0000200d
";
    assert_eq!(text(&output.stdout), expected);
    assert!(output.status.success());
}

#[test]
fn read_takes_decimal_and_hexadecimal_numbers() {
    let folder = folder("numbers");
    ram(&folder, &[(frame(1) + 3, CANARY)]);
    let hexadecimal = run_in(&folder, "--mock ram read 0x1003 0x0D");
    let decimal = run_in(&folder, "--mock ram read 4099 13");
    assert_eq!(text(&hexadecimal.stdout), format!("00001003  {CANARY_ROW}00001010\n"));
    assert_eq!(hexadecimal, decimal);
}

#[test]
fn read_of_more_than_a_window_shows_every_byte() {
    let folder = folder("windows");
    let bytes = pattern((1 << 20) + 5 * FRAME_SIZE);
    ram(&folder, &[(0, &bytes)]);
    let (gpa, len) = (4001, (1 << 20) + 4999);
    let output = run_in(&folder, &format!("--mock ram read {gpa} {len}"));

    let mut shown = Vec::new();
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    let (end, rows) = lines.split_last().unwrap();
    for row in rows {
        assert!(row.starts_with(&format!("{:08x}  ", gpa + shown.len())), "{row}");
        shown.extend(row[10..59].split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    assert_eq!(*end, format!("{:08x}", gpa + len));
    assert!(shown == bytes[gpa..gpa + len]);
}

#[test]
fn binary_read_writes_the_bytes_themselves() {
    let folder = folder("binary");
    let bytes = pattern((1 << 20) + 5 * FRAME_SIZE);
    ram(&folder, &[(0, &bytes)]);
    let output = run_in(&folder, "--mock ram read 4001 1050000 --binary");
    assert!(output.stdout == bytes[4001..1_054_001]);
}

/// Makes four levels of page tables in frames 1 to 4, which map the page at `0xffff_8000_0000_0000` to frame 9
/// and the next one to frame 7.
pub(super) fn ram_with_page_tables(folder: &Path) {
    let present = |pfn| (frame(pfn) | 3).to_le_bytes();
    let tables = [present(2), present(3), present(4), present(9), present(7)];
    ram(
        folder,
        &[
            (frame(1) + 256 * 8, &tables[0]),
            (frame(2), &tables[1]),
            (frame(3), &tables[2]),
            (frame(4), &tables[3..].concat()),
            (frame(8) - 1, b"\0"),
            (frame(9), &pattern(FRAME_SIZE)),
            (frame(10) - 5, b"xenma"),
            (frame(7), b"p canary"),
        ],
    );
}

#[test]
fn virtual_addresses_are_translated_by_the_page_tables() {
    let folder = folder("virtual");
    ram_with_page_tables(&folder);
    let output = run_in(&folder, "--mock ram read 0xffff800000000ffb 13 --virtual --cr3 0x1000");
    assert_eq!(text(&output.stdout), format!("ffff800000000ffb  {CANARY_ROW}ffff800000001008\n"));
}

#[test]
fn virtual_address_without_a_translation_is_refused() {
    let folder = folder("virtual-nowhere");
    ram_with_page_tables(&folder);
    for args in [
        "read 0xffff800000002000 2 --virtual --cr3 0x1000",
        "write 0xffff800000001fff --hex 0102 --virtual --cr3 0x1000",
        "read 0xffffffffffffffff 1 --virtual --cr3 0x1000",
        "read 0 1 --virtual --cr3 0x5000",
        "read 0 1 --virtual --cr3 0x8000000000000",
    ] {
        let output = run_in(&folder, &format!("--mock ram {args}"));
        assert!(refusal(&output).contains("0x"), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
    }
}

/// Checks that some bytes could not be read: by the exit code and by what was said.
#[track_caller]
fn assert_incomplete(output: &Output, unread: &str) {
    assert_eq!(text(&output.stderr), format!("xenmap: {unread} bytes cannot be read\n"));
    assert_eq!(output.status.code(), Some(3));
}

/// Formats bytes as `hexdump -vC` does.
fn hexdump(address: usize, bytes: &[u8]) -> String {
    let row = |(row, address): (&[u8], usize)| {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let (left, right) = hex.split_at(hex.len().min(8));
        let shown: String =
            row.iter().map(|&byte| if (b' '..=b'~').contains(&byte) { byte.into() } else { '.' }).collect();
        format!("{address:08x}  {:23}  {:23}  |{shown}|\n", left.join(" "), right.join(" "))
    };
    let rows: String = bytes.chunks(16).zip((address..).step_by(16)).map(row).collect();
    format!("{rows}{:08x}\n", address + bytes.len())
}

#[test]
fn rows_are_those_of_hexdump() {
    // What util-linux 2.38 prints for this file.
    let by_util_linux = "\
0000010e  7c 1a b9 57 f5 93 32 d0  6e 0c aa 49 e7 85 23 c1  ||..W..2.n..I..#.|
0000011e  60 fe 9c 3a d9 77 15 b3  51 f0 8e 2c ca 69 00 00  |`..:.w..Q..,.i..|
0000012e  00 00 00 00 00 00 00 00                           |........|
00000136
";
    let folder = folder("read-hexdump");
    let mut bytes = pattern((1 << 20) + 5 * FRAME_SIZE);
    bytes[300..5300].fill(0);
    ram(&folder, &[(0, &bytes)]);
    assert_eq!(hexdump(270, &bytes[270..310]), by_util_linux);
    for (address, len) in [(270, 40), (0, 1), (5, 16), (4001, (1 << 20) + 4999), (0x7FF, 0x2001)] {
        let output = run_in(&folder, &format!("--mock ram read {address} {len}"));
        assert!(text(&output.stdout) == hexdump(address, &bytes[address..address + len]), "{address} {len}");
    }
}

#[test]
fn hole_takes_one_line_between_the_rows() {
    let folder = folder("read-hole");
    ram(&folder, &[(frame(1) - 5, b"xenma"), (frame(3), b"p canary")]);
    let output = run_in(&folder, "--mock ram read 0xff7 8210");
    let expected = "\
00000ff7  00 00 00 00 78 65 6e 6d  61                       |....xenma|
00001000  -- 8192 bytes cannot be read: no RAM there
00003000  70 20 63 61 6e 61 72 79  00                       |p canary.|
00003009
";
    assert_eq!(text(&output.stdout), expected);
    assert_incomplete(&output, "8192 of 8210");
}

#[test]
fn holes_at_both_ends_have_the_bytes_of_the_range_only() {
    let folder = folder("read-hole-ends");
    ram(&folder, &[(frame(1), b"x"), (frame(4), b"x")]);
    let output = run_in(&folder, "--mock ram read 0xffe 4100");
    let shown = text(&output.stdout);
    assert!(shown.starts_with("00000ffe  -- 2 bytes cannot be read: no RAM there\n00001000  78 00 "), "{shown}");
    assert!(shown.ends_with(" |................|\n00002000  -- 2 bytes cannot be read: no RAM there\n00002002\n"));
    assert_incomplete(&output, "4 of 4100");
}

#[test]
fn hole_at_the_border_of_a_window_is_one() {
    let folder = folder("read-hole-window");
    // The windows of 1024 frames begin at the first frame that is read.
    ram(&folder, &[(frame(1), b"x"), (frame(1020), b"x"), (frame(2050), b"x"), (frame(5000), b"x")]);
    let output = run_in(&folder, &format!("--mock ram read {} {}", frame(1), frame(2100)));
    let holes: Vec<&str> = text(&output.stdout).lines().filter(|line| line.contains("--")).collect();
    let line = |start, end| {
        format!("{:08x}  -- {} bytes cannot be read: no RAM there", frame(start), frame(end) - frame(start))
    };
    assert_eq!(holes, [line(2, 1020), line(1021, 2050), line(2051, 2101)]);
}

#[test]
fn huge_hole_is_skipped() {
    let folder = folder("read-hole-huge");
    ram(&folder, &[(0, b"x")]);
    let output = run_in(&folder, "--mock ram read 0xff0 0xffffffffff010");
    let expected = "\
00000ff0  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
00001000  -- 4503599627366400 bytes cannot be read: no RAM there
10000000000000
";
    assert_eq!(text(&output.stdout), expected);
    assert_incomplete(&output, "4503599627366400 of 4503599627366416");
}

#[test]
fn huge_virtual_hole_is_skipped() {
    let folder = folder("read-hole-virtual");
    ram_with_page_tables(&folder);
    let output = run_in(&folder, "--mock ram read 1 0xffffffffffffffff --virtual --cr3 0x1000");
    let shown: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(shown[0], "00000001  -- 18446603336221196287 bytes cannot be read: no translation");
    assert!(shown[1].starts_with("ffff800000000000  "), "{}", shown[1]);
    let tail = &shown[shown.len() - 2..];
    let hole = "ffff800000002000  -- 140737488347136 bytes cannot be read: no translation";
    assert_eq!((tail[0], tail[1], shown.len()), (hole, "10000000000000000", 515));
    assert_incomplete(&output, "18446744073709543423 of 18446744073709551615");
}

#[test]
fn huge_hole_is_skipped_whatever_the_page_tables() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 8);
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let write = |frame: u64, entry: usize, value: u64| {
        domain.write(Gfn::new(frame).unwrap(), entry * 8, &value.to_le_bytes());
    };
    // The last page of all addresses is frame 5: by the tables of x86 in frames 0 to 4, and by those of arm64.
    for (table, entry) in [(0, 511), (1, 511), (2, 511), (3, 511), (4, 511)] {
        write(table, entry, (table + 1) << 12 | 3);
    }
    write(5, 511, u64::from_le_bytes(*b"the last"));
    let five_levels = PageTables::X86 { cr3: 0, mode: PagingMode::FiveLevels };
    let four_levels = PageTables::X86 { cr3: 0x1000, mode: PagingMode::FourLevels };
    // T0SZ and T1SZ for 39 bits, and pages of 4 KiB.
    let arm64 = PageTables::Arm64 { ttbr0: 0x6000, ttbr1: 0x2000, tcr: 0x8019_0019 };
    for tables in [five_levels, four_levels, arm64] {
        let mut out = Vec::new();
        let complete = read::read(&ram, &Space::Virtual(tables), (1, u64::MAX), Format::Hexdump, &mut out).unwrap();
        let shown: Vec<&str> = text(&out).lines().collect();
        assert_eq!(shown[0], "00000001  -- 18446744073709547519 bytes cannot be read: no translation", "{tables:?}");
        assert!(shown[1].starts_with("fffffffffffff000  "), "{tables:?}: {}", shown[1]);
        assert!(shown[256].ends_with("|........the last|"), "{tables:?}: {}", shown[256]);
        assert_eq!((shown.len(), complete), (258, false), "{tables:?}");
    }
}

#[test]
fn entry_for_a_page_of_512_gib_is_skipped() {
    let folder = folder("read-no-such-page");
    // The bit for a page is set in the highest table, which has no pages.
    ram(&folder, &[(frame(1), &0x83_u64.to_le_bytes())]);
    let output = run_in(&folder, "--mock ram read 0 512G --virtual --cr3 0x1000");
    assert!(refusal(&output).starts_with("virtual address 0x0: "), "{}", text(&output.stderr));
}

#[test]
fn virtual_pages_that_cannot_be_read_are_told_by_their_reasons() {
    let folder = folder("read-virtual-reasons");
    let entry = |pfn: u64| (frame(pfn) | 3).to_le_bytes();
    let pages = [entry(9), [0; 8], entry(0x50), entry(9)].concat();
    // The second entry of the page directory leads to a table where there is no RAM.
    ram(
        &folder,
        &[
            (frame(1), &entry(2)),
            (frame(2), &entry(3)),
            (frame(3), &[entry(4), entry(0x60)].concat()),
            (frame(4), &pages),
            (frame(9), &pattern(FRAME_SIZE)),
            (frame(0x100), b"x"),
        ],
    );
    let output = run_in(&folder, "--mock ram read 0xfff 0x3ff002 --virtual --cr3 0x1000");
    let shown: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(shown[1], "00001000  -- 4096 bytes cannot be read: no translation");
    assert_eq!(shown[2], "00002000  -- 4096 bytes cannot be read: no RAM there");
    let holes = [
        "00004000  -- 2080768 bytes cannot be read: no translation",
        "00200000  -- 2097152 bytes cannot be read: no translation (page table: no RAM there)",
        "00400000  -- 1 byte cannot be read: no translation",
        "00400001",
    ];
    assert_eq!(shown[3 + FRAME_SIZE / 16..], holes);
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn range_without_a_readable_byte_is_refused() {
    let folder = folder("read-nothing");
    ram(&folder, &[(0, b"x"), (frame(2), b"x")]);
    for args in ["0x1000 4096", "0x1000 4096 --json", "0x1000 4096 --binary", "0x3000 0xfffffffff000"] {
        let output = run_in(&folder, &format!("--mock ram read {args}"));
        assert!(refusal(&output).starts_with("cannot access domain 1 at 0x"), "{args}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{args}");
    }
}

#[test]
fn binary_with_a_hole_is_refused_before_anything_is_written() {
    let folder = folder("read-binary-hole");
    ram(&folder, &[(0, &pattern(3 << 20)), (frame(2000), b"x")]);
    let output = run_in(&folder, "--mock ram read 0 0x300001 --binary");
    assert_eq!(refusal(&output), "cannot access domain 1 at 0x300000: no RAM there");
    assert!(output.stdout.is_empty());
}

#[test]
fn json_tells_what_could_be_read_and_what_could_not() {
    let folder = folder("read-json");
    ram(&folder, &[(frame(1) - 2, b"ab"), (frame(3), b"\xcd\xef")]);
    let output = run_in(&folder, "--mock ram read 4094 8196 --json");
    assert_incomplete(&output, "8192 of 8196");
    let expected = json!({"address": 4094, "bytes": 8196, "parts": [
        {"first": 4094, "last": 4095, "bytes": 2, "hex": "6162"},
        {"first": 4096, "last": 12287, "bytes": 8192, "error": "no RAM there"},
        {"first": 12288, "last": 12289, "bytes": 2, "hex": "cdef"},
    ]});
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), expected);
}

#[test]
fn json_of_several_windows_is_one_part() {
    let folder = folder("read-json-large");
    let bytes = pattern(5 << 20);
    ram(&folder, &[(0, &bytes)]);
    let output = run_in(&folder, "--mock ram read 1 5242879 --json");
    assert!(output.status.success());
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let digits: Vec<String> = bytes[1..].iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = json!([{"first": 1, "last": 5_242_879, "bytes": 5_242_879, "hex": digits.concat()}]);
    assert!(document["parts"] == expected);
}

#[test]
fn frame_that_is_paged_out_is_a_hole_of_its_own() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 5);
    domain.page_out(Gfn::new(1).unwrap(), u32::MAX).unwrap();
    domain.balloon_out(Gfn::new(2).unwrap());
    domain.write(Gfn::new(3).unwrap(), 0, b"\xff");
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::ZERO);
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    let mut out = Vec::new();
    let complete =
        read::read(&Ram::Guest(guest), &Space::Physical, (0xFFF, 0x2002), Format::Hexdump, &mut out).unwrap();
    let expected = "\
00000fff  00                                                |.|
00001000  -- 4096 bytes cannot be read: paged out, and not back in time
00002000  -- 4096 bytes cannot be read: no RAM there
00003000  ff                                                |.|
00003001
";
    assert_eq!((text(&out), complete), (expected, false));
    assert_eq!(said(), ["8192 of 8194 bytes cannot be read"]);
}

#[test]
fn hole_of_a_pv_guest_is_marked() {
    let folder = folder("read-pv");
    ram(&folder, &[(0, b"a"), (frame(2), b"c")]);
    let output = run_in(&folder, "--mock ram --mock-kind pv read 4095 4098");
    let holes: Vec<&str> = text(&output.stdout).lines().filter(|line| line.contains("--")).collect();
    assert_eq!(holes, ["00001000  -- 4096 bytes cannot be read: no RAM there"]);
    assert_incomplete(&output, "4096 of 4098");
}

#[test]
fn colours_are_those_of_the_palette() {
    let folder = folder("read-colours");
    ram(&folder, &[(frame(1) - 3, b"a\0b"), (frame(3), b"x")]);
    let mut command = tool();
    command.current_dir(&folder).env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR");
    let output = command.args(["--mock", "ram", "read", "4093", "8"]).output().unwrap();
    let (green, yellow, faint, end) = ("\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m");
    let spaces = " ".repeat(13 * 3 + 1);
    let expected = format!(
        "{green}00000ffd{end}  61 {faint}00 {end}62{spaces}  |a{faint}.{end}b|\n\
         {green}00001000{end}  {yellow}-- 5 bytes cannot be read: no RAM there{end}\n00001005\n"
    );
    assert_eq!(text(&output.stdout), expected);
}
