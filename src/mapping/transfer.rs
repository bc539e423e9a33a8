//! Moving bytes between a mapping and a file descriptor, without a copy in between.

#![expect(unsafe_code, reason = "has the kernel read and write mapped memory")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Error, Result};
use crate::mapping::View;

impl View<'_> {
    /// Writes `len` bytes at `offset` to a file, pipe or socket, at its current position; the kernel copies them from
    /// the mapping itself.
    ///
    /// It goes on until all are written. The descriptor must not be open with `O_DIRECT`: the kernel cannot pin
    /// foreign frames.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] or [`Error::Hole`] before anything is written; [`Error::Transfer`] if write(2) fails.
    pub fn write_to(&self, offset: usize, len: usize, fd: impl AsFd) -> Result<()> {
        let from = self.check_read(offset, len)?;
        transfer(len, io::ErrorKind::WriteZero, |done, rest| {
            // SAFETY: `done` is at most `len`, and `check_read` found all `len` bytes mapped.
            let from = unsafe { from.add(done) };
            // SAFETY: the `rest` bytes at `from` are mapped; the kernel does not mind who writes them meanwhile.
            unsafe { libc::write(fd.as_fd().as_raw_fd(), from.cast(), rest) }
        })
    }

    /// Reads `len` bytes from a file, pipe or socket, at its current position; the kernel copies them into the mapping
    /// itself.
    ///
    /// It goes on until all are read. The descriptor must not be open with `O_DIRECT`: the kernel cannot pin foreign
    /// frames.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`], [`Error::Hole`] or [`Error::ReadOnly`] before anything is read; [`Error::Transfer`] if
    /// read(2) fails or the file ends too early ([`io::ErrorKind::UnexpectedEof`]).
    pub fn read_from(&self, offset: usize, len: usize, fd: impl AsFd) -> Result<()> {
        let to = self.check_write(offset, len)?;
        let read = transfer(len, io::ErrorKind::UnexpectedEof, |done, rest| {
            // SAFETY: `done` is at most `len`, and `check_write` found all `len` bytes mapped for writing.
            let to = unsafe { to.add(done) };
            // SAFETY: the `rest` bytes at `to` are mapped for writing, and no reference to them exists.
            unsafe { libc::read(fd.as_fd().as_raw_fd(), to.cast(), rest) }
        });
        self.note(offset, len); // also if it has failed half way
        read
    }
}

/// Repeats a read(2) or write(2) until `len` bytes are done; it is told how many are, and how many are left. That it
/// moves none at all is an error of the kind given.
fn transfer(len: usize, nothing: io::ErrorKind, mut call: impl FnMut(usize, usize) -> isize) -> Result<()> {
    let mut done = 0;
    while done < len {
        match usize::try_from(call(done, len - done)) {
            Ok(0) => return Err(Error::Transfer { done, source: nothing.into() }),
            Ok(moved) => done += moved,
            Err(_) => {
                let source = io::Error::last_os_error();
                if source.kind() != io::ErrorKind::Interrupted {
                    return Err(Error::Transfer { done, source });
                }
            }
        }
    }
    Ok(())
}
