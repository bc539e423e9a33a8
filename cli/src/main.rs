//! Inspects, searches, compares and dumps the RAM of Xen guests.
//!
//!     cargo run -p xenmap-cli -- domains
//!     cargo run -p xenmap-cli -- read --mock FILE 0x1000 64
//!     cargo run -p xenmap-cli -- dump --domain 5 --pause OUT
//!
//! `examples.rs` has more examples, and the exit codes.

mod args;
mod bytes;
mod called;
mod canvas;
mod chain;
mod diff;
mod domains;
mod dump;
mod examples;
mod hexdump;
mod image;
mod info;
mod kernel;
mod map;
mod mount;
mod number;
mod pages;
mod palette;
mod parts;
mod pattern;
mod picture;
mod printable;
mod progress;
mod ram;
mod read;
mod registers;
mod search;
mod sheet;
mod source;
mod space;
mod symbols;
mod translate;
mod usage;
mod virtual_map;
mod vmcoreinfo;
mod window;
mod write;

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;
use std::slice;

use anstyle::Style;
use args::{Args, Command, SpaceArgs, SymbolArgs, WorkerArgs};
use chain::chain;
use clap::{ColorChoice, Parser, ValueEnum};
use image::Making;
use kernel::Kernel;
use pattern::Pattern;
use printable::printable;
use ram::Ram;
use search::Outcome;
use source::Host;
use space::Space;
use symbols::Address;

/// The result of anything that can fail: the error becomes one line on stderr.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

const NOTHING_FOUND: u8 = 1;
const DIFFERENT: u8 = 1;
const FAILED: u8 = 2;
const INCOMPLETE: u8 = 3;

fn main() -> ExitCode {
    if let Err(error) = dump::interrupt::survive_size_limits() {
        return fail(&chain(&*error));
    }
    if env::args_os().nth(1).is_some_and(|first| first == "worker") {
        return worker();
    }
    let args = match usage::parse(env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            palette::choose(color_of(env::args_os()));
            return match error.print() {
                // Nothing can be done if printing an error fails.
                _ if error.use_stderr() => FAILED.into(),
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => fail(&e.to_string()),
                _ => ExitCode::SUCCESS,
            };
        }
    };
    palette::choose(args.color);
    match run(&args) {
        Ok(code) => code,
        // The reader of our output (`| head`) has seen enough. What `diff` prints first is a difference.
        Err(error) if is_broken_pipe(&*error) => match args.command {
            Command::Diff { .. } => DIFFERENT.into(),
            _ => ExitCode::SUCCESS,
        },
        Err(error) => fail(&chain(&*error)),
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    let host = || Host::open(&args.source);
    let ram = || source::ram(&args.source);
    let mut code = ExitCode::SUCCESS;
    match &args.command {
        Command::Domains { json } => domains::domains(&host()?.memory, *json, &mut stdout)?,
        Command::Info { json } => match source::dump_without_pages(&args.source)? {
            Some(image) => info::dump_info(&image, *json, &mut stdout)?,
            None => info::info(&host()?.guest()?, *json, &mut stdout)?,
        },
        Command::Map { search, space, json } => {
            let ram = ram()?;
            let complete = match Space::new(&ram, space, &Kernel::new(&ram))? {
                Space::Physical => map::map(&ram, *search, *json, &mut stdout)?,
                Space::Virtual(tables) => virtual_map::virtual_map(&ram, &tables, *json, &mut stdout)?,
            };
            if !complete {
                code = INCOMPLETE.into();
            }
        }
        Command::Read { binary: true, .. } if io::stdout().is_terminal() => {
            return Err(
                "refusing to write raw bytes to a terminal: redirect standard output, or leave out --binary".into()
            );
        }
        Command::Read { address, len, space, symbols, binary, json } => {
            let ram = ram()?;
            let (space, addresses) = place(&ram, slice::from_ref(address), space, symbols)?;
            let format = read::Format::new(*binary, *json);
            if !read::read(&ram, &space, (addresses[0], *len), format, &mut stdout)? {
                code = INCOMPLETE.into();
            }
        }
        Command::Translate { addresses, space, symbols, json } => {
            let ram = ram()?;
            let (space, addresses) = place(&ram, addresses, space, symbols)?;
            if !translate::translate(&ram, &space, &addresses, *json, &mut stdout)? {
                code = FAILED.into();
            }
        }
        Command::Write { address, bytes, space, symbols, yes } => {
            let (ram, bytes) = (ram()?, pattern::exact_bytes(bytes)?);
            let (space, addresses) = place(&ram, slice::from_ref(address), space, symbols)?;
            if let Some(guest) = ram.guest().filter(|_| !yes)
                && !write::is_paused(guest)?
            {
                write::confirm(guest)?;
            }
            write::write(&ram, &space, (addresses[0], &bytes), args.source.mock.is_some(), &mut stdout)?;
        }
        Command::Search { patterns, search, context, max, json } => {
            let patterns = Pattern::all(patterns)?;
            let format = search::Format { as_json: *json, context: *context, max: *max };
            code = match search::search(&ram()?, &patterns, *search, format, &mut stdout)? {
                Outcome::Found => ExitCode::SUCCESS,
                Outcome::NotFound => NOTHING_FOUND.into(),
                Outcome::NotSearchedEverywhere => INCOMPLETE.into(),
            };
        }
        Command::Dump(dump) => {
            if !dump::dump(&ram()?, dump, &args.source, &mut stdout)? {
                code = INCOMPLETE.into();
            }
        }
        Command::Diff { old, new, raw, search, json } => {
            let same = match new {
                Some(new) => Some(diff::dumps(old, new, *raw, *json, &mut stdout)?),
                None => diff::dump_and_ram(old, *raw, &ram()?, *search, *json, &mut stdout)?,
            };
            code = match same {
                Some(true) => ExitCode::SUCCESS,
                Some(false) => DIFFERENT.into(),
                None => INCOMPLETE.into(),
            };
        }
        Command::Picture { out, search, since, raw } => {
            let since = since.as_deref().map(|dump| (dump, Making::new(*raw, "--raw")));
            if !picture::picture(&ram()?, out, *search, since, &mut stdout)? {
                code = INCOMPLETE.into();
            }
        }
        Command::Mount { directory, search } => {
            if !mount::mount(ram()?, directory, *search, &mut stdout)? {
                code = INCOMPLETE.into();
            }
        }
        Command::Completions { shell } => {
            // Not straight to stdout: clap_complete panics on errors.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut usage::command(), "xenmap", &mut script);
            stdout.write_all(&script)?;
        }
    }
    match stdout.flush() {
        // The exit code holds even if nobody reads the output.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(code),
    }
}

