//! Hypercalls: the few stable ones that a user of foreign memory needs, and memory for their arguments.

#![expect(unsafe_code, reason = "the hypervisor reads and writes the buffers")]

use std::fmt;
use std::io;
use std::ptr::NonNull;

use super::ForeignMemory;
use super::domctl::u64_at;
use crate::abi;
use crate::error::{Error, Result};
use crate::mapping::region::Region;
use crate::types::{Architecture, Domid, FRAME_SIZE, GuestKind, HostKind};

/// Memory that a hypercall may read and write: zeroed at first, never moved or paged out, and not inherited by
/// children.
///
/// Xen takes addresses and cannot wait for a page to be brought in, so ordinary memory will not do.
#[derive(Debug)]
pub struct HypercallBuffer {
    region: Region,
    len: usize,
}

impl HypercallBuffer {
    /// The size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it holds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` mapped bytes of our own, initialised (the kernel zeroes them). Only we and, while a hypercall
        // is made, Xen know of them; whoever makes one has promised that no borrow is live
        // (`ForeignMemory::hypercall`).
        unsafe { NonNull::slice_from_raw_parts(self.region.base(), self.len).as_ref() }
    }

    /// What it holds, to be changed.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `self` is borrowed exclusively.
        unsafe { NonNull::slice_from_raw_parts(self.region.base(), self.len).as_mut() }
    }

    /// Its address, as an argument of a hypercall.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.region.base().as_ptr().expose_provenance() as u64
    }
}

/// The version of the hypervisor.
///
/// ```
/// let version = xenmap::mock::MockHost::new().open()?.xen_version()?;
/// assert_eq!(version.to_string(), "4.17.7-mock");
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct XenVersion {
    /// The 4 of 4.17.
    pub major: u16,
    /// The 17 of 4.17.
    pub minor: u16,
    /// What follows, such as `.7`.
    pub extra: String,
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}{}", self.major, self.minor, self.extra)
    }
}

impl ForeignMemory {
    /// Memory of `len` bytes that a hypercall may use.
    ///
    /// # Errors
    ///
    /// [`Error::HypercallBuffer`]; for no bytes, too.
    pub fn hypercall_buffer(&self, len: usize) -> Result<HypercallBuffer> {
        let error = |source| Error::HypercallBuffer { bytes: len, source };
        if len > isize::MAX.cast_unsigned() {
            return Err(error(io::ErrorKind::InvalidInput.into()));
        }
        let mapped = self.backend().mapped_bytes(len.div_ceil(FRAME_SIZE));
        let addr = self.backend().map_hypercall_buffer(mapped).map_err(error)?;
        let unmapper = self.backend().unmapper();
        // SAFETY: just mapped, `mapped` bytes in one, and nobody else knows of it.
        let region = unsafe { Region::new(addr, mapped, mapped, unmapper) };
        Ok(HypercallBuffer { region, len })
    }

    /// The architecture of the host.
    pub(crate) fn architecture(&self) -> Architecture {
        self.backend().architecture()
    }

    /// Makes any hypercall, and returns what it returns; `name` is for the error.
    ///
    /// Of what it returns the kernel gives back the low 32 bits. If more may be needed, make it a multicall.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`] with what Xen says, or EPERM if the handle is restricted. If bit 31 of what it returns is
    /// set, EOVERFLOW; but `0xFFFF_F001` to `0xFFFF_FFFF` cannot be told from errors.
    ///
    /// # Safety
    ///
    /// A hypercall can do anything to this domain or another. Its addresses must be those of [`HypercallBuffer`]s,
    /// large enough for what it reads and writes, alive, and not borrowed from until it returns.
    pub unsafe fn hypercall(&self, name: &'static str, op: u64, arg: [u64; 5]) -> Result<u64> {
        // SAFETY: the caller's promise.
        unsafe { self.backend().hypercall(op, arg) }.map_err(|source| Error::Hypercall { name, domid: None, source })
    }

