//! What Xen knows of an ioreq server.

use std::sync::atomic::{AtomicBool, Ordering};

use super::range::IoRange;
use super::server::ServerId;
use crate::abi;
use crate::backend::ProcessId;
use crate::error::{Error, Result};
use crate::handle::{DmOpName, ForeignMemory, Resource, ResourceMapping};
use crate::types::{Domid, Protection};

/// The pages of a server, as frames of a resource.
pub(super) const BUFFER: u32 = 0;
pub(super) const REQUESTS: u32 = 1;

/// A server in Xen. Dropping it destroys it, unless it is kept or a forked child does so.
#[derive(Debug)]
pub(super) struct Registration {
    memory: ForeignMemory,
    domid: Domid,
    id: ServerId,
    is_kept: AtomicBool,
    process: ProcessId,
}

impl Registration {
    /// Creates a server.
    pub(super) fn create(memory: ForeignMemory, domid: Domid, has_buffer: bool) -> Result<Registration> {
        let buffering = if has_buffer { abi::HVM_IOREQSRV_BUFIOREQ_ATOMIC } else { abi::HVM_IOREQSRV_BUFIOREQ_OFF };
        let handle_bufioreq = u8::try_from(buffering).unwrap_or(0);
        let fields = abi::CreateIoreqServer { handle_bufioreq, pad: [0; 3], id: 0 };
        let name = ("XEN_DMOP_create_ioreq_server", abi::XEN_DMOP_CREATE_IOREQ_SERVER);
        let id = ServerId(memory.dm_op(domid, name, fields)?.id);
        Ok(Registration::new(memory, domid, id, false))
    }

    /// Finds a server. It is kept.
    pub(super) fn find(memory: ForeignMemory, domid: Domid, id: ServerId) -> Result<Registration> {
        let registration = Registration::new(memory, domid, id, true);
        registration.info()?;
        Ok(registration)
    }

    fn new(memory: ForeignMemory, domid: Domid, id: ServerId, is_kept: bool) -> Registration {
        Registration { memory, domid, id, is_kept: AtomicBool::new(is_kept), process: ProcessId::current() }
    }

    pub(super) fn memory(&self) -> &ForeignMemory {
        &self.memory
    }

    pub(super) fn domid(&self) -> Domid {
        self.domid
    }

    pub(super) fn id(&self) -> ServerId {
        self.id
    }

    /// Returns whether the server stays when this is dropped.
    pub(super) fn is_kept(&self) -> bool {
        self.is_inherited() || self.is_kept.load(Ordering::Relaxed)
    }

    /// Returns whether this is a forked child's copy. The server is the parent's, and its page is not mapped here.
    pub(super) fn is_inherited(&self) -> bool {
        self.process != ProcessId::current()
    }

    pub(super) fn keep(&self, is_kept: bool) {
        self.is_kept.store(is_kept, Ordering::Relaxed);
    }

    /// Maps one of the server's pages.
    pub(super) fn map(&self, page: u32) -> Result<ResourceMapping> {
        let server = Resource::IoreqServer { id: self.id.0.into() };
        self.memory.map_resource(self.domid, Protection::ReadWrite, server, page, 1)
    }

    /// Enables or disables the server. While Xen does that, it pauses the guest.
    pub(super) fn enable(&self, enabled: bool) -> Result<()> {
        let fields = abi::IoreqServerState { id: self.id.0, enabled: enabled.into(), pad: 0 };
        let name = ("XEN_DMOP_set_ioreq_server_state", abi::XEN_DMOP_SET_IOREQ_SERVER_STATE);
        self.memory.dm_op(self.domid, name, fields).map(|_| ())
    }

    /// Returns the port on which Xen announces buffered requests.
    pub(super) fn buffer_port(&self) -> Result<u32> {
        Ok(self.info()?.bufioreq_port)
    }

    /// Returns whether the guest or the server is gone.
    pub(super) fn is_gone(&self) -> Result<bool> {
        match self.info() {
            Ok(_) => Ok(false),
            Err(e) if is_gone(&e) => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn info(&self) -> Result<abi::IoreqServerInfo> {
        // Without this flag, Xen would put the pages into the guest's memory.
        let flags = u16::try_from(abi::XEN_DMOP_NO_GFNS).unwrap_or(0);
        let fields = abi::IoreqServerInfo { id: self.id.0, flags, bufioreq_port: 0, ioreq_gfn: 0, bufioreq_gfn: 0 };
        let name = ("XEN_DMOP_get_ioreq_server_info", abi::XEN_DMOP_GET_IOREQ_SERVER_INFO);
        self.memory.dm_op(self.domid, name, fields)
    }

    pub(super) fn add_range(&self, range: IoRange) -> Result<()> {
        let name = ("XEN_DMOP_map_io_range_to_ioreq_server", abi::XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER);
        self.change_range(name, range)
    }

    pub(super) fn remove_range(&self, range: IoRange) -> Result<()> {
        let name = ("XEN_DMOP_unmap_io_range_from_ioreq_server", abi::XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER);
        self.change_range(name, range)
    }

    fn change_range(&self, name: DmOpName, range: IoRange) -> Result<()> {
        let IoRange { type_, first: start, last: end } = range;
        let fields = abi::IoreqServerRange { id: self.id.0, pad: 0, type_, start, end };
        self.memory.dm_op(self.domid, name, fields).map(|_| ())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.is_kept() {
            return;
        }
        let fields = abi::DestroyIoreqServer { id: self.id.0, pad: 0 };
        let name = ("XEN_DMOP_destroy_ioreq_server", abi::XEN_DMOP_DESTROY_IOREQ_SERVER);
        match self.memory.dm_op(self.domid, name, fields) {
            Err(e) if !is_gone(&e) => log::warn!("ioreq server {} of domain {} stays: {e}", self.id, self.domid),
            _ => {}
        }
    }
}

/// Returns whether an operation has failed because the guest or the server is gone.
fn is_gone(error: &Error) -> bool {
    matches!(error.errno(), libc::ESRCH | libc::ENOENT)
}
