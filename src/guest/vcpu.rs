//! The page tables that a guest's vcpus use.

#![expect(unsafe_code, reason = "asks Xen for registers")]

use super::{Guest, PageTables, PagingMode};
use crate::domctl::{ARGUMENTS, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::foreign::ForeignMemory;
use crate::hypercall::HypercallBuffer;
use crate::types::{Domid, GuestKind};
use crate::uapi;

/// Bits of the registers (Intel's manual, volume 3, "Control Registers" and "Extended Feature Enable Register").
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

impl Guest<'_> {
    /// The page tables that a vcpu uses at the moment.
    ///
    /// Of a 64-bit PV guest those of its kernel, whatever it runs. Xen stops the vcpu (of a PVH or HVM guest all of
    /// them) while it reads the registers; a guest that is not [paused](Guest::pause) may switch to other tables at
    /// once.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`] if there is no such vcpu or it was never started (of a PVH or HVM guest also if it is
    /// offline), or if the toolstack's interface is not understood; [`Error::Paging`] if its paging is off, or of a
    /// kind that is not known here (32-bit without PAE).
    #[doc(alias = "XEN_DOMCTL_getvcpucontext")]
    #[doc(alias = "XEN_DOMCTL_gethvmcontext_partial")]
    pub fn page_tables(&self, vcpu: u32) -> Result<PageTables> {
        if self.kind == GuestKind::Pv {
            return self.pv_page_tables(vcpu);
        }
        let record = self.hvm_cpu_record(vcpu)?;
        let register = |offset: u32| u64_at(record.bytes(), offset as usize);
        let [cr0, cr3] = [uapi::HVM_CPU_CR0, uapi::HVM_CPU_CR3].map(register);
        let [cr4, efer] = [uapi::HVM_CPU_CR4, uapi::HVM_CPU_EFER].map(register);
        page_tables_of(cr0, cr3, cr4, efer).map_err(|reason| Error::Paging { domid: self.domid, vcpu, reason })
    }

    /// What Xen would save of a vcpu's registers (struct `hvm_hw_cpu` of xen/include/public/arch-x86/hvm/save.h).
    fn hvm_cpu_record(&self, vcpu: u32) -> Result<HypercallBuffer> {
        // A later Xen's record may be longer, and none is given if it does not fit.
        let record = self.memory.hypercall_buffer(2 * uapi::HVM_CPU_BYTES as usize)?;
        let mut arguments = [0; ARGUMENTS];
        arguments[..4].copy_from_slice(&uapi::HVM_RECORD_CPU.to_ne_bytes());
        arguments[4..8].copy_from_slice(&vcpu.to_ne_bytes());
        arguments[8..16].copy_from_slice(&(record.len() as u64).to_ne_bytes());
        arguments[16..24].copy_from_slice(&record.address().to_ne_bytes());
        let (name, command) = ("XEN_DOMCTL_gethvmcontext_partial", uapi::XEN_DOMCTL_GETHVMCONTEXT_PARTIAL);
        // SAFETY: it writes at most as many bytes as the arguments say, which the buffer has.
        unsafe { self.memory.domctl(name, command, self.domid, arguments) }?;
        Ok(record)
    }

    fn pv_page_tables(&self, vcpu: u32) -> Result<PageTables> {
        // struct vcpu_guest_context of xen/include/public/arch-x86/xen.h; that of a 32-bit guest is smaller.
        let context = self.memory.hypercall_buffer(uapi::VCPU_CONTEXT_64_BYTES as usize)?;
        let mut arguments = [0; ARGUMENTS];
        arguments[..4].copy_from_slice(&vcpu.to_ne_bytes());
        arguments[8..16].copy_from_slice(&context.address().to_ne_bytes());
        let (name, command) = ("XEN_DOMCTL_getvcpucontext", uapi::XEN_DOMCTL_GETVCPUCONTEXT);
        // SAFETY: it writes one structure, for which the buffer is large enough.
        unsafe { self.memory.domctl(name, command, self.domid, arguments) }?;

        Ok(if address_size(&self.memory, self.domid)? == 32 {
            let cr3 = compat_cr3(u32_at(context.bytes(), uapi::VCPU_CONTEXT_32_CR3 as usize));
            PageTables { cr3, mode: PagingMode::Pae }
        } else {
            let cr3 = u64_at(context.bytes(), uapi::VCPU_CONTEXT_64_CR3 as usize);
            PageTables { cr3, mode: PagingMode::FourLevels }
        })
    }
}

