//! The simulated hypervisor: how it answers hypercalls.

#![expect(unsafe_code, reason = "reads and writes hypercall buffers")]

use std::io;
use std::mem::offset_of;

use super::fault::Fault;
use super::machine::Host;
use super::state::{FIRST_MFN, State};
use crate::abi;
use crate::types::{Architecture, GuestKind};

const EXTRAVERSION: &[u8] = b".7-mock";
const CAPABILITIES: &[u8] = b"xen-3.0-x86_64 hvm-3.0-x86_64";
const ARM_CAPABILITIES: &[u8] = b"xen-3.0-aarch64 xen-3.0-armv7l";

impl Host {
    /// Answers the hypercalls that the library makes, and any other with ENOSYS.
    ///
    /// # Safety
    ///
    /// Nothing borrows from the hypercall buffers to which the arguments point.
    pub(super) unsafe fn hypercall(&self, call: &abi::Hypercall) -> io::Result<u64> {
        let state = &mut self.lock();
        if let Some(number) = state.faults.strike(|f| if let Fault::Hypercall(e) = f { Some(e) } else { None }) {
            return Err(io::Error::from_raw_os_error(number));
        }
        // SAFETY: the caller's promise.
        let answer = unsafe { self.dispatch(state, call.op, [call.arg[0], call.arg[1]]) };
        let answer = answer.map_err(io::Error::from_raw_os_error)?;
        // The kernel returns an int.
        let [a, b, c, d, ..] = answer.to_le_bytes();
        u64::try_from(i32::from_le_bytes([a, b, c, d])).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
    }

    /// # Safety
    ///
    /// As for [`hypercall`](Host::hypercall).
    unsafe fn dispatch(&self, state: &mut State, op: u64, arg: [u64; 2]) -> Result<u64, i32> {
        let command = u32::try_from(arg[0]).unwrap_or(u32::MAX);
        match u32::try_from(op).unwrap_or(u32::MAX) {
            abi::HYPERVISOR_MULTICALL if self.config.dom0 == super::Dom0::Pvh && self.config.xen < (4, 16) => {
                Err(libc::ENOSYS)
            }
            // SAFETY: the caller's promise.
            abi::HYPERVISOR_MULTICALL => unsafe { self.multicall(state, arg) },
            // SAFETY: the caller's promise.
            abi::HYPERVISOR_MEMORY_OP => unsafe { self.memory_op(state, command, arg[1]) },
            // SAFETY: the caller's promise.
            abi::HYPERVISOR_XEN_VERSION => unsafe { self.version_op(state, command, arg[1]) },
            // SAFETY: the caller's promise.
            abi::HYPERVISOR_HVM_OP => unsafe { hvm_op(state, command, arg[1]) },
            // SAFETY: the caller's promise.
            abi::HYPERVISOR_DOMCTL => unsafe { self.domctl(state, arg[0]) },
            // SAFETY: the caller's promise.
            abi::HYPERVISOR_SYSCTL => unsafe { self.sysctl(state, arg[0]) },
            _ => Err(libc::ENOSYS),
        }
    }

    /// Makes a list of hypercalls, none of which may be a multicall.
    ///
    /// # Safety
    ///
    /// As for [`hypercall`](Host::hypercall).
    unsafe fn multicall(&self, state: &mut State, [list, count]: [u64; 2]) -> Result<u64, i32> {
        for entry in (0..count).map(|i| list + i * abi::MULTICALL_ENTRY_BYTES as u64) {
            let [mut op, mut command, mut arg] = [0; 3];
            for (word, at) in [(&mut op, 0), (&mut command, 16), (&mut arg, 24)] {
                // SAFETY: the caller's promise.
                *word = u64::from_ne_bytes(unsafe { copy_from(state, entry + at) }?);
            }
            let answer = if op == u64::from(abi::HYPERVISOR_MULTICALL) {
                Err(libc::EINVAL)
            } else {
                // SAFETY: the caller's promise.
                unsafe { self.dispatch(state, op, [command, arg]) }
            };
            let result = answer.unwrap_or_else(|errno| i64::from(-errno).cast_unsigned());
            // SAFETY: the caller's promise.
            unsafe { copy_to(state, entry + 8, &result.to_ne_bytes()) }?;
        }
        Ok(0)
    }

    /// # Safety
    ///
    /// As for [`hypercall`](Host::hypercall).
    unsafe fn memory_op(&self, state: &mut State, command: u32, arg: u64) -> Result<u64, i32> {
        if command == abi::XENMEM_MAXIMUM_RAM_PAGE {
            return Ok(FIRST_MFN + state.pages.len() as u64 - 1);
        }
        if command == abi::XENMEM_GET_POD_TARGET {
            // SAFETY: the caller's promise.
            return unsafe { self.get_pod_target(state, arg) };
        }
        if command == abi::XENMEM_MACHPHYS_MFN_LIST {
            // SAFETY: the caller's promise.
            return unsafe { self.machphys_mfn_list(state, arg) };
        }
        // SAFETY: the caller's promise.
        let domid = u16::from_ne_bytes(unsafe { copy_from(state, arg) }?);
        let is_domain = |state: &State| domid != abi::XEN_DOMID && state.domains.contains_key(&domid);
        // Counting references is slow, so not for a domain that does not exist.
        if is_domain(state) {
            self.reclaim(state);
        }
        let domain = state.domains.get(&domid).filter(|_| is_domain(state)).ok_or(libc::ESRCH)?;
        match command {
            abi::XENMEM_CURRENT_RESERVATION => Ok(state.owned_by(domid)),
            abi::XENMEM_MAXIMUM_RESERVATION => Ok(domain.max_pages),
            abi::XENMEM_MAXIMUM_GPFN => Ok(domain.highest),
            _ => Err(libc::ENOSYS),
        }
    }

