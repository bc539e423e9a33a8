//! Translates virtual addresses of guests.

use xenmap::{Error, PageTables, Result};

use super::{Guest, Host};

pub fn translate(host: &Host, guest: &Guest, tables: PageTables, address: u64) -> Result<u64> {
    let memory = host.open();
    translate_by(&xenmap::Guest::open(&memory, guest.domid()).unwrap(), &tables, address)
}

/// Translates an address. If it has no translation, checks that the others up to the error's `last` have none either.
pub fn translate_by(guest: &xenmap::Guest, tables: &PageTables, address: u64) -> Result<u64> {
    let translated = guest.translate(tables, address);
    if let Err(Error::Translation { last, reason: expected, .. }) = translated {
        assert!(last >= address, "{last:#x} is below {address:#x}");
        for other in [address + (last - address) / 2, last] {
            assert_eq!(reason(guest.translate(tables, other)), expected, "{tables:x?}: {other:#x}");
        }
    }
    translated
}

/// Returns the last address that has no translation, according to the error.
#[track_caller]
pub fn last(result: &Result<u64>) -> u64 {
    match result {
        Err(Error::Translation { last, .. }) => *last,
        other => panic!("{other:x?}"),
    }
}

/// Returns why an address cannot be translated.
#[track_caller]
pub fn reason(result: Result<u64>) -> &'static str {
    match result {
        Err(Error::Translation { reason, .. }) => reason,
        other => panic!("{other:x?}"),
    }
}
