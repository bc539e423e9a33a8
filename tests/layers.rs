//! Each module of the library uses only the layers below it.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The library's modules, the lowest layer first. CONTRIBUTING.md describes them.
const LAYERS: [&str; 13] = [
    "abi",
    "types",
    "error",
    "backend",
    "mapping",
    "handle",
    "raw",
    "guest",
    "cache",
    "address_space",
    "device_model",
    "vm_memory",
    "mock",
];

/// The crate root is above all layers: it only re-exports.
const TOP: &str = "lib";

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns a module's source files, without its unit tests, which may use the mock.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let entries = entries.filter(|path| !["tests", "tests.rs", "loom"].iter().any(|tests| path.ends_with(tests)));
    entries.flat_map(|path| files(&path)).filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

/// Returns the depth of a file's module in the crate: 1 for a layer.
fn depth(file: &Path) -> usize {
    let path = file.strip_prefix(source()).unwrap().with_extension("");
    path.components().filter(|part| part.as_os_str() != "mod").count()
}

/// Returns the top-level modules that a file of this depth uses, by `crate::NAME` or by `super::`, outside comments and
/// `mod tests`. For `crate::{…}` it returns "{", which is no layer, so that each layer needs a `use` of its own.
fn uses(text: &str, depth: usize) -> BTreeSet<String> {
    let code = text.split("\nmod tests {").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let root = "super::".repeat(depth);
    let mut found = BTreeSet::new();
    for line in lines {
        for rest in line.split("crate::").skip(1).chain(line.split(&root).skip(1)) {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.insert(rest[..end.max(1).min(rest.len())].to_owned());
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
            for used in uses(&fs::read_to_string(&file).unwrap(), depth(&file)) {
                if used != *layer && !LAYERS[..level].contains(&used.as_str()) {
                    wrong.push(format!("{} uses crate::{used}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_way_to_name_a_module_is_found() {
    let text = "
//! crate::mock
use crate::cache::MapCache;
let x: crate::guest::Guest;
pub(crate) use crate::raw as r;
use crate::{abi, mock};
use super::super::vm_memory::RamRegion;
use super::handle;
mod tests {
    use crate::types;
}";
    assert_eq!(uses(text, 2), ["cache", "guest", "raw", "vm_memory", "{"].map(str::to_owned).into());
    assert!(uses(text, 1).contains("handle"));
}

#[test]
fn depth_of_a_file_is_that_of_its_module() {
    let depths = ["raw.rs", "guest/mod.rs", "guest/scan.rs", "guest/page_tables/mod.rs", "guest/page_tables/x86.rs"];
    assert_eq!(depths.map(|file| depth(&source().join(file))), [1, 1, 2, 2, 3]);
}

#[test]
fn only_the_handle_module_adds_methods_to_the_handle() {
    for layer in LAYERS.iter().filter(|layer| **layer != "handle") {
        let folder = source().join(layer);
        let module = if folder.is_dir() { folder } else { source().join(format!("{layer}.rs")) };
        for file in files(&module) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(!text.contains("impl ForeignMemory"), "{}", file.display());
        }
    }
}
