//! Reading and writing a guest's virtual memory.

use super::{ADDRESS, AddressSpace, FRAME};
use crate::cache::Pinned;
use crate::error::{Error, Result};
use crate::guest::{PageTables, PagingMode};
use crate::mapping::{Access, ForeignMapping, View, Word};
use crate::types::{FRAME_SIZE, Gfn, Pfn, Protection};

use Protection::{ReadOnly, ReadWrite};

impl AddressSpace {
    /// Reads an integer in native byte order, by a single access if its address is a multiple of its size.
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    #[inline]
    pub fn read<T: Word>(&self, address: u64) -> Result<T> {
        let size = size_of::<T>();
        if is_in_page(address, size) {
            return self.in_page(ReadOnly, address, size, |view| view.read(0));
        }
        // Xen runs on little-endian processors only.
        let mut bytes = [0; 8];
        self.read_bytes(address, &mut bytes[..size])?;
        Ok(T::from_bits(u64::from_le_bytes(bytes)))
    }

    /// Writes an integer in native byte order, by a single access if its address is a multiple of its size.
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    #[inline]
    pub fn write<T: Word>(&self, address: u64, value: T) -> Result<()> {
        let size = size_of::<T>();
        if is_in_page(address, size) {
            return self.in_page(ReadWrite, address, size, |view| view.write(0, value));
        }
        self.write_bytes(address, &value.bits().to_le_bytes()[..size])
    }

    /// Copies bytes out, as many as `to` holds.
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    #[inline]
    pub fn read_bytes(&self, address: u64, to: &mut [u8]) -> Result<()> {
        if is_in_page(address, to.len()) {
            return self.in_page(ReadOnly, address, to.len(), |view| view.read_bytes(0, to));
        }
        self.read_up_to(address, to).map_err(|(_, error)| error)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    #[inline]
    pub fn write_bytes(&self, address: u64, from: &[u8]) -> Result<()> {
        if is_in_page(address, from.len()) {
            return self.in_page(ReadWrite, address, from.len(), |view| view.write_bytes(0, from));
        }
        let write = |at, done, len| {
            let from = &from[done..done + len];
            self.in_page(ReadWrite, at, len, |view| view.write_bytes(0, from))
        };
        each_page(address, from.len(), write).map_err(|(_, error)| error)
    }

    /// Copies bytes out until the first that cannot be read. Returns how many were read: all that `to` holds, unless
    /// there is such a byte.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{AddressSpace, Gfn, Guest, GuestKind, PageTables, PagingMode};
    /// # let host = MockHost::new();
    /// # let domain = host.create_domain(GuestKind::Hvm, 16);
    /// # for frame in 4..7 {
    /// #     domain.write(Gfn::new(frame)?, 0, &((frame + 1) << 12 | 1).to_ne_bytes());
    /// # }
    /// # domain.write(Gfn::new(7)?, 0, &0x8001_u64.to_ne_bytes());
    /// # let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
    /// # let space = AddressSpace::new(Guest::open(&host.open()?, domain.domid())?, tables);
    /// // Only the page at 0 is mapped.
    /// let mut bytes = [0; 64];
    /// assert_eq!(space.read_some(0xFF0, &mut bytes)?, 16);
    /// let why = space.read_some(0xFF0 + 16, &mut bytes).unwrap_err();
    /// assert_eq!(why.to_string(), "virtual address 0x1000: its entry in the page table (level 1) is not present");
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors), if the first byte cannot be read.
    pub fn read_some(&self, address: u64, to: &mut [u8]) -> Result<usize> {
        match self.read_up_to(address, to) {
            Ok(()) => Ok(to.len()),
            Err((0, error)) => Err(error),
            Err((done, _)) => Ok(done),
        }
    }

