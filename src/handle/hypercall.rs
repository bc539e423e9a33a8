//! Hypercalls: the few stable ones that a user of foreign memory needs, any other, and memory for arguments.

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

/// Memory that a hypercall may read and write. It is zeroed at first, never moved or paged out, and not inherited by
/// child processes.
///
/// Xen takes addresses, and cannot wait until a page is brought in. So ordinary memory will not do.
///
/// ```
/// use xenmap::mock::MockHost;
///
/// let memory = MockHost::new().open()?;
/// let mut buffer = memory.hypercall_buffer(16)?;
/// assert_eq!(buffer.bytes(), [0; 16]);
/// buffer.bytes_mut()[..2].copy_from_slice(&7_u16.to_ne_bytes());
/// // Pass buffer.address() to `hypercall`, and read the answer from buffer.bytes().
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Debug)]
pub struct HypercallBuffer {
    region: Region,
    len: usize,
}

impl HypercallBuffer {
    /// Returns the size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the size is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the contents.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: we own these `len` mapped bytes, and they are initialised (the kernel zeroes them). Apart from us,
        // only Xen accesses them, and only during a hypercall; whoever makes one promises that no borrow is live
        // (`ForeignMemory::hypercall`).
        unsafe { NonNull::slice_from_raw_parts(self.region.base(), self.len).as_ref() }
    }

    /// Returns the contents, for writing.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `self` is borrowed exclusively.
        unsafe { NonNull::slice_from_raw_parts(self.region.base(), self.len).as_mut() }
    }

    /// Returns the address, to be passed to a hypercall.
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
    /// The 4 in 4.17.
    pub major: u16,
    /// The 17 in 4.17.
    pub minor: u16,
    /// The rest of the version, such as `.7`.
    pub extra: String,
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}{}", self.major, self.minor, self.extra)
    }
}

