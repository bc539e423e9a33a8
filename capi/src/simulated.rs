//! A simulated host for tests of C programs, chosen by the environment variable `XENMAP_MOCK`.
//!
//! `pv` and `auto` are the kinds of dom0. The host has domain 1, an HVM guest, in whose frames 0 to 63 the first 8
//! bytes are the frame's number, and a grant table of two frames, of which frame i begins with [`GRANTS`] + i. In a PV
//! dom0 its frame 64 is paged out for a while, and frame 65 for good.

#![expect(unsafe_code, reason = "the environment of a program that runs with more rights than its user is not trusted")]

use std::ffi::{CStr, c_char};
use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;

use xenmap::mock::{Dom0, HostConfig, MockHost};
use xenmap::{Access, Error, FRAME_SIZE, GuestKind, Protection, Resource, Result};

const VARIABLE: &CStr = c"XENMAP_MOCK";
const RAM_FRAMES: usize = 64;
const GRANTS: u64 = 0x6772_616E_7400_0000;
/// How often a frame is asked for until it is back.
const ASKS: u32 = 3;

unsafe extern "C" {
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// The process's simulated host, if there is to be one.
pub(super) fn host() -> Result<Option<&'static MockHost>> {
    static HOST: OnceLock<Option<MockHost>> = OnceLock::new();
    // SAFETY: a string; nobody may change the environment while another thread reads it.
    let Some(value) = NonNull::new(unsafe { secure_getenv(VARIABLE.as_ptr()) }.cast_mut()) else { return Ok(None) };
    // SAFETY: a string of the environment.
    let dom0 = match unsafe { CStr::from_ptr(value.as_ptr()) }.to_bytes() {
        b"pv" => Dom0::Pv,
        b"auto" => Dom0::Pvh,
        // Never the real device instead.
        _ => return Err(unusable(io::ErrorKind::InvalidInput.into())),
    };
    let host = HOST.get_or_init(|| make_host(dom0).ok()).as_ref();
    host.map(Some).ok_or_else(|| unusable(io::Error::from_raw_os_error(libc::ENOMEM)))
}

fn unusable(source: io::Error) -> Error {
    Error::Open { path: "the host of XENMAP_MOCK (pv or auto)".into(), source }
}

fn make_host(dom0: Dom0) -> Result<MockHost> {
    let mut config = HostConfig::default();
    config.dom0 = dom0;
    let host = MockHost::with_config(config);
    let domain = host.create_domain(GuestKind::Hvm, RAM_FRAMES);
    for gfn in domain.frames() {
        domain.write(gfn, 0, &gfn.get().to_le_bytes());
    }
    domain.add_resource(Resource::GrantTable, 2);
    let memory = host.open()?;
    let grants = memory.map_resource(domain.domid(), Protection::ReadWrite, Resource::GrantTable, 0, 2)?;
    for frame in 0..2_u16 {
        grants.view().write(usize::from(frame) * FRAME_SIZE, GRANTS + u64::from(frame))?;
    }
    if dom0 == Dom0::Pv {
        for (gfn, asks) in domain.add_frames(2).into_iter().zip([ASKS, u32::MAX]) {
            domain.write(gfn, 0, &gfn.get().to_le_bytes());
            domain.page_out(gfn, asks).map_err(unusable)?;
        }
    }
    Ok(host)
}
