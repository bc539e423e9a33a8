//! The commands `info`, `domains`, `map`, `read` and `write`, run as a person does, and bad input.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use xenmap::FRAME_SIZE;

use crate::harness::*;

/// What `read` shows of [`CANARY`], after its address.
const CANARY_ROW: &str = "78 65 6e 6d 61 70 20 63  61 6e 61 72 79           |xenmap canary|\n";

#[test]
fn info_shows_the_guest_and_the_host() {
    let folder = folder("info");
    ram(&folder, &[(0, &pattern(2 * FRAME_SIZE)), (frame(9), b"x")]);
    let output = run_in(&folder, "--mock ram info");
    for line in [
        "domid:               1",
        "guest kind:          pvh",
        "pages owned:         3 (0.0 MiB)",
        "highest frame:       0x9",
        "xen version:         4.17.7-mock",
        "xen capabilities:    xen-3.0-x86_64 hvm-3.0-x86_64",
        "host kind:           pv",
        "toolstack interface: domctl version 0x15",
    ] {
        assert!(text(&output.stdout).lines().any(|shown| shown == line), "{line}: {}", text(&output.stdout));
    }
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn info_as_json_is_one_object() {
    let folder = folder("json");
    ram(&folder, &[(0, &pattern(2 * FRAME_SIZE)), (frame(9), b"x")]);
    let info = json(&run_in(&folder, "--mock ram info --json"));
    assert_eq!(info["domid"], 1);
    assert_eq!(info["kind"], "pvh");
    assert_eq!(info["pages"], 3);
    assert_eq!(info["highest_frame"], 9);
    assert_eq!(info["xen_version"], "4.17.7-mock");
    assert_eq!(info["host_kind"], "pv");
    assert_eq!(info["domctl_version"], 0x15);
}

#[test]
fn domains_lists_the_domains_of_the_host() {
    let folder = folder("domains");
    ram(&folder, &[(0, &pattern(512 * FRAME_SIZE))]);
    let table = run_in(&folder, "--mock ram domains");
    let lines: Vec<Vec<&str>> = text(&table.stdout).lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["id", "kind", "state", "MiB", "max", "MiB", "vcpus", "name"]);
    // Dom0 is listed, too.
    assert_eq!((lines.len(), lines[2][..4].to_vec()), (3, vec!["1", "pvh", "paused", "2.0"]));

    let object = json(&run_in(&folder, "--mock ram domains --json"));
    let domains = object["domains"].as_array().unwrap();
    let (domids, guest) = ([&domains[0]["domid"], &domains[1]["domid"]], &domains[1]);
    assert_eq!((domains.len(), domids), (2, [&0.into(), &1.into()]));
    assert_eq!((&guest["pages"], &guest["state"], &guest["name"]), (&512.into(), &"paused".into(), &().into()));
}

