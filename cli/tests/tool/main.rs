//! Tests of the tool. Some run its commands as a person does (`harness`), others call its modules, which are included
//! here.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

#[path = "../../src/args.rs"]
mod args;
#[path = "../../src/bytes.rs"]
mod bytes;
#[path = "../../src/called.rs"]
mod called;
#[expect(dead_code, reason = "parts of it are used")]
#[path = "../../src/canvas.rs"]
mod canvas;
#[path = "../../src/chain.rs"]
mod chain;
#[expect(dead_code, reason = "parts of it are used")]
#[path = "../../src/diff/mod.rs"]
mod diff;
#[path = "../../src/domains.rs"]
mod domains;
#[expect(dead_code, reason = "parts of it are used")]
#[path = "../../src/dump/mod.rs"]
mod dump;
#[path = "../../src/examples.rs"]
mod examples;
#[path = "../../src/hexdump.rs"]
mod hexdump;
#[expect(dead_code, reason = "parts of it are used")]
#[path = "../../src/image/mod.rs"]
mod image;
#[path = "../../src/info.rs"]
mod info;
#[path = "../../src/kernel.rs"]
mod kernel;
#[path = "../../src/map.rs"]
mod map;
#[path = "../../src/mount/mod.rs"]
mod mount;
#[path = "../../src/number.rs"]
mod number;
#[path = "../../src/pages.rs"]
mod pages;
#[expect(dead_code, reason = "parts of it are used")]
#[path = "../../src/palette.rs"]
mod palette;
#[path = "../../src/parts.rs"]
mod parts;
#[path = "../../src/pattern.rs"]
mod pattern;
#[path = "../../src/printable.rs"]
mod printable;
#[path = "../../src/progress.rs"]
mod progress;
#[path = "../../src/ram.rs"]
mod ram;
#[expect(dead_code, reason = "parts of it are used")]
#[path = "../../src/read.rs"]
mod read;
#[path = "../../src/registers.rs"]
mod registers;
#[path = "../../src/search.rs"]
mod search;
#[path = "../../src/sheet.rs"]
mod sheet;
#[path = "../../src/space.rs"]
mod space;
#[path = "../../src/symbols.rs"]
mod symbols;
#[path = "../../src/usage.rs"]
mod usage;
#[path = "../../src/vmcoreinfo.rs"]
mod vmcoreinfo;
#[expect(dead_code, reason = "parts of it are used")]
#[path = "../../src/window.rs"]
mod window;
#[expect(dead_code, reason = "parts of it are used")]
#[path = "../../src/write.rs"]
mod write;

mod dumps;
mod harness;
mod packed;

/// The tests, by part of the tool.
mod cases {
    mod commands;
    mod diff;
    mod diff_parts;
    mod docs;
    mod domain;
    mod dump;
    mod dump_json;
    mod dump_length;
    mod dump_notes;
    mod dump_parts;
    mod dump_source;
    mod dump_virtual;
    mod dump_workers;
    mod dump_xen;
    mod foreign;
    mod hostile;
    mod last_address;
    mod mount;
    mod names;
    mod number;
    mod packed;
    mod picture;
    mod read;
    mod registers;
    mod search;
    mod share;
    mod space;
    mod symbols;
    mod translate;
    mod usage;
    mod virtual_map;
    mod worker;
    mod write;
    mod zst;
}

use std::cell::RefCell;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

thread_local! {
    /// The messages of the included modules in this thread.
    static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Stands for the function of the tool that writes messages to stderr.
fn say(message: &str) {
    SAID.with_borrow_mut(|said| said.push(message.to_owned()));
}

/// Takes the messages of this test, which has a thread of its own.
fn said() -> Vec<String> {
    SAID.take()
}
