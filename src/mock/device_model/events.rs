//! The simulated device of event channels.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, MutexGuard};

use crate::abi;
use crate::backend::EventDevice;
use crate::mock::fault::Fault;
use crate::mock::machine::Host;
use crate::mock::state::{DOM0, State};
use crate::types::Domid;

/// The first port that Linux gives to programs here; it uses those below itself.
const FIRST_LOCAL_PORT: u32 = 32;

/// The open files of the device, by number.
#[derive(Debug, Default)]
pub(in crate::mock) struct EventFiles {
    files: BTreeMap<u64, EventFile>,
    opened: u64,
    allocated: u32,
}

#[derive(Debug)]
struct EventFile {
    restricted: Option<u16>,
    /// The ports whose events have not been read.
    ring: VecDeque<u32>,
    ports: BTreeMap<u32, LocalPort>,
    /// Holds a byte while the ring is not empty, so that the file's descriptor can be polled.
    signal: PipeWriter,
    /// The other end of `signal`.
    readable: PipeReader,
}

#[derive(Debug)]
struct LocalPort {
    /// The domain and its port; the port is missing until the domain binds.
    remote: (u16, Option<u32>),
    is_masked: bool,
    is_pending: bool,
}

/// An open file of the device.
#[derive(Debug)]
pub(in crate::mock) struct MockEvents {
    host: Arc<Host>,
    number: u64,
    readable: PipeReader,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl EventFile {
    /// Puts a port into the ring, or, while it is masked, remembers its event.
    fn send(&mut self, number: u32) {
        let Some(port) = self.ports.get_mut(&number) else { return };
        if port.is_masked {
            port.is_pending = true;
            return;
        }
        port.is_masked = true;
        if self.ring.is_empty() {
            // A pipe has room for a byte.
            let _ = self.signal.write_all(&[1]);
        }
        self.ring.push_back(number);
    }

    fn unmask(&mut self, number: u32) {
        let Some(port) = self.ports.get_mut(&number) else { return };
        port.is_masked = false;
        if std::mem::take(&mut port.is_pending) {
            self.send(number);
        }
    }

    fn empty(&mut self) {
        if !self.ring.is_empty() {
            self.ring.clear();
            let _ = self.readable.read_exact(&mut [0]);
        }
    }

    fn take(&mut self) -> Option<u32> {
        let port = self.ring.pop_front()?;
        if self.ring.is_empty() {
            let _ = self.readable.read_exact(&mut [0]);
        }
        Some(port)
    }
}

impl EventFiles {
    fn file(&mut self, number: u64) -> &mut EventFile {
        let Some(file) = self.files.get_mut(&number) else { unreachable!("the file is open") };
        file
    }

    /// Adds a port to a file.
    fn add(&mut self, number: u64, remote: (u16, Option<u32>)) -> u32 {
        let port = FIRST_LOCAL_PORT + self.allocated;
        self.allocated += 1;
        self.file(number).ports.insert(port, LocalPort { remote, is_masked: false, is_pending: false });
        port
    }

    /// Returns the file that has a local port.
    fn file_of(&mut self, port: u32) -> Option<&mut EventFile> {
        self.files.values_mut().find(|file| file.ports.contains_key(&port))
    }

    /// Binds a port that dom0 has offered to itself, if there is one.
    fn bind_own(&mut self, number: u64, remote: u32) -> Option<u32> {
        self.file_of(remote)?.ports.get(&remote).filter(|port| port.remote == (DOM0, None))?;
        let port = self.add(number, (DOM0, Some(remote)));
        self.file_of(remote)?.ports.get_mut(&remote)?.remote = (DOM0, Some(port));
        self.file(number).send(port);
        Some(port)
    }

    fn send_to_own(&mut self, port: u32) {
        if let Some(file) = self.file_of(port) {
            file.send(port);
        }
    }
}

impl State {
    /// Closes a domain's port: what is bound to it stays, and reaches nobody.
    pub(super) fn close_port(&mut self, domid: u16, port: u32) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        if let Some(Some((file, local))) = domain.device_model.ports.remove(&port)
            && let Some(local) = self.events.files.get_mut(&file).and_then(|file| file.ports.get_mut(&local))
        {
            local.remote.1 = None;
        }
    }

    /// Leaves the other end of a port that is gone without a peer.
    fn disconnect(&mut self, port: &LocalPort) {
        let (domid, Some(remote)) = port.remote else { return };
        if domid == DOM0 {
            if let Some(peer) = self.events.file_of(remote).and_then(|file| file.ports.get_mut(&remote)) {
                peer.remote.1 = None;
            }
        } else if let Some(domain) = self.domains.get_mut(&domid)
            && let Some(bound) = domain.device_model.ports.get_mut(&remote)
        {
            *bound = None;
        }
    }

