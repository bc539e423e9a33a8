//! `domains`: which there are.

use std::io::Write;

use serde::Serialize;
use xenmap::{DomainInfo, DomainState, FRAME_SIZE, ForeignMemory, GuestKind};

use crate::Result;
use crate::palette::palette;
use crate::printable::{self, printable};

/// What is known of a domain, in the words of this tool.
#[derive(Serialize)]
pub(crate) struct Domain {
    pub(crate) domid: u16,
    pub(crate) name: Option<String>,
    pub(crate) kind: &'static str,
    pub(crate) state: Option<&'static str>,
    pub(crate) pages: u64,
    pub(crate) max_pages: Option<u64>,
    pub(crate) paged_out: Option<u64>,
    pub(crate) shared: Option<u64>,
    pub(crate) vcpus: Option<u32>,
    pub(crate) uuid: Option<String>,
}

impl From<DomainInfo> for Domain {
    fn from(info: DomainInfo) -> Domain {
        let kind = match info.kind {
            GuestKind::Pv => "pv",
            GuestKind::Hvm => "hvm",
            GuestKind::Pvh => "pvh",
            _ => "unknown",
        };
        Domain {
            domid: info.domid.get(),
            name: info.name,
            kind,
            state: info.state.map(in_words),
            pages: info.pages,
            max_pages: info.max_pages,
            paged_out: info.paged_out,
            shared: info.shared,
            vcpus: info.vcpus,
            uuid: info.handle.map(uuid),
        }
    }
}

/// What a domain is doing.
pub(crate) fn in_words(state: DomainState) -> &'static str {
    match state {
        DomainState::Running => "running",
        DomainState::Paused => "paused",
        DomainState::Shutdown => "shutdown",
        DomainState::Dying => "dying",
        _ => "unknown",
    }
}

impl Domain {
    /// Its name for a terminal: it may have anything in it.
    pub(crate) fn printable_name(&self) -> Option<String> {
        self.name.as_deref().map(printable)
    }
}

pub(crate) fn domains(memory: &ForeignMemory, as_json: bool, out: &mut impl Write) -> Result<()> {
    let domains: Vec<Domain> = memory.domains()?.into_iter().map(Domain::from).collect();
    if as_json {
        writeln!(out, "{}", printable::json(&domains)?)?;
        return Ok(());
    }
    let heading = palette().heading;
    write!(out, "{heading}{:>5}  {:4}  {:8}  {:>8}  ", "id", "kind", "state", "MiB")?;
    writeln!(out, "{:>8}  {:>5}  name{heading:#}", "max MiB", "vcpus")?;
    for domain in domains {
        let max = or_dash(domain.max_pages.map(mib));
        let (state, vcpus) = (domain.state.unwrap_or("-"), or_dash(domain.vcpus));
        write!(out, "{:>5}  {:4}  {state:8}  {:>8}  ", domain.domid, domain.kind, mib(domain.pages))?;
        writeln!(out, "{max:>8}  {vcpus:>5}  {}", or_dash(domain.printable_name()))?;
    }
    Ok(())
}

/// What is not known is a dash.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// How much memory so many pages are, to the next tenth.
pub(crate) fn mib(pages: u64) -> String {
    const PER_MIB: u128 = (1 << 20) / FRAME_SIZE as u128;
    // Xen says that a domain may own any number of pages with all bits set.
    let tenths = u128::from(pages) * 10 / PER_MIB;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn uuid(handle: [u8; 16]) -> String {
    let hex: Vec<String> = handle.iter().map(|byte| format!("{byte:02x}")).collect();
    [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex[part].concat()).join("-")
}
