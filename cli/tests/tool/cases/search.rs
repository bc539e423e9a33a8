//! `xenmap search`, run as a person does.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use xenmap::FRAME_SIZE;

use crate::harness::*;

/// Frames that are mapped at a time.
const WINDOW: u64 = 4096;

fn search(folder: &Path, args: &[&str]) -> Output {
    tool().current_dir(folder).args(["--mock", "ram", "search"]).args(args).output().unwrap()
}

/// Checks that a search found these addresses and nothing else.
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
    // At the start, across a page border, a border of what is copied at a time, and one of what is mapped; at the end.
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
fn search_finds_what_overlaps() {
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
fn search_stops_after_the_most_that_are_wanted() {
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
    let lines = text(&output.stdout).lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let expected = [0x17, frame(7) + 7].map(|address| serde_json::json!({ "address": address }));
    assert_eq!(lines.collect::<Vec<_>>(), expected);
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
    // Nobody reads the rest, which is no error.
    drop(lines);
    assert!(child.wait().unwrap().success());
}

#[test]
fn search_for_what_is_everywhere_is_refused() {
    let folder = folder("search-bad");
    ram(&folder, &[(0, CANARY)]);
    for (args, expected) in [
        (["--text", ""], "there is nothing to look for"),
        (["--hex", " "], "there is nothing to look for"),
        (["--hex", "?? ??"], "there is nothing to look for"),
        (["--hex", "de a"], "half of one"),
        (["--hex", "xy"], "x is no hexadecimal digit"),
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

/// Checks that a command came to its end at the limit, and said so; returns what it said.
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
    let map: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
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
fn usual_layout_is_searched_whatever_the_limit() {
    let folder = folder("search-limit-usual");
    far_ram(&folder);
    let output = run_in(&folder, "--mock ram search --search-limit 1 --text canary");
    assert_found(&output, &[0x7, 0x7FF_FFFF_F007]);
}