    /// Sends an event from a domain's port to whatever file has bound it.
    pub(in crate::mock) fn send_to_dom0(&mut self, domid: u16, port: u32) {
        let bound = self.domains.get(&domid).and_then(|domain| *domain.device_model.ports.get(&port)?);
        if let Some((file, local)) = bound
            && let Some(file) = self.events.files.get_mut(&file)
        {
            file.send(local);
        }
    }
}

impl MockEvents {
    pub(in crate::mock) fn open(host: &Arc<Host>) -> io::Result<MockEvents> {
        let (readable, signal) = io::pipe()?;
        let mut state = host.lock();
        let number = state.events.opened;
        state.events.opened += 1;
        let (ring, ports) = (VecDeque::new(), BTreeMap::new());
        let file = EventFile { restricted: None, ring, ports, signal, readable: readable.try_clone()? };
        state.events.files.insert(number, file);
        Ok(MockEvents { host: Arc::clone(host), number, readable })
    }

    /// Locks the state. A forked child has a copy of it, in which nothing would happen.
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        if self.host.is_in_creator() { Ok(self.host.lock()) } else { Err(errno(libc::ENODEV)) }
    }

    /// Checks that the file may be used for a domain, and that there is one.
    fn check(&self, state: &mut State, domid: Domid) -> io::Result<()> {
        let restricted = state.events.file(self.number).restricted;
        if restricted.is_some_and(|restricted| restricted != domid.get()) {
            return Err(errno(libc::EACCES));
        }
        self.host.forget_if_gone(state, domid.get());
        if domid.get() != DOM0 && !state.domains.contains_key(&domid.get()) {
            return Err(errno(libc::ESRCH));
        }
        Ok(())
    }
}

impl EventDevice for MockEvents {
    fn bind_interdomain(&self, domid: Domid, remote_port: u32) -> io::Result<u32> {
        let state = &mut *self.state()?;
        self.check(state, domid)?;
        if domid.get() == DOM0 {
            return state.events.bind_own(self.number, remote_port).ok_or_else(|| errno(libc::EINVAL));
        }
        let domain = state.domains.get_mut(&domid.get()).ok_or_else(|| errno(libc::ESRCH))?;
        let bound = domain.device_model.ports.get_mut(&remote_port).filter(|bound| bound.is_none());
        let bound = bound.ok_or_else(|| errno(libc::EINVAL))?;
        let port = state.events.add(self.number, (domid.get(), Some(remote_port)));
        *bound = Some((self.number, port));
        state.events.file(self.number).send(port);
        Ok(port)
    }

    fn bind_unbound(&self, domid: Domid) -> io::Result<u32> {
        let state = &mut *self.state()?;
        if state.events.file(self.number).restricted.is_some() {
            return Err(errno(libc::EACCES));
        }
        // Xen does not look whether there is such a domain.
        Ok(state.events.add(self.number, (domid.get(), None)))
    }

    fn unbind(&self, port: u32) -> io::Result<()> {
        let state = &mut *self.state()?;
        let removed = state.events.file(self.number).ports.remove(&port).ok_or_else(|| errno(libc::ENOTCONN))?;
        state.disconnect(&removed);
        Ok(())
    }

    fn notify(&self, port: u32) -> io::Result<()> {
        let state = &mut *self.state()?;
        let local = state.events.file(self.number).ports.get(&port).ok_or_else(|| errno(libc::ENOTCONN))?;
        state.hypercalls.event_channel_op += 1;
        if let (DOM0, Some(remote)) = local.remote {
            state.events.send_to_own(remote);
        } else if let (domid, Some(remote)) = local.remote
            && let Some(domain) = state.domains.get_mut(&domid)
        {
            domain.device_model.notified.insert(remote);
            self.host.changed.notify_all();
        }
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.state()?.events.file(self.number).empty();
        Ok(())
    }

    fn restrict(&self, domid: Domid) -> io::Result<()> {
        let state = &mut *self.state()?;
        let file = state.events.file(self.number);
        if file.restricted.is_some() {
            return Err(errno(libc::EACCES));
        }
        if domid.get() == DOM0 || domid.get() >= abi::FIRST_RESERVED_DOMID {
            return Err(errno(libc::EINVAL));
        }
        file.restricted = Some(domid.get());
        Ok(())
    }

    fn read(&self) -> io::Result<u32> {
        let state = &mut *self.state()?;
        if state.faults.strike(|f| (f == Fault::LostEvents).then_some(())).is_some() {
            return Err(errno(libc::EFBIG));
        }
        state.events.file(self.number).take().ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn unmask(&self, port: u32) -> io::Result<()> {
        self.state()?.events.file(self.number).unmask(port);
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

impl Drop for MockEvents {
    fn drop(&mut self) {
        let state = &mut *self.host.lock();
        let Some(file) = state.events.files.remove(&self.number) else { return };
        file.ports.values().for_each(|port| state.disconnect(port));
    }
}
