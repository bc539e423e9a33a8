//! Symbols as addresses: `--symbols FILE`.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::dumps::*;
use crate::harness::*;
use crate::image::{Image, Making};
use crate::kernel::Kernel;
use crate::ram::Ram;
use crate::symbols::{Address, address, resolve};

/// Where the kernel is by the files; it was moved by 0x200000.
const BASE: u64 = 0xFFFF_FFFF_8100_0000;
const MOVED: u64 = 0x20_0000;

/// Makes a folder with a dump of a kernel: a large page maps the 2 MiB at `BASE + MOVED` to address 0, where page 5 holds
/// a text. Its files of symbols list the page's address as `text`.
fn folder_with_kernel(test: &str) -> std::path::PathBuf {
    let folder = folder(test);
    let mut pages = Pages::new();
    for (pfn, index, entry) in [(1, 511, frame(2) | 3), (2, 510, frame(3) | 3), (3, 9, 0x83)] {
        let mut table = page(0);
        table[index * 8..index * 8 + 8].copy_from_slice(&u64::to_le_bytes(entry));
        pages.insert(pfn, table);
    }
    let mut with_text = page(0);
    with_text[16..22].copy_from_slice(b"canary");
    pages.insert(5, with_text);
    let at = |offset: u64| BASE + MOVED + offset;
    let note_text = format!(
        "OSRELEASE=6.1.0\nSYMBOL(init_top_pgt)={:x}\nSYMBOL(_stext)={:x}\nSYMBOL(absent)=0\nNUMBER(phys_base)={}\n",
        at(frame(1)),
        at(0),
        -0x120_0000,
    );
    fs::write(folder.join("dump"), elf_with_notes(&pages, &note(b"VMCOREINFO\0", 0, note_text.as_bytes()))).unwrap();
    let list = [("_stext", 'T', 0), ("init_top_pgt", 'D', frame(1)), ("text", 'd', frame(5)), ("twice", 't', 1)];
    let lines = |base: u64, end: &str| -> String {
        let line = |(name, kind, offset): &(&str, char, u64)| format!("{:x} {kind} {name}{end}\n", base + offset);
        list.iter().map(line).collect::<Vec<_>>().concat()
    };
    let more = format!("{:016x} t twice\n0000000000005010 A absolute\n", BASE + 2);
    fs::write(folder.join("System.map"), lines(BASE, "") + &more).unwrap();
    fs::write(folder.join("kallsyms"), lines(BASE + MOVED, "\t[some]")).unwrap();
    let symbols: serde_json::Map<_, _> = list
        .iter()
        .map(|(name, _, offset)| ((*name).to_owned(), serde_json::json!({ "address": BASE + offset })))
        .collect();
    fs::write(folder.join("isf"), serde_json::json!({ "metadata": {}, "symbols": symbols }).to_string()).unwrap();
    folder
}

fn read(folder: &Path, file: &str, symbol: &str) -> std::process::Output {
    run_in(folder, &format!("read --dump dump --virtual --symbols {file} {symbol} 6 --binary"))
}

#[test]
fn symbol_of_each_kind_of_file_is_an_address() {
    let folder = folder_with_kernel("symbols");
    for file in ["System.map", "kallsyms", "isf"] {
        let output = read(&folder, file, "text+0x10");
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("canary", ""), "{file}");
        let output = run_in(&folder, &format!("translate --dump dump --virtual --symbols {file} text _stext --json"));
        let translations = &json(&output)["translations"];
        assert_eq!(translations[0]["virtual"], BASE + MOVED + frame(5), "{file}");
        assert_eq!(translations[1]["physical"], 0, "{file}");
    }
    let output = run_in(&folder, "translate --dump dump --virtual --symbols System.map absolute --json");
    assert_eq!(json_of_failure(&output)["translations"][0]["virtual"], 0x5010);
}

