//! Device model operations and pages of requests as Xen has them, for what the library never does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use xenmap::device_model::{EventChannel, EventChannels};
use xenmap::{Access, Domid, ForeignMemory, MapCache, Protection, Resource, ResourceMapping};

use crate::common::Host;
use crate::common::bytes::Bytes;
use crate::common::running::Running;

pub(crate) const CREATE_SERVER: u32 = 1;
pub(crate) const SERVER_INFO: u32 = 2;
pub(crate) const MAP_RANGE: u32 = 3;
pub(crate) const UNMAP_RANGE: u32 = 4;
pub(crate) const SERVER_STATE: u32 = 5;
pub(crate) const DESTROY_SERVER: u32 = 6;

/// States of a request.
pub(crate) const NONE: u8 = 0;
pub(crate) const READY: u8 = 1;
pub(crate) const IN_PROCESS: u8 = 2;
pub(crate) const ANSWERED: u8 = 3;

/// Longer than anything takes: what takes longer hangs.
pub(crate) const TOO_LONG: Duration = Duration::from_secs(20);

/// Makes an operation, and returns its structure as Xen leaves it, or the errno.
pub(crate) fn dm_op(memory: &ForeignMemory, domid: Domid, op: u32, fields: &Bytes) -> Result<Vec<u8>, i32> {
    let mut argument = Bytes::default().u32(op).u32(0);
    argument.0.extend(&fields.0);
    dm_op_with(memory, domid, &mut [&mut argument.0])?;
    Ok(argument.0.split_off(8))
}

/// Makes an operation with any buffers.
pub(crate) fn dm_op_with(memory: &ForeignMemory, domid: Domid, buffers: &mut [&mut [u8]]) -> Result<(), i32> {
    xenmap::raw::dm_op(memory, domid, buffers).map_err(|e| e.raw_os_error().unwrap())
}

/// Returns the structure that enables or disables a server.
pub(crate) fn state_fields(id: u16, enabled: u8) -> Bytes {
    Bytes::default().u16(id).u8(enabled).u8(0)
}

/// Returns the structure of a range: 0 for ports, 1 for memory, 2 for PCI functions. Both ends are included.
pub(crate) fn range_fields(id: u16, type_: u32, first: u64, last: u64) -> Bytes {
    Bytes::default().u16(id).u16(0).u32(type_).u64(first).u64(last)
}

/// Returns the structure that names only a server, to destroy it.
pub(crate) fn destroy_fields(id: u16) -> Bytes {
    Bytes::default().u16(id).u16(0)
}

/// Creates a server without a buffer, and returns its number.
pub(crate) fn create_server(memory: &ForeignMemory, domid: Domid) -> Result<u16, i32> {
    let created = dm_op(memory, domid, CREATE_SERVER, &Bytes::default().u32(0).u16(0))?;
    Ok(u16::from_ne_bytes([created[4], created[5]]))
}

/// The type of the request to invalidate.
pub(crate) const INVALIDATE: u8 = 8;

/// The bytes of a vcpu's slot, and offsets in it.
const SLOT: usize = 32;
const DATA: usize = 8;
const COUNT: usize = 16;
const PORT: usize = 24;
const STATE: usize = 30;
const TYPE: usize = 31;

/// The page with a server's requests, one for each vcpu.
pub(crate) struct Page(ResourceMapping);

impl Page {
    pub(crate) fn map(memory: &ForeignMemory, domid: Domid, id: u16) -> xenmap::Result<Page> {
        let page = Resource::IoreqServer { id: id.into() };
        memory.map_resource(domid, Protection::ReadWrite, page, 1, 1).map(Page)
    }

    /// Returns the port on which Xen sends and receives the events of a vcpu.
    pub(crate) fn port(&self, vcpu: usize) -> u32 {
        self.0.view().read(SLOT * vcpu + PORT).unwrap()
    }

    pub(crate) fn set_port(&self, vcpu: usize, port: u32) {
        self.0.view().write(SLOT * vcpu + PORT, port).unwrap();
    }

    /// Returns the type of a vcpu's request.
    pub(crate) fn type_(&self, vcpu: usize) -> u8 {
        self.0.view().read(SLOT * vcpu + TYPE).unwrap()
    }

    /// Returns the number of values of a vcpu's request.
    pub(crate) fn count(&self, vcpu: usize) -> u32 {
        self.0.view().read(SLOT * vcpu + COUNT).unwrap()
    }

    /// Sets the value that the guest reads.
    pub(crate) fn set_data(&self, vcpu: usize, data: u64) {
        self.0.view().write(SLOT * vcpu + DATA, data).unwrap();
    }

    /// Returns the state of a vcpu's request.
    pub(crate) fn state(&self, vcpu: usize) -> u8 {
        self.0.view().load::<u8>(SLOT * vcpu + STATE, Ordering::Acquire).unwrap() & 0xF
    }

    pub(crate) fn set_state(&self, vcpu: usize, state: u8) {
        let flags = self.0.view().load::<u8>(SLOT * vcpu + STATE, Ordering::Relaxed).unwrap() & 0xF0;
        self.0.view().store(SLOT * vcpu + STATE, flags | state, Ordering::Release).unwrap();
    }

    /// Waits for a vcpu's request without its event.
    pub(crate) fn wait_until_ready(&self, vcpu: usize) {
        let deadline = Instant::now() + TOO_LONG;
        while self.state(vcpu) != READY {
            assert!(Instant::now() < deadline, "vcpu {vcpu} has no request");
            std::thread::yield_now();
        }
    }
}

/// A server without the library. Nothing is done when it is dropped, as when a process dies.
pub(crate) struct RawServer {
    pub(crate) cache: Arc<MapCache>,
    pub(crate) events: EventChannels,
    pub(crate) id: u16,
    pub(crate) page: Page,
}

impl RawServer {
    /// Creates a server, maps its page and enables it.
    pub(crate) fn create(host: &Host, running: &Running) -> RawServer {
        let server = RawServer::create_disabled(host, running);
        server.dm_op(SERVER_STATE, &state_fields(server.id, 1)).unwrap();
        server
    }

    /// Creates a server, and maps its page.
    pub(crate) fn create_disabled(host: &Host, running: &Running) -> RawServer {
        let (cache, events) = running.open(host);
        let (memory, domid) = (cache.guest().memory(), cache.guest().domid());
        let id = create_server(memory, domid).unwrap();
        let page = Page::map(memory, domid, id).unwrap();
        RawServer { cache, events, id, page }
    }

    pub(crate) fn dm_op(&self, op: u32, fields: &Bytes) -> Result<Vec<u8>, i32> {
        dm_op(self.cache.guest().memory(), self.cache.guest().domid(), op, fields)
    }

    pub(crate) fn bind(&self, vcpu: usize) -> EventChannel {
        self.events.bind(self.cache.guest().domid(), self.page.port(vcpu)).unwrap()
    }
}
