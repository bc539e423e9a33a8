//! The registers of a simulated guest's virtual processors, as the toolstack's interface reports them.

use super::device_model::MAX_VCPUS;
use super::domain::MockDomain;
use super::state::{Domain, Vcpu};
use crate::abi;
use crate::types::{Gfn, GuestKind};

/// The flag of a vcpu whose PV guest runs its kernel (xen/include/public/arch-x86/xen.h).
const VGCF_IN_KERNEL: u64 = 1 << 2;

impl MockDomain {
    /// Sets the registers of the virtual processor with this number. Adds it if the guest does not have it yet, and also
    /// those with lower numbers, with their paging off. Add them before a device model serves the guest.
    ///
    /// # Panics
    ///
    /// If the guest has been destroyed; or, for a guest that is not PV, if it would have more than 128 vcpus, or if it
    /// gets another one while it has ioreq servers.
    pub fn set_vcpu(&self, number: u32, vcpu: Vcpu) {
        let number = number as usize;
        self.with(|_, domain| {
            let count = domain.vcpus.len().max(number + 1);
            let most = if domain.kind == GuestKind::Pv { usize::MAX } else { MAX_VCPUS as usize };
            assert!(count <= most, "an HVM or PVH guest has at most {MAX_VCPUS} vcpus");
            let before = domain.vcpu_count();
            domain.vcpus.resize(count, Vcpu::default());
            assert!(
                domain.vcpu_count() == before || domain.device_model.servers.is_empty(),
                "add vcpus before a device model serves the guest"
            );
            domain.vcpus[number] = vcpu;
        });
    }

    /// Makes a PV guest tell Xen its own number for one of its frames (`MMU_MACHPHYS_UPDATE`).
    ///
    /// # Panics
    ///
    /// If the guest does not have the frame.
    pub fn set_pfn(&self, gfn: Gfn, pfn: u64) {
        let page = self.page(gfn);
        self.with(|pages, _| pages[page].pfn = Some(pfn));
        self.host.update_machine_to_phys(&self.host.lock());
    }
}

impl Domain {
    /// Builds the record that `XEN_DOMCTL_gethvmcontext_partial` returns (struct `hvm_hw_cpu`).
    pub(super) fn hvm_cpu_record(&self, vcpu: u32) -> Result<Vec<u8>, i32> {
        let vcpu = self.vcpus.get(vcpu as usize).ok_or(libc::ENOENT)?;
        let registers = [
            (abi::HVM_CPU_CR0, vcpu.cr0),
            (abi::HVM_CPU_CR3, vcpu.cr3),
            (abi::HVM_CPU_CR4, vcpu.cr4),
            (abi::HVM_CPU_EFER, vcpu.efer),
            (abi::HVM_CPU_RIP, vcpu.pc),
            (abi::HVM_CPU_GS_BASE, vcpu.gs_base),
            (abi::HVM_CPU_SHADOW_GS, vcpu.shadow_gs_base),
            (abi::HVM_CPU_LSTAR, vcpu.lstar),
            (abi::HVM_CPU_IDT_BASE, vcpu.idt_base),
        ];
        let mut record = structure_of(abi::HVM_CPU_BYTES, &registers);
        // A present, writable data segment of this privilege level.
        let rights: u32 = if vcpu.in_program { 0xF3 } else { 0x93 };
        record[abi::HVM_CPU_SS_RIGHTS as usize..][..4].copy_from_slice(&rights.to_ne_bytes());
        Ok(record)
    }

