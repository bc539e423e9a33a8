//! The worker of `xenmap dump --copy-by workers`, with valid and invalid jobs.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use xenmap::FRAME_SIZE;

use crate::harness::*;

/// Runs a worker on a job.
fn work(folder: &Path, job: &str) -> Output {
    let mut command = tool();
    // Without an effect, since the dump strips the prefix from errors.
    command.env("CLICOLOR_FORCE", "1");
    command.current_dir(folder).args(["worker", "--mock", "ram"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(job.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn worker_copies_its_parts_to_their_offsets() {
    let folder = folder("worker");
    let bytes = pattern(4 * FRAME_SIZE);
    ram(&folder, &[(0, &bytes)]);
    fs::write(folder.join("out"), "").unwrap();
    let job = r#"{"file":"out","name":"out","parts":[{"pfns":{"start":1,"end":3},"offset":16}],"find_notes":true}"#;
    let output = work(&folder, job);
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success());
    assert!(text(&output.stdout).ends_with("\"Done\"\n"), "{}", text(&output.stdout));
    assert!(fs::read(folder.join("out")).unwrap() == [&[0; 16], &bytes[FRAME_SIZE..3 * FRAME_SIZE]].concat());
}

#[test]
fn worker_that_cannot_write_says_why() {
    let folder = folder("worker-full");
    ram(&folder, &[(0, CANARY)]);
    let job =
        r#"{"file":"/dev/full","name":"out","parts":[{"pfns":{"start":0,"end":1},"offset":0}],"find_notes":false}"#;
    let expected = "cannot write out: stopped after 0 bytes: No space left on device (os error 28)";
    assert_eq!(refusal(&work(&folder, job)), expected);
}

#[test]
fn invalid_job_is_refused() {
    let folder = folder("worker-bad");
    ram(&folder, &[(0, CANARY)]);
    fs::write(folder.join("out"), "as it was").unwrap();
    let (max, whole) = (u64::MAX, 1_u64 << 40);
    for (start, end, offset, expected) in [
        (5, 4, 0, "0x5 to 0x4 is not a range of frames"),
        (max, 0, 0, "is not a range of frames"),
        (0, max, 0, "is not a range of frames"),
        (max, max, 0, "is not a range of frames"),
        (max - 1, max, 0, "is not a range of frames"),
        (0, whole + 1, 0, "is not a range of frames"),
        (0, 1, max, "no file has 1 frames at byte 0xffffffffffffffff"),
        (0, 1, max - 4095, "no file has 1 frames at byte"),
        (0, 1, 1 << 63, "no file has 1 frames at byte"),
        (0, whole, (1 << 63) - 4096, "no file has 1099511627776 frames at byte"),
    ] {
        let part = format!(r#"{{"pfns":{{"start":{start},"end":{end}}},"offset":{offset}}}"#);
        let output = work(&folder, &format!(r#"{{"file":"out","name":"out","parts":[{part}],"find_notes":true}}"#));
        let line = refusal(&output);
        assert!(line.starts_with("not a worker's job: ") && line.contains(expected), "{part}: {line}");
        // The first report only says that the worker has started.
        assert_eq!(text(&output.stdout).matches("Copied").count(), 1, "{part}");
        assert!(!text(&output.stdout).contains("Done"), "{part}");
    }
    for job in ["", "{", "[]", "null", r#"{"file":"out","name":"out"}"#, &"[".repeat(1000)] {
        assert!(refusal(&work(&folder, job)).starts_with("not a worker's job: "));
    }
    for number in ["-1", "1.5", "1e300", "18446744073709551616", "\"1\""] {
        let part = format!(r#"{{"pfns":{{"start":0,"end":1}},"offset":{number}}}"#);
        let output = work(&folder, &format!(r#"{{"file":"out","name":"out","parts":[{part}],"find_notes":true}}"#));
        assert!(refusal(&output).starts_with("not a worker's job: "), "{number}");
    }
    assert_eq!(fs::read(folder.join("out")).unwrap(), b"as it was");
}

#[test]
fn job_at_the_largest_offset_is_a_write_error() {
    let folder = folder("worker-far");
    ram(&folder, &[(0, CANARY)]);
    fs::write(folder.join("out"), "as it was").unwrap();
    let offset = i64::MAX - 4096;
    let job = format!(
        r#"{{"file":"out","name":"out","parts":[{{"pfns":{{"start":0,"end":1}},"offset":{offset}}}],"find_notes":false}}"#
    );
    // Some file systems support files of that length.
    let output = work(&folder, &job);
    assert!(output.status.success() || refusal(&output).starts_with("cannot write out: "), "{}", text(&output.stderr));
}
