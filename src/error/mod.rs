//! What can go wrong, and what the person can do about it.

mod frames;
mod text;

use std::io;
use std::path::PathBuf;

pub use frames::{FrameError, FrameErrors};

use crate::types::{Domid, InvalidNumber};

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
    /// Several frames of a resource were to be mapped by a kernel whose pages are larger than a frame: it would take
    /// them for so many pages, and write page-table entries past the mapping's end (`privcmd_ioctl_mmap_resource`).
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

/// Keeps the kind, which the standard library makes of an errno, and the error itself: an [`io::Error`] holds a number
/// of the system's or an error, not both. [`Error::errno`] has the number.
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
    fn errors_go_to_other_threads() {
        fn can_be_sent<T: std::error::Error + Send + Sync + 'static>(_: T) {}

        can_be_sent(Error::Empty);
        can_be_sent(InvalidNumber::Text);
        can_be_sent(FrameError::new(0, Gfn::MAX, libc::EINVAL));
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
