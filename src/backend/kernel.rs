//! The device of a real Xen host.

#![expect(unsafe_code, reason = "system calls that map memory")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::sys::mman::{self, MmapAdvise, ProtFlags};
use nix::unistd::{SysconfVar, sysconf};

use super::memory::{advise, mmap, munmap};
use super::xenstore::Names;
use super::{Backend, EventDevice, Ioctl, KernelEvents, Place, Unmapper};
use crate::abi;
use crate::types::{Architecture, Domid, FRAME_SIZE, HostKind, Protection};

/// The device since Linux 2.6.39, and its older place in xenfs.
const DEVICES: [&str; 2] = ["/dev/xen/privcmd", "/proc/xen/privcmd"];

/// Memory for hypercalls, since Linux 4.18.
const HYPERCALL_DEVICE: &str = "/dev/xen/hypercall";

/// The hypervisor's features, as a hexadecimal bit mask.
const FEATURES: &str = "/sys/hypervisor/properties/features";

#[derive(Debug)]
pub(crate) struct KernelDevice {
    fd: OwnedFd,
    /// Opened for the first buffer; `None` if the kernel has no such device.
    hypercall: OnceLock<Option<File>>,
}

impl KernelDevice {
    /// Opens the device of the host that we run on. The error names the path that was tried last.
    pub(crate) fn open() -> Result<KernelDevice, (PathBuf, io::Error)> {
        let [device, old] = DEVICES;
        match open(device) {
            Ok(file) => Ok(KernelDevice::from(OwnedFd::from(file))),
            // An error of the old place is reported only if that exists.
            Err(e) if e.kind() == io::ErrorKind::NotFound && Path::new(old).exists() => {
                open(old).map(|file| KernelDevice::from(OwnedFd::from(file))).map_err(|e| (old.into(), e))
            }
            Err(e) => Err((device.into(), e)),
        }
    }
}

// SAFETY: both functions map by mmap(2), which returns a new mapping or replaces what the caller owns, and keep no
// pointer to it; a buffer is mapped for reading and writing; only munmap(2), by `unmapper`, unmaps.
unsafe impl Backend for KernelDevice {
    unsafe fn mmap_at(&self, place: Place, len: usize, protection: Protection) -> io::Result<NonNull<u8>> {
        // SAFETY: the caller promises that the range is its own and unused.
        unsafe { map(place, len, protection, &self.fd) }
    }

    unsafe fn ioctl(&self, call: Ioctl<'_>) -> io::Result<u64> {
        // The numbers say _IOC_NONE even where the kernel writes to the argument, so all arguments are passed by
        // `&mut`.
        let (number, argument) = match call {
            Ioctl::MmapBatchV2(batch) => (abi::IOCTL_PRIVCMD_MMAPBATCH_V2, (&raw mut *batch).cast()),
            Ioctl::MmapResource(resource) => (abi::IOCTL_PRIVCMD_MMAP_RESOURCE, (&raw mut *resource).cast()),
            Ioctl::Restrict(domid) => (abi::IOCTL_PRIVCMD_RESTRICT, (&raw mut *domid).cast()),
            Ioctl::DmOp(call) => (abi::IOCTL_PRIVCMD_DM_OP, (&raw mut *call).cast()),
            Ioctl::Hypercall(hypercall) => (abi::IOCTL_PRIVCMD_HYPERCALL, (&raw mut *hypercall).cast()),
            Ioctl::Unimplemented => (abi::IOCTL_PRIVCMD_UNIMPLEMENTED, std::ptr::null_mut()),
        };
        let argument: *mut libc::c_void = argument;
        // SAFETY: the number encodes the size of the argument (abi asserts it), which is exclusively borrowed; what the
        // argument points to is valid by the caller's promise.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::Ioctl::from(number), argument) };
        u64::try_from(result).map_err(|_| match result {
            -1 => io::Error::last_os_error(),
            // A hypercall's result does not fit.
            _ => io::Error::from_raw_os_error(libc::EOVERFLOW),
        })
    }