/// Returns the output of a command that could not do everything.
fn json_of_failure(output: &std::process::Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn symbol_that_cannot_be_found_is_an_error_that_says_why() {
    let folder = folder_with_kernel("symbols-bad");
    fs::write(folder.join("other"), format!("{BASE:x} T _stext\n{BASE:x} D init_top_pgt\n")).unwrap();
    fs::write(folder.join("none"), "1000 T main\n").unwrap();
    fs::write(folder.join("zeros"), "0 T _stext\n0 D init_top_pgt\n").unwrap();
    fs::write(folder.join("bytes"), [0xFF; 100]).unwrap();
    fs::write(folder.join("words"), "some words\n").unwrap();
    fs::write(folder.join("json"), "{\"a\": 1}").unwrap();
    fs::write(folder.join("gz"), b"\x1F\x8B\x08\0").unwrap();
    fs::write(folder.join("ram"), page(7)).unwrap();
    for (file, symbol, expected) in [
        ("System.map", "nothing", "System.map has no symbol nothing"),
        ("System.map", "twice", "System.map has several symbols twice: give the address"),
        ("other", "_stext", "other is not of this kernel: its symbols have other distances"),
        ("none", "main", "none is not of this kernel: it has none of its symbols"),
        (
            "zeros",
            "_stext",
            "cannot use zeros as a list of symbols: all addresses in it are 0: read /proc/kallsyms as root",
        ),
        ("bytes", "_stext", "cannot use bytes as a list of symbols: it is not a list of symbols"),
        (
            "words",
            "_stext",
            "cannot use words as a list of symbols: it has a line that is not an address, a type and a name",
        ),
        ("json", "_stext", "cannot use json as a list of symbols: it is not an ISF: "),
        (
            "gz",
            "_stext",
            "cannot use gz as a list of symbols: it is compressed with gzip: decompress it first (gunzip)",
        ),
        ("missing", "_stext", "cannot use missing as a list of symbols: No such file"),
    ] {
        let line = refusal(&read(&folder, file, symbol)).to_owned();
        assert!(line.starts_with(expected), "{file}: {line}");
    }
    let line = refusal(&run_in(&folder, "read --dump dump --virtual _stext 1")).to_owned();
    assert!(line.starts_with("_stext is no number, and a symbol needs --virtual and --symbols FILE"), "{line}");
    let line = refusal(&run_in(&folder, "read --mock ram --virtual --cr3 0 --symbols System.map _stext 1")).to_owned();
    assert!(line.starts_with("there is no VMCOREINFO note of a Linux kernel"), "{line}");
}

#[test]
fn large_file_of_symbols_takes_little_memory() {
    let folder = folder_with_kernel("symbols-large");
    let read =
        |file: &str| run_limited(&folder, &format!("read --dump dump --virtual --symbols {file} text+0x10 6 --binary"));
    // A line that does not end.
    fs::File::create(folder.join("line")).unwrap().set_len(1 << 30).unwrap();
    assert!(refusal(&read("line")).ends_with("it is not a list of symbols: it has too long a line"));
    fs::File::create(folder.join("larger")).unwrap().set_len((1 << 30) + 1).unwrap();
    assert!(refusal(&read("larger")).ends_with("it is larger than 1 GiB"));
    let isf = fs::read_to_string(folder.join("isf")).unwrap();
    let others: Vec<String> = (0..1_000_000).map(|number| format!("\"{number}\":{{}}")).collect();
    let larger = isf.replacen("\"symbols\":{", &format!("\"symbols\":{{{},", others.join(",")), 1);
    fs::write(folder.join("larger-isf"), larger).unwrap();
    let output = read("larger-isf");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("canary", ""));
}

#[test]
fn address_is_a_number_or_a_symbol() {
    let symbol = |name: &str, distance| Ok(Address::Symbol(name.to_owned(), distance));
    assert_eq!(address("0x1000"), Ok(Address::Number(0x1000)));
    assert_eq!(address("4K"), Ok(Address::Number(4096)));
    assert_eq!(address("init_task"), symbol("init_task", 0));
    assert_eq!(address("_text.part.0+4K"), symbol("_text.part.0", 4096));
    for wrong in ["", "+4", "1x", "a b", "a+b", "a+", "ä"] {
        assert!(address(wrong).unwrap_err().starts_with("not a number"), "{wrong}");
    }
}

proptest! {
    #[test]
    fn any_file_of_symbols_is_read_or_refused(words in vec("[0-9a-fA-F]{0,20}|[A-Za-z_]{1,8}|[ \n\t{}:,\"]|\\PC", 0..40)) {
        let folder = folder("symbols-any");
        fs::write(folder.join("file"), words.join(" ")).unwrap();
        fs::write(folder.join("core"), elf_with_notes(&[(0, page(0))].into(), &note(b"VMCOREINFO\0", 0, b"SYMBOL(a)=1\n"))).unwrap();
        let ram = Ram::Dump(Image::open(&folder.join("core"), Making::new(false, "")).unwrap());
        let address = [address("a").unwrap()];
        let _ = resolve(&address, Some(&folder.join("file")), &Kernel::new(&ram));
    }
}
