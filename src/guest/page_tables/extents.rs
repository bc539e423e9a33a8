//! Finding all that page tables map, table by table.

use std::collections::HashSet;
use std::fmt;
use std::ops::{Bound, RangeBounds, RangeInclusive};

use super::walk::{Entry, Half, Limits, low_bits};
use super::{AccessRights, PageTables};

/// The most bytes of a table that are read at a time: those of a frame.
const CHUNK: u64 = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 12;
const WORD_BITS: u32 = 3;

/// How many tables that map nothing are remembered.
const MAX_EMPTY: usize = 1 << 20;

/// Consecutive virtual addresses that lead to consecutive physical ones; see [`PageTables::extents_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct VirtualExtent {
    /// The first virtual address, in bytes.
    pub address: u64,
    /// The physical address that it leads to, in bytes; of the same kind as in a
    /// [`Translation`](super::Translation).
    pub physical: u64,
    /// The length in bytes, a multiple of `page_size`.
    pub len: u64,
    /// The size of each page, in bytes.
    pub page_size: u64,
    /// What the guest may do with each page.
    pub rights: AccessRights,
}

impl VirtualExtent {
    /// Appends another extent, if it continues this one.
    pub(crate) fn append(&mut self, next: &VirtualExtent) -> bool {
        let end = VirtualExtent {
            address: self.address.wrapping_add(self.len),
            physical: self.physical.wrapping_add(self.len),
            ..*self
        };
        let continues = end == VirtualExtent { len: self.len, ..*next };
        if continues {
            self.len += next.len;
        }
        continues
    }
}

/// Iterates over all that page tables map; returned by [`PageTables::extents_with`].
pub struct VirtualExtents<F, E> {
    read_entries: F,
    first: u64,
    last: u64,
    /// The halves to walk next, in descending order.
    halves: Vec<Half>,
    half: Option<Half>,
    /// The tables that lead to the next entry, the top one first.
    path: Vec<Table>,
    /// Tables of this half that map nothing, by address and, in the low bits, level.
    empty: HashSet<u64>,
    /// An extent that the next page may continue.
    extent: Option<VirtualExtent>,
    error: Option<E>,
}

/// A table that is being walked.
struct Table {
    address: u64,
    level: u32,
    /// The virtual address that the table begins with.
    start: u64,
    limits: Limits,
    /// The index of the next entry, and of the last one to walk.
    next: u64,
    last: u64,
    /// The words of the frame that has the next entry, and their offset in the table in bytes.
    words: Vec<u64>,
    words_from: Option<u64>,
    /// Whether every entry so far, from the first one of the table, maps nothing.
    is_empty: bool,
}

impl PageTables {
    /// Iterates over all virtual addresses of a range that are mapped, in ascending order, by tables that the caller
    /// reads, from wherever they are: a dump, for example.
    ///
    /// Pages are merged into one extent if they are adjacent, also in physical memory, and equal in size and rights. A
    /// page that is partly in the range counts as a whole. Each table is read once for each time that it is used, which
    /// makes this much faster than translating page by page.
    ///
    /// `read_entries` reads consecutive entries of 8 bytes each (with [`PagingMode::TwoLevels`](super::PagingMode), two
    /// of 4 bytes each) as integers in little-endian order, given the address of the first: a physical one or, for a PV
    /// guest, a machine address. They are all in one frame. If it fails, the iterator returns the error, and goes on
    /// after these entries.
    ///
    /// # Hostile guests
    ///
    /// Tables may refer to themselves and to each other, so a few frames can map the whole address space as 2^36
    /// extents and more. Limit the range, or take a limited number. The time from one extent to the next is limited: a
    /// table that maps nothing is walked once for each level that it is used on. This remembers up to a million such
    /// tables, which take about 20 MiB; a guest with more can make a step take longer.
    ///
    /// ```
    /// use xenmap::{PageTables, PagingMode};
    ///
    /// // In the top table, at 0x1000, entry 0 refers to the table at 0x2000, whose entries 1 and 2 map pages of 1 GiB.
    /// let mut dump = vec![0_u8; 0x3000];
    /// dump[0x1000..0x1008].copy_from_slice(&0x2007_u64.to_le_bytes());
    /// dump[0x2008..0x2010].copy_from_slice(&0x8000_0081_u64.to_le_bytes());
    /// dump[0x2010..0x2018].copy_from_slice(&0xC000_0081_u64.to_le_bytes());
    /// let read_entries = |at: u64, entries: &mut [u64]| {
    ///     let start = usize::try_from(at).map_err(|_| "not in the dump")?;
    ///     let bytes = dump.get(start..start + 8 * entries.len()).ok_or("not in the dump")?;
    ///     for (entry, bytes) in entries.iter_mut().zip(bytes.chunks_exact(8)) {
    ///         *entry = u64::from_le_bytes(bytes.try_into().map_err(|_| "not 8 bytes")?);
    ///     }
    ///     Ok::<(), &str>(())
    /// };
    ///
    /// let tables = PageTables::X86 { cr3: 0x1000, mode: PagingMode::FourLevels };
    /// let extents: Vec<_> = tables.extents_with(.., read_entries).collect::<Result<_, _>>()?;
    /// assert_eq!(extents.len(), 1);
    /// assert_eq!((extents[0].address, extents[0].physical), (0x4000_0000, 0x8000_0000));
    /// assert_eq!((extents[0].len, extents[0].page_size), (2 << 30, 1 << 30));
    /// # Ok::<(), &str>(())
    /// ```
    pub fn extents_with<E, F>(&self, addresses: impl RangeBounds<u64>, read_entries: F) -> VirtualExtents<F, E>
    where
        F: FnMut(u64, &mut [u64]) -> Result<(), E>,
    {
        let (first, last) = inclusive(&addresses).map_or((1, 0), RangeInclusive::into_inner);
        let halves = [u64::MAX, 0].into_iter().filter_map(|address| self.half_of(address).ok());
        let halves = halves.filter(|half| first <= last && half.first <= last && first <= half.last).collect();
        VirtualExtents {
            read_entries,
            first,
            last,
            halves,
            half: None,
            path: Vec::new(),
            empty: HashSet::new(),
            extent: None,
            error: None,
        }
    }
}

