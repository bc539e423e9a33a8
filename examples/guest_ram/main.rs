//! Looks at a guest's RAM: what is known of it, its bytes, or all of it as a sparse file.
//!
//!     cargo run --example guest_ram -- --mock FILE info
//!     cargo run --example guest_ram -- --mock FILE read 0x1000 64
//!     cargo run --example guest_ram -- --domain 5 dump OUT
//!
//! Exit codes: 0; 2 if it could not be done, with one line on stderr; 3 if a dump lacks frames that should be there.

mod args;
mod dump;
mod guest;
mod hexdump;
mod info;
mod json;
mod output;
mod progress;
mod read;
mod report;
mod scan;

use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use args::{Args, Command};
use clap::Parser;
use guest::Guest;

/// What anything that can fail returns: the error is a line for the person who has typed the command.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FAILED: u8 = 2;
const FRAMES_LOST: u8 = 3;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    match run(&args) {
        Ok(code) => code,
        // Whoever reads our output (`| head`) has seen enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let guest = Guest::open(&args.source)?;
    let mut stdout = BufWriter::new(io::stdout().lock());
    let mut code = ExitCode::SUCCESS;
    match &args.command {
        Command::Info { json } => info::info(&guest, *json, &mut stdout)?,
        Command::Read { gpa, len } => read::read(&guest, *gpa, *len, &mut stdout)?,
        Command::Dump { out } => {
            let report = dump::dump(&guest, out)?;
            writeln!(stdout, "{report}")?;
            if report.lost() > 0 {
                say(&format!("{} frames that should be RAM are lost", report.lost()));
                code = FRAMES_LOST.into();
            }
        }
    }
    stdout.flush()?;
    Ok(code)
}

/// What clap has to say: `--help` as it is, an error in one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to be told if this fails.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // Tips and the usage come after an empty line.
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    fail(lines.join("\n").trim_start_matches("error: "))
}

fn fail(message: &str) -> ExitCode {
    say(message);
    FAILED.into()
}

/// Writes to stderr, as one line whatever names of files are in the message.
fn say(message: &str) {
    let line: Vec<&str> = message.lines().map(str::trim).collect();
    let _ = writeln!(io::stderr(), "guest_ram: {}", line.join(" "));
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
