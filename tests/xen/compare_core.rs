//! Compares a raw dump of a guest's RAM (offset = frame number * 4096) with a core that `xl dump-core` wrote.
//!
//! `compare_core CORE RAW` compares every page of the core. With `--missing N`, up to N of them may be holes in the raw
//! dump: the core also has what Xen lends to a guest that is not PV, such as its grant table.
//! `compare_core --prefix CORE RAW` takes a core that was cut off while it was being written: its table of frame numbers
//! comes last and is missing, but its pages come in ascending order of frame, as in the raw dump.
//! `compare_core --find STRING RAW` prints the addresses at which a string is found in the raw dump.
//!
//! It shares no code with the library, on purpose. Exit code 1: a difference, nothing found, nothing to compare.

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;

use nix::unistd::{Whence, lseek};

const PAGE: u64 = 4096;
const CHUNK: u64 = 256 * PAGE;

/// What `xl dump-core` leaves out of any guest that is not PV, RAM or not: the VGA window and the MMIO below 4 GiB.
const LEFT_OUT: [std::ops::Range<u64>; 2] = [0xa0..0xc0, 0xf_0000..0x10_0000];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let good = match args[..] {
        ["--find", string, raw] => find(string, raw),
        ["--prefix", core, raw] => compare(core, raw, true, 0),
        ["--missing", number, core, raw] => {
            number.parse().map_err(Into::into).and_then(|number| compare(core, raw, false, number))
        }
        [core, raw] => compare(core, raw, false, 0),
        _ => Err("usage: compare_core [--prefix | --missing N] CORE RAW | --find STRING RAW".into()),
    };
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "compare_core: {error}");
            ExitCode::from(2)
        }
    }
}

/// Where a sparse file holds data: (start, end), whole pages.
fn extents(file: &File) -> Result<Vec<(u64, u64)>> {
    let size = i64::try_from(file.metadata()?.len())?;
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(start) = lseek(file, at, Whence::SeekData) else { break };
        let end = lseek(file, start, Whence::SeekHole)?;
        found.push((u64::try_from(start)?, u64::try_from(end)?.next_multiple_of(PAGE)));
        at = end;
    }
    Ok(found)
}

fn find(string: &str, raw: &str) -> Result<bool> {
    let raw = File::open(raw)?;
    let size = raw.metadata()?.len();
    let needle = string.as_bytes();
    let overlap = needle.len() as u64 - 1;
    let mut out = std::io::stdout().lock();
    let mut any = false;
    for (start, end) in extents(&raw)? {
        for at in (start..end).step_by(usize::try_from(CHUNK)?) {
            let mut buffer = vec![0; usize::try_from((end + overlap).min(at + CHUNK + overlap).min(size) - at)?];
            raw.read_exact_at(&mut buffer, at)?;
            for (offset, _) in buffer.windows(needle.len()).enumerate().filter(|(_, bytes)| *bytes == needle) {
                writeln!(out, "{:#x}", at + offset as u64)?;
                any = true;
            }
        }
    }
    Ok(any)
}

struct Section {
    offset: u64,
    size: u64,
    entry: u64,
}

/// The pages and the table that says which frame each is: the last two sections, in this order. They are not looked up by
/// name, since the names are the very last thing in the file and a core that was cut off has none.
fn sections(core: &File) -> Result<(Section, Section)> {
    let mut header = [0; 64];
    core.read_exact_at(&mut header, 0)?;
    if header[..5] != *b"\x7fELF\x02" {
        return Err("the core is not a 64-bit ELF file".into());
    }
    let field = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let table = field(&header, 0x28);
    let count = u64::from(u16::from_le_bytes([header[0x3c], header[0x3d]]));
    let section = |index: u64| -> Result<Section> {
        let mut bytes = [0; 64];
        core.read_exact_at(&mut bytes, table + index * 64)?;
        Ok(Section { offset: field(&bytes, 0x18), size: field(&bytes, 0x20), entry: field(&bytes, 0x38) })
    };
    let (pages, frames) = (section(count - 2)?, section(count - 1)?);
    if pages.entry != PAGE || (frames.entry != 8 && frames.entry != 16) {
        return Err("the core's last two sections are not .xen_pages and .xen_p2m or .xen_pfn".into());
    }
    Ok((pages, frames))
}

/// The frame of each page, from the core's own table: u64 pfn, or for a PV guest u64 pfn and u64 machine frame.
fn frames_of_table(core: &File, table: &Section) -> Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(table.size)?];
    core.read_exact_at(&mut bytes, table.offset)?;
    let entry = usize::try_from(table.entry)?;
    let frame = |entry: &[u8]| u64::from_le_bytes(entry[entry.len() - 8..].try_into().expect("eight bytes"));
    Ok(bytes.chunks_exact(entry).map(frame).collect())
}

fn compare(core: &str, raw: &str, prefix: bool, may_miss: usize) -> Result<bool> {
    let (core, raw) = (File::open(core)?, File::open(raw)?);
    let (pages, table) = sections(&core)?;
    let raw_extents = extents(&raw)?;
    let in_raw: u64 = raw_extents.iter().map(|(start, end)| (end - start) / PAGE).sum();
    let (mut frames, written) = if prefix {
        let frames = raw_extents.iter().flat_map(|(start, end)| start / PAGE..end / PAGE);
        let frames = frames.filter(|frame| !LEFT_OUT.iter().any(|range| range.contains(frame))).collect();
        (frames, core.metadata()?.len().min(pages.offset + pages.size).saturating_sub(pages.offset) / PAGE)
    } else {
        (frames_of_table(&core, &table)?, pages.size / PAGE)
    };
    frames.truncate(usize::try_from(written)?);
    let (mut equal, mut zero, mut different, mut missing) = (0_u64, 0_u64, Vec::new(), Vec::new());
    let (mut theirs, mut ours) = ([0; 4096], [0; 4096]);
    for (index, &frame) in (0_u64..).zip(&frames) {
        if frame == u64::MAX {
            continue; // the core was padded at its end
        }
        // A hole is not the same as a page of zeros.
        let after = raw_extents.partition_point(|(_, end)| end / PAGE <= frame);
        if raw_extents.get(after).is_none_or(|(start, _)| frame < start / PAGE) {
            missing.push(frame);
            continue;
        }
        core.read_exact_at(&mut theirs, pages.offset + index * PAGE)?;
        raw.read_exact_at(&mut ours, frame * PAGE)?;
        if ours == theirs {
            equal += 1;
            zero += u64::from(ours.iter().all(|&byte| byte == 0));
        } else {
            different.push(frame);
        }
    }
    let mut out = std::io::stdout().lock();
    for frame in different.iter().take(10) {
        writeln!(out, "frame {frame:#x} differs")?;
    }
    for frame in missing.iter().take(10) {
        writeln!(out, "frame {frame:#x} is a hole in the raw dump")?;
    }
    let compared = equal + different.len() as u64;
    writeln!(
        out,
        "{compared} pages compared: {equal} equal ({zero} of them all zero), {} differ, {} are missing; \
         the core has {written} of {}, the raw dump {in_raw}",
        different.len(),
        missing.len(),
        pages.size / PAGE,
    )?;
    // All zero proves nothing: neither does an empty file against an empty file.
    Ok(different.is_empty() && missing.len() <= may_miss && equal > zero)
}
