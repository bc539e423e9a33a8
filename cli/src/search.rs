//! `search`: where in RAM some bytes are.

use std::io::Write;
use std::ops::Range;

use serde::Serialize;
use xenmap::FrameKind;

use crate::args::SearchArgs;
use crate::bytes::Bytes;
use crate::hexdump::Hexdump;
use crate::map::scan;
use crate::number::count;
use crate::palette::{Palette, palette};
use crate::parts::each_part;
use crate::pattern::Pattern;
use crate::printable::write_json;
use crate::progress::Progress;
use crate::ram::Ram;
use crate::read::Document;
use crate::space::Space;
use crate::window::{Piece, addresses, frames};
use crate::{Result, say};

/// Frames that are mapped at a time.
const WINDOW: u64 = 4096;
/// Bytes that are copied and searched at a time: few enough for a processor's cache.
const CHUNK: usize = 1 << 20;

/// How matches are printed, and how many at most.
#[derive(Clone, Copy, Default)]
pub(crate) struct Format {
    pub(crate) as_json: bool,
    /// Bytes to show before and after each match.
    pub(crate) context: Option<u64>,
    pub(crate) max: Option<u64>,
}

pub(crate) enum Outcome {
    Found,
    NotFound,
    /// There may be more.
    NotSearchedEverywhere,
}

/// Prints the matches of some patterns, in ascending order of their addresses.
pub(crate) fn search<W: Write>(
    ram: &Ram,
    patterns: &[Pattern],
    args: SearchArgs,
    format: Format,
    out: &mut W,
) -> Result<Outcome> {
    let found = scan(ram, args)?;
    let ranges = found.ranges();
    let end = ranges.last().map_or(0, |pfns| addresses(pfns).end);
    let mut output = Output { ram, format, names: patterns.len() > 1, end, palette: palette(), out, found: 0 };
    let mut unreadable: u64 = found.of_kind(FrameKind::Broken).map(|pfns| pfns.end - pfns.start).sum();
    let progress = Progress::new("searching", ranges.iter().map(|range| range.end - range.start).sum())?;
    let mut searched = 0;
    let mut matcher = Matcher::new(patterns, &progress);
    for window in ranges.into_iter().flat_map(|pfns| ram.windows(pfns, WINDOW)) {
        let window = window?;
        for (addresses, piece) in window.pieces()? {
            match piece {
                Piece::Bytes(bytes) => matcher.search(addresses.start, bytes, &mut output)?,
                Piece::Zeros => matcher.search_zeros(addresses, &mut output)?,
                // A dump may lack a part of a frame.
                Piece::Hole(_) if ram.guest().is_none() => {}
                Piece::Hole(_) => unreadable += frames(&addresses).count() as u64,
            }
        }
        searched += window.pfns.end - window.pfns.start;
        progress.set(searched);
        if output.is_full() {
            break;
        }
    }
    matcher.end_run(&mut output)?;
    drop(progress);
    if unreadable > 0 {
        say(&format!("{} cannot be read: not searched", count(unreadable, "frame")));
    }
    Ok(match output.found {
        _ if !found.is_complete() && !output.is_full() => Outcome::NotSearchedEverywhere,
        0 => Outcome::NotFound,
        _ => Outcome::Found,
    })
}

/// Finds matches in bytes that come in parts.
struct Matcher<'a> {
    patterns: &'a [Pattern],
    progress: &'a Progress,
    /// The length of the longest pattern.
    longest: usize,
    /// A copy of what is being searched, as the guest may change its RAM at any time. It begins with the end of the
    /// part before, where a match may begin that continues in this part.
    buffer: Vec<u8>,
    /// The bytes of it that are in use.
    len: usize,
    /// The address after the last of them.
    end: u64,
}

