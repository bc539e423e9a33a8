//! The note in which a Linux kernel tells a debugger about itself, and without which none takes a dump for that of a
//! kernel.
//!
//! It is an ELF note at the start of a page (`vmcoreinfo_note` of Linux's `kernel/vmcore_info.c`; `crash_core.c`
//! before 6.9), its text at most a page long and beginning with the kernel's release.

use xenmap::{FRAME_SIZE, Guest, View};

use super::layout::FRAME;

/// Header and name: three words, "VMCOREINFO" with its NUL, and a byte to align what follows.
const HEADER: usize = 24;
const TEXT_START: &[u8] = b"OSRELEASE=";

/// The longest note.
pub(crate) const MAX_LEN: usize = HEADER + FRAME_SIZE;

/// Whether a frame begins with the note.
pub(crate) fn begins_at(view: View<'_>, offset: usize) -> xenmap::Result<bool> {
    if view.read::<u32>(offset)? != 11 {
        return Ok(false);
    }
    let mut start = [0; HEADER + TEXT_START.len()];
    view.read_bytes(offset, &mut start)?;
    Ok(len(&start).is_some())
}

/// The note that a frame begins with, if it is there still.
pub(crate) fn read(guest: &Guest<'_>, pfn: u64) -> Option<Vec<u8>> {
    let mut start = [0; HEADER + TEXT_START.len()];
    guest.read(pfn * FRAME, &mut start).ok()?;
    let mut note = vec![0; len(&start)?];
    guest.read(pfn * FRAME, &mut note).ok()?;
    // A guest that runs may have changed it since.
    (len(&note)? == note.len()).then_some(note)
}

/// How long the note is, if it is one.
fn len(start: &[u8]) -> Option<usize> {
    let word = |at: usize| start.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let text = usize::try_from(word(4)?).ok()?.next_multiple_of(4);
    let is_note = word(0)? == 11
        && word(8)? == 0
        && start.get(12..HEADER)? == b"VMCOREINFO\0\0"
        && start.get(HEADER..)?.starts_with(TEXT_START)
        && (TEXT_START.len()..=FRAME_SIZE).contains(&text);
    is_note.then_some(HEADER + text)
}
