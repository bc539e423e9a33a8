//! Registers of a vcpu that help to find the kernel.

use super::Guest;
use super::vcpu::address_size;
use crate::abi;
use crate::error::Result;
use crate::handle::domctl::{u32_at, u64_at};
use crate::types::{Architecture, GuestKind};

/// Registers of a vcpu from which a program can find the guest's kernel; returned by [`Guest::registers`].
///
/// A register is `None` if Xen does not report it for this kind of guest. Of an arm64 guest, Xen reports only the
/// instruction pointer: there is no `VBAR_EL1` in its `struct vcpu_guest_context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct VcpuRegisters {
    /// The address of the next instruction: RIP, EIP or PC. It is the kernel's or a program's.
    pub instruction_pointer: u64,
    /// The GS base of the kernel, which in Linux and Windows is the address of its data about this vcpu. `None` for a
    /// 32-bit PV guest.
    ///
    /// Of a PVH or HVM guest, this is the current base if the vcpu is in the kernel, otherwise the one that SWAPGS will
    /// exchange it with. It is the program's during the few instructions between entering the kernel and SWAPGS.
    pub kernel_gs_base: Option<u64>,
    /// Where the SYSCALL instruction enters the kernel: LSTAR or, for a 64-bit PV guest, the callback that Xen calls in
    /// its place.
    pub lstar: Option<u64>,
    /// The address of the interrupt descriptor table. `None` for a PV guest, whose table Xen has.
    pub idt_base: Option<u64>,
}

impl Guest {
    /// Returns registers of a vcpu, counted from 0, that help to find the kernel.
    ///
    /// Xen stops the vcpu while it reads them (for an x86 PVH or HVM guest, all vcpus). Unless the guest is
    /// [paused](Guest::pause), the vcpu runs on right after.
    ///
    /// ```
    /// use xenmap::mock::{MockHost, Vcpu};
    /// use xenmap::{Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let mut vcpu = Vcpu::default();
    /// (vcpu.pc, vcpu.lstar) = (0xFFFF_FFFF_8100_0010, 0xFFFF_FFFF_8180_0000);
    /// domain.set_vcpu(0, vcpu);
    ///
    /// let memory = host.open()?;
    /// let registers = Guest::open(&memory, domain.domid())?.registers(0)?;
    /// assert_eq!(registers.instruction_pointer, 0xFFFF_FFFF_8100_0010);
    /// assert_eq!(registers.lstar, Some(0xFFFF_FFFF_8180_0000));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`](crate::Error::Hypercall) if there is no such vcpu or it was never started (for an x86 PVH or
    /// HVM guest, also if it is offline), or if this crate does not know the toolstack interface of the running Xen.
    pub fn registers(&self, vcpu: u32) -> Result<VcpuRegisters> {
        let only = |instruction_pointer| VcpuRegisters {
            instruction_pointer,
            kernel_gs_base: None,
            lstar: None,
            idt_base: None,
        };
        if self.memory.architecture() == Architecture::Arm64 {
            let context = self.arm64_context(vcpu)?;
            return Ok(only(u64_at(context.bytes(), abi::VCPU_CONTEXT_ARM64_PC as usize)));
        }
        if self.kind == GuestKind::Pv {
            let context = self.x86_context(vcpu)?;
            if address_size(&self.memory, self.domid)? == 32 {
                return Ok(only(u32_at(context.bytes(), abi::VCPU_CONTEXT_32_EIP as usize).into()));
            }
            let register = |offset: u32| u64_at(context.bytes(), offset as usize);
            return Ok(VcpuRegisters {
                instruction_pointer: register(abi::VCPU_CONTEXT_64_RIP),
                kernel_gs_base: Some(register(abi::VCPU_CONTEXT_64_GS_BASE_KERNEL)),
                lstar: Some(register(abi::VCPU_CONTEXT_64_SYSCALL)),
                idt_base: None,
            });
        }
        let record = self.hvm_cpu_record(vcpu)?;
        let register = |offset: u32| u64_at(record.bytes(), offset as usize);
        // The privilege level is that of the stack segment (struct `hvm_hw_cpu`, as Intel's access rights).
        let level = u32_at(record.bytes(), abi::HVM_CPU_SS_RIGHTS as usize) >> 5 & 3;
        let gs_base = if level == 0 { abi::HVM_CPU_GS_BASE } else { abi::HVM_CPU_SHADOW_GS };
        Ok(VcpuRegisters {
            instruction_pointer: register(abi::HVM_CPU_RIP),
            kernel_gs_base: Some(register(gs_base)),
            lstar: Some(register(abi::HVM_CPU_LSTAR)),
            idt_base: Some(register(abi::HVM_CPU_IDT_BASE)),
        })
    }

    /// Returns the registers of a vcpu, counted from 0, in the form in which `xl dump-core` saves them: Xen's
    /// `struct vcpu_guest_context` for the architecture of the host (xen/include/public/arch-x86/xen.h, arch-arm.h).
    ///
    /// On x86 it has 5168 bytes. Of a 32-bit PV guest, the structure is smaller, and zeros follow it.
    ///
    /// Xen stops the vcpu while it reads them. Unless the guest is [paused](Guest::pause), the vcpu runs on right after.
    ///
    /// ```
    /// use xenmap::mock::{MockHost, Vcpu};
    /// use xenmap::{Guest, GuestKind};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let mut vcpu = Vcpu::default();
    /// vcpu.pc = 0xFFFF_FFFF_8100_0010;
    /// domain.set_vcpu(0, vcpu);
    ///
    /// let memory = host.open()?;
    /// let context = Guest::open(&memory, domain.domid())?.raw_registers(0)?;
    /// const RIP: usize = 648;
    /// assert_eq!(context[RIP..RIP + 8], vcpu.pc.to_le_bytes());
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`](crate::Error::Hypercall) if there is no such vcpu or it was never started, or if this crate
    /// does not know the toolstack interface of the running Xen.
    #[doc(alias = "XEN_DOMCTL_getvcpucontext")]
    pub fn raw_registers(&self, vcpu: u32) -> Result<Vec<u8>> {
        let context = match self.memory.architecture() {
            Architecture::X86 => self.x86_context(vcpu)?,
            Architecture::Arm64 => self.arm64_context(vcpu)?,
        };
        Ok(context.bytes().to_vec())
    }
}