impl<'a> Matcher<'a> {
    fn new(patterns: &'a [Pattern], progress: &'a Progress) -> Matcher<'a> {
        let longest = patterns.iter().map(Pattern::len).max().unwrap_or(1);
        Matcher { patterns, progress, longest, buffer: vec![0; CHUNK + longest], len: 0, end: 0 }
    }

    /// Searches zeros, as far as they can be a part of a match.
    fn search_zeros<W: Write>(&mut self, addresses: Range<u64>, output: &mut Output<'_, W>) -> Result<()> {
        let longest = self.longest as u64;
        let may_be_zeros = |pattern: &Pattern| pattern.matches(&vec![0; pattern.len()]).next().is_some();
        let mut rest = addresses;
        if rest.end - rest.start > 2 * longest && !self.patterns.iter().any(may_be_zeros) {
            self.search(rest.start, Bytes::Dump(&vec![0; self.longest]), output)?;
            rest.start = rest.end - longest;
        }
        while !rest.is_empty() && !output.is_full() {
            let len = CHUNK.min(usize::try_from(rest.end - rest.start)?);
            self.search(rest.start, Bytes::Dump(&vec![0; len]), output)?;
            rest.start += len as u64;
        }
        Ok(())
    }

    /// Searches bytes that are at `address`, except the last ones: there a match may begin that continues after them.
    fn search<W: Write>(&mut self, address: u64, bytes: Bytes<'_>, output: &mut Output<'_, W>) -> Result<()> {
        if address != self.end {
            self.end_run(output)?;
            self.end = address;
        }
        for offset in (0..bytes.len()).step_by(CHUNK) {
            let kept = self.len.min(self.longest - 1);
            self.buffer.copy_within(self.len - kept..self.len, 0);
            let more = CHUNK.min(bytes.len() - offset);
            self.len = kept + more;
            bytes.read(offset, &mut self.buffer[kept..self.len])?;
            self.end += more as u64;
            self.print_matches(self.len.saturating_sub(self.longest - 1), output)?;
        }
        Ok(())
    }

    /// Searches the last bytes of a run that nothing continues.
    fn end_run<W: Write>(&mut self, output: &mut Output<'_, W>) -> Result<()> {
        let kept = self.len.min(self.longest - 1);
        self.buffer.copy_within(self.len - kept..self.len, 0);
        self.len = kept;
        self.print_matches(self.len, output)?;
        self.len = 0;
        Ok(())
    }

    /// Prints the matches that begin in the first `limit` bytes of the buffer.
    fn print_matches<W: Write>(&self, limit: usize, output: &mut Output<'_, W>) -> Result<()> {
        let bytes = &self.buffer[..self.len];
        let start = self.end - self.len as u64;
        let matches = |pattern: &'a Pattern| pattern.matches(bytes).take_while(|&at| at < limit).peekable();
        let mut matches: Vec<_> = self.patterns.iter().map(matches).collect();
        if matches.iter_mut().all(|matches| matches.peek().is_none()) {
            return Ok(());
        }
        self.progress.suspend(|| {
            let mut next = || {
                let firsts = matches.iter_mut().enumerate().filter_map(|(i, matches)| Some((*matches.peek()?, i)));
                let (at, i) = firsts.min()?;
                matches[i].next();
                Some((at, &self.patterns[i]))
            };
            while !output.is_full()
                && let Some((at, pattern)) = next()
            {
                output.print(start + at as u64, pattern)?;
            }
            Ok(output.out.flush()?)
        })
    }
}

/// Where matches are printed.
struct Output<'a, W> {
    ram: &'a Ram,
    format: Format,
    /// Whether the pattern of each match is printed.
    names: bool,
    /// The address after the last byte of RAM.
    end: u64,
    palette: &'static Palette,
    out: &'a mut W,
    found: u64,
}

#[derive(Serialize)]
struct Match<'a> {
    address: u64,
    bytes: usize,
    kind: &'static str,
    pattern: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Document>,
}

impl<W: Write> Output<'_, W> {
    fn is_full(&self) -> bool {
        self.format.max.is_some_and(|max| self.found >= max)
    }

    fn print(&mut self, address: u64, pattern: &Pattern) -> Result<()> {
        self.found += 1;
        let found = (address, address + (pattern.len() as u64 - 1));
        let context = self
            .format
            .context
            .map(|bytes| (found.0.saturating_sub(bytes), found.1.saturating_add(bytes).min(self.end - 1)));
        if self.format.as_json {
            let context = context.map(|range| Document::read(self.ram, &Space::Physical, range)).transpose()?;
            let Pattern { kind, given, .. } = pattern;
            let found = Match { address, bytes: pattern.len(), kind, pattern: given, context };
            return Ok(write_json(&mut *self.out, &found)?);
        }
        if context.is_some() && self.found > 1 {
            writeln!(self.out, "--")?;
        }
        let style = self.palette.address;
        write!(self.out, "{style}{address:#x}{style:#}")?;
        if self.names {
            write!(self.out, "  {pattern}")?;
        }
        writeln!(self.out)?;
        if let Some(range) = context {
            let mut hexdump = Hexdump::new(self.palette, Some(found));
            each_part(self.ram, &Space::Physical, range, |part| Ok(hexdump.part(self.out, &part)?))?;
            hexdump.end(self.out)?;
        }
        Ok(())
    }
}
