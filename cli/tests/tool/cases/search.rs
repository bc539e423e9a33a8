//! `xenmap search`, run as a person does.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use xenmap::FRAME_SIZE;

use crate::harness::*;

/// Frames that are mapped at a time.
const WINDOW: u64 = 4096;

fn search(folder: &Path, args: &[&str]) -> Output {
    tool().current_dir(folder).args(["--mock", "ram", "search"]).args(args).output().unwrap()
}

/// Checks that a search printed these addresses and nothing else.
#[track_caller]
fn assert_found(output: &Output, addresses: &[u64]) {
    let expected: Vec<String> = addresses.iter().map(|address| format!("{address:#x}\n")).collect();
    assert_eq!(text(&output.stdout), expected.concat());
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(i32::from(addresses.is_empty())));
}

#[test]
fn search_finds_a_text_wherever_it_is() {
    let folder = folder("search-text");
    // At the start, across the border of a page, of a copied chunk and of a mapped window, and at the end.
    let places = [0, frame(3) - 5, (1 << 20) - 1, frame(WINDOW) - 12, frame(2 * WINDOW + 2) - 13];
    let content = vec![0; usize::try_from(frame(2 * WINDOW + 2)).unwrap()];
    let content: Vec<(u64, &[u8])> =
        [(0, content.as_slice())].into_iter().chain(places.map(|address| (address, CANARY))).collect();
    ram(&folder, &content);
    assert_found(&search(&folder, &["--text", "xenmap canary"]), &places);
}

#[test]
fn search_finds_nothing_across_a_hole() {
    let folder = folder("search-hole");
    ram(&folder, &[(frame(1) - 6, &CANARY[..6]), (frame(2), &CANARY[6..])]);
    assert_found(&search(&folder, &["--text", "xenmap canary"]), &[]);
    assert_found(&search(&folder, &["--text", " canary"]), &[frame(2)]);
}

#[test]
fn search_finds_matches_that_overlap() {
    let folder = folder("search-overlap");
    ram(&folder, &[(frame(1) - 3, b"ababab")]);
    assert_found(&search(&folder, &["--text", "abab"]), &[frame(1) - 3, frame(1) - 1]);
    assert_found(&search(&folder, &["--hex", "61 ?? 61"]), &[frame(1) - 3, frame(1) - 1]);
}

#[test]
fn search_for_hexadecimal_digits_takes_any_digit_for_a_question_mark() {
    let folder = folder("search-hex");
    let bytes = [0xDE, 0xAD, 0x11, 0xEF, 0x3A];
    ram(&folder, &[(frame(1) - 2, &bytes), (frame(5) + 7, &bytes), (frame(6), &[0xDE, 0xAD, 0x11, 0xEF, 0x3B])]);
    let places = [frame(1) - 2, frame(5) + 7];
    for pattern in ["de ad ?? ef ?a", "DEAD11EF3A", "?? ad 11 ?f 3a", "dead????3a", "?e ?d 1? e? ?a"] {
        assert_found(&search(&folder, &["--hex", pattern]), &places);
    }
    assert_found(&search(&folder, &["--hex", "de ad ?? ef ?c"]), &[]);
}

#[test]
fn search_for_a_pattern_longer_than_a_page_finds_it() {
    let folder = folder("search-long");
    let bytes = pattern(3 * FRAME_SIZE);
    ram(&folder, &[((1 << 20) - 2000, &bytes)]);
    let digits: Vec<String> = bytes[1..10_000].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_found(&search(&folder, &["--hex", &digits.concat()]), &[(1 << 20) - 1999]);
}

#[test]
fn search_stops_after_the_highest_number_of_matches() {
    let folder = folder("search-max");
    ram(&folder, &[(0, &[b'x'; 100])]);
    assert_found(&search(&folder, &["--text", "x", "--max", "3"]), &[0, 1, 2]);
    assert_eq!(text(&search(&folder, &["--text", "x"]).stdout).lines().count(), 100);
}

