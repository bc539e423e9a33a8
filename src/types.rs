//! The words of the field: domains, frames, protection.

use std::fmt;
use std::str::FromStr;

use crate::abi;
use crate::error::{Error, Result};

/// Bytes of a Xen frame: 4096 on every host, whatever the page size of the kernel.
pub const FRAME_SIZE: usize = 4096;

/// The most frames of one mapping: as many as 2^47 bytes of addresses hold, which is what a process has.
pub(crate) const MAX_FRAMES: usize = (1 << 47) / FRAME_SIZE;

/// The number of a domain, one that names a domain's own memory.
///
/// Xen keeps numbers from 0x7FF0 on for itself. Of those only [`Domid::XEN`] can be had. The others are
/// refused, because the kernel takes some of them and does what nobody meant: `DOMID_SELF` maps the caller's own
/// machine frames and `DOMID_IO` maps raw MMIO, both with success.
///
/// ```
/// use xenmap::Domid;
///
/// assert_eq!(Domid::new(5)?.get(), 5);
/// assert!(Domid::new(0x7FF0).is_err());
/// assert!(Domid::try_from(70_000).is_err()); // never 4464
/// assert_eq!("17".parse::<Domid>()?, Domid::new(17)?);
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domid(u16);

impl Domid {
    /// The hypervisor itself (`DOMID_XEN`), whose shared frames, the M2P table among them, can be mapped read-only.
    pub const XEN: Domid = Domid(abi::XEN_DOMID);

    /// The domain with this number.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDomid`] if the number is one of Xen's own, except `DOMID_XEN`.
    pub const fn new(domid: u16) -> Result<Domid> {
        if domid < abi::FIRST_RESERVED_DOMID || domid == abi::XEN_DOMID {
            Ok(Domid(domid))
        } else {
            Err(Error::InvalidDomid { domid: domid as u64 })
        }
    }

    /// Any number, those included that Xen keeps for itself: for callers who speak C and know what they do.
    pub(crate) const fn as_given(domid: u16) -> Domid {
        Domid(domid)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for Domid {
    type Error = Error;

    fn try_from(domid: u32) -> Result<Domid> {
        u16::try_from(domid).map_err(|_| Error::InvalidDomid { domid: domid.into() }).and_then(Domid::new)
    }
}

impl FromStr for Domid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Domid> {
        let domid: u64 = text.parse().map_err(|_| Error::InvalidDomid { domid: u64::MAX })?;
        u32::try_from(domid).map_err(|_| Error::InvalidDomid { domid }).and_then(Domid::try_from)
    }
}

impl fmt::Display for Domid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a frame of a guest, as the guest puts it into its page tables.
///
/// For an HVM, PVH or Arm guest it counts the guest's own physical frames (the address divided by [`FRAME_SIZE`]); for
/// a PV guest it is the machine frame (MFN).
///
/// A number of 2^40 or more is refused: the kernel of a PV dom0 loses its upper bits and maps another frame.
///
/// ```
/// use xenmap::Gfn;
///
/// assert_eq!(Gfn::containing(0x1234_5678)?, Gfn::new(0x12345)?);
/// assert!(Gfn::new(1 << 40).is_err());
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gfn(u64);

impl Gfn {
    /// The highest frame number.
    pub const MAX: Gfn = Gfn((1 << 40) - 1);

    /// The frame with this number.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidGfn`] if it is above [`Gfn::MAX`].
    pub const fn new(gfn: u64) -> Result<Gfn> {
        if gfn <= Gfn::MAX.0 { Ok(Gfn(gfn)) } else { Err(Error::InvalidGfn { gfn }) }
    }

    /// The frame that holds the byte at this address of the guest.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidGfn`] if the frame is above [`Gfn::MAX`].
    pub const fn containing(address: u64) -> Result<Gfn> {
        Gfn::new(address / FRAME_SIZE as u64)
    }

    /// `count` consecutive frames from this one on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidGfn`] if the last is above [`Gfn::MAX`].
    pub fn range(self, count: usize) -> Result<impl ExactSizeIterator<Item = Gfn> + Clone> {
        if let Some(further) = count.checked_sub(1) {
            // A count that does not fit u64 does not exist: the crate is for 64-bit Linux.
            Gfn::new(self.0.saturating_add(further as u64))?;
        }
        let first = self.0;
        Ok((0..count).map(move |i| Gfn(first + i as u64)))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gfn({:#x})", self.0)
    }
}

/// What may be done through a mapping.
///
/// Map read-only unless you write: a PV guest's page tables can be mapped in no other way, and in a PV dom0 a
/// writable mapping keeps a PV guest from using the frame as a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// How this domain's own memory is managed, which decides what a mapping costs and what a failed frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostKind {
    /// A PV domain: mapping writes its page tables through the hypervisor.
    Pv,
    /// A PVH, HVM or Arm domain: Xen translates its physical addresses, and a mapping enters its physmap.
    AutoTranslated,
    /// It could not be learned; the stricter rules, those of an auto-translated domain, are followed.
    Unknown,
}

/// How a guest's memory is managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuestKind {
    /// A PV guest, whose frames are named by machine frame number.
    Pv,
    /// An HVM guest, whose frames are named by its own physical frame number; also a PVH guest where Xen does not tell
    /// which of the two it is.
    Hvm,
    /// A PVH guest: the same without emulated devices. On Arm every guest is one, and so is dom0.
    Pvh,
}

/// The architecture of a host, and so of its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    X86,
    Arm64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domid_refuses_every_number_that_xen_keeps_but_its_own() {
        let allowed: Vec<u16> = (0x7FF0..=u16::MAX).filter(|&id| Domid::new(id).is_ok()).collect();
        assert_eq!(allowed, [Domid::XEN.get()]);
        assert!(Domid::new(0x7FEF).is_ok());
    }

    #[test]
    fn domid_from_a_larger_number_is_never_cut() {
        assert!(matches!(Domid::try_from(70_000), Err(Error::InvalidDomid { domid: 70_000 })));
        assert!(matches!("4294967301".parse::<Domid>(), Err(Error::InvalidDomid { domid: 4_294_967_301 })));
        assert!("-1".parse::<Domid>().is_err());
    }

    #[test]
    fn gfn_range_past_the_end_is_refused() {
        assert_eq!(Gfn::MAX.range(1).unwrap().next(), Some(Gfn::MAX));
        assert!(Gfn::MAX.range(2).is_err());
        assert!(Gfn::MAX.range(usize::MAX).is_err());
        assert_eq!(Gfn::MAX.range(0).unwrap().len(), 0);
    }
}
