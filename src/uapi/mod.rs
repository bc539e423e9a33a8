//! The ABI of /dev/xen/privcmd and of the hypercalls behind it: all that this crate uses, by name.
//!
//! `bindings.rs` is generated from the installed headers (`build.rs`) and checked in. Nothing of this module is
//! part of the public API.

#[rustfmt::skip] // it is as bindgen has made it, so that a change shows
#[cfg_attr(feature = "bindgen", path = "generated.rs")]
#[expect(
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated: the names are those of the C headers"
)]
mod bindings;

pub(crate) use bindings::{
    __HYPERVISOR_hvm_op as HYPERVISOR_HVM_OP, __HYPERVISOR_memory_op as HYPERVISOR_MEMORY_OP,
    __HYPERVISOR_xen_version as HYPERVISOR_XEN_VERSION, FIRST_RESERVED_DOMID, HVM_PARAM_STORE_PFN,
    HVMOP_get_param as HVMOP_GET_PARAM, NR_HYPERCALL as IOCTL_PRIVCMD_HYPERCALL,
    NR_MMAP_RESOURCE as IOCTL_PRIVCMD_MMAP_RESOURCE, NR_MMAPBATCH_V2 as IOCTL_PRIVCMD_MMAPBATCH_V2,
    NR_RESTRICT as IOCTL_PRIVCMD_RESTRICT, XEN_DOMID,
    XENFEAT_auto_translated_physmap as XENFEAT_AUTO_TRANSLATED_PHYSMAP,
    XENMEM_current_reservation as XENMEM_CURRENT_RESERVATION, XENMEM_maximum_gpfn as XENMEM_MAXIMUM_GPFN,
    XENMEM_maximum_ram_page as XENMEM_MAXIMUM_RAM_PAGE, XENMEM_resource_grant_table as XENMEM_RESOURCE_GRANT_TABLE,
    XENMEM_resource_ioreq_server as XENMEM_RESOURCE_IOREQ_SERVER,
    XENMEM_resource_vmtrace_buf as XENMEM_RESOURCE_VMTRACE_BUF, XENVER_capabilities as XENVER_CAPABILITIES,
    XENVER_extraversion as XENVER_EXTRAVERSION, XENVER_get_features as XENVER_GET_FEATURES,
    XENVER_version as XENVER_VERSION, privcmd_hypercall as Hypercall, privcmd_mmap_resource as MmapResource,
    privcmd_mmapbatch_v2 as MmapBatchV2, xen_hvm_param as HvmParam, xen_pfn_t as XenPfn,
};

/// Bytes of `xen_extraversion_t` (xen/include/public/version.h).
pub(crate) const EXTRAVERSION_BYTES: usize = 16;
/// Bytes of `xen_capabilities_info_t` (xen/include/public/version.h).
pub(crate) const CAPABILITIES_BYTES: usize = 1024;

// The numbers as every Linux since 3.8 (MMAPBATCH_V2), 4.11 (RESTRICT) and 4.18 (MMAP_RESOURCE) has them. They hold
// the size of their argument, so a structure of another size fails here, at compile time.
const _: () = assert!(IOCTL_PRIVCMD_HYPERCALL == 0x0030_5000);
const _: () = assert!(IOCTL_PRIVCMD_MMAPBATCH_V2 == 0x0020_5004);
const _: () = assert!(IOCTL_PRIVCMD_RESTRICT == 0x0002_5006);
const _: () = assert!(IOCTL_PRIVCMD_MMAP_RESOURCE == 0x0020_5007);

const _: () = assert!(size_of::<Hypercall>() == 48);
const _: () = assert!(size_of::<MmapBatchV2>() == 32);
const _: () = assert!(std::mem::offset_of!(MmapBatchV2, arr) == 16);
const _: () = assert!(std::mem::offset_of!(MmapBatchV2, err) == 24);
const _: () = assert!(size_of::<MmapResource>() == 32);
const _: () = assert!(std::mem::offset_of!(MmapResource, num) == 16);
const _: () = assert!(std::mem::offset_of!(MmapResource, addr) == 24);
const _: () = assert!(size_of::<XenPfn>() == 8);
