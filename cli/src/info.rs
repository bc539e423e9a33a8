//! `info`: shows what Xen reports about a guest and its host.

use std::io::Write;

use serde::Serialize;
use xenmap::{Guest, HostKind};

use crate::Result;
use crate::domains::{Domain, mib, or_dash};
use crate::palette::palette;
use crate::printable::{printable, write_json};

#[derive(Serialize)]
struct Info {
    #[serde(flatten)]
    domain: Domain,
    /// Pages of a populate-on-demand guest that have no memory yet, and pages of memory set aside for them.
    pages_unpopulated: u64,
    pages_in_pool: u64,
    highest_frame: u64,
    xen_version: String,
    xen_capabilities: String,
    host_kind: &'static str,
    domctl_version: Option<u32>,
}

pub(crate) fn info(guest: &Guest, as_json: bool, out: &mut impl Write) -> Result<()> {
    let (memory, domid) = (guest.memory(), guest.domid());
    let host_kind = match memory.host_kind() {
        HostKind::Pv => "pv",
        HostKind::AutoTranslated => "auto-translated",
        _ => "unknown",
    };
    let on_demand = memory.populate_on_demand(domid)?;
    let info = Info {
        domain: memory.domain_info(domid)?.into(),
        pages_unpopulated: on_demand.unpopulated,
        pages_in_pool: on_demand.pool,
        highest_frame: memory.maximum_gpfn(domid)?,
        xen_version: memory.xen_version()?.to_string(),
        xen_capabilities: memory.xen_capabilities()?,
        host_kind,
        domctl_version: memory.domctl_version(),
    };
    if as_json {
        return Ok(write_json(out, &info)?);
    }
    let domain = info.domain;
    let toolstack = match info.domctl_version {
        Some(version) => format!("domctl version {version:#x}"),
        None => "unknown version; some values are missing".to_owned(),
    };
    let style = palette().name;
    let pages = |pages: Option<u64>| or_dash(pages.map(|pages| format!("{pages} ({} MiB)", mib(pages))));
    for (name, value) in [
        ("domid", domain.domid.to_string()),
        ("name", or_dash(domain.printable_name())),
        ("uuid", or_dash(domain.uuid)),
        ("guest kind", domain.kind.to_owned()),
        ("state", or_dash(domain.state)),
        ("vcpus", or_dash(domain.vcpus)),
        ("pages owned", pages(Some(domain.pages))),
        ("pages at most", pages(domain.max_pages)),
        ("pages paged out", or_dash(domain.pages_paged_out)),
        ("pages shared", or_dash(domain.pages_shared)),
        ("pages unpopulated", format!("{} (memory set aside: {})", info.pages_unpopulated, info.pages_in_pool)),
        ("highest frame", format!("{:#x}", info.highest_frame)),
        ("xen version", printable(&info.xen_version)),
        ("xen capabilities", printable(&info.xen_capabilities)),
        ("host kind", info.host_kind.to_owned()),
        ("toolstack interface", toolstack),
    ] {
        writeln!(out, "{style}{:21}{style:#}{value}", format!("{name}:"))?;
    }
    Ok(())
}
