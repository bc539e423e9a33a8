//! `xenmap dump --json`: the summary as one document.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use xenmap::mock::MockHost;
use xenmap::{FRAME_SIZE, Gfn, Guest, GuestKind};

use crate::args::SearchArgs;
use crate::cases::dump_parts::dump_to;
use crate::dump::{Dump, report};
use crate::harness::*;
use crate::map;
use crate::ram::Ram;

/// Three frames with data and two of zeros.
fn some_ram(folder: &Path) {
    ram(folder, &[(0, &pattern(3 * FRAME_SIZE)), (frame(7), &vec![0; 2 * FRAME_SIZE])]);
}

/// Checks that a stream has one line, which is a document.
#[track_caller]
fn document(stream: &[u8]) -> Value {
    let line = text(stream).strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "{line}");
    serde_json::from_str(line).unwrap()
}

#[track_caller]
fn assert_success(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn summary_of_a_dump_to_a_file_is_a_document_on_standard_output() {
    let folder = folder("dump-json");
    some_ram(&folder);
    let output = run_in(&folder, "--mock ram dump out --json");
    assert_success(&output);
    let mut summary = document(&output.stdout);
    assert!(summary["seconds"].take().as_f64().unwrap() < 60.0);
    let expected = json!({
        "domid": 1,
        "file": "out",
        "format": "raw",
        "compression": null,
        "complete": true,
        "ram_frames": 5,
        "ram_bytes": 20480,
        "zero_frames": 2,
        "lost_frames": 0,
        "not_found_frames": 0,
        "written_bytes": 12288,
        "seconds": null,
        "not_searched": [],
        "lost": [],
        "warnings": [],
    });
    assert_eq!(summary, expected);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn summary_of_a_dump_to_standard_output_is_the_only_line_on_standard_error() {
    let folder = folder("dump-json-stream");
    some_ram(&folder);
    let output = run_in(&folder, "--mock ram dump - --json --format lime --compress zstd");
    assert_success(&output);
    let summary = document(&output.stderr);
    assert_eq!(summary["file"], Value::Null);
    assert_eq!([&summary["format"], &summary["compression"]], ["lime", "zstd"]);
    assert_eq!(summary["written_bytes"], output.stdout.len());
    assert!(zstd::decode_all(&*output.stdout).unwrap().starts_with(b"EMiL"));
}

#[test]
fn warning_is_in_the_document_and_nowhere_else() {
    let folder = folder("dump-json-warning");
    let note = |release: &str| {
        let text = format!("OSRELEASE={release}\n");
        let words = [11, u32::try_from(text.len()).unwrap(), 0].map(u32::to_le_bytes).concat();
        [&words, b"VMCOREINFO\0\0".as_slice(), text.as_bytes()].concat()
    };
    ram(&folder, &[(0, &note("5.10.0")), (frame(1), &note("6.1.0"))]);
    for (out, is_stream) in [("out", false), ("-", true)] {
        let output = run_in(&folder, &format!("--mock ram dump {out} --format elf --json"));
        assert_success(&output);
        let summary = document(if is_stream { &output.stderr } else { &output.stdout });
        let [warning] = &summary["warnings"].as_array().unwrap()[..] else { panic!("{summary}") };
        assert!(warning.as_str().unwrap().starts_with("2 VMCOREINFO notes "), "{warning}");
        if !is_stream {
            assert_eq!(text(&output.stderr), "");
        }
    }
}

#[test]
fn document_says_where_ram_was_not_looked_for() {
    let folder = folder("dump-json-limit");
    // It takes minutes to try every frame number.
    ram(&folder, &[(0, CANARY), (frame(1 << 31) - FRAME_SIZE as u64, CANARY)]);
    for (args, is_stream) in [("out", false), ("-", true)] {
        let args = format!("--mock ram dump {args} --json --format lime --thorough --search-limit 1");
        let output = run_in(&folder, &args);
        assert_eq!(output.status.code(), Some(3));
        let summary = document(if is_stream { &output.stderr } else { &output.stdout });
        assert_eq!((&summary["complete"], &summary["ram_frames"]), (&json!(false), &json!(2)));
        assert!(summary["not_searched"][0]["bytes"].as_u64().unwrap() > 1 << 30, "{summary}");
        if !is_stream {
            assert_eq!(text(&output.stderr), "");
        }
    }
}

#[test]
fn dump_that_fails_prints_no_document() {
    let folder = folder("dump-json-fails");
    some_ram(&folder);
    let output = run_in(&folder, "--mock ram dump missing/out --json");
    assert!(refusal(&output).starts_with("cannot create missing/out"));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn name_of_the_file_is_escaped() {
    let folder = folder("dump-json-name");
    some_ram(&folder);
    let output =
        tool().current_dir(&folder).args(["--mock", "ram", "dump", "--json", "a\n\u{9b}31m"]).output().unwrap();
    assert!(text(&output.stdout).contains(r#""file":"a\n\u009b31m""#), "{}", text(&output.stdout));
    assert_eq!(document(&output.stdout)["file"], "a\n\u{9b}31m");
}

#[test]
fn document_lists_lost_frames_by_address() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, 100);
    let memory = host.open().unwrap();
    let ram = Ram::Guest(Guest::open(&memory, domain.domid()).unwrap());
    let found = map::find(&ram, SearchArgs::default()).unwrap();
    for pfn in [20, 21, 50] {
        domain.balloon_out(Gfn::new(pfn).unwrap());
    }
    let (source, args, output) = dump_to(&folder("dump-json-lost").join("out"), "");
    let dump = Dump { ram: &ram, args: &args, source: &source, output: Some(&output) };
    let written = dump.write(&found).unwrap();

    let summary = report::json(&ram, &args, &found, written, Duration::from_millis(1500));

    let summary = serde_json::to_value(summary).unwrap();
    let expected = json!([
        { "first": 0x14000, "last": 0x15fff, "bytes": 8192, "error": "no RAM there" },
        { "first": 0x32000, "last": 0x32fff, "bytes": 4096, "error": "no RAM there" },
    ]);
    assert_eq!(summary["lost"], expected);
    assert_eq!([&summary["ram_frames"], &summary["lost_frames"]], [&json!(100), &json!(3)]);
    assert_eq!([&summary["complete"], &summary["seconds"]], [&json!(false), &json!(1.5)]);
}