impl<F, E> VirtualExtents<F, E>
where
    F: FnMut(u64, &mut [u64]) -> Result<(), E>,
{
    /// Returns a table, ready to be walked in the part that is in the range.
    fn table(&self, half: &Half, address: u64, level: u32, start: u64, limits: Limits) -> Table {
        let covered = half.covered_bits(level);
        let end = start | low_bits(covered + half.index_bits_of(level));
        let (first, last) = (self.first.max(half.first).max(start), self.last.min(half.last).min(end));
        let (next, last) = ((first - start) >> covered, (last - start) >> covered);
        Table { address, level, start, limits, next, last, words: Vec::new(), words_from: None, is_empty: next == 0 }
    }

    /// Takes the next step. Returns the page that was found, if any; `None` at the end.
    fn step(&mut self) -> Option<Result<Option<VirtualExtent>, E>> {
        let (Some(half), Some(table)) = (self.half, self.path.last_mut()) else {
            let half = self.halves.pop()?;
            self.empty.clear(); // the halves of arm64 may have different formats
            let start = half.first & !low_bits(half.address_bits);
            self.path.push(self.table(&half, half.top, half.levels, start, Limits::NONE));
            self.half = Some(half);
            return Some(Ok(None));
        };
        if table.next > table.last {
            self.leave(&half);
            return Some(Ok(None));
        }
        let entry = match table.take_entry(&half, &mut self.read_entries) {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        let covered = half.covered_bits(table.level);
        let start = table.start + ((table.next - 1) << covered);
        match half.decode(table.level, entry) {
            Entry::None(_) => {}
            Entry::Table(address, limits) => {
                let level = table.level - 1;
                if !self.empty.contains(&(address | u64::from(level))) {
                    let limits = table.limits.and(limits);
                    self.path.push(self.table(&half, address, level, start, limits));
                }
            }
            Entry::Page(physical, limits) => {
                table.is_empty = false;
                let (size, rights) = (1 << covered, half.rights(table.limits.and(limits)));
                return Some(Ok(Some(VirtualExtent { address: start, physical, len: size, page_size: size, rights })));
            }
        }
        Some(Ok(None))
    }

    /// Goes back from a table whose entries were all walked.
    fn leave(&mut self, half: &Half) {
        let Some(table) = self.path.pop() else { return };
        if !table.is_empty {
            if let Some(parent) = self.path.last_mut() {
                parent.is_empty = false;
            }
        } else if table.last == low_bits(half.index_bits()) && self.empty.len() < MAX_EMPTY {
            self.empty.insert(table.address | u64::from(table.level));
        }
    }
}

impl Table {
    /// Returns the next entry. If it cannot be read, skips all that were to be read with it.
    fn take_entry<E>(
        &mut self,
        half: &Half,
        read_entries: &mut impl FnMut(u64, &mut [u64]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let offset = self.next << half.entry_bits;
        let from = offset - offset % CHUNK;
        if self.words_from != Some(from) {
            let bits = (half.index_bits_of(self.level) + half.entry_bits).min(CHUNK_BITS);
            self.words.resize(1 << (bits - WORD_BITS), 0);
            if let Err(error) = read_entries(self.address + from, &mut self.words) {
                self.next = (from + CHUNK) >> half.entry_bits;
                self.is_empty = false;
                return Err(error);
            }
            self.words_from = Some(from);
        }
        let word = self.words[(offset % CHUNK / 8) as usize];
        self.next += 1;
        Ok(half.entry_in(word, offset))
    }
}

impl<F, E> Iterator for VirtualExtents<F, E>
where
    F: FnMut(u64, &mut [u64]) -> Result<(), E>,
{
    type Item = Result<VirtualExtent, E>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.error.take() {
            return Some(Err(error));
        }
        loop {
            match self.step() {
                Some(Ok(None)) => {}
                Some(Ok(Some(page))) => {
                    if !self.extent.as_mut().is_some_and(|extent| extent.append(&page))
                        && let Some(extent) = self.extent.replace(page)
                    {
                        return Some(Ok(extent));
                    }
                }
                Some(Err(error)) => match self.extent.take() {
                    Some(extent) => {
                        self.error = Some(error);
                        return Some(Ok(extent));
                    }
                    None => return Some(Err(error)),
                },
                None => return self.extent.take().map(Ok),
            }
        }
    }
}

impl<F, E> fmt::Debug for VirtualExtents<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualExtents").field("first", &self.first).field("last", &self.last).finish_non_exhaustive()
    }
}

/// Returns a range by its first and last address; `None` if it is empty.
pub(crate) fn inclusive(addresses: &impl RangeBounds<u64>) -> Option<RangeInclusive<u64>> {
    let first = match addresses.start_bound() {
        Bound::Included(&first) => first,
        Bound::Excluded(&before) => before.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let last = match addresses.end_bound() {
        Bound::Included(&last) => last,
        Bound::Excluded(&end) => end.checked_sub(1)?,
        Bound::Unbounded => u64::MAX,
    };
    (first <= last).then_some(first..=last)
}
