//! The examples of docs/json.md.

use std::fs;
use std::path::Path;

use serde_json::Value;
use xenmap::FRAME_SIZE;

use crate::harness::*;
use crate::usage;

/// Fields whose values differ from run to run or from release to release.
const VOLATILE: [&str; 4] = ["seconds", "written_bytes", "xen_version", "uuid"];

struct Example<'a> {
    arguments: &'a str,
    json: &'a str,
}

fn examples(page: &str) -> Vec<Example<'_>> {
    let blocks = page.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    let examples = blocks.map(|block| {
        let (arguments, json) = block.strip_prefix("$ xenmap ").unwrap().split_once('\n').unwrap();
        Example { arguments, json }
    });
    examples.collect()
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md")).unwrap()
}

/// Makes the files of the examples: `ram.raw`, and `before.elf`, a dump of the guest with older contents.
fn files(folder: &Path) {
    let page = |byte| vec![byte; FRAME_SIZE];
    let (data, zeros, old, new) = (page(b'a'), page(0), page(b'x'), page(b'y'));
    let mut canary = page(b'c');
    canary[..6].copy_from_slice(b"canary");

    let unchanged: [(u64, &[u8]); 3] = [(0, &data), (frame(3), &zeros), (frame(127), &canary)];
    ram(folder, &[&unchanged[..], &[(frame(4), &old)]].concat());
    assert_eq!(run_in(folder, "dump --mock ram --format elf before.elf").status.code(), Some(0));
    ram(folder, &[&unchanged[..], &[(frame(4), &new), (frame(128), &data)]].concat());
    fs::rename(folder.join("ram"), folder.join("ram.raw")).unwrap();
}

/// Replaces the values of volatile fields by the names of their types.
fn without_volatile(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                let inner = field.take();
                *field = if VOLATILE.contains(&&**name) { type_of(&inner).into() } else { without_volatile(inner) };
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without_volatile(item.take())),
        _ => {}
    }
    value
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[test]
fn examples_of_json_output_are_what_the_tool_prints() {
    let folder = folder("docs-json");
    files(&folder);
    for Example { arguments, json } in examples(&page()) {
        let output = run_in(&folder, arguments);
        assert_ne!(output.status.code(), Some(2), "{arguments}: {}", text(&output.stderr));
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let documented: Value = serde_json::from_str(json).unwrap();
        assert_eq!(without_volatile(printed), without_volatile(documented), "{arguments}");
    }
}

#[test]
fn each_command_with_json_output_has_an_example() {
    let command = usage::command();
    let with_json = command.get_subcommands().filter(|c| c.get_arguments().any(|argument| argument.get_id() == "json"));
    let page = page();
    let examples = examples(&page);
    for name in with_json.map(clap::Command::get_name) {
        let of_command = |example: &Example<'_>| example.arguments.split(' ').next() == Some(name);
        assert!(examples.iter().any(of_command), "{name}");
    }
}
