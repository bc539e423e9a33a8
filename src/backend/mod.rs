//! The backend: the few kernel operations that everything else is built on. One backend is the kernel's device, the
//! other the simulated host.
//!
//! A backend is at the level of system calls (mmap, munmap and ioctl on the device), so everything above it, from the
//! layout of arguments to `Drop`, is the same code on a real Xen and on the simulated one.

#![expect(unsafe_code, reason = "passes promises about memory on to the host")]

mod events;
mod kernel;
mod memory;
mod process;
mod xenstore;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::abi;
use crate::types::{Architecture, Domid, FRAME_SIZE, Gfn, HostKind, Protection};

pub(crate) use events::{EventDevice, KernelEvents};
pub(crate) use kernel::KernelDevice;
#[cfg(feature = "mock")]
pub(crate) use kernel::page_size;
#[cfg(feature = "mock")]
pub(crate) use memory::advise;
pub(crate) use memory::{mmap, munmap};
pub(crate) use process::ProcessId;

/// Where a device mapping goes: `addr` and `flags` of mmap(2), to which `MAP_SHARED` is added. By default the kernel
/// chooses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) addr: usize,
    pub(crate) flags: libc::c_int,
}

impl Place {
    /// Replaces what is mapped at an address.
    pub(crate) fn over(addr: NonNull<u8>) -> Place {
        Place { addr: addr.as_ptr().expose_provenance(), flags: libc::MAP_FIXED }
    }

    /// Returns whether the mapping replaces what is there.
    pub(crate) fn is_over(self) -> bool {
        self.flags & libc::MAP_FIXED != 0
    }
}

