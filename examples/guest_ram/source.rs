//! The guest to look at, on the real host or on a simulated one.

use std::fs::{self, File};
use std::path::Path;

use xenmap::mock::MockHost;
use xenmap::{Domid, ForeignMemory, Guest};

use crate::Result;
use crate::args::{MockKind, Source};
use crate::image;

const NO_GUEST: &str = "which guest? give --domain DOMAIN or --mock FILE, before the command";

/// A handle of the host, and the guest that the person has named, if any.
pub(crate) struct Host {
    pub(crate) memory: ForeignMemory,
    domid: Option<Domid>,
}

impl Host {
    pub(crate) fn open(source: &Source) -> Result<Host> {
        if let Some(file) = &source.mock {
            let simulated = simulate(file, source.mock_kind, source.mock_raw);
            let (memory, domid) = simulated.map_err(|e| format!("cannot use {}: {e}", file.display()))?;
            return Ok(Host { memory, domid: Some(domid) });
        }
        let (memory, domid) = match source.domain.as_deref() {
            None => (ForeignMemory::open()?, None),
            Some(number) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                let domid = number.parse()?;
                (ForeignMemory::open()?, Some(domid))
            }
            Some(name) => {
                let memory = ForeignMemory::open()?;
                let domid = memory.domain_by_name(name)?;
                (memory, Some(domid.ok_or_else(|| format!("no domain is called {name}; `domains` lists them"))?))
            }
        };
        Ok(Host { memory, domid })
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
            libc::ESRCH => format!("no such domain: {domid}").into(),
            _ => e.into(),
        })
    }
}

/// Whether the person has named a guest.
pub(crate) fn is_given(source: &Source) -> bool {
    source.mock.is_some() || source.domain.is_some()
}

fn simulate(path: &Path, kind: MockKind, is_raw: bool) -> Result<(ForeignMemory, Domid)> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err("not a regular file".into());
    }
    let file = File::open(path)?;
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
