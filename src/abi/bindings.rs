// Made by `tests/bindings --write` from linux-libc-dev and libxen-dev; do not edit.

pub const _XEN_X86_EMU_PIT: u32 = 8;
pub const __HYPERVISOR_memory_op: u32 = 12;
pub const __HYPERVISOR_multicall: u32 = 13;
pub const __HYPERVISOR_xen_version: u32 = 17;
pub const __HYPERVISOR_hvm_op: u32 = 34;
pub const __HYPERVISOR_sysctl: u32 = 35;
pub const __HYPERVISOR_domctl: u32 = 36;
pub const XENFEAT_auto_translated_physmap: u32 = 2;
pub const XENMEM_maximum_ram_page: u32 = 2;
pub const XENMEM_current_reservation: u32 = 3;
pub const XENMEM_maximum_reservation: u32 = 4;
pub const XENMEM_maximum_gpfn: u32 = 14;
pub const XENMEM_machphys_mfn_list: u32 = 5;
pub const XENMEM_get_pod_target: u32 = 17;
pub const XENMEM_resource_ioreq_server: u32 = 0;
pub const XENMEM_resource_grant_table: u32 = 1;
pub const XENMEM_resource_vmtrace_buf: u32 = 2;
pub const XEN_DOMINF_dying: u32 = 1;
pub const XEN_DOMINF_hvm_guest: u32 = 2;
pub const XEN_DOMINF_shutdown: u32 = 4;
pub const XEN_DOMINF_paused: u32 = 8;
pub const XEN_DOMCTL_PFINFO_LTABTYPE_MASK: u32 = 1879048192;
pub const XEN_DOMCTL_PFINFO_XTAB: u32 = 4026531840;
pub const XEN_DOMCTL_PFINFO_BROKEN: u32 = 3489660928;
pub const XEN_DOMCTL_PFINFO_LTAB_MASK: u32 = 4026531840;
pub const XEN_DOMCTL_pausedomain: u32 = 3;
pub const XEN_DOMCTL_unpausedomain: u32 = 4;
pub const XEN_DOMCTL_getdomaininfo: u32 = 5;
pub const XEN_DOMCTL_getvcpucontext: u32 = 13;
pub const XEN_DOMCTL_get_address_size: u32 = 36;
pub const XEN_DOMCTL_gethvmcontext_partial: u32 = 55;
pub const XEN_DOMCTL_getpageframeinfo3: u32 = 61;
pub const XEN_SYSCTL_getdomaininfolist: u32 = 6;
pub const XENVER_version: u32 = 0;
pub const XENVER_extraversion: u32 = 1;
pub const XENVER_capabilities: u32 = 3;
pub const XENVER_get_features: u32 = 6;
pub const HVMOP_get_param: u32 = 1;
pub const HVM_PARAM_STORE_PFN: u32 = 1;
pub type xen_pfn_t = ::core::ffi::c_ulong;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct xen_arch_domainconfig {
    pub emulation_flags: u32,
    pub misc_flags: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of xen_arch_domainconfig",
    ][::core::mem::size_of::<xen_arch_domainconfig>() - 8usize];
    [
        "Alignment of xen_arch_domainconfig",
    ][::core::mem::align_of::<xen_arch_domainconfig>() - 4usize];
    [
        "Offset of field: xen_arch_domainconfig::emulation_flags",
    ][::core::mem::offset_of!(xen_arch_domainconfig, emulation_flags) - 0usize];
    [
        "Offset of field: xen_arch_domainconfig::misc_flags",
    ][::core::mem::offset_of!(xen_arch_domainconfig, misc_flags) - 4usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct __guest_handle_xen_pfn_t {
    pub p: *mut xen_pfn_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of __guest_handle_xen_pfn_t",
    ][::core::mem::size_of::<__guest_handle_xen_pfn_t>() - 8usize];
    [
        "Alignment of __guest_handle_xen_pfn_t",
    ][::core::mem::align_of::<__guest_handle_xen_pfn_t>() - 8usize];
    [
        "Offset of field: __guest_handle_xen_pfn_t::p",
    ][::core::mem::offset_of!(__guest_handle_xen_pfn_t, p) - 0usize];
};
pub type domid_t = u16;
pub type xen_domain_handle_t = [u8; 16usize];
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct xen_machphys_mfn_list {
    pub max_extents: ::core::ffi::c_uint,
    pub extent_start: __guest_handle_xen_pfn_t,
    pub nr_extents: ::core::ffi::c_uint,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of xen_machphys_mfn_list",
    ][::core::mem::size_of::<xen_machphys_mfn_list>() - 24usize];
    [
        "Alignment of xen_machphys_mfn_list",
    ][::core::mem::align_of::<xen_machphys_mfn_list>() - 8usize];
    [
        "Offset of field: xen_machphys_mfn_list::max_extents",
    ][::core::mem::offset_of!(xen_machphys_mfn_list, max_extents) - 0usize];
    [
        "Offset of field: xen_machphys_mfn_list::extent_start",
    ][::core::mem::offset_of!(xen_machphys_mfn_list, extent_start) - 8usize];
    [
        "Offset of field: xen_machphys_mfn_list::nr_extents",
    ][::core::mem::offset_of!(xen_machphys_mfn_list, nr_extents) - 16usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct xen_pod_target {
    pub target_pages: u64,
    pub tot_pages: u64,
    pub pod_cache_pages: u64,
    pub pod_entries: u64,
    pub domid: domid_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of xen_pod_target"][::core::mem::size_of::<xen_pod_target>() - 40usize];
    ["Alignment of xen_pod_target"][::core::mem::align_of::<xen_pod_target>() - 8usize];
    [
        "Offset of field: xen_pod_target::target_pages",
    ][::core::mem::offset_of!(xen_pod_target, target_pages) - 0usize];
    [
        "Offset of field: xen_pod_target::tot_pages",
    ][::core::mem::offset_of!(xen_pod_target, tot_pages) - 8usize];
    [
        "Offset of field: xen_pod_target::pod_cache_pages",
    ][::core::mem::offset_of!(xen_pod_target, pod_cache_pages) - 16usize];
    [
        "Offset of field: xen_pod_target::pod_entries",
    ][::core::mem::offset_of!(xen_pod_target, pod_entries) - 24usize];
    [
        "Offset of field: xen_pod_target::domid",
    ][::core::mem::offset_of!(xen_pod_target, domid) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct xen_domctl_getdomaininfo {
    pub domain: domid_t,
    pub pad1: u16,
    pub flags: u32,
    pub tot_pages: u64,
    pub max_pages: u64,
    pub outstanding_pages: u64,
    pub shr_pages: u64,
    pub paged_pages: u64,
    pub shared_info_frame: u64,
    pub cpu_time: u64,
    pub nr_online_vcpus: u32,
    pub max_vcpu_id: u32,
    pub ssidref: u32,
    pub handle: xen_domain_handle_t,
    pub cpupool: u32,
    pub gpaddr_bits: u8,
    pub pad2: [u8; 7usize],
    pub arch_config: xen_arch_domainconfig,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of xen_domctl_getdomaininfo",
    ][::core::mem::size_of::<xen_domctl_getdomaininfo>() - 112usize];
    [
        "Alignment of xen_domctl_getdomaininfo",
    ][::core::mem::align_of::<xen_domctl_getdomaininfo>() - 8usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::domain",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, domain) - 0usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::pad1",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, pad1) - 2usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::flags",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, flags) - 4usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::tot_pages",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, tot_pages) - 8usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::max_pages",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, max_pages) - 16usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::outstanding_pages",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, outstanding_pages) - 24usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::shr_pages",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, shr_pages) - 32usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::paged_pages",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, paged_pages) - 40usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::shared_info_frame",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, shared_info_frame) - 48usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::cpu_time",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, cpu_time) - 56usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::nr_online_vcpus",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, nr_online_vcpus) - 64usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::max_vcpu_id",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, max_vcpu_id) - 68usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::ssidref",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, ssidref) - 72usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::handle",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, handle) - 76usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::cpupool",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, cpupool) - 92usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::gpaddr_bits",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, gpaddr_bits) - 96usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::pad2",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, pad2) - 97usize];
    [
        "Offset of field: xen_domctl_getdomaininfo::arch_config",
    ][::core::mem::offset_of!(xen_domctl_getdomaininfo, arch_config) - 104usize];
};
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
pub const SHARED_INFO_64_MAX_PFN: offset = 3088;
pub const SHARED_INFO_64_FRAME_LIST_LIST: offset = 3096;
pub const SHARED_INFO_64_P2M_CR3: offset = 3112;
pub const SHARED_INFO_64_P2M_VADDR: offset = 3120;
pub const SHARED_INFO_64_P2M_GENERATION: offset = 3128;
pub const SHARED_INFO_32_MAX_PFN: offset = 2316;
pub const SHARED_INFO_32_FRAME_LIST_LIST: offset = 2320;
pub const SHARED_INFO_32_P2M_CR3: offset = 2328;
pub const SHARED_INFO_32_P2M_VADDR: offset = 2332;
pub const SHARED_INFO_32_P2M_GENERATION: offset = 2336;
pub const VCPU_CONTEXT_64_BYTES: offset = 5168;
pub const VCPU_CONTEXT_64_CR3: offset = 5008;
pub const VCPU_CONTEXT_32_CR3: offset = 2728;
pub const VCPU_CONTEXT_ARM64_BYTES: offset = 352;
pub const VCPU_CONTEXT_ARM64_CPSR: offset = 264;
pub const VCPU_CONTEXT_ARM64_SCTLR: offset = 320;
pub const VCPU_CONTEXT_ARM64_TTBCR: offset = 328;
pub const VCPU_CONTEXT_ARM64_TTBR0: offset = 336;
pub const VCPU_CONTEXT_ARM64_TTBR1: offset = 344;
pub const HVM_CPU_BYTES: offset = 1032;
pub const HVM_CPU_CR0: offset = 656;
pub const HVM_CPU_CR3: offset = 672;
pub const HVM_CPU_CR4: offset = 680;
pub const HVM_CPU_EFER: offset = 992;
pub type offset = ::core::ffi::c_uint;
pub const HVM_RECORD_CPU: hvm_record = 2;
pub type hvm_record = ::core::ffi::c_uint;
