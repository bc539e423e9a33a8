//! What can go wrong, and what the person can do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::types::{Domid, Gfn, InvalidNumber, MAX_FRAMES};

/// [`std::result::Result`] with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// An operation that failed: which one, on what, and what to do about it.
///
/// Why it failed is not in its text if it is the [`source`](std::error::Error::source), such as what the system said:
/// print the whole chain, as `anyhow` and the like do.
///
/// It becomes an [`io::Error`] of the [kind](io::Error::kind) that its cause has, and stays reachable in it:
///
/// ```
/// use std::io;
/// use xenmap::mock::{Fault, MockHost};
///
/// const ENODEV: i32 = 19;
///
/// let host = MockHost::new();
/// host.inject(Fault::Open(ENODEV));
/// let error = io::Error::from(host.open().unwrap_err());
/// assert_eq!(error.kind(), io::Error::from_raw_os_error(ENODEV).kind());
///
/// let inner: xenmap::Error = error.downcast()?;
/// assert_eq!(inner.errno(), ENODEV);
/// # Ok::<(), io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The device could not be opened.
    Open {
        /// The device that was tried last.
        path: PathBuf,
        /// What open(2) said.
        source: io::Error,
    },
    /// The handle could not be confined to one domain.
    Restrict {
        /// The domain it should have been confined to.
        domid: Domid,
        /// What the ioctl said.
        source: io::Error,
    },
    /// No address range could be had for a mapping.
    Reserve {
        /// The size of the range in bytes.
        bytes: usize,
        /// What mmap(2) said.
        source: io::Error,
    },
    /// The mapping call failed as a whole; no frame was looked at.
    MapBatch {
        /// The domain whose frames were to be mapped.
        domid: Domid,
        /// How many frames.
        frames: usize,
        /// What the ioctl said.
        source: io::Error,
    },
    /// Some frames could not be mapped, and nothing stays mapped.
    Frames(FrameErrors),
    /// A resource could not be mapped.
    Resource {
        /// The domain whose resource it is.
        domid: Domid,
        /// What the ioctl said.
        source: io::Error,
    },
    /// The size of a resource could not be learned.
    ResourceSize {
        /// The domain whose resource it is.
        domid: Domid,
        /// What the ioctl said; EOPNOTSUPP if this Xen answers incorrectly.
        source: io::Error,
    },
    /// A hypercall failed.
    Hypercall {
        /// Its name in Xen's headers.
        name: &'static str,
        /// The domain that was asked about, if it was about one.
        domid: Option<Domid>,
        /// What the ioctl said.
        source: io::Error,
    },
    /// No memory could be had that a hypercall may use.
    HypercallBuffer {
        /// Its size in bytes.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A guest-physical address cannot be read or written.
    GuestAddress {
        /// The guest.
        domid: Domid,
        /// The first address that failed, in bytes.
        address: u64,
        /// Why, as an errno of Linux (positive).
        errno: i32,
    },
    /// A guest-virtual address leads nowhere.
    Translation {
        /// The address.
        address: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A vcpu has no page tables, or of a kind that is not known here.
    Paging {
        /// The guest.
        domid: Domid,
        /// The number of the vcpu.
        vcpu: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// A PV guest's table of machine frames (its p2m) cannot be used.
    P2m {
        /// The guest.
        domid: Domid,
        /// What is wrong.
        reason: &'static str,
    },
    /// Touching every frame of a populate-on-demand guest would crash it: fewer frames of memory are set aside than it
    /// has frames without memory ([`Guest::check_populated`](crate::Guest::check_populated)).
    PopulateOnDemand {
        /// The guest.
        domid: Domid,
        /// Frames that have no memory yet.
        unpopulated: u64,
        /// Frames of memory that Xen has set aside for them.
        pool: u64,
    },
    /// A map cache cannot have these sizes.
    CacheConfig {
        /// The size of a bucket in bytes.
        bucket_size: usize,
        /// The bytes that may stay mapped.
        budget: usize,
    },
    /// Several domains have the name.
    AmbiguousName {
        /// The name.
        name: String,
        /// The domains that were considered, two at least, in ascending order.
        domids: Vec<Domid>,
    },
    /// A number names no domain or frame.
    InvalidNumber(InvalidNumber),
    /// `DOMID_XEN` was to be mapped writable.
    XenIsReadOnly,
    /// A mapping of no frames was asked for.
    Empty,
    /// A mapping of more frames than an address range can hold was asked for.
    TooManyFrames {
        /// How many.
        frames: usize,
    },
    /// Several frames of a resource were to be mapped by a kernel whose pages are larger than a frame: it would take them
    /// for so many pages, and write page-table entries behind the mapping (`privcmd_ioctl_mmap_resource`).
    ResourceFrames {
        /// How many.
        frames: usize,
        /// Bytes of a page of the kernel.
        page_size: usize,
    },
    /// An access reaches past the end of a mapping or view.
    OutOfBounds {
        /// Where it starts, in bytes.
        offset: usize,
        /// How many bytes.
        len: usize,
        /// The bytes that there are.
        size: usize,
    },
    /// An atomic access is not at a multiple of its size.
    Misaligned {
        /// Where it is, in bytes.
        offset: usize,
        /// The size in bytes.
        align: usize,
    },
    /// A write to a read-only mapping.
    ReadOnly {
        /// Where it starts, in bytes.
        offset: usize,
    },
    /// An access to a frame that is not mapped.
    Hole {
        /// Where the access starts, in bytes.
        offset: usize,
        /// The frame, and why it is not mapped.
        frame: FrameError,
    },
    /// Bytes could not be moved between a mapping and a file descriptor.
    Transfer {
        /// How many bytes were moved before.
        done: usize,
        /// What read(2) or write(2) said.
        source: io::Error,
    },
}

/// One frame that could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FrameError {
    /// Its place in the batch.
    pub index: usize,
    /// Its number.
    pub gfn: Gfn,
    /// Why, as an errno of Linux (positive).
    pub errno: i32,
}

impl FrameError {
    /// What became of a frame: its place in a batch, its number, and an errno of Linux (positive).
    #[must_use]
    pub const fn new(index: usize, gfn: Gfn, errno: i32) -> FrameError {
        FrameError { index, gfn, errno }
    }

    /// What the errno means for a frame.
    #[must_use]
    pub fn reason(&self) -> String {
        reason(self.errno)
    }
}

/// What an errno means for a frame, as Linux's privcmd.c has it from Xen's `mod_l1_entry` (PV) and `p2m_add_foreign`
/// (auto-translated).
fn reason(errno: i32) -> String {
    let reason = match errno {
        libc::EINVAL => "no RAM there",
        libc::ENOENT => "paged out, and not back in time",
        libc::EPERM => "not the domain's own frame, or no privilege over the domain",
        libc::EBUSY => "owned by another domain, or in use as a page table: map it read-only",
        libc::ESRCH => "no such domain",
        errno => return io::Error::from_raw_os_error(errno).to_string(),
    };
    reason.to_owned()
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {} (index {}): {}", self.gfn, self.index, self.reason())
    }
}

