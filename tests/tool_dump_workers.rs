//! `guest_ram dump --copy-by workers`, run as a person does, and its workers by themselves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "common/tool.rs"]
mod tool;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use tool::*;
use xenmap::FRAME_SIZE;

/// A guest whose RAM is three shares, with a border of shares within an extent.
fn three_shares(folder: &Path) {
    let (content, zeros) = (pattern(3 * FRAME_SIZE), vec![0; 20_000 * FRAME_SIZE]);
    ram(folder, &[(frame(16_383), &content), (frame(16_400), &zeros), (frame(36_390), &content)]);
}

#[test]
fn workers_write_the_same_file() {
    let folder = folder("workers-same");
    three_shares(&folder);
    for (kind, format) in [("pvh", "raw"), ("pvh", "elf"), ("pvh", "lime"), ("pvh", "xen"), ("pv", "raw")] {
        for way in ["single", "workers"] {
            let args = format!("--mock ram --mock-kind {kind} dump --format {format} --copy-by {way} {way}");
            let output = run_in(&folder, &args);
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert_eq!(text(&output.stderr).matches('\n').count(), 1, "{}", text(&output.stderr));
        }
        let files = ["single", "workers"].map(|way| fs::read(folder.join(way)).unwrap());
        assert!(files[0] == files[1], "{kind} {format}");
        for way in ["single", "workers"] {
            fs::remove_file(folder.join(way)).unwrap();
        }
    }
}

#[test]
fn workers_that_cannot_open_the_host_are_an_error_in_one_line() {
    let folder = folder("workers-host");
    ram(&folder, &[(0, CANARY)]);
    // Their standard input is another file.
    let mut command = tool();
    command.current_dir(&folder).args("--mock /dev/stdin dump --copy-by workers out".split(' '));
    let output = command.stdin(File::open(folder.join("ram")).unwrap()).output().unwrap();
    assert_eq!(refusal(&output), "a worker failed: cannot use /dev/stdin: not a regular file");
    assert_eq!(names(&folder), ["ram"]);
}

#[test]
fn workers_that_fail_half_way_leave_no_file() {
    let folder = folder("workers-half");
    ram(&folder, &[(0, CANARY), (frame(8000), CANARY)]);
    // No file may become larger than 16 MiB at most (the unit is 512 or 1024 bytes): as if the disk were full.
    let limited = "ulimit -f 16384; exec \"$0\" --mock ram dump --copy-by workers out";
    let output = Command::new("sh").current_dir(&folder).args(["-c", limited]).arg(tool().get_program()).output();
    let line = refusal(&output.unwrap()).to_owned();
    assert_eq!(line, "a worker failed: cannot write out: stopped after 0 bytes: File too large (os error 27)");
    assert_eq!(names(&folder), ["ram"]);
}
