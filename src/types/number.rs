//! Domain and frame numbers, each with a type of its own.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::{FRAME_SIZE, NumberRange};
use crate::abi;

/// The highest frame number.
const HIGHEST_FRAME: u64 = (1 << 40) - 1;

/// Why a number is not valid for a domain or a frame.
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
    /// The number does not name a domain whose memory can be mapped.
    Domid {
        /// The number.
        number: u64,
    },
    /// The number is too large for a frame.
    Frame {
        /// The number.
        number: u64,
    },
    /// The text is not a 64-bit number.
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
                write!(f, "{number:#x} is not a frame number: the highest is {HIGHEST_FRAME:#x}")
            }
            InvalidNumber::Text => f.write_str("not a 64-bit number: give it in decimal, or in hexadecimal after 0x"),
        }
    }
}

impl Error for InvalidNumber {}

/// Parses decimal digits, or hexadecimal ones after 0x; no sign.
fn parse(text: &str) -> Result<u64, InvalidNumber> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    // The standard library accepts a plus sign.
    let number = if digits.starts_with('+') { None } else { u64::from_str_radix(digits, radix).ok() };
    number.ok_or(InvalidNumber::Text)
}

/// Implements what all number types have in common. The type needs `TryFrom<u64>` and `check_up_to`.
macro_rules! number {
    ($name:ident, $inner:ty) => {
        impl $name {
            /// Returns the number as an integer.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// Returns `count` consecutive numbers, beginning with this one.
            ///
            /// # Errors
            ///
            /// [`InvalidNumber`] if one of them is not valid.
            pub fn range(self, count: usize) -> Result<NumberRange<$name>, InvalidNumber> {
                let start = u64::from(self);
                // A count always fits into u64: the crate is for 64-bit Linux.
                (start..start.saturating_add(count as u64)).try_into()
            }
        }

        impl TryFrom<Range<u64>> for NumberRange<$name> {
            type Error = InvalidNumber;

            fn try_from(Range { start, end }: Range<u64>) -> Result<NumberRange<$name>, InvalidNumber> {
                if start >= end {
                    return Ok(NumberRange::checked(start, start));
                }
                $name::try_from(start)?.check_up_to(end - 1)?;
                Ok(NumberRange::checked(start, end))
            }
        }

        impl From<$name> for u64 {
            fn from(number: $name) -> u64 {
                number.0.into()
            }
        }

        impl FromStr for $name {
            type Err = InvalidNumber;

            /// Parses a decimal number, or a hexadecimal one after `0x`.
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

/// Defines a type of frame numbers. The order of the `impl` blocks is that of the documentation: `new` comes first.
macro_rules! frame_number {
    ($(#[$attribute:meta])* $name:ident) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The highest frame number.
            pub const MAX: $name = $name(HIGHEST_FRAME);

            /// Makes a frame number from an integer.
            ///
            /// # Errors
            ///
            /// [`InvalidNumber::Frame`] if it is above [`Self::MAX`].
            pub const fn new(number: u64) -> Result<$name, InvalidNumber> {
                if number <= HIGHEST_FRAME { Ok($name(number)) } else { Err(InvalidNumber::Frame { number }) }
            }

            /// Returns the frame that holds the byte at an address.
            ///
            /// # Errors
            ///
            /// [`InvalidNumber::Frame`] if the frame is above [`Self::MAX`].
            pub const fn containing(address: u64) -> Result<$name, InvalidNumber> {
                $name::new(address / FRAME_SIZE as u64)
            }

            /// Checks that all numbers from this one to `last` are valid.
            fn check_up_to(self, last: u64) -> Result<(), InvalidNumber> {
                $name::new(last).map(|_| ())
            }

            /// Returns the address of the frame's first byte.
            #[must_use]
            pub const fn address(self) -> u64 {
                self.0 * FRAME_SIZE as u64
            }
        }

        number!($name, u64);

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

/// The number of a domain whose memory can be mapped.
///
/// Xen reserves the numbers from 0x7FF0 up; of these, only [`Domid::XEN`] is accepted here. The kernel would accept
/// more, with surprising results: `DOMID_SELF` successfully maps the caller's own machine frames, and
/// `DOMID_IO` raw MMIO.
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

impl Domid {
    /// The hypervisor itself (`DOMID_XEN`). The frames that it shares, such as its M2P table, can be mapped read-only.
    pub const XEN: Domid = Domid(abi::XEN_DOMID);

    /// Makes a domain number from an integer.
    ///
    /// # Errors
    ///
    /// [`InvalidNumber::Domid`] if Xen reserves the number, except for `DOMID_XEN`.
    pub const fn new(domid: u16) -> Result<Domid, InvalidNumber> {
        if domid < abi::FIRST_RESERVED_DOMID || domid == abi::XEN_DOMID {
            Ok(Domid(domid))
        } else {
            Err(InvalidNumber::Domid { number: domid as u64 })
        }
    }

    /// Checks that all numbers from this one to `last` are valid.
    fn check_up_to(self, last: u64) -> Result<(), InvalidNumber> {
        // Domid::XEN has no neighbours.
        if last == u64::from(self) || last < abi::FIRST_RESERVED_DOMID.into() {
            return Ok(());
        }
        Err(InvalidNumber::Domid { number: abi::FIRST_RESERVED_DOMID.max(self.0.saturating_add(1)).into() })
    }

    /// Accepts any number, even one that Xen reserves: for the C library, whose callers know what they do.
    pub(crate) const fn as_given(domid: u16) -> Domid {
        Domid(domid)
    }
}

number!(Domid, u16);

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
    /// A guest frame number, as the guest writes it into its page tables, and by which Xen maps the frame.
    ///
    /// For an HVM, PVH or Arm guest it is a guest-physical address divided by [`FRAME_SIZE`]; for a PV guest it is a
    /// machine frame number (MFN).
    ///
    /// Numbers from 2^40 up are refused: the kernel of a PV dom0 drops their upper bits and maps another frame.
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

frame_number! {
    /// A frame number as the guest itself counts its memory: a guest-physical address divided by [`FRAME_SIZE`].
    ///
    /// For a PV guest it is a pseudo-physical frame number; the guest's own table (its p2m) says which machine frame
    /// ([`Gfn`]) that is. For any other guest both are the same number, but still have different types: calls on a
    /// guest ([`Guest::map`](crate::Guest::map)) take pfns and look them up, calls on the handle
    /// ([`ForeignMemory::map_foreign_batch`](crate::ForeignMemory::map_foreign_batch)) take gfns.
    ///
    /// ```
    /// use xenmap::Pfn;
    ///
    /// assert_eq!(Pfn::containing(0x1234_5678)?, Pfn::new(0x12345)?);
    /// assert_eq!(Pfn::new(2)?.address(), 8192);
    /// # Ok::<(), xenmap::InvalidNumber>(())
    /// ```
    Pfn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_number_types_have_the_same_traits() {
        fn check<N>(number: N)
        where
            N: Copy + Ord + std::hash::Hash + fmt::Debug + fmt::Display + fmt::LowerHex + fmt::UpperHex,
            N: TryFrom<u64, Error = InvalidNumber> + FromStr<Err = InvalidNumber> + Into<u64>,
            NumberRange<N>: TryFrom<Range<u64>, Error = InvalidNumber> + IntoIterator<Item = N>,
        {
            let integer: u64 = number.into();
            assert_eq!(N::try_from(integer), Ok(number));
            assert_eq!(number.to_string().parse(), Ok(number));
            assert_eq!(format!("{number:#x}").parse(), Ok(number));
            let range = NumberRange::<N>::try_from(integer..integer + 2).unwrap();
            assert!(range.into_iter().is_sorted_by(|a, b| a < b));
            assert!("x".parse::<N>().is_err() && N::try_from(u64::MAX).is_err());
        }

        check(Domid::new(0x2F).unwrap());
        check(Gfn::new(0x2F).unwrap());
        check(Pfn::new(0x2F).unwrap());
    }

    #[test]
    fn domid_refuses_every_reserved_number_but_domid_xen() {
        let allowed: Vec<u16> = (0x7FF0..=u16::MAX).filter(|&id| Domid::new(id).is_ok()).collect();
        assert_eq!(allowed, [Domid::XEN.get()]);
        assert!(Domid::new(0x7FEF).is_ok());
    }

    #[test]
    fn domid_from_a_larger_number_is_never_truncated() {
        assert_eq!(Domid::try_from(70_000), Err(InvalidNumber::Domid { number: 70_000 }));
        assert_eq!("4294967301".parse::<Domid>(), Err(InvalidNumber::Domid { number: 4_294_967_301 }));
        assert!("-1".parse::<Domid>().is_err());
    }

    #[test]
    fn number_is_parsed_from_decimal_or_hexadecimal_digits() {
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
    fn number_is_formatted_in_hexadecimal_as_the_integer_is() {
        let (domid, gfn) = (Domid::new(0x2F).unwrap(), Gfn::new(0x2F).unwrap());
        assert_eq!(format!("{domid} {domid:#x} {domid:04X}"), "47 0x2f 002F");
        assert_eq!(format!("{gfn} {gfn:x} {gfn:#06X} {gfn:?}"), "0x2f 2f 0x002F Gfn(0x2f)");
        assert_eq!((u64::from(domid), u64::from(gfn)), (0x2F, 0x2F));
    }

    #[test]
    fn invalid_number_says_what_to_give() {
        let highest = InvalidNumber::Frame { number: 1 << 40 }.to_string();
        assert_eq!(highest, format!("0x10000000000 is not a frame number: the highest is {}", Gfn::MAX));
        let domid = InvalidNumber::Domid { number: 70_000 }.to_string();
        assert!(domid.ends_with("give 0 to 32751"), "{domid}");
    }
}
