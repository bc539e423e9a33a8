//! The command line: options of the guest, usage lines, help, version and colors.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Output;

use nix::pty::{OpenptyResult, openpty};
use xenmap::FRAME_SIZE;

use crate::harness::*;
use crate::{examples, usage};

/// Returns the names of the commands that the help lists.
fn commands() -> Vec<String> {
    let help = run(["-h"]).stdout;
    let lines = text(&help).lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let names: Vec<String> = lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert!(names.len() > 5, "{names:?}");
    names.into_iter().filter(|name| name != "help").collect()
}

/// Runs the tool with these variables.
fn run_with(variables: &[(&str, &str)], folder: &Path, args: &str) -> Output {
    tool().envs(variables.iter().copied()).current_dir(folder).args(args.split_whitespace()).output().unwrap()
}

/// Runs the tool on a terminal with these variables, and returns what the terminal receives.
fn run_on_terminal(variables: &[(&str, &str)], folder: &Path, args: &str) -> String {
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let mut command = tool();
    command.envs(variables.iter().copied()).current_dir(folder).args(args.split_whitespace());
    let mut child = command.stdout(slave.try_clone().unwrap()).stderr(slave).spawn().unwrap();
    // Closes the copies of the terminal, so that reading ends with the tool.
    drop(command);
    let mut shown = Vec::new();
    // Linux ends it with EIO.
    let _ = File::from(master).read_to_end(&mut shown);
    child.wait().unwrap();
    String::from_utf8(shown).unwrap()
}

#[test]
fn options_of_the_guest_go_before_or_after_the_command() {
    let folder = folder("usage-order");
    ram(&folder, &[(0, CANARY)]);
    for (options, command) in [
        ("--mock ram", "info"),
        ("--mock ram", "read 0 16"),
        ("--mock ram --mock-raw", "map --json"),
        ("--mock ram --mock-kind pv", "domains"),
        ("--mock ram --pod-populate", "search --text canary"),
        ("--mock ram --color always", "domains"),
    ] {
        let before = run_in(&folder, &format!("{options} {command}"));
        let after = run_in(&folder, &format!("{command} {options}"));
        assert!(before.status.success() && !before.stdout.is_empty(), "{}", text(&before.stderr));
        assert_eq!(before, after, "{options} {command}");
    }
    let split = run_in(&folder, "--mock ram info --mock-kind pv --json");
    assert_eq!(json(&split)["kind"], "pv");
}

#[test]
fn options_of_the_guest_that_do_not_fit_are_usage_errors() {
    let folder = folder("usage-guest");
    let missing = "the following required arguments were not provided:\n  ";
    for (args, expected) in [
        ("--mock ram --domain 3 info", "the argument '--mock <FILE>' cannot be used with '--domain <DOMAIN>'"),
        ("--mock ram info --domain 3", "the argument '--mock <FILE>' cannot be used with '--domain <DOMAIN>'"),
        ("--mock-kind pv info", &format!("{missing}--mock <FILE>")),
        ("info --mock-raw --domain 3", &format!("{missing}--mock <FILE>")),
        ("domains --mock-raw", &format!("{missing}--mock <FILE>")),
        ("info", &format!("{missing}<--domain <DOMAIN>|--mock <FILE>|--dump <FILE>>")),
        ("write 0 --text x", &format!("{missing}<--domain <DOMAIN>|--mock <FILE>>")),
        ("--dump-raw --mock ram info", &format!("{missing}--dump <FILE>")),
        ("diff old", &format!("{missing}<NEW|--domain <DOMAIN>|--mock <FILE>>")),
        ("diff old new --mock ram", "the argument '[NEW]' cannot be used with '--mock <FILE>'"),
        ("--domain 3 diff old new", "the argument '[NEW]' cannot be used with '--domain <DOMAIN>'"),
        ("diff old new --thorough", "the argument '[NEW]' cannot be used with '--thorough'"),
        ("diff old new --search-limit 1", "the argument '[NEW]' cannot be used with '--search-limit <SECONDS>'"),
        ("diff old new --pod-populate", "the argument '[NEW]' cannot be used with '--pod-populate'"),
        ("diff old new --mock-raw", "the argument '[NEW]' cannot be used with '--mock-raw'"),
        ("domains --domain 3", "the subcommand 'domains' cannot be used with '--domain <DOMAIN>'"),
        ("--mock ram completions bash", "the subcommand 'completions' cannot be used with '--mock <FILE>'"),
    ] {
        let output = run_in(&folder, args);
        let error = usage_error(&output);
        assert!(error.starts_with(expected) && error.contains("\n\nUsage: xenmap "), "{args}: {error}");
    }
}

