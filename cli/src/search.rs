//! `search`: where in the guest's RAM some bytes are.

use std::io::Write;

use xenmap::{Access, FRAME_SIZE, FrameKind, Guest, View};

use crate::args::SearchArgs;
use crate::map::scan;
use crate::pattern::Pattern;
use crate::progress::Progress;
use crate::window::MappedWindows;
use crate::{Result, say};

/// Frames that are mapped at a time.
const WINDOW: u64 = 4096;
/// Bytes that are copied and searched at a time: few enough for a processor's cache.
const CHUNK: usize = 1 << 20;

/// Where matches are printed, how, and how many at most.
pub(crate) struct Output<'a, W> {
    out: &'a mut W,
    as_json: bool,
    max: Option<u64>,
    found: u64,
}

impl<'a, W: Write> Output<'a, W> {
    pub(crate) fn new(out: &'a mut W, as_json: bool, max: Option<u64>) -> Output<'a, W> {
        Output { out, as_json, max, found: 0 }
    }

    fn is_full(&self) -> bool {
        self.max.is_some_and(|max| self.found >= max)
    }

    fn print(&mut self, address: u64) -> Result<()> {
        self.found += 1;
        if self.as_json {
            writeln!(self.out, "{}", serde_json::json!({ "address": address }))?;
        } else {
            writeln!(self.out, "{address:#x}")?;
        }
        Ok(())
    }
}

pub(crate) enum Outcome {
    Found,
    NotFound,
    /// There may be more.
    NotSearchedEverywhere,
}

/// Prints the address of each match.
pub(crate) fn search<W: Write>(
    guest: &Guest,
    pattern: &Pattern,
    args: SearchArgs,
    output: &mut Output<'_, W>,
) -> Result<Outcome> {
    let found = scan(guest, args)?;
    let map = &found.map;
    let ranges = map.ranges();
    let mut unreadable = map.count(FrameKind::Broken);
    let progress = Progress::new("searching", ranges.iter().map(|range| range.len() as u64).sum())?;
    let mut searched = 0;
    let mut matcher = Matcher::new(pattern, &progress);
    for window in ranges.into_iter().flat_map(|pfns| MappedWindows::new(guest, pfns.numbers(), WINDOW)) {
        let (pfns, mapping) = window?;
        unreadable += mapping.failed().len() as u64;
        let address = pfns.start * FRAME_SIZE as u64;
        for part in mapping.mapped_ranges() {
            let bytes = mapping.view().slice(part.start, part.len())?;
            matcher.search(address + part.start as u64, bytes, output)?;
        }
        searched += pfns.end - pfns.start;
        progress.set(searched);
        if output.is_full() {
            break;
        }
    }
    drop(progress);
    if unreadable > 0 {
        say(&format!("{unreadable} frames cannot be read, and were not searched"));
    }
    Ok(match output.found {
        _ if !found.is_complete() && !output.is_full() => Outcome::NotSearchedEverywhere,
        0 => Outcome::NotFound,
        _ => Outcome::Found,
    })
}

/// Finds matches in bytes that come in parts.
struct Matcher<'a> {
    pattern: &'a Pattern,
    progress: &'a Progress,
    /// What is being searched: a copy, as the guest may change its RAM at any time. It begins with the end of what
    /// was searched before, where a match may begin.
    buffer: Vec<u8>,
    /// How much of it is in use.
    len: usize,
    /// The address behind the last byte.
    end: u64,
}

impl<'a> Matcher<'a> {
    fn new(pattern: &'a Pattern, progress: &'a Progress) -> Matcher<'a> {
        Matcher { pattern, progress, buffer: vec![0; CHUNK + pattern.len()], len: 0, end: 0 }
    }

    fn search<W: Write>(&mut self, address: u64, view: View<'_>, output: &mut Output<'_, W>) -> Result<()> {
        if address != self.end {
            self.len = 0;
            self.end = address;
        }
        for offset in (0..view.len()).step_by(CHUNK) {
            let begun = self.len.min(self.pattern.len() - 1);
            self.buffer.copy_within(self.len - begun..self.len, 0);
            let more = CHUNK.min(view.len() - offset);
            self.len = begun + more;
            view.read_bytes(offset, &mut self.buffer[begun..self.len])?;
            let start = self.end - begun as u64;
            self.end += more as u64;
            let mut matches = self.pattern.matches(&self.buffer[..self.len]).peekable();
            if matches.peek().is_some() {
                self.progress.suspend(|| -> Result<()> {
                    for at in matches {
                        if output.is_full() {
                            break;
                        }
                        output.print(start + at as u64)?;
                    }
                    Ok(output.out.flush()?)
                })?;
            }
        }
        Ok(())
    }
}
