//! The simulated hypervisor's side of the toolstack's interfaces, domctl and sysctl.

#![expect(unsafe_code, reason = "reads and writes hypercall buffers")]

use super::frame_info::page_frame_info;
use super::hypercalls::{copy_from, copy_to};
use super::machine::Host;
use super::state::{DOM0, Domain, Frame, State};
use crate::abi;
use crate::handle::domctl::u32_at;
use crate::types::{Architecture, GuestKind};

/// Bytes of the structure before the arguments.
const HEADER: u64 = 16;
const SYSCTL_HEADER: u64 = 8;

/// A version that no caller knows.
const UNKNOWN: u32 = 0xFFFF;

/// The UUID of every guest.
const HANDLE: [u8; 16] = *b"a guest (xenmap)";

// xen/include/public/arch-x86/xen.h, `XEN_X86_EMU_*`: what Xen's `emulation_flags_ok` allows a domain.
const EMULATED_FOR_HVM: u32 = 0x3FF;
const EMULATED_FOR_PVH: u32 = 0x1;
const EMULATED_FOR_PV_DOM0: u32 = 0x100;
const EMULATED_FOR_PVH_DOM0: u32 = 0x411;
/// The value on Arm (xen/include/public/arch-arm.h, `XEN_DOMCTL_CONFIG_GIC_V3`).
const ARM_GIC_VERSION: u32 = 2;

impl Domain {
    /// # Errors
    ///
    /// EOVERFLOW if the domain is paused 255 times already.
    pub(super) fn pause(&mut self) -> Result<(), i32> {
        self.pauses = self.pauses.checked_add(1).ok_or(libc::EOVERFLOW)?;
        Ok(())
    }

    /// # Errors
    ///
    /// EINVAL if the domain is not paused.
    pub(super) fn unpause(&mut self) -> Result<(), i32> {
        self.pauses = self.pauses.checked_sub(1).ok_or(libc::EINVAL)?;
        Ok(())
    }
}

impl Host {
    /// Returns the version of the domctl interface (xen/include/public/domctl.h of each release).
    fn domctl_version(&self) -> u32 {
        match self.config.xen {
            (4, 11) => 0x10,
            (4, 12) => 0x11,
            (4, 13 | 14) => 0x12,
            (4, 15) => 0x13,
            (4, 16) => 0x14,
            (4, 17) => 0x15,
            (4, 18) => 0x16,
            (4, 19..=21) => 0x17,
            (4, 22) => 0x18,
            _ => UNKNOWN,
        }
    }

    /// Returns the version of the sysctl interface (xen/include/public/sysctl.h of each release).
    fn sysctl_version(&self) -> u32 {
        match self.config.xen {
            (4, 11) => 0x11,
            (4, 12 | 13) => 0x12,
            (4, 14 | 15) => 0x13,
            (4, 16) => 0x14,
            (4, 17..=20) => 0x15,
            (4, 21 | 22) => 0x16,
            _ => UNKNOWN,
        }
    }