/// Returns the space of some addresses, and their numbers.
fn place(
    ram: &Ram,
    addresses: &[Address],
    space: &SpaceArgs,
    SymbolArgs { symbols }: &SymbolArgs,
) -> Result<(Space, Vec<u64>)> {
    let kernel = Kernel::new(ram);
    let addresses = symbols::resolve(addresses, symbols.as_deref(), &kernel)?;
    Ok((Space::new(ram, space, &kernel)?, addresses))
}

/// Runs as a process that `dump --copy-by workers` has started.
fn worker() -> ExitCode {
    let work = || {
        // The dump that has started this process prints its errors, without the prefix.
        palette::choose(ColorChoice::Never);
        // The first argument stands for the name of the program.
        let args = WorkerArgs::try_parse_from(env::args_os().skip(1))?;
        dump::worker::begin()?;
        dump::worker::work(&Ram::Guest(Host::open(&args.source)?.guest()?))
    };
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&chain(&*error)),
    }
}

/// Finds --color in a command line that clap returns no arguments of: it has an error, or asks for help.
fn color_of(arguments: impl Iterator<Item = OsString>) -> ColorChoice {
    let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    let separate = arguments.windows(2).filter(|pair| pair[0] == "--color").map(|pair| pair[1].as_str());
    let joined = arguments.iter().filter_map(|argument| argument.strip_prefix("--color="));
    separate.chain(joined).find_map(|value| ColorChoice::from_str(value, false).ok()).unwrap_or_default()
}

fn fail(message: &str) -> ExitCode {
    write_line(message, palette::ERROR);
    FAILED.into()
}

/// Writes a line to stderr.
fn say(message: &str) {
    write_line(message, Style::new());
}

/// Writes a line to stderr. The names of files and domains in the message may contain anything.
fn write_line(message: &str, prefix: Style) {
    let line = format!("{prefix}xenmap:{prefix:#} {}\n", printable(message.trim_end()));
    // Nothing can be done if this fails.
    let _ = anstream::stderr().write_all(line.as_bytes());
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