    /// How many frames a domain owns, counting those that only foreign mappings keep alive; an error with `ESRCH` once
    /// it is gone.
    ///
    /// It answers for dying domains too, so it tells whether references are left (`XENMEM_current_reservation`).
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    #[doc(alias = "XENMEM_current_reservation")]
    pub fn current_reservation(&self, domid: Domid) -> Result<u64> {
        self.memory_op("XENMEM_current_reservation", abi::XENMEM_CURRENT_RESERVATION, Some(domid))
    }

    /// The highest frame a guest has ever had; of a PV guest the highest pseudo-physical one, and 0 until it has
    /// started (`XENMEM_maximum_gpfn`).
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    #[doc(alias = "XENMEM_maximum_gpfn")]
    pub fn maximum_gpfn(&self, domid: Domid) -> Result<u64> {
        self.memory_op("XENMEM_maximum_gpfn", abi::XENMEM_MAXIMUM_GPFN, Some(domid))
    }

    /// The highest machine frame that is RAM, which bounds the frames of every PV guest (`XENMEM_maximum_ram_page`).
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    #[doc(alias = "XENMEM_maximum_ram_page")]
    pub fn maximum_ram_page(&self) -> Result<u64> {
        self.memory_op("XENMEM_maximum_ram_page", abi::XENMEM_MAXIMUM_RAM_PAGE, None)
    }

    /// How many frames a domain may own (`XENMEM_maximum_reservation`).
    pub(crate) fn maximum_reservation(&self, domid: Domid) -> Result<u64> {
        self.memory_op("XENMEM_maximum_reservation", abi::XENMEM_MAXIMUM_RESERVATION, Some(domid))
    }

