//! Runs the tool as a person does, on files that are the RAM of a simulated guest.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Whence, lseek};
use xenmap::FRAME_SIZE;

pub(crate) const CANARY: &[u8] = b"xenmap canary";

/// Returns the tool, without the variables of whoever runs the tests that change its output.
pub(crate) fn tool() -> Command {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_xenmap"));
    // With CI set, a terminal gets colours even if TERM is "dumb".
    for name in ["CI", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS"] {
        tool.env_remove(name);
    }
    tool
}

pub(crate) fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    tool().args(args).output().unwrap()
}

/// Runs the tool in a folder; the arguments are split at spaces.
pub(crate) fn run_in(folder: &Path, args: &str) -> Output {
    tool().current_dir(folder).args(args.split_whitespace()).output().unwrap()
}

/// Runs the tool in a folder with at most 5 seconds of processor time and 64 MiB of data.
pub(crate) fn run_limited(folder: &Path, args: &str) -> Output {
    let limited = format!("ulimit -t 5; ulimit -d 65536; exec \"$0\" {args}");
    shell(folder, &limited).output().unwrap()
}

/// Returns a shell script that runs in a folder; the tool is `$0` in it.
pub(crate) fn shell(folder: &Path, script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.current_dir(folder).args(["-c", script]).arg(tool().get_program());
    shell
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Checks for exit code 2 and a single line on stderr, and returns the line.
#[track_caller]
pub(crate) fn refusal(output: &Output) -> &str {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
    let line = stderr.strip_suffix('\n').unwrap();
    line.strip_prefix("xenmap: ").unwrap()
}

/// Checks for clap's exit code and form of an error, and returns the error.
#[track_caller]
pub(crate) fn usage_error(output: &Output) -> &str {
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{stderr}");
    let error = stderr.strip_suffix("\n\nFor more information, try '--help'.\n").unwrap();
    error.strip_prefix("error: ").unwrap()
}

/// Returns the output of a command, which must be JSON.
#[track_caller]
pub(crate) fn json(output: &Output) -> serde_json::Value {
    assert_eq!(text(&output.stderr), "");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Makes an empty folder for one test.
pub(crate) fn folder(test: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xenmap");
    lock(&all);
    let path = all.join(test);
    // An earlier run may have left it.
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Waits until no other process of these tests uses their folders, and keeps others away until this process ends. Without
/// it, another process truncates a file that this one has mapped, which ends this one with SIGBUS.
fn lock(all: &Path) {
    static LOCK: OnceLock<Flock<File>> = OnceLock::new();
    LOCK.get_or_init(|| {
        fs::create_dir_all(all).unwrap();
        let file = File::create(all.join("lock")).unwrap();
        Flock::lock(file, FlockArg::LockExclusive).unwrap()
    });
}

/// Makes a sparse file `ram` in a folder: some bytes at each of these addresses.
pub(crate) fn ram(folder: &Path, content: &[(u64, &[u8])]) {
    let file = File::create(folder.join("ram")).unwrap();
    for (address, bytes) in content {
        file.write_all_at(bytes, *address).unwrap();
    }
}

/// Returns the address of a frame.
pub(crate) const fn frame(number: u64) -> u64 {
    number * FRAME_SIZE as u64
}

/// Returns bytes that do not repeat.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (1..=len as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect()
}

/// Returns the ranges of a sparse file that hold data.
pub(crate) fn extents(path: &Path) -> Vec<(i64, i64)> {
    let file = File::open(path).unwrap();
    let mut extents = Vec::new();
    let mut end = 0;
    while let Ok(start) = lseek(&file, end, Whence::SeekData) {
        end = lseek(&file, start, Whence::SeekHole).unwrap();
        extents.push((start, end));
    }
    extents
}

/// Returns the [`extents`] of a file with data in these frames, each pair being the first and one past the last.
pub(crate) fn extents_of_frames(frames: &[(u64, u64)]) -> Vec<(i64, i64)> {
    let at = |number| i64::try_from(frame(number)).unwrap();
    frames.iter().map(|&(start, end)| (at(start), at(end))).collect()
}

/// Returns the sorted names of the files in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}
