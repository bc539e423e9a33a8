//! The messages of errors, with hints on what to do.

use std::fmt;
use std::io;
use std::path::Path;

use super::Error;
use super::frames::reason;
use crate::types::{Domid, GuestKind, MAX_FRAMES};

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Open { path, source } => write!(f, "cannot open {}{}", path.display(), open_hint(path, source)),
            Error::Restrict { domid, source } => {
                write!(f, "cannot restrict the handle to domain {domid}{}", restrict_hint(source))
            }
            Error::Reserve { bytes, source } => {
                write!(f, "no address range of {bytes} bytes for a mapping{}", reserve_hint(source))
            }
            Error::MapBatch { domid, frames, source } => {
                write!(f, "cannot map {frames} frames of domain {domid}{}", map_batch_hint(source))
            }
            Error::Frames(errors) => errors.fmt(f),
            Error::Resource { domid, source } => {
                write!(f, "cannot map the resource of domain {domid}{}", resource_hint(source))
            }
            Error::ResourceSize { domid, source } => {
                write!(f, "cannot get the size of the resource of domain {domid}{}", resource_size_hint(source))
            }
            Error::Hypercall { name, domid, source } => {
                write!(f, "{name}")?;
                if let Some(domid) = domid {
                    write!(f, " for domain {domid}")?;
                }
                write!(f, " failed{}", hypercall_hint(name, source))
            }
            Error::DmOp { name, domid, source } => {
                write!(f, "{name} for domain {domid} failed{}", dm_op_hint(name, source))
            }
            Error::EventChannel { operation, port, source } => {
                write!(f, "cannot {operation} ")?;
                match port {
                    Some(port) => write!(f, "event channel {port}"),
                    None => f.write_str("event channels"),
                }?;
                f.write_str(event_channel_hint(operation, source))
            }
            Error::NoInterruptLine { domid, kind: GuestKind::Hvm } => write!(
                f,
                "domain {domid} may be a pvh guest, which has no interrupt lines (this xen's toolstack interface is \
                 unknown): use msi or, if it is certainly an hvm guest, open it with Guest::with_kind"
            ),
            Error::NoInterruptLine { domid, kind: GuestKind::Pvh } => {
                write!(f, "domain {domid} is a pvh guest, which has no interrupt lines: use msi")
            }
            Error::NoInterruptLine { domid, kind: GuestKind::Pv } => {
                write!(f, "domain {domid} is a pv guest, which has neither interrupt lines nor msi: use event channels")
            }
            Error::HypercallBuffer { bytes, .. } => write!(f, "cannot allocate {bytes} bytes for a hypercall"),
            Error::GuestAddress { domid, address, errno } => {
                write!(f, "cannot access domain {domid} at {address:#x}: {}", reason(*errno))
            }
            Error::Translation { address, reason, .. } => write!(f, "virtual address {address:#x}: {reason}"),
            Error::Paging { domid, vcpu, reason } => {
                write!(f, "vcpu {vcpu} of domain {domid} has no usable page tables: {reason}")
            }
            Error::P2m { domid, reason } => write!(f, "cannot use the p2m of pv guest {domid}: {reason}"),
            Error::PopulateOnDemand { domid, unpopulated, pool } => write!(
                f,
                "domain {domid} is populated on demand, and touching all of its memory would crash it ({unpopulated} \
                 frames have no memory yet, and {pool} are set aside): wait until its balloon driver has started"
            ),
            Error::CacheConfig { .. } => {
                f.write_str("a bucket must be a power of two from 4 KiB to 1 GiB, and not larger than the budget")
            }
            Error::AmbiguousName { name, domids } => {
                write!(f, "{} domains are called {name:?}: {}", domids.len(), numbers(domids))?;
                f.write_str("; choose one by its number")
            }
            Error::InvalidNumber(number) => number.fmt(f),
            Error::XenIsReadOnly => f.write_str("frames of xen itself can only be mapped read-only"),
            Error::Empty => f.write_str("cannot map 0 frames: give at least one"),
            Error::TooManyFrames { frames } => {
                write!(f, "{frames} frames do not fit into one mapping: map at most {MAX_FRAMES}")
            }
            Error::ResourceFrames { frames, page_size } => write!(
                f,
                "cannot map {frames} frames of a resource at once on a kernel with pages of {page_size} bytes: \
                 map them one by one"
            ),
            Error::OutOfBounds { offset, len, size } => {
                write!(f, "{len} bytes at offset {offset:#x} reach past the end ({size} bytes)")
            }
            Error::Misaligned { offset, align } => {
                write!(
                    f,
                    "atomic access at offset {offset:#x} is not aligned: its address must be a multiple of {align}"
                )
            }
            Error::ReadOnly { offset } => {
                write!(f, "cannot write at offset {offset:#x}: map with Protection::ReadWrite")
            }
            Error::Hole { offset, .. } => write!(f, "access at offset {offset:#x} touches a frame that is not mapped"),
            Error::Transfer { done, source } => write!(f, "stopped after {done} bytes{}", transfer_hint(source)),
        }
    }
}

fn numbers(domids: &[Domid]) -> String {
    let numbers: Vec<String> = domids.iter().map(Domid::to_string).collect();
    numbers.join(", ")
}

