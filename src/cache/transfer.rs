//! Transfers bytes between a guest's memory and a file, without a buffer in between.

#![expect(unsafe_code, reason = "lets the kernel read and write mapped memory")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::{MapCache, Pinned};
use crate::error::{Error, Result};
use crate::mapping::transfer::move_some;
use crate::mapping::{Access, View};
use crate::types::Protection;

/// The most pieces that preadv(2) and pwritev(2) take (`IOV_MAX`).
const MAX_PIECES: libc::c_int = 1024;

/// preadv(2) or pwritev(2).
type Call = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

impl MapCache {
    /// Reads from a file at `offset` (in bytes) into ranges of guest-physical addresses (in bytes), one after the
    /// other. The kernel copies directly into the guest's memory, by preadv(2).
    ///
    /// Fills all ranges; empty ones are skipped. All of them are pinned at once, so whoever lets a guest choose them
    /// limits their number and length first. The file must not be open with `O_DIRECT`: the kernel cannot pin foreign
    /// frames.
    ///
    /// ```
    /// use std::io::Write;
    ///
    /// # let path = std::env::temp_dir().join(format!("xenmap-read-file-at-{}", std::process::id()));
    /// # let mut disk = std::fs::File::options().read(true).write(true).create_new(true).open(&path)?;
    /// # std::fs::remove_file(&path)?;
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Gfn, Guest, GuestKind, MapCache};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 1024);
    /// let memory = host.open()?;
    /// let cache = MapCache::new(Guest::open(&memory, domain.domid())?);
    ///
    /// disk.write_all(b"head and tail")?;
    /// cache.read_file_at(&[0x5000..0x5003, 0xF_FFFE..0x10_0000], &disk, 1)?;
    /// assert_eq!(domain.read(Gfn::new(5)?, 0, 4), b"ead\0");
    /// assert_eq!(domain.read(Gfn::new(0xFF)?, 0xFFE, 2), b" a");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`get`](MapCache::get), before anything is read; [`Error::Transfer`] if preadv(2) fails or the file
    /// ends too early ([`UnexpectedEof`](io::ErrorKind::UnexpectedEof)).
    pub fn read_file_at(&self, ranges: &[Range<u64>], file: impl AsFd, offset: u64) -> Result<()> {
        let pinned = self.pin_all(Protection::ReadWrite, ranges)?;
        let pieces: Vec<View<'_>> = pinned.iter().flat_map(Pinned::views).collect();
        // SAFETY: the views are of memory that `pinned` keeps mapped for writing, and no reference to it exists.
        let read = unsafe { transfer(libc::preadv, io::ErrorKind::UnexpectedEof, &pieces, file.as_fd(), offset) };
        for piece in pieces {
            piece.note(0, piece.len()); // even after an error, since a part may have been written
        }
        read
    }

    /// Writes ranges of guest-physical addresses (in bytes), one after the other, to a file at `offset` (in bytes). The
    /// kernel copies directly from the guest's memory, by pwritev(2).
    ///
    /// Writes all ranges; empty ones are skipped. As for [`read_file_at`](MapCache::read_file_at), all of them are
    /// pinned at once, and the file must not be open with `O_DIRECT`; nor with `O_APPEND`, for which Linux ignores the
    /// offset. If the guest writes to the ranges at the same time, the file may get the old or the new bytes.
    ///
    /// # Errors
    ///
    /// Those of [`get`](MapCache::get), before anything is written; [`Error::Transfer`] if pwritev(2) fails.
    pub fn write_file_at(&self, ranges: &[Range<u64>], file: impl AsFd, offset: u64) -> Result<()> {
        let pinned = self.pin_all(Protection::ReadOnly, ranges)?;
        let pieces: Vec<View<'_>> = pinned.iter().flat_map(Pinned::views).collect();
        // SAFETY: the views are of memory that `pinned` keeps mapped; pwritev only reads it, and the kernel tolerates
        // concurrent writes to it.
        unsafe { transfer(libc::pwritev, io::ErrorKind::WriteZero, &pieces, file.as_fd(), offset) }
    }

    /// Pins all ranges that are not empty.
    fn pin_all(&self, protection: Protection, ranges: &[Range<u64>]) -> Result<Vec<Pinned<'_>>> {
        let get = |range: &Range<u64>| {
            let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            self.get(protection, range.start, len)
        };
        ranges.iter().filter(|range| !range.is_empty()).map(get).collect()
    }
}

/// Repeats a call until all pieces are done. If a call transfers nothing, that is an error of the kind `nothing`.
///
/// # Safety
///
/// The pieces stay mapped during the call and, if it is preadv, are mapped for writing.
unsafe fn transfer(
    call: Call,
    nothing: io::ErrorKind,
    pieces: &[View<'_>],
    fd: BorrowedFd<'_>,
    offset: u64,
) -> Result<()> {
    let mut parts: Vec<libc::iovec> =
        pieces.iter().map(|piece| libc::iovec { iov_base: piece.as_ptr().cast(), iov_len: piece.len() }).collect();
    let mut left = &mut parts[..];
    let mut done = 0;
    while !left.is_empty() {
        let failed = |source| Error::Transfer { done, source };
        let at = libc::off_t::try_from(offset.saturating_add(done as u64));
        let at = at.map_err(|_| failed(io::Error::from_raw_os_error(libc::EINVAL)))?;
        let count = libc::c_int::try_from(left.len()).unwrap_or(MAX_PIECES).min(MAX_PIECES);
        let moved = move_some(nothing, || {
            // SAFETY: the first `count` parts exist, and lie in the pieces, which are mapped by the caller's promise.
            unsafe { call(fd.as_raw_fd(), left.as_ptr(), count, at) }
        });
        let moved = moved.map_err(failed)?;
        left = advance(left, moved);
        done += moved;
    }
    Ok(())
}

/// Returns what is left of the parts after `moved` bytes.
fn advance(mut parts: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = parts.first_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        parts = &mut parts[1..];
    }
    parts
}
