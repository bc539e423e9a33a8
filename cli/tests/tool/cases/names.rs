//! Names of files and domains that a terminal would obey.

use std::fs;

use xenmap::mock::MockHost;
use xenmap::{Guest, GuestKind};

use crate::harness::*;
use crate::{domains, info};

/// An escape sequence in C0 and one in C1, a line break, DEL, and characters that change the direction of text.
const NAME: &str = "a\u{1b}[31mb\nc\r\u{9b}32m\u{7f}\u{85}\u{202e}d\u{2066}e\u{2069}\u{200f}\u{2028}f\té";
const ESCAPED: &str = r"a\u{1b}[31mb\nc\r\u{9b}32m\u{7f}\u{85}\u{202e}d\u{2066}e\u{2069}\u{200f}\u{2028}f\té";

#[test]
fn names_of_files_are_escaped_in_every_message() {
    let folder = folder("names");
    ram(&folder, &[(0, CANARY)]);
    fs::write(folder.join(NAME), "no dump").unwrap();
    for args in [
        vec!["--mock", "ram", "dump", NAME],
        vec!["--mock", "ram", "picture", NAME],
        vec!["--mock", "ram", "diff", NAME],
        vec!["--mock", "ram", "picture", "--since", NAME, "new"],
        vec!["--mock", NAME, "dump", "missing/out"],
        vec!["--domain", NAME, "info"],
    ] {
        let output = tool().current_dir(&folder).args(&args).output().unwrap();
        assert_safe(refusal(&output));
    }
    for args in [vec!["--mock", "missing", "--mock-kind", NAME, "info"], vec![NAME]] {
        let output = tool().current_dir(&folder).args(&args).output().unwrap();
        let error = usage_error(&output);
        error.lines().for_each(|line| _ = assert_safe(line));
        assert!(error.contains(ESCAPED), "{error}");
    }
    let missing = format!("{NAME}/out");
    let output = tool().current_dir(&folder).args(["--mock", "ram", "dump", &missing]).output().unwrap();
    assert_eq!(refusal(&output), format!("cannot create {ESCAPED}/out: Not a directory (os error 20)"));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn names_of_domains_are_escaped_as_text_and_as_json() {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, 1);
    domain.set_name(NAME);
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    for as_json in [false, true] {
        let (mut list, mut one) = (Vec::new(), Vec::new());
        domains::domains(&memory, as_json, &mut list).unwrap();
        info::info(&guest, as_json, &mut one).unwrap();
        let (list, one) = (text(&list), text(&one));
        if as_json {
            let list: serde_json::Value = serde_json::from_str(assert_safe(list.trim_end())).unwrap();
            let one: serde_json::Value = serde_json::from_str(assert_safe(one.trim_end())).unwrap();
            assert_eq!((&list["domains"][1]["name"], &one["name"]), (&NAME.into(), &NAME.into()));
        } else {
            list.lines().chain(one.lines()).for_each(|line| _ = assert_safe(line));
            assert!(list.ends_with(&format!("  {ESCAPED}\n")), "{list:?}");
            assert!(one.contains(&format!("name:                {ESCAPED}\n")), "{one:?}");
        }
    }
}

/// Checks that a line has no character that a terminal obeys.
#[track_caller]
fn assert_safe(line: &str) -> &str {
    let obeyed = |c: char| c.is_control() || "\u{202e}\u{2066}\u{2069}\u{200f}\u{2028}".contains(c);
    assert_eq!(line.chars().find(|c| obeyed(*c)), None, "{line:?}");
    line
}
