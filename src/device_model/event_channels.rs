//! Event channels: the interrupts between domains.

#![expect(unsafe_code, reason = "takes a file descriptor that the caller says is the device's")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::sync::{Mutex, MutexGuard};
use crate::backend::{EventDevice, KernelEvents, ProcessId};
use crate::error::{Error, Result};
use crate::handle::ForeignMemory;
use crate::types::Domid;

/// A handle on the host's device for event channels, /dev/xen/evtchn.
///
/// An event channel connects a port of this domain to a port of another one. Each side can notify the other. If one
/// does so several times before the other has received the event, it is one event.
///
/// An [`IoreqServer`](super::IoreqServer) takes such a handle, and does all the rest. For channels of your own, such as
/// those of a paravirtual device, open another one:
///
/// ```no_run
/// use std::time::Duration;
///
/// use xenmap::device_model::EventChannels;
/// use xenmap::{Domid, ForeignMemory};
///
/// let events = EventChannels::open(&ForeignMemory::open()?)?;
/// let frontend = Domid::new(5)?;
/// let channel = events.bind(frontend, 17)?; // the port is in xenstore
///
/// while events.wait(Some(Duration::from_secs(60)))? == Some(channel.port()) {
///     // Look at the ring, work, then tell the guest.
///     channel.notify()?;
/// }
/// # Ok::<(), xenmap::Error>(())
/// ```
///
/// # With epoll
///
/// The descriptor is readable while events are pending. When it is, receive them until there are none, with a timeout
/// of 0: for a server, by [`next`](super::IoreqServer::next), otherwise by [`wait`](EventChannels::wait). The death of
/// a guest makes nothing readable, so also call `next` about once a second.
///
/// ```
/// use std::sync::Arc;
/// use std::thread;
/// use std::time::Duration;
///
/// use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
/// use xenmap::device_model::{Event, EventChannels, IoRange, IoreqServer, Registers, Target};
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind, MapCache};
///
/// struct Port(u64);
///
/// impl Registers for Port {
///     fn read(&mut self, _: Target, _size: usize) -> u64 {
///         self.0
///     }
///
///     fn write(&mut self, _: Target, _size: usize, value: u64) {
///         self.0 = value;
///     }
/// }
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 16);
/// let memory = host.open()?;
/// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
/// let server = IoreqServer::create(cache, EventChannels::open(&memory)?)?;
/// server.add_range(IoRange::ports(0x500, 0x503))?;
///
/// let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
/// epoll.add(&server, EpollEvent::new(EpollFlags::EPOLLIN, 0))?; // and whatever else the program waits for
///
/// let vcpu = domain.vcpu(0);
/// let guest = thread::spawn(move || vcpu.port_out(0x500, 4, 42));
/// let mut device = Port(0);
/// while device.0 != 42 {
///     epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(1000_u16))?;
///     loop {
///         match server.next(Some(Duration::ZERO))? {
///             Event::Request(request) => request.serve(&mut device),
///             Event::Gone => return Err("the guest is gone".into()),
///             Event::TimedOut => break,
///             _ => {}
///         }
///     }
/// }
/// guest.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct EventChannels(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    device: Box<dyn EventDevice>,
    /// The local ports. Locked while one is added, and while their events are discarded.
    bound: Mutex<BTreeSet<u32>>,
}

/// One event channel. Dropping it unbinds it, after which another process may bind the other domain's port. In a forked
/// child, dropping it does nothing: the channel is the parent's.
///
/// ```
/// use std::time::Duration;
///
/// use xenmap::GuestKind;
/// use xenmap::device_model::EventChannels;
/// use xenmap::mock::MockHost;
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 4);
/// let events = EventChannels::open(&host.open()?)?;
///
/// let channel = events.offer(domain.domid())?;
/// println!("the guest may bind port {}", channel.port()); // it finds it in xenstore
/// channel.notify()?; // no harm if it has not done so yet
/// assert_eq!(events.wait(Some(Duration::ZERO))?, None); // it has not notified us
/// # Ok::<(), xenmap::Error>(())
/// ```
#[derive(Debug)]
pub struct EventChannel {
    shared: Arc<Shared>,
    port: u32,
    process: ProcessId,
}

impl EventChannels {
    /// Opens the device of the host to which a handle belongs: /dev/xen/evtchn, or that of the simulated host.
    ///
    /// # Errors
    ///
    /// [`Error::Open`], which says what to do if the device is missing or access is denied.
    pub fn open(memory: &ForeignMemory) -> Result<EventChannels> {
        let device = memory.backend().open_events().map_err(|(path, source)| Error::Open { path, source })?;
        Ok(EventChannels::with_device(device))
    }

