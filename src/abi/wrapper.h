/*
 * The input of bindgen. The headers are the installed ones: <xen/privcmd.h> from linux-libc-dev, the rest from
 * libxen-dev. Constants that the headers write with casts or token pasting, which bindgen cannot evaluate, get a name
 * here.
 */
#include <stddef.h>
#include <stdint.h>
#include <linux/ioctl.h>

/* Makes the headers declare what toolstacks use, including the resource types. */
#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/features.h>
#include <xen/domctl.h>
#include <xen/memory.h>
#include <xen/sysctl.h>
#include <xen/version.h>
#include <xen/hvm/dm_op.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/ioreq.h>
#include <xen/hvm/params.h>
#include <xen/hvm/save.h>
#include <xen/foreign/arm64.h>
#include <xen/foreign/x86_32.h>
#include <xen/foreign/x86_64.h>
#include <xen/evtchn.h>
#include <xen/privcmd.h>

enum privcmd_ioctl {
	NR_HYPERCALL = IOCTL_PRIVCMD_HYPERCALL,
	NR_MMAPBATCH_V2 = IOCTL_PRIVCMD_MMAPBATCH_V2,
	NR_RESTRICT = IOCTL_PRIVCMD_RESTRICT,
	NR_MMAP_RESOURCE = IOCTL_PRIVCMD_MMAP_RESOURCE,
	NR_DM_OP = IOCTL_PRIVCMD_DM_OP,
};

enum evtchn_ioctl {
	NR_BIND_INTERDOMAIN = IOCTL_EVTCHN_BIND_INTERDOMAIN,
	NR_BIND_UNBOUND_PORT = IOCTL_EVTCHN_BIND_UNBOUND_PORT,
	NR_UNBIND = IOCTL_EVTCHN_UNBIND,
	NR_NOTIFY = IOCTL_EVTCHN_NOTIFY,
	NR_RESET = IOCTL_EVTCHN_RESET,
	NR_RESTRICT_DOMID = IOCTL_EVTCHN_RESTRICT_DOMID,
};

static const domid_t FIRST_RESERVED_DOMID = DOMID_FIRST_RESERVED;
static const domid_t XEN_DOMID = DOMID_XEN;

