//! `install` and `install --uninstall`: what is in a folder before, between and after.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What is under a folder, by its name there: for a link where it leads, for a file what it holds.
type Tree = BTreeMap<PathBuf, Entry>;

#[derive(Debug, PartialEq)]
enum Entry {
    Folder,
    Link(PathBuf),
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

/// A folder of a test's own, with nothing in it.
fn empty_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("install").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn add_to_tree(tree: &mut Tree, root: &Path, folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file_type = path.symlink_metadata().unwrap().file_type();
        let entry = if file_type.is_dir() {
            add_to_tree(tree, root, &path);
            Entry::Folder
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

fn names_but_folders(tree: &Tree) -> Vec<&str> {
    tree.iter().filter(|(_, entry)| **entry != Entry::Folder).map(|(path, _)| path.to_str().unwrap()).collect()
}

fn script(arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("install");
    Command::new(script).args(arguments).env_remove("DESTDIR").output().unwrap()
}

/// What a call says that succeeds.
fn succeeds(arguments: &[&str]) -> String {
    let output = script(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}these tests need gcc, binutils and libxen-dev");
    String::from_utf8(output.stdout).unwrap()
}

/// The exit status of a call that fails, and what it says.
fn fails(arguments: &[&str]) -> (Option<i32>, String) {
    let output = script(arguments);
    assert_eq!(output.stdout, b"");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn uninstall_leaves_nothing_of_what_install_has_made() {
    let root = empty_folder("nothing");
    let prefix = root.join("a/prefix of its own");
    let prefix = prefix.to_str().unwrap();

    succeeds(&[prefix]);
    let between = tree(Path::new(prefix));
    succeeds(&["--uninstall", prefix]);

    assert_eq!(names_but_folders(&between), INSTALLED);
    assert_eq!(tree(&root), Tree::new());
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn uninstall_after_two_installs_leaves_what_others_have_there() {
    let prefix = empty_folder("others");
    write(&prefix.join("lib/libxentoollog.so.1"), "another library");
    write(&prefix.join("lib/libxenforeignmemory.so.0"), "an older one of another maker");
    fs::create_dir(prefix.join("lib/pkgconfig")).unwrap();
    let before = tree(&prefix);
    let argument = prefix.to_str().unwrap();

    succeeds(&[argument, "--mock"]);
    succeeds(&[argument]);
    assert_eq!(names_but_folders(&tree(&prefix)).len(), INSTALLED.len() + 2);
    succeeds(&["--uninstall", argument]);

    assert_eq!(tree(&prefix), before);
}

#[test]
#[ignore = "needs gcc and libxen-dev: cargo test -p xenmap-capi -- --include-ignored"]
fn uninstall_leaves_a_library_that_has_taken_the_place_of_ours() {
    let prefix = empty_folder("replaced");
    let argument = prefix.to_str().unwrap();
    succeeds(&[argument]);
    write(&prefix.join(LIBRARY), "of another maker");

    let said = succeeds(&["--uninstall", argument]);

    // With the links to it, by which programs find it.
    let names = ["lib/libxenforeignmemory.so", "lib/libxenforeignmemory.so.1", LIBRARY];
    assert_eq!(names_but_folders(&tree(&prefix)), names);
    assert_eq!(fs::read(prefix.join("lib/libxenforeignmemory.so")).unwrap(), b"of another maker");
    for name in names {
        assert!(said.contains(&format!("left {argument}/{name}, which is not what was installed")), "{said}");
    }
}

#[test]
fn uninstall_of_what_is_not_installed_touches_nothing() {
    let prefix = empty_folder("not-installed");
    write(&prefix.join(LIBRARY), "of another maker");
    let before = tree(&prefix);

    let (status, said) = fails(&["--uninstall", prefix.to_str().unwrap()]);

    assert_eq!(status, Some(1));
    assert!(said.contains("nothing is installed in"), "{said}");
    assert_eq!(tree(&prefix), before);
}

#[test]
fn help_is_shown_to_those_who_ask_and_to_those_who_err() {
    let help = succeeds(&["--help"]);
    assert!(help.contains("capi/install PREFIX") && help.contains("capi/install --uninstall PREFIX"), "{help}");
    for arguments in
        [&[][..], &["relative"], &["/a", "/b"], &["--uninstall"], &["--uninstall", "--mock", "/a"], &["-x"]]
    {
        assert_eq!(fails(arguments), (Some(2), help.clone()), "{arguments:?}");
    }
}
