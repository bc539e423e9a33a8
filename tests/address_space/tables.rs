//! A guest whose page tables the tests write.

#![expect(unreachable_pub, reason = "shared by the other modules")]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::cell::Cell;

use xenmap::{AddressSpace, Error, ForeignMemory, Gfn, GuestKind, PageTables, PagingMode, Result};

use crate::common::{FRAME, Guest, Host};

pub const KIB_4: u64 = 1 << 12;
pub const MIB_2: u64 = 1 << 21;
pub const GIB_1: u64 = 1 << 30;

/// Present, writable, and for programs.
pub const ALL: u64 = 7;
pub const LARGE: u64 = 1 << 7;

/// The frames of a guest: data first, then its tables.
pub const DATA: u64 = 32;
const FRAMES: usize = 64;

/// A guest with page tables of 4 levels, or of another number.
pub struct Tables {
    pub guest: Guest,
    /// Its frames, including those that it gives back later.
    pub gfns: Vec<Gfn>,
    mode: PagingMode,
    next: Cell<u64>,
}

impl Tables {
    pub fn new(host: &Host, mode: PagingMode) -> Tables {
        let guest = host.create(GuestKind::Hvm, FRAMES);
        Tables { gfns: guest.gfns(), guest, mode, next: Cell::new(DATA + 1) }
    }

    pub fn four_levels(host: &Host) -> Tables {
        Tables::new(host, PagingMode::FourLevels)
    }

    pub fn page_tables(&self) -> PageTables {
        PageTables::X86 { cr3: DATA * KIB_4, mode: self.mode }
    }

    pub fn open(&self, memory: &ForeignMemory) -> AddressSpace {
        AddressSpace::new(xenmap::Guest::open(memory, self.guest.domid()).unwrap(), self.page_tables())
    }

    /// Sets the entry of an address in the table of a level, and makes the tables above it as needed.
    pub fn set(&self, address: u64, level: u32, entry: u64) {
        let top = match self.mode {
            PagingMode::Pae => 3,
            PagingMode::FourLevels => 4,
            _ => 5,
        };
        let mut table = DATA;
        for upper in (level..=top).rev() {
            let offset = (address >> (12 + 9 * (upper - 1)) & 0x1FF) * 8;
            let found = self.entry(table, offset);
            if upper == level {
                self.write(table, offset, entry);
            } else if found & 1 == 0 {
                let next = self.next.replace(self.next.get() + 1);
                self.write(table, offset, next << 12 | ALL);
                table = next;
            } else {
                table = found >> 12 & 0xFF_FFFF;
            }
        }
    }

    /// Maps a page of 4 KiB to a frame.
    pub fn map(&self, address: u64, frame: u64) {
        self.set(address, 1, frame << 12 | ALL);
    }

    fn entry(&self, frame: u64, offset: u64) -> u64 {
        u64::from_ne_bytes(self.read(frame, offset, 8).try_into().unwrap())
    }

    /// Writes a word into a frame, as the guest would.
    pub fn write(&self, frame: u64, offset: u64, word: u64) {
        self.guest.write(self.gfn(frame), usize::try_from(offset).unwrap(), &word.to_ne_bytes());
    }

    /// Reads bytes of a frame, as the guest would.
    pub fn read(&self, frame: u64, offset: u64, len: usize) -> Vec<u8> {
        self.guest.read(self.gfn(frame), usize::try_from(offset).unwrap(), len)
    }

    /// Writes each data frame's number into all of its words.
    pub fn number_frames(&self) {
        for frame in 0..DATA {
            self.guest.write(self.gfn(frame), 0, &frame.to_ne_bytes().repeat(FRAME / 8));
        }
    }

    fn gfn(&self, frame: u64) -> Gfn {
        self.gfns[usize::try_from(frame).unwrap()]
    }
}

/// Returns the virtual address that could not be translated, and why.
#[track_caller]
pub fn untranslated<T: std::fmt::Debug>(result: Result<T>) -> (u64, &'static str) {
    match result {
        Err(Error::Translation { address, reason, .. }) => (address, reason),
        other => panic!("{other:x?}"),
    }
}