impl std::error::Error for FrameError {}

/// The frames of a batch that could not be mapped, in the order of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameErrors {
    pub(crate) domid: Domid,
    pub(crate) requested: usize,
    pub(crate) failed: Vec<FrameError>,
}

impl FrameErrors {
    /// The domain.
    #[must_use]
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// How many frames the batch had.
    #[must_use]
    pub fn requested(&self) -> usize {
        self.requested
    }

    /// The frames that failed: at least one.
    #[must_use]
    pub fn failed(&self) -> &[FrameError] {
        &self.failed
    }
}

impl fmt::Display for FrameErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, of) = (self.failed.len(), self.requested);
        if failed == of && self.failed.iter().all(|e| e.errno == libc::ESRCH) {
            return write!(f, "no such domain: {}", self.domid);
        }
        write!(f, "{failed} of {of} frames of domain {} cannot be mapped", self.domid)?;
        if let Some(first) = self.failed.first() {
            write!(f, ", the first: {first}")?;
        }
        Ok(())
    }
}

impl std::error::Error for FrameErrors {}

impl Error {
    /// The errno of Linux (positive) that says best what happened, for callers that speak C.
    #[must_use]
    pub fn errno(&self) -> i32 {
        if let Some(source) = self.io_error() {
            return source.raw_os_error().unwrap_or(libc::EIO);
        }
        match self {
            Error::Frames(errors) => errors.failed.first().map_or(libc::EIO, |e| e.errno),
            Error::Hole { frame, .. } => frame.errno,
            Error::GuestAddress { errno, .. } => *errno,
            Error::Translation { .. } => libc::EFAULT,
            Error::PopulateOnDemand { .. } => libc::EAGAIN,
            Error::ReadOnly { .. } | Error::XenIsReadOnly => libc::EACCES,
            _ => libc::EINVAL,
        }
    }

