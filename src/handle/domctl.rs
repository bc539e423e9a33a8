//! Hypercalls of the toolstack's interfaces (domctl, sysctl). Each release of Xen understands one version of them.

#![expect(unsafe_code, reason = "makes hypercalls")]

use std::ops::RangeInclusive;
use std::sync::OnceLock;

use super::ForeignMemory;
use crate::abi;
use crate::error::{Error, Result};
use crate::types::{Domid, Gfn};

/// The domctl versions of Xen 4.11 to 4.22. The parts that we use are the same in all of them, except for
/// `ARCH_CONFIG_MOVED` and `ARM_REGISTERS_WIDENED`.
const DOMCTL_VERSIONS: RangeInclusive<u32> = 0x10..=0x18;
/// The sysctl versions of Xen 4.11 to 4.22.
const SYSCTL_VERSIONS: RangeInclusive<u32> = 0x11..=0x16;
/// The first version (of either interface, in Xen 4.16) with `arch_config` of `struct xen_domctl_getdomaininfo` where
/// the bindings have it. Before, there was no `gpaddr_bits` in front of it.
pub(crate) const ARCH_CONFIG_MOVED: u32 = 0x14;
/// The first version (in Xen 4.16) with 64 bits for `cpsr` and `spsr_el1` of arm64's `struct vcpu_guest_context`.
/// Before, the fields after them had offsets 8 bytes lower.
pub(crate) const ARM_REGISTERS_WIDENED: u32 = 0x14;

/// The sizes of the headers in bytes: command and version, and for a domctl the domain.
const SYSCTL_HEADER: usize = 8;
const DOMCTL_HEADER: usize = 16;
/// The size of the arguments in bytes.
pub(crate) const ARGUMENTS: usize = 128;

/// The most frames per call (Xen's domctl.c, `getpageframeinfo3`).
const FRAMES_A_CALL: usize = 1024;

/// The arguments of a domctl or sysctl, which Xen reads and writes.
pub(crate) type Arguments = [u8; ARGUMENTS];

/// The version of an interface, once it has been found; or, as an errno, the reason why it cannot be used.
pub(crate) type Version = OnceLock<std::result::Result<u32, i32>>;

impl ForeignMemory {
    /// Returns the version of the toolstack's domctl interface that this Xen understands, if this crate knows it (Xen
    /// 4.11 to 4.22) and this handle may use it.
    ///
    /// Without it, less is known about domains, and some questions take longer to answer.
    ///
    /// ```
    /// assert_eq!(xenmap::mock::MockHost::new().open()?.domctl_version(), Some(0x15));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    #[must_use]
    pub fn domctl_version(&self) -> Option<u32> {
        self.usable_domctl_version().ok()
    }

    /// Like [`domctl_version`](ForeignMemory::domctl_version), for the sysctl interface.
    pub(crate) fn sysctl_version(&self) -> Option<u32> {
        self.usable_sysctl_version().ok()
    }

    fn usable_domctl_version(&self) -> std::result::Result<u32, i32> {
        remember(&self.shared.domctl_version, || {
            let domid = Domid::new(0).ok();
            let (op, command) = (abi::HYPERVISOR_DOMCTL, abi::XEN_DOMCTL_GETDOMAININFO);
            let call = Call { name: "XEN_DOMCTL_getdomaininfo", op, command, domid, arguments: [0; ARGUMENTS] };
            // SAFETY: it takes no address, and writes only to the structure itself.
            unsafe { self.understood(DOMCTL_VERSIONS, &call) }
        })
    }

    fn usable_sysctl_version(&self) -> std::result::Result<u32, i32> {
        remember(&self.shared.sysctl_version, || {
            let (op, command) = (abi::HYPERVISOR_SYSCTL, abi::XEN_SYSCTL_GETDOMAININFOLIST);
            let call =
                Call { name: "XEN_SYSCTL_getdomaininfolist", op, command, domid: None, arguments: [0; ARGUMENTS] };
            // SAFETY: the arguments are all 0, so Xen writes 0 domains to the address in them, and changes nothing.
            unsafe { self.understood(SYSCTL_VERSIONS, &call) }
        })
    }

    /// Returns the version of an interface in which Xen understands a call. The call may be made any number of times.
    ///
    /// # Safety
    ///
    /// As for `toolstack_call`.
    unsafe fn understood(&self, versions: RangeInclusive<u32>, call: &Call) -> std::result::Result<u32, i32> {
        for version in versions.rev() {
            // SAFETY: the caller's promise.
            match unsafe { self.toolstack_call(version, call) }.map_err(|e| e.errno()) {
                // ESRCH: there is no domain 0, but Xen has understood the call.
                Ok(_) | Err(libc::ESRCH) => return Ok(version),
                // Xen has another version, which it checks before anything else.
                Err(libc::EACCES) => {}
                // For example EPERM, because the handle is restricted: the same for every version.
                Err(errno) => return Err(errno),
            }
        }
        Err(libc::EACCES)
    }

