//! VMCOREINFO, the note in which a Linux kernel describes itself to debuggers. Without it they do not recognise a dump
//! as a kernel's.
//!
//! It is an ELF note in the kernel's memory (`vmcoreinfo_note` of Linux's `kernel/vmcore_info.c`; `crash_core.c` before
//! 6.9). Since Linux 4.13 it is at the start of a page; before, it was anywhere, perhaps across a page border. Its text
//! is at most a page long and begins with the kernel's release.
//!
//! There may be several notes: of an earlier kernel, in a cached file, or made up by the guest. A note is believed to
//! be of a kernel in memory if the structure that it points to has the same release (`init_uts_ns.name.release`), and
//! of the running kernel if the page tables of vcpu 0 lead to that structure, too.

use std::collections::HashSet;

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};
use xenmap::{FRAME_SIZE, PageTables};

use crate::args::SearchArgs;
use crate::bytes::Bytes;
use crate::progress::Progress;
use crate::ram::Ram;
use crate::window::{Piece, addresses};
use crate::{Result, map};

/// Header and name: three words, "VMCOREINFO" with its NUL, and a byte of padding.
const HEADER: usize = 24;
const NAME: &[u8] = b"VMCOREINFO\0\0";
const NAME_AT: usize = HEADER - NAME.len();
const TEXT_START: &[u8] = b"OSRELEASE=";
/// Bytes that identify a note.
const START: usize = HEADER + TEXT_START.len();

/// The length of the longest text.
pub(crate) const MAX_TEXT: usize = FRAME_SIZE;

/// The number of notes to look at, those with the lowest addresses: a guest may have any number of them.
const MAX_CANDIDATES: usize = 4096;

/// Bytes that are copied and searched at a time: few enough for a processor's cache.
const CHUNK: usize = 64 << 10;

/// The addresses of what may be notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Candidates {
    /// In ascending order.
    pub(crate) addresses: Vec<u64>,
    /// The number of other candidates.
    pub(crate) more: u64,
}