#[test]
fn command_without_its_guest_shows_a_line_to_run() {
    for command in
        ["info", "read 0 16", "write 0 --text x", "search --text x", "dump out", "diff old", "picture out", "mount dir"]
    {
        let output = run(command.split(' '));
        let error = usage_error(&output);
        let name = command.split(' ').next().unwrap();
        assert!(error.contains(&format!("tip: for example, xenmap {name} --domain ")), "{error}");
        assert!(error.contains("tip: 'xenmap domains' lists the domains of this host"), "{error}");
    }
}

/// Fills in the placeholders of a usage line.
fn filled_in(line: &str, number: usize) -> String {
    let mut line = line.replace("[OPTIONS]", "").replace("...", "");
    // The first of several options, one of which is required.
    while let Some(start) = line.find("<--") {
        let alternatives = &line[start + 1..];
        let first = alternatives.split(['|']).next().unwrap().to_owned();
        let end = alternatives.find(if first.contains('<') { ">>" } else { ">" }).unwrap();
        let rest = alternatives[end..].trim_start_matches('>').to_owned();
        line = format!("{}{first}{rest}", &line[..start]);
    }
    let out = format!("out-{number}");
    for (placeholder, value) in [
        ("<FILE>", "ram"),
        ("<DOMAIN>", "31000"),
        ("<ADDRESS>", "0"),
        ("<LEN>", "16"),
        ("<TEXT>", "x"),
        ("<OUT>", &out),
        ("<OLD>", "ram"),
        ("<NEW>", "ram"),
        ("<SHELL>", "bash"),
        // Not empty: a mount would last until it is ended.
        ("<DIR>", "."),
    ] {
        line = line.replace(placeholder, value);
    }
    assert!(!line.contains(['<', '[']), "a placeholder without a value: {line}");
    line
}

#[test]
fn usage_lines_can_be_run() {
    let folder = folder("usage-lines");
    ram(&folder, &[(0, &pattern(FRAME_SIZE))]);
    for command in commands() {
        for option in ["-h", "--help"] {
            let help = run([&command, option]).stdout;
            let lines = text(&help).lines().skip_while(|line| !line.starts_with("Usage: "));
            let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
            assert!(!lines.is_empty(), "{}", text(&help));
            for (number, line) in lines.iter().enumerate() {
                let line = line.trim_start_matches("Usage:").trim_start();
                let args = filled_in(line, number);
                let args = args.strip_prefix("xenmap ").unwrap();
                assert!(args.starts_with(&command), "{args}");
                let output = run_in(&folder, args);
                let stderr = text(&output.stderr);
                assert!(!stderr.starts_with("error: "), "{args}: {stderr}");
                // A simulated guest is never written to, and the second --help finds the files of the first.
                let refusals = ["nothing was written", "output exists", "it is not empty"];
                let is_refused = refusals.iter().any(|refusal| stderr.contains(refusal));
                let succeeds = output.status.code() < Some(2) || is_refused;
                assert!(succeeds || !args.contains("--mock"), "{args}: {stderr}");
            }
        }
    }
}