    /// How a domain's memory is managed.
    ///
    /// Where the toolstack's interface is not understood ([`ForeignMemory::domctl_version`]), PVH is not told from HVM
    /// on x86.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    pub fn guest_kind(&self, domid: Domid) -> Result<GuestKind> {
        match self.domctl_version() {
            Some(_) => Ok(self.get_domain_info(domid)?.kind),
            None => self.guest_kind_by_param(domid),
        }
    }

    /// Whether a domain is a PV guest or one whose physical addresses Xen translates.
    ///
    /// Xen keeps parameters for the latter only (`HVMOP_get_param`, which guests rely on too and so stays as it is).
    pub(crate) fn guest_kind_by_param(&self, domid: Domid) -> Result<GuestKind> {
        let param = abi::HvmParam { domid: domid.get(), pad: 0, index: abi::HVM_PARAM_STORE_PFN, value: 0 };
        let mut buffer = self.hypercall_buffer(size_of::<abi::HvmParam>())?;
        buffer.bytes_mut()[..2].copy_from_slice(&param.domid.to_ne_bytes());
        buffer.bytes_mut()[4..8].copy_from_slice(&param.index.to_ne_bytes());
        let arg = [u64::from(abi::HVMOP_GET_PARAM), buffer.address(), 0, 0, 0];
        // SAFETY: it reads and writes one `HvmParam`, for which the buffer is large enough.
        match unsafe { self.backend().hypercall(abi::HYPERVISOR_HVM_OP.into(), arg) } {
            Ok(_) if self.architecture() == Architecture::Arm64 => Ok(GuestKind::Pvh),
            Ok(_) => Ok(GuestKind::Hvm),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(GuestKind::Pv),
            Err(source) => Err(Error::Hypercall { name: "HVMOP_get_param", domid: Some(domid), source }),
        }
    }

    /// The version of the hypervisor that we run on.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    pub fn xen_version(&self) -> Result<XenVersion> {
        let arg = [u64::from(abi::XENVER_VERSION), 0, 0, 0, 0];
        // SAFETY: it has no argument, and only answers.
        let version = unsafe { self.hypercall("XENVER_version", abi::HYPERVISOR_XEN_VERSION.into(), arg) }?;
        let [.., a, b, c, d] = version.to_be_bytes();
        Ok(XenVersion {
            major: u16::from_be_bytes([a, b]),
            minor: u16::from_be_bytes([c, d]),
            extra: self.version_string("XENVER_extraversion", abi::XENVER_EXTRAVERSION, abi::EXTRAVERSION_BYTES)?,
        })
    }

    /// The kinds of guest that the hypervisor can run, such as `xen-3.0-x86_64 hvm-3.0-x86_64`, separated by spaces.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    pub fn xen_capabilities(&self) -> Result<String> {
        self.version_string("XENVER_capabilities", abi::XENVER_CAPABILITIES, abi::CAPABILITIES_BYTES)
    }

    /// What kind of domain we are in, as the hypervisor says.
    pub(crate) fn host_kind_by_hypercall(&self) -> Result<HostKind> {
        // xen_feature_info_t: which 32 features, and their bits.
        let buffer = self.hypercall_buffer(8)?;
        let arg = [u64::from(abi::XENVER_GET_FEATURES), buffer.address(), 0, 0, 0];
        // SAFETY: it reads and writes two u32, for which the buffer is large enough.
        unsafe { self.hypercall("XENVER_get_features", abi::HYPERVISOR_XEN_VERSION.into(), arg) }?;
        let translated = 1 << abi::XENFEAT_AUTO_TRANSLATED_PHYSMAP;
        Ok(if buffer.bytes()[4] & translated != 0 { HostKind::AutoTranslated } else { HostKind::Pv })
    }

    /// A memory operation that takes at most a domid, and returns a number.
    ///
    /// As a multicall, since an ioctl gives back only an int of what a hypercall returns (Linux, `vfs_ioctl`), and
    /// frame numbers may be larger. Up to Xen 4.15 a PVH dom0 has no multicalls.
    fn memory_op(&self, name: &'static str, command: u32, domid: Option<Domid>) -> Result<u64> {
        let mut buffer = self.hypercall_buffer(abi::MULTICALL_ENTRY_BYTES + size_of::<u16>())?;
        let (list, argument) = (buffer.address(), buffer.address() + abi::MULTICALL_ENTRY_BYTES as u64);
        let words = [abi::HYPERVISOR_MEMORY_OP.into(), 0, command.into(), argument];
        let (entry, to) = buffer.bytes_mut().split_at_mut(abi::MULTICALL_ENTRY_BYTES);
        for (word, value) in entry.chunks_exact_mut(8).zip(words) {
            word.copy_from_slice(&u64::to_ne_bytes(value));
        }
        // An operation that takes none does not look.
        to.copy_from_slice(&domid.map_or(0, Domid::get).to_ne_bytes());
        // SAFETY: it reads one entry and one domid, and writes to the entry: the buffer has both, and is alive.
        let called = unsafe { self.backend().hypercall(abi::HYPERVISOR_MULTICALL.into(), [list, 1, 0, 0, 0]) };
        let result = match called {
            Ok(_) => result_of(u64_at(buffer.bytes(), 8)),
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
                let arg = [command.into(), argument, 0, 0, 0];
                // SAFETY: it reads at most one domid, which the buffer has, and only answers.
                unsafe { self.backend().hypercall(abi::HYPERVISOR_MEMORY_OP.into(), arg) }
            }
            Err(e) => Err(e),
        };
        result.map_err(|source| Error::Hypercall { name, domid, source })
    }

    /// A text about the version, which Xen writes into a buffer of the size that its interface fixes.
    fn version_string(&self, name: &'static str, command: u32, len: usize) -> Result<String> {
        let buffer = self.hypercall_buffer(len)?;
        let arg = [u64::from(command), buffer.address(), 0, 0, 0];
        // SAFETY: it writes at most `len` bytes.
        unsafe { self.hypercall(name, abi::HYPERVISOR_XEN_VERSION.into(), arg) }?;
        let text = buffer.bytes().split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).trim_end().to_owned())
    }
}

/// What a hypercall of a multicall has returned: a number, or a negative errno.
fn result_of(returned: u64) -> io::Result<u64> {
    let returned = returned.cast_signed();
    u64::try_from(returned).map_err(|_| {
        let errno = i32::try_from(returned.unsigned_abs()).unwrap_or(libc::EOVERFLOW);
        io::Error::from_raw_os_error(errno)
    })
}