    /// # Safety
    ///
    /// As for [`hypercall`](Host::hypercall).
    pub(super) unsafe fn sysctl(&self, state: &mut State, arg: u64) -> Result<u64, i32> {
        state.hypercalls.toolstack += 1;
        // SAFETY: the caller's promise.
        let call: [u8; 136] = unsafe { copy_from(state, arg) }?;
        let word = |at: usize| call[at..].first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
        let (command, version) = (word(0), word(4));
        if version != self.sysctl_version() {
            return Err(libc::EACCES);
        }
        if command != abi::XEN_SYSCTL_GETDOMAININFOLIST {
            return Err(libc::ENOSYS);
        }
        self.reclaim(state);
        let (first, most) = (u16::from_ne_bytes([call[8], call[9]]), word(12));
        let mut next = call[16..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
        let mut count: u32 = 0;
        for (&domid, domain) in state.domains.range(first..).filter(|(id, _)| **id < abi::FIRST_RESERVED_DOMID) {
            if count == most {
                break;
            }
            let info = self.domain_info(state, domid, domain);
            // SAFETY: the caller's promise.
            unsafe { copy_to(state, next, &info) }?;
            next += info.len() as u64;
            count += 1;
        }
        // SAFETY: the caller's promise.
        unsafe { copy_to(state, arg + SYSCTL_HEADER + 16, &count.to_ne_bytes()) }?;
        Ok(0)
    }

    /// # Safety
    ///
    /// As for [`hypercall`](Host::hypercall).
    pub(super) unsafe fn domctl(&self, state: &mut State, arg: u64) -> Result<u64, i32> {
        state.hypercalls.toolstack += 1;
        let word = |bytes: &[u8; 144], at: usize| bytes[at..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
        // SAFETY: the caller's promise.
        let call: [u8; 144] = unsafe { copy_from(state, arg) }?;
        let [command, version] = [0, 4].map(|at| call[at..].first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)));
        if version != self.domctl_version() {
            return Err(libc::EACCES);
        }
        let domid = u16::from_ne_bytes([call[8], call[9]]);
        // Until Xen 4.17 this call describes the next domain if there is none with this number.
        let may_be_next = command == abi::XEN_DOMCTL_GETDOMAININFO && self.config.xen < (4, 18);
        let last = if may_be_next { abi::FIRST_RESERVED_DOMID - 1 } else { domid };
        if domid >= abi::FIRST_RESERVED_DOMID {
            return Err(if may_be_next { libc::EINVAL } else { libc::ESRCH });
        }
        // Counting references is slow, so only for callers that ask how many pages are left.
        if command == abi::XEN_DOMCTL_GETDOMAININFO && state.domains.range(domid..=last).next().is_some() {
            self.reclaim(state);
        }
        let (&found, domain) = state.domains.range_mut(domid..=last).next().ok_or(libc::ESRCH)?;
        let on_arm = self.architecture() == Architecture::Arm64;
        match command {
            abi::XEN_DOMCTL_GETPAGEFRAMEINFO3
            | abi::XEN_DOMCTL_GET_ADDRESS_SIZE
            | abi::XEN_DOMCTL_GETHVMCONTEXT_PARTIAL
                if on_arm =>
            {
                Err(libc::ENOSYS)
            }
            abi::XEN_DOMCTL_PAUSEDOMAIN if found == DOM0 => Err(libc::EINVAL),
            abi::XEN_DOMCTL_PAUSEDOMAIN => domain.pause().map(|()| 0),
            abi::XEN_DOMCTL_UNPAUSEDOMAIN => {
                self.changed.notify_all();
                domain.unpause().map(|()| 0)
            }
            abi::XEN_DOMCTL_GETDOMAININFO => {
                let info = self.domain_info(state, found, &state.domains[&found]);
                // SAFETY: the caller's promise.
                unsafe { copy_to(state, arg + 8, &found.to_ne_bytes()) }?;
                // SAFETY: the caller's promise.
                unsafe { copy_to(state, arg + HEADER, &info) }?;
                Ok(0)
            }
            abi::XEN_DOMCTL_GETPAGEFRAMEINFO3 => {
                // SAFETY: the caller's promise.
                unsafe { page_frame_info(self, state, domid, word(&call, 16), word(&call, 24)) }
            }
            abi::XEN_DOMCTL_GET_ADDRESS_SIZE => {
                let size = domain.address_size;
                // SAFETY: the caller's promise.
                unsafe { copy_to(state, arg + HEADER, &size.to_ne_bytes()) }.map(|()| 0)
            }
            abi::XEN_DOMCTL_GETVCPUCONTEXT => {
                let vcpu = u32_at(&call, 16);
                let context =
                    if on_arm { domain.arm64_vcpu_context(vcpu, self.config.xen) } else { domain.vcpu_context(vcpu) }?;
                // SAFETY: the caller's promise.
                unsafe { copy_to(state, word(&call, 24), &context) }?;
                Ok(0)
            }
            abi::XEN_DOMCTL_GETHVMCONTEXT_PARTIAL => {
                if domain.kind == GuestKind::Pv || domain.dying || u32_at(&call, 16) != abi::HVM_RECORD_CPU {
                    return Err(libc::EINVAL);
                }
                let record = domain.hvm_cpu_record(u32_at(&call, 20))?;
                if word(&call, 24) < record.len() as u64 {
                    return Err(libc::ENOBUFS);
                }
                // SAFETY: the caller's promise.
                unsafe { copy_to(state, word(&call, 32), &record) }?;
                // SAFETY: the caller's promise.
                unsafe { copy_to(state, arg + HEADER + 8, &(record.len() as u64).to_ne_bytes()) }?;
                Ok(0)
            }
            _ => Err(libc::ENOSYS),
        }
    }

    /// Builds a `struct xen_domctl_getdomaininfo`, field by field.
    fn domain_info(&self, state: &State, domid: u16, domain: &Domain) -> Vec<u8> {
        let on_arm = self.architecture() == Architecture::Arm64;
        let flags = if domain.dying { abi::XEN_DOMINF_DYING } else { 0 }
            | if domain.crashed { abi::XEN_DOMINF_SHUTDOWN } else { 0 }
            | if domain.pauses != 0 { abi::XEN_DOMINF_PAUSED } else { 0 }
            | if domain.kind == GuestKind::Pv && !on_arm { 0 } else { abi::XEN_DOMINF_HVM_GUEST };
        let emulated = match domain.kind {
            _ if on_arm => ARM_GIC_VERSION,
            GuestKind::Pv if domid == DOM0 => EMULATED_FOR_PV_DOM0,
            GuestKind::Pv => 0,
            GuestKind::Pvh if domid == DOM0 => EMULATED_FOR_PVH_DOM0,
            GuestKind::Pvh => EMULATED_FOR_PVH,
            GuestKind::Hvm => EMULATED_FOR_HVM,
        };
        let paged_out = domain.frames.values().filter(|frame| matches!(frame, Frame::PagedOut(..))).count();
        let shared_info = domain.shared_info.map_or(u64::MAX, |page| super::machine::machine_frame(page).get());
        let vcpus = u32::try_from(domain.vcpus.len()).unwrap_or(u32::MAX);

        let mut info = Vec::new();
        info.extend(domid.to_ne_bytes());
        info.extend([0; 2]);
        info.extend(flags.to_ne_bytes());
        info.extend(state.owned_by(domid).to_ne_bytes());
        info.extend(domain.max_pages.to_ne_bytes());
        info.extend([0; 8]); // outstanding_pages
        info.extend(state.shared_by(domain).to_ne_bytes());
        info.extend((paged_out as u64).to_ne_bytes());
        info.extend(shared_info.to_ne_bytes());
        info.extend([0; 8]); // cpu_time
        info.extend(vcpus.to_ne_bytes());
        info.extend(vcpus.wrapping_sub(1).to_ne_bytes()); // max_vcpu_id
        info.extend([0; 4]); // ssidref
        info.extend(if domid == DOM0 { [0; 16] } else { HANDLE });
        info.extend([0; 4]); // cpupool
        if self.config.xen >= (4, 16) {
            info.extend([48, 0, 0, 0, 0, 0, 0, 0]); // gpaddr_bits
        }
        info.extend(emulated.to_ne_bytes());
        info.extend([0; 4]); // misc_flags
        info
    }
}
