//! A guest's page tables.

mod access;
mod arm64;
mod extents;
mod walk;
mod x86;

pub(crate) use extents::inclusive;
pub use extents::{VirtualExtent, VirtualExtents};
pub use x86::PagingMode;

const NO_SUCH_PAGE: &str = "an entry maps a page of a size that does not exist";

/// The page tables of an address space of a guest, described by the vcpu registers that select them.
///
/// Use [`Guest::page_tables`](crate::Guest::page_tables) for those that a vcpu is using, or fill in the registers:
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Gfn, Guest, GuestKind, PageTables, PagingMode};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Hvm, 16);
/// // In the top table (frame 4), entry 0 refers to a table (frame 5), whose entry 0 maps 1 GiB at address 0.
/// domain.write(Gfn::new(4)?, 0, &0x5001_u64.to_ne_bytes());
/// domain.write(Gfn::new(5)?, 0, &0x0081_u64.to_ne_bytes());
///
/// let memory = host.open()?;
/// let guest = Guest::open(&memory, domain.domid())?;
/// let tables = PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels };
/// guest.write_virtual(&tables, 0x1FFE, b"across two pages")?;
/// let mut text = [0; 16];
/// guest.read_virtual(&tables, 0x1FFE, &mut text)?;
/// assert_eq!(&text, b"across two pages");
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PageTables {
    /// The page tables of an x86 guest.
    X86 {
        /// The top table's address in bytes, as in the guest's CR3 (other bits of CR3 are ignored). For a PV guest,
        /// this is a machine address, also for a 32-bit one, whose CR3 holds it rotated.
        cr3: u64,
        /// The format of the tables.
        mode: PagingMode,
    },
    /// The translation tables of an arm64 guest at exception level 1: pages of 4, 16 or 64 KiB, and addresses of up to
    /// 52 bits.
    Arm64 {
        /// `TTBR0_EL1`, for addresses whose bit 55 is clear: those of programs.
        ttbr0: u64,
        /// `TTBR1_EL1`, for addresses whose bit 55 is set: those of the kernel.
        ttbr1: u64,
        /// `TCR_EL1`, which gives the format of both tables.
        tcr: u64,
    },
}

/// Where a virtual address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Translation {
    /// The physical address, in bytes. For a PV guest, [`PageTables::translate_with`] returns a machine address; all
    /// else returns a pseudo-physical one.
    pub physical: u64,
    /// The size in bytes of the page that the address is in.
    pub page_size: u64,
    /// What the guest may do with the page.
    pub rights: AccessRights,
}

/// What a guest may do with a page, by all entries that lead to it. Every page can be read.
///
/// Other limits are not considered: control registers (such as SMEP and SMAP on x86, WXN and PAN on Arm), protection
/// keys and, on Arm, permission indirection (`FEAT_S1PIE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AccessRights {
    /// Whether the page can be written: by the kernel and, if `user` is set, by programs.
    pub writable: bool,
    /// Whether programs can access the page. In a 64-bit PV guest, that includes the kernel's pages, because the kernel
    /// runs in user mode there.
    pub user: bool,
    /// Whether anyone, the kernel or programs, can execute code in the page.
    pub executable: bool,
}
