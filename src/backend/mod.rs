//! The backend: the few kernel operations that everything else is built on, and the kernel's device, which carries them
//! out.
//!
//! The simulated host is another backend. A backend is at the level of system calls (mmap, munmap and ioctl on the
//! device), so all that is above it, from the arguments' layout to `Drop`, is the same code on a real Xen and on the
//! simulated one.

#![expect(unsafe_code, reason = "hands promises about memory on to the host")]

mod kernel;
mod memory;
mod process;
mod xenstore;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::abi;
use crate::types::{Architecture, Domid, FRAME_SIZE, Gfn, HostKind, Protection};

pub(crate) use kernel::KernelDevice;
#[cfg(feature = "mock")]
pub(crate) use kernel::page_size;
#[cfg(feature = "mock")]
pub(crate) use memory::advise;
pub(crate) use memory::{mmap, munmap};
pub(crate) use process::ProcessId;

/// Where a device mapping goes: `addr` and `flags` of mmap(2), to which `MAP_SHARED` is added. By default where the
/// kernel wants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) addr: usize,
    pub(crate) flags: libc::c_int,
}

impl Place {
    /// In exchange for what is mapped there.
    pub(crate) fn over(addr: NonNull<u8>) -> Place {
        Place { addr: addr.as_ptr().expose_provenance(), flags: libc::MAP_FIXED }
    }

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
    /// One that no kernel has.
    Unimplemented,
}

/// An open /dev/xen/privcmd, real or simulated.
///
/// # Safety
///
/// What `mmap_at` and `map_hypercall_buffer` return is the beginning of a new mapping of `len` bytes, which nobody else
/// knows of and which stays until the caller replaces it or has `unmapper` unmap it. The memory of a hypercall buffer
/// can be read and written.
pub(crate) unsafe trait Backend: fmt::Debug + Send + Sync {
    /// Maps `len` bytes of the device, unpopulated: every access is a SIGBUS until a batch or resource is mapped there.
    ///
    /// # Safety
    ///
    /// If the mapping goes over something, that is the caller's own, all `len` bytes of it, and nothing uses them.
    unsafe fn mmap_at(&self, place: Place, len: usize, protection: Protection) -> io::Result<NonNull<u8>>;

    /// Makes an ioctl on the device, and returns what it returned.
    ///
    /// # Safety
    ///
    /// The pointers and addresses in the argument are valid for what the ioctl does with them.
    unsafe fn ioctl(&self, call: Ioctl<'_>) -> io::Result<u64>;

    /// Maps `len` bytes of zeroed memory that a hypercall may use.
    fn map_hypercall_buffer(&self, len: usize) -> io::Result<NonNull<u8>>;

    /// The open device, or of a simulated host something on which each ioctl of the device is ENOTTY.
    fn fd(&self) -> BorrowedFd<'_>;

    /// What unmaps the mappings of this device, once it may be closed.
    fn unmapper(&self) -> Unmapper;

    /// Bytes of a page of the host's kernel: a frame's, or on Arm 16 or 64 KiB.
    fn page_size(&self) -> usize;

    /// What kind of domain we are in, as far as the system tells without privilege.
    fn host_kind(&self) -> HostKind;

    /// The architecture of the host: of a real one that of this program, which a simulated one need not have.
    fn architecture(&self) -> Architecture;

    /// The names that xenstore has of some domains, in their order.
    fn domain_names(&self, domids: &[Domid]) -> Vec<Option<String>>;

    /// Bytes that the kernel maps for so many frames: it knows only its own pages.
    fn mapped_bytes(&self, frames: usize) -> usize {
        (frames * FRAME_SIZE).next_multiple_of(self.page_size())
    }

    /// Populates the device mapping at `addr` with a domain's frames (`IOCTL_PRIVCMD_MMAPBATCH_V2`).
    ///
    /// `Ok` says that `errors`, one per frame, is filled in (0: mapped, else a negative errno), not that anything was
    /// mapped. The kernel's ENOENT (some frame is paged out) is `Ok` too: the frame's own entry says so.
    ///
    /// # Safety
    ///
    /// The addresses are within a live device mapping of the caller's that nothing uses.
    unsafe fn map_batch(&self, domid: Domid, addr: NonNull<u8>, gfns: &[Gfn], errors: &mut [i32]) -> io::Result<()> {
        // The kernel goes by one count for both arrays.
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

    /// Populates the device mapping at `resource.addr` with a resource; with `num` and `addr` 0 asks for its size,
    /// which it puts into `num` (`IOCTL_PRIVCMD_MMAP_RESOURCE`).
    ///
    /// # Safety
    ///
    /// `resource.addr` is 0, or an unpopulated device mapping of the caller's of exactly `resource.num` frames.
    unsafe fn map_resource(&self, resource: &mut abi::MmapResource) -> io::Result<()> {
        // SAFETY: the structure holds no pointer but `addr`, which is the caller's promise.
        unsafe { self.ioctl(Ioctl::MmapResource(resource)) }.map(|_| ())
    }

    /// Confines this open file to one domain, for good (`IOCTL_PRIVCMD_RESTRICT`).
    fn restrict(&self, domid: Domid) -> io::Result<()> {
        // SAFETY: the argument is a domid, and holds no pointer.
        unsafe { self.ioctl(Ioctl::Restrict(&mut domid.get())) }.map(|_| ())
    }

    /// What this kernel answers to an ioctl that it does not have: ENOTTY since Linux 4.11, EINVAL before.
    fn unimplemented_errno(&self) -> i32 {
        // SAFETY: it has no argument.
        let refused = unsafe { self.ioctl(Ioctl::Unimplemented) }.err();
        refused.and_then(|e| e.raw_os_error()).unwrap_or(libc::ENOTTY)
    }

    /// Makes a hypercall (`IOCTL_PRIVCMD_HYPERCALL`) and returns what it returned.
    ///
    /// # Safety
    ///
    /// Addresses among the arguments are those of hypercall buffers that are alive and large enough.
    unsafe fn hypercall(&self, op: u64, arg: [u64; 5]) -> io::Result<u64> {
        // SAFETY: the structure holds no pointer but those in `arg`, which are the caller's promise.
        unsafe { self.ioctl(Ioctl::Hypercall(&mut abi::Hypercall { op, arg })) }
    }
}

/// What unmaps: all of a backend that a mapping needs, so that it outlives the handle it was made with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unmapper(Option<Arc<dyn Unmap>>);

/// How the mappings of a backend are unmapped that needs more than the kernel for it.
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
    /// The `len` bytes at `addr` are a whole mapping of the caller's, made through this device or with
    /// `map_hypercall_buffer`, and nothing uses them any more.
    pub(crate) unsafe fn munmap(&self, addr: NonNull<u8>, len: usize) -> io::Result<()> {
        match &self.0 {
            // SAFETY: the caller's promise is the one that is asked for.
            None => unsafe { munmap(addr, len) },
            // SAFETY: the caller's promise is the one that is asked for.
            Some(unmap) => unsafe { unmap.munmap(addr, len) },
        }
    }
}
