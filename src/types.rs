//! The words of the field: domains, frames, protection.

use std::error::Error;
use std::fmt;
use std::iter::FusedIterator;
use std::str::FromStr;

use crate::abi;

/// Bytes of a Xen frame: 4096 on every host, whatever the page size of the kernel.
pub const FRAME_SIZE: usize = 4096;

/// The most frames of one mapping: as many as 2^47 bytes of addresses hold, which is what a process has.
pub(crate) const MAX_FRAMES: usize = (1 << 47) / FRAME_SIZE;

/// The highest number of a frame.
const HIGHEST_FRAME: u64 = (1 << 40) - 1;

/// Why a number names no domain or frame.
///
/// ```
/// use xenmap::{Domid, Gfn, InvalidNumber};
///
/// assert_eq!(Domid::try_from(70_000), Err(InvalidNumber::Domid { number: 70_000 }));
/// assert_eq!(Gfn::new(1 << 40), Err(InvalidNumber::Frame { number: 1 << 40 }));
/// assert_eq!("five".parse::<Gfn>(), Err(InvalidNumber::Text));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidNumber {
    /// It does not name a domain whose memory can be mapped.
    Domid {
        /// The number.
        number: u64,
    },
    /// It is too large for a frame.
    Frame {
        /// The number.
        number: u64,
    },
    /// The text is no number of 64 bits.
    Text,
}

impl fmt::Display for InvalidNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidNumber::Domid { number } => {
                let highest = abi::FIRST_RESERVED_DOMID - 1;
                write!(f, "{number} does not name a domain whose memory can be mapped: give 0 to {highest}")
            }
            InvalidNumber::Frame { number } => {
                write!(f, "{number:#x} is no frame number: the highest is {HIGHEST_FRAME:#x}")
            }
            InvalidNumber::Text => {
                f.write_str("not a number of 64 bits: give one in decimal, or in hexadecimal after 0x")
            }
        }
    }
}

impl Error for InvalidNumber {}

/// What a text says: digits, or hexadecimal ones after 0x. No sign.
fn parse(text: &str) -> Result<u64, InvalidNumber> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    // The standard library takes a plus sign too.
    let number = if digits.starts_with('+') { None } else { u64::from_str_radix(digits, radix).ok() };
    number.ok_or(InvalidNumber::Text)
}

