//! Lists the domains, with what is known about each.

#![expect(unsafe_code, reason = "makes hypercalls")]

use std::mem::offset_of;

use super::ForeignMemory;
use super::domctl::{ARCH_CONFIG_MOVED, ARGUMENTS, Arguments, u32_at, u64_at};
use crate::abi::{self, DomctlDomainInfo};
use crate::error::{Error, Result};
use crate::types::{Architecture, Domid, Gfn, GuestKind};

/// The state of a domain. [`DomainInfo`] shows an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DomainState {
    /// The domain runs, or waits for a processor or an event.
    Running,
    /// The toolstack has paused the domain.
    Paused,
    /// The domain's system has shut down, and the domain waits to be destroyed.
    Shutdown,
    /// The domain has been destroyed, but foreign mappings keep some of its frames. Xen does not report this state
    /// while it is still freeing the domain's frames.
    Dying,
}

/// What is known about a domain.
///
/// Fields that only the toolstack's interface reports are `None` if that is unknown ([`ForeignMemory::domctl_version`]).
///
/// ```
/// use xenmap::mock::MockHost;
/// use xenmap::{DomainState, GuestKind};
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 16);
/// domain.set_name("web");
///
/// let info = host.open()?.domain_info(domain.domid())?;
/// assert_eq!((info.kind, info.pages), (GuestKind::Pvh, 16));
/// assert_eq!(info.state, Some(DomainState::Running));
/// assert_eq!(info.name.as_deref(), Some("web"));
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DomainInfo {
    /// The domain's number.
    pub domid: Domid,
    /// How the domain's memory is managed.
    pub kind: GuestKind,
    /// The domain's state.
    pub state: Option<DomainState>,
    /// The number of frames that the domain owns.
    pub pages: u64,
    /// The number of frames that the domain may own.
    pub max_pages: Option<u64>,
    /// The number of frames that are paged out.
    pub paged_out: Option<u64>,
    /// The number of frames that the domain shares with others. Xen does not count them as its own.
    pub shared: Option<u64>,
    /// The number of vcpus that are online.
    pub vcpus: Option<u32>,
    /// The domain's UUID.
    pub handle: Option<[u8; 16]>,
    /// The domain's name, if xenstore can be reached and has one. It may contain any characters.
    pub name: Option<String>,
    /// The frame that Xen shares with the domain, if it is a PV guest.
    pub(crate) shared_info: Option<Gfn>,
}

impl ForeignMemory {
    /// Returns what is known about a domain. Waits up to a second for its name.
    ///
    /// [`DomainInfo`] shows an example.
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`], with ESRCH if there is no such domain.
    #[doc(alias = "XEN_DOMCTL_getdomaininfo")]
    pub fn domain_info(&self, domid: Domid) -> Result<DomainInfo> {
        let mut info = self.nameless_domain_info(domid)?;
        self.add_names(std::slice::from_mut(&mut info));
        Ok(info)
    }

    /// Returns all domains, in ascending order of their numbers, including dying ones and the one that this program
    /// runs in.
    ///
    /// If neither of the toolstack's interfaces is known, each number is tried, which takes about a second. Waits up to
    /// another second for all names; those that xenstored has not sent by then are `None`.
    ///
    /// ```
    /// use xenmap::GuestKind;
    ///
    /// let host = xenmap::mock::MockHost::new();
    /// let created = host.create_domain(GuestKind::Pv, 16);
    /// let domains = host.open()?.domains()?;
    /// assert!(domains.iter().any(|info| info.domid == created.domid()));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Hypercall`].
    #[doc(alias = "XEN_SYSCTL_getdomaininfolist")]
    pub fn domains(&self) -> Result<Vec<DomainInfo>> {
        let mut domains = Vec::new();
        if let Some(version) = self.sysctl_version() {
            let mut first = 0;
            while let Some(info) = self.next_domain(first, version)? {
                first = info.domid.get() + 1;
                domains.push(info);
            }
        } else {
            for domid in (0..abi::FIRST_RESERVED_DOMID).filter_map(|id| Domid::new(id).ok()) {
                match self.nameless_domain_info(domid) {
                    Ok(info) => domains.push(info),
                    Err(e) if e.errno() == libc::ESRCH => {}
                    Err(e) => return Err(e),
                }
            }
        }
        self.add_names(&mut domains);
        Ok(domains)
    }

