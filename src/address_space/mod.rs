//! A guest's virtual memory, through a map cache and remembered translations.

mod access;
mod extents;
mod sync;
mod tables;
mod tlb;

use std::fmt;
use std::ops::{RangeBounds, RangeInclusive};
use std::sync::Arc;

use crate::cache::MapCache;
use crate::error::Result;
use crate::guest::{AccessRights, Guest, MachineFrames, PageTables, Translation, inclusive};
use crate::types::{FRAME_SIZE, GuestKind};
use tlb::Tlb;

const FRAME: u64 = FRAME_SIZE as u64;

/// A guest's virtual memory: its page tables over a [`MapCache`].
///
/// What was mapped stays mapped, and translations are remembered, so reading again costs no system call and no lock.
/// This is for programs that read many small things, such as a kernel's lists of tasks and modules. For a single read,
/// [`Guest::read_virtual`] keeps nothing mapped.
///
/// Access rights are ignored: this also writes where the guest itself could not.
/// [`translate`](AddressSpace::translate) reports them.
///
/// Any number of threads can use an address space at once. A forked child must not use it: see [`MapCache`].
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{AddressSpace, Gfn, Guest, GuestKind, PageTables, PagingMode};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// // In the top table (frame 4), entry 0 refers to a table (frame 5), whose entry 1 maps 1 GiB at address 0.
/// domain.write(Gfn::new(4)?, 0, &0x5003_u64.to_ne_bytes());
/// domain.write(Gfn::new(5)?, 8, &0x0083_u64.to_ne_bytes());
///
/// let memory = host.open()?;
/// let guest = Guest::open(&memory, domain.domid())?;
/// // On Xen: let tables = guest.page_tables(0)?;
/// let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
/// let space = AddressSpace::new(guest, tables);
///
/// space.write(0x4000_1008, 7_u64)?;
/// assert_eq!(space.read::<u64>(0x4000_1008)?, 7);
/// let found = space.translate(0x4000_1008)?;
/// assert_eq!((found.physical, found.page_size), (0x1008, 1 << 30));
/// assert!(found.rights.writable && !found.rights.user);
/// # Ok::<(), xenmap::Error>(())
/// ```
///
/// # When the guest changes its page tables
///
/// Translations are remembered until they are [invalidated](AddressSpace::invalidate), or replaced by others. Until
/// then, they are stale if the guest has changed its tables: reads and writes go to the page that was there before.
/// That is never unsound, since every access is checked against what is mapped, but the data is that of another page.
/// Nothing informs a program of such changes.
///
/// - If the guest is [paused](Guest::pause), nothing changes: invalidate after it has run.
/// - For a running guest, call [`invalidate_all`](AddressSpace::invalidate_all) before each pass over its structures,
///   or as often as the data needs to be fresh. It costs about as much as reading a few pages, and the frames stay
///   mapped. Check what you read: a pass over a running guest may see half of a change in any case.
///
/// If the guest has given back frames and got others, what is mapped is stale, too: see
/// [`MapCache`](MapCache#when-a-guest-changes-its-memory).
///
/// # PV guests
///
/// A PV guest's tables hold machine frames. Their pfns are looked up in Xen's table and in the guest's p2m, and what
/// the p2m says is remembered like a translation. Physical addresses are pseudo-physical, as everywhere in this crate.
///
/// The tables of a 64-bit PV guest also map Xen's own memory, from `0xFFFF_8000_0000_0000` to `0xFFFF_87FF_FFFF_FFFF`.
/// It is not the guest's, and cannot be read.
///
/// # What is remembered
///
/// Translations of up to 128 MiB in small pages and 2 GiB in large ones (from 2 MiB), if they are not too scattered.
/// They take up to 1 MiB of memory. Other addresses are translated anew, through page tables that stay mapped.
///
/// # Errors
///
/// All methods that read or write have the errors of [`translate`](AddressSpace::translate) and of [`MapCache::get`],
/// for the first address that fails. After an error, the pages before that address have been read or written.
pub struct AddressSpace {
    tables: PageTables,
    cache: Arc<MapCache>,
    tlb: Tlb,
    /// Only for a PV guest.
    machine: Option<MachineFrames>,
}

impl AddressSpace {
    /// Creates an address space with a map cache of its own, of the sizes in
    /// [`CacheConfig::for_small_reads`](crate::CacheConfig::for_small_reads). Maps nothing yet.
    ///
    /// For address spaces of one guest that share a cache, use [`with_cache`](AddressSpace::with_cache).
    #[must_use]
    pub fn new(guest: Guest, tables: PageTables) -> AddressSpace {
        AddressSpace::with_cache(Arc::new(MapCache::for_small_reads(guest)), tables)
    }

    /// Creates an address space over a cache, which others may use, too. Maps nothing yet.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use xenmap::{AddressSpace, PageTables};
    ///
    /// /// Returns the address space of a program, given its kernel's.
    /// fn of_program(kernel: &AddressSpace, program: PageTables) -> AddressSpace {
    ///     AddressSpace::with_cache(Arc::clone(kernel.cache()), program)
    /// }
    /// ```
    #[must_use]
    pub fn with_cache(cache: Arc<MapCache>, tables: PageTables) -> AddressSpace {
        let machine = (cache.guest().kind() == GuestKind::Pv).then(MachineFrames::default);
        AddressSpace { tables, cache, tlb: Tlb::new(), machine }
    }

    /// Returns the cache that maps the guest's memory.
    #[must_use]
    pub fn cache(&self) -> &Arc<MapCache> {
        &self.cache
    }

