// Made by `cargo build --features overwrite` from linux-libc-dev and libxen-dev; do not edit.

pub const __HYPERVISOR_memory_op: u32 = 12;
pub const __HYPERVISOR_xen_version: u32 = 17;
pub const __HYPERVISOR_hvm_op: u32 = 34;
pub const XENFEAT_auto_translated_physmap: u32 = 2;
pub const XENMEM_maximum_ram_page: u32 = 2;
pub const XENMEM_current_reservation: u32 = 3;
pub const XENMEM_maximum_gpfn: u32 = 14;
pub const XENMEM_resource_ioreq_server: u32 = 0;
pub const XENMEM_resource_grant_table: u32 = 1;
pub const XENMEM_resource_vmtrace_buf: u32 = 2;
pub const XENVER_version: u32 = 0;
pub const XENVER_extraversion: u32 = 1;
pub const XENVER_capabilities: u32 = 3;
pub const XENVER_get_features: u32 = 6;
pub const HVMOP_get_param: u32 = 1;
pub const HVM_PARAM_STORE_PFN: u32 = 1;
pub type xen_pfn_t = ::core::ffi::c_ulong;
pub type domid_t = u16;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct xen_hvm_param {
    pub domid: domid_t,
    pub pad: u16,
    pub index: u32,
    pub value: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of xen_hvm_param"][::core::mem::size_of::<xen_hvm_param>() - 16usize];
    ["Alignment of xen_hvm_param"][::core::mem::align_of::<xen_hvm_param>() - 8usize];
    [
        "Offset of field: xen_hvm_param::domid",
    ][::core::mem::offset_of!(xen_hvm_param, domid) - 0usize];
    [
        "Offset of field: xen_hvm_param::pad",
    ][::core::mem::offset_of!(xen_hvm_param, pad) - 2usize];
    [
        "Offset of field: xen_hvm_param::index",
    ][::core::mem::offset_of!(xen_hvm_param, index) - 4usize];
    [
        "Offset of field: xen_hvm_param::value",
    ][::core::mem::offset_of!(xen_hvm_param, value) - 8usize];
};
pub type __u32 = ::core::ffi::c_uint;
pub type __u64 = ::core::ffi::c_ulonglong;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct privcmd_hypercall {
    pub op: __u64,
    pub arg: [__u64; 5usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of privcmd_hypercall"][::core::mem::size_of::<privcmd_hypercall>() - 48usize];
    [
        "Alignment of privcmd_hypercall",
    ][::core::mem::align_of::<privcmd_hypercall>() - 8usize];
    [
        "Offset of field: privcmd_hypercall::op",
    ][::core::mem::offset_of!(privcmd_hypercall, op) - 0usize];
    [
        "Offset of field: privcmd_hypercall::arg",
    ][::core::mem::offset_of!(privcmd_hypercall, arg) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct privcmd_mmapbatch_v2 {
    pub num: ::core::ffi::c_uint,
    pub dom: domid_t,
    pub addr: __u64,
    pub arr: *const xen_pfn_t,
    pub err: *mut ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of privcmd_mmapbatch_v2",
    ][::core::mem::size_of::<privcmd_mmapbatch_v2>() - 32usize];
    [
        "Alignment of privcmd_mmapbatch_v2",
    ][::core::mem::align_of::<privcmd_mmapbatch_v2>() - 8usize];
    [
        "Offset of field: privcmd_mmapbatch_v2::num",
    ][::core::mem::offset_of!(privcmd_mmapbatch_v2, num) - 0usize];
    [
        "Offset of field: privcmd_mmapbatch_v2::dom",
    ][::core::mem::offset_of!(privcmd_mmapbatch_v2, dom) - 4usize];
    [
        "Offset of field: privcmd_mmapbatch_v2::addr",
    ][::core::mem::offset_of!(privcmd_mmapbatch_v2, addr) - 8usize];
    [
        "Offset of field: privcmd_mmapbatch_v2::arr",
    ][::core::mem::offset_of!(privcmd_mmapbatch_v2, arr) - 16usize];
    [
        "Offset of field: privcmd_mmapbatch_v2::err",
    ][::core::mem::offset_of!(privcmd_mmapbatch_v2, err) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct privcmd_mmap_resource {
    pub dom: domid_t,
    pub type_: __u32,
    pub id: __u32,
    pub idx: __u32,
    pub num: __u64,
    pub addr: __u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of privcmd_mmap_resource",
    ][::core::mem::size_of::<privcmd_mmap_resource>() - 32usize];
    [
        "Alignment of privcmd_mmap_resource",
    ][::core::mem::align_of::<privcmd_mmap_resource>() - 8usize];
    [
        "Offset of field: privcmd_mmap_resource::dom",
    ][::core::mem::offset_of!(privcmd_mmap_resource, dom) - 0usize];
    [
        "Offset of field: privcmd_mmap_resource::type_",
    ][::core::mem::offset_of!(privcmd_mmap_resource, type_) - 4usize];
    [
        "Offset of field: privcmd_mmap_resource::id",
    ][::core::mem::offset_of!(privcmd_mmap_resource, id) - 8usize];
    [
        "Offset of field: privcmd_mmap_resource::idx",
    ][::core::mem::offset_of!(privcmd_mmap_resource, idx) - 12usize];
    [
        "Offset of field: privcmd_mmap_resource::num",
    ][::core::mem::offset_of!(privcmd_mmap_resource, num) - 16usize];
    [
        "Offset of field: privcmd_mmap_resource::addr",
    ][::core::mem::offset_of!(privcmd_mmap_resource, addr) - 24usize];
};
pub const NR_HYPERCALL: privcmd_ioctl = 3166208;
pub const NR_MMAPBATCH_V2: privcmd_ioctl = 2117636;
pub const NR_RESTRICT: privcmd_ioctl = 151558;
pub const NR_MMAP_RESOURCE: privcmd_ioctl = 2117639;
pub type privcmd_ioctl = ::core::ffi::c_uint;
pub const FIRST_RESERVED_DOMID: domid_t = 32752;
pub const XEN_DOMID: domid_t = 32754;