/* Byte offsets of the few fields that we read from structures which are large or differ by guest. */
enum offset {
	SHARED_INFO_64_MAX_PFN = offsetof(struct shared_info_x86_64, arch.max_pfn),
	SHARED_INFO_64_FRAME_LIST_LIST = offsetof(struct shared_info_x86_64, arch.pfn_to_mfn_frame_list_list),
	SHARED_INFO_64_P2M_CR3 = offsetof(struct shared_info_x86_64, arch.p2m_cr3),
	SHARED_INFO_64_P2M_VADDR = offsetof(struct shared_info_x86_64, arch.p2m_vaddr),
	SHARED_INFO_64_P2M_GENERATION = offsetof(struct shared_info_x86_64, arch.p2m_generation),
	SHARED_INFO_32_MAX_PFN = offsetof(struct shared_info_x86_32, arch.max_pfn),
	SHARED_INFO_32_FRAME_LIST_LIST = offsetof(struct shared_info_x86_32, arch.pfn_to_mfn_frame_list_list),
	SHARED_INFO_32_P2M_CR3 = offsetof(struct shared_info_x86_32, arch.p2m_cr3),
	SHARED_INFO_32_P2M_VADDR = offsetof(struct shared_info_x86_32, arch.p2m_vaddr),
	SHARED_INFO_32_P2M_GENERATION = offsetof(struct shared_info_x86_32, arch.p2m_generation),
	VCPU_CONTEXT_64_BYTES = sizeof(struct vcpu_guest_context_x86_64),
	VCPU_CONTEXT_64_FLAGS = offsetof(struct vcpu_guest_context_x86_64, flags),
	VCPU_CONTEXT_64_R15 = offsetof(struct vcpu_guest_context_x86_64, user_regs.r15),
	VCPU_CONTEXT_64_CS = offsetof(struct vcpu_guest_context_x86_64, user_regs.cs),
	VCPU_CONTEXT_64_RSP = offsetof(struct vcpu_guest_context_x86_64, user_regs.rsp),
	VCPU_CONTEXT_64_CR0 = offsetof(struct vcpu_guest_context_x86_64, ctrlreg[0]),
	VCPU_CONTEXT_64_CR3 = offsetof(struct vcpu_guest_context_x86_64, ctrlreg[3]),
	VCPU_CONTEXT_64_CR4 = offsetof(struct vcpu_guest_context_x86_64, ctrlreg[4]),
	VCPU_CONTEXT_64_GS_BASE_USER = offsetof(struct vcpu_guest_context_x86_64, gs_base_user),
	VCPU_CONTEXT_64_RIP = offsetof(struct vcpu_guest_context_x86_64, user_regs.rip),
	VCPU_CONTEXT_64_SYSCALL = offsetof(struct vcpu_guest_context_x86_64, syscall_callback_eip),
	VCPU_CONTEXT_64_GS_BASE_KERNEL = offsetof(struct vcpu_guest_context_x86_64, gs_base_kernel),
	VCPU_CONTEXT_32_CR3 = offsetof(struct vcpu_guest_context_x86_32, ctrlreg[3]),
	VCPU_CONTEXT_32_EIP = offsetof(struct vcpu_guest_context_x86_32, user_regs.eip),
	VCPU_CONTEXT_ARM64_BYTES = sizeof(struct vcpu_guest_context_arm64),
	VCPU_CONTEXT_ARM64_PC = offsetof(struct vcpu_guest_context_arm64, user_regs.pc64),
	VCPU_CONTEXT_ARM64_CPSR = offsetof(struct vcpu_guest_context_arm64, user_regs.cpsr),
	VCPU_CONTEXT_ARM64_SCTLR = offsetof(struct vcpu_guest_context_arm64, sctlr),
	VCPU_CONTEXT_ARM64_TTBCR = offsetof(struct vcpu_guest_context_arm64, ttbcr),
	VCPU_CONTEXT_ARM64_TTBR0 = offsetof(struct vcpu_guest_context_arm64, ttbr0),
	VCPU_CONTEXT_ARM64_TTBR1 = offsetof(struct vcpu_guest_context_arm64, ttbr1),
	IOREQ_BYTES = sizeof(struct ioreq),
	IOREQ_ADDR = offsetof(struct ioreq, addr),
	IOREQ_DATA = offsetof(struct ioreq, data),
	IOREQ_COUNT = offsetof(struct ioreq, count),
	IOREQ_SIZE = offsetof(struct ioreq, size),
	IOREQ_VP_EPORT = offsetof(struct ioreq, vp_eport),
	IOREQ_TYPE = offsetof(struct ioreq, type),
	BUFFERED_SLOTS = offsetof(struct buffered_iopage, buf_ioreq),
	BUFFERED_READ_POINTER = offsetof(struct buffered_iopage, read_pointer),
	HVM_CPU_BYTES = sizeof(struct hvm_hw_cpu),
	HVM_CPU_CR0 = offsetof(struct hvm_hw_cpu, cr0),
	HVM_CPU_CR3 = offsetof(struct hvm_hw_cpu, cr3),
	HVM_CPU_CR4 = offsetof(struct hvm_hw_cpu, cr4),
	HVM_CPU_EFER = offsetof(struct hvm_hw_cpu, msr_efer),
	HVM_CPU_RIP = offsetof(struct hvm_hw_cpu, rip),
	HVM_CPU_SS_RIGHTS = offsetof(struct hvm_hw_cpu, ss_arbytes),
	HVM_CPU_GS_BASE = offsetof(struct hvm_hw_cpu, gs_base),
	HVM_CPU_SHADOW_GS = offsetof(struct hvm_hw_cpu, shadow_gs),
	HVM_CPU_LSTAR = offsetof(struct hvm_hw_cpu, msr_lstar),
	HVM_CPU_IDT_BASE = offsetof(struct hvm_hw_cpu, idtr_base),
};

enum hvm_record {
	HVM_RECORD_CPU = HVM_SAVE_CODE(CPU),
};
