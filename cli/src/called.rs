//! Which domain the person means.

use xenmap::{Domid, Error, ForeignMemory};

use crate::Result;
use crate::domains::in_words;

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
