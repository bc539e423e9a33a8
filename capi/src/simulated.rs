//! A simulated host for tests of C programs, selected by the environment variable `XENMAP_MOCK`.
//!
//! Its value is the kind of dom0, `pv` or `auto`. The host has one guest, an HVM domain with number 1. Each of its
//! frames 0 to 63 begins with its own number, in 8 bytes. Its grant table has two frames, and frame i begins with
//! [`GRANTS`] + i. In a PV dom0, frame 64 is paged out and comes back after a few attempts, and frame 65 never comes
//! back.

#![expect(
    unsafe_code,
    reason = "secure_getenv: a program with more privileges than its user must not trust its environment"
)]

use std::ffi::{CStr, c_char};
use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;

use xenmap::mock::{Dom0, HostConfig, MockHost};
use xenmap::{Access, Error, FRAME_SIZE, GuestKind, Protection, Resource, Result};

const VARIABLE: &CStr = c"XENMAP_MOCK";
const RAM_FRAMES: usize = 64;
const GRANTS: u64 = 0x6772_616E_7400_0000;
/// How often mapping frame 64 fails before it is back.
const ATTEMPTS: u32 = 3;

unsafe extern "C" {
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// Returns the process's simulated host if the environment asks for one.
pub(super) fn host() -> Result<Option<&'static MockHost>> {
    static HOST: OnceLock<Option<MockHost>> = OnceLock::new();
    // SAFETY: the name is a C string, and a program must not change its environment while another thread reads it.
    let Some(value) = NonNull::new(unsafe { secure_getenv(VARIABLE.as_ptr()) }.cast_mut()) else { return Ok(None) };
    // SAFETY: the value is a C string of the environment, which does not change meanwhile (as above).
    let dom0 = match unsafe { CStr::from_ptr(value.as_ptr()) }.to_bytes() {
        b"pv" => Dom0::Pv,
        b"auto" => Dom0::Pvh,
        // Never fall back to the real device.
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
        for (gfn, attempts) in domain.add_frames(2).into_iter().zip([ATTEMPTS, u32::MAX]) {
            domain.write(gfn, 0, &gfn.get().to_le_bytes());
            domain.page_out(gfn, attempts).map_err(unusable)?;
        }
    }
    Ok(host)
}
