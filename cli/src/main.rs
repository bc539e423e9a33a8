//! Looks at a guest's RAM: what is known of it, where it is, its bytes, or all of it as a file.
//!
//!     cargo run -p xenmap-cli -- domains
//!     cargo run -p xenmap-cli -- --mock FILE info
//!     cargo run -p xenmap-cli -- --mock FILE read 0x1000 64
//!     cargo run -p xenmap-cli -- --domain 5 search --text canary
//!     cargo run -p xenmap-cli -- --domain 5 dump OUT
//!
//! Exit codes: 0; 1 if `search` finds nothing or `diff` a difference; 2 if it could not be done, with one line on
//! stderr; 3 if a dump lacks frames that should be there or not all of the guest was searched; 128 and the signal
//! if a dump was interrupted.

mod args;
mod called;
mod canvas;
mod chain;
mod diff;
mod domains;
mod dump;
mod guest_pages;
mod hexdump;
mod image;
mod info;
mod map;
mod palette;
mod pattern;
mod picture;
mod printable;
mod progress;
mod read;
mod search;
mod sheet;
mod source;
mod space;
mod window;
mod write;

use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use args::{Args, Command, SearchArgs};
use chain::chain;
use clap::{CommandFactory, Parser};
use image::Making;
use pattern::Pattern;
use printable::printable;
use search::Outcome;
use source::Host;
use space::Space;

/// What anything that can fail returns: the error is a line for the person who has typed the command.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

const NOTHING_FOUND: u8 = 1;
const DIFFERENT: u8 = 1;
const FAILED: u8 = 2;
const INCOMPLETE: u8 = 3;

fn main() -> ExitCode {
    if let Err(error) = dump::interrupt::survive_size_limits() {
        return fail(&chain(&*error));
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    match run(&args) {
        Ok(code) => code,
        // Whoever reads our output (`| head`) has seen enough. Of a comparison it was a difference.
        Err(error) if is_broken_pipe(&*error) => match args.command {
            Command::Diff { .. } => DIFFERENT.into(),
            _ => ExitCode::SUCCESS,
        },
        Err(error) => fail(&chain(&*error)),
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    let host = || Host::open_for_guest(&args.source);
    let mut code = ExitCode::SUCCESS;
    match &args.command {
        Command::Domains { json } => domains::domains(&Host::open(&args.source)?.memory, *json, &mut stdout)?,
        Command::Info { json } => info::info(&host()?.guest()?, *json, &mut stdout)?,
        Command::Map { search, json } => {
            if !map::map(&host()?.guest_to_touch()?, *search, *json, &mut stdout)? {
                code = INCOMPLETE.into();
            }
        }
        Command::Read { address, len, space, binary } => {
            let host = host()?;
            let guest = host.guest_to_touch()?;
            let space = Space::new(&guest, *space)?;
            read::read(&guest, &space, (*address, *len), *binary, &mut stdout)?;
        }
        Command::Write { address, bytes, space, yes } => {
            let host = host()?;
            let (guest, bytes) = (host.guest_to_touch()?, pattern::exact_bytes(bytes)?);
            let space = Space::new(&guest, *space)?;
            if !yes && !write::is_paused(&guest)? {
                write::confirm(&guest)?;
            }
            write::write(&guest, &space, (*address, &bytes), args.source.mock.is_some(), &mut stdout)?;
        }
        Command::Search { bytes, search, max, json } => {
            let pattern = Pattern::new(bytes)?;
            let mut output = search::Output::new(&mut stdout, *json, *max);
            code = match search::search(&host()?.guest_to_touch()?, &pattern, *search, &mut output)? {
                Outcome::Found => ExitCode::SUCCESS,
                Outcome::NotFound => NOTHING_FOUND.into(),
                Outcome::NotSearchedEverywhere => INCOMPLETE.into(),
            };
        }
        Command::Dump(dump) => {
            if !dump::dump(&host()?.guest_to_touch()?, dump, &args.source, &mut stdout)? {
                code = INCOMPLETE.into();
            }
        }
        Command::Diff { old, new, raw, search, json } => {
            let same = match new {
                Some(_) if source::is_given(&args.source) || *search != SearchArgs::default() => {
                    return Err("two dumps are compared without a guest".into());
                }
                Some(new) => Some(diff::dumps(old, new, *raw, *json, &mut stdout)?),
                None => diff::dump_and_guest(old, *raw, &host()?.guest_to_touch()?, *search, *json, &mut stdout)?,
            };
            code = match same {
                Some(true) => ExitCode::SUCCESS,
                Some(false) => DIFFERENT.into(),
                None => INCOMPLETE.into(),
            };
        }
        Command::Picture { out, search, since, raw } => {
            let since = since.as_deref().map(|dump| (dump, Making::new(*raw, "--raw")));
            if !picture::picture(&host()?.guest_to_touch()?, out, *search, since, &mut stdout)? {
                code = INCOMPLETE.into();
            }
        }
        Command::Completions { shell } => {
            // Not straight to stdout: clap_complete panics if that fails.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "xenmap", &mut script);
            stdout.write_all(&script)?;
        }
        Command::Worker => {
            dump::worker::begin()?;
            dump::worker::work(&host()?.guest()?)?;
        }
    }
    match stdout.flush() {
        // All is known by now, whoever reads it.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(code),
    }
}

/// What clap has to say: `--help` as it is, an error in one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to be told if this fails.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    // Tips and the usage come last. An argument that is quoted before may hold anything, empty lines too.
    let mut message = text.as_str();
    for last in ["\n\nFor more information", "\n\nUsage:", "\n\n  tip:"] {
        message = message.rsplit_once(last).map_or(message, |(before, _)| before);
    }
    let lines: Vec<&str> = message.lines().map(str::trim).collect();
    fail(lines.join(" ").trim_start_matches("error: "))
}

fn fail(message: &str) -> ExitCode {
    say(message);
    FAILED.into()
}

/// Writes a line to stderr. Names of files and domains in the message may contain anything.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "xenmap: {}", printable(message.trim_end()));
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
