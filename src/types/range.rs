//! Ranges of numbers.

use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::ops::Range;

use super::{FRAME_SIZE, Pfn};

/// Consecutive numbers of one type: [`Pfn`], [`Gfn`](crate::Gfn) or [`Domid`](crate::Domid).
///
/// Made by the `range` method of a number, such as [`Pfn::range`], or by `try_from` from a range of integers. Both fail
/// with [`InvalidNumber`](crate::InvalidNumber) if a number in the range is not valid. A `NumberRange` is `Copy`, and
/// iterates like a `Range` of integers.
///
/// ```
/// use xenmap::{NumberRange, Pfn};
///
/// let pfns = Pfn::new(0x100)?.range(16)?;
/// assert_eq!(pfns, NumberRange::<Pfn>::try_from(0x100..0x110)?);
/// assert_eq!(pfns.into_iter().next_back(), Some(Pfn::new(0x10F)?));
/// assert_eq!(pfns.addresses(), 0x10_0000..0x11_0000);
/// # Ok::<(), xenmap::InvalidNumber>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NumberRange<N> {
    start: u64,
    end: u64,
    kind: PhantomData<N>,
}

impl<N> NumberRange<N> {
    /// Makes a range of numbers that the caller has found to be valid: from `start` up to, but not including, `end`.
    pub(crate) const fn checked(start: u64, end: u64) -> NumberRange<N> {
        NumberRange { start, end, kind: PhantomData }
    }

    /// Returns the first number, as an integer.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Returns the number after the last one, as an integer, since it may not be valid.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Returns how many numbers the range holds.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the crate is for 64-bit Linux")]
    pub const fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Returns whether the range holds no numbers.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Returns the same range, of integers.
    #[must_use]
    pub const fn numbers(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Returns whether a number is in the range.
    #[must_use]
    pub fn contains(&self, number: N) -> bool
    where
        N: Into<u64>,
    {
        self.numbers().contains(&number.into())
    }
}

impl NumberRange<Pfn> {
    /// Returns the guest-physical addresses of the frames, in bytes.
    #[must_use]
    pub const fn addresses(&self) -> Range<u64> {
        // An empty range may lie beyond the last valid number.
        self.start.saturating_mul(FRAME_SIZE as u64)..self.end.saturating_mul(FRAME_SIZE as u64)
    }
}

impl<N> fmt::Debug for NumberRange<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl<N> PartialEq<Range<u64>> for NumberRange<N> {
    fn eq(&self, other: &Range<u64>) -> bool {
        self.numbers() == *other
    }
}

impl<N: TryFrom<u64>> IntoIterator for NumberRange<N> {
    type Item = N;
    type IntoIter = Numbers<N>;

    fn into_iter(self) -> Numbers<N> {
        Numbers(self)
    }
}

/// An iterator over the numbers of a [`NumberRange`].
#[derive(Clone, Debug)]
pub struct Numbers<N>(NumberRange<N>);

impl<N: TryFrom<u64>> Iterator for Numbers<N> {
    type Item = N;

    fn next(&mut self) -> Option<N> {
        let NumberRange { start, end, .. } = self.0;
        if start == end {
            return None;
        }
        self.0.start += 1;
        start.try_into().ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len(), Some(self.0.len()))
    }
}

impl<N: TryFrom<u64>> DoubleEndedIterator for Numbers<N> {
    fn next_back(&mut self) -> Option<N> {
        if self.0.is_empty() {
            return None;
        }
        self.0.end -= 1;
        self.0.end.try_into().ok()
    }
}

impl<N: TryFrom<u64>> ExactSizeIterator for Numbers<N> {}

impl<N: TryFrom<u64>> FusedIterator for Numbers<N> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Domid, Gfn, InvalidNumber};

    #[test]
    fn range_past_the_last_number_is_refused() {
        assert_eq!(Pfn::MAX.range(1).unwrap().into_iter().next(), Some(Pfn::MAX));
        assert_eq!(Gfn::MAX.range(1).unwrap().into_iter().next(), Some(Gfn::MAX));
        for count in [2, usize::MAX] {
            assert!(Pfn::MAX.range(count).is_err(), "{count}");
            assert!(Gfn::MAX.range(count).is_err(), "{count}");
        }
        assert_eq!(Gfn::MAX.range(0).unwrap().len(), 0);
        let too_far = NumberRange::<Pfn>::try_from(5..(1 << 40) + 1);
        assert_eq!(too_far, Err(InvalidNumber::Frame { number: 1 << 40 }));
        assert!(NumberRange::<Pfn>::try_from(5..1 << 40).is_ok());
    }

    #[test]
    fn range_of_domains_holds_no_reserved_number() {
        let last = Domid::new(0x7FEF).unwrap();
        assert_eq!(last.range(1).unwrap().into_iter().collect::<Vec<_>>(), [last]);
        assert_eq!(last.range(2), Err(InvalidNumber::Domid { number: 0x7FF0 }));
        assert_eq!(Domid::XEN.range(1).unwrap().into_iter().collect::<Vec<_>>(), [Domid::XEN]);
        // Both ends are valid, what is between them is not.
        let through = u64::from(last)..u64::from(Domid::XEN) + 1;
        assert!(NumberRange::<Domid>::try_from(through).is_err());
    }

    #[test]
    fn range_that_ends_before_it_starts_is_empty() {
        let (start, end) = (7, 5);
        let range = NumberRange::<Pfn>::try_from(start..end).unwrap();
        assert_eq!((range.len(), range.is_empty(), range.into_iter().next_back()), (0, true, None));
    }

    #[test]
    fn empty_range_beyond_all_frames_has_no_addresses() {
        let range = NumberRange::<Pfn>::try_from(u64::MAX..u64::MAX).unwrap();
        assert!(range.is_empty() && range.addresses().is_empty());
    }

    #[test]
    fn range_iterates_in_both_directions() {
        let range = Gfn::new(5).unwrap().range(3).unwrap();
        let numbers = |range: &mut dyn Iterator<Item = Gfn>| range.map(Gfn::get).collect::<Vec<_>>();
        assert_eq!(range.len(), 3);
        assert_eq!(numbers(&mut range.into_iter()), [5, 6, 7]);
        assert_eq!(numbers(&mut range.into_iter().rev()), [7, 6, 5]);
        assert!(range.contains(Gfn::new(7).unwrap()) && !range.contains(Gfn::new(8).unwrap()));
    }

    #[test]
    fn iterator_len_is_what_both_ends_have_left() {
        let [first, middle, last] = [5, 6, 7].map(|number| Pfn::new(number).ok());
        let mut numbers = NumberRange::<Pfn>::try_from(5..8).unwrap().into_iter();
        assert_eq!((numbers.len(), numbers.next(), numbers.next_back()), (3, first, last));
        assert_eq!((numbers.len(), numbers.next()), (1, middle));
        assert_eq!((numbers.len(), numbers.next(), numbers.next_back()), (0, None, None));
    }
}