impl Candidates {
    fn push(&mut self, address: u64) {
        if self.addresses.len() < MAX_CANDIDATES {
            self.addresses.push(address);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn add(&mut self, other: &Candidates) {
        self.addresses.extend_from_slice(&other.addresses);
        self.addresses.sort_unstable();
        let excess = self.addresses.len().saturating_sub(MAX_CANDIDATES);
        self.addresses.truncate(MAX_CANDIDATES);
        self.more = self.more.saturating_add(other.more).saturating_add(excess as u64);
    }
}

/// Looks for notes in frames while they are copied.
pub(crate) struct Search {
    name: Finder<'static>,
    /// A copy, because the guest may change its memory at any time.
    buffer: Vec<u8>,
}

impl Search {
    pub(crate) fn new() -> Search {
        Search { name: Finder::new(NAME), buffer: Vec::new() }
    }

    /// Searches the memory at an address.
    pub(crate) fn search(&mut self, bytes: Bytes<'_>, address: u64, found: &mut Candidates) -> Result<()> {
        for start in (0..bytes.len()).step_by(CHUNK) {
            // A note may begin in the chunk and continue after it.
            let len = (bytes.len() - start).min(CHUNK + START - 1);
            self.buffer.resize(len, 0);
            bytes.read(start, &mut self.buffer)?;
            for at in self.notes() {
                found.push(address + (start + at) as u64);
            }
        }
        Ok(())
    }

    /// Searches for a note that begins before an address, in another mapping, and continues at it.
    pub(crate) fn search_across(&mut self, ram: &Ram, address: u64, found: &mut Candidates) {
        let Some(start) = address.checked_sub(START as u64 - 1) else { return };
        self.buffer.resize(2 * (START - 1), 0);
        // Memory that cannot be read holds no note.
        if ram.read(start, &mut self.buffer).is_ok() {
            for at in self.notes() {
                found.push(start + at as u64);
            }
        }
    }

    /// Returns where in the buffer notes begin.
    fn notes(&self) -> impl Iterator<Item = usize> {
        let begins = |at: &usize| self.buffer.get(*at..).is_some_and(|note| text_len(note).is_some());
        self.name.find_iter(&self.buffer).filter_map(|name| name.checked_sub(NAME_AT)).filter(begins)
    }
}

/// Returns the length of a note's text; `None` if it is not a note.
fn text_len(start: &[u8]) -> Option<usize> {
    let word = |at: usize| start.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let len = usize::try_from(word(4)?).ok()?;
    let is_note = word(0)? == 11
        && word(8)? == 0
        && start.get(NAME_AT..HEADER)? == NAME
        && start.get(HEADER..)?.starts_with(TEXT_START)
        && (TEXT_START.len()..=MAX_TEXT).contains(&len);
    is_note.then_some(len)
}

/// The credibility of a note, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It points to something else.
    Refuted,
    /// It does not say where its kernel is.
    Vague,
    /// The memory that it points to cannot be found or read.
    Unproven,
    /// It points to a kernel of its release.
    OfAKernel,
    /// The page tables that vcpu 0 uses lead to that kernel, too.
    OfTheRunningKernel,
}

/// A note, and where it was found.
struct Note {
    address: u64,
    text: Vec<u8>,
    standing: Standing,
}

/// Returns the text of the running kernel's note, if there is one; and a warning if it may be another kernel's.
pub(crate) fn choose(ram: &Ram, candidates: &Candidates) -> (Option<Vec<u8>>, Option<String>) {
    let tables = if candidates.addresses.is_empty() { None } else { ram.page_tables(0).ok() };
    let mut texts = HashSet::new();
    let mut notes = Vec::new();
    for &address in &candidates.addresses {
        // Copies of a note count once.
        if let Some(text) = read(ram, address).filter(|text| texts.insert(text.clone())) {
            let standing = standing(ram, tables.as_ref(), &text);
            notes.push(Note { address, text, standing });
        }
    }
    // The first of the most credible ones.
    let Some(best) = notes.iter().rev().max_by_key(|note| note.standing) else { return (None, None) };
    let proven = notes.iter().filter(|note| note.standing >= Standing::OfAKernel).count();
    let is_only = notes.len() == 1 && best.standing != Standing::Refuted;
    let is_certain = candidates.more == 0 && (proven == 1 || is_only);
    let doubt = if is_certain { None } else { Some(doubt(&notes, best, candidates.more)) };
    (Some(best.text.clone()), doubt)
}

/// Returns a warning that lists the notes and names the one that was taken.
fn doubt(notes: &[Note], best: &Note, more: u64) -> String {
    const LISTED: usize = 8;
    let release =
        |note: &Note| value(&note.text, "OSRELEASE").unwrap_or("?").chars().take(UTS_NAME).collect::<String>();
    let place = |note: &Note| format!("{:#x} (Linux {})", note.address, release(note));
    if notes.len() == 1 && more == 0 {
        let place = place(best);
        return format!(
            "the VMCOREINFO note at {place} may be an earlier kernel's: that kernel is not where the note says"
        );
    }
    let mut places: Vec<String> = notes.iter().take(LISTED).map(place).collect();
    let unlisted = (notes.len() - places.len()) as u64 + more;
    if unlisted > 0 {
        places.push(format!("{unlisted} more"));
    }
    let why = match best.standing {
        Standing::OfTheRunningKernel => "whose kernel vcpu 0 runs",
        Standing::OfAKernel => "whose kernel is in memory but may not be running",
        _ => "which may not be the running kernel's",
    };
    let (list, count) = (places.join(", "), notes.len() as u64 + more);
    format!(
        "{count} VMCOREINFO notes could be the running kernel's, at {list}: took the one at {:#x}, {why}",
        best.address
    )
}

/// Returns the text of a note; `None` if it has changed since, or is not whole.
fn read(ram: &Ram, address: u64) -> Option<Vec<u8>> {
    let mut start = [0; START];
    ram.read(address, &mut start).ok()?;
    let mut note = vec![0; HEADER + text_len(&start)?];
    ram.read(address, &mut note).ok()?;
    // A running guest may have changed it in between.
    let is_the_same = text_len(&note)? + HEADER == note.len();
    let text = note.split_off(HEADER);
    let is_text = |byte: &u8| *byte == b'\n' || *byte == b' ' || byte.is_ascii_graphic();
    // All lines are whole, unless the kernel had more to say than fits.
    let is_whole = text.ends_with(b"\n") || text.len() == MAX_TEXT;
    (is_the_same && is_whole && text.iter().all(is_text)).then_some(text)
}

/// Returns the value in a line `KEY=value`.
pub(crate) fn value<'a>(text: &'a [u8], key: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// Returns a number as the kernel writes it, modulo 2^64 if it is negative.
pub(crate) fn number(text: &[u8], key: &str) -> Option<u64> {
    let value = value(text, key)?;
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => value.parse::<i64>().ok().map(i64::cast_unsigned),
    }
}

