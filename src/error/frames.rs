//! Frames that could not be mapped.

use std::fmt;
use std::io;

use crate::types::{Domid, Gfn};

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
