//! The guest to look at, on the real host or on a simulated one.

use std::path::Path;

use xenmap::mock::MockHost;
use xenmap::{Domid, Error, ForeignMemory, Guest};

use crate::Result;
use crate::args::{MockKind, Source};
use crate::called::Called;
use crate::chain::chain;
use crate::image;

const NO_GUEST: &str = "which guest? give --domain DOMAIN or --mock FILE, before the command";

/// A handle of the host, and the guest that the person has named, if any.
pub(crate) struct Host {
    pub(crate) memory: ForeignMemory,
    domid: Option<Domid>,
    pod_populate: bool,
}

impl Host {
    pub(crate) fn open(source: &Source) -> Result<Host> {
        if let Some(file) = &source.mock {
            let simulated = simulate(file, source.mock_kind, source.mock_raw);
            let (memory, domid) = simulated.map_err(|e| format!("cannot use {}: {}", file.display(), chain(&*e)))?;
            return Ok(Host { memory, domid: Some(domid), pod_populate: source.pod_populate });
        }
        let called = source.domain.as_deref().map(Called::from_argument).transpose()?;
        let memory = ForeignMemory::open()?;
        let domid = called.map(|called| called.domid(&memory)).transpose()?;
        Ok(Host { memory, domid, pod_populate: source.pod_populate })
    }

    /// The same, for what is done with a guest.
    pub(crate) fn open_for_guest(source: &Source) -> Result<Host> {
        if !is_given(source) {
            return Err(NO_GUEST.into());
        }
        Host::open(source)
    }

    pub(crate) fn guest(&self) -> Result<Guest> {
        let domid = self.domid.ok_or(NO_GUEST)?;
        Guest::open(&self.memory, domid).map_err(|e| match e.errno() {
            libc::ESRCH => format!("no such domain: {domid} (for a domain of that name give name:{domid})").into(),
            _ => e.into(),
        })
    }

    /// The guest, for what touches its memory.
    pub(crate) fn guest_to_touch(&self) -> Result<Guest> {
        let guest = self.guest()?;
        match guest.check_populated() {
            Err(Error::PopulateOnDemand { .. }) if self.pod_populate => {}
            Err(e @ Error::PopulateOnDemand { .. }) => {
                return Err(format!("{e}, or give --pod-populate if the guest may be lost").into());
            }
            checked => checked?,
        }
        Ok(guest)
    }
}

/// Whether the person has named a guest.
pub(crate) fn is_given(source: &Source) -> bool {
    source.mock.is_some() || source.domain.is_some()
}

fn simulate(path: &Path, kind: MockKind, is_raw: bool) -> Result<(ForeignMemory, Domid)> {
    let file = image::open_file(path)?;
    if !is_raw {
        image::check_raw(&file)?;
    }
    let host = MockHost::new();
    let domain = match kind {
        MockKind::Pvh => host.create_domain_from_file(&file)?,
        MockKind::Pv => host.create_pv_domain_from_file(&file)?,
    };
    // Nothing in it runs, as in a guest that is paused.
    domain.pause();
    Ok((host.open()?, domain.domid()))
}
