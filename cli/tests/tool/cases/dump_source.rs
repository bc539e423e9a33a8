//! `--dump FILE` in place of a guest.

use std::fs;
use std::path::Path;

use xenmap::FRAME_SIZE;

use crate::dumps::*;
use crate::harness::*;

/// Returns pages of which the second is zero, the third ends with the first half of a text, and the next begins with the
/// other half. There is no frame between them and the last.
fn some_pages() -> Pages {
    let mut pages: Pages = [1, 4, 5, 300].into_iter().zip((7..).map(page)).collect();
    pages.insert(2, page(0));
    pages.get_mut(&4).unwrap()[FRAME_SIZE - 6..].copy_from_slice(b"xenmap");
    pages.get_mut(&5).unwrap()[..7].copy_from_slice(b" canary");
    pages
}

/// Makes a folder with a dump of some pages in each format, and a compressed one.
fn folder_with_dumps(test: &str) -> std::path::PathBuf {
    let folder = folder(test);
    for (name, make) in FORMATS {
        fs::write(folder.join(name), make(&some_pages())).unwrap();
    }
    fs::write(folder.join("zst"), zstd::encode_all(&elf(&some_pages())[..], 0).unwrap()).unwrap();
    folder
}

/// The names of the dumps that tell a missing page from one of zeros.
const WITH_HOLES: [&str; 5] = ["lime", "elf", "xen-pfn", "xen-p2m", "zst"];

fn stdout(folder: &Path, args: &str) -> String {
    let output = run_in(folder, args);
    assert!(output.status.success(), "{args}: {}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

#[test]
fn read_shows_the_bytes_of_a_dump_in_any_format() {
    let folder = folder_with_dumps("source-read");
    let expected = "\
00004ffa  78 65 6e 6d 61 70 20 63  61 6e 61 72 79           |xenmap canary|
00005007
";
    for name in WITH_HOLES.into_iter().chain(["raw"]) {
        assert_eq!(stdout(&folder, &format!("read --dump {name} 0x4ffa 13")), expected, "{name}");
        assert_eq!(run_in(&folder, &format!("--dump {name} read 0x2ff8 8 --binary")).stdout, [0; 8], "{name}");
    }
}

#[test]
fn read_shows_what_a_dump_lacks() {
    let folder = folder_with_dumps("source-read-hole");
    let expected = "\
00002ffe  00 00                                             |..|
00003000  -- 4096 bytes cannot be read: not in the dump
00004000  08 08                                             |..|
00004002
";
    for name in WITH_HOLES {
        let output = run_in(&folder, &format!("read --dump {name} 0x2ffe 0x1004"));
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), expected), "{name}");
        let line = refusal(&run_in(&folder, &format!("read --dump {name} 0x3000 4"))).to_owned();
        assert_eq!(line, "cannot read at 0x3000: not in the dump", "{name}");
        let line = refusal(&run_in(&folder, &format!("read --dump {name} 0xfffffffffffff 1"))).to_owned();
        assert_eq!(line, "cannot read at 0xfffffffffffff: not in the dump", "{name}");
    }
    // A raw dump does not say which zeros are RAM.
    assert_eq!(run_in(&folder, "read --dump raw 0x2ffe 0x1004 --binary").stdout, {
        let mut expected = vec![0; 0x1002];
        expected.extend([8, 8]);
        expected
    });
    assert_eq!(refusal(&run_in(&folder, "read --dump raw 0x12d000 1")), "cannot read at 0x12d000: not in the dump");
}

#[test]
fn dump_of_parts_of_pages_says_that_zeros_were_added() {
    let folder = folder("source-padded");
    // Two parts of page 1, the beginning of page 3, and all of page 4 in two parts.
    let segments = [(0x1010, 0x10), (0x1100, 0x10), (0x3000, 1), (0x4000, 0x800), (0x4800, 0x800)];
    let mut offset = 0;
    let segments = segments.map(|(address, len)| {
        offset += len;
        Segment::whole(offset - len, address, len)
    });
    fs::write(folder.join("core"), elf_of_segments(&segments, &pattern(0x1021))).unwrap();
    let warning = "of 2 pages only a part is in the dump that was read: zeros were written for the rest";
    let output = run_in(&folder, "dump --dump core new");
    assert!(text(&output.stderr).starts_with(&format!("xenmap: {warning}\n")), "{}", text(&output.stderr));
    let summary = json(&run_in(&folder, "dump --dump core new2 --format lime --json"));
    assert_eq!(summary["warnings"], serde_json::json!([warning]));
    assert_eq!(json(&run_in(&folder, "dump --dump new new3 --json"))["warnings"], serde_json::json!([]));
}

