//! The ABI of /dev/xen/privcmd and of the hypercalls made through it: everything that this crate uses, by name.
//!
//! `bindings.rs` is generated from the installed headers (`build.rs`) and checked in. This module is not part of the
//! public API.

#[rustfmt::skip] // stays as bindgen wrote it, so that a diff shows only real changes
#[cfg_attr(xenmap_bindgen, path = "generated.rs")]
#[expect(
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated: the names are those of the C headers"
)]
#[cfg_attr(not(feature = "mock"), expect(dead_code, reason = "only the mock uses all of it"))]
mod bindings;

pub(crate) use bindings::{
    __HYPERVISOR_domctl as HYPERVISOR_DOMCTL, __HYPERVISOR_hvm_op as HYPERVISOR_HVM_OP,
    __HYPERVISOR_memory_op as HYPERVISOR_MEMORY_OP, __HYPERVISOR_multicall as HYPERVISOR_MULTICALL,
    __HYPERVISOR_sysctl as HYPERVISOR_SYSCTL, __HYPERVISOR_xen_version as HYPERVISOR_XEN_VERSION,
    _XEN_X86_EMU_PIT as XEN_X86_EMU_PIT_BIT, FIRST_RESERVED_DOMID, HVM_CPU_BYTES, HVM_CPU_CR0, HVM_CPU_CR3,
    HVM_CPU_CR4, HVM_CPU_EFER, HVM_CPU_GS_BASE, HVM_CPU_IDT_BASE, HVM_CPU_LSTAR, HVM_CPU_RIP, HVM_CPU_SHADOW_GS,
    HVM_CPU_SS_RIGHTS, HVM_PARAM_STORE_PFN, HVM_RECORD_CPU, HVMOP_get_param as HVMOP_GET_PARAM,
    NR_HYPERCALL as IOCTL_PRIVCMD_HYPERCALL, NR_MMAP_RESOURCE as IOCTL_PRIVCMD_MMAP_RESOURCE,
    NR_MMAPBATCH_V2 as IOCTL_PRIVCMD_MMAPBATCH_V2, NR_RESTRICT as IOCTL_PRIVCMD_RESTRICT,
    SHARED_INFO_32_FRAME_LIST_LIST, SHARED_INFO_32_MAX_PFN, SHARED_INFO_32_P2M_CR3, SHARED_INFO_32_P2M_GENERATION,
    SHARED_INFO_32_P2M_VADDR, SHARED_INFO_64_FRAME_LIST_LIST, SHARED_INFO_64_MAX_PFN, SHARED_INFO_64_P2M_CR3,
    SHARED_INFO_64_P2M_GENERATION, SHARED_INFO_64_P2M_VADDR, VCPU_CONTEXT_32_CR3, VCPU_CONTEXT_32_EIP,
    VCPU_CONTEXT_64_BYTES, VCPU_CONTEXT_64_CR3, VCPU_CONTEXT_64_GS_BASE_KERNEL, VCPU_CONTEXT_64_RIP,
    VCPU_CONTEXT_64_SYSCALL, VCPU_CONTEXT_ARM64_BYTES, VCPU_CONTEXT_ARM64_CPSR, VCPU_CONTEXT_ARM64_PC,
    VCPU_CONTEXT_ARM64_SCTLR, VCPU_CONTEXT_ARM64_TTBCR, VCPU_CONTEXT_ARM64_TTBR0, VCPU_CONTEXT_ARM64_TTBR1,
    XEN_DOMCTL_PFINFO_BROKEN, XEN_DOMCTL_PFINFO_LTAB_MASK, XEN_DOMCTL_PFINFO_LTABTYPE_MASK, XEN_DOMCTL_PFINFO_XTAB,
    XEN_DOMCTL_get_address_size as XEN_DOMCTL_GET_ADDRESS_SIZE, XEN_DOMCTL_getdomaininfo as XEN_DOMCTL_GETDOMAININFO,
    XEN_DOMCTL_gethvmcontext_partial as XEN_DOMCTL_GETHVMCONTEXT_PARTIAL,
    XEN_DOMCTL_getpageframeinfo3 as XEN_DOMCTL_GETPAGEFRAMEINFO3,
    XEN_DOMCTL_getvcpucontext as XEN_DOMCTL_GETVCPUCONTEXT, XEN_DOMCTL_pausedomain as XEN_DOMCTL_PAUSEDOMAIN,
    XEN_DOMCTL_unpausedomain as XEN_DOMCTL_UNPAUSEDOMAIN, XEN_DOMID, XEN_DOMINF_dying as XEN_DOMINF_DYING,
    XEN_DOMINF_hvm_guest as XEN_DOMINF_HVM_GUEST, XEN_DOMINF_paused as XEN_DOMINF_PAUSED,
    XEN_DOMINF_shutdown as XEN_DOMINF_SHUTDOWN, XEN_SYSCTL_getdomaininfolist as XEN_SYSCTL_GETDOMAININFOLIST,
    XENFEAT_auto_translated_physmap as XENFEAT_AUTO_TRANSLATED_PHYSMAP,
    XENMEM_current_reservation as XENMEM_CURRENT_RESERVATION, XENMEM_get_pod_target as XENMEM_GET_POD_TARGET,
    XENMEM_machphys_mfn_list as XENMEM_MACHPHYS_MFN_LIST, XENMEM_maximum_gpfn as XENMEM_MAXIMUM_GPFN,
    XENMEM_maximum_ram_page as XENMEM_MAXIMUM_RAM_PAGE, XENMEM_maximum_reservation as XENMEM_MAXIMUM_RESERVATION,
    XENMEM_resource_grant_table as XENMEM_RESOURCE_GRANT_TABLE,
    XENMEM_resource_ioreq_server as XENMEM_RESOURCE_IOREQ_SERVER,
    XENMEM_resource_vmtrace_buf as XENMEM_RESOURCE_VMTRACE_BUF, XENVER_capabilities as XENVER_CAPABILITIES,
    XENVER_extraversion as XENVER_EXTRAVERSION, XENVER_get_features as XENVER_GET_FEATURES,
    XENVER_version as XENVER_VERSION, privcmd_hypercall as Hypercall, privcmd_mmap_resource as MmapResource,
    privcmd_mmapbatch_v2 as MmapBatchV2, xen_domctl_getdomaininfo as DomctlDomainInfo, xen_hvm_param as HvmParam,
    xen_machphys_mfn_list as MachphysMfnList, xen_pfn_t as XenPfn, xen_pod_target as PodTarget,
};
pub(crate) use bindings::{
    BUFFERED_READ_POINTER, BUFFERED_SLOTS, HVM_IOREQSRV_BUFIOREQ_ATOMIC, HVM_IOREQSRV_BUFIOREQ_OFF, IOREQ_ADDR,
    IOREQ_BUFFER_SLOT_NUM, IOREQ_BYTES, IOREQ_COUNT, IOREQ_DATA, IOREQ_SIZE, IOREQ_TYPE, IOREQ_TYPE_COPY,
    IOREQ_TYPE_INVALIDATE, IOREQ_TYPE_PCI_CONFIG, IOREQ_TYPE_PIO, IOREQ_TYPE_TIMEOFFSET, IOREQ_VP_EPORT,
    NR_BIND_INTERDOMAIN as IOCTL_EVTCHN_BIND_INTERDOMAIN, NR_BIND_UNBOUND_PORT as IOCTL_EVTCHN_BIND_UNBOUND_PORT,
    NR_DM_OP as IOCTL_PRIVCMD_DM_OP, NR_NOTIFY as IOCTL_EVTCHN_NOTIFY, NR_RESET as IOCTL_EVTCHN_RESET,
    NR_RESTRICT_DOMID as IOCTL_EVTCHN_RESTRICT_DOMID, NR_UNBIND as IOCTL_EVTCHN_UNBIND, STATE_IOREQ_INPROCESS,
    STATE_IOREQ_NONE, STATE_IOREQ_READY, STATE_IORESP_READY, XEN_DMOP_IO_RANGE_MEMORY, XEN_DMOP_IO_RANGE_PCI,
    XEN_DMOP_IO_RANGE_PORT, XEN_DMOP_create_ioreq_server as XEN_DMOP_CREATE_IOREQ_SERVER,
    XEN_DMOP_destroy_ioreq_server as XEN_DMOP_DESTROY_IOREQ_SERVER,
    XEN_DMOP_get_ioreq_server_info as XEN_DMOP_GET_IOREQ_SERVER_INFO, XEN_DMOP_inject_msi as XEN_DMOP_INJECT_MSI,
    XEN_DMOP_map_io_range_to_ioreq_server as XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER,
    XEN_DMOP_modified_memory as XEN_DMOP_MODIFIED_MEMORY, XEN_DMOP_no_gfns as XEN_DMOP_NO_GFNS,
    XEN_DMOP_set_ioreq_server_state as XEN_DMOP_SET_IOREQ_SERVER_STATE,
    XEN_DMOP_set_isa_irq_level as XEN_DMOP_SET_ISA_IRQ_LEVEL,
    XEN_DMOP_set_pci_intx_level as XEN_DMOP_SET_PCI_INTX_LEVEL,
    XEN_DMOP_unmap_io_range_from_ioreq_server as XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER,
    ioctl_evtchn_bind_interdomain as BindInterdomain, privcmd_dm_op as DmOp, privcmd_dm_op_buf as DmOpBuffer,
    xen_dm_op_create_ioreq_server as CreateIoreqServer, xen_dm_op_destroy_ioreq_server as DestroyIoreqServer,
    xen_dm_op_get_ioreq_server_info as IoreqServerInfo, xen_dm_op_inject_msi as InjectMsi,
    xen_dm_op_ioreq_server_range as IoreqServerRange, xen_dm_op_modified_memory as ModifiedMemory,
    xen_dm_op_modified_memory_extent as ModifiedMemoryExtent, xen_dm_op_set_ioreq_server_state as IoreqServerState,
    xen_dm_op_set_isa_irq_level as IsaIrqLevel, xen_dm_op_set_pci_intx_level as PciIntxLevel,
};

