//! Finds the domain that `--domain` names.

use xenmap::{Domid, Error, ForeignMemory};

use crate::Result;
use crate::domains::in_words;

/// The value of `--domain`.
pub(crate) enum Called<'a> {
    Number(Domid),
    Name(&'a str),
}

impl<'a> Called<'a> {
    /// Takes digits for a number, and everything else for a name; so is all that follows `name:`.
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
        let missing = || format!("no domain is called {name:?}; 'xenmap domains' lists them");
        match memory.domain_by_name(name) {
            Err(Error::AmbiguousName { domids, .. }) => Err(ambiguous(memory, name, &domids).into()),
            found => Ok(found?.ok_or_else(missing)?),
        }
    }
}

/// Returns the error for a name that several domains have.
fn ambiguous(memory: &ForeignMemory, name: &str, domids: &[Domid]) -> String {
    // One call for all domains: a call for each would wait for each name.
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