    /// Returns the guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        self.cache.guest()
    }

    /// Returns the page tables.
    #[must_use]
    pub fn page_tables(&self) -> PageTables {
        self.tables
    }

    /// Translates a virtual address to a guest-physical one. Also returns the size of its page, and what the guest may
    /// do with it.
    ///
    /// # Errors
    ///
    /// [`Error::Translation`](crate::Error::Translation) if the address is not mapped or, in a PV guest, leads to a
    /// frame that is not the guest's own. [`Error::GuestAddress`](crate::Error::GuestAddress) if a table is not in the
    /// guest's RAM, with the address of the table's entry (for a PV guest, a machine address). Those of
    /// [`MapCache::get`]; for a PV guest also those of [`Guest::gfns`], and
    /// [`Error::Hypercall`](crate::Error::Hypercall).
    pub fn translate(&self, address: u64) -> Result<Translation> {
        if let Some(known) = self.tlb.find(address) {
            return Ok(decode(known));
        }
        self.walk(address)
    }

    /// Forgets the translations of a range of virtual addresses: those that the guest may have changed.
    ///
    /// A call that began before may still use the old ones; every later call uses new ones. Frames stay mapped.
    ///
    /// If the guest changed a large page, pass all of its addresses: large pages are remembered in parts. On arm64,
    /// tags in the addresses are ignored.
    ///
    /// ```
    /// use xenmap::mock::MockHost;
    /// use xenmap::{AddressSpace, Gfn, Guest, GuestKind, PageTables, PagingMode};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 1024);
    /// domain.write(Gfn::new(4)?, 0, &0x5001_u64.to_ne_bytes());
    /// domain.write(Gfn::new(5)?, 0, &0x6001_u64.to_ne_bytes());
    /// domain.write(Gfn::new(6)?, 0, &0x0081_u64.to_ne_bytes()); // a page of 2 MiB at address 0
    ///
    /// let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
    /// let space = AddressSpace::new(Guest::open(&host.open()?, domain.domid())?, tables);
    /// assert_eq!(space.translate(0x1234)?.physical, 0x1234);
    ///
    /// domain.write(Gfn::new(6)?, 0, &0x20_0081_u64.to_ne_bytes()); // the guest moves it to 2 MiB
    /// assert_eq!(space.translate(0x1234)?.physical, 0x1234);
    /// space.invalidate(0..0x20_0000);
    /// assert_eq!(space.translate(0x1234)?.physical, 0x20_1234);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    pub fn invalidate(&self, addresses: impl RangeBounds<u64>) {
        if let Some(addresses) = inclusive(&addresses) {
            self.forget(&addresses);
        }
    }

    /// Forgets all translations; see [`invalidate`](AddressSpace::invalidate).
    pub fn invalidate_all(&self) {
        self.forget(&(0..=u64::MAX));
    }

    fn forget(&self, addresses: &RangeInclusive<u64>) {
        let addresses = if self.has_tags() { &without_tags(addresses) } else { addresses };
        // First what translations are made from: a walk that used it does not outlast what follows.
        if let Some(machine) = &self.machine {
            machine.forget();
        }
        self.tlb.invalidate(addresses);
    }

    /// Walks the tables, and remembers the translation.
    #[cold]
    fn walk(&self, address: u64) -> Result<Translation> {
        let time = self.tlb.time();
        let found = self.walk_tables(address)?;
        // A tag in the address would keep `invalidate` from finding it.
        if !self.has_tags() || address == without_tag(address) {
            self.tlb.insert(time, address, found.page_size, encode(found));
        }
        Ok(found)
    }

    /// Returns whether the top byte of an address may be a tag.
    fn has_tags(&self) -> bool {
        matches!(self.tables, PageTables::Arm64 { .. })
    }
}

/// Returns an address whose top byte repeats bit 55.
fn without_tag(address: u64) -> u64 {
    ((address << 8).cast_signed() >> 8).cast_unsigned()
}

/// Returns a range that has all of these addresses without their tags.
fn without_tags(addresses: &RangeInclusive<u64>) -> RangeInclusive<u64> {
    let (first, last) = (without_tag(*addresses.start()), without_tag(*addresses.end()));
    let has_all = addresses.end() - addresses.start() >= 1 << 56 || first > last;
    if has_all { 0..=u64::MAX } else { first..=last }
}

/// Without the translations, of which there may be thousands.
impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").field("tables", &self.tables).field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// A remembered translation: the physical address in the low bits, then the binary logarithm of the page's size, and
/// what the guest may do with the page.
const ADDRESS: u64 = (1 << SIZE_SHIFT) - 1;
const SIZE_SHIFT: u32 = 52;
const SIZE_MASK: u64 = 0x3F;
const WRITABLE: u64 = 1 << 61;
const USER: u64 = 1 << 62;
const EXECUTABLE: u64 = 1 << 63;

fn encode(found: Translation) -> u64 {
    let flag = |is_set: bool, bit: u64| if is_set { bit } else { 0 };
    let AccessRights { writable, user, executable, .. } = found.rights;
    found.physical
        | u64::from(found.page_size.trailing_zeros()) << SIZE_SHIFT
        | flag(writable, WRITABLE)
        | flag(user, USER)
        | flag(executable, EXECUTABLE)
}

fn decode(known: u64) -> Translation {
    let rights =
        AccessRights { writable: known & WRITABLE != 0, user: known & USER != 0, executable: known & EXECUTABLE != 0 };
    Translation { physical: known & ADDRESS, page_size: 1 << (known >> SIZE_SHIFT & SIZE_MASK), rights }
}
