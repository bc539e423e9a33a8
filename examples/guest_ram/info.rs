//! `info`: what is known of the guest and its host.

use std::io::Write;

use xenmap::{GuestKind, HostKind};

use crate::Result;
use crate::guest::Guest;
use crate::json;

pub(crate) fn info(guest: &Guest, as_json: bool, out: &mut impl Write) -> Result<()> {
    let Guest { memory, domid, kind } = guest;
    let guest_kind = match kind {
        GuestKind::Pv => "pv",
        GuestKind::Hvm => "hvm",
        _ => "unknown",
    };
    let host_kind = match memory.host_kind() {
        HostKind::Pv => "pv",
        HostKind::AutoTranslated => "auto-translated",
        _ => "unknown",
    };
    let pages_owned = memory.current_reservation(*domid)?;
    let highest_frame = memory.maximum_gpfn(*domid)?;
    let version = memory.xen_version()?.to_string();
    let capabilities = memory.xen_capabilities()?;

    if as_json {
        write!(out, r#"{{"domid":{domid},"guest_kind":"{guest_kind}","pages_owned":{pages_owned}"#)?;
        write!(out, r#","highest_frame":{highest_frame},"xen_version":{}"#, json::string(&version))?;
        write!(out, r#","xen_capabilities":{},"host_kind":"{host_kind}"}}"#, json::string(&capabilities))?;
        writeln!(out)?;
    } else {
        writeln!(out, "domid:            {domid}")?;
        writeln!(out, "guest kind:       {guest_kind}")?;
        writeln!(out, "pages owned:      {pages_owned}")?;
        writeln!(out, "highest frame:    {highest_frame:#x}")?;
        writeln!(out, "xen version:      {version}")?;
        writeln!(out, "xen capabilities: {capabilities}")?;
        writeln!(out, "host kind:        {host_kind}")?;
    }
    Ok(())
}
