//! The memory files that stand for machine memory, and for frames that are not mapped.

#![expect(unsafe_code, reason = "maps memory files where the kernel would map foreign frames")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr::NonNull;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::backend::{Place, advise, mmap, munmap};
use crate::types::{FRAME_SIZE, Protection};

/// Bytes of [`MemoryFile::junk`].
pub(super) const JUNK_BYTES: usize = 2 << 20;

/// A memory file, which the kernel's tables identify by its device and inode.
#[derive(Debug)]
pub(super) struct MemoryFile {
    file: File,
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl MemoryFile {
    fn new(name: &std::ffi::CStr) -> io::Result<MemoryFile> {
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
        let metadata = file.metadata()?;
        Ok(MemoryFile { file, device: metadata.dev(), inode: metadata.ino() })
    }

    /// Creates machine memory: page n of the file is machine frame `FIRST_MFN + n`.
    pub(super) fn ram() -> io::Result<MemoryFile> {
        MemoryFile::new(c"xenmap-ram")
    }

    /// Creates a file that stays empty: touching a mapping of it raises SIGBUS, as an unpopulated device mapping does.
    pub(super) fn empty() -> io::Result<MemoryFile> {
        MemoryFile::new(c"xenmap-empty")
    }

    /// Creates a file that stays empty, for frames that must not be touched in an Arm dom0.
    pub(super) fn fatal() -> io::Result<MemoryFile> {
        MemoryFile::new(super::fatal::FILE)
    }

    /// Creates a file of bytes 0xFF, as which a failed frame of an x86 PVH dom0 reads.
    pub(super) fn junk() -> io::Result<MemoryFile> {
        let junk = MemoryFile::new(c"xenmap-junk")?;
        junk.file.write_all_at(&[0xFF].repeat(JUNK_BYTES), 0)?;
        Ok(junk)
    }

    /// Creates a file of zeros, for the arguments of hypercalls.
    pub(super) fn zeros(len: usize) -> io::Result<MemoryFile> {
        let zeros = MemoryFile::new(c"xenmap-hypercall")?;
        zeros.file.set_len(len as u64)?;
        Ok(zeros)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn resize(&self, frames: usize) -> io::Result<()> {
        self.file.set_len((frames * FRAME_SIZE) as u64)
    }

    pub(super) fn read(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, offset as u64)
    }

    pub(super) fn write(&self, offset: usize, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, offset as u64)
    }

    /// Fills a frame with zeros, as Xen does with free ones.
    pub(super) fn scrub(&self, frame: usize) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let offset = libc::off_t::try_from(frame * FRAME_SIZE).map_err(io::Error::other)?;
        Ok(fallocate(&self.file, flags, offset, FRAME_SIZE.cast_signed() as libc::off_t)?)
    }

    /// Maps a part of the file like a device mapping: shared, not inherited by children, and left out of core dumps.
    pub(super) fn map(&self, offset: usize, len: usize, protection: Protection) -> io::Result<NonNull<u8>> {
        // SAFETY: the kernel picks unused addresses.
        unsafe { self.map_at(Place::default(), offset, len, protection) }
    }

    /// Like [`map`](MemoryFile::map), at a place of the caller's choice.
    ///
    /// # Safety
    ///
    /// If it replaces anything, all `len` bytes there are the caller's own, and nothing uses them.
    pub(super) unsafe fn map_at(
        &self,
        place: Place,
        offset: usize,
        len: usize,
        protection: Protection,
    ) -> io::Result<NonNull<u8>> {
        // SAFETY: the caller's promise.
        unsafe { self.map_as(libc::MAP_SHARED, place, offset, len, protection) }
    }

    /// Replaces another mapping by a private one: writes do not reach the file.
    ///
    /// # Safety
    ///
    /// The `len` bytes at `addr` are the caller's own mapping, and nothing uses them.
    pub(super) unsafe fn map_private_over(
        &self,
        addr: NonNull<u8>,
        len: usize,
        protection: Protection,
    ) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.map_as(libc::MAP_PRIVATE, Place::over(addr), 0, len, protection) }.map(|_| ())
    }

    /// # Safety
    ///
    /// As for `map_at`.
    unsafe fn map_as(
        &self,
        kind: libc::c_int,
        place: Place,
        offset: usize,
        len: usize,
        protection: Protection,
    ) -> io::Result<NonNull<u8>> {
        let place = Place { flags: place.flags | kind, ..place };
        let prot = match protection {
            Protection::ReadOnly => ProtFlags::PROT_READ,
            Protection::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the caller's promise.
        let mapped = unsafe { mmap(place, len, prot, Some((self.file.as_fd(), offset))) }?;
        // SAFETY: the range has just been mapped, and nothing uses it.
        unsafe { advise(mapped, len, &[MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP]) }?;
        Ok(mapped)
    }
}

/// Unmaps.
///
/// # Safety
///
/// The `len` bytes at `addr` are the caller's own mapping, and nothing uses them.
pub(super) unsafe fn unmap(addr: NonNull<u8>, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { munmap(addr, len) }
}
