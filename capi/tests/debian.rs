//! Compares the C library that `install` builds with Debian's libxenforeignmemory: the C programs in this directory run
//! on both unchanged. Needs gcc, binutils and libxen-dev.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::print_stdout, reason = "prints the table of differences")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The library with which a program runs, and so the column of its table with which the results are compared.
#[derive(Clone, Copy, PartialEq)]
enum Library<'a> {
    /// Our library, installed under this prefix.
    Ours(&'a Path),
    /// The system's library.
    Original,
}

/// The results of rows, by their names.
type Outcomes = BTreeMap<String, String>;

const PROGRAMS: [&str; 3] = ["xen_table", "xen_flags", "sim_table"];

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn every_function_returns_what_the_table_says_on_the_mock() {
    for dom0 in ["pv", "auto"] {
        let mut outcomes = Outcomes::new();
        for program in PROGRAMS {
            outcomes.extend(rows(program, Library::Ours(with_mock()), &[("XENMAP_MOCK", dom0)]));
        }
        assert_names_every_function(&outcomes);
    }
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn every_function_returns_what_the_table_says_on_a_simulated_kernel() {
    assert_names_every_function(ours_on_a_kernel());
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn old_kernel_has_no_restrict_and_no_resources() {
    for library in [Library::Ours(installed()), Library::Original] {
        assert_eq!(rows("sim_table", library, &on_a_kernel("old")).len(), 5);
    }
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn old_xen_has_no_sizes_of_resources() {
    let ours = rows("sim_table", Library::Ours(installed()), &on_a_kernel("old-xen"));
    let original = rows("sim_table", Library::Original, &on_a_kernel("old-xen"));
    let differ: Vec<_> = ours.keys().filter(|name| ours[*name] != original[*name]).collect();
    assert_eq!(differ, ["old Xen: resource_size", "old Xen: resource_size after restrict"]);
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn open_without_a_device_says_why() {
    for library in [Library::Ours(installed()), Library::Original] {
        assert_eq!(rows("sim_table", library, &[]).len(), 2);
    }
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn differs_from_the_original_where_it_is_better() {
    let mut original = Outcomes::new();
    for program in PROGRAMS {
        original.extend(rows(program, Library::Original, &on_a_kernel("new")));
    }
    let ours = ours_on_a_kernel();
    println!("| case | libxenforeignmemory 4.17 | ours |\n|---|---|---|");
    for (name, original) in original.iter().filter(|(name, original)| ours[*name] != **original) {
        println!("| {name} | {original} | {} |", ours[name]);
    }
    for (name, was, is) in [
        ("map: last frame stays paged out, with err[]", "no answer in 10 s", "mapped 1 ENOENT"),
        ("map: last frame stays paged out, err NULL", "no answer in 10 s", "NULL ENOENT"),
        ("map: first frame is paged out, with err[]", "mapped ENOENT 1", "mapped 64 1"),
        ("map: first frame is paged out, err NULL", "NULL ENOENT", "mapped 64 1"),
        ("map: domain 65536 + d", "mapped 1 2", "NULL EINVAL"),
        ("map: 2^52 + 1 frames", "mapped 1", "NULL EINVAL"),
        ("map: frame 2^40 + 5", "mapped 5", "mapped EINVAL"),
        ("map_resource: frame 2^32", "frame 0 0 hole 0", "NULL EINVAL"),
        ("map_resource: no frames", "a handle without a mapping", "NULL EINVAL"),
        ("map2: MAP_FIXED, whole call fails", "NULL EPERM hole", "NULL EPERM ---p"),
        ("map2: MAP_FIXED fails while another thread maps", "taken by another thread", "kept"),
        ("resource_size: no such type", "0 whole frames", "-1 EOPNOTSUPP untouched"),
        ("map: handle NULL", "SIGSEGV", "NULL EINVAL"),
    ] {
        assert_eq!((original[name].as_str(), ours[name].as_str()), (was, is), "{name}");
    }
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn exports_are_those_of_debians_library() {
    let (ours, debians) = (shared_object(installed()), debians_library());
    assert_eq!(exports(&ours), exports(&debians));
    assert_eq!(exports(&ours).iter().filter(|symbol| symbol.contains("@@VERS_1.")).count(), 9);
    assert_eq!(dynamic(&ours, "SONAME"), dynamic(&debians, "SONAME"));
    assert!(dynamic(&ours, "NEEDED").is_superset(&dynamic(&debians, "NEEDED")));
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn installed_library_does_not_contain_the_mock() {
    let run = run_table("sim_table", Library::Ours(installed()), &[("XENMAP_MOCK", "pv")]);
    assert_no_device(&run);
    let library = installed().join("lib");
    for file in ["libxenforeignmemory.so.1", "libxenforeignmemory.a"] {
        assert!(!contains(&library.join(file), b"XENMAP_MOCK"), "{file}");
    }
    assert!(contains(&shared_object(with_mock()), b"XENMAP_MOCK"));
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn setuid_program_gets_no_mock() {
    let no_variables = shared(&source("setuid"));
    let env = [("XENMAP_MOCK", "pv"), ("LD_PRELOAD", no_variables.to_str().unwrap())];
    assert_no_device(&run_table("sim_table", Library::Ours(with_mock()), &env));
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn static_library_links() {
    let program = directory().join("static_table");
    let library = installed().join("lib/libxenforeignmemory.a");
    let private = pkg_config_field("Libs.private");
    let flags = ["-lxentoolcore", "-lxentoollog"].into_iter().chain(private.split_whitespace());
    run(compile("xen_table", &program).arg(&library).args(flags));
    assert!(!dynamic(&program, "NEEDED").iter().any(|name| name.contains("foreignmemory")));
    let mut table = table(&program, Library::Original, &on_a_kernel("new"));
    assert_passes(&run_unchecked(table.args(["ours", "1"])));
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn program_links_without_any_shared_library() {
    let program = directory().join("wholly_static_table");
    let library = with_mock().join("lib/libxenforeignmemory.a");
    let private = pkg_config_field("Libs.private");
    let flags = ["-lxentoolcore", "-lxentoollog"].into_iter().chain(private.split_whitespace());
    run(compile("xen_table", &program).arg("-static").arg(&library).args(flags));
    let mut table = table(&program, Library::Original, &[("XENMAP_MOCK", "pv")]);
    assert_passes(&run_unchecked(table.args(["ours", "1"])));
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn pkg_config_file_names_what_is_needed() {
    let lib = installed().join("lib");
    assert_eq!(pkg_config_field("Name"), "Xenforeignmemory");
    assert_eq!(pkg_config_field("Version"), "1.4");
    assert_eq!(pkg_config_field("Requires.private"), "xentoollog, xentoolcore");
    assert_eq!(pkg_config_field("Libs"), format!("-L{} -lxenforeignmemory", lib.display()));
    let program = directory().join("table_by_pkg_config");
    let libs = pkg_config_field("Libs");
    run(compile("xen_table", &program).args(libs.split_whitespace()).args(["-lxentoolcore", "-lxentoollog"]));
    let mut table = table(&program, Library::Ours(installed()), &on_a_kernel("new"));
    let run = run_unchecked(table.args(["ours", "1"]));
    assert_passes(&run);
    assert!(text(&run.stdout).contains(&format!("# {}", lib.display())));
}

// ---- the libraries ----

/// Returns the directory for the programs and libraries of this file.
fn directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Installs the library as users do, and returns the prefix.
fn installed() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| install("kernel", &[]))
}

/// Installs the library with the simulated host, and returns the prefix.
fn with_mock() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| install("mock", &["--mock"]))
}

fn install(name: &str, options: &[&str]) -> PathBuf {
    let prefix = directory().join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("install");
    run(Command::new(script).arg(&prefix).args(options).env_remove("DESTDIR"));
    prefix
}

fn shared_object(prefix: &Path) -> PathBuf {
    prefix.join("lib/libxenforeignmemory.so.1")
}

/// Returns the file that the compiler uses for -lxenforeignmemory.
fn debians_library() -> PathBuf {
    let output = run(cc().arg("-print-file-name=libxenforeignmemory.so"));
    let path = PathBuf::from(text(&output.stdout).trim());
    assert!(path.is_absolute(), "libxenforeignmemory.so is missing: install libxen-dev");
    path
}

/// Returns the exported symbols of a library, with their versions.
fn exports(library: &Path) -> BTreeSet<String> {
    let output = run(Command::new("nm").args(["-D", "--defined-only", "--with-symbol-versions"]).arg(library));
    // Without the address.
    text(&output.stdout).lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

/// Returns the values of an entry of the dynamic section.
fn dynamic(library: &Path, entry: &str) -> BTreeSet<String> {
    let output = run(Command::new("readelf").args(["-W", "-d"]).arg(library));
    let entry = format!("({entry})");
    let value = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    text(&output.stdout).lines().filter(|line| line.contains(&entry)).filter_map(value).collect()
}

/// Returns a field of the installed .pc file, with its variables replaced.
fn pkg_config_field(name: &str) -> String {
    let file = fs::read_to_string(installed().join("lib/pkgconfig/xenforeignmemory.pc")).unwrap();
    let after =
        |start: &str| file.lines().find_map(|line| line.strip_prefix(start)).map(|value| value.trim().to_owned());
    let prefix = after("prefix=").unwrap();
    let libdir = after("libdir=").unwrap().replace("${prefix}", &prefix);
    let field = after(&format!("{name}:")).unwrap_or_else(|| panic!("no {name} in {file}"));
    field.replace("${libdir}", &libdir).replace("${prefix}", &prefix)
}

fn contains(file: &Path, what: &[u8]) -> bool {
    fs::read(file).unwrap().windows(what.len()).any(|window| window == what)
}

// ---- the programs ----

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name).with_extension("c")
}

fn cc() -> Command {
    let mut cc = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
    cc.args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    cc
}

/// Returns the compiler command for a C program of the tests. The caller adds the libraries.
fn compile(name: &str, program: &Path) -> Command {
    let mut cc = cc();
    cc.arg(source(name)).arg("-o").arg(program);
    cc
}

/// Compiles a library for `LD_PRELOAD`.
fn shared(source: &Path) -> PathBuf {
    let library = directory().join(source.file_stem().unwrap()).with_extension("so");
    run(cc().args(["-shared", "-fPIC"]).arg(source).arg("-o").arg(&library));
    library
}

/// Returns a C program of the tests, linked with Debian's library.
fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        for name in PROGRAMS {
            let mut cc = compile(name, &directory().join(name));
            run(cc.args(["-lxenforeignmemory", "-lxentoolcore", "-lxentoollog"]));
        }
    });
    directory().join(name)
}

/// Returns the environment in which `fake_privcmd.c` simulates a new or an old kernel.
fn on_a_kernel(kernel: &'static str) -> [(&'static str, &'static str); 2] {
    static FAKE: OnceLock<PathBuf> = OnceLock::new();
    let fake = FAKE.get_or_init(|| shared(&source("fake_privcmd")));
    [("FAKE_PRIVCMD", kernel), ("LD_PRELOAD", fake.to_str().unwrap())]
}

/// Returns the command that runs a table, without its arguments.
fn table(program: &Path, library: Library<'_>, env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    for variable in ["LD_LIBRARY_PATH", "LD_PRELOAD", "XENMAP_MOCK", "FAKE_PRIVCMD"] {
        command.env_remove(variable);
    }
    if let Library::Ours(prefix) = library {
        command.env("LD_LIBRARY_PATH", prefix.join("lib"));
    }
    command.envs(env.iter().copied());
    command
}

fn run_table(name: &str, library: Library<'_>, env: &[(&str, &str)]) -> Output {
    let column = if library == Library::Original { "original" } else { "ours" };
    run_unchecked(table(&program(name), library, env).args([column, "1"]))
}

/// Runs a table, all of whose rows must pass.
fn rows(name: &str, library: Library<'_>, env: &[(&str, &str)]) -> Outcomes {
    let output = run_table(name, library, env);
    assert_passes(&output);
    let stdout = text(&output.stdout);
    if let Library::Ours(prefix) = library {
        assert!(stdout.contains(&format!("# {}", prefix.display())), "not our library: {stdout}");
    }
    let row = |line: &str| {
        let (name, outcome) = line.strip_prefix("PASS ")?.split_once(" => ")?;
        Some((name.to_owned(), outcome.to_owned()))
    };
    stdout.lines().filter_map(row).collect()
}

/// Returns the results of all rows with our library on a simulated kernel. It takes a while.
fn ours_on_a_kernel() -> &'static Outcomes {
    static OUTCOMES: OnceLock<Outcomes> = OnceLock::new();
    OUTCOMES.get_or_init(|| {
        let mut outcomes = Outcomes::new();
        for program in PROGRAMS {
            outcomes.extend(rows(program, Library::Ours(installed()), &on_a_kernel("new")));
        }
        outcomes
    })
}

fn assert_passes(output: &Output) {
    let shown = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && shown.contains("PASS") && !shown.contains("FAIL"), "{shown}");
}

fn assert_names_every_function(outcomes: &Outcomes) {
    let tested: BTreeSet<&str> = outcomes.keys().filter_map(|name| name.split(':').next()).collect();
    for function in
        ["open", "close", "map", "map2", "unmap", "restrict", "map_resource", "unmap_resource", "resource_size"]
    {
        assert!(tested.contains(function), "{function} is not in the table: {tested:?}");
    }
}

fn assert_no_device(output: &Output) {
    let shown = text(&output.stdout);
    assert!(shown.contains(" open => NULL ENOENT 1 error"), "{shown}");
    assert!(!shown.contains("PASS"), "{shown}");
}

// ---- commands ----

fn run_unchecked(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| {
        let program = command.get_program().display();
        panic!("cannot run {program}: {e}; these tests need gcc, binutils and libxen-dev")
    })
}

fn run(command: &mut Command) -> Output {
    let output = run_unchecked(command);
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}these tests need gcc, binutils and libxen-dev",
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