    /// Uses a device for event channels that has been opened elsewhere, for example by a privileged parent process that
    /// has also [restricted](EventChannels::restrict) it.
    ///
    /// Makes the open file non-blocking, also for other processes that share it. Use it in one process only: whoever
    /// reads an event takes it from the others.
    ///
    /// ```no_run
    /// use std::fs::File;
    /// use std::os::fd::OwnedFd;
    ///
    /// use xenmap::Domid;
    /// use xenmap::device_model::EventChannels;
    ///
    /// let file = File::options().read(true).write(true).open("/dev/xen/evtchn")?;
    /// // SAFETY: this is the device for event channels.
    /// let events = unsafe { EventChannels::from_owned_fd(OwnedFd::from(file)) }?;
    /// events.restrict(Domid::new(5)?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::EventChannel`] if the file cannot be made non-blocking.
    ///
    /// # Safety
    ///
    /// The descriptor is an open /dev/xen/evtchn. On any other device the same calls have another meaning.
    pub unsafe fn from_owned_fd(fd: OwnedFd) -> Result<EventChannels> {
        let device = KernelEvents::from_owned_fd(fd);
        let device = device.map_err(|source| Error::EventChannel { operation: "open", port: None, source })?;
        Ok(EventChannels::with_device(Box::new(device)))
    }

    pub(super) fn with_device(device: Box<dyn EventDevice>) -> EventChannels {
        EventChannels(Arc::new(Shared { device, bound: Mutex::default() }))
    }

