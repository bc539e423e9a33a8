//! The man pages and completions in `share`, which are made from the command line that clap parses.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValue;
use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::{examples, usage};

#[test]
fn files_in_share_are_up_to_date() {
    let share = Path::new(env!("CARGO_MANIFEST_DIR")).join("share");
    let expected = files();
    if std::env::var_os("UPDATE_SHARE").is_some() {
        let _ = fs::remove_dir_all(&share);
        for (name, content) in &expected {
            let path = share.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
    let mut found = BTreeMap::new();
    read_into(&mut found, &share, Path::new(""));
    let names = |files: &BTreeMap<PathBuf, String>| files.keys().cloned().collect::<Vec<_>>();
    let advice = "run: UPDATE_SHARE=1 cargo test -p xenmap-cli --test tool files_in_share";
    assert_eq!(names(&found), names(&expected), "{advice}");
    for (name, content) in expected {
        assert!(found[&name] == content, "cli/share/{} is stale; {advice}", name.display());
    }
}

/// Reads all files below a folder, by their names in it.
fn read_into(files: &mut BTreeMap<PathBuf, String>, folder: &Path, name: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), name.join(entry.unwrap().file_name()));
        if path.is_dir() {
            read_into(files, &path, &name);
        } else {
            files.insert(name, fs::read_to_string(path).unwrap());
        }
    }
}

/// Returns what `share` should hold.
fn files() -> BTreeMap<PathBuf, String> {
    let command = usage::command();
    let mut files = BTreeMap::new();
    for (shell, name) in [
        (Shell::Bash, "bash-completion/completions/xenmap"),
        (Shell::Zsh, "zsh/site-functions/_xenmap"),
        (Shell::Fish, "fish/vendor_completions.d/xenmap.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), "xenmap", &mut script);
        files.insert(name.into(), String::from_utf8(script).unwrap());
    }
    for command in command.get_subcommands().filter(|command| command.get_name() != "help").chain([&command]) {
        let page = page(command);
        let title = title(command.get_name());
        files.insert(format!("man/man1/{title}.1").into(), String::from_utf8(page).unwrap());
    }
    files
}

/// Returns the title of the page of a command.
fn title(name: &str) -> String {
    if name == "xenmap" { name.to_owned() } else { format!("xenmap-{name}") }
}

/// Returns the man page of a command.
fn page(command: &Command) -> Vec<u8> {
    let name = command.get_name();
    let is_main = name == "xenmap";
    let key = if is_main { "" } else { name };
    let usage = command.clone().render_usage().to_string();
    let command = command
        .clone()
        .display_name(title(name))
        .override_usage(usage.trim_start_matches("Usage: ").to_owned())
        .subcommand_help_heading("COMMANDS")
        .mut_subcommands(|command| if command.get_name() == "help" { command.hide(true) } else { command })
        .mut_args(for_a_page);
    let man = Man::new(command);
    let mut page = Vec::new();
    // Not `render_title`, which writes no date where it should write an empty one.
    let version = env!("CARGO_PKG_VERSION");
    writeln!(page, ".TH {} 1 \"\" \"xenmap {version}\" \"xenmap manual\"", title(name)).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    if is_main {
        man.render_subcommands_section(&mut page).unwrap();
    }
    man.render_options_section(&mut page).unwrap();

    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in examples::exit_codes(key) {
        entry(&mut roff, code, meaning);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for (variable, meaning) in ENVIRONMENT {
        if *variable != "TMPDIR" || matches!(name, "xenmap" | "diff" | "picture") {
            entry(&mut roff, variable, meaning);
        }
    }
    if is_main {
        roff.control("SH", ["FILES"]);
        for (name, meaning) in FILES {
            entry(&mut roff, name, meaning);
        }
    }
    roff.control("SH", ["EXAMPLES"]);
    for (line, purpose) in examples::of(key) {
        roff.text([roman(format!("{purpose}:"))]);
        roff.control("PP", []).control("RS", ["4"]).control("nf", []);
        roff.text([bold(*line)]);
        roff.control("fi", []).control("RE", []).control("PP", []);
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = if is_main { ["xenmap-domains", "xenmap-dump"] } else { ["xenmap", "xenmap-domains"] };
    let others = others.into_iter().filter(|other| *other != title(name));
    let mut see: Vec<_> = others.flat_map(|other| [bold(other), roman("(1), ")]).collect();
    see.extend([bold("xl"), roman("(1)")]);
    roff.text(see);
    roff.to_writer(&mut page).unwrap();
    page.flush().unwrap();
    page
}

/// Gives arguments a section of their own, and possible values a single line if none of them has a description.
fn for_a_page(arg: Arg) -> Arg {
    let heading = if arg.is_positional() { "Arguments" } else { "Options" };
    let arg = if arg.get_help_heading().is_none() { arg.help_heading(heading) } else { arg };
    let values = arg.get_possible_values();
    if values.is_empty() || values.iter().any(|value| value.get_help().is_some()) {
        return arg;
    }
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let names: Vec<&str> = values.iter().map(PossibleValue::get_name).collect();
    arg.long_help(format!("{help} [possible values: {}]", names.join(", "))).hide_possible_values(true)
}

fn entry(roff: &mut Roff, name: &str, meaning: &str) {
    roff.control("TP", []);
    roff.text([bold(name)]);
    roff.text([roman(meaning)]);
}

const ENVIRONMENT: &[(&str, &str)] = &[
    ("NO_COLOR", "If set and not empty, output has no colors unless --color always is given."),
    ("CLICOLOR_FORCE", "If set and not 0, output has colors even in a pipe."),
    ("TMPDIR", "The directory to which compressed dumps are decompressed; /var/tmp by default."),
];

const FILES: &[(&str, &str)] =
    &[("/dev/xen/privcmd", "The device through which guests are mapped. Only root can open it.")];
