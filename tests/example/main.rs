//! Tests of the examples: runs them, and uses the parts of the larger ones.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[cfg(feature = "vm-memory")]
mod device_model;
mod guest_ram;
mod mmio_register;

use std::process::Command;

/// Returns a command that runs an example, which `cargo test` has built.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().with_file_name("examples").join(name);
    assert!(example.exists(), "{} is missing; build it: cargo build --examples", example.display());
    Command::new(example)
}
