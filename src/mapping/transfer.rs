//! Transfers bytes between a mapping and a file descriptor, without a buffer in between.

#![expect(unsafe_code, reason = "lets the kernel read and write mapped memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Error, Result};
use crate::mapping::{Access, View};

/// Writes all pieces to a file, one after the other.
///
/// # Safety
///
/// All their bytes are mapped.
pub(super) unsafe fn write_to<'p>(pieces: impl Iterator<Item = View<'p>>, fd: BorrowedFd<'_>) -> Result<()> {
    let mut before = 0;
    for piece in pieces {
        transfer(piece, before, io::ErrorKind::WriteZero, |from, len| {
            // SAFETY: the bytes are part of a piece, and so mapped; the kernel tolerates concurrent writes to them.
            unsafe { libc::write(fd.as_raw_fd(), from.cast(), len) }
        })?;
        before += piece.len();
    }
    Ok(())
}

/// Fills all pieces from a file, one after the other.
///
/// # Safety
///
/// All their bytes are mapped for writing.
pub(super) unsafe fn read_from<'p>(pieces: impl Iterator<Item = View<'p>>, fd: BorrowedFd<'_>) -> Result<()> {
    let mut before = 0;
    for piece in pieces {
        let read = transfer(piece, before, io::ErrorKind::UnexpectedEof, |to, len| {
            // SAFETY: the bytes are part of a piece, and so mapped for writing; no reference to them exists.
            unsafe { libc::read(fd.as_raw_fd(), to.cast(), len) }
        });
        piece.note(0, piece.len()); // even after an error, since a part may have been written
        read?;
        before += piece.len();
    }
    Ok(())
}

/// Repeats a read(2) or write(2) until a piece is done, each time with the address and length of the rest. `before` is
/// the count of bytes transferred before this piece. If a call transfers nothing, that is an error of the kind
/// `nothing`.
fn transfer(
    piece: View<'_>,
    before: usize,
    nothing: io::ErrorKind,
    call: impl Fn(*mut u8, usize) -> libc::ssize_t,
) -> Result<()> {
    let mut done = 0;
    while done < piece.len() {
        let moved = move_some(nothing, || call(piece.as_ptr().wrapping_add(done), piece.len() - done));
        done += moved.map_err(|source| Error::Transfer { done: before + done, source })?;
    }
    Ok(())
}

/// Makes a system call that transfers bytes, again if a signal interrupts it, and returns their number. If it transfers
/// nothing, that is an error of the kind `nothing`.
pub(crate) fn move_some(nothing: io::ErrorKind, call: impl Fn() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(0) => return Err(nothing.into()),
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