#[test]
fn examples_are_command_lines() {
    let folder = folder("usage-examples");
    let names = commands();
    for command in names.iter().map(String::as_str).chain([""]) {
        for (example, _) in examples::of(command) {
            assert!(example.starts_with(&format!("xenmap {command}")), "{}", example);
            let line = example.split([">", "|"].map(|end| format!(" {end}"))[0].as_str()).next().unwrap();
            let line = line.split(" | ").next().unwrap();
            let script = format!("xenmap() {{ printf '%s\\n' xenmap \"$@\"; }}; {line}");
            let words = shell(&folder, &script).output().unwrap().stdout;
            let parsed = usage::parse(text(&words).lines().map(OsString::from));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn worker_is_hidden() {
    for args in [
        vec!["--help"],
        vec!["help"],
        vec!["--color", "auto"],
        vec!["work"],
        vec!["help", "worker"],
        vec!["completions", "bash"],
        vec!["completions", "zsh"],
        vec!["completions", "fish"],
    ] {
        let output = run(&args);
        let shown = [output.stdout, output.stderr].concat();
        // `dump --copy-by workers` is not hidden.
        let shown = text(&shown).replace("workers", "").replace("unrecognized subcommand 'worker'", "");
        assert!(!shown.is_empty() && !shown.contains("worker"), "{args:?}: {shown}");
    }
}

#[test]
fn no_command_is_an_error_that_shows_the_help() {
    let output = run([""; 0]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
    assert!(text(&output.stderr).contains("Usage: xenmap [OPTIONS] <COMMAND>"));
}

#[test]
fn help_is_not_an_error() {
    let output = run(["--help"]);
    assert!(text(&output.stdout).contains("Usage: xenmap [OPTIONS] <COMMAND>"));
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    assert_eq!(run(["help", "read"]), run(["read", "--help"]));
}

#[test]
fn version_is_that_of_the_crate() {
    for option in ["-V", "--version"] {
        let output = run([option]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
        assert_eq!(text(&output.stdout), concat!("xenmap ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}

#[test]
fn help_is_wrapped_to_the_width_of_the_terminal() {
    let folder = folder("usage-width");
    for command in commands() {
        for option in ["-h", "--help"] {
            let help = |columns| run_with(&[("COLUMNS", columns)], &folder, &format!("{command} {option}")).stdout;
            let (narrow, wide) = (help("60"), help("100"));
            // Usage lines, and the examples after the options, are to be copied, so they are not wrapped.
            let (head, options) = text(&narrow).split_once("Options:\n").unwrap();
            let options = options.split("\nExamples:\n").next().unwrap();
            let head = head.lines().filter(|line| !line.contains("xenmap "));
            let longest = head.chain(options.lines()).max_by_key(|line| line.len()).unwrap();
            assert!(longest.len() <= 60, "{command}: {longest}");
            assert!(narrow != wide, "{command}");
        }
    }
}

/// Output to stdout, help, an error of clap and one of our own.
const COLORED: [&str; 6] =
    ["domains --mock ram", "map --mock ram", "info --mock ram", "read -h", "read --mock ram", "info --mock missing"];

fn has_escape(output: &Output) -> bool {
    [&output.stdout[..], &output.stderr].concat().contains(&b'\x1b')
}

#[test]
fn terminal_gets_colors_unless_they_are_off() {
    let folder = folder("usage-terminal");
    ram(&folder, &[(0, CANARY)]);
    for args in COLORED {
        for (variables, options, expected) in [
            (&[("TERM", "xterm")][..], "", true),
            (&[("TERM", "xterm")], "--color auto", true),
            (&[("TERM", "xterm")], "--color never", false),
            (&[("TERM", "xterm"), ("NO_COLOR", "1")], "", false),
            (&[("TERM", "dumb")], "", false),
        ] {
            let shown = run_on_terminal(variables, &folder, &format!("{args} {options}"));
            assert!(!shown.is_empty());
            assert_eq!(shown.contains('\x1b'), expected, "{args} {options} {variables:?}: {shown}");
        }
    }
}

#[test]
fn pipe_gets_colors_only_if_they_are_forced() {
    let folder = folder("usage-color");
    ram(&folder, &[(0, CANARY)]);
    for args in COLORED {
        for (variables, options, expected) in [
            (&[][..], "", false),
            (&[], "--color auto", false),
            (&[], "--color always", true),
            (&[("NO_COLOR", "1")], "--color=always", true),
            (&[("CLICOLOR_FORCE", "1")], "", true),
            (&[("CLICOLOR_FORCE", "1")], "--color never", false),
            (&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], "", false),
            (&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], "--color auto", false),
        ] {
            // Before the command, and after it.
            for args in [format!("{options} {args}"), format!("{args} {options}")] {
                let output = run_with(variables, &folder, &args);
                assert!(!output.stdout.is_empty() || !output.stderr.is_empty());
                assert_eq!(has_escape(&output), expected, "{args} {variables:?}");
            }
        }
    }
}

#[test]
fn colors_do_not_change_the_text() {
    let folder = folder("usage-color-text");
    ram(&folder, &[(0, CANARY)]);
    for args in COLORED {
        let (plain, colored) = (run_in(&folder, args), run_in(&folder, &format!("{args} --color always")));
        let stripped = |bytes: &[u8]| anstream::adapter::strip_str(text(bytes)).to_string();
        assert_eq!(text(&plain.stdout), stripped(&colored.stdout), "{args}");
        assert_eq!(text(&plain.stderr), stripped(&colored.stderr), "{args}");
    }
}

#[test]
fn raw_bytes_are_not_written_to_a_terminal() {
    let folder = folder("usage-binary");
    ram(&folder, &[(0, CANARY)]);
    let shown = run_on_terminal(&[], &folder, "read --mock ram 0 16 --binary");
    assert!(shown.contains("refusing to write raw bytes to a terminal"), "{shown}");
    assert!(!shown.contains("canary"), "{shown}");
}
