//! mmap(2), madvise(2) and munmap(2): the crate maps memory only here.

#![expect(unsafe_code, reason = "maps memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::sys::mman::{self, MmapAdvise, ProtFlags};

use super::Place;

/// Maps `len` bytes of a file, beginning at an offset, or of no file with `MAP_ANONYMOUS`.
///
/// If a mapping is requested at exactly address 0, the kernel maps it there if the process is allowed to
/// (`vm.mmap_min_addr`, `CAP_SYS_RAWIO`). Rust code cannot use such memory, so it is unmapped again and the error is
/// EINVAL. (`nix::sys::mman::mmap` assumes that the kernel never returns 0.)
///
/// # Safety
///
/// If the mapping replaces anything, the caller owns all `len` bytes of it, and nothing uses them.
pub(crate) unsafe fn mmap(
    place: Place,
    len: usize,
    prot: ProtFlags,
    file: Option<(BorrowedFd<'_>, libc::off_t)>,
) -> io::Result<NonNull<u8>> {
    let addr: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(place.addr);
    let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
    // SAFETY: either the kernel picks addresses that nothing uses, or the caller owns them.
    let mapped = unsafe { libc::mmap(addr, len, prot.bits(), place.flags, fd, offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(mapped.cast()).ok_or_else(|| {
        // SAFETY: just mapped, and nothing else refers to it.
        let unmapped = unsafe { libc::munmap(mapped, len) };
        if unmapped != 0 {
            log::error!("cannot unmap {len} bytes at address 0: {}", io::Error::last_os_error());
        }
        io::Error::from_raw_os_error(libc::EINVAL)
    })
}

/// Advises the kernel about a new mapping. If the kernel refuses, the mapping is unmapped.
///
/// # Safety
///
/// The `len` bytes at `addr` have just been mapped, and nothing uses them.
pub(crate) unsafe fn advise(addr: NonNull<u8>, len: usize, advice: &[MmapAdvise]) -> io::Result<()> {
    for &advice in advice {
        // SAFETY: the caller owns the memory, which holds nothing yet that the advice could change.
        if let Err(e) = unsafe { mman::madvise(addr.cast(), len, advice) } {
            // SAFETY: the caller's promise.
            if let Err(e) = unsafe { munmap(addr, len) } {
                log::error!("cannot unmap {len} bytes at {addr:p}: {e}");
            }
            return Err(e.into());
        }
    }
    Ok(())
}

/// Unmaps.
///
/// # Safety
///
/// The caller owns the mapping of the `len` bytes at `addr`, and nothing uses them.
pub(crate) unsafe fn munmap(addr: NonNull<u8>, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { mman::munmap(addr.cast(), len) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;
    use crate::types::FRAME_SIZE;

    const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

    /// Returns the lines of /proc/self/maps that contain a text.
    fn lines_with(text: &str) -> Vec<String> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    #[test]
    fn address_0_is_an_error_and_not_a_mapping() {
        // The kernel itself refuses it (EPERM) to a process that is not allowed to map there.
        let may = libc::MAP_FIXED_NOREPLACE | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        for flags in [may, may | libc::MAP_FIXED, may & !libc::MAP_FIXED_NOREPLACE | libc::MAP_FIXED] {
            // SAFETY: nothing is at address 0.
            let mapped = unsafe { mmap(Place { addr: 0, flags }, FRAME_SIZE, READ_WRITE, None) };

            let errno = mapped.unwrap_err().raw_os_error();
            assert!(errno == Some(libc::EINVAL) || errno == Some(libc::EPERM), "{flags:#x}: {errno:?}");
            assert!(!lines_with("-").iter().any(|line| line.starts_with("00000000-")), "{flags:#x}");
        }
    }

    #[test]
    fn mapping_is_unmapped_if_advice_is_refused() {
        let file = memfd_create(c"xenmap-advised", MFdFlags::MFD_CLOEXEC).unwrap();
        let place = Place { addr: 0, flags: libc::MAP_SHARED };
        for (advice, stays) in [(MmapAdvise::MADV_DONTFORK, true), (MmapAdvise::MADV_WIPEONFORK, false)] {
            // SAFETY: the kernel picks addresses that nothing uses.
            let addr = unsafe { mmap(place, FRAME_SIZE, READ_WRITE, Some((file.as_fd(), 0))) }.unwrap();

            // The kernel refuses MADV_WIPEONFORK for shared memory.
            // SAFETY: just mapped.
            let advised = unsafe { advise(addr, FRAME_SIZE, &[MmapAdvise::MADV_DONTDUMP, advice]) };

            assert_eq!(advised.map_err(|e| e.raw_os_error()), if stays { Ok(()) } else { Err(Some(libc::EINVAL)) });
            assert_eq!(lines_with("/memfd:xenmap-advised").len(), usize::from(stays), "{advice:?}");
            if stays {
                // SAFETY: just mapped.
                unsafe { munmap(addr, FRAME_SIZE) }.unwrap();
            }
        }
    }
}
