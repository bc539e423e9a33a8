//! Maps a guest's RAM, prints bytes of it, or dumps it to a file.
//!
//!     cargo run --example guest_ram -- --mock FILE map
//!     cargo run --example guest_ram -- --mock FILE read 0x1000 64
//!     guest_ram 5 dump OUT
//!
//! With a domain number, it accesses that guest on the local Xen host (run it as root in dom0). With `--mock`, it needs
//! no Xen: the file becomes the RAM of a guest on a simulated host. Everything else is the same for both.
//!
//! The crate `xenmap-cli` is a tool that does this more completely: it also takes names, writes other formats, and
//! handles frames that disappear.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::iter;
use std::ops::Range;
use std::process::ExitCode;

use xenmap::mock::MockHost;
use xenmap::{Access, Domid, ForeignMemory, Guest, NumberRange, Protection};

const USAGE: &str = "usage: guest_ram (--mock FILE | DOMID) (map | read ADDRESS LEN | dump OUT)";

/// Bytes to read at a time, so that a large LEN needs no more memory.
const CHUNK: u64 = 1 << 20;

/// Frames to map at a time: a mapping needs page tables and, on some hosts, memory of dom0's own.
const WINDOW: usize = 4096;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

enum Command<'a> {
    Map,
    Read { address: u64, len: u64 },
    Dump { out: &'a str },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest_ram: {}", chain(&*error));
            ExitCode::from(2)
        }
    }
}

/// Formats an error and its causes. No error's text repeats that of its cause.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn run() -> Result<()> {
    let args: Option<Vec<String>> = env::args_os().skip(1).map(|arg| arg.into_string().ok()).collect();
    let args = args.ok_or("an argument is not UTF-8")?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();

    // Check all arguments before opening anything.
    match args.as_slice() {
        ["--mock", file, command @ ..] => {
            let command = parse_command(command)?;
            let (memory, domid) = simulate(file).map_err(|e| format!("cannot use {file:?}: {}", chain(&*e)))?;
            execute(&command, &memory, domid)
        }
        [domid, command @ ..] => {
            let command = parse_command(command)?;
            let domid: Domid = domid.parse().map_err(|e| format!("{domid:?} is not a domain number: {e}; {USAGE}"))?;
            execute(&command, &ForeignMemory::open()?, domid)
        }
        [] => Err(USAGE.into()),
    }
}

fn parse_command<'a>(args: &[&'a str]) -> Result<Command<'a>> {
    match *args {
        ["map"] => Ok(Command::Map),
        ["read", address, len] => {
            let (address, len) = (parse_number(address)?, parse_number(len)?);
            if len == 0 {
                return Err("LEN is 0: there is nothing to read".into());
            }
            // The code below adds them.
            address.checked_add(len).ok_or("ADDRESS and LEN reach past the last address")?;
            Ok(Command::Read { address, len })
        }
        ["dump", out] => Ok(Command::Dump { out }),
        _ => Err(USAGE.into()),
    }
}

/// Parses a number: decimal, or hexadecimal after 0x.
fn parse_number(text: &str) -> Result<u64> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Ok(number.map_err(|e| format!("{text:?} is not a number such as 4096 or 0x1000: {e}"))?)
}

/// Creates a guest whose RAM is a copy of a file. It lives as long as the handle.
fn simulate(file: &str) -> Result<(ForeignMemory, Domid)> {
    let host = MockHost::new();
    let domain = host.create_domain_from_file(&File::open(file)?)?;
    Ok((host.open()?, domain.domid()))
}

fn execute(command: &Command, memory: &ForeignMemory, domid: Domid) -> Result<()> {
    let guest = Guest::open(memory, domid)?;
    // Touching frames that a populate-on-demand guest has not used yet may crash the guest.
    guest.check_populated()?;
    match *command {
        Command::Map => map(&guest),
        Command::Read { address, len } => read(&guest, address, len),
        Command::Dump { out } => dump(&guest, out),
    }
}

/// Prints the guest's RAM map: the first and the last address of each extent, and its kind.
fn map(guest: &Guest) -> Result<()> {
    let mut stdout = io::stdout().lock();
    for extent in guest.ram_map()?.extents() {
        let Range { start, end } = extent.pfns.addresses();
        writeln!(stdout, "{start:#x} to {:#x} {:?}", end - 1, extent.kind)?;
    }
    Ok(())
}

/// Prints bytes in rows of 16, each row after its address.
fn read(guest: &Guest, address: u64, len: u64) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let end = address + len;
    let mut start = address;
    while start < end {
        // A copy, because the guest may change its RAM at any time. The range need not be aligned to frames.
        let mut bytes = vec![0; usize::try_from(CHUNK.min(end - start))?];
        guest.read(start, &mut bytes)?;
        for row in bytes.chunks(16) {
            let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(stdout, "{start:08x}  {}", hex.join(" "))?;
            start += row.len() as u64;
        }
    }
    Ok(())
}

/// Writes the guest's RAM to a new sparse file: each byte at its address, and a hole where there is no RAM.
fn dump(guest: &Guest, out: &str) -> Result<()> {
    // The dump contains the guest's secrets. This example leaves its permissions to the umask.
    let file = File::create_new(out).map_err(|e| format!("cannot create {out:?}: {e}"))?;
    dump_to(guest, file).map_err(|e| {
        // An incomplete dump looks like a complete one.
        let _ = fs::remove_file(out);
        format!("cannot dump to {out:?}: {}", chain(&*e)).into()
    })
}

fn dump_to(guest: &Guest, mut file: File) -> Result<()> {
    for pfns in guest.ram_map()?.ranges() {
        for start in pfns.numbers().step_by(WINDOW) {
            let window = NumberRange::try_from(start..pfns.end().min(start + WINDOW as u64))?;
            // Fails if the guest has given one of these frames back meanwhile. `map_partial` would leave a hole.
            let mapping = guest.map(Protection::ReadOnly, window)?;
            file.seek(SeekFrom::Start(window.addresses().start))?;
            // Writes directly from the mapping, which is unmapped when it is dropped.
            mapping.view().write_to(0, mapping.view().len(), &file)?;
        }
    }
    Ok(())
}
