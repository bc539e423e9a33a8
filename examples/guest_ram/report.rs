//! What became of the frames of a guest.

use std::collections::BTreeMap;
use std::fmt;

use xenmap::{ForeignMapping, GuestKind};

/// Counts the frames of a dump.
pub(crate) struct Report {
    kind: GuestKind,
    owned: u64,
    dumped: u64,
    /// By reason.
    not_mapped: BTreeMap<String, u64>,
    lost: u64,
    untried: u64,
}

impl Report {
    pub(crate) fn new(kind: GuestKind, owned: u64) -> Report {
        Report { kind, owned, dumped: 0, not_mapped: BTreeMap::new(), lost: 0, untried: 0 }
    }

    pub(crate) fn add(&mut self, mapping: &ForeignMapping) {
        self.dumped += (mapping.frames() - mapping.failed().len()) as u64;
        for error in mapping.failed() {
            *self.not_mapped.entry(error.reason()).or_default() += 1;
            self.lost += u64::from(!is_hole(self.kind, error.errno));
        }
    }

    pub(crate) fn set_untried(&mut self, frames: u64) {
        self.untried = frames;
    }

    /// How many frames should be RAM and are not in the dump.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}

/// Whether a frame that fails so is none of the guest's. A PV guest's frames are found among those of the whole machine.
fn is_hole(kind: GuestKind, errno: i32) -> bool {
    match errno {
        libc::EINVAL => true,
        libc::EPERM | libc::EBUSY => kind == GuestKind::Pv,
        _ => false,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames dumped", self.dumped)?;
        if !self.not_mapped.is_empty() {
            let reasons = self.not_mapped.iter().map(|(reason, count)| format!("{reason} ({count})"));
            let reasons: Vec<String> = reasons.collect();
            write!(f, "; {} not mapped: {}", self.not_mapped.values().sum::<u64>(), reasons.join(", "))?;
        }
        if self.untried > 0 {
            write!(f, "; {} not tried, as the domain owns no more", self.untried)?;
        }
        if self.dumped < self.owned {
            write!(f, "\nthe domain owns {} frames; those missing are lost, or not in its memory map", self.owned)?;
        }
        Ok(())
    }
}
