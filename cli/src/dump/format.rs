//! The formats of dumps.

use std::ops::Range;

use xenmap::Gfn;

use super::copy::Tally;
use super::layout::{FRAME, Layout, Part, in_a_row};
use super::sink::Sink;
use super::{elf, xen};
use crate::Result;
use crate::args::Format;
use crate::ram::Ram;

/// Bytes of the header before each extent of a `LiME` dump.
const LIME_HEADER: u64 = 32;

impl Layout {
    /// Returns the layout of a dump of the RAM in these ranges. With `is_stream` the dump is written
    /// from the beginning to the end.
    pub(crate) fn new(format: Format, ram: &Ram, ranges: &[Range<u64>], is_stream: bool) -> Result<Layout> {
        if ranges.last().is_some_and(|last| last.end - 1 > Gfn::MAX.get()) {
            return Err("there is RAM beyond the last address".into());
        }
        match format {
            Format::Raw => Ok(raw(ranges)),
            Format::Lime => Ok(lime(ranges)),
            Format::Elf => elf::layout(ram, ranges, is_stream),
            Format::Xen => xen::layout(ram, ranges),
        }
    }

    /// Writes the header before a part.
    pub(crate) fn write_header(&self, part: &Part, sink: &mut dyn Sink) -> Result<()> {
        if self.format == Format::Lime {
            sink.bytes(part.offset - LIME_HEADER, &lime_header(part))?;
        }
        Ok(())
    }

    /// Writes what depends on the copied frames; returns why the kernel's note may be the wrong one.
    pub(crate) fn write_late(&self, ram: &Ram, tally: &Tally, sink: &mut dyn Sink) -> Result<Option<String>> {
        match self.format {
            Format::Raw | Format::Lime => {}
            Format::Elf => {
                let (notes, doubt) = elf::notes(ram, &self.vcpus, tally);
                sink.bytes(self.late, &notes)?;
                return Ok(doubt);
            }
            Format::Xen => xen::write_frame_numbers(ram, self, tally, sink)?,
        }
        Ok(None)
    }
}

/// Returns a layout with each frame at its address.
fn raw(ranges: &[Range<u64>]) -> Layout {
    let part = |pfns: &Range<u64>| Part { pfns: pfns.clone(), offset: pfns.start * FRAME };
    let len = ranges.last().map_or(0, |last| last.end * FRAME);
    let parts = ranges.iter().map(part).collect();
    Layout { format: Format::Raw, head: Vec::new(), parts, late: len, vcpus: Vec::new(), len }
}

fn lime(ranges: &[Range<u64>]) -> Layout {
    let (parts, len) = in_a_row(ranges, 0, LIME_HEADER);
    Layout { format: Format::Lime, head: Vec::new(), parts, late: len, vcpus: Vec::new(), len }
}

/// Returns the header of `lime.h`: magic number, version, first and last address, and 8 reserved bytes.
fn lime_header(part: &Part) -> Vec<u8> {
    const MAGIC_AND_VERSION: u64 = 1 << 32 | 0x4C69_4D45;
    let words = [MAGIC_AND_VERSION, part.pfns.start * FRAME, part.pfns.end * FRAME - 1, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