    /// Makes a domctl, and returns its arguments as Xen leaves them.
    ///
    /// # Safety
    ///
    /// As for [`ForeignMemory::hypercall`]; `arguments` are the bytes of the structure after the first 16.
    pub(crate) unsafe fn domctl(
        &self,
        name: &'static str,
        command: u32,
        domid: Domid,
        arguments: Arguments,
    ) -> Result<Arguments> {
        let call = Call { name, op: abi::HYPERVISOR_DOMCTL, command, domid: Some(domid), arguments };
        let version = self.usable_domctl_version().map_err(|errno| call.error(errno))?;
        // SAFETY: the caller's promise.
        unsafe { self.toolstack_call(version, &call) }
    }

    /// Makes a sysctl, and returns its arguments as Xen leaves them.
    ///
    /// # Safety
    ///
    /// As for [`ForeignMemory::hypercall`]; `arguments` are the bytes of the structure after the first 8.
    pub(crate) unsafe fn sysctl(&self, name: &'static str, command: u32, arguments: Arguments) -> Result<Arguments> {
        let call = Call { name, op: abi::HYPERVISOR_SYSCTL, command, domid: None, arguments };
        let version = self.usable_sysctl_version().map_err(|errno| call.error(errno))?;
        // SAFETY: the caller's promise.
        unsafe { self.toolstack_call(version, &call) }
    }

    /// Returns the type of each frame, one of `XEN_DOMCTL_PFINFO_*` (`XEN_DOMCTL_getpageframeinfo3`).
    ///
    /// Like mapping it, this populates a populate-on-demand frame.
    pub(crate) fn page_frame_info(&self, domid: Domid, gfns: &[Gfn]) -> Result<Vec<u32>> {
        const WORD: usize = size_of::<u64>();
        let mut array = self.hypercall_buffer(WORD * FRAMES_A_CALL.min(gfns.len().max(1)))?;
        let mut types = Vec::with_capacity(gfns.len());
        for chunk in gfns.chunks(FRAMES_A_CALL) {
            for (word, gfn) in array.bytes_mut().chunks_exact_mut(WORD).zip(chunk) {
                word.copy_from_slice(&gfn.get().to_ne_bytes());
            }
            let mut arguments = [0; ARGUMENTS];
            arguments[..8].copy_from_slice(&(chunk.len() as u64).to_ne_bytes());
            arguments[8..16].copy_from_slice(&array.address().to_ne_bytes());
            let (name, command) = ("XEN_DOMCTL_getpageframeinfo3", abi::XEN_DOMCTL_GETPAGEFRAMEINFO3);
            // SAFETY: it reads and writes an array of `chunk.len()` words, for which the buffer is large enough.
            unsafe { self.domctl(name, command, domid, arguments) }?;
            types.extend(array.bytes().chunks_exact(WORD).take(chunk.len()).map(|word| u32_at(word, 0)));
        }
        Ok(types)
    }

    /// Makes a call in one version of its interface, and returns its arguments as Xen leaves them.
    ///
    /// # Safety
    ///
    /// As for [`ForeignMemory::hypercall`]: any address in the call's `arguments` is that of a buffer which is large
    /// enough for what Xen reads and writes there.
    unsafe fn toolstack_call(&self, version: u32, call: &Call) -> Result<Arguments> {
        let header = if call.domid.is_some() { DOMCTL_HEADER } else { SYSCTL_HEADER };
        let mut buffer = self.hypercall_buffer(header + ARGUMENTS)?;
        let bytes = buffer.bytes_mut();
        bytes[..4].copy_from_slice(&call.command.to_ne_bytes());
        bytes[4..8].copy_from_slice(&version.to_ne_bytes());
        if let Some(domid) = call.domid {
            bytes[8..10].copy_from_slice(&domid.get().to_ne_bytes());
        }
        bytes[header..].copy_from_slice(&call.arguments);
        let arg = [buffer.address(), 0, 0, 0, 0];
        // SAFETY: it reads and writes one structure, for which the buffer is large enough; that the call is harmless,
        // and the addresses in its arguments valid, is the caller's promise.
        let called = unsafe { self.backend().hypercall(call.op.into(), arg) };
        called.map_err(|source| Error::Hypercall { name: call.name, domid: call.domid, source })?;
        let mut arguments = [0; ARGUMENTS];
        arguments.copy_from_slice(&buffer.bytes()[header..]);
        Ok(arguments)
    }
}

/// Returns the remembered version of an interface, or asks for it.
fn remember(version: &Version, ask: impl FnOnce() -> std::result::Result<u32, i32>) -> std::result::Result<u32, i32> {
    if let Some(known) = version.get() {
        return *known;
    }
    let answer = ask();
    // Another errno, such as ENOMEM, says nothing about the interface.
    if matches!(answer, Ok(_) | Err(libc::EACCES | libc::EPERM | libc::ENOSYS)) {
        // Another thread may have been faster, with the same answer.
        let _ = version.set(answer);
    }
    answer
}

/// A domctl or sysctl.
struct Call {
    name: &'static str,
    op: u32,
    command: u32,
    /// `None` for a sysctl.
    domid: Option<Domid>,
    arguments: Arguments,
}

impl Call {
    fn error(&self, errno: i32) -> Error {
        Error::Hypercall { name: self.name, domid: self.domid, source: std::io::Error::from_raw_os_error(errno) }
    }
}

/// Reads an integer from a structure that Xen has written; 0 past the end, where no field lies.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

/// See [`u32_at`].
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}