    /// Permanently restricts this handle to the ports of one domain. Existing channels stay.
    ///
    /// From then on the kernel refuses to [bind](EventChannels::bind) ports of other domains, and to
    /// [offer](EventChannels::offer) any. A device model should call this as soon as it has started, as well as
    /// [`ForeignMemory::restrict`]. The restriction also holds for copies of the file descriptor.
    ///
    /// ```
    /// use xenmap::GuestKind;
    /// use xenmap::device_model::EventChannels;
    /// use xenmap::mock::MockHost;
    ///
    /// let host = MockHost::new();
    /// let [served, other] = [(); 2].map(|()| host.create_domain(GuestKind::Pvh, 4));
    /// let events = EventChannels::open(&host.open()?)?;
    /// events.restrict(served.domid())?;
    /// assert_eq!(events.bind(other.domid(), 1).unwrap_err().errno(), 13); // EACCES
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Restrict`] if the handle is already restricted, even to the same domain (EACCES), or `domid` is 0
    /// (EINVAL).
    #[doc(alias = "IOCTL_EVTCHN_RESTRICT_DOMID")]
    pub fn restrict(&self, domid: Domid) -> Result<()> {
        self.0.device.restrict(domid).map_err(|source| Error::Restrict { domid, source })
    }

    /// Connects a new port to a port that another domain, or Xen on its behalf, has offered to this domain. An event is
    /// pending at once, so that nothing that was sent before is missed.
    ///
    /// # Errors
    ///
    /// [`Error::EventChannel`] if the domain has not offered this port, or something is bound to it already (EINVAL);
    /// if the handle is restricted to another domain (EACCES).
    #[doc(alias = "IOCTL_EVTCHN_BIND_INTERDOMAIN")]
    pub fn bind(&self, domid: Domid, remote_port: u32) -> Result<EventChannel> {
        let port = self.add(|device| device.bind_interdomain(domid, remote_port));
        port.map_err(|source| Error::EventChannel { operation: "bind", port: Some(remote_port), source })
    }

    /// Offers a new port to another domain, which may bind to it.
    ///
    /// # Errors
    ///
    /// [`Error::EventChannel`] if there is no such domain (ESRCH), or the handle is restricted (EACCES).
    #[doc(alias = "IOCTL_EVTCHN_BIND_UNBOUND_PORT")]
    pub fn offer(&self, domid: Domid) -> Result<EventChannel> {
        let port = self.add(|device| device.bind_unbound(domid));
        port.map_err(|source| Error::EventChannel { operation: "offer", port: None, source })
    }

    fn add(&self, bind: impl FnOnce(&dyn EventDevice) -> io::Result<u32>) -> io::Result<EventChannel> {
        let mut bound = self.0.bound();
        let port = bind(&*self.0.device)?;
        bound.insert(port);
        Ok(EventChannel { shared: Arc::clone(&self.0), port, process: ProcessId::current() })
    }

    /// Waits for an event, and returns the local port of its channel; `None` if there is none in time. With `None` as
    /// the timeout, waits as long as it takes.
    ///
    /// What the event is about can only be looked at afterwards: an event that is sent meanwhile is received by the
    /// next call. If several threads wait, each event is received by one of them.
    ///
    /// # Errors
    ///
    /// [`Error::EventChannel`]. If its errno is EFBIG, the kernel has lost events: look at everything, and go on. No
    /// kernel is known to do that.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<u32>> {
        let mut timer = Timer::new(timeout);
        loop {
            match self.wait_once(timer.left())? {
                Woken::Event(port) => return Ok(Some(port)),
                Woken::TimedOut => return Ok(None),
                Woken::Early => {}
            }
        }
    }

    /// Like [`wait`](EventChannels::wait), but may return early. Does not read the clock, which takes a system call on
    /// some hosts.
    pub(super) fn wait_once(&self, timeout: Option<Duration>) -> Result<Woken> {
        let has_no_time = timeout == Some(Duration::ZERO);
        if !has_no_time && !self.poll(timeout)? {
            return Ok(Woken::TimedOut);
        }
        match self.0.take() {
            Ok(port) => Ok(Woken::Event(port)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && has_no_time => Ok(Woken::TimedOut),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Woken::Early),
            Err(source) => Err(Error::EventChannel { operation: "read", port: None, source }),
        }
    }

    /// Waits until the device can be read. Returns false if the time is over.
    fn poll(&self, timeout: Option<Duration>) -> Result<bool> {
        // Rounded up, so that the last fraction of a millisecond does not spin.
        let milliseconds = timeout.map(|timeout| timeout.as_micros().div_ceil(1000));
        let timeout = milliseconds.map_or(PollTimeout::NONE, |ms| {
            i32::try_from(ms).unwrap_or(i32::MAX).try_into().unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => Ok(ready != 0),
            Err(Errno::EINTR) => Ok(true),
            Err(e) => Err(Error::EventChannel { operation: "poll", port: None, source: e.into() }),
        }
    }
}

/// How a wait has ended.
pub(super) enum Woken {
    /// This port has an event.
    Event(u32),
    /// The time is over.
    TimedOut,
    /// A signal has arrived, or another thread has received the event.
    Early,
}

/// A timeout, which starts when it is first asked what is left. It reads the clock only if it must.
pub(super) struct Timer {
    timeout: Option<Duration>,
    started: Option<Instant>,
}

impl Timer {
    pub(super) fn new(timeout: Option<Duration>) -> Timer {
        Timer { timeout, started: None }
    }

    /// Returns what is left of the timeout.
    pub(super) fn left(&mut self) -> Option<Duration> {
        let timeout = self.timeout?;
        if timeout.is_zero() {
            return Some(timeout);
        }
        let Some(started) = self.started else {
            self.started = Some(Instant::now());
            return Some(timeout);
        };
        Some(timeout.saturating_sub(started.elapsed()))
    }
}

/// The descriptor is readable while events are pending: see [`EventChannels`]. Do not read it directly.
impl AsFd for EventChannels {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.device.fd()
    }
}

impl Shared {
    /// Reads a port that has an event pending, and unmasks it. Whoever gets it looks for what has happened only after
    /// that, so no event is lost in between.
    fn take(&self) -> io::Result<u32> {
        match self.device.read() {
            Ok(port) => self.device.unmask(port).map(|()| port),
            Err(e) if e.raw_os_error() == Some(libc::EFBIG) => {
                let bound = self.bound();
                self.device.reset()?;
                bound.iter().try_for_each(|&port| self.device.unmask(port))?;
                Err(e)
            }
            Err(e) => Err(e),
        }
    }

    fn bound(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventChannel {
    /// Returns the local port, by which [`wait`](EventChannels::wait) names the channel.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends an event to the other domain. If that is gone, nothing happens.
    ///
    /// # Errors
    ///
    /// [`Error::EventChannel`] if the kernel refuses.
    #[doc(alias = "IOCTL_EVTCHN_NOTIFY")]
    pub fn notify(&self) -> Result<()> {
        let sent = self.shared.device.notify(self.port);
        sent.map_err(|source| Error::EventChannel { operation: "notify", port: Some(self.port), source })
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        if self.process != ProcessId::current() {
            return;
        }
        self.shared.bound().remove(&self.port);
        if let Err(e) = self.shared.device.unbind(self.port) {
            log::warn!("cannot unbind event channel {}: {e}", self.port);
        }
    }
}
