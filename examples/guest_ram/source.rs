//! The guest to look at, on the real host or on a simulated one.

use std::fs::{self, File};
use std::path::Path;

use xenmap::mock::MockHost;
use xenmap::{Domid, Error, ForeignMemory, Guest};

use crate::Result;
use crate::args::{MockKind, Source};
use crate::domains::in_words;

const NO_GUEST: &str = "which guest? give --domain DOMAIN or --mock FILE, before the command";

/// What the person calls a guest.
pub(crate) enum Called<'a> {
    Number(Domid),
    Name(&'a str),
}

impl<'a> Called<'a> {
    /// Digits are a number, anything else is a name, and so is whatever follows `name:`.
    pub(crate) fn from_argument(argument: &'a str) -> Result<Called<'a>> {
        let is_number = !argument.is_empty() && argument.bytes().all(|byte| byte.is_ascii_digit());
        Ok(match argument.strip_prefix("name:") {
            Some(name) => Called::Name(name),
            None if is_number => Called::Number(argument.parse()?),
            None => Called::Name(argument),
        })
    }

    pub(crate) fn domid(&self, memory: &ForeignMemory) -> Result<Domid> {
        let name = match *self {
            Called::Number(domid) => return Ok(domid),
            Called::Name(name) => name,
        };
        let missing = || format!("no domain is called {name:?}; `domains` lists them");
        match memory.domain_by_name(name) {
            Err(Error::AmbiguousName { domids, .. }) => Err(ambiguous(memory, name, &domids).into()),
            found => Ok(found?.ok_or_else(missing)?),
        }
    }
}

/// What to tell the person who has given the name of several domains.
fn ambiguous(memory: &ForeignMemory, name: &str, domids: &[Domid]) -> String {
    // At once, since names are waited for.
    let domains = memory.domains().unwrap_or_default();
    let state = |domid| domains.iter().find(|info| info.domid == domid)?.state;
    let described = domids.iter().map(|&domid| match state(domid) {
        Some(state) => format!("{domid} ({})", in_words(state)),
        None => domid.to_string(),
    });
    let described: Vec<String> = described.collect();
    let (count, described) = (domids.len(), described.join(", "));
    format!("{count} domains are called {name:?}: {described}; choose one by its number")
}

/// A handle of the host, and the guest that the person has named, if any.
pub(crate) struct Host {
    pub(crate) memory: ForeignMemory,
    domid: Option<Domid>,
    pod_populate: bool,
}

impl Host {
    pub(crate) fn open(source: &Source) -> Result<Host> {
        if let Some(file) = &source.mock {
            let simulated = simulate(file, source.mock_kind);
            let (memory, domid) = simulated.map_err(|e| format!("cannot use {}: {e}", file.display()))?;
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

    pub(crate) fn guest(&self) -> Result<Guest<'_>> {
        let domid = self.domid.ok_or(NO_GUEST)?;
        Guest::open(&self.memory, domid).map_err(|e| match e.errno() {
            libc::ESRCH => format!("no such domain: {domid} (for a domain of that name give name:{domid})").into(),
            _ => e.into(),
        })
    }

    /// The guest, for what touches its memory.
    pub(crate) fn guest_to_touch(&self) -> Result<Guest<'_>> {
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

fn simulate(file: &Path, kind: MockKind) -> Result<(ForeignMemory, Domid)> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    if !fs::metadata(file)?.is_file() {
        return Err("not a regular file".into());
    }
    let host = MockHost::new();
    let domain = match kind {
        MockKind::Pvh => host.create_domain_from_file(&File::open(file)?)?,
        MockKind::Pv => host.create_pv_domain_from_file(&File::open(file)?)?,
    };
    // Nothing in it runs, as in a guest that is paused.
    domain.pause();
    Ok((host.open()?, domain.domid()))
}