impl ForeignMemory {
    /// Returns how many frames a domain owns, including those that only foreign mappings keep alive
    /// (`XENMEM_current_reservation`).
    ///
    /// It also works for dying domains, so it shows whether any references are left.
    ///
    /// ```
    /// # use xenmap::mock::MockHost;
    /// # use xenmap::{GuestKind, Protection};
    /// # let host = MockHost::new();
    /// # let guest = host.create_domain(GuestKind::Hvm, 16);
    /// # let (memory, domid, gfns) = (host.open()?, guest.domid(), guest.frames());
    /// let mapping = memory.map_foreign_batch(domid, Protection::ReadOnly, &gfns[3..7])?;
    /// guest.destroy(); // a zombie now, because four of its frames are mapped
    /// assert_eq!(memory.current_reservation(domid)?, 4);
    /// drop(mapping);
    /// assert!(memory.current_reservation(domid).is_err());
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], with `ESRCH` once the domain is gone; [`Error::HypercallBuffer`].
    #[doc(alias = "XENMEM_current_reservation")]
    pub fn current_reservation(&self, domid: Domid) -> Result<u64> {
        self.memory_op("XENMEM_current_reservation", abi::XENMEM_CURRENT_RESERVATION, Some(domid))
    }

    /// Returns the highest frame number that a guest has ever used (`XENMEM_maximum_gpfn`). For a PV guest it is the
    /// highest pseudo-physical one, and 0 until the guest has started.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    #[doc(alias = "XENMEM_maximum_gpfn")]
    pub fn maximum_gpfn(&self, domid: Domid) -> Result<u64> {
        self.memory_op("XENMEM_maximum_gpfn", abi::XENMEM_MAXIMUM_GPFN, Some(domid))
    }

    /// Returns the highest machine frame number that is RAM, which bounds the frames of every PV guest
    /// (`XENMEM_maximum_ram_page`).
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    #[doc(alias = "XENMEM_maximum_ram_page")]
    pub fn maximum_ram_page(&self) -> Result<u64> {
        self.memory_op("XENMEM_maximum_ram_page", abi::XENMEM_MAXIMUM_RAM_PAGE, None)
    }

    /// Returns how many frames a domain may own (`XENMEM_maximum_reservation`).
    pub(crate) fn maximum_reservation(&self, domid: Domid) -> Result<u64> {
        self.memory_op("XENMEM_maximum_reservation", abi::XENMEM_MAXIMUM_RESERVATION, Some(domid))
    }

    /// Returns how a domain's memory is managed.
    ///
    /// On x86, a PVH guest is reported as HVM if the toolstack's interface is unknown
    /// ([`ForeignMemory::domctl_version`]).
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

    /// Returns whether a domain is a PV guest or one whose physical addresses Xen translates.
    ///
    /// Xen has parameters only for the latter (`HVMOP_get_param`, which is stable because guests use it too).
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

    /// Returns the version of the hypervisor.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    pub fn xen_version(&self) -> Result<XenVersion> {
        let arg = [u64::from(abi::XENVER_VERSION), 0, 0, 0, 0];
        // SAFETY: it takes no argument, and changes nothing.
        let version = unsafe { self.hypercall("XENVER_version", abi::HYPERVISOR_XEN_VERSION.into(), arg) }?;
        let [.., a, b, c, d] = version.to_be_bytes();
        Ok(XenVersion {
            major: u16::from_be_bytes([a, b]),
            minor: u16::from_be_bytes([c, d]),
            extra: self.version_string("XENVER_extraversion", abi::XENVER_EXTRAVERSION, abi::EXTRAVERSION_BYTES)?,
        })
    }

    /// Returns the kinds of guests that the hypervisor can run, separated by spaces, such as
    /// `xen-3.0-x86_64 hvm-3.0-x86_64`.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], [`Error::HypercallBuffer`].
    pub fn xen_capabilities(&self) -> Result<String> {
        self.version_string("XENVER_capabilities", abi::XENVER_CAPABILITIES, abi::CAPABILITIES_BYTES)
    }

    /// Asks the hypervisor for the kind of the domain that we run in.
    pub(crate) fn host_kind_by_hypercall(&self) -> Result<HostKind> {
        // xen_feature_info_t: which 32 features, and their bits.
        let buffer = self.hypercall_buffer(8)?;
        let arg = [u64::from(abi::XENVER_GET_FEATURES), buffer.address(), 0, 0, 0];
        // SAFETY: it reads and writes two u32, for which the buffer is large enough.
        unsafe { self.hypercall("XENVER_get_features", abi::HYPERVISOR_XEN_VERSION.into(), arg) }?;
        let translated = 1 << abi::XENFEAT_AUTO_TRANSLATED_PHYSMAP;
        Ok(if buffer.bytes()[4] & translated != 0 { HostKind::AutoTranslated } else { HostKind::Pv })
    }

    /// Makes any hypercall, and returns its result. `name` is for the error.
    ///
    /// The kernel returns only the low 32 bits of the result. If that is not enough, make a multicall.
    ///
    /// ```
    /// const XEN_VERSION: u64 = 17;
    ///
    /// let memory = xenmap::mock::MockHost::new().open()?;
    /// // SAFETY: XENVER_version (0) takes no argument, and changes nothing.
    /// let version = unsafe { memory.hypercall("XENVER_version", XEN_VERSION, [0; 5]) }?;
    /// assert_eq!((version >> 16, version & 0xFFFF), (4, 17));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`] with Xen's errno, or EPERM if the handle is restricted. If bit 31 of the result is set,
    /// EOVERFLOW; but `0xFFFF_F001` to `0xFFFF_FFFF` cannot be told from errors.
    ///
    /// # Safety
    ///
    /// A hypercall can do anything to this domain or another. Every address among its arguments must be that of a
    /// [`HypercallBuffer`] that is large enough for what Xen reads and writes there, and that is neither dropped nor
    /// borrowed until the call returns.
    pub unsafe fn hypercall(&self, name: &'static str, op: u64, arg: [u64; 5]) -> Result<u64> {
        // SAFETY: the caller's promise.
        unsafe { self.backend().hypercall(op, arg) }.map_err(|source| Error::Hypercall { name, domid: None, source })
    }

    /// Allocates `len` bytes that a hypercall may use.
    ///
    /// # Errors
    ///
    /// [`Error::HypercallBuffer`], also if `len` is 0.
    pub fn hypercall_buffer(&self, len: usize) -> Result<HypercallBuffer> {
        let error = |source| Error::HypercallBuffer { bytes: len, source };
        if len > isize::MAX.cast_unsigned() {
            return Err(error(io::ErrorKind::InvalidInput.into()));
        }
        let mapped = self.backend().mapped_bytes(len.div_ceil(FRAME_SIZE));
        let addr = self.backend().map_hypercall_buffer(mapped).map_err(error)?;
        let unmapper = self.backend().unmapper();
        // SAFETY: just mapped, `mapped` bytes in one piece, and nothing else refers to it.
        let region = unsafe { Region::new(addr, mapped, mapped, unmapper) };
        Ok(HypercallBuffer { region, len })
    }

    /// Returns the architecture of the host.
    pub(crate) fn architecture(&self) -> Architecture {
        self.backend().architecture()
    }

    /// Makes a memory operation that takes at most a domid and returns a number.
    ///
    /// It is made as a multicall, because an ioctl returns only an int (Linux, `vfs_ioctl`), and frame numbers may be
    /// larger. Up to Xen 4.15, a PVH dom0 has no multicalls.
    fn memory_op(&self, name: &'static str, command: u32, domid: Option<Domid>) -> Result<u64> {
        let mut buffer = self.hypercall_buffer(abi::MULTICALL_ENTRY_BYTES + size_of::<u16>())?;
        let (list, argument) = (buffer.address(), buffer.address() + abi::MULTICALL_ENTRY_BYTES as u64);
        let words = [abi::HYPERVISOR_MEMORY_OP.into(), 0, command.into(), argument];
        let (entry, to) = buffer.bytes_mut().split_at_mut(abi::MULTICALL_ENTRY_BYTES);
        for (word, value) in entry.chunks_exact_mut(8).zip(words) {
            word.copy_from_slice(&u64::to_ne_bytes(value));
        }
        // An operation without a domid ignores it.
        to.copy_from_slice(&domid.map_or(0, Domid::get).to_ne_bytes());
        // SAFETY: it reads one entry and one domid, and writes to the entry: the buffer has both, and is alive.
        let called = unsafe { self.backend().hypercall(abi::HYPERVISOR_MULTICALL.into(), [list, 1, 0, 0, 0]) };
        let result = match called {
            Ok(_) => result_of(u64_at(buffer.bytes(), 8)),
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
                let arg = [command.into(), argument, 0, 0, 0];
                // SAFETY: it reads at most one domid, which the buffer has, and changes nothing.
                unsafe { self.backend().hypercall(abi::HYPERVISOR_MEMORY_OP.into(), arg) }
            }
            Err(e) => Err(e),
        };
        result.map_err(|source| Error::Hypercall { name, domid, source })
    }

    /// Returns a text about the version, which Xen writes to a buffer. Its interface fixes the size.
    fn version_string(&self, name: &'static str, command: u32, len: usize) -> Result<String> {
        let buffer = self.hypercall_buffer(len)?;
        let arg = [u64::from(command), buffer.address(), 0, 0, 0];
        // SAFETY: it writes at most `len` bytes.
        unsafe { self.hypercall(name, abi::HYPERVISOR_XEN_VERSION.into(), arg) }?;
        let text = buffer.bytes().split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).trim_end().to_owned())
    }
}

/// Converts the result of a hypercall in a multicall: a number, or a negative errno.
fn result_of(returned: u64) -> io::Result<u64> {
    let returned = returned.cast_signed();
    u64::try_from(returned).map_err(|_| {
        let errno = i32::try_from(returned.unsigned_abs()).unwrap_or(libc::EOVERFLOW);
        io::Error::from_raw_os_error(errno)
    })
}
