//! `install` and `install --uninstall`: the files in a directory before, between and after.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Everything in a directory, by its path there.
type Tree = BTreeMap<PathBuf, Entry>;

#[derive(Debug, PartialEq)]
enum Entry {
    Directory,
    /// A symbolic link, with its target.
    Link(PathBuf),
    /// A file, with its content.
    File(Vec<u8>),
}

const LIBRARY: &str = "lib/libxenforeignmemory.so.1.4";

const INSTALLED: [&str; 6] = [
    "lib/libxenforeignmemory.a",
    "lib/libxenforeignmemory.installed",
    "lib/libxenforeignmemory.so",
    "lib/libxenforeignmemory.so.1",
    LIBRARY,
    "lib/pkgconfig/xenforeignmemory.pc",
];

/// Creates an empty directory for a test.
fn empty_directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("install").join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn add_to_tree(tree: &mut Tree, root: &Path, directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let file_type = path.symlink_metadata().unwrap().file_type();
        let entry = if file_type.is_dir() {
            add_to_tree(tree, root, &path);
            Entry::Directory
        } else if file_type.is_symlink() {
            Entry::Link(fs::read_link(&path).unwrap())
        } else {
            Entry::File(fs::read(&path).unwrap())
        };
        tree.insert(path.strip_prefix(root).unwrap().to_owned(), entry);
    }
}

fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    add_to_tree(&mut tree, root, root);
    tree
}

/// Returns the paths of all files and links.
fn files(tree: &Tree) -> Vec<&str> {
    tree.iter().filter(|(_, entry)| **entry != Entry::Directory).map(|(path, _)| path.to_str().unwrap()).collect()
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/install");

fn script(arguments: &[&str]) -> Output {
    Command::new(SCRIPT).args(arguments).env_remove("DESTDIR").output().unwrap()
}

/// Checks that a call succeeds, and returns its output.
fn succeeds(arguments: &[&str]) -> String {
    let output = script(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}these tests need gcc, binutils and libxen-dev");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the exit status and the errors of a call, which must write nothing else.
fn fails(arguments: &[&str]) -> (Option<i32>, String) {
    let output = script(arguments);
    assert_eq!(output.stdout, b"");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn uninstall_removes_everything_that_install_created() {
    let root = empty_directory("nothing");
    let prefix = root.join("a/prefix of its own");
    let prefix = prefix.to_str().unwrap();

    succeeds(&[prefix]);
    let between = tree(Path::new(prefix));
    succeeds(&["--uninstall", prefix]);

    assert_eq!(files(&between), INSTALLED);
    assert_eq!(tree(&root), Tree::new());
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn uninstall_after_two_installs_keeps_the_files_of_others() {
    let prefix = empty_directory("others");
    write(&prefix.join("lib/libxentoollog.so.1"), "another library");
    write(&prefix.join("lib/libxenforeignmemory.so.0"), "an older one, not ours");
    fs::create_dir(prefix.join("lib/pkgconfig")).unwrap();
    let before = tree(&prefix);
    let argument = prefix.to_str().unwrap();

    succeeds(&[argument, "--mock"]);
    succeeds(&[argument]);
    assert_eq!(files(&tree(&prefix)).len(), INSTALLED.len() + 2);
    succeeds(&["--uninstall", argument]);

    assert_eq!(tree(&prefix), before);
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn uninstall_keeps_a_library_that_has_replaced_ours() {
    let prefix = empty_directory("replaced");
    let argument = prefix.to_str().unwrap();
    succeeds(&[argument]);
    write(&prefix.join(LIBRARY), "not ours");

    let stdout = succeeds(&["--uninstall", argument]);

    // Including the links to it, through which programs find it.
    let names = ["lib/libxenforeignmemory.so", "lib/libxenforeignmemory.so.1", LIBRARY];
    assert_eq!(files(&tree(&prefix)), names);
    assert_eq!(fs::read(prefix.join("lib/libxenforeignmemory.so")).unwrap(), b"not ours");
    for name in names {
        assert!(stdout.contains(&format!("kept {argument}/{name}: it is not the installed file")), "{stdout}");
    }
}

#[test]
fn uninstall_without_an_install_changes_nothing() {
    let prefix = empty_directory("not-installed");
    write(&prefix.join(LIBRARY), "not ours");
    let before = tree(&prefix);

    let (status, stderr) = fails(&["--uninstall", prefix.to_str().unwrap()]);

    assert_eq!(status, Some(1));
    assert!(stderr.contains("nothing is installed in"), "{stderr}");
    assert_eq!(tree(&prefix), before);
}

#[test]
fn wrong_arguments_are_named_and_the_help_is_shown() {
    let help = succeeds(&["--help"]);
    assert!(help.contains("install [--mock] PREFIX") && help.contains("install --uninstall PREFIX"), "{help}");
    for (arguments, error) in [
        (&[][..], "PREFIX is missing"),
        (&["relative"], "PREFIX must be an absolute path: relative"),
        (&["/a", "/b"], "more than one PREFIX: /a and /b"),
        (&["--uninstall"], "PREFIX is missing"),
        (&["--uninstall", "--mock", "/a"], "--uninstall takes no --mock"),
        (&["-x"], "unknown option: -x"),
    ] {
        assert_eq!(fails(arguments), (Some(2), format!("{SCRIPT}: {error}\n{help}")), "{arguments:?}");
    }
}