    /// Returns the domain with a name, if xenstore can be reached and answers in time (see [`ForeignMemory::domains`]).
    /// A dying domain counts only if no living one has the name.
    ///
    /// ```
    /// let host = xenmap::mock::MockHost::new();
    /// let domain = host.create_domain(xenmap::GuestKind::Pv, 16);
    /// domain.set_name("web");
    /// assert_eq!(host.open()?.domain_by_name("web")?, Some(domain.domid()));
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::AmbiguousName`] if several domains have the name; else those of [`ForeignMemory::domains`].
    pub fn domain_by_name(&self, name: &str) -> Result<Option<Domid>> {
        let mut found = self.domains()?;
        found.retain(|info| info.name.as_deref() == Some(name));
        let lives = |info: &DomainInfo| info.state != Some(DomainState::Dying);
        if found.iter().any(lives) {
            found.retain(lives);
        }
        match found.as_slice() {
            [] => Ok(None),
            [info] => Ok(Some(info.domid)),
            several => Err(Error::AmbiguousName {
                name: name.to_owned(),
                domids: several.iter().map(|info| info.domid).collect(),
            }),
        }
    }

    /// Returns the frame that Xen shares with a PV guest (`shared_info`).
    pub(crate) fn shared_info_frame(&self, domid: Domid) -> Result<Gfn> {
        let missing = Error::P2m { domid, reason: "xen does not say where its shared_info is" };
        self.get_domain_info(domid)?.shared_info.ok_or(missing)
    }

    fn nameless_domain_info(&self, domid: Domid) -> Result<DomainInfo> {
        match self.domctl_version() {
            Some(_) => self.get_domain_info(domid),
            None => self.stable_domain_info(domid),
        }
    }

    /// Returns what the toolstack's interface reports about a domain (`XEN_DOMCTL_getdomaininfo`).
    pub(crate) fn get_domain_info(&self, domid: Domid) -> Result<DomainInfo> {
        let (name, command) = ("XEN_DOMCTL_getdomaininfo", abi::XEN_DOMCTL_GETDOMAININFO);
        let missing =
            || Error::Hypercall { name, domid: Some(domid), source: std::io::Error::from_raw_os_error(libc::ESRCH) };
        if domid == Domid::XEN {
            // It owns frames, but is not a domain; up to 4.17, Xen returns EINVAL.
            return Err(missing());
        }
        // SAFETY: its arguments hold no address.
        let answer = unsafe { self.domctl(name, command, domid, [0; ARGUMENTS]) }?;
        let info = DomainInfo::from_answer(&answer, self.domctl_version().unwrap_or_default(), self.architecture())?;
        // Up to 4.17, if there is no such domain, Xen returns the next one.
        if info.domid == domid { Ok(info) } else { Err(missing()) }
    }

    /// Returns the domain with the lowest number that is at least `first` (`XEN_SYSCTL_getdomaininfolist`).
    fn next_domain(&self, first: u16, version: u32) -> Result<Option<DomainInfo>> {
        // One at a time, so that the size of an entry, which differs between releases, does not matter. An entry is
        // also the argument of a domctl, so it is not larger than `ARGUMENTS`.
        let entry = self.hypercall_buffer(ARGUMENTS)?;
        let mut arguments = [0; ARGUMENTS];
        // struct xen_sysctl_getdomaininfolist: first_domain, max_domains, buffer, num_domains.
        arguments[..2].copy_from_slice(&first.to_ne_bytes());
        arguments[4..8].copy_from_slice(&1_u32.to_ne_bytes());
        arguments[8..16].copy_from_slice(&entry.address().to_ne_bytes());
        let (name, command) = ("XEN_SYSCTL_getdomaininfolist", abi::XEN_SYSCTL_GETDOMAININFOLIST);
        // SAFETY: it writes one entry, for which the buffer is large enough.
        let answer = unsafe { self.sysctl(name, command, arguments) }?;
        if u32_at(&answer, 16) == 0 {
            return Ok(None);
        }
        let mut info = [0; ARGUMENTS];
        info.copy_from_slice(entry.bytes());
        DomainInfo::from_answer(&info, version, self.architecture()).map(Some)
    }

    /// Returns what can be found out about a domain by calls that are the same in every release of Xen.
    fn stable_domain_info(&self, domid: Domid) -> Result<DomainInfo> {
        Ok(DomainInfo {
            domid,
            pages: self.current_reservation(domid)?,
            kind: self.guest_kind_by_param(domid)?,
            max_pages: Some(self.maximum_reservation(domid)?),
            state: None,
            paged_out: None,
            shared: None,
            vcpus: None,
            handle: None,
            name: None,
            shared_info: None,
        })
    }

    fn add_names(&self, domains: &mut [DomainInfo]) {
        let domids: Vec<Domid> = domains.iter().map(|info| info.domid).collect();
        for (info, name) in domains.iter_mut().zip(self.backend().domain_names(&domids)) {
            info.name = name;
        }
    }
}

impl DomainInfo {
    /// Decodes a `struct xen_domctl_getdomaininfo` of this version of the interface.
    fn from_answer(answer: &Arguments, version: u32, architecture: Architecture) -> Result<DomainInfo> {
        let word = |offset| u64_at(answer, offset);
        let flags = u32_at(answer, offset_of!(DomctlDomainInfo, flags));
        let arch_config = if version >= ARCH_CONFIG_MOVED {
            offset_of!(DomctlDomainInfo, arch_config)
        } else {
            offset_of!(DomctlDomainInfo, gpaddr_bits)
        };
        let kind = match architecture {
            Architecture::X86 => kind(flags, u32_at(answer, arch_config)),
            Architecture::Arm64 => GuestKind::Pvh,
        };
        let shared_info = Gfn::new(word(offset_of!(DomctlDomainInfo, shared_info_frame))).ok();
        Ok(DomainInfo {
            domid: Domid::new(u16::from_ne_bytes([answer[0], answer[1]]))?,
            kind,
            state: Some(state(flags)),
            pages: word(offset_of!(DomctlDomainInfo, tot_pages)),
            max_pages: Some(word(offset_of!(DomctlDomainInfo, max_pages))),
            paged_out: Some(word(offset_of!(DomctlDomainInfo, paged_pages))),
            shared: Some(word(offset_of!(DomctlDomainInfo, shr_pages))),
            vcpus: Some(u32_at(answer, offset_of!(DomctlDomainInfo, nr_online_vcpus))),
            handle: answer[offset_of!(DomctlDomainInfo, handle)..].first_chunk().copied(),
            name: None,
            shared_info: shared_info.filter(|_| kind == GuestKind::Pv),
        })
    }
}

fn state(flags: u32) -> DomainState {
    match flags {
        flags if flags & abi::XEN_DOMINF_DYING != 0 => DomainState::Dying,
        flags if flags & abi::XEN_DOMINF_SHUTDOWN != 0 => DomainState::Shutdown,
        flags if flags & abi::XEN_DOMINF_PAUSED != 0 => DomainState::Paused,
        _ => DomainState::Running,
    }
}

/// Returns the kind of an x86 guest. Xen gives it either all emulated devices (HVM) or none except interrupt
/// controllers (PVH), so checking one is enough.
fn kind(flags: u32, emulated: u32) -> GuestKind {
    let has_timer = emulated & (1 << abi::XEN_X86_EMU_PIT_BIT) != 0;
    match flags & abi::XEN_DOMINF_HVM_GUEST {
        0 => GuestKind::Pv,
        _ if has_timer => GuestKind::Hvm,
        _ => GuestKind::Pvh,
    }
}
