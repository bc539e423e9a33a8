//! Does nothing, unless the compiler is given `--cfg xenmap_bindgen`: then it makes the bindings anew from the
//! installed headers (linux-libc-dev, libxen-dev), and the library uses those. `tests/bindings` calls it so.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(xenmap_bindgen)]
    generate::bindings();
}

#[cfg(xenmap_bindgen)]
mod generate {
    use std::path::PathBuf;

    const TYPES: &[&str] = &[
        "privcmd_hypercall",
        "privcmd_mmapbatch_v2",
        "privcmd_mmap_resource",
        "privcmd_ioctl",
        "domid_t",
        "xen_hvm_param",
        "xen_domctl_getdomaininfo",
        "xen_machphys_mfn_list",
        "xen_pod_target",
        "offset",
        "hvm_record",
    ];

    const CONSTANTS: &[&str] = &[
        "FIRST_RESERVED_DOMID",
        "XEN_DOMID",
        "__HYPERVISOR_memory_op",
        "__HYPERVISOR_multicall",
        "__HYPERVISOR_xen_version",
        "__HYPERVISOR_hvm_op",
        "__HYPERVISOR_sysctl",
        "__HYPERVISOR_domctl",
        "XENMEM_maximum_ram_page",
        "XENMEM_(current|maximum)_reservation",
        "XENMEM_maximum_gpfn",
        "XENMEM_machphys_mfn_list",
        "XENMEM_get_pod_target",
        "XENMEM_resource_(ioreq_server|grant_table|vmtrace_buf)",
        "XENVER_(version|extraversion|capabilities|get_features)",
        "XENFEAT_auto_translated_physmap",
        "HVMOP_get_param",
        "HVM_PARAM_STORE_PFN",
        "XEN_DOMCTL_(pausedomain|unpausedomain|getdomaininfo|getvcpucontext|get_address_size)",
        "XEN_DOMCTL_(gethvmcontext_partial|getpageframeinfo3)",
        "XEN_DOMCTL_PFINFO_(LTABTYPE_MASK|LTAB_MASK|XTAB|BROKEN)",
        "XEN_DOMINF_(dying|hvm_guest|shutdown|paused)",
        "XEN_SYSCTL_getdomaininfolist",
        "_XEN_X86_EMU_PIT",
    ];

    pub(super) fn bindings() {
        println!("cargo::rerun-if-changed=src/abi/wrapper.h");
        let mut builder = bindgen::Builder::default()
            .header("src/abi/wrapper.h")
            .clang_arg("-Isrc/abi/include")
            .rust_target("1.88".parse().expect("the MSRV is a Rust version"))
            .rust_edition(bindgen::RustEdition::Edition2024)
            .use_core()
            .generate_comments(false)
            .prepend_enum_name(false)
            .formatter(bindgen::Formatter::Prettyplease)
            .raw_line("// Made by `tests/bindings --write` from linux-libc-dev and libxen-dev; do not edit.")
            .disable_header_comment();
        for name in TYPES {
            builder = builder.allowlist_type(name);
        }
        for name in CONSTANTS {
            builder = builder.allowlist_var(name);
        }
        let bindings = builder.generate().expect("bindgen failed: install libclang-dev, linux-libc-dev and libxen-dev");
        let path = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
        bindings.write_to_file(&path).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }
}