#[test]
fn search_as_json_is_an_object_a_line() {
    let folder = folder("search-json");
    ram(&folder, &[(0x10, CANARY), (frame(7), CANARY)]);
    let output = search(&folder, &["--text", "canary", "--json"]);
    let lines = text(&output.stdout).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let expected = [0x17, frame(7) + 7]
        .map(|address| json!({"address": address, "bytes": 6, "kind": "text", "pattern": "canary"}));
    assert_eq!(lines.collect::<Vec<_>>(), expected);
}

#[test]
fn search_for_several_patterns_finds_each_in_ascending_order() {
    let folder = folder("search-several");
    let chunk = 1_u64 << 20;
    let mut bytes = vec![b'.'; 20 << 20];
    let mut put = |address: u64, text: &[u8]| {
        let at = usize::try_from(address).unwrap();
        bytes[at..at + text.len()].copy_from_slice(text);
    };
    let utf16: Vec<u8> = "canary".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let long = pattern(5000);
    // The longest pattern begins before the border of a chunk, and the shorter ones are in what it leaves.
    put(chunk - 4000, &long);
    put(chunk - 3, b"canary");
    put(2 * chunk - 20, b"canary");
    put(2 * chunk - 12, &utf16);
    put(2 * chunk, b"canary");
    put(16 * chunk - 2, b"canary");
    put(20 * chunk - 6, b"canary");
    let digits: Vec<String> = long.iter().map(|byte| format!("{byte:02x}")).collect();
    let (start, end) = (digits[..900].concat(), digits[4100..].concat());
    ram(&folder, &[(0, &bytes)]);
    let output =
        search(&folder, &["--text", "canary", "--hex", &start, "--hex", &end, "--utf16", "canary", "--text", "nary"]);
    let canary = |address: u64| format!("{address:#x}  text \"canary\"\n{:#x}  text \"nary\"\n", address + 2);
    let expected = [
        format!("{:#x}  hex \"{start}\"\n", chunk - 4000),
        canary(chunk - 3),
        format!("{:#x}  hex \"{end}\"\n", chunk + 100),
        canary(2 * chunk - 20),
        format!("{:#x}  utf16 \"canary\"\n", 2 * chunk - 12),
        canary(2 * chunk),
        canary(16 * chunk - 2),
        canary(20 * chunk - 6),
    ];
    assert_eq!(text(&output.stdout), expected.concat());
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
}

#[test]
fn short_match_at_the_end_of_a_run_is_found_next_to_a_long_pattern() {
    let folder = folder("search-run-end");
    // Neither a hole nor the end of the RAM hides what the longest pattern could still have begun in.
    ram(&folder, &[(frame(1) - 2, b"ab"), (frame(3), b"ab"), (frame(9) - 2, b"ab")]);
    let output = search(&folder, &["--text", "ab", "--text", &"long".repeat(2000)]);
    let expected = [frame(1) - 2, frame(3), frame(9) - 2].map(|address| format!("{address:#x}  text \"ab\"\n"));
    assert_eq!(text(&output.stdout), expected.concat());
}

