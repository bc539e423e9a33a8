//! Translates virtual addresses of guests.

use xenmap::{Error, PageTables, Result};

use super::{Guest, Host};

pub fn translate(host: &Host, guest: &Guest, tables: PageTables, address: u64) -> Result<u64> {
    let memory = host.open();
    xenmap::Guest::open(&memory, guest.domid()).unwrap().translate(&tables, address)
}

/// Returns why an address cannot be translated.
#[track_caller]
pub fn reason(result: Result<u64>) -> &'static str {
    match result {
        Err(Error::Translation { reason, .. }) => reason,
        other => panic!("{other:x?}"),
    }
}
