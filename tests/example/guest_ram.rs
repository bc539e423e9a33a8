//! Runs `examples/guest_ram.rs` on a file.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use xenmap::FRAME_SIZE;

use crate::example;

/// Creates a folder with a file `ram`: a frame with a text near its end, a hole, and a frame that begins with a text.
fn folder_with_ram(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example").join(test);
    let _ = fs::remove_dir_all(&folder); // an earlier run may have left one
    fs::create_dir_all(&folder).unwrap();
    let ram = File::create(folder.join("ram")).unwrap();
    ram.write_all_at(b"in the first", FRAME_SIZE as u64 - 16).unwrap();
    ram.write_all_at(b"in the third", 256 * FRAME_SIZE as u64).unwrap();
    ram.set_len(257 * FRAME_SIZE as u64).unwrap();
    folder
}

/// Runs the example in a folder.
fn run(folder: &Path, args: &str) -> Output {
    example("guest_ram").current_dir(folder).args(args.split_whitespace()).output().unwrap()
}

/// Runs the example successfully, and returns its output.
#[track_caller]
fn shown(folder: &Path, args: &str) -> String {
    let output = run(folder, args);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that the example exits with 2 and prints one line with this text to stderr.
#[track_caller]
fn assert_refused(folder: &Path, args: &str, expected: &str) {
    let output = run(folder, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.starts_with("guest_ram: ") && stderr.contains(expected), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn map_shows_where_the_ram_is() {
    let folder = folder_with_ram("map");
    assert_eq!(shown(&folder, "--mock ram map"), "0x0 to 0xfff Ram\n0x100000 to 0x100fff Ram\n");
}

#[test]
fn read_shows_bytes_from_any_address() {
    let folder = folder_with_ram("read");
    let expected = "00000ff3  74 68 65 20 66 69 72 73 74 00 00 00 00\n";
    assert_eq!(shown(&folder, "--mock ram read 0xff3 13"), expected);
    let rows = shown(&folder, "--mock ram read 1048576 0x14");
    assert_eq!(rows, "00100000  69 6e 20 74 68 65 20 74 68 69 72 64 00 00 00 00\n00100010  00 00 00 00\n");
}

#[test]
fn dump_equals_the_file() {
    let folder = folder_with_ram("dump");
    assert_eq!(shown(&folder, "--mock ram dump out"), "");
    assert!(fs::read(folder.join("out")).unwrap() == fs::read(folder.join("ram")).unwrap());
}

#[test]
fn bad_input_is_reported_in_one_line() {
    let folder = folder_with_ram("bad");
    for (args, expected) in [
        ("", "usage: "),
        ("--mock ram", "usage: "),
        ("--mock ram read 0", "usage: "),
        ("--mock ram read 0 12x", "\"12x\" is not a number"),
        ("--mock ram read 0 0", "LEN is 0"),
        ("--mock ram read 0xffffffffffffffff 2", "past the last address"),
        ("--mock ram read 0x1000 1", "0x1"),
        ("--mock missing map", "cannot use \"missing\": No such file"),
        ("--mock ram dump ram", "cannot create \"ram\": File exists"),
        ("first map", "\"first\" is not a domain number"),
    ] {
        assert_refused(&folder, args, expected);
    }
}