    fn map_hypercall_buffer(&self, len: usize) -> io::Result<NonNull<u8>> {
        let device = self.hypercall.get_or_init(|| open(HYPERCALL_DEVICE).ok());
        if let Some(device) = device {
            // SAFETY: the kernel picks addresses that nothing uses.
            let addr = unsafe { map(Place::default(), len, Protection::ReadWrite, device) }?;
            // SAFETY: the range has just been mapped, and nothing else refers to it.
            unsafe { advise(addr, len, &[MmapAdvise::MADV_DONTFORK]) }?;
            // Linux on arm64 makes a page writable in the page table only when it is first written. Until then Xen,
            // which goes by the page table, fails with EFAULT.
            for offset in (0..len).step_by(FRAME_SIZE) {
                // SAFETY: less than `len` bytes from the start of the range.
                let byte = unsafe { addr.add(offset) };
                // SAFETY: the byte has just been mapped for writing, and nothing else refers to it.
                unsafe { byte.write_volatile(0) };
            }
            return Ok(addr);
        }
        lock_memory(len)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn unmapper(&self) -> Unmapper {
        Unmapper::default()
    }

    fn page_size(&self) -> usize {
        page_size()
    }

    fn host_kind(&self) -> HostKind {
        std::fs::read_to_string(FEATURES).map_or(HostKind::Unknown, |features| parse_features(&features))
    }

    fn architecture(&self) -> Architecture {
        if cfg!(target_arch = "aarch64") { Architecture::Arm64 } else { Architecture::X86 }
    }

    fn open_events(&self) -> Result<Box<dyn EventDevice>, (PathBuf, io::Error)> {
        match KernelEvents::open() {
            Ok(events) => Ok(Box::new(events)),
            Err(e) => Err((KernelEvents::PATH.into(), e)),
        }
    }

    fn domain_names(&self, domids: &[Domid]) -> Vec<Option<String>> {
        let mut names = Names::open();
        domids.iter().map(|&domid| names.of(domid)).collect()
    }
}

impl From<OwnedFd> for KernelDevice {
    fn from(fd: OwnedFd) -> KernelDevice {
        KernelDevice { fd, hypercall: OnceLock::new() }
    }
}

/// Opens a device as mappings need it: for reading and writing, and closed on exec. If a signal interrupts the open
/// (possible in a domU since XSA-482, where it waits for xenstore), the standard library retries it.
fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)
}

/// Maps a device, always shared: a private mapping would be a copy.
///
/// # Safety
///
/// If the mapping replaces anything, the caller owns all `len` bytes of it, and nothing uses them.
unsafe fn map(place: Place, len: usize, protection: Protection, device: impl AsFd) -> io::Result<NonNull<u8>> {
    let place = Place { flags: place.flags | libc::MAP_SHARED, ..place };
    let prot = match protection {
        Protection::ReadOnly => ProtFlags::PROT_READ,
        Protection::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
    };
    // SAFETY: the caller's promise.
    unsafe { mmap(place, len, prot, Some((device.as_fd(), 0))) }
}

/// Maps memory for hypercalls if /dev/xen/hypercall is missing (before Linux 4.18). It is locked, and children do not
/// inherit it: a copy-on-write fault would move it while the hypervisor uses it.
fn lock_memory(len: usize) -> io::Result<NonNull<u8>> {
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let place = Place { addr: 0, flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    // SAFETY: without MAP_FIXED the kernel picks addresses that nothing uses.
    let addr = unsafe { mmap(place, len, prot, None) }?;
    // SAFETY: the range has just been mapped, and nothing else refers to it.
    unsafe { advise(addr, len, &[MmapAdvise::MADV_DONTFORK]) }?;
    // SAFETY: the range has just been mapped.
    if let Err(e) = unsafe { mman::mlock(addr.cast(), len) } {
        // SAFETY: the range has just been mapped, and nothing else refers to it.
        unsafe { munmap(addr, len) }?;
        return Err(e.into());
    }
    Ok(addr)
}

/// Returns the page size of this system in bytes.
pub(crate) fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        size.and_then(|size| usize::try_from(size).ok()).unwrap_or(FRAME_SIZE)
    })
}

fn parse_features(features: &str) -> HostKind {
    match u64::from_str_radix(features.trim(), 16) {
        Ok(mask) if mask & (1 << abi::XENFEAT_AUTO_TRANSLATED_PHYSMAP) != 0 => HostKind::AutoTranslated,
        Ok(_) => HostKind::Pv,
        Err(_) => HostKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_tell_the_kind_of_host() {
        // The features that Xen 4.17 gives to a PV dom0 and to a PVH dom0.
        assert_eq!(parse_features("00002f13\n"), HostKind::Pv);
        assert_eq!(parse_features("00007ffc\n"), HostKind::AutoTranslated);
    }

    #[test]
    fn invalid_features_leave_the_kind_unknown() {
        assert_eq!(parse_features(""), HostKind::Unknown);
        assert_eq!(parse_features("yes"), HostKind::Unknown);
    }
}