    /// Reads a string that ends with a zero byte, without that byte. Of a string that is longer than `max` bytes,
    /// returns the first `max`.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{AddressSpace, Gfn, Guest, GuestKind, PageTables, PagingMode};
    /// # let host = MockHost::new();
    /// # let domain = host.create_domain(GuestKind::Hvm, 16);
    /// # domain.write(Gfn::new(4)?, 0, &0x5003_u64.to_ne_bytes());
    /// # domain.write(Gfn::new(5)?, 0, &0x0083_u64.to_ne_bytes());
    /// # let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
    /// # let space = AddressSpace::new(Guest::open(&host.open()?, domain.domid())?, tables);
    /// space.write_bytes(0x8000, b"swapper/0\0...")?;
    /// assert_eq!(space.read_c_string(0x8000, 16)?, b"swapper/0");
    /// assert_eq!(space.read_c_string(0x8000, 4)?, b"swap");
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors), if a byte before the end cannot be read.
    pub fn read_c_string(&self, address: u64, max: usize) -> Result<Vec<u8>> {
        /// Most strings are shorter than this.
        const PART: usize = 64;
        let mut string = Vec::new();
        let mut part = [0; PART];
        while string.len() < max {
            let next = address.checked_add(string.len() as u64).ok_or(past_the_end(address))?;
            // Not across a page: the string may end before a page that is not mapped.
            let part = &mut part[..PART.min(max - string.len()).min(rest_of_page(next))];
            self.read_bytes(next, part)?;
            if let Some(end) = part.iter().position(|&byte| byte == 0) {
                string.extend(&part[..end]);
                break;
            }
            string.extend(&*part);
        }
        Ok(string)
    }

    /// Follows a chain of pointers: adds each offset to the address of before, and reads the pointer there. Returns the
    /// last pointer; for no offsets, the address itself.
    ///
    /// A pointer has 8 bytes or, with [`PagingMode::Pae`] and [`PagingMode::TwoLevels`], 4.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{AddressSpace, Gfn, Guest, GuestKind, PageTables, PagingMode};
    /// # let host = MockHost::new();
    /// # let domain = host.create_domain(GuestKind::Hvm, 16);
    /// # domain.write(Gfn::new(4)?, 0, &0x5003_u64.to_ne_bytes());
    /// # domain.write(Gfn::new(5)?, 0, &0x0083_u64.to_ne_bytes());
    /// # let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
    /// # let space = AddressSpace::new(Guest::open(&host.open()?, domain.domid())?, tables);
    /// const MM: u64 = 0x20; // the offset of task->mm
    /// const PGD: u64 = 0x48; // the offset of mm->pgd
    /// space.write(0x8020, 0x9000_u64)?;
    /// space.write(0x9048, 0xA000_u64)?;
    /// assert_eq!(space.follow(0x8000, &[MM, PGD])?, 0xA000);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    pub fn follow(&self, address: u64, offsets: &[u64]) -> Result<u64> {
        let is_32_bit = matches!(self.tables, PageTables::X86 { mode: PagingMode::Pae | PagingMode::TwoLevels, .. });
        offsets.iter().try_fold(address, |pointer, &offset| {
            let at = pointer.wrapping_add(offset);
            if is_32_bit { self.read::<u32>(at & u64::from(u32::MAX)).map(u64::from) } else { self.read(at) }
        })
    }

    /// Reads a structure, or an array of them. It may be torn if the guest writes it at the same time; see
    /// [`Access::read_as`](crate::Access::read_as).
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    #[cfg(feature = "zerocopy")]
    #[inline]
    pub fn read_as<T: zerocopy::FromBytes>(&self, address: u64) -> Result<T> {
        let size = size_of::<T>();
        if is_in_page(address, size) {
            return self.in_page(ReadOnly, address, size, |view| view.read_as(0));
        }
        let mut bytes = vec![0; size];
        self.read_bytes(address, &mut bytes)?;
        T::read_from_bytes(&bytes).map_err(|_| Error::OutOfBounds { offset: 0, len: size, size })
    }

    /// Reads into a structure, an array or a slice of them; see [`read_as`](AddressSpace::read_as).
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    #[cfg(feature = "zerocopy")]
    pub fn read_into<T: zerocopy::FromBytes + zerocopy::IntoBytes + ?Sized>(
        &self,
        address: u64,
        to: &mut T,
    ) -> Result<()> {
        self.read_bytes(address, to.as_mut_bytes())
    }

    /// Writes a structure, an array or a slice of them. The guest may see its bytes change in any order.
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    #[cfg(feature = "zerocopy")]
    pub fn write_as<T: zerocopy::IntoBytes + zerocopy::Immutable + ?Sized>(
        &self,
        address: u64,
        value: &T,
    ) -> Result<()> {
        self.write_bytes(address, value.as_bytes())
    }

    /// Pins a range in the cache: one guard for each part that is contiguous in guest-physical memory.
    ///
    /// The guards keep showing the same frames, whatever the guest does to its page tables.
    ///
    /// # Errors
    ///
    /// Those of [all methods](AddressSpace#errors).
    pub fn pin(&self, protection: Protection, address: u64, len: usize) -> Result<Vec<Pinned<'_>>> {
        let mut parts: Vec<(u64, usize)> = Vec::new();
        let add = |at, _, len| {
            let physical = self.translate(at)?.physical;
            match parts.last_mut() {
                Some((start, before)) if *start + *before as u64 == physical => *before += len,
                _ => parts.push((physical, len)),
            }
            Ok(())
        };
        each_page(address, len, add).map_err(|(_, error)| error)?;
        parts.into_iter().map(|(physical, len)| self.cache.get(protection, physical, len)).collect()
    }

    /// Maps the pages of a range one after the other, as the guest sees them, wherever they are in physical memory: as
    /// one contiguous mapping, outside of the cache.
    ///
    /// The mapping consists of whole frames: `address` is at the offset `address % FRAME_SIZE`. It keeps showing the
    /// same frames, whatever the guest does to its page tables.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, AddressSpace, FRAME_SIZE, Gfn, Guest, GuestKind, PageTables, PagingMode, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// for frame in 4..7 {
    ///     domain.write(Gfn::new(frame)?, 0, &((frame + 1) << 12 | 1).to_ne_bytes());
    /// }
    /// // The first two pages are in frames 9 and 2.
    /// domain.write(Gfn::new(7)?, 0, &0x9001_u64.to_ne_bytes());
    /// domain.write(Gfn::new(7)?, 8, &0x2001_u64.to_ne_bytes());
    ///
    /// let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
    /// let space = AddressSpace::new(Guest::open(&host.open()?, domain.domid())?, tables);
    /// let mapping = space.map(Protection::ReadWrite, 0xFF8, 16)?;
    /// mapping.view().write_bytes(0xFF8 % FRAME_SIZE, b"across the pages")?;
    /// assert_eq!(domain.read(Gfn::new(9)?, 0xFF8, 8), b"across t");
    /// assert_eq!(domain.read(Gfn::new(2)?, 0, 8), b"he pages");
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`translate`](AddressSpace::translate), and of
    /// [`ForeignMemory::map_foreign_batch`](crate::ForeignMemory::map_foreign_batch).
    pub fn map(&self, protection: Protection, address: u64, len: usize) -> Result<ForeignMapping> {
        let mut gfns = Vec::new();
        let add = |at, _, _| {
            let physical = self.translate(at)?.physical;
            gfns.push(match &self.machine {
                // `Gfn::MAX` fails to map.
                Some(machine) => machine.gfn_of(self.guest(), Pfn::containing(physical)?)?.unwrap_or(Gfn::MAX),
                None => Gfn::containing(physical)?,
            });
            Ok(())
        };
        each_page(address, len, add).map_err(|(_, error)| error)?;
        self.guest().memory().map_foreign_batch(self.guest().domid(), protection, &gfns)
    }

    /// Calls `f` with `len` bytes, which are in one page.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "costs less if the view stays in registers")]
    fn in_page<R>(
        &self,
        protection: Protection,
        address: u64,
        len: usize,
        mut f: impl FnMut(&View<'_>) -> Result<R>,
    ) -> Result<R> {
        if let Some(known) = self.tlb.find(address)
            && let Some(done) = self.cache.with_mapped(protection, known & ADDRESS, len, |view| f(view))
        {
            return done;
        }
        self.in_page_slowly(protection, address, len, f)
    }

    #[cold]
    fn in_page_slowly<R>(
        &self,
        protection: Protection,
        address: u64,
        len: usize,
        mut f: impl FnMut(&View<'_>) -> Result<R>,
    ) -> Result<R> {
        let physical = self.translate(address)?.physical;
        f(&self.cache.get(protection, physical, len)?.view(0)?)
    }

    /// Reads page by page. An error comes with the number of bytes that were read before it.
    fn read_up_to(&self, address: u64, to: &mut [u8]) -> std::result::Result<(), (usize, Error)> {
        each_page(address, to.len(), |at, done, len| {
            let to = &mut to[done..done + len];
            self.in_page(ReadOnly, at, len, |view| view.read_bytes(0, to))
        })
    }
}

/// Calls `f` for each page of a range: with the address and the length of the part in the page, and the number of bytes
/// before it. An error comes with that number.
fn each_page(
    address: u64,
    len: usize,
    mut f: impl FnMut(u64, usize, usize) -> Result<()>,
) -> std::result::Result<(), (usize, Error)> {
    let mut done = 0;
    while done < len {
        let next = address.checked_add(done as u64).ok_or((done, past_the_end(address)))?;
        let part = rest_of_page(next).min(len - done);
        f(next, done, part).map_err(|error| (done, error))?;
        done += part;
    }
    Ok(())
}

fn past_the_end(address: u64) -> Error {
    Error::Translation { address, last: address, reason: "the range reaches past the last address" }
}

/// Returns the number of bytes from an address to the end of its page.
#[inline]
fn rest_of_page(address: u64) -> usize {
    FRAME_SIZE - (address % FRAME) as usize
}

/// Returns whether there are bytes, and all are in one page.
#[inline]
fn is_in_page(address: u64, len: usize) -> bool {
    (1..=rest_of_page(address)).contains(&len)
}