/// What each type of number has, whatever it numbers: it needs `TryFrom<u64>`.
macro_rules! number {
    ($name:ident, $inner:ty) => {
        impl $name {
            /// The number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl From<$name> for u64 {
            fn from(number: $name) -> u64 {
                number.0.into()
            }
        }

        impl FromStr for $name {
            type Err = InvalidNumber;

            /// Reads a decimal number, or a hexadecimal one after 0x.
            fn from_str(text: &str) -> Result<$name, InvalidNumber> {
                parse(text)?.try_into()
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::UpperHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// What each type of frame number has: also the type itself.
macro_rules! frame_number {
    ($(#[$attribute:meta])* $name:ident) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        number!($name, u64);

        impl $name {
            /// The highest frame number.
            pub const MAX: $name = $name(HIGHEST_FRAME);

            /// The frame with this number.
            ///
            /// # Errors
            ///
            /// [`InvalidNumber::Frame`] if it is above [`Self::MAX`].
            pub const fn new(number: u64) -> Result<$name, InvalidNumber> {
                if number <= HIGHEST_FRAME { Ok($name(number)) } else { Err(InvalidNumber::Frame { number }) }
            }

            /// The frame that holds the byte at this address of the guest.
            ///
            /// # Errors
            ///
            /// [`InvalidNumber::Frame`] if the frame is above [`Self::MAX`].
            pub const fn containing(address: u64) -> Result<$name, InvalidNumber> {
                $name::new(address / FRAME_SIZE as u64)
            }

            /// `count` consecutive frames from this one on.
            ///
            /// # Errors
            ///
            /// [`InvalidNumber::Frame`] if the last is above [`Self::MAX`].
            pub fn range(
                self,
                count: usize,
            ) -> Result<
                impl ExactSizeIterator<Item = $name> + DoubleEndedIterator + FusedIterator + Clone,
                InvalidNumber,
            > {
                if let Some(further) = count.checked_sub(1) {
                    // A count that does not fit u64 does not exist: the crate is for 64-bit Linux.
                    $name::new(self.0.saturating_add(further as u64))?;
                }
                let first = self.0;
                Ok((0..count).map(move |i| $name(first + i as u64)))
            }
        }

        impl TryFrom<u64> for $name {
            type Error = InvalidNumber;

            fn try_from(number: u64) -> Result<$name, InvalidNumber> {
                $name::new(number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

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
/// # Ok::<(), xenmap::InvalidNumber>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domid(u16);

number!(Domid, u16);

impl Domid {
    /// The hypervisor itself (`DOMID_XEN`), whose shared frames, the M2P table among them, can be mapped read-only.
    pub const XEN: Domid = Domid(abi::XEN_DOMID);

    /// The domain with this number.
    ///
    /// # Errors
    ///
    /// [`InvalidNumber::Domid`] if the number is one of Xen's own, except `DOMID_XEN`.
    pub const fn new(domid: u16) -> Result<Domid, InvalidNumber> {
        if domid < abi::FIRST_RESERVED_DOMID || domid == abi::XEN_DOMID {
            Ok(Domid(domid))
        } else {
            Err(InvalidNumber::Domid { number: domid as u64 })
        }
    }

    /// Any number, those included that Xen keeps for itself: for callers who speak C and know what they do.
    pub(crate) const fn as_given(domid: u16) -> Domid {
        Domid(domid)
    }
}

impl TryFrom<u64> for Domid {
    type Error = InvalidNumber;

    fn try_from(number: u64) -> Result<Domid, InvalidNumber> {
        u16::try_from(number).map_err(|_| InvalidNumber::Domid { number }).and_then(Domid::new)
    }
}

impl fmt::Display for Domid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

frame_number! {
    /// The number of a frame of a guest, as the guest puts it into its page tables.
    ///
    /// For an HVM, PVH or Arm guest it counts the guest's own physical frames (the address divided by
    /// [`FRAME_SIZE`]); for a PV guest it is the machine frame (MFN).
    ///
    /// A number of 2^40 or more is refused: the kernel of a PV dom0 loses its upper bits and maps another frame.
    ///
    /// ```
    /// use xenmap::Gfn;
    ///
    /// assert_eq!(Gfn::containing(0x1234_5678)?, Gfn::new(0x12345)?);
    /// assert_eq!("0x12345".parse::<Gfn>()?.to_string(), "0x12345");
    /// assert!(Gfn::new(1 << 40).is_err());
    /// # Ok::<(), xenmap::InvalidNumber>(())
    /// ```
    Gfn
}

/// What may be done through a mapping: nothing else ever, so matches on it can name both.
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
        assert_eq!(Domid::try_from(70_000), Err(InvalidNumber::Domid { number: 70_000 }));
        assert_eq!("4294967301".parse::<Domid>(), Err(InvalidNumber::Domid { number: 4_294_967_301 }));
        assert!("-1".parse::<Domid>().is_err());
    }

    #[test]
    fn number_is_read_from_decimal_or_hexadecimal_digits() {
        assert_eq!("17".parse(), Domid::new(17));
        assert_eq!("0x1f".parse(), Domid::new(31));
        assert_eq!("17".parse(), Gfn::new(17));
        assert_eq!(Gfn::MAX.to_string().parse(), Ok(Gfn::MAX));
        for text in ["", "0x", "+1", "0x+1", "-1", " 1", "0X1", "1f", "five", "18446744073709551616"] {
            assert_eq!(text.parse::<Domid>(), Err(InvalidNumber::Text), "{text:?}");
            assert_eq!(text.parse::<Gfn>(), Err(InvalidNumber::Text), "{text:?}");
        }
    }

    #[test]
    fn number_is_written_in_hexadecimal_as_the_integer_is() {
        let (domid, gfn) = (Domid::new(0x2F).unwrap(), Gfn::new(0x2F).unwrap());
        assert_eq!(format!("{domid} {domid:#x} {domid:04X}"), "47 0x2f 002F");
        assert_eq!(format!("{gfn} {gfn:x} {gfn:#06X} {gfn:?}"), "0x2f 2f 0x002F Gfn(0x2f)");
        assert_eq!((u64::from(domid), u64::from(gfn)), (0x2F, 0x2F));
    }

    #[test]
    fn invalid_number_says_what_to_give() {
        let highest = InvalidNumber::Frame { number: 1 << 40 }.to_string();
        assert_eq!(highest, format!("0x10000000000 is no frame number: the highest is {}", Gfn::MAX));
        let domid = InvalidNumber::Domid { number: 70_000 }.to_string();
        assert!(domid.ends_with("give 0 to 32751"), "{domid}");
    }

    #[test]
    fn gfn_range_past_the_end_is_refused() {
        assert_eq!(Gfn::MAX.range(1).unwrap().next(), Some(Gfn::MAX));
        assert!(Gfn::MAX.range(2).is_err());
        assert!(Gfn::MAX.range(usize::MAX).is_err());
        assert_eq!(Gfn::MAX.range(0).unwrap().len(), 0);
    }

    #[test]
    fn gfn_range_goes_either_way() {
        let numbers = |range: &mut dyn Iterator<Item = Gfn>| range.map(Gfn::get).collect::<Vec<_>>();
        let range = Gfn::new(5).unwrap().range(3).unwrap();
        assert_eq!(range.len(), 3);
        assert_eq!(numbers(&mut range.clone()), [5, 6, 7]);
        assert_eq!(numbers(&mut range.rev()), [7, 6, 5]);
    }
}
