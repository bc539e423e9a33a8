//! RAM in windows: consecutive frames that are mapped at a time, or those of a dump.

use std::iter::from_fn;
use std::ops::Range;

use xenmap::{Error, FRAME_SIZE, ForeignMapping, Guest, NumberRange, Protection};

use crate::Result;
use crate::bytes::Bytes;
use crate::image::{Content, Image};

const FRAME: u64 = FRAME_SIZE as u64;

/// Consecutive frames, at least one.
pub(crate) struct Window<'a> {
    pub(crate) pfns: Range<u64>,
    source: Source<'a>,
}

enum Source<'a> {
    Mapping(ForeignMapping),
    Dump(&'a Image),
}

/// What there is at some addresses.
pub(crate) enum Piece<'a> {
    Bytes(Bytes<'a>),
    /// Zeros that take no place in a dump.
    Zeros,
    /// Nothing that can be read. The reason is an errno of Linux (positive), which [`crate::ram::Ram::reason`] explains.
    Hole(i32),
}

impl Window<'_> {
    pub(crate) fn mapped(pfns: Range<u64>, mapping: ForeignMapping) -> Window<'static> {
        Window { pfns, source: Source::Mapping(mapping) }
    }

    /// Returns all pieces of the window, in ascending order of their addresses.
    pub(crate) fn pieces(&self) -> Result<Vec<(Range<u64>, Piece<'_>)>> {
        match &self.source {
            Source::Mapping(mapping) => pieces_of_mapping(addresses(&self.pfns).start, mapping),
            Source::Dump(image) => {
                let piece = |content| match content {
                    Content::Bytes(bytes) => Piece::Bytes(Bytes::Dump(bytes)),
                    Content::Zeros => Piece::Zeros,
                    Content::Missing => Piece::Hole(libc::EINVAL),
                };
                let contents = image.contents(addresses(&self.pfns));
                Ok(contents.map(|(addresses, content)| (addresses, piece(content))).collect())
            }
        }
    }

    pub(crate) fn is_of_dump(&self) -> bool {
        matches!(self.source, Source::Dump(_))
    }

    /// Returns whether all of the window is zeros that take no place in a dump.
    pub(crate) fn is_no_more_than_zeros(&self) -> bool {
        match self.source {
            Source::Mapping(_) => false,
            Source::Dump(image) => {
                let mut contents = image.contents(addresses(&self.pfns));
                contents.all(|(_, content)| matches!(content, Content::Zeros))
            }
        }
    }
}

/// `start` is the address of the mapping's first byte.
fn pieces_of_mapping(start: u64, mapping: &ForeignMapping) -> Result<Vec<(Range<u64>, Piece<'_>)>> {
    let mut pieces = Vec::new();
    let at = |bytes: &Range<usize>| start + bytes.start as u64..start + bytes.end as u64;
    for run in mapping.failed().chunk_by(|a, b| a.index + 1 == b.index && a.errno == b.errno) {
        let bytes = run[0].index * FRAME_SIZE..(run[0].index + run.len()) * FRAME_SIZE;
        pieces.push((at(&bytes), Piece::Hole(run[0].errno)));
    }
    for bytes in mapping.mapped_ranges() {
        let view = mapping.view().slice(bytes.start, bytes.len())?;
        pieces.push((at(&bytes), Piece::Bytes(Bytes::Mapped(view))));
    }
    pieces.sort_unstable_by_key(|(addresses, _)| addresses.start);
    Ok(pieces)
}

/// Returns frames of a dump in windows of at most `size`; zeros or missing frames are one window, of any size.
pub(crate) fn windows_of_dump(
    image: &Image,
    mut rest: Range<u64>,
    size: u64,
) -> impl Iterator<Item = Window<'_>> + use<'_> {
    from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let first = image.contents(addresses(&rest)).next();
        let no_bytes = first.filter(|(_, content)| !matches!(content, Content::Bytes(_)));
        let end_of_none = no_bytes.map_or(0, |(addresses, _)| addresses.end / FRAME);
        let pfns = rest.start..rest.end.min(end_of_none.max(rest.start + size));
        rest.start = pfns.end;
        image.prefetch(pfns.start..pfns.end.saturating_add(size));
        Some(Window { pfns, source: Source::Dump(image) })
    })
}

/// Maps consecutive frames for reading, a window at a time. Frames that cannot be mapped are left out.
///
/// In some domains each mapped frame takes a page of this domain's memory. When memory runs out, the windows are halved.
pub(crate) struct MappedWindows<'a> {
    guest: &'a Guest,
    rest: Range<u64>,
    size: u64,
}

impl<'a> MappedWindows<'a> {
    /// Windows of at most `size` frames.
    pub(crate) fn new(guest: &'a Guest, pfns: Range<u64>, size: u64) -> MappedWindows<'a> {
        MappedWindows { guest, rest: pfns, size }
    }
}

impl Iterator for MappedWindows<'_> {
    /// The frames of a window, and their mapping.
    type Item = xenmap::Result<(Range<u64>, ForeignMapping)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let pfns = self.rest.start..self.rest.end.min(self.rest.start + self.size);
            let frames = pfns.end - pfns.start;
            let window = NumberRange::try_from(pfns.clone()).map_err(Error::from);
            match window.and_then(|window| self.guest.map_partial(Protection::ReadOnly, window)) {
                Err(e) if e.errno() == libc::ENOMEM && frames > 1 => self.size = frames / 2,
                mapped => {
                    // An error ends the iteration.
                    self.rest.start = if mapped.is_ok() { pfns.end } else { self.rest.end };
                    return Some(mapped.map(|mapping| (pfns, mapping)));
                }
            }
        }
        None
    }
}

/// Returns the addresses of some frames.
pub(crate) fn addresses(pfns: &Range<u64>) -> Range<u64> {
    pfns.start * FRAME..pfns.end * FRAME
}

/// Returns the frames of some addresses.
pub(crate) fn frames(addresses: &Range<u64>) -> Range<u64> {
    addresses.start / FRAME..addresses.end.div_ceil(FRAME)
}
