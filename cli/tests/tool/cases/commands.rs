//! The commands `info`, `domains`, `map` and `write`, run as a person does, and bad input.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use xenmap::FRAME_SIZE;

use super::read::CANARY_ROW;
use crate::harness::*;

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
fn write_that_would_be_lost_is_refused() {
    let folder = folder("write");
    let bytes = pattern(2 * FRAME_SIZE);
    ram(&folder, &[(0, &bytes)]);
    for args in ["0xffe --text canary", "0 --hex dead --yes", "0 --hex 00 --yes"] {
        for kind in ["pvh", "pv"] {
            let output = run_in(&folder, &format!("--mock ram --mock-kind {kind} write {args}"));
            let expected = "nothing was written, because it would be lost: a simulated guest ends with this command";
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
        ("--mock ram read 4here 1", "invalid value '4here' for '<ADDRESS>'"),
        ("--mock ram read 0x 1", "invalid value '0x' for '<ADDRESS>'"),
        ("--mock ram read 0 18446744073709551616", "too large"),
        ("--mock ram read 0 1 --vcpu 1", "required arguments were not provided:\n  --virtual"),
        ("--mock ram write 0", "required arguments were not provided"),
        ("--mock ram write 0 --text a --hex aa", "cannot be used with"),
        ("--mock ram write 0 --text a --utf16 a", "cannot be used with"),
        ("--mock ram read 0 1 --json --binary", "cannot be used with"),
        ("--mock ram translate", "required arguments were not provided:\n  <ADDRESS>..."),
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
        ("--mock ram read 0xffffffffffffffff 2", "reach past the last address"),
        ("--mock ram read 0xffffffffffffffff 1", "the highest is 0xffffffffff"),
        ("--mock ram read 4096 1", "cannot access domain 1 at 0x1000: no RAM there"),
        ("--mock ram read 4095 2 --binary", "cannot access domain 1 at 0x1000: no RAM there"),
        ("--mock ram write 0 --hex DEad0", "the last one has only one"),
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
    for args in
        ["read 0 1M", "read 0 1M --json", "read 0 1M --binary", "search --hex 00 --json", "map --json", "--help"]
    {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let mut command = tool();
        command.current_dir(&folder).args(["--mock", "ram"]).args(args.split(' '));
        let output = command.stdout(write).output().unwrap();
        assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)), "{args}");
    }
}

#[test]
fn full_stdout_is_an_error() {
    let folder = folder("full");
    ram(&folder, &[(0, CANARY)]);
    for args in ["info", "info --json", "read 0 9", "translate 0 --json", "--help", "--version"] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = tool();
        command.current_dir(&folder).args(["--mock", "ram"]).args(args.split(' '));
        let output = command.stdout(full).output().unwrap();
        assert!(refusal(&output).contains("No space left on device"), "{args}");
    }
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
