//! The guest to look at, on the real host or on a simulated one.

use std::fs::{self, File};
use std::path::Path;

use xenmap::mock::MockHost;
use xenmap::{Domid, ForeignMemory, GuestKind};

use crate::Result;
use crate::args::Source;

pub(crate) struct Guest {
    pub(crate) memory: ForeignMemory,
    pub(crate) domid: Domid,
    pub(crate) kind: GuestKind,
}

impl Guest {
    pub(crate) fn open(source: &Source) -> Result<Guest> {
        let (memory, domid) = match (&source.mock, source.domain) {
            (Some(file), _) => simulate(file).map_err(|e| format!("cannot use {}: {e}", file.display()))?,
            (None, Some(domid)) => (ForeignMemory::open()?, domid),
            (None, None) => return Err("give --mock FILE or --domain DOMID".into()),
        };
        // The first thing that is asked about the domain, so it tells whether there is one.
        match memory.guest_kind(domid) {
            Ok(kind) => Ok(Guest { memory, domid, kind }),
            Err(e) if e.errno() == libc::ESRCH => Err(format!("no such domain: {domid}").into()),
            Err(e) => Err(e.into()),
        }
    }
}

fn simulate(file: &Path) -> Result<(ForeignMemory, Domid)> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    if !fs::metadata(file)?.is_file() {
        return Err("not a regular file".into());
    }
    let host = MockHost::new();
    let domain = host.create_domain_from_file(&File::open(file)?)?;
    Ok((host.open()?, domain.domid()))
}