#[test]
fn dump_of_a_dump_is_of_the_same_machine() {
    let folder = folder("source-machine");
    // EM_386, EM_X86_64, EM_AARCH64.
    for (number, name) in [(3, "x86"), (62, "x86_64"), (183, "arm64")] {
        let mut core = elf(&some_pages());
        core[18] = number;
        fs::write(folder.join("core"), core).unwrap();
        for format in ["elf", "xen"] {
            let output = run_in(&folder, &format!("dump --dump core new-{name} --format {format} --json"));
            assert!(output.status.success(), "{}", text(&output.stderr));
            let info = json(&run_in(&folder, &format!("info --dump new-{name} --json")));
            assert_eq!(info["architecture"], name, "{format}");
            fs::remove_file(folder.join(format!("new-{name}"))).unwrap();
        }
    }
}

#[test]
fn search_finds_a_match_across_pages_of_a_dump() {
    let folder = folder_with_dumps("source-search");
    for name in WITH_HOLES.into_iter().chain(["raw"]) {
        assert_eq!(stdout(&folder, &format!("search --dump {name} --text canary --hex 6e6d61702063")), {
            "0x4ffc  hex \"6e6d61702063\"\n0x5001  text \"canary\"\n"
        });
        let output = run_in(&folder, &format!("search --dump {name} --text nothing"));
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), ""), "{name}");
        // Across the border of a page of zeros.
        assert_eq!(stdout(&folder, &format!("search --dump {name} --hex 07070000")), "0x1ffe\n", "{name}");
    }
}

#[test]
fn map_shows_where_a_dump_has_ram() {
    let folder = folder_with_dumps("source-map");
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_str(&stdout(&folder, &format!("map --dump {name} --json"))).unwrap()
    };
    for name in WITH_HOLES {
        let map = json(name);
        assert_eq!(map["domid"], serde_json::Value::Null);
        assert_eq!(map["total_bytes"], serde_json::json!({ "ram": 5 * FRAME_SIZE }), "{name}");
        let firsts: Vec<_> = map["extents"].as_array().unwrap().iter().map(|extent| &extent["first"]).collect();
        assert_eq!(firsts, [frame(1), frame(4), frame(300)], "{name}");
    }
    // Of a sparse file.
    let pages = some_pages();
    let content: Vec<(u64, &[u8])> =
        pages.iter().filter(|(pfn, _)| **pfn != 2).map(|(p, b)| (frame(*p), &b[..])).collect();
    ram(&folder, &content);
    let expected = serde_json::json!({ "ram": 4 * FRAME_SIZE, "zeros or no ram": 297 * FRAME_SIZE });
    assert_eq!(json("ram")["total_bytes"], expected);
}

#[test]
fn translate_names_the_frame_of_a_dump() {
    let folder = folder_with_dumps("source-translate");
    let expected = "physical address:    0x4ffe\nguest frame (gfn):   0x4\n";
    assert_eq!(stdout(&folder, "translate --dump elf 0x4ffe"), expected);
}

#[test]
fn picture_shows_the_pages_of_a_dump_and_what_has_changed() {
    let folder = folder_with_dumps("source-picture");
    let mut pages = some_pages();
    pages.insert(4, page(1));
    pages.insert(2, page(1));
    fs::write(folder.join("before"), elf(&pages)).unwrap();
    for name in WITH_HOLES {
        let legend = stdout(&folder, &format!("picture --dump {name} {name}.png"));
        assert!(legend.contains("\nslate           1  zeros\n"), "{name}: {legend}");
        assert!(legend.contains("\nblue            4  data\n"), "{name}: {legend}");
        let legend = stdout(&folder, &format!("picture --dump {name} {name}-2.png --since before"));
        assert!(legend.contains("\norange          2  changed since the dump\n"), "{name}: {legend}");
    }
}

