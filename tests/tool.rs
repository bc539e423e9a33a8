//! The tool `examples/guest_ram`, run as a person does, on files that it takes for a guest's RAM.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../examples/guest_ram/json.rs"]
mod json;
#[path = "../examples/guest_ram/report.rs"]
mod report;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::unistd::{Whence, lseek};
use xenmap::mock::{Fault, MockHost};
use xenmap::{FRAME_SIZE, GuestKind, Protection};

const CANARY: &[u8] = b"xenmap canary";

fn tool() -> Command {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().with_file_name("examples").join("guest_ram");
    assert!(path.exists(), "{} is missing; build it: cargo build --examples", path.display());
    Command::new(path)
}

fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    tool().args(args).output().unwrap()
}

/// Runs the tool in a folder; the arguments are split at spaces.
fn run_in(folder: &Path, args: &str) -> Output {
    tool().current_dir(folder).args(args.split_whitespace()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Checks for exit code 2 and a single line on stderr, and returns the line.
#[track_caller]
fn refusal(output: &Output) -> &str {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
    let line = stderr.strip_suffix('\n').unwrap();
    line.strip_prefix("guest_ram: ").unwrap()
}

/// A folder for one test, empty at first.
fn folder(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest_ram").join(test);
    // What an earlier run may have left.
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Makes a sparse file `ram` in a folder: some bytes at each of these addresses.
fn ram(folder: &Path, content: &[(u64, &[u8])]) {
    let file = File::create(folder.join("ram")).unwrap();
    for (address, bytes) in content {
        file.write_all_at(bytes, *address).unwrap();
    }
}

/// The address of a frame.
const fn frame(number: u64) -> u64 {
    number * FRAME_SIZE as u64
}

/// Bytes that do not repeat.
fn pattern(len: usize) -> Vec<u8> {
    (1..=len as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect()
}

/// Where a sparse file holds data.
fn extents(path: &Path) -> Vec<(i64, i64)> {
    let file = File::open(path).unwrap();
    let mut extents = Vec::new();
    let mut end = 0;
    while let Ok(start) = lseek(&file, end, Whence::SeekData) {
        end = lseek(&file, start, Whence::SeekHole).unwrap();
        extents.push((start, end));
    }
    extents
}

/// What [`extents`] says of a file with data in these frames, each pair being a first one and one past the last.
fn extents_of_frames(frames: &[(u64, u64)]) -> Vec<(i64, i64)> {
    let at = |number| i64::try_from(frame(number)).unwrap();
    frames.iter().map(|&(start, end)| (at(start), at(end))).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn info_tells_what_is_known() {
    let folder = folder("info");
    ram(&folder, &[(0, &pattern(2 * FRAME_SIZE)), (frame(9), b"x")]);
    let output = run_in(&folder, "--mock ram info");
    let expected = "\
domid:            1
guest kind:       hvm
pages owned:      3
highest frame:    0x9
xen version:      4.17.7-mock
xen capabilities: xen-3.0-x86_64 hvm-3.0-x86_64
host kind:        pv
";
    assert_eq!(text(&output.stdout), expected);
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn info_as_json_is_one_object() {
    let folder = folder("json");
    ram(&folder, &[(0, &pattern(2 * FRAME_SIZE)), (frame(9), b"x")]);
    let output = run_in(&folder, "--mock ram info --json");
    let expected = concat!(
        r#"{"domid":1,"guest_kind":"hvm","pages_owned":3,"highest_frame":9,"xen_version":"4.17.7-mock","#,
        r#""xen_capabilities":"xen-3.0-x86_64 hvm-3.0-x86_64","host_kind":"pv"}"#,
        "\n"
    );
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn json_strings_are_escaped() {
    assert_eq!(json::string("a \"b\" \\ \n\u{1f}\u{7f} ü"), "\"a \\\"b\\\" \\\\ \\u000a\\u001f\u{7f} ü\"");
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
    assert!(text(&hexadecimal.stdout).contains("|xenmap canary|"));
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
    assert_eq!(refusal(&output), "cannot read domain 1 at 0x1000: no RAM there");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn read_into_a_far_hole_shows_the_windows_before_it() {
    let folder = folder("far-hole");
    ram(&folder, &[(0, &pattern(1 << 20))]);
    // No machine has memory for so many bytes.
    let output = run_in(&folder, "--mock ram read 0 0x8000000000000");
    assert_eq!(refusal(&output), "cannot read domain 1 at 0x100000: no RAM there");
    assert_eq!(text(&output.stdout).lines().count(), (1 << 20) / 16);
}

#[test]
fn dump_equals_the_file() {
    let folder = folder("dump");
    ram(&folder, &[(0, &pattern(3 * FRAME_SIZE)), (frame(10), CANARY), (frame(300) + 4090, b"the last")]);
    let output = run_in(&folder, "--mock ram dump out");

    assert_eq!(text(&output.stdout), "6 frames dumped; 296 not mapped: no RAM there (296)\n");
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success());
    // The file ends within a frame; a guest's RAM does not.
    let mut expected = fs::read(folder.join("ram")).unwrap();
    expected.resize(302 * FRAME_SIZE, 0);
    assert!(fs::read(folder.join("out")).unwrap() == expected);
    assert_eq!(extents(&folder.join("out")), extents_of_frames(&[(0, 3), (10, 11), (300, 302)]));
    assert_eq!(names(&folder), ["out", "ram"]);
}

#[test]
fn defect_16_dump_tells_zero_frames_from_holes() {
    let folder = folder("zero");
    ram(&folder, &[(frame(1), b"x"), (frame(2), &[0; 4 * FRAME_SIZE])]);
    let output = run_in(&folder, "--mock ram dump out");
    assert_eq!(text(&output.stdout), "5 frames dumped; 1 not mapped: no RAM there (1)\n");
    assert_eq!(fs::metadata(folder.join("out")).unwrap().len(), frame(6));
    assert_eq!(extents(&folder.join("out")), extents_of_frames(&[(1, 6)]));
    assert_eq!(run_in(&folder, "--mock out info"), run_in(&folder, "--mock ram info"));
}

#[test]
fn dump_of_a_guest_without_ram_is_an_empty_file() {
    let folder = folder("no-ram");
    ram(&folder, &[]);
    let output = run_in(&folder, "--mock ram dump out");
    assert_eq!(text(&output.stdout), "0 frames dumped; 1 not tried, as the domain owns no more\n");
    assert_eq!(fs::read(folder.join("out")).unwrap(), b"");
}

#[test]
fn dump_does_not_try_the_hole_in_the_middle() {
    let folder = folder("middle");
    // As in a PVH guest: RAM at the bottom, a few frames below 4 GiB.
    let (low, high) = (pattern(5000 * FRAME_SIZE), pattern(16 * FRAME_SIZE));
    ram(&folder, &[(0, &low), (frame(0xf_eff0), &high)]);
    let output = run_in(&folder, "--mock ram dump out");
    let expected = "5016 frames dumped; 7272 not mapped: no RAM there (7272); \
                    1032192 not tried, as the domain owns no more\n";
    assert_eq!(text(&output.stdout), expected);
    assert_eq!(extents(&folder.join("out")), extents_of_frames(&[(0, 5000), (0xf_eff0, 0xf_f000)]));
    assert_eq!(fs::metadata(folder.join("out")).unwrap().len(), frame(0xf_f000));
    let dump = File::open(folder.join("out")).unwrap();
    let (mut found_low, mut found_high) = (vec![0; low.len()], vec![0; high.len()]);
    dump.read_exact_at(&mut found_low, 0).unwrap();
    dump.read_exact_at(&mut found_high, frame(0xf_eff0)).unwrap();
    assert!(found_low == low && found_high == high);
}

#[test]
fn dump_finds_ram_wherever_it_is() {
    let folder = folder("islands");
    let islands = [0, 5000, 9000, 9001, 20_000, 30_000];
    let content: Vec<(u64, &[u8])> = islands.iter().map(|&number| (frame(number), CANARY)).collect();
    ram(&folder, &content);
    run_in(&folder, "--mock ram dump out");
    assert_eq!(
        extents(&folder.join("out")),
        extents(&folder.join("ram")).into_iter().map(whole_frames).collect::<Vec<_>>()
    );
}

/// The last frame of a file may be there in part only.
fn whole_frames((start, end): (i64, i64)) -> (i64, i64) {
    let frames = u64::try_from(end).unwrap().div_ceil(frame(1));
    (start, i64::try_from(frame(frames)).unwrap())
}

#[test]
fn dump_leaves_an_existing_output_as_it_was() {
    let folder = folder("exists");
    ram(&folder, &[(0, CANARY)]);
    fs::write(folder.join("out"), "precious").unwrap();
    symlink("nowhere", folder.join("link")).unwrap();
    for name in ["out", "link", "."] {
        let output = run_in(&folder, &format!("--mock ram dump {name}"));
        assert_eq!(refusal(&output), format!("output exists: {name}"));
        assert_eq!(text(&output.stdout), "");
    }
    assert_eq!(fs::read(folder.join("out")).unwrap(), b"precious");
    assert_eq!(names(&folder), ["link", "out", "ram"]);
}

#[test]
fn dump_that_fails_half_way_leaves_no_file() {
    let folder = folder("half");
    ram(&folder, &[(0, CANARY), (frame(8000), CANARY)]);
    // No file may become larger than 16 MiB at most (the unit is 512 or 1024 bytes): as if the disk were full.
    let limited = "trap '' XFSZ; ulimit -f 16384; exec \"$0\" --mock ram dump out";
    let mut shell = Command::new("sh");
    shell.current_dir(&folder).args(["-c", limited]).arg(tool().get_program());
    let output = shell.output().unwrap();
    assert!(refusal(&output).starts_with("cannot write out: "));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(names(&folder), ["ram"]);
}

#[test]
fn lost_frames_are_told_by_reason() {
    let host = MockHost::new();
    let guest = host.create_domain(GuestKind::Hvm, 4);
    let mut gfns = guest.frames();
    guest.balloon_out(gfns[1]);
    guest.page_out(gfns[2], 1000).unwrap();
    gfns.push(xenmap::Gfn::new(7).unwrap());
    host.inject(Fault::Frame { index: 3, error: -libc::EPERM });
    let memory = host.open().unwrap().with_paged_out_timeout(Duration::ZERO);
    let mapping = memory.map_foreign_batch_partial(guest.domid(), Protection::ReadOnly, &gfns).unwrap();

    let report = |kind| {
        let mut report = report::Report::new(kind, 3);
        report.add(&mapping);
        report.set_untried(5);
        report
    };
    let expected = "\
1 frames dumped; 4 not mapped: no RAM there (2), not the domain's own frame, or no privilege over the domain (1), \
paged out, and not back in time (1); 5 not tried, as the domain owns no more
the domain owns 3 frames; those missing are lost, or not in its memory map";
    assert_eq!(report(GuestKind::Hvm).to_string(), expected);
    assert_eq!(report(GuestKind::Hvm).lost(), 2);
    assert_eq!(report(GuestKind::Pv).lost(), 1, "a frame of somebody else's is not lost");
}

#[test]
fn bad_input_is_told_in_one_line() {
    let folder = folder("bad-input");
    ram(&folder, &[(0, CANARY)]);
    for (args, expected) in [
        ("", "requires a subcommand"),
        ("info", "required arguments were not provided: <--mock <FILE>|--domain <DOMID>>"),
        ("--mock ram", "requires a subcommand"),
        ("--mock ram --domain 3 info", "cannot be used with '--domain <DOMID>'"),
        ("--mock missing info", "cannot use missing: No such file"),
        ("--mock . info", "cannot use .: not a regular file"),
        ("--domain five info", "a domain is named by its number"),
        ("--domain 70000 info", "70000 does not name a domain"),
        ("--mock ram look", "unrecognized subcommand 'look'"),
        ("--mock ram read", "required arguments were not provided: <GPA> <LEN>"),
        ("--mock ram read here 1", "invalid value 'here' for '<GPA>'"),
        ("--mock ram read 0x 1", "invalid value '0x' for '<GPA>'"),
        ("--mock ram read 0 0", "LEN is 0"),
        ("--mock ram read 0 18446744073709551616", "too large"),
        ("--mock ram read 0xffffffffffffffff 2", "reach beyond the last address"),
        ("--mock ram read 0xffffffffffffffff 1", "the highest is 0xffffffffff"),
        ("--mock ram read 4096 1", "cannot read domain 1 at 0x1000: no RAM there"),
        ("--mock ram read 4095 2", "cannot read domain 1 at 0x1000: no RAM there"),
        ("--mock ram dump", "required arguments were not provided: <OUT>"),
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
fn names_with_line_breaks_do_not_break_the_line() {
    let output = run(["--mock", "a\n\nb", "info"]);
    assert!(refusal(&output).starts_with("cannot use a  b: No such file"));
}

#[test]
fn domain_that_cannot_be_had_is_told_in_one_line() {
    let devices = ["/dev/xen/privcmd", "/proc/xen/privcmd"];
    let is_xen = devices.iter().any(|path| Path::new(path).exists());
    let output = run(["--domain", "31000", "info"]);
    let line = refusal(&output);
    let expected = "privcmd: No such file or directory (os error 2) (not on xen";
    assert!(is_xen || line.contains(expected), "{line}");
}

#[test]
fn help_is_no_error() {
    let output = run(["--help"]);
    assert!(text(&output.stdout).contains("Usage: guest_ram <--mock <FILE>|--domain <DOMID>> <COMMAND>"));
    assert!(output.status.success());
}

#[test]
fn reader_that_has_seen_enough_ends_it_quietly() {
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