/// An ioctl on the device, with its argument as the kernel sees it.
#[derive(Debug)]
pub(crate) enum Ioctl<'a> {
    MmapBatchV2(&'a mut abi::MmapBatchV2),
    MmapResource(&'a mut abi::MmapResource),
    Restrict(&'a mut u16),
    Hypercall(&'a mut abi::Hypercall),
    DmOp(&'a mut abi::DmOp),
    /// An ioctl that no kernel has.
    Unimplemented,
}

/// An open /dev/xen/privcmd, real or simulated.
///
/// # Safety
///
/// `mmap_at` and `map_hypercall_buffer` return the start of a new mapping of `len` bytes, which nothing else refers to
/// and which stays until the caller replaces it or unmaps it by `unmapper`. The memory of a hypercall buffer can be
/// read and written.
pub(crate) unsafe trait Backend: fmt::Debug + Send + Sync {
    /// Maps `len` bytes of the device, unpopulated: every access raises SIGBUS until a batch or resource is mapped
    /// there.
    ///
    /// # Safety
    ///
    /// If the mapping replaces anything, the caller owns all `len` bytes of it, and nothing uses them.
    unsafe fn mmap_at(&self, place: Place, len: usize, protection: Protection) -> io::Result<NonNull<u8>>;

    /// Makes an ioctl on the device, and returns its result.
    ///
    /// # Safety
    ///
    /// The pointers and addresses in the argument are valid for what the ioctl does with them.
    unsafe fn ioctl(&self, call: Ioctl<'_>) -> io::Result<u64>;

    /// Maps `len` bytes of zeroed memory that a hypercall may use.
    fn map_hypercall_buffer(&self, len: usize) -> io::Result<NonNull<u8>>;

    /// Returns the open device; for a simulated host, a file on which every ioctl of the device fails with ENOTTY.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Returns what unmaps the mappings of this device, even after the device is closed.
    fn unmapper(&self) -> Unmapper;

    /// Returns the page size of the host's kernel in bytes: that of a frame, or on Arm 16 or 64 KiB.
    fn page_size(&self) -> usize;

    /// Returns the kind of the domain that we run in, as far as it is known without privilege.
    fn host_kind(&self) -> HostKind;

    /// Returns the architecture of the host. A real host has that of this program; a simulated one may have another.
    fn architecture(&self) -> Architecture;

    /// Returns the names that xenstore has for some domains, in the same order.
    fn domain_names(&self, domids: &[Domid]) -> Vec<Option<String>>;

    /// Opens the host's device of event channels. The error names its path.
    fn open_events(&self) -> Result<Box<dyn EventDevice>, (PathBuf, io::Error)>;

    /// Returns how many bytes the kernel maps for this many frames: it maps whole pages of its own size.
    fn mapped_bytes(&self, frames: usize) -> usize {
        (frames * FRAME_SIZE).next_multiple_of(self.page_size())
    }

    /// Populates the device mapping at `addr` with a domain's frames (`IOCTL_PRIVCMD_MMAPBATCH_V2`).
    ///
    /// `Ok` means that `errors`, one per frame, is filled in (0: mapped, else a negative errno), not that anything was
    /// mapped. The kernel's ENOENT (some frame is paged out) is `Ok` too: the frame's own entry says so.
    ///
    /// # Safety
    ///
    /// The addresses are within a live device mapping that the caller owns and nothing uses.
    unsafe fn map_batch(&self, domid: Domid, addr: NonNull<u8>, gfns: &[Gfn], errors: &mut [i32]) -> io::Result<()> {
        // The kernel takes one count for both arrays.
        if gfns.len() != errors.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut batch = abi::MmapBatchV2 {
            num: u32::try_from(gfns.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
            dom: domid.get(),
            addr: addr.as_ptr().expose_provenance() as u64,
            arr: gfns.as_ptr().cast::<abi::XenPfn>(),
            err: errors.as_mut_ptr(),
        };
        // SAFETY: `arr` is `num` frame numbers (Gfn is a transparent u64, as is xen_pfn_t), `err` is `num` integers of
        // ours to write, both alive until the call returns; `addr` is the caller's promise.
        match unsafe { self.ioctl(Ioctl::MmapBatchV2(&mut batch)) } {
            Ok(_) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Populates the device mapping at `resource.addr` with a resource (`IOCTL_PRIVCMD_MMAP_RESOURCE`). If `num` and
    /// `addr` are 0, stores the resource's size in `num` instead.
    ///
    /// # Safety
    ///
    /// `resource.addr` is 0, or an unpopulated device mapping of exactly `resource.num` frames that the caller owns.
    unsafe fn map_resource(&self, resource: &mut abi::MmapResource) -> io::Result<()> {
        // SAFETY: the structure holds no pointer but `addr`, which is the caller's promise.
        unsafe { self.ioctl(Ioctl::MmapResource(resource)) }.map(|_| ())
    }

    /// Permanently restricts this open file to one domain (`IOCTL_PRIVCMD_RESTRICT`).
    fn restrict(&self, domid: Domid) -> io::Result<()> {
        // SAFETY: the argument is a domid, and holds no pointer.
        unsafe { self.ioctl(Ioctl::Restrict(&mut domid.get())) }.map(|_| ())
    }

    /// Makes a device model operation on a domain (`IOCTL_PRIVCMD_DM_OP`), whose first buffer is the operation's
    /// argument.
    ///
    /// # Safety
    ///
    /// The buffers can be read, and those that the operation answers in can be written.
    unsafe fn dm_op(&self, domid: Domid, buffers: &[abi::DmOpBuffer]) -> io::Result<()> {
        let num = u16::try_from(buffers.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        let mut call = abi::DmOp { dom: domid.get(), num, ubufs: buffers.as_ptr() };
        // SAFETY: `ubufs` is `num` descriptions of buffers; the buffers themselves are the caller's promise.
        unsafe { self.ioctl(Ioctl::DmOp(&mut call)) }.map(|_| ())
    }

    /// Returns the errno with which this kernel answers an unknown ioctl: ENOTTY since Linux 4.11, EINVAL before.
    fn unimplemented_errno(&self) -> i32 {
        // SAFETY: it has no argument.
        let refused = unsafe { self.ioctl(Ioctl::Unimplemented) }.err();
        refused.and_then(|e| e.raw_os_error()).unwrap_or(libc::ENOTTY)
    }

    /// Makes a hypercall (`IOCTL_PRIVCMD_HYPERCALL`), and returns its result.
    ///
    /// # Safety
    ///
    /// Addresses among the arguments are those of hypercall buffers that are alive and large enough.
    unsafe fn hypercall(&self, op: u64, arg: [u64; 5]) -> io::Result<u64> {
        // SAFETY: the structure holds no pointer but those in `arg`, which are the caller's promise.
        unsafe { self.ioctl(Ioctl::Hypercall(&mut abi::Hypercall { op, arg })) }
    }
}

/// Unmaps mappings. This is all that a mapping keeps of its backend, so that it can outlive the handle it was made
/// with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unmapper(Option<Arc<dyn Unmap>>);

/// Unmaps the mappings of a backend for which munmap(2) alone is not enough.
pub(crate) trait Unmap: fmt::Debug + Send + Sync {
    /// # Safety
    ///
    /// See [`Unmapper::munmap`].
    unsafe fn munmap(&self, addr: NonNull<u8>, len: usize) -> io::Result<()>;
}

impl Unmapper {
    #[cfg(feature = "mock")]
    pub(crate) fn new(unmap: Arc<dyn Unmap>) -> Unmapper {
        Unmapper(Some(unmap))
    }

    /// Unmaps; the kernel gives the references back to Xen.
    ///
    /// # Safety
    ///
    /// The `len` bytes at `addr` are one whole mapping that the caller owns, made through this device or by
    /// `map_hypercall_buffer`, and nothing uses them any more.
    pub(crate) unsafe fn munmap(&self, addr: NonNull<u8>, len: usize) -> io::Result<()> {
        match &self.0 {
            // SAFETY: the caller makes the same promise.
            None => unsafe { munmap(addr, len) },
            // SAFETY: the caller makes the same promise.
            Some(unmap) => unsafe { unmap.munmap(addr, len) },
        }
    }
}