#[test]
fn dump_converts_between_all_formats() {
    let folder = folder_with_dumps("source-convert");
    for from in WITH_HOLES {
        for to in ["raw", "elf", "lime", "xen"] {
            for more in ["", "--compress zstd"] {
                let out = format!("{from}-{to}{}", more.len());
                let output = run_in(&folder, &format!("dump --dump {from} {out} --format {to} {more}"));
                assert!(output.status.success(), "{out}: {}", text(&output.stderr));
                let summary = text(&output.stderr);
                assert!(summary.contains("dumped 5 frames (20.00 KiB), 1 of them zero, 0 lost"), "{summary}");
                let same = stdout(&folder, &format!("diff {from} {out}"));
                assert_eq!(same, "5 the same, 0 different, 0 only in OLD, 0 only in NEW\n", "{out}");
            }
        }
    }
    // To standard output, as one stream.
    let stream = run_in(&folder, "dump --dump zst - --format lime");
    fs::write(folder.join("stream"), stream.stdout).unwrap();
    assert!(run_in(&folder, "diff stream lime").status.success());
    let document: serde_json::Value =
        serde_json::from_str(&stdout(&folder, "dump --dump lime json.raw --json")).unwrap();
    assert_eq!([&document["domid"], &document["ram_frames"]], [&serde_json::Value::Null, &5.into()]);
}

#[test]
fn raw_dump_keeps_its_length_when_it_is_converted() {
    let folder = folder_with_dumps("source-convert-raw");
    for to in ["raw", "elf", "lime", "xen"] {
        stdout(&folder, &format!("dump --dump raw to-{to} --format {to}"));
        assert!(run_in(&folder, &format!("diff raw to-{to}")).status.success(), "{to}");
        let binary = run_in(&folder, &format!("read --dump to-{to} 0 301K --binary"));
        assert!(binary.stdout == raw(&some_pages())[..301 << 10], "{to}");
    }
}

#[test]
fn parts_of_pages_are_read_searched_and_converted() {
    let folder = folder("source-parts");
    let dump = lime_of_parts(&[(0x1800, vec![1; 0x900]), (0x2200, b"canary".to_vec()), (0x9ffa, b"xenmap".to_vec())]);
    fs::write(folder.join("parts"), dump).unwrap();
    let map: serde_json::Value = serde_json::from_str(&stdout(&folder, "map --dump parts --json")).unwrap();
    assert_eq!(map["extents"][0]["last"], 0x20ff);
    assert_eq!(map["total_bytes"]["ram"], 0x900 + 6 + 6);
    let found = stdout(&folder, "search --dump parts --text canary --text xenmap --hex 0101ff --hex 010101");
    assert_eq!(found.lines().filter(|line| line.ends_with(r#"  hex "010101""#)).count(), 0x900 - 2);
    assert!(found.ends_with("\n0x2200  text \"canary\"\n0x9ffa  text \"xenmap\"\n"));
    let read = run_in(&folder, "read --dump parts 0x20fe 0x110");
    let expected = "\
000020fe  01 01                                             |..|
00002100  -- 256 bytes cannot be read: not in the dump
00002200  63 61 6e 61 72 79                                 |canary|
00002206  -- 8 bytes cannot be read: not in the dump
0000220e
";
    assert_eq!((read.status.code(), text(&read.stdout)), (Some(3), expected));
    // Whole frames, with zeros in place of what the dump lacks.
    let output = run_in(&folder, "dump --dump parts whole --format elf");
    assert!(text(&output.stderr).contains("dumped 3 frames"), "{}", text(&output.stderr));
    assert_eq!(run_in(&folder, "read --dump whole 0x2200 8 --binary").stdout, b"canary\0\0");
    let compared = stdout(&folder, "picture --dump parts out.png --since whole");
    assert!(compared.contains("\nblue            3  data\n"), "{compared}");
}

#[test]
fn diff_takes_the_dump_as_new() {
    let folder = folder_with_dumps("source-diff");
    let same = "5 the same, 0 different, 0 only in OLD, 0 only in NEW\n";
    assert_eq!(stdout(&folder, "diff elf --dump lime"), same);
    let mut pages = some_pages();
    pages.remove(&300);
    fs::write(folder.join("less"), elf(&pages)).unwrap();
    let output = run_in(&folder, "--dump less diff elf");
    let expected = "0x12c000 to 0x12cfff: 1 page only in OLD\n4 the same, 0 different, 1 only in OLD, 0 only in NEW\n";
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), expected));
}

