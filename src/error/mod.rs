//! The crate's errors: what failed, and what to do about it.

mod frames;
mod text;

use std::io;
use std::path::PathBuf;

pub use frames::{FrameError, FrameErrors};

use crate::types::{Domid, GuestKind, InvalidNumber};

/// [`std::result::Result`] with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation. The message says what failed, on what, and what to do about it.
///
/// The message does not repeat the [`source`](std::error::Error::source), such as the system's error: print the whole
/// chain, as `anyhow` does.
///
/// The error converts into an [`io::Error`] that has the [kind](io::Error::kind) of the cause, and from which it can be
/// recovered:
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
        /// The error of open(2).
        source: io::Error,
    },
    /// The handle could not be restricted to one domain.
    Restrict {
        /// The domain it was to be restricted to.
        domid: Domid,
        /// The error of the ioctl.
        source: io::Error,
    },
    /// No address range could be reserved for a mapping.
    Reserve {
        /// The size of the range in bytes.
        bytes: usize,
        /// The error of mmap(2).
        source: io::Error,
    },
    /// The mapping call failed as a whole, not for single frames.
    MapBatch {
        /// The domain whose frames were to be mapped.
        domid: Domid,
        /// The number of frames.
        frames: usize,
        /// The error of the ioctl.
        source: io::Error,
    },
    /// Some frames could not be mapped, and nothing stays mapped.
    Frames(FrameErrors),
    /// A resource could not be mapped.
    Resource {
        /// The domain whose resource it is.
        domid: Domid,
        /// The error of the ioctl.
        source: io::Error,
    },
    /// The size of a resource could not be determined.
    ResourceSize {
        /// The domain whose resource it is.
        domid: Domid,
        /// The error of the ioctl; EOPNOTSUPP if this Xen answers incorrectly.
        source: io::Error,
    },
    /// A hypercall failed.
    Hypercall {
        /// Its name in Xen's headers.
        name: &'static str,
        /// The domain it was about, if any.
        domid: Option<Domid>,
        /// The error of the ioctl.
        source: io::Error,
    },
    /// A device model operation failed.
    DmOp {
        /// Its name in Xen's headers.
        name: &'static str,
        /// The domain it was about.
        domid: Domid,
        /// The error of the ioctl.
        source: io::Error,
    },
    /// A call on the device of event channels failed.
    EventChannel {
        /// What was tried: open, bind, offer, notify, poll or read.
        operation: &'static str,
        /// The port, if it was about one: to bind, that of the other domain.
        port: Option<u32>,
        /// The error of the system call.
        source: io::Error,
    },
    /// The guest has no interrupt lines, or may have none: only HVM guests have them.
    NoInterruptLine {
        /// The guest.
        domid: Domid,
        /// Its kind. If it is HVM, that is not certain: Xen does not say, and the guest may be a PVH guest.
        kind: GuestKind,
    },
    /// Memory for a hypercall could not be allocated.
    HypercallBuffer {
        /// The size in bytes.
        bytes: usize,
        /// The error of the system.
        source: io::Error,
    },
    /// A guest-physical address cannot be read or written.
    GuestAddress {
        /// The guest.
        domid: Domid,
        /// The first address that failed, in bytes.
        address: u64,
        /// The reason, as a Linux errno (positive).
        errno: i32,
    },
    /// A guest-virtual address cannot be translated.
    Translation {
        /// The address.
        address: u64,
        /// Every address from `address` to this one, inclusive, fails for the same reason.
        last: u64,
        /// The reason.
        reason: &'static str,
    },
    /// A vcpu has no page tables, or uses a paging mode that is not supported.
    Paging {
        /// The guest.
        domid: Domid,
        /// The number of the vcpu.
        vcpu: u32,
        /// The reason.
        reason: &'static str,
    },
    /// A PV guest's table of machine frames (its p2m) cannot be used.
    P2m {
        /// The guest.
        domid: Domid,
        /// The reason.
        reason: &'static str,
    },
    /// Touching every frame of a populate-on-demand guest would crash it, because more of its frames lack memory than
    /// Xen has set aside for it ([`Guest::check_populated`](crate::Guest::check_populated)).
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
        /// The most bytes that may stay mapped.
        budget: usize,
    },
    /// Several domains have the name.
    AmbiguousName {
        /// The name.
        name: String,
        /// The domains found, at least two, in ascending order.
        domids: Vec<Domid>,
    },
    /// A number is not valid for a domain or a frame.
    InvalidNumber(InvalidNumber),
    /// A writable mapping of `DOMID_XEN` was requested.
    XenIsReadOnly,
    /// A mapping of no frames was requested.
    Empty,
    /// A mapping of more frames than an address range can hold was requested.
    TooManyFrames {
        /// The number of frames.
        frames: usize,
    },
    /// Several frames of a resource were requested on a kernel whose pages are larger than a frame. The kernel would
    /// map a page for each frame, and write page-table entries past the mapping's end (`privcmd_ioctl_mmap_resource`).
    ResourceFrames {
        /// The number of frames.
        frames: usize,
        /// The kernel's page size in bytes.
        page_size: usize,
    },
    /// An access reaches past the end of a mapping or view.
    OutOfBounds {
        /// Where the access starts, in bytes.
        offset: usize,
        /// The length of the access in bytes.
        len: usize,
        /// The size of the mapping or view in bytes.
        size: usize,
    },
    /// The address of an atomic access is not a multiple of its size.
    Misaligned {
        /// Where the access starts, in bytes.
        offset: usize,
        /// The size of the access in bytes.
        align: usize,
    },
    /// A write to a read-only mapping.
    ReadOnly {
        /// Where the write starts, in bytes.
        offset: usize,
    },
    /// An access to a frame that is not mapped.
    Hole {
        /// Where the access starts, in bytes.
        offset: usize,
        /// The frame, and why it is not mapped.
        frame: FrameError,
    },
    /// Bytes could not be transferred between a mapping and a file descriptor.
    Transfer {
        /// The number of bytes that were transferred before the error.
        done: usize,
        /// The error of the system call: read(2), write(2), preadv(2) or pwritev(2).
        source: io::Error,
    },
}