#[test]
fn map_shows_where_the_ram_is() {
    let folder = folder("map");
    ram(&folder, &[(0, &pattern(3 * FRAME_SIZE)), (frame(0x100), &pattern(1 << 20))]);
    let expected = concat!(
        "         first            last            size  kind\n",
        "           0x0          0x2fff          12 KiB  ram\n",
        "      0x100000        0x1fffff           1 MiB  ram\n",
        "         total                        1036 KiB  ram\n",
    );
    for args in ["--mock ram map", "--mock ram map --thorough"] {
        let output = run_in(&folder, args);
        assert_eq!(text(&output.stdout), expected);
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn map_as_json_is_one_object() {
    let folder = folder("map-json");
    ram(&folder, &[(0, &pattern(3 * FRAME_SIZE)), (frame(0x100), b"x")]);
    let expected = serde_json::json!({
        "domid": 1,
        "extents": [
            {"first": 0, "last": 0x2FFF, "bytes": 0x3000, "kind": "ram"},
            {"first": 0x10_0000, "last": 0x10_0FFF, "bytes": 0x1000, "kind": "ram"},
        ],
        "total_bytes": {"ram": 0x4000},
        "not_searched": [],
    });
    assert_eq!(json(&run_in(&folder, "--mock ram map --json")), expected);
}

#[test]
fn map_of_a_guest_without_ram_is_empty() {
    let folder = folder("map-none");
    ram(&folder, &[]);
    assert_eq!(json(&run_in(&folder, "--mock ram map --json"))["extents"], serde_json::json!([]));
}

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
fn read_into_a_hole_shows_nothing() {
    let folder = folder("hole");
    ram(&folder, &[(0, b"x"), (frame(2), b"x")]);
    let output = run_in(&folder, "--mock ram read 4000 5000");
    assert_eq!(refusal(&output), "cannot access domain 1 at 0x1000: no RAM there");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn read_into_a_far_hole_shows_the_windows_before_it() {
    let folder = folder("far-hole");
    ram(&folder, &[(0, &pattern(1 << 20))]);
    // More bytes than any machine has memory for.
    let output = run_in(&folder, "--mock ram read 0 0x8000000000000");
    assert_eq!(refusal(&output), "cannot access domain 1 at 0x100000: no RAM there");
    assert_eq!(text(&output.stdout).lines().count(), (1 << 20) / 16);
}

#[test]
fn binary_read_writes_the_bytes_themselves() {
    let folder = folder("binary");
    let bytes = pattern((1 << 20) + 5 * FRAME_SIZE);
    ram(&folder, &[(0, &bytes)]);
    let output = run_in(&folder, "--mock ram read 4001 1050000 --binary");
    assert!(output.stdout == bytes[4001..1_054_001]);
}

#[test]
fn write_that_would_be_lost_is_refused() {
    let folder = folder("write");
    let bytes = pattern(2 * FRAME_SIZE);
    ram(&folder, &[(0, &bytes)]);
    for args in ["0xffe --text canary", "0 --hex dead --yes", "0 --hex 00 --yes"] {
        for kind in ["pvh", "pv"] {
            let output = run_in(&folder, &format!("--mock ram --mock-kind {kind} write {args}"));
            let expected = "nothing was written, since it would be lost: a simulated guest ends with this command";
            assert!(refusal(&output).starts_with(expected), "{}", text(&output.stderr));
            assert_eq!(text(&output.stdout), "");
        }
    }
    assert!(fs::read(folder.join("ram")).unwrap() == bytes);
}

#[test]
fn write_that_reaches_a_hole_is_refused() {
    let folder = folder("write-hole");
    ram(&folder, &[(0, b"x"), (frame(2), b"x")]);
    let output = run_in(&folder, "--mock ram write 0xfff --hex aabb");
    assert_eq!(refusal(&output), "cannot write at 0x1000: no RAM there; nothing was written");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn addresses_of_a_pv_guest_are_pseudo_physical() {
    let folder = folder("pv");
    ram(&folder, &[(frame(2) - 5, CANARY), (frame(3) - 1, b"\xff")]);
    let output = run_in(&folder, "--mock ram --mock-kind pv read 0x1ffb 13");
    assert_eq!(text(&output.stdout), format!("00001ffb  {CANARY_ROW}00002008\n"));
    let map = json(&run_in(&folder, "--mock ram --mock-kind pv map --json"));
    assert_eq!(
        map["extents"][0],
        serde_json::json!({"first": 0, "last": 0xFFF, "bytes": 0x1000, "kind": "ballooned out"})
    );
    assert_eq!((&map["extents"][1]["first"], &map["extents"][1]["kind"]), (&0x1000.into(), &"ram".into()));
    assert!(map["total_bytes"]["page table"].as_u64().is_some_and(|bytes| bytes > 0), "{map}");
    let info = json(&run_in(&folder, "--mock ram --mock-kind pv info --json"));
    assert_eq!(info["kind"], "pv");
}

/// Makes four levels of page tables in frames 1 to 4, which map the page at `0xffff_8000_0000_0000` to frame 9
/// and the next one to frame 7.
fn ram_with_page_tables(folder: &Path) {
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
        "read 0xffff800000001fff 2 --virtual --cr3 0x1000",
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

#[test]
fn completions_are_a_valid_bash_script() {
    let script = run(["completions", "bash"]).stdout;
    let folder = folder("completions");
    fs::write(folder.join("script"), &script).unwrap();
    let checked = Command::new("bash").arg("-n").arg(folder.join("script")).output().unwrap();
    assert_eq!(text(&checked.stderr), "");
    assert!(checked.status.success());
    assert!(text(&script).contains("--thorough"));
}

#[test]
fn usage_errors_are_those_of_clap() {
    let folder = folder("usage-errors");
    ram(&folder, &[(0, CANARY)]);
    for (args, expected) in [
        ("--color auto", "requires a subcommand"),
        ("--mock ram", "requires a subcommand"),
        ("--mock ram --mock-kind hvm info", "invalid value 'hvm'"),
        ("--mock ram look", "unrecognized subcommand 'look'"),
        ("--mock ram rea", "tip: a similar subcommand exists: 'read'"),
        ("--mock ram read", "required arguments were not provided:\n  <ADDRESS>\n  <LEN>"),
        ("--mock ram read here 1", "invalid value 'here' for '<ADDRESS>'"),
        ("--mock ram read 0x 1", "invalid value '0x' for '<ADDRESS>'"),
        ("--mock ram read 0 18446744073709551616", "too large"),
        ("--mock ram read 0 1 --vcpu 1", "required arguments were not provided:\n  --virtual"),
        ("--mock ram write 0", "required arguments were not provided"),
        ("completions", "required arguments were not provided:\n  <SHELL>"),
        ("--mock ram dump", "required arguments were not provided:\n  <OUT>"),
    ] {
        let output = run_in(&folder, args);
        let error = usage_error(&output);
        assert!(error.contains(expected), "{args}: {error}");
    }
    assert_eq!(names(&folder), ["ram"]);
}

#[test]
fn other_errors_are_one_line() {
    let folder = folder("errors");
    ram(&folder, &[(0, CANARY)]);
    for (args, expected) in [
        ("--mock missing info", "cannot use missing: No such file"),
        ("--mock . info", "cannot use .: not a regular file"),
        ("--domain 70000 info", "70000"),
        ("--mock ram read 0 0", "LEN is 0"),
        ("--mock ram read 0xffffffffffffffff 2", "reach beyond the last address"),
        ("--mock ram read 0xffffffffffffffff 1", "the highest is 0xffffffffff"),
        ("--mock ram read 4096 1", "cannot access domain 1 at 0x1000: no RAM there"),
        ("--mock ram read 4095 2", "cannot access domain 1 at 0x1000: no RAM there"),
        ("--mock ram write 0 --hex DEad0", "half of one"),
        ("--mock ram write 0 --hex a?", "? stands for any digit, which cannot be written"),
        ("--mock ram write 4096 --hex aa", "cannot write at 0x1000: no RAM there"),
        ("--mock ram diff missing", "cannot use missing as a dump: No such file"),
        ("--mock ram diff .", "cannot use . as a dump: not a regular file"),
        ("--mock ram picture ram", "output exists: ram"),
        ("--mock ram picture missing/out", "cannot create missing/out: No such file"),
        ("--mock ram dump missing/out", "cannot create missing/out: No such file"),
        ("--mock ram dump ram/out", "cannot create ram/out: Not a directory"),
    ] {
        let output = run_in(&folder, args);
        let line = refusal(&output);
        assert!(line.contains(expected), "{args}: {line}");
        assert_eq!(text(&output.stdout), "", "{args}");
    }
    assert_eq!(names(&folder), ["ram"]);
}

#[test]
fn domain_of_a_host_without_xen_is_an_error_in_one_line() {
    let devices = ["/dev/xen/privcmd", "/proc/xen/privcmd"];
    let is_xen = devices.iter().any(|path| Path::new(path).exists());
    let expected =
        "privcmd (not on xen, or the module xen-privcmd is not loaded): No such file or directory (os error 2)";
    // The second is a name, so the range of domain numbers does not matter.
    for domain in ["31000", "name:70000"] {
        let output = run(["--domain", domain, "info"]);
        let line = refusal(&output);
        assert!(is_xen || line.contains(expected), "{line}");
    }
}

#[test]
fn closed_pipe_ends_the_tool_quietly() {
    let folder = folder("pipe");
    ram(&folder, &[(0, &pattern(1 << 20))]);
    let mut command = tool();
    command.current_dir(&folder).args(["--mock", "ram", "read", "0", "0x100000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut row = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut row).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(&row, b"00000000  ");
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn full_stdout_is_an_error() {
    let folder = folder("full");
    ram(&folder, &[(0, CANARY)]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = tool().current_dir(&folder).args(["--mock", "ram", "info"]).stdout(full).output().unwrap();
    assert!(refusal(&output).contains("No space left on device"));
}

#[test]
fn closed_pipe_does_not_change_the_exit_code_of_diff() {
    let folder = folder("pipe-diff");
    ram(&folder, &[(0, &pattern(FRAME_SIZE))]);
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let output = tool().current_dir(&folder).args(["diff", "ram", "ram"]).stdout(write).output().unwrap();
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
}