/// Returns the address of a symbol.
pub(crate) fn symbol(text: &[u8], name: &str) -> Option<u64> {
    u64::from_str_radix(value(text, &format!("SYMBOL({name})"))?, 16).ok()
}

/// Where an x86-64 kernel maps its image (`__START_KERNEL_map`).
pub(crate) const X86_IMAGE: u64 = 0xFFFF_FFFF_8000_0000;

/// Looks for the note of a kernel in RAM; returns its text, and a warning if it may be another kernel's.
pub(crate) fn find(ram: &Ram) -> Result<(Option<Vec<u8>>, Option<String>)> {
    /// Frames that are searched at a time.
    const WINDOW: u64 = 4096;
    let ranges: Vec<_> = map::find(ram, SearchArgs::default())?.ranges();
    let progress = Progress::new("searching for the kernel", ranges.iter().map(|pfns| pfns.end - pfns.start).sum())?;
    let (mut search, mut candidates, mut searched) = (Search::new(), Candidates::default(), 0);
    for window in ranges.into_iter().flat_map(|pfns| ram.windows(pfns, WINDOW)) {
        let window = window?;
        search.search_across(ram, addresses(&window.pfns).start, &mut candidates);
        for (addresses, piece) in window.pieces()? {
            if let Piece::Bytes(bytes) = piece {
                search.search(bytes, addresses.start, &mut candidates)?;
            }
        }
        searched += window.pfns.end - window.pfns.start;
        progress.set(searched);
    }
    Ok(choose(ram, &candidates))
}

fn standing(ram: &Ram, tables: Option<&PageTables>, text: &[u8]) -> Standing {
    let (Some(symbol), Some(release)) = (symbol(text, "init_uts_ns"), value(text, "OSRELEASE")) else {
        return Standing::Vague;
    };
    let is_it = |read: &dyn Fn(u64, &mut [u8]) -> bool| {
        // Up to Linux 5.10 a counter of 4 bytes comes first, and the note does not say so.
        let places = number(text, "OFFSET(uts_namespace.name)").map_or([4, 0], |offset| [offset; 2]);
        places.iter().any(|&offset| {
            let mut names = [0; UTS_NAMES];
            symbol.checked_add(offset).is_some_and(|name| read(name, &mut names)) && is_release(&names, release)
        })
    };
    if tables.is_some_and(|tables| is_it(&|at, to| ram.read_virtual(tables, at, to).is_ok())) {
        return Standing::OfTheRunningKernel;
    }
    let (phys_base, voffset) = (number(text, "NUMBER(phys_base)"), number(text, "NUMBER(kimage_voffset)"));
    let physical = |at: u64| match voffset {
        Some(voffset) => at.wrapping_sub(voffset),
        None => at.wrapping_sub(X86_IMAGE).wrapping_add(phys_base.unwrap_or(0)),
    };
    if is_it(&|at, to| ram.read(physical(at), to).is_ok()) {
        return Standing::OfAKernel;
    }
    let has_base = voffset.is_some() || phys_base.is_some();
    let is_there = ram.read(physical(symbol), &mut [0; UTS_NAMES]).is_ok();
    if has_base && is_there { Standing::Refuted } else { Standing::Unproven }
}

/// Bytes of `struct new_utsname` up to the end of the release: system, node and release, of 65 bytes each.
const UTS_NAMES: usize = 3 * UTS_NAME;
const UTS_NAME: usize = 65;

/// Returns whether these are the names of a Linux kernel of this release.
fn is_release(names: &[u8; UTS_NAMES], release: &str) -> bool {
    let rest = names[2 * UTS_NAME..].strip_prefix(release.as_bytes());
    names.starts_with(b"Linux\0") && rest.is_some_and(|rest| rest.starts_with(b"\0"))
}
