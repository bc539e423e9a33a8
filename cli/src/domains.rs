//! `domains`: lists the domains of the host.

use std::io::Write;

use anstyle::Style;
use serde::Serialize;
use xenmap::{DomainInfo, DomainState, FRAME_SIZE, ForeignMemory, GuestKind};

use crate::Result;
use crate::palette::palette;
use crate::printable::{printable, write_json};

/// What Xen reports about a domain, as the tool prints it.
#[derive(Serialize)]
pub(crate) struct Domain {
    pub(crate) domid: u16,
    pub(crate) name: Option<String>,
    pub(crate) kind: &'static str,
    pub(crate) state: Option<&'static str>,
    pub(crate) pages: u64,
    pub(crate) max_pages: Option<u64>,
    pub(crate) pages_paged_out: Option<u64>,
    pub(crate) pages_shared: Option<u64>,
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
            pages_paged_out: info.paged_out,
            pages_shared: info.shared,
            vcpus: info.vcpus,
            uuid: info.handle.map(uuid),
        }
    }
}

/// Returns the name of a state.
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
    /// Returns the name with everything escaped that a terminal would obey.
    pub(crate) fn printable_name(&self) -> Option<String> {
        self.name.as_deref().map(printable)
    }
}

#[derive(Serialize)]
struct Domains {
    domains: Vec<Domain>,
}

pub(crate) fn domains(memory: &ForeignMemory, as_json: bool, out: &mut impl Write) -> Result<()> {
    let domains: Vec<Domain> = memory.domains()?.into_iter().map(Domain::from).collect();
    if as_json {
        return Ok(write_json(out, &Domains { domains })?);
    }
    let palette = palette();
    let heading = palette.heading;
    write!(out, "{heading}{:>5}  {:4}  {:8}  {:>8}  ", "id", "kind", "state", "MiB")?;
    writeln!(out, "{:>8}  {:>5}  name{heading:#}", "max MiB", "vcpus")?;
    for domain in domains {
        let max = or_dash(domain.max_pages.map(mib));
        let (state, vcpus) = (domain.state.unwrap_or("-"), or_dash(domain.vcpus));
        let style = match state {
            "running" => palette.good,
            "paused" => palette.warning,
            "shutdown" | "dying" => palette.bad,
            _ => Style::new(),
        };
        write!(out, "{:>5}  {:4}  {style}{state:8}{style:#}  {:>8}  ", domain.domid, domain.kind, mib(domain.pages))?;
        writeln!(out, "{max:>8}  {vcpus:>5}  {}", or_dash(domain.printable_name()))?;
    }
    Ok(())
}

/// Returns the value as text, or a dash.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Returns how many MiB these pages are, rounded down to a tenth.
pub(crate) fn mib(pages: u64) -> String {
    const PER_MIB: u128 = (1 << 20) / FRAME_SIZE as u128;
    // `max_pages` is u64::MAX for a domain without a limit.
    let tenths = u128::from(pages) * 10 / PER_MIB;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn uuid(handle: [u8; 16]) -> String {
    let hex: Vec<String> = handle.iter().map(|byte| format!("{byte:02x}")).collect();
    [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex[part].concat()).join("-")
}
