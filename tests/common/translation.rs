//! Asking for the physical address of a virtual one.

use xenmap::{Error, PageTables, Result};

use super::{Guest, Host};

pub fn translate(host: &Host, guest: &Guest, tables: PageTables, address: u64) -> Result<u64> {
    let memory = host.open();
    xenmap::Guest::open(&memory, guest.domid()).unwrap().translate(&tables, address)
}

/// What is wrong with an address.
#[track_caller]
pub fn reason(result: Result<u64>) -> &'static str {
    match result {
        Err(Error::Translation { reason, .. }) => reason,
        other => panic!("{other:x?}"),
    }
}
