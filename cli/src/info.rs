//! `info`: shows what Xen reports about a guest and its host, or what a dump says.

use std::io::Write;

use serde::Serialize;
use xenmap::{Guest, HostKind};

use crate::Result;
use crate::domains::{Domain, mib, or_dash};
use crate::image::{Architecture, Image};
use crate::kernel;
use crate::palette::palette;
use crate::printable::{printable, write_json};
use crate::window::frames;

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

#[derive(Serialize)]
struct DumpInfo {
    format: &'static str,
    /// Pages of RAM of which the dump has at least a part.
    pages: u64,
    highest_frame: Option<u64>,
    architecture: Option<&'static str>,
    /// Vcpus whose registers are in the dump.
    vcpus: usize,
    /// The release of the Linux kernel whose note is in the dump.
    kernel: Option<String>,
}

/// Prints what a dump says about itself; its RAM is not searched.
pub(crate) fn dump_info(image: &Image, as_json: bool, out: &mut impl Write) -> Result<()> {
    let pages = image.parts().iter().map(|(pfns, _)| pfns.end - pfns.start).sum();
    let release = image.machine.vmcoreinfo.as_deref().and_then(kernel::release);
    let info = DumpInfo {
        format: image.format,
        pages,
        highest_frame: image.extents().last().map(|last| frames(last).end - 1),
        architecture: image.machine.architecture.map(|architecture| match architecture {
            Architecture::X86 => "x86",
            Architecture::X86_64 => "x86_64",
            Architecture::Arm64 => "arm64",
        }),
        vcpus: image.machine.vcpus.len(),
        kernel: release.map(str::to_owned),
    };
    if as_json {
        return Ok(write_json(out, &info)?);
    }
    let style = palette().name;
    for (name, value) in [
        ("format", info.format.to_owned()),
        ("pages", format!("{pages} ({} MiB)", mib(pages))),
        ("highest frame", or_dash(info.highest_frame.map(|frame| format!("{frame:#x}")))),
        ("architecture", or_dash(info.architecture)),
        ("vcpus", info.vcpus.to_string()),
        ("kernel", or_dash(info.kernel.as_deref().map(printable))),
    ] {
        writeln!(out, "{style}{:21}{style:#}{value}", format!("{name}:"))?;
    }
    Ok(())
}
