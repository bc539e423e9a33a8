//! Frames that could not be mapped.

use std::fmt;
use std::io;

use crate::types::{Domid, Gfn};

/// A frame that could not be mapped. [`FrameErrors`] shows an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FrameError {
    /// The frame's position in the batch, from 0.
    pub index: usize,
    /// The frame's number.
    pub gfn: Gfn,
    /// The reason, as a Linux errno (positive).
    pub errno: i32,
}

impl FrameError {
    /// Makes an error from a frame's position in its batch, its number, and a Linux errno (positive).
    #[must_use]
    pub const fn new(index: usize, gfn: Gfn, errno: i32) -> FrameError {
        FrameError { index, gfn, errno }
    }

    /// Returns what the errno means for a frame, as a text.
    #[must_use]
    pub fn reason(&self) -> String {
        reason(self.errno)
    }
}

/// Returns what an errno means for a frame. Linux's privcmd.c has it from Xen's `mod_l1_entry` (PV) and
/// `p2m_add_foreign` (auto-translated).
pub(super) fn reason(errno: i32) -> String {
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
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{Error, Gfn, GuestKind, Protection};
///
/// let host = MockHost::new();
/// let guest = host.create_domain(GuestKind::Hvm, 4); // frames 0 to 3
/// let gfns = [Gfn::new(3)?, Gfn::new(4)?];
///
/// match host.open()?.map_foreign_batch(guest.domid(), Protection::ReadOnly, &gfns) {
///     Err(Error::Frames(errors)) => {
///         assert_eq!(errors.requested(), 2);
///         let frame = errors.failed()[0];
///         assert_eq!((frame.index, frame.gfn), (1, gfns[1]));
///         assert_eq!(frame.reason(), "no RAM there");
///     }
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrameErrors {
    pub(crate) domid: Domid,
    pub(crate) requested: usize,
    pub(crate) failed: Vec<FrameError>,
}

impl FrameErrors {
    /// Returns the domain whose frames were to be mapped.
    #[must_use]
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// Returns the number of frames in the batch.
    #[must_use]
    pub fn requested(&self) -> usize {
        self.requested
    }

    /// Returns the frames that failed: at least one.
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