#[cfg(feature = "mock")]
pub(crate) use bindings::{
    VCPU_CONTEXT_64_CR0, VCPU_CONTEXT_64_CR4, VCPU_CONTEXT_64_CS, VCPU_CONTEXT_64_FLAGS, VCPU_CONTEXT_64_GS_BASE_USER,
    VCPU_CONTEXT_64_R15, VCPU_CONTEXT_64_RSP, XEN_DMOP_nr_vcpus as XEN_DMOP_NR_VCPUS, xen_dm_op_nr_vcpus as NrVcpus,
};

/// Bytes of `xen_extraversion_t` (xen/include/public/version.h).
pub(crate) const EXTRAVERSION_BYTES: usize = 16;
/// Bytes of `xen_capabilities_info_t` (xen/include/public/version.h).
pub(crate) const CAPABILITIES_BYTES: usize = 1024;

/// Bytes of `struct multicall_entry` (xen/include/public/xen.h): the operation, its result, and 6 arguments.
pub(crate) const MULTICALL_ENTRY_BYTES: usize = 64;

/// An ioctl number that no kernel uses.
pub(crate) const IOCTL_PRIVCMD_UNIMPLEMENTED: u32 = 0x50FF;

// The numbers in every Linux since 3.8 (MMAPBATCH_V2), 4.11 (RESTRICT, DM_OP) and 4.18 (MMAP_RESOURCE). Each encodes the size
// of its argument, so a structure of another size fails to compile here.
const _: () = assert!(IOCTL_PRIVCMD_HYPERCALL == 0x0030_5000);
const _: () = assert!(IOCTL_PRIVCMD_MMAPBATCH_V2 == 0x0020_5004);
const _: () = assert!(IOCTL_PRIVCMD_RESTRICT == 0x0002_5006);
const _: () = assert!(IOCTL_PRIVCMD_MMAP_RESOURCE == 0x0020_5007);
const _: () = assert!(IOCTL_PRIVCMD_DM_OP == 0x0010_5005);
const _: () = assert!(IOCTL_EVTCHN_BIND_INTERDOMAIN == 0x0008_4501);
const _: () = assert!(IOCTL_EVTCHN_BIND_UNBOUND_PORT == 0x0004_4502);
const _: () = assert!(IOCTL_EVTCHN_UNBIND == 0x0004_4503);
const _: () = assert!(IOCTL_EVTCHN_NOTIFY == 0x0004_4504);
const _: () = assert!(IOCTL_EVTCHN_RESET == 0x4505);
const _: () = assert!(IOCTL_EVTCHN_RESTRICT_DOMID == 0x0002_4506);

const _: () = assert!(size_of::<Hypercall>() == 48);
const _: () = assert!(size_of::<MmapBatchV2>() == 32);
const _: () = assert!(std::mem::offset_of!(MmapBatchV2, arr) == 16);
const _: () = assert!(std::mem::offset_of!(MmapBatchV2, err) == 24);
const _: () = assert!(size_of::<MmapResource>() == 32);
const _: () = assert!(std::mem::offset_of!(MmapResource, num) == 16);
const _: () = assert!(std::mem::offset_of!(MmapResource, addr) == 24);
const _: () = assert!(size_of::<XenPfn>() == 8);

/// The argument of a device model operation (`struct xen_dm_op`): its number, and the structure of that operation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct DmOpArgument<T> {
    pub(crate) op: u32,
    pub(crate) pad: u32,
    pub(crate) fields: T,
}

const _: () = assert!(std::mem::offset_of!(DmOpArgument<IoreqServerRange>, fields) == 8);
const _: () = assert!(std::mem::offset_of!(DmOpArgument<DestroyIoreqServer>, fields) == 8);