#[test]
fn matches_of_all_patterns_count_as_one_number() {
    let folder = folder("search-several-max");
    ram(&folder, &[(0, b"ababab")]);
    let output = search(&folder, &["--text", "a", "--text", "b", "--text", "a", "--max", "4"]);
    let expected = "0x0  text \"a\"\n0x0  text \"a\"\n0x1  text \"b\"\n0x2  text \"a\"\n";
    assert_eq!(text(&output.stdout), expected);
    let output = search(&folder, &["--text", "none", "--text", "of these"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("", Some(1)));
}

#[test]
fn pattern_is_printed_without_control_characters() {
    let folder = folder("search-control");
    ram(&folder, &[(0, "\x1b[31m\u{202e}".as_bytes())]);
    let args = ["--text", "\x1b[31m\u{202e}", "--text", "[3"];
    let output = search(&folder, &args);
    assert_eq!(text(&output.stdout), "0x0  text \"\\u{1b}[31m\\u{202e}\"\n0x1  text \"[3\"\n");
    let output = search(&folder, &[&args[..], &["--json"]].concat());
    assert!(!text(&output.stdout).contains(['\x1b', '\u{202e}']));
    let first: Value = serde_json::from_str(text(&output.stdout).lines().next().unwrap()).unwrap();
    assert_eq!(first["pattern"], "\x1b[31m\u{202e}");
}

#[test]
fn utf16_is_little_endian() {
    let folder = folder("search-utf16");
    ram(&folder, &[(0x11, b"h\0\xe9\0=\xd8\0\xde")]);
    assert_found(&search(&folder, &["--utf16", "h\u{e9}\u{1f600}"]), &[0x11]);
}

#[test]
fn context_is_shown_around_each_match() {
    let folder = folder("search-context");
    // At the start and at the end of the RAM, where there is less context, and next to a hole.
    ram(&folder, &[(0, b"1st canary"), (frame(3), b"canary 2"), (frame(4) - 6, b"canary")]);
    let output = search(&folder, &["--text", "canary", "--context", "8"]);
    let expected = "\
0x4
00000000  31 73 74 20 63 61 6e 61  72 79 00 00 00 00 00 00  |1st canary......|
00000010  00 00                                             |..|
--
0x3000
00002ff8  -- 8 bytes cannot be read: no RAM there
00003000  63 61 6e 61 72 79 20 32  00 00 00 00 00 00        |canary 2......|
--
0x3ffa
00003ff2  00 00 00 00 00 00 00 00  63 61 6e 61 72 79        |........canary|
";
    assert_eq!((text(&output.stdout), text(&output.stderr)), (expected, ""));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn context_as_json_is_a_document_of_read() {
    let folder = folder("search-context-json");
    ram(&folder, &[(0, b"x"), (frame(3), b"canary")]);
    let output = search(&folder, &["--text", "canary", "--context", "0x1", "--json"]);
    let read = run_in(&folder, "--mock ram read 0x2fff 8 --json");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["context"], serde_json::from_slice::<Value>(&read.stdout).unwrap());
    assert_eq!(found["context"]["parts"][1]["hex"], "63616e61727900");
}

#[test]
fn match_is_highlighted_in_its_context() {
    let folder = folder("search-colours");
    ram(&folder, &[(0, b"a canary.")]);
    let mut command = tool();
    command.current_dir(&folder).env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR");
    let output = command.args(["--mock", "ram", "search", "--text", "canary", "--context", "1"]).output().unwrap();
    let (green, red, end) = ("\x1b[32m", "\x1b[1m\x1b[31m", "\x1b[0m");
    let spaces = " ".repeat(8 * 3);
    let expected = format!(
        "{green}0x2{end}\n{green}00000001{end}  20 {red}63 61 6e 61 72 79 {end}2e{spaces}   | {red}canary{end}.|\n"
    );
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn search_of_every_frame_finds_the_same() {
    let folder = folder("search-thorough");
    ram(&folder, &[(frame(9000), CANARY)]);
    assert_found(&search(&folder, &["--text", "canary", "--thorough"]), &[frame(9000) + 7]);
}

#[test]
fn reader_that_has_seen_enough_ends_a_search_quietly() {
    let folder = folder("search-flush");
    ram(&folder, &[(0, CANARY), (frame(20_000), CANARY)]);
    let mut command = tool();
    command.current_dir(&folder).args(["--mock", "ram", "search", "--text", "canary"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "0x7");
    // A closed pipe is not an error.
    drop(lines);
    assert!(child.wait().unwrap().success());
}

#[test]
fn search_for_nothing_is_refused() {
    let folder = folder("search-bad");
    ram(&folder, &[(0, CANARY)]);
    for (args, expected) in [
        (["--text", ""], "there is nothing to search for"),
        (["--hex", " "], "there is nothing to search for"),
        (["--hex", "?? ??"], "the pattern matches everywhere"),
        (["--hex", "de a"], "the last one has only one"),
        (["--hex", "xy"], "x is not a hexadecimal digit"),
    ] {
        let output = search(&folder, &args);
        let line = refusal(&output);
        assert!(line.contains(expected), "{args:?}: {line}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
    }
    let output = search(&folder, &["--text", "a", "--max", "0"]);
    assert!(usage_error(&output).contains("0 is not in 1.."));
}

#[test]
fn search_of_a_pv_guest_finds_its_own_addresses() {
    let folder = folder("search-pv");
    ram(&folder, &[(0, &[0; 3 * FRAME_SIZE]), (frame(1) - 5, CANARY), (frame(0x5000) + 3, CANARY)]);
    let output = run_in(&folder, "--mock ram --mock-kind pv search --text canary");
    assert_found(&output, &[frame(1) + 2, frame(0x5000) + 10]);
}

/// A guest whose highest frame is so high that it takes minutes to try every frame number.
fn far_ram(folder: &Path) {
    ram(folder, &[(0, CANARY), (frame(1 << 31) - FRAME_SIZE as u64, CANARY)]);
}

/// Checks that a command stopped at the limit and said so. Returns what it said.
#[track_caller]
fn assert_limited(output: &Output) -> &str {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("not searched: 0x"), "{stderr}");
    assert!(stderr.contains("--search-limit"), "{stderr}");
    stderr
}

#[test]
fn search_limit_ends_a_search_and_leaves_what_was_found() {
    let folder = folder("search-limit");
    far_ram(&folder);
    let output = run_in(&folder, "--mock ram search --thorough --search-limit 1 --text canary");
    assert_limited(&output);
    assert_eq!(text(&output.stdout), "0x7\n0x7fffffff007\n");
}

#[test]
fn limited_search_that_found_enough_is_complete() {
    let folder = folder("search-limit-max");
    far_ram(&folder);
    let output = run_in(&folder, "--mock ram search --thorough --search-limit 1 --text canary --max 1");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "0x7\n"));
}

#[test]
fn limited_map_lists_what_was_not_searched() {
    let folder = folder("map-limit");
    far_ram(&folder);
    let output = run_in(&folder, "--mock ram map --thorough --search-limit 1 --json");
    let stderr = assert_limited(&output).to_owned();
    let map: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [range] = &map["not_searched"].as_array().unwrap()[..] else { panic!("{map}") };
    let [first, last, bytes] = ["first", "last", "bytes"].map(|name| range[name].as_u64().unwrap());
    assert_eq!(bytes, last - first + 1);
    assert!(first > 0xFFF && last < 0x7FF_FFFF_F000 && bytes > 1 << 30, "{map}");
    assert!(stderr.contains(&format!("{first:#x} to {last:#x}")), "{stderr}");
    assert_eq!(map["total_bytes"]["ram"], 2 * FRAME_SIZE);
}

#[test]
fn limited_dump_and_picture_are_written_and_say_that_they_are_incomplete() {
    let folder = folder("dump-limit");
    far_ram(&folder);
    assert_limited(&run_in(&folder, "--mock ram dump --thorough --search-limit 1 --format elf dump"));
    assert_limited(&run_in(&folder, "--mock ram picture --thorough --search-limit 1 picture.png"));
    assert_eq!(names(&folder), ["dump", "picture.png", "ram"]);
    let diff = run_in(&folder, "--mock ram diff --thorough --search-limit 1 dump");
    assert!(assert_limited(&diff).ends_with("xenmap: nothing was compared\n"));
    assert_eq!(text(&diff.stdout), "");
    let diff = run_in(&folder, "--mock ram diff dump");
    assert_eq!(diff.status.code(), Some(0), "{}", text(&diff.stderr));
}

#[test]
fn usual_layout_is_searched_in_spite_of_the_limit() {
    let folder = folder("search-limit-usual");
    far_ram(&folder);
    let output = run_in(&folder, "--mock ram search --search-limit 1 --text canary");
    assert_found(&output, &[0x7, 0x7FF_FFFF_F007]);
}
