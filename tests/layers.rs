//! Each module of the library uses only modules of the layers below its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the library, a layer each, the lowest first: CONTRIBUTING.md says what they are for.
const LAYERS: [&str; 11] =
    ["abi", "types", "error", "backend", "mapping", "handle", "raw", "guest", "cache", "vm_memory", "mock"];

/// What stands above all layers: it only says what is public.
const TOP: &str = "lib";

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The sources of one module, but for its unit tests: these may use the simulated host.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let entries = entries.filter(|path| !["tests", "tests.rs", "loom"].iter().any(|tests| path.ends_with(tests)));
    entries.flat_map(|path| files(&path)).filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

/// The modules that a file names by `crate::NAME`, outside of comments and of `mod tests`.
fn uses(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("\nmod tests {").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = BTreeSet::new();
    for line in lines {
        for rest in line.split("crate::").skip(1) {
            found.insert(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn every_module_is_in_a_layer() {
    let names: BTreeSet<String> = fs::read_dir(source())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != TOP)
        .collect();
    assert_eq!(names, LAYERS.map(str::to_owned).into());
}

#[test]
fn modules_use_only_the_layers_below() {
    let mut wrong = Vec::new();
    for (level, layer) in LAYERS.iter().enumerate() {
        let folder = source().join(layer);
        let module = if folder.is_dir() { folder } else { source().join(format!("{layer}.rs")) };
        for file in files(&module) {
            for used in uses(&file) {
                if used != *layer && !LAYERS[..level].contains(&used.as_str()) {
                    wrong.push(format!("{} uses crate::{used}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_use_of_a_higher_layer_is_found() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("uses.rs");
    fs::write(
        &file,
        "//! crate::mock\nuse crate::cache::MapCache;\nlet x: crate::guest::Guest;\nmod tests {\ncrate::vm_memory",
    )
    .unwrap();
    assert_eq!(uses(&file), ["cache", "guest"].map(str::to_owned).into());
}

#[test]
fn only_the_handles_own_folder_adds_methods_to_it() {
    for layer in LAYERS.iter().filter(|layer| **layer != "handle") {
        let folder = source().join(layer);
        let module = if folder.is_dir() { folder } else { source().join(format!("{layer}.rs")) };
        for file in files(&module) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(!text.contains("impl ForeignMemory"), "{}", file.display());
        }
    }
}
