//! What is not the same on each kind of host.

use xenmap::mock::Dom0;
use xenmap::{GuestKind, HostKind};

use super::{FRAME, Host, xen_dom0};

/// What becomes of a process that reads a frame that could not be mapped.
#[derive(Debug, PartialEq, Eq)]
pub enum HoleRead {
    Byte(u8),
    /// It dies of this signal.
    Signal(i32),
}

impl Host {
    /// What the host is, whatever the library believes.
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

    /// The two kinds of guests whose memory is managed in different ways; Arm has one only.
    pub fn guest_kinds(&self) -> &'static [GuestKind] {
        if self.is_arm() { &[GuestKind::Pvh] } else { &[GuestKind::Hvm, GuestKind::Pv] }
    }

    /// The kinds of guests that Xen tells apart.
    pub fn told_kinds(&self) -> &'static [GuestKind] {
        if self.is_arm() { &[GuestKind::Pvh] } else { &[GuestKind::Pv, GuestKind::Pvh, GuestKind::Hvm] }
    }

    /// As what kind of guest Xen tells of dom0 itself.
    pub fn own_kind(&self) -> GuestKind {
        match self.dom0() {
            Dom0::Pv => GuestKind::Pv,
            _ => GuestKind::Pvh,
        }
    }

    /// The errno of a frame of dom0 itself.
    pub fn own_frame_errno(&self) -> i32 {
        if self.dom0() == Dom0::Pvh { libc::EPERM } else { libc::ESRCH }
    }

    pub fn reads_a_hole_as(&self) -> HoleRead {
        match (self, self.dom0()) {
            (_, Dom0::Pv) => HoleRead::Signal(libc::SIGBUS),
            // On Xen the fault is none that Linux has a signal for; the mock says what was wrong.
            (Host::Mock(_), Dom0::Arm) => HoleRead::Signal(libc::SIGABRT),
            (Host::Xen(_), Dom0::Arm) => HoleRead::Signal(libc::SIGKILL),
            _ => HoleRead::Byte(0xFF),
        }
    }

    /// Whether Xen comes to an end with destroying a guest of which tens of thousands of frames are mapped. On Arm it
    /// begins with the first frame anew after each interrupt (`relinquish_memory` of xen/arch/arm/domain.c, 4.17), and
    /// an emulated processor is too slow to get past those that are mapped in between.
    pub fn destroys_what_is_mapped(&self) -> bool {
        matches!(self, Host::Mock(_)) || !self.is_arm()
    }

    /// What Xen says of a vcpu that a guest does not have.
    pub fn missing_vcpu_errno(&self) -> i32 {
        if self.is_arm() { libc::EINVAL } else { libc::ENOENT }
    }

    /// How many frames of a resource can be mapped at once, of two: a kernel takes them for so many of its pages.
    pub fn most_resource_frames(&self) -> usize {
        if self.page_size() == FRAME { 2 } else { 1 }
    }

    /// What becomes of frames of Xen's own that are mapped; `None` if some Xens refuse them and others do not.
    pub fn maps_frames_of_xen(&self) -> Option<bool> {
        match (self, self.dom0()) {
            (_, Dom0::Arm) => Some(false),
            (_, Dom0::Pv) | (Host::Mock(_), _) => Some(true),
            (Host::Xen(_), _) => None,
        }
    }

    /// Whether a search for RAM looks at the highest frames first.
    pub fn searches_from_the_top(&self) -> bool {
        !self.is_arm()
    }

    /// Among what Xen says that it can run.
    pub fn capability(&self) -> &'static str {
        if self.is_arm() { "xen-3.0-aarch64" } else { "xen-3.0-x86_64" }
    }
}
