//! Bytes of a guest's RAM, which may change at any time, or of a dump.

use std::fs::File;
use std::io::Write;

use xenmap::{Access, View};

use crate::Result;
use crate::image::ZEROS;

#[derive(Clone, Copy)]
pub(crate) enum Bytes<'a> {
    Mapped(View<'a>),
    Dump(&'a [u8]),
}

impl<'a> Bytes<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            Bytes::Mapped(view) => view.len(),
            Bytes::Dump(bytes) => bytes.len(),
        }
    }

    /// Returns `len` of the bytes.
    pub(crate) fn slice(self, offset: usize, len: usize) -> Result<Bytes<'a>> {
        match self {
            Bytes::Mapped(view) => Ok(Bytes::Mapped(view.slice(offset, len)?)),
            Bytes::Dump(bytes) => Ok(Bytes::Dump(part(bytes, offset, len)?)),
        }
    }

    /// Copies bytes from an offset on.
    pub(crate) fn read(self, offset: usize, to: &mut [u8]) -> Result<()> {
        match self {
            Bytes::Mapped(view) => view.read_bytes(offset, to)?,
            Bytes::Dump(bytes) => to.copy_from_slice(part(bytes, offset, to.len())?),
        }
        Ok(())
    }

    pub(crate) fn is_zero(self, offset: usize, len: usize) -> Result<bool> {
        match self {
            Bytes::Mapped(view) => Ok(view.is_zero(offset, len)?),
            Bytes::Dump(bytes) => {
                Ok(part(bytes, offset, len)?.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()]))
            }
        }
    }

    pub(crate) fn write_to(self, mut file: &File) -> Result<()> {
        match self {
            Bytes::Mapped(view) => view.write_to(0, view.len(), file)?,
            Bytes::Dump(bytes) => file.write_all(bytes)?,
        }
        Ok(())
    }
}

fn part(bytes: &[u8], offset: usize, len: usize) -> Result<&[u8]> {
    let rest = bytes.get(offset..).and_then(|rest| rest.get(..len));
    Ok(rest.ok_or("an access reaches past the end of some bytes: this is a bug")?)
}
