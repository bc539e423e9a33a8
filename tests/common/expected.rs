//! What differs between kinds of hosts.

use xenmap::mock::Dom0;
use xenmap::{GuestKind, HostKind};

use super::{FRAME, Host, xen_dom0};

/// What a process gets that reads a frame which could not be mapped.
#[derive(Debug, PartialEq, Eq)]
pub enum HoleRead {
    Byte(u8),
    /// It is killed by this signal.
    Signal(i32),
}

impl Host {
    /// Returns the kind of host, independent of what the library detects.
    pub fn dom0(&self) -> Dom0 {
        match (self, xen_dom0().as_deref()) {
            (Host::Mock(host), _) => host.dom0(),
            (Host::Xen(_), Some("pv")) => Dom0::Pv,
            (Host::Xen(_), Some("pvh")) => Dom0::Pvh,
            (Host::Xen(_), Some("arm64")) => Dom0::Arm,
            (Host::Xen(_), other) => panic!("XENMAP_TEST_XEN={other:?}"),
        }
    }

    pub fn kind(&self) -> HostKind {
        if self.is_pv() { HostKind::Pv } else { HostKind::AutoTranslated }
    }

    pub fn is_pv(&self) -> bool {
        self.dom0() == Dom0::Pv
    }

    pub fn is_arm(&self) -> bool {
        self.dom0() == Dom0::Arm
    }

    /// Returns one kind of guest for each way in which Xen manages memory: two on x86, one on Arm.
    pub fn guest_kinds(&self) -> &'static [GuestKind] {
        if self.is_arm() { &[GuestKind::Pvh] } else { &[GuestKind::Hvm, GuestKind::Pv] }
    }

    /// Returns the kinds of guests that Xen distinguishes.
    pub fn distinguished_kinds(&self) -> &'static [GuestKind] {
        if self.is_arm() { &[GuestKind::Pvh] } else { &[GuestKind::Pv, GuestKind::Pvh, GuestKind::Hvm] }
    }

    /// Returns the kind that Xen reports for dom0 itself.
    pub fn own_kind(&self) -> GuestKind {
        match self.dom0() {
            Dom0::Pv => GuestKind::Pv,
            _ => GuestKind::Pvh,
        }
    }

    /// Returns the errno of mapping a frame of dom0 itself.
    pub fn own_frame_errno(&self) -> i32 {
        if self.dom0() == Dom0::Pvh { libc::EPERM } else { libc::ESRCH }
    }

    pub fn reads_a_hole_as(&self) -> HoleRead {
        match (self, self.dom0()) {
            (_, Dom0::Pv) => HoleRead::Signal(libc::SIGBUS),
            // On Xen, Linux has no signal for this fault and kills the process; the mock reports the misuse and aborts.
            (Host::Mock(_), Dom0::Arm) => HoleRead::Signal(libc::SIGABRT),
            (Host::Xen(_), Dom0::Arm) => HoleRead::Signal(libc::SIGKILL),
            _ => HoleRead::Byte(0xFF),
        }
    }

    /// Returns whether Xen finishes destroying a guest that has tens of thousands of mapped frames. On Arm, it restarts
    /// at the first frame after each interrupt (`relinquish_memory` in xen/arch/arm/domain.c, 4.17), and an emulated
    /// processor is too slow to get past the mapped frames in between.
    pub fn destroys_what_is_mapped(&self) -> bool {
        matches!(self, Host::Mock(_)) || !self.is_arm()
    }

    /// Returns the errno for a vcpu that a guest does not have.
    pub fn missing_vcpu_errno(&self) -> i32 {
        if self.is_arm() { libc::EINVAL } else { libc::ENOENT }
    }

    /// Returns how many of two frames of a resource can be mapped at once. The kernel treats each as one of its own
    /// pages.
    pub fn most_resource_frames(&self) -> usize {
        if self.page_size() == FRAME { 2 } else { 1 }
    }

    /// Returns whether Xen maps its own frames for us; `None` if that depends on the Xen.
    pub fn maps_frames_of_xen(&self) -> Option<bool> {
        match (self, self.dom0()) {
            (_, Dom0::Arm) => Some(false),
            (_, Dom0::Pv) | (Host::Mock(_), _) => Some(true),
            (Host::Xen(_), _) => None,
        }
    }

    /// Returns whether a search for RAM starts at the highest frames.
    pub fn searches_from_the_top(&self) -> bool {
        !self.is_arm()
    }

    /// Returns one of the capabilities that Xen must report.
    pub fn capability(&self) -> &'static str {
        if self.is_arm() { "xen-3.0-aarch64" } else { "xen-3.0-x86_64" }
    }
}