    /// # Safety
    ///
    /// As for [`hypercall`](Host::hypercall).
    unsafe fn get_pod_target(&self, state: &State, arg: u64) -> Result<u64, i32> {
        if self.architecture() == Architecture::Arm64 {
            return Err(libc::ENOSYS);
        }
        // SAFETY: the caller's promise.
        let domid = u16::from_ne_bytes(unsafe { copy_from(state, arg + offset_of!(abi::PodTarget, domid) as u64) }?);
        let domain = state.domains.get(&domid).filter(|_| domid != abi::XEN_DOMID).ok_or(libc::ESRCH)?;
        if domain.kind == GuestKind::Pv {
            return Err(libc::EINVAL);
        }
        for (offset, pages) in [
            (offset_of!(abi::PodTarget, tot_pages), state.owned_by(domid)),
            (offset_of!(abi::PodTarget, pod_cache_pages), domain.pool.len() as u64),
            (offset_of!(abi::PodTarget, pod_entries), domain.unpopulated() as u64),
        ] {
            // SAFETY: the caller's promise.
            unsafe { copy_to(state, arg + offset as u64, &pages.to_ne_bytes()) }?;
        }
        Ok(0)
    }

    /// # Safety
    ///
    /// As for [`hypercall`](Host::hypercall).
    unsafe fn version_op(&self, state: &State, command: u32, arg: u64) -> Result<u64, i32> {
        let features: u32 = match self.config.dom0 {
            super::Dom0::Pv => 0,
            super::Dom0::Pvh | super::Dom0::Arm => 1 << abi::XENFEAT_AUTO_TRANSLATED_PHYSMAP,
        };
        let mut info = [0; 8];
        info[4..].copy_from_slice(&features.to_ne_bytes());
        let answer: &[u8] = match command {
            abi::XENVER_VERSION => {
                let (major, minor) = self.config.xen;
                return Ok(u64::from(major) << 16 | u64::from(minor));
            }
            abi::XENVER_EXTRAVERSION => EXTRAVERSION,
            abi::XENVER_CAPABILITIES if self.architecture() == Architecture::Arm64 => ARM_CAPABILITIES,
            abi::XENVER_CAPABILITIES => CAPABILITIES,
            abi::XENVER_GET_FEATURES => &info,
            _ => return Err(libc::ENOSYS),
        };
        // SAFETY: the caller's promise.
        unsafe { copy_to(state, arg, answer) }.map(|()| 0)
    }
}

/// # Safety
///
/// As for [`Host::hypercall`].
unsafe fn hvm_op(state: &State, command: u32, arg: u64) -> Result<u64, i32> {
    if command != abi::HVMOP_GET_PARAM {
        return Err(libc::ENOSYS);
    }
    // SAFETY: the caller's promise.
    let domid = u16::from_ne_bytes(unsafe { copy_from(state, arg) }?);
    match state.domains.get(&domid).filter(|_| domid != abi::XEN_DOMID).ok_or(libc::ESRCH)?.kind {
        GuestKind::Pv => Err(libc::EINVAL),
        GuestKind::Hvm | GuestKind::Pvh => Ok(0),
    }
}

/// Finds `len` bytes of a hypercall buffer at an address; EFAULT if there are none, as in Xen.
pub(super) fn buffer(state: &State, addr: u64, len: usize) -> Result<*mut u8, i32> {
    let addr = usize::try_from(addr).map_err(|_| libc::EFAULT)?;
    let (&start, &size) = state.buffers.range(..=addr).next_back().ok_or(libc::EFAULT)?;
    if addr - start + len > size {
        return Err(libc::EFAULT);
    }
    Ok(std::ptr::with_exposed_provenance_mut(addr))
}

/// Reads from a hypercall buffer.
///
/// # Safety
///
/// As for [`Host::hypercall`].
pub(super) unsafe fn copy_from<const N: usize>(state: &State, addr: u64) -> Result<[u8; N], i32> {
    let from = buffer(state, addr, N)?;
    // SAFETY: `buffer` found this many bytes mapped, and nothing borrows them (the caller's promise).
    Ok(unsafe { from.cast::<[u8; N]>().read() })
}

/// Writes to a hypercall buffer.
///
/// # Safety
///
/// As for [`Host::hypercall`].
pub(super) unsafe fn copy_to(state: &State, addr: u64, bytes: &[u8]) -> Result<(), i32> {
    let to = buffer(state, addr, bytes.len())?;
    // SAFETY: `buffer` found this many bytes mapped, and nothing borrows them (the caller's promise).
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    Ok(())
}
