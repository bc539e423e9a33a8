//! `xenmap dump` where the file system or a limit does not allow a file of the dump's length.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::harness::*;

/// Pieces of RAM, of a frame each.
const PIECES: u64 = 4000;

/// The longest file in [`limited`], as long as the memory of a simulated guest with these pieces has to be.
const LIMIT: u64 = frame(PIECES + 8);

/// Runs the tool with a limit.
fn limited(folder: &Path, args: &str) -> Output {
    // The unit of `ulimit -f` depends on the shell.
    shell(folder, &format!("exec prlimit --fsize={LIMIT} \"$0\" --mock ram dump {args}")).output().unwrap()
}

#[test]
fn raw_dump_that_would_be_too_long_is_refused_and_the_formats_that_fit_are_named() {
    let folder = folder("length-raw");
    ram(&folder, &[(0, CANARY), (frame(8000), CANARY)]);
    let expected = "it would have 32772096 bytes: ";
    let advice = "; --format elf, lime or xen leaves out the addresses without RAM; else write it to another file system, \
                  or raise the limit (ulimit -f)";
    for args in ["out", "--copy-by threads out"] {
        let output = limited(&folder, args);
        let line = refusal(&output);
        assert!(line.starts_with(&format!("cannot write out: {expected}")) && line.ends_with(advice), "{args}: {line}");
        assert_eq!(names(&folder), ["ram"], "{args}");
    }
    // They fit.
    for format in ["elf", "lime", "xen"] {
        assert!(limited(&folder, &format!("--format {format} {format}")).status.success(), "{format}");
        assert!(run_in(&folder, &format!("--mock ram diff {format}")).status.success(), "{format}");
    }
    // A compressed dump may have any length, and so may a pipe.
    assert!(limited(&folder, "--compress zstd zstd").status.success());
    let output = limited(&folder, "- | wc -c");
    assert_eq!(text(&output.stdout).trim(), "32772096", "{}", text(&output.stderr));
}

#[test]
fn dump_of_any_format_that_would_be_too_long_is_refused_before_it_is_begun() {
    let folder = folder("length-all");
    // Nearly as long as a file may be: headers and tables are too much.
    let pieces: Vec<(u64, &[u8])> = (0..PIECES).map(|i| (frame(2 * i), b"piece".as_slice())).collect();
    ram(&folder, &pieces);
    for format in ["elf", "lime", "xen"] {
        let output = limited(&folder, &format!("--format {format} out"));
        let line = refusal(&output);
        assert!(line.starts_with("cannot write out: it would have "), "{format}: {line}");
        assert!(
            line.ends_with("; write it to another file system, or raise the limit (ulimit -f)"),
            "{format}: {line}"
        );
        assert_eq!(names(&folder), ["ram"], "{format}");
    }
}

#[test]
fn standard_output_that_is_a_file_stays_as_it_is_if_the_dump_would_be_too_long() {
    let folder = folder("length-stdout");
    ram(&folder, &[(0, CANARY), (frame(8000), CANARY)]);
    fs::write(folder.join("log"), "precious\n").unwrap();
    for (to, kept) in [("> out", ""), (">> log", "precious\n")] {
        let output = limited(&folder, &format!("- {to}"));
        let line = refusal(&output);
        assert!(line.starts_with("cannot write standard output: it would have 32772096 bytes: "), "{line}");
        assert_eq!(fs::read_to_string(folder.join(&to[to.rfind(' ').unwrap() + 1..])).unwrap(), kept);
    }
}

#[test]
fn log_that_a_dump_would_make_too_long_stays_as_it_is() {
    let folder = folder("length-log");
    ram(&folder, &[(0, CANARY)]);
    // Room for half a frame more.
    let log = fs::File::create(folder.join("log")).unwrap();
    log.set_len(LIMIT - 2048).unwrap();
    let output = limited(&folder, "- >> log");
    assert!(refusal(&output).starts_with("cannot write standard output: it would have 4096 bytes: "));
    assert_eq!(log.metadata().unwrap().len(), LIMIT - 2048);
}
