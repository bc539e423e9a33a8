//! Random accesses through a map cache, each checked against a private copy.

use std::ops::Range;

use xenmap::{Access, Error, MapCache, Pinned, Protection};

use super::ram::{Piece, Ram, Result, check_bytes};

/// How many ranges to hold at the same time.
const HELD: usize = 8;
/// How many recent places to remember, because devices use the same memory repeatedly.
const RECENT: usize = 64;

pub(crate) struct Soak<'c> {
    cache: &'c MapCache,
    ram: &'c mut Ram,
    /// The length of the longest range.
    longest: usize,
    random: Random,
    held: Vec<Held<'c>>,
    recent: Vec<Place>,
    done: Done,
}

/// The start of a range: a piece of the RAM, and the offset in it in bytes.
#[derive(Clone, Copy)]
struct Place {
    piece: usize,
    offset: usize,
}

struct Held<'c> {
    pinned: Pinned<'c>,
    place: Place,
}

/// Counters of what was done.
#[derive(Clone, Copy, Default)]
pub(crate) struct Done {
    /// Gets, accesses, invalidations and prefetches.
    pub(crate) operations: u64,
    /// How many gets were refused, as expected.
    pub(crate) refused: u64,
    pub(crate) bytes_read: usize,
    pub(crate) bytes_written: usize,
}

impl<'c> Soak<'c> {
    pub(crate) fn new(cache: &'c MapCache, ram: &'c mut Ram, longest: usize, seed: u64) -> Soak<'c> {
        let (random, done) = (Random(seed), Done::default());
        Soak { cache, ram, longest, random, held: Vec::new(), recent: Vec::new(), done }
    }

    pub(crate) fn done(&self) -> Done {
        self.done
    }

    /// Performs one random operation.
    pub(crate) fn step(&mut self) -> Result<()> {
        self.done.operations += 1;
        match self.random.below(1000) {
            0 => self.cache.invalidate_all(),
            1..10 => {
                let range = self.range();
                self.cache.invalidate(self.addresses(range));
            }
            10..20 => {
                let range = self.range();
                self.cache.prefetch(self.protection(), self.addresses(range))?;
            }
            20..400 if !self.held.is_empty() => {
                let which = self.random.below(self.held.len());
                self.access(which)?;
            }
            _ => self.get()?,
        }
        Ok(())
    }

    /// Pins a random range, and accesses it. If too many are held, drops one of them first.
    fn get(&mut self) -> Result<()> {
        let range = self.range();
        let (Place { piece, offset }, len) = range;
        let protection = self.protection();
        let address = self.addresses(range).start;
        let refused = match protection {
            Protection::ReadOnly => None,
            Protection::ReadWrite => self.ram.pieces[piece].refused(offset, len),
        };
        if self.held.len() == HELD {
            self.held.swap_remove(self.random.below(HELD));
        }
        match (self.cache.get(protection, address, len), refused) {
            (Ok(pinned), None) => self.held.push(Held { pinned, place: range.0 }),
            (Err(Error::GuestAddress { address, errno, .. }), Some(refused)) if (address, errno) == refused => {
                self.done.refused += 1;
                return Ok(());
            }
            (Err(error), _) => return Err(error.into()),
            (Ok(_), Some((address, _))) => return Err(format!("{address:#x} is mapped writable").into()),
        }
        self.access(self.held.len() - 1)
    }

    /// Reads or writes a random part of a held range.
    fn access(&mut self, which: usize) -> Result<()> {
        let Held { pinned, place: Place { piece, offset } } = &self.held[which];
        let piece = &mut self.ram.pieces[*piece];
        let start = self.random.below(pinned.len());
        let (mut at, mut len) = (start, 1 + self.random.below(pinned.len() - start));
        let is_word = self.random.below(2) == 0;
        if is_word {
            len = 1 << self.random.below(4).min(len.ilog2() as usize);
            // Half of the words are aligned.
            let aligned = (offset + at).next_multiple_of(len).checked_sub(*offset);
            at = aligned.filter(|&aligned| aligned + len <= pinned.len() && self.random.below(2) == 0).unwrap_or(at);
        }
        let may_write = pinned.protection() == Protection::ReadWrite && piece.may_write(offset + at, len);
        if may_write && self.random.below(2) == 0 {
            let bytes = self.random.bytes(len);
            write(pinned, at, &bytes, is_word)?;
            piece.now[offset + at..][..len].copy_from_slice(&bytes);
            self.done.bytes_written += len;
        } else {
            check(pinned, at, piece, offset + at, len, is_word)?;
            self.done.bytes_read += len;
        }
        Ok(())
    }

    /// Returns a random range within a piece. Short ranges are as frequent as long ones.
    fn range(&mut self) -> (Place, usize) {
        let place = match self.random.below(2) {
            0 if !self.recent.is_empty() => self.recent[self.random.below(self.recent.len())],
            _ => self.new_place(),
        };
        let most = 1 << self.random.below(self.longest.ilog2() as usize + 1);
        let len = 1 + self.random.below(most);
        (place, len.min(self.ram.pieces[place.piece].now.len() - place.offset))
    }

    /// Returns a random place, and remembers it.
    fn new_place(&mut self) -> Place {
        let mut place = Place { piece: 0, offset: self.random.below(self.ram.len()) };
        while let Some(rest) = place.offset.checked_sub(self.ram.pieces[place.piece].now.len()) {
            place = Place { piece: place.piece + 1, offset: rest };
        }
        if self.recent.len() == RECENT {
            self.recent.swap_remove(self.random.below(RECENT));
        }
        self.recent.push(place);
        place
    }

    fn addresses(&self, (place, len): (Place, usize)) -> Range<u64> {
        let start = self.ram.pieces[place.piece].address + place.offset as u64;
        start..start + len as u64
    }

    fn protection(&mut self) -> Protection {
        if self.random.below(2) == 0 { Protection::ReadOnly } else { Protection::ReadWrite }
    }
}

/// Writes bytes, as one word if `is_word`.
fn write(pinned: &Pinned<'_>, at: usize, bytes: &[u8], is_word: bool) -> xenmap::Result<()> {
    match bytes.len() {
        1 if is_word => pinned.write(at, bytes[0]),
        2 if is_word => pinned.write(at, u16::from_ne_bytes(word(bytes))),
        4 if is_word => pinned.write(at, u32::from_ne_bytes(word(bytes))),
        8 if is_word => pinned.write(at, u64::from_ne_bytes(word(bytes))),
        _ => pinned.write_bytes(at, bytes),
    }
}

fn word<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

/// Reads bytes, as one word if `is_word`, and checks that they are those at `offset` of the piece.
fn check(pinned: &Pinned<'_>, at: usize, piece: &Piece, offset: usize, len: usize, is_word: bool) -> Result<()> {
    let mut found = vec![0; len];
    match len {
        1 if is_word => found = pinned.read::<u8>(at)?.to_ne_bytes().to_vec(),
        2 if is_word => found = pinned.read::<u16>(at)?.to_ne_bytes().to_vec(),
        4 if is_word => found = pinned.read::<u32>(at)?.to_ne_bytes().to_vec(),
        8 if is_word => found = pinned.read::<u64>(at)?.to_ne_bytes().to_vec(),
        _ => pinned.read_bytes(at, &mut found)?,
    }
    check_bytes(piece.address + offset as u64, &found, &piece.now[offset..][..len])
}

/// A pseudorandom number generator with reproducible results (`SplitMix64`).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`, which must not be 0.
    fn below(&mut self, limit: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "less than a usize")]
        let number = (self.next() % limit as u64) as usize;
        number
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_ne_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