#[test]
fn dump_is_raw_only_with_the_option_if_it_looks_like_something_else() {
    let folder = folder("source-raw");
    let mut file = elf(&some_pages());
    file.resize(file.len().next_multiple_of(FRAME_SIZE), 0);
    fs::write(folder.join("file"), &file).unwrap();
    assert_eq!(run_in(&folder, "read --dump file --dump-raw 0 256 --binary").stdout, file[..256]);
    fs::write(folder.join("png"), [&b"\x89PNG\r\n\x1A\n"[..], &[0; FRAME_SIZE - 8]].concat()).unwrap();
    let line = refusal(&run_in(&folder, "map --dump png")).to_owned();
    let expected = "cannot use png as a dump: it is a png picture: give a dump; if it is raw RAM all the same, give \
                    --dump-raw";
    assert_eq!(line, expected);
    assert!(run_in(&folder, "map --dump png --dump-raw").status.success());
}

#[test]
fn dump_is_refused_where_a_guest_is_needed() {
    let folder = folder_with_dumps("source-refused");
    for (args, expected) in [
        ("write --dump elf 0 --text a", "the subcommand 'write' cannot be used with '--dump <FILE>'"),
        ("domains --dump elf", "the subcommand 'domains' cannot be used with '--dump <FILE>'"),
        ("map --dump elf --domain 1", "the argument '--dump <FILE>' cannot be used with '--domain <DOMAIN>'"),
        ("map --dump elf --mock raw", "the argument '--dump <FILE>' cannot be used with '--mock <FILE>'"),
        ("map --dump elf --thorough", "the argument '--dump <FILE>' cannot be used with '--thorough'"),
        ("dump --dump elf out --pause", "the argument '--dump <FILE>' cannot be used with '--pause'"),
        (
            "dump --dump elf out --copy-by threads",
            "the argument '--dump <FILE>' cannot be used with '--copy-by <METHOD>'",
        ),
        ("diff elf lime --dump raw", "the argument '[NEW]' cannot be used with '--dump <FILE>'"),
        ("map --dump-raw --mock raw", "the following required arguments were not provided:\n  --dump <FILE>"),
    ] {
        let output = run_in(&folder, args);
        let error = usage_error(&output);
        assert!(error.starts_with(expected), "{args}: {error}");
    }
}

#[test]
fn segment_of_endless_zeros_costs_nothing() {
    let folder = folder("source-endless");
    let memory = 1 << 51;
    let zeros = Segment { offset: 0, address: 0x1000, in_file: FRAME_SIZE as u64, in_memory: memory };
    fs::write(folder.join("dump"), elf_of_segments(&[zeros], &page(7))).unwrap();
    let last = 0x1000 + memory - 1;
    let map: serde_json::Value = serde_json::from_str(&stdout(&folder, "map --dump dump --json")).unwrap();
    assert_eq!(map["extents"][0]["last"], last);
    assert_eq!(stdout(&folder, "search --dump dump --hex 070700 --hex 0001 --hex 0707ff"), "0x1ffe  hex \"070700\"\n");
    assert_eq!(stdout(&folder, &format!("read --dump dump {last} 1 --binary")), "\0");
    let legend = stdout(&folder, "picture --dump dump picture --since dump");
    assert!(legend.contains("  zeros\n") && !legend.contains("orange"), "{legend}");
}

#[test]
fn info_shows_what_a_dump_says_about_itself() {
    let folder = folder_with_dumps("source-info");
    let notes = [note(b"CORE\0", 1, &[0; 336]), note(b"VMCOREINFO\0", 0, b"OSRELEASE=6.1.0\x1b[31m\n")].concat();
    fs::write(folder.join("core"), elf_with_notes(&some_pages(), &notes)).unwrap();
    let expected = "\
format:              elf
pages:               5 (0.0 MiB)
highest frame:       0x12c
architecture:        x86_64
vcpus:               1
kernel:              6.1.0\\u{1b}[31m
";
    assert_eq!(stdout(&folder, "info --dump core"), expected);
    let json = json(&run_in(&folder, "info --dump lime --json"));
    let expected = serde_json::json!({
        "format": "lime", "pages": 5, "highest_frame": 300, "architecture": null, "vcpus": 0, "kernel": null,
    });
    assert_eq!(json, expected);
    for (name, format) in [("raw", "raw"), ("elf", "elf"), ("zst", "elf"), ("xen-pfn", "xen"), ("xen-p2m", "xen")] {
        assert!(
            stdout(&folder, &format!("info --dump {name}")).starts_with(&format!("format:              {format}\n"))
        );
    }
}