fn open_hint(path: &Path, source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT) if path.ends_with("evtchn") => " (not on xen, or the module xen-evtchn is not loaded)",
        Some(libc::ENOENT) => " (not on xen, or the module xen-privcmd is not loaded)",
        Some(libc::ENODEV | libc::ENXIO) => " (not on xen)",
        Some(libc::EACCES | libc::EPERM) => " (by default only root may open it: see the device's mode)",
        _ => "",
    }
}

fn restrict_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EINVAL) => " (already restricted to another domain, or unsupported: needs linux 4.11 or later)",
        Some(libc::EACCES) => " (already restricted)",
        Some(libc::ENOTTY | libc::ENOSYS) => " (needs linux 4.11 or later)",
        _ => "",
    }
}

fn reserve_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOMEM) => " (see vm.max_map_count and ulimit -v)",
        Some(libc::EACCES) => " (the device was opened read-only)",
        _ => "",
    }
}

fn map_batch_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EINVAL) => " (is linux older than 3.8?)",
        Some(libc::ENOTTY) => " (this is not a privcmd device)",
        _ => hint(source),
    }
}

fn transfer_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EFAULT) => " (a mapping cannot be used with O_DIRECT)",
        _ => "",
    }
}

fn hypercall_hint(name: &str, source: &io::Error) -> &'static str {
    let is_about_a_vcpu = matches!(name, "XEN_DOMCTL_getvcpucontext" | "XEN_DOMCTL_gethvmcontext_partial");
    match source.raw_os_error() {
        Some(libc::ESRCH) => " (no such domain)",
        Some(libc::EPERM) if name == "XENMEM_get_pod_target" => {
            " (only a control domain may ask, through an unrestricted handle; Guest::scan_populating does not ask)"
        }
        Some(libc::EPERM) => " (no privilege, or the handle is restricted)",
        Some(libc::EACCES) if name.starts_with("XEN_DOMCTL_") || name.starts_with("XEN_SYSCTL_") => {
            " (this xen's toolstack interface has an unknown version, or its policy forbids the call)"
        }
        Some(libc::ENOENT | libc::EINVAL | libc::ENODATA) if is_about_a_vcpu => " (no such vcpu, or it is not up)",
        _ => "",
    }
}

fn dm_op_hint(name: &str, source: &io::Error) -> &'static str {
    match (name, source.raw_os_error()) {
        (_, Some(libc::ENOTTY)) => " (not a privcmd device, or linux is older than 4.11)",
        (_, Some(libc::ESRCH)) => " (no such domain)",
        (_, Some(libc::EPERM)) => " (no privilege over the domain, or the handle is restricted to another one)",
        (_, Some(libc::EOPNOTSUPP | libc::ENOSYS)) => " (this xen does not have it)",
        ("XEN_DMOP_create_ioreq_server", Some(libc::EINVAL)) => {
            " (a pv guest has no ioreq servers, or linux is older than 4.11)"
        }
        ("XEN_DMOP_create_ioreq_server", Some(libc::ENOSPC)) => " (the guest has 8 servers, and can have no more)",
        ("XEN_DMOP_map_io_range_to_ioreq_server", Some(libc::EEXIST)) => {
            " (the server has a part of the range already)"
        }
        ("XEN_DMOP_map_io_range_to_ioreq_server", Some(libc::EINVAL)) => " (the range ends before it begins)",
        ("XEN_DMOP_map_io_range_to_ioreq_server", Some(libc::ENOMEM)) => " (a server can have 256 ranges of a type)",
        ("XEN_DMOP_unmap_io_range_from_ioreq_server", Some(libc::ENOENT)) => {
            " (the server is gone, or does not have it)"
        }
        (_, Some(libc::ENOENT)) => " (no such server: destroyed, or the guest has died)",
        ("XEN_DMOP_inject_msi", Some(libc::ERANGE)) => " (the guest has not set this interrupt up)",
        _ => "",
    }
}

fn event_channel_hint(operation: &str, source: &io::Error) -> &'static str {
    match (operation, source.raw_os_error()) {
        ("bind", Some(libc::EINVAL)) => " (the domain has not offered it, or it is bound already)",
        (_, Some(libc::EACCES)) => " (the handle is restricted)",
        (_, Some(libc::ESRCH)) => " (no such domain)",
        ("read", Some(libc::EFBIG)) => " (events were lost: look at everything, and go on)",
        _ => "",
    }
}

fn resource_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOTTY) => " (needs linux 4.18 or later)",
        Some(libc::EINVAL) => " (no such resource, or it has fewer frames)",
        Some(libc::ESRCH) => " (no such domain)",
        Some(libc::EOPNOTSUPP) => " (this xen does not support the resource)",
        _ => hint(source),
    }
}

fn resource_size_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOTTY) => " (needs linux 5.12 or later)",
        Some(libc::EINVAL) => " (no such resource, or unsupported: needs linux 5.12 or later)",
        Some(libc::EOPNOTSUPP) => " (needs xen 4.15 or later, or this xen does not support the resource)",
        _ => resource_hint(source),
    }
}

/// Returns what to do about an errno of any mapping call.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => " (no privilege over the domain, or the handle is restricted to another one)",
        Some(libc::ENOMEM) => {
            " (out of memory, this domain's or Xen's, or out of addresses or mappings; each mapped frame may take a \
             page of this domain's memory: map less at a time)"
        }
        _ => "",
    }
}