/// Bits of an address in a PV guest's kernel: 64 or 32.
pub(super) fn address_size(memory: &ForeignMemory, domid: Domid) -> Result<u32> {
    let (name, command) = ("XEN_DOMCTL_get_address_size", uapi::XEN_DOMCTL_GET_ADDRESS_SIZE);
    // SAFETY: its argument holds no address.
    let answer = unsafe { memory.domctl(name, command, domid, [0; ARGUMENTS]) }?;
    Ok(u32_at(&answer, 0))
}

/// The tables that a translated guest's registers tell of, or why there are none.
fn page_tables_of(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> std::result::Result<PageTables, &'static str> {
    let has = |register: u64, bit: u64| register & bit != 0;
    if !has(cr0, CR0_PG) {
        return Err("its paging is off");
    }
    match (has(efer, EFER_LMA), has(cr4, CR4_LA57), has(cr4, CR4_PAE)) {
        (true, true, _) => Ok(PageTables { cr3, mode: PagingMode::FiveLevels }),
        (true, false, _) => Ok(PageTables { cr3, mode: PagingMode::FourLevels }),
        // The upper half counts in 64-bit mode only.
        (false, _, true) => Ok(PageTables { cr3: cr3 & u64::from(u32::MAX), mode: PagingMode::Pae }),
        (false, _, false) => Err("it uses 32-bit paging without PAE, which is not known here"),
    }
}

/// The machine address in the CR3 of a 32-bit PV guest, which holds the frame number rotated
/// (`xen_pfn_to_cr3` of xen/include/public/arch-x86/xen-x86_32.h).
pub(super) fn compat_cr3(cr3: u32) -> u64 {
    u64::from(cr3.rotate_right(12)) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGING: u64 = CR0_PG | 1;

    #[test]
    fn registers_tell_the_mode() {
        let mode = |cr4, efer| page_tables_of(PAGING, 0x1000, cr4, efer).map(|tables| tables.mode);
        assert_eq!(mode(CR4_PAE, EFER_LMA), Ok(PagingMode::FourLevels));
        assert_eq!(mode(CR4_PAE | CR4_LA57, EFER_LMA), Ok(PagingMode::FiveLevels));
        assert_eq!(mode(CR4_PAE, 0), Ok(PagingMode::Pae));
        // Has no meaning outside of 64-bit mode.
        assert_eq!(mode(CR4_PAE | CR4_LA57, 0), Ok(PagingMode::Pae));
    }

    #[test]
    fn paging_that_is_off_or_unknown_is_an_error() {
        assert_eq!(page_tables_of(1, 0x1000, CR4_PAE, EFER_LMA), Err("its paging is off"));
        assert!(page_tables_of(PAGING, 0x1000, 0, 0).unwrap_err().contains("without PAE"));
    }

    #[test]
    fn pae_ignores_the_upper_half_of_cr3() {
        assert_eq!(page_tables_of(PAGING, 0xFFFF_FFFF_0000_1020, CR4_PAE, 0).unwrap().cr3, 0x1020);
        assert_eq!(page_tables_of(PAGING, 0xF_FFFF_0000_1000, CR4_PAE, EFER_LMA).unwrap().cr3, 0xF_FFFF_0000_1000);
    }

    #[test]
    fn cr3_of_a_32_bit_pv_guest_is_rotated() {
        assert_eq!(compat_cr3(0x1234_5000), 0x1234_5000);
        assert_eq!(compat_cr3(0x1234_5678), 0x678_1234_5000);
    }
}