impl Error {
    /// Returns the Linux errno (positive) that best describes the error, for a C interface.
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

    /// Returns the system's error, if that is the cause.
    fn io_error(&self) -> Option<&io::Error> {
        match self {
            Error::Open { source, .. }
            | Error::Restrict { source, .. }
            | Error::Reserve { source, .. }
            | Error::MapBatch { source, .. }
            | Error::Resource { source, .. }
            | Error::ResourceSize { source, .. }
            | Error::Hypercall { source, .. }
            | Error::DmOp { source, .. }
            | Error::EventChannel { source, .. }
            | Error::HypercallBuffer { source, .. }
            | Error::Transfer { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Hole { frame, .. } => Some(frame),
            // `Frames` and `InvalidNumber` show the text of the error that they hold, which is therefore not a source.
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

/// Keeps the error itself, and the kind that the standard library derives from its errno. An [`io::Error`] cannot hold
/// both an error and an errno; [`Error::errno`] returns the latter.
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
    use crate::types::Gfn;

    #[test]
    fn errors_can_be_sent_to_other_threads() {
        fn can_be_sent<T: std::error::Error + Send + Sync + 'static>(_: T) {}

        can_be_sent(Error::Empty);
        can_be_sent(InvalidNumber::Text);
        can_be_sent(FrameError::new(0, Gfn::MAX, libc::EINVAL));
    }

    #[test]
    fn device_that_is_missing_names_its_module() {
        for device in ["privcmd", "evtchn"] {
            let path = std::path::Path::new("/dev/xen").join(device);
            let text = Error::Open { path, source: io::Error::from_raw_os_error(libc::ENOENT) }.to_string();
            assert!(text.ends_with(&format!("the module xen-{device} is not loaded)")), "{text}");
        }
    }

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
    fn text_of_an_error_does_not_repeat_its_source() {
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
            Error::DmOp { name: "XEN_DMOP_inject_msi", domid, source: source() },
            Error::EventChannel { operation: "bind", port: Some(1), source: source() },
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
    fn errors_of_device_models_say_what_to_do() {
        let domid = Domid::new(5).unwrap();
        let source = io::Error::from_raw_os_error;
        let dm_op = |name, errno| Error::DmOp { name, domid, source: source(errno) };
        let channel = |operation, port, errno| Error::EventChannel { operation, port, source: source(errno) };
        let create = "XEN_DMOP_create_ioreq_server";
        let expected = [
            (dm_op(create, libc::ENOSPC), "XEN_DMOP_create_ioreq_server for domain 5 failed (the guest has 8 servers"),
            (dm_op(create, libc::EINVAL), "linux is older than 4.11"),
            (dm_op(create, libc::EPERM), "no privilege over the domain"),
            (dm_op("XEN_DMOP_inject_msi", libc::ERANGE), "the guest has not set this interrupt up"),
            (channel("bind", Some(7), libc::EINVAL), "cannot bind event channel 7 (the domain has not offered it"),
            (channel("offer", None, libc::EACCES), "cannot offer event channels (the handle is restricted)"),
            (Error::Restrict { domid, source: source(libc::EACCES) }, "already restricted"),
            (Error::NoInterruptLine { domid, kind: GuestKind::Pvh }, "domain 5 is a pvh guest"),
            (Error::NoInterruptLine { domid, kind: GuestKind::Hvm }, "Guest::with_kind"),
        ];
        for (error, part) in expected {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn transparent_error_has_the_text_of_the_error_it_holds_and_no_source() {
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
