//! The page tables that a guest's vcpus use.

#![expect(unsafe_code, reason = "asks Xen for registers")]

use super::{Guest, PageTables, PagingMode};
use crate::abi;
use crate::error::{Error, Result};
use crate::handle::domctl::{ARGUMENTS, ARM_REGISTERS_WIDENED, u32_at, u64_at};
use crate::handle::{ForeignMemory, HypercallBuffer};
use crate::types::{Architecture, Domid, GuestKind};

/// Bits of the x86 registers (Intel's manual, volume 3, "Control Registers" and "Extended Feature Enable Register").
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

/// Bits of `SCTLR_EL1` and `SPSR_EL2` (Arm's Architecture Reference Manual for A-profile).
const SCTLR_M: u64 = 1;
const SCTLR_EE: u64 = 1 << 25;
const CPSR_AARCH32: u64 = 1 << 4;
/// The mode field, and its value for a 32-bit program (which includes the bit above).
const CPSR_USER: u64 = 0x10;
const CPSR_MODE: u64 = 0x1F;

impl Guest {
    /// Returns the page tables that a vcpu, counted from 0, is using.
    ///
    /// For a 64-bit PV guest, these are always the kernel's. For other guests they may be those of a program, in which
    /// a kernel with page-table isolation (Linux with KPTI) maps little of itself.
    ///
    /// Xen stops the vcpu while it reads the registers (for an x86 PVH or HVM guest, all vcpus). Unless the guest is
    /// [paused](Guest::pause), the vcpu may switch to other tables right after.
    ///
    /// ```
    /// use xenmap::mock::{MockHost, Vcpu};
    /// use xenmap::{Guest, GuestKind, PageTables, PagingMode};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let mut vcpu = Vcpu::default();
    /// (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) = (0x8000_0001, 0x4000, 0x20, 0x500);
    /// domain.set_vcpu(0, vcpu);
    ///
    /// let memory = host.open()?;
    /// let guest = Guest::open(&memory, domain.domid())?;
    /// let _paused = guest.pause()?;
    /// let tables = guest.page_tables(0)?;
    /// assert_eq!(tables, PageTables::X86 { cr3: 0x4000, mode: PagingMode::FourLevels });
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`] if there is no such vcpu or it was never started (for an x86 PVH or HVM guest, also if it
    /// is offline), or if this crate does not know the toolstack interface of the running Xen. [`Error::Paging`] if the
    /// vcpu's paging is off or of an unsupported kind: on Arm, 32-bit or big-endian.
    #[doc(alias = "XEN_DOMCTL_getvcpucontext")]
    #[doc(alias = "XEN_DOMCTL_gethvmcontext_partial")]
    pub fn page_tables(&self, vcpu: u32) -> Result<PageTables> {
        if self.kind == GuestKind::Pv {
            return self.pv_page_tables(vcpu);
        }
        let tables = match self.memory.architecture() {
            Architecture::X86 => {
                let record = self.hvm_cpu_record(vcpu)?;
                let register = |offset: u32| u64_at(record.bytes(), offset as usize);
                let [cr0, cr3] = [abi::HVM_CPU_CR0, abi::HVM_CPU_CR3].map(register);
                let [cr4, efer] = [abi::HVM_CPU_CR4, abi::HVM_CPU_EFER].map(register);
                page_tables_of(cr0, cr3, cr4, efer)
            }
            Architecture::Arm64 => {
                let context = self.arm64_context(vcpu)?;
                let is_old = self.memory.domctl_version().is_some_and(|version| version < ARM_REGISTERS_WIDENED);
                let moved = if is_old { 8 } else { 0 };
                let register = |offset: u32| u64_at(context.bytes(), offset as usize - moved);
                let cpsr = u64_at(context.bytes(), abi::VCPU_CONTEXT_ARM64_CPSR as usize);
                let [sctlr, tcr] = [abi::VCPU_CONTEXT_ARM64_SCTLR, abi::VCPU_CONTEXT_ARM64_TTBCR].map(register);
                let [ttbr0, ttbr1] = [abi::VCPU_CONTEXT_ARM64_TTBR0, abi::VCPU_CONTEXT_ARM64_TTBR1].map(register);
                check_arm64(cpsr, sctlr, tcr).map(|()| PageTables::Arm64 { ttbr0, ttbr1, tcr })
            }
        };
        tables.map_err(|reason| Error::Paging { domid: self.domid, vcpu, reason })
    }

    /// Reads a vcpu's registers as Xen would save them (struct `hvm_hw_cpu` of xen/include/public/arch-x86/hvm/save.h).
    pub(super) fn hvm_cpu_record(&self, vcpu: u32) -> Result<HypercallBuffer> {
        // A later Xen's record may be longer, and Xen returns nothing if the record does not fit.
        let record = self.memory.hypercall_buffer(2 * abi::HVM_CPU_BYTES as usize)?;
        let mut arguments = [0; ARGUMENTS];
        arguments[..4].copy_from_slice(&abi::HVM_RECORD_CPU.to_ne_bytes());
        arguments[4..8].copy_from_slice(&vcpu.to_ne_bytes());
        arguments[8..16].copy_from_slice(&(record.len() as u64).to_ne_bytes());
        arguments[16..24].copy_from_slice(&record.address().to_ne_bytes());
        let (name, command) = ("XEN_DOMCTL_gethvmcontext_partial", abi::XEN_DOMCTL_GETHVMCONTEXT_PARTIAL);
        // SAFETY: the only address in the arguments is that of `record`. Xen writes at most as many bytes there as the
        // arguments say, which is the buffer's length.
        unsafe { self.memory.domctl(name, command, self.domid, arguments) }?;
        Ok(record)
    }

    fn pv_page_tables(&self, vcpu: u32) -> Result<PageTables> {
        let context = self.pv_context(vcpu)?;
        Ok(if address_size(&self.memory, self.domid)? == 32 {
            let cr3 = compat_cr3(u32_at(context.bytes(), abi::VCPU_CONTEXT_32_CR3 as usize));
            PageTables::X86 { cr3, mode: PagingMode::Pae }
        } else {
            let cr3 = u64_at(context.bytes(), abi::VCPU_CONTEXT_64_CR3 as usize);
            PageTables::X86 { cr3, mode: PagingMode::FourLevels }
        })
    }

    /// Reads the registers of a PV guest's vcpu. A 32-bit guest's structure is smaller.
    pub(super) fn pv_context(&self, vcpu: u32) -> Result<HypercallBuffer> {
        self.vcpu_context(vcpu, abi::VCPU_CONTEXT_64_BYTES as usize)
    }

    /// Reads the registers of an arm64 guest's vcpu.
    pub(super) fn arm64_context(&self, vcpu: u32) -> Result<HypercallBuffer> {
        self.vcpu_context(vcpu, abi::VCPU_CONTEXT_ARM64_BYTES as usize)
    }

    /// Reads a vcpu's registers as the toolstack sets them: struct `vcpu_guest_context` of
    /// xen/include/public/arch-x86/xen.h or arch-arm.h, which has at most `bytes` bytes.
    fn vcpu_context(&self, vcpu: u32, bytes: usize) -> Result<HypercallBuffer> {
        let context = self.memory.hypercall_buffer(bytes)?;
        let mut arguments = [0; ARGUMENTS];
        arguments[..4].copy_from_slice(&vcpu.to_ne_bytes());
        arguments[8..16].copy_from_slice(&context.address().to_ne_bytes());
        let (name, command) = ("XEN_DOMCTL_getvcpucontext", abi::XEN_DOMCTL_GETVCPUCONTEXT);
        // SAFETY: the only address in the arguments is that of `context`. Xen writes one `vcpu_guest_context` there,
        // which fits into `bytes`: both callers pass the size of the largest one for their architecture.
        unsafe { self.memory.domctl(name, command, self.domid, arguments) }?;
        Ok(context)
    }
}

/// Returns the bits of an address in a PV guest's kernel: 64 or 32.
pub(super) fn address_size(memory: &ForeignMemory, domid: Domid) -> Result<u32> {
    let (name, command) = ("XEN_DOMCTL_get_address_size", abi::XEN_DOMCTL_GET_ADDRESS_SIZE);
    // SAFETY: the arguments hold no address.
    let answer = unsafe { memory.domctl(name, command, domid, [0; ARGUMENTS]) }?;
    Ok(u32_at(&answer, 0))
}

/// Returns the page tables that the registers of an x86 HVM or PVH guest describe, or why there are none.
fn page_tables_of(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> std::result::Result<PageTables, &'static str> {
    let has = |register: u64, bit: u64| register & bit != 0;
    if !has(cr0, CR0_PG) {
        return Err("its paging is off");
    }
    match (has(efer, EFER_LMA), has(cr4, CR4_LA57), has(cr4, CR4_PAE)) {
        (true, true, _) => Ok(PageTables::X86 { cr3, mode: PagingMode::FiveLevels }),
        (true, false, _) => Ok(PageTables::X86 { cr3, mode: PagingMode::FourLevels }),
        // CR3 is 64 bits wide in 64-bit mode only.
        (false, _, true) => Ok(PageTables::X86 { cr3: cr3 & u64::from(u32::MAX), mode: PagingMode::Pae }),
        (false, _, false) => Ok(PageTables::X86 { cr3: cr3 & u64::from(u32::MAX), mode: PagingMode::TwoLevels }),
    }
}

/// Checks that the registers of an arm64 guest describe page tables of a supported kind.
fn check_arm64(cpsr: u64, sctlr: u64, tcr: u64) -> std::result::Result<(), &'static str> {
    if sctlr & SCTLR_M == 0 {
        return Err("its paging is off");
    }
    // A 64-bit kernel may be running a 32-bit program. In a 32-bit kernel, the upper half of TCR is zero, unless the
    // kernel uses new features.
    let runs_program = cpsr & CPSR_MODE == CPSR_USER;
    if cpsr & CPSR_AARCH32 != 0 && !(runs_program && tcr >> 32 != 0) {
        return Err("its kernel is 32-bit, which is not supported");
    }
    if sctlr & SCTLR_EE != 0 {
        return Err("its tables are big-endian, which is not supported");
    }
    Ok(())
}

/// Returns the machine address in a 32-bit PV guest's CR3, which holds the rotated frame number
/// (`xen_pfn_to_cr3` of xen/include/public/arch-x86/xen-x86_32.h).
pub(super) fn compat_cr3(cr3: u32) -> u64 {
    u64::from(cr3.rotate_right(12)) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGING: u64 = CR0_PG | 1;

    #[test]
    fn registers_determine_the_mode() {
        let tables = |cr4, efer| page_tables_of(PAGING, 0x1000, cr4, efer);
        let of = |mode| Ok(PageTables::X86 { cr3: 0x1000, mode });
        assert_eq!(tables(CR4_PAE, EFER_LMA), of(PagingMode::FourLevels));
        assert_eq!(tables(CR4_PAE | CR4_LA57, EFER_LMA), of(PagingMode::FiveLevels));
        assert_eq!(tables(CR4_PAE, 0), of(PagingMode::Pae));
        // LA57 has no effect outside of 64-bit mode.
        assert_eq!(tables(CR4_PAE | CR4_LA57, 0), of(PagingMode::Pae));
        assert_eq!(tables(0, 0), of(PagingMode::TwoLevels));
    }

    #[test]
    fn paging_that_is_off_is_an_error() {
        assert_eq!(page_tables_of(1, 0x1000, CR4_PAE, EFER_LMA), Err("its paging is off"));
    }

    #[test]
    fn pae_ignores_the_upper_half_of_cr3() {
        let tables = |cr3, efer| page_tables_of(PAGING, cr3, CR4_PAE, efer);
        let pae = PageTables::X86 { cr3: 0x1020, mode: PagingMode::Pae };
        assert_eq!(tables(0xFFFF_FFFF_0000_1020, 0), Ok(pae));
        let four_levels = PageTables::X86 { cr3: 0xF_FFFF_0000_1000, mode: PagingMode::FourLevels };
        assert_eq!(tables(0xF_FFFF_0000_1000, EFER_LMA), Ok(four_levels));
    }

    #[test]
    fn arm64_tables_are_supported_if_the_kernel_is_64_bit_and_little_endian() {
        const LINUX_TCR: u64 = 0x0080_0075_B551_B519;
        assert_eq!(check_arm64(0x5, SCTLR_M, LINUX_TCR), Ok(()));
        assert_eq!(check_arm64(CPSR_AARCH32, SCTLR_M, LINUX_TCR), Ok(()), "it runs a 32-bit program");
        for (cpsr, tcr) in [(0x13, 0x8000_0000), (0x10, 0x8000_0000), (0x13, 1 << 41 | 0x8000_0000)] {
            assert!(check_arm64(cpsr, SCTLR_M, tcr).unwrap_err().contains("32-bit"), "{cpsr:#x} {tcr:#x}");
        }
        assert!(check_arm64(0x5, SCTLR_M | SCTLR_EE, LINUX_TCR).unwrap_err().contains("big-endian"));
        assert_eq!(check_arm64(0x3C5, 0x00C5_0078, 0), Err("its paging is off"));
    }

    #[test]
    fn cr3_of_a_32_bit_pv_guest_is_rotated() {
        assert_eq!(compat_cr3(0x1234_5000), 0x1234_5000);
        assert_eq!(compat_cr3(0x1234_5678), 0x678_1234_5000);
    }
}