    /// What the system said, where it was asked.
    fn io_error(&self) -> Option<&io::Error> {
        match self {
            Error::Open { source, .. }
            | Error::Restrict { source, .. }
            | Error::Reserve { source, .. }
            | Error::MapBatch { source, .. }
            | Error::Resource { source, .. }
            | Error::ResourceSize { source, .. }
            | Error::Hypercall { source, .. }
            | Error::HypercallBuffer { source, .. }
            | Error::Transfer { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Open { path, source } => write!(f, "cannot open {}{}", path.display(), open_hint(source)),
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
                write!(f, "cannot learn the size of the resource of domain {domid}{}", resource_size_hint(source))
            }
            Error::Hypercall { name, domid, source } => {
                write!(f, "{name}")?;
                if let Some(domid) = domid {
                    write!(f, " for domain {domid}")?;
                }
                write!(f, " failed{}", hypercall_hint(name, source))
            }
            Error::HypercallBuffer { bytes, .. } => write!(f, "cannot get {bytes} bytes of memory for a hypercall"),
            Error::GuestAddress { domid, address, errno } => {
                write!(f, "cannot access domain {domid} at {address:#x}: {}", reason(*errno))
            }
            Error::Translation { address, reason } => write!(f, "virtual address {address:#x}: {reason}"),
            Error::Paging { domid, vcpu, reason } => {
                write!(f, "no page tables of vcpu {vcpu} of domain {domid}: {reason}")
            }
            Error::P2m { domid, reason } => write!(f, "the p2m of pv guest {domid} cannot be used: {reason}"),
            Error::PopulateOnDemand { domid, unpopulated, pool } => write!(
                f,
                "domain {domid} is populated on demand, and touching all of its memory would crash it ({unpopulated} \
                 frames have no memory yet, and {pool} are set aside): wait until its balloon driver has started"
            ),
            Error::CacheConfig { .. } => f.write_str("a bucket is a power of two, 4 KiB to 1 GiB, within the budget"),
            Error::AmbiguousName { name, domids } => {
                write!(f, "{} domains are called {name:?}: {}", domids.len(), numbers(domids))?;
                f.write_str("; choose one by its number")
            }
            Error::InvalidNumber(number) => number.fmt(f),
            Error::XenIsReadOnly => f.write_str("frames of xen itself can only be mapped read-only"),
            Error::Empty => f.write_str("a mapping has at least one frame"),
            Error::TooManyFrames { frames } => {
                write!(f, "{frames} frames do not fit into one mapping: the most is {MAX_FRAMES}")
            }
            Error::ResourceFrames { frames, page_size } => write!(
                f,
                "{frames} frames of a resource cannot be mapped by a kernel with pages of {page_size} bytes: \
                 map them one by one"
            ),
            Error::OutOfBounds { offset, len, size } => {
                write!(f, "{len} bytes at offset {offset:#x} reach past the end ({size} bytes)")
            }
            Error::Misaligned { offset, align } => {
                write!(f, "an atomic access of {align} bytes cannot be at offset {offset:#x}: align it")
            }
            Error::ReadOnly { offset } => {
                write!(f, "cannot write at offset {offset:#x}: map with Protection::ReadWrite")
            }
            Error::Hole { offset, .. } => write!(f, "access at offset {offset:#x} reaches what is not mapped"),
            Error::Transfer { done, source } => write!(f, "stopped after {done} bytes{}", transfer_hint(source)),
        }
    }
}

fn numbers(domids: &[Domid]) -> String {
    let numbers: Vec<String> = domids.iter().map(Domid::to_string).collect();
    numbers.join(", ")
}

fn open_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT) => " (not on xen, or the module xen-privcmd is not loaded)",
        Some(libc::ENODEV | libc::ENXIO) => " (not on xen)",
        Some(libc::EACCES | libc::EPERM) => " (only root may by default: see the device's mode)",
        _ => "",
    }
}

fn restrict_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EINVAL) => " (it is restricted to another domain already, or this is older than linux 4.11)",
        Some(libc::ENOTTY) => " (needs linux 4.11)",
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
        Some(libc::ENOTTY) => " (this is no privcmd device)",
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
            " (only a control domain may ask, through a handle that is not restricted; scan_populating does not ask)"
        }
        Some(libc::EPERM) => " (no privilege, or the handle is restricted)",
        Some(libc::EACCES) if name.starts_with("XEN_DOMCTL_") || name.starts_with("XEN_SYSCTL_") => {
            " (this xen's toolstack interface is of a version that is not known here, or its policy forbids it)"
        }
        Some(libc::ENOENT | libc::EINVAL | libc::ENODATA) if is_about_a_vcpu => " (no such vcpu, or it is not up)",
        _ => "",
    }
}