    /// Builds what `XEN_DOMCTL_getvcpucontext` returns on arm64 (struct `vcpu_guest_context`). Before Xen 4.16 two of
    /// its registers were smaller.
    pub(super) fn arm64_vcpu_context(&self, vcpu: u32, xen: (u16, u16)) -> Result<Vec<u8>, i32> {
        let vcpu = self.vcpus.get(vcpu as usize).ok_or(libc::EINVAL)?;
        let registers = [
            (abi::VCPU_CONTEXT_ARM64_PC, vcpu.pc),
            (abi::VCPU_CONTEXT_ARM64_CPSR, vcpu.cpsr),
            (abi::VCPU_CONTEXT_ARM64_SCTLR, vcpu.sctlr),
            (abi::VCPU_CONTEXT_ARM64_TTBCR, vcpu.tcr),
            (abi::VCPU_CONTEXT_ARM64_TTBR0, vcpu.ttbr0),
            (abi::VCPU_CONTEXT_ARM64_TTBR1, vcpu.ttbr1),
        ];
        let mut context = structure_of(abi::VCPU_CONTEXT_ARM64_BYTES, &registers);
        if xen < (4, 16) {
            let [cpsr, spsr_el1] = [0, 8].map(|offset| abi::VCPU_CONTEXT_ARM64_CPSR as usize + offset);
            context.drain(spsr_el1 + 4..spsr_el1 + 8);
            context.drain(cpsr + 4..cpsr + 8);
        }
        Ok(context)
    }

    /// Builds what `XEN_DOMCTL_getvcpucontext` returns on x86 (struct `vcpu_guest_context`), for a 32-bit guest up to
    /// CR3.
    pub(super) fn vcpu_context(&self, vcpu: u32) -> Result<Vec<u8>, i32> {
        let vcpu = self.vcpus.get(vcpu as usize).ok_or(libc::EINVAL)?;
        if self.address_size == 32 {
            // The frame number is rotated, so that 32 bits of it fit.
            let [pfn, pc] = [vcpu.cr3 >> 12, vcpu.pc].map(|register| u32::try_from(register).map_err(|_| libc::EINVAL));
            let mut context = vec![0; abi::VCPU_CONTEXT_32_CR3 as usize];
            context[abi::VCPU_CONTEXT_32_EIP as usize..][..4].copy_from_slice(&pc?.to_ne_bytes());
            context.extend(pfn?.rotate_left(12).to_ne_bytes());
            return Ok(context);
        }
        let is_pv = self.kind == GuestKind::Pv;
        // The kernel of a PV guest runs in ring 3.
        let (selector, is_kernel_of_pv) = match (vcpu.in_program, is_pv) {
            (true, _) => (0x33, false),
            (false, true) => (0xE033, true),
            (false, false) => (0x10, false),
        };
        let [kernel_gs_base, user_gs_base] =
            if vcpu.in_program { [vcpu.shadow_gs_base, vcpu.gs_base] } else { [vcpu.gs_base, vcpu.shadow_gs_base] };
        let registers = [
            (abi::VCPU_CONTEXT_64_FLAGS, if is_kernel_of_pv { VGCF_IN_KERNEL } else { 0 }),
            (abi::VCPU_CONTEXT_64_RIP, vcpu.pc),
            (abi::VCPU_CONTEXT_64_CS, selector),
            (abi::VCPU_CONTEXT_64_RSP, vcpu.sp),
            // Xen keeps only the task-switched flag of a PV guest's CR0.
            (abi::VCPU_CONTEXT_64_CR0, if is_pv { 0 } else { vcpu.cr0 }),
            (abi::VCPU_CONTEXT_64_CR3, vcpu.cr3),
            (abi::VCPU_CONTEXT_64_CR4, vcpu.cr4),
            (abi::VCPU_CONTEXT_64_SYSCALL, vcpu.lstar),
            (abi::VCPU_CONTEXT_64_GS_BASE_KERNEL, kernel_gs_base),
            (abi::VCPU_CONTEXT_64_GS_BASE_USER, user_gs_base),
        ];
        let mut context = structure_of(abi::VCPU_CONTEXT_64_BYTES, &registers);
        let general = vcpu.general.iter().flat_map(|register| register.to_ne_bytes());
        let places = context.iter_mut().skip(abi::VCPU_CONTEXT_64_R15 as usize);
        places.zip(general).for_each(|(place, byte)| *place = byte);
        Ok(context)
    }
}

/// Builds a structure of zeros that has these registers, of 8 bytes each, at their offsets.
fn structure_of(bytes: u32, registers: &[(u32, u64)]) -> Vec<u8> {
    let mut structure = vec![0; bytes as usize];
    for &(offset, value) in registers {
        structure[offset as usize..][..8].copy_from_slice(&value.to_ne_bytes());
    }
    structure
}
