//! What a command looks at: a host and a guest, real or simulated, or a dump.

use std::path::{Path, PathBuf};

use xenmap::mock::MockHost;
use xenmap::{Domid, Error, ForeignMemory, Guest};

use crate::Result;
use crate::args::{MockKind, Source};
use crate::called::Called;
use crate::chain::chain;
use crate::image::{self, Image, Making};
use crate::ram::Ram;

/// Opens the dump or the guest whose RAM a command accesses.
pub(crate) fn ram(source: &Source) -> Result<Ram> {
    match &source.dump {
        Some(dump) => Ok(Ram::Dump(Image::open(dump, making(source))?)),
        None => Ok(Ram::Guest(Host::open(source)?.guest_to_touch()?)),
    }
}

/// Opens the dump, if the command looks at one, without the bytes of its RAM.
pub(crate) fn dump_without_pages(source: &Source) -> Result<Option<Image>> {
    let open = |dump: &PathBuf| Image::open_without_pages(dump, making(source));
    source.dump.as_ref().map(open).transpose()
}

fn making(source: &Source) -> Making {
    Making::new(source.dump_raw, "--dump-raw")
}

/// The host, and the guest if one was named.
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

    pub(crate) fn guest(&self) -> Result<Guest> {
        let domid = self.domid.ok_or("no guest was named")?;
        Guest::open(&self.memory, domid).map_err(|e| match e.errno() {
            libc::ESRCH => format!("no such domain: {domid} (a domain with that name is name:{domid})").into(),
            _ => e.into(),
        })
    }

    /// Returns the guest for commands that access its memory.
    pub(crate) fn guest_to_touch(&self) -> Result<Guest> {
        let guest = self.guest()?;
        match guest.check_populated() {
            Err(Error::PopulateOnDemand { .. }) if self.pod_populate => {}
            Err(e @ Error::PopulateOnDemand { .. }) => {
                return Err(format!("{e}, or give --pod-populate to risk a crash of the guest").into());
            }
            checked => checked?,
        }
        Ok(guest)
    }
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
    // Nothing runs in it.
    domain.pause();
    Ok((host.open()?, domain.domid()))
}