fn resource_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOTTY) => " (needs linux 4.18)",
        Some(libc::EINVAL) => " (no such resource, or not so many frames in it)",
        Some(libc::ESRCH) => " (no such domain)",
        Some(libc::EOPNOTSUPP) => " (this xen does not have it)",
        _ => hint(source),
    }
}

fn resource_size_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOTTY) => " (needs linux 5.12)",
        Some(libc::EINVAL) => " (no such resource, or this is older than linux 5.12)",
        Some(libc::EOPNOTSUPP) => " (needs xen 4.15, or this xen does not have the resource)",
        _ => resource_hint(source),
    }
}

/// What to do about an errno that any mapping call may give.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => " (the handle is restricted to another domain, or no privilege)",
        Some(libc::ENOMEM) => {
            " (out of memory, this domain's or Xen's, of addresses or mappings; each mapped frame may take a page of \
             this domain's: map less at a time)"
        }
        _ => "",
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Hole { frame, .. } => Some(frame),
            // That of `Frames` and of `InvalidNumber` is this error itself, and has no source.
            _ => self.io_error().map(|source| source as &(dyn std::error::Error + 'static)),
        }
    }
}

impl From<InvalidNumber> for Error {
    fn from(error: InvalidNumber) -> Error {
        Error::InvalidNumber(error)
    }
}

impl From<FrameErrors> for Error {
    fn from(errors: FrameErrors) -> Error {
        Error::Frames(errors)
    }
}

/// Keeps the kind, which the standard library makes of an errno, and the error itself: an [`io::Error`] holds a number of
/// the system's or an error, not both. [`Error::errno`] has the number.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match error.io_error() {
            Some(source) => source.kind(),
            None => io::Error::from_raw_os_error(error.errno()).kind(),
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_error_has_the_kind_of_the_source_or_of_the_errno() {
        let not_found = Error::Open { path: "/dev".into(), source: io::Error::from_raw_os_error(libc::ENOENT) };
        let short = Error::Transfer { done: 1, source: io::ErrorKind::UnexpectedEof.into() };
        let read_only = Error::ReadOnly { offset: 0 };
        let expected = [
            (not_found, io::ErrorKind::NotFound, libc::ENOENT),
            (short, io::ErrorKind::UnexpectedEof, libc::EIO),
            (read_only, io::ErrorKind::PermissionDenied, libc::EACCES),
            (Error::Empty, io::ErrorKind::InvalidInput, libc::EINVAL),
        ];
        for (error, kind, errno) in expected {
            let text = error.to_string();
            let converted = io::Error::from(error);
            assert_eq!((converted.kind(), converted.to_string()), (kind, text));
            let inner = converted.get_ref().and_then(|e| e.downcast_ref::<Error>());
            assert_eq!(inner.map(Error::errno), Some(errno));
        }
    }

    #[test]
    fn text_of_an_error_does_not_repeat_its_sources() {
        use std::error::Error as _;

        let source = || io::Error::from_raw_os_error(libc::EINVAL);
        let domid = Domid::XEN;
        let frame = FrameError::new(7, Gfn::MAX, libc::ENOENT);
        let errors = [
            Error::Open { path: "/dev".into(), source: source() },
            Error::Restrict { domid, source: source() },
            Error::Reserve { bytes: 4096, source: source() },
            Error::MapBatch { domid, frames: 1, source: source() },
            Error::Resource { domid, source: source() },
            Error::ResourceSize { domid, source: source() },
            Error::Hypercall { name: "XENVER_version", domid: None, source: source() },
            Error::HypercallBuffer { bytes: 1, source: source() },
            Error::Transfer { done: 1, source: source() },
            Error::Hole { offset: 0, frame },
        ];
        for error in errors {
            let cause = error.source().map(ToString::to_string).unwrap();
            assert!(!error.to_string().contains(&cause), "{error}");
        }
    }

    #[test]
    fn transparent_error_has_the_text_of_what_it_holds_and_no_source() {
        use std::error::Error as _;

        let held = FrameErrors { domid: Domid::XEN, requested: 2, failed: vec![FrameError::new(1, Gfn::MAX, 1)] };
        for (error, text) in [
            (Error::from(InvalidNumber::Text), InvalidNumber::Text.to_string()),
            (Error::from(held.clone()), held.to_string()),
        ] {
            assert_eq!(error.to_string(), text);
            assert!(error.source().is_none());
        }
    }
}
