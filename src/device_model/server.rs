//! Ioreq servers.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::event_channels::{EventChannels, Timer, Woken};
use super::inbox::Inbox;
use super::range::IoRange;
use super::registration::{BUFFER, REQUESTS, Registration};
use super::request::{Registers, Request};
use super::ring::Ring;
use super::shared::{CHECK_INTERVAL, Found, Presence, Shared};
use super::slots::{SLOTS, Slots};
use crate::abi;
use crate::cache::MapCache;
use crate::error::Result;
use crate::handle::MAX_EXTENTS;

/// How often a call of `next` looks for requests after its time is over: so a guest that makes requests without end does
/// not keep it. A call with a timeout of 0 needs a look for each pending event, because edge-triggered epoll reports
/// nothing new until all of them have been received.
const MAX_LATE_LOOKS: u32 = 1024;

/// The number of a guest's ioreq server, by which another process can [adopt](IoreqServer::adopt) it.
///
/// It is valid until the server is destroyed, even if the process that created it dies. A process that is to be
/// replaced after its death must write the number down before.
///
/// ```
/// use xenmap::device_model::ServerId;
///
/// let id = ServerId("3".parse()?); // what the other process has written down
/// assert_eq!(id.to_string(), "3");
/// # Ok::<(), std::num::ParseIntError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u16);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What has happened while [`IoreqServer::next`] waited. [`IoreqServer`] shows an example.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A vcpu accesses one of the server's ranges, and waits for the answer.
    Request(Request),
    /// The guest has moved its real-time clock by this many seconds. Only servers with a buffer receive this.
    TimeOffset(i64),
    /// Nothing has happened in time.
    TimedOut,
    /// The guest or the server is gone, for good. Drop the server, and [close](MapCache::close) its cache: until then
    /// the guest remains as a zombie.
    ///
    /// A guest that has crashed or shut down is there until the toolstack destroys it.
    Gone,
}

/// An ioreq server: it receives the accesses of a guest's vcpus to some ports, addresses or PCI functions, and answers
/// them.
///
/// A new server can receive requests, but has no ranges yet. So it can be [created](IoreqServer::create) at any time,
/// even while the guest runs. Then [add ranges](IoreqServer::add_range), and call [`next`](IoreqServer::next) or
/// [`run`](IoreqServer::run).
///
/// ```
/// use std::sync::Arc;
/// use std::thread;
/// use std::time::Duration;
///
/// use xenmap::device_model::{Event, EventChannels, IoRange, IoreqServer, Registers, Target};
/// use xenmap::mock::MockHost;
/// use xenmap::{Guest, GuestKind, MapCache};
///
/// struct Identity;
///
/// impl Registers for Identity {
///     fn read(&mut self, at: Target, _size: usize) -> u64 {
///         if let Target::Memory(address) = at { address } else { u64::MAX }
///     }
///
///     fn write(&mut self, _: Target, _size: usize, _value: u64) {}
/// }
///
/// let host = MockHost::new();
/// let domain = host.create_domain(GuestKind::Pvh, 16);
/// let memory = host.open()?;
/// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
/// let server = IoreqServer::create(Arc::clone(&cache), EventChannels::open(&memory)?)?;
/// server.add_range(IoRange::memory(0xE000_0000, 0xE000_0FFF))?;
///
/// let vcpu = domain.vcpu(0);
/// let guest = thread::spawn(move || vcpu.read(0xE000_0010, 4));
/// match server.next(Some(Duration::from_secs(10)))? {
///     Event::Request(request) => request.serve(&mut Identity),
///     other => panic!("{other:?}"),
/// }
/// assert_eq!(guest.join().unwrap()?, 0xE000_0010);
///
/// domain.destroy();
/// assert!(matches!(server.next(None)?, Event::Gone)); // after a second at most
/// drop(server);
/// cache.close();
/// assert!(host.zombies().is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # The guest waits
///
/// A vcpu that has made a request stops until it is answered. A guest that gives memory back stops until all servers
/// have answered: `next` does that itself, after it has invalidated the cache. So go on calling `next`, also when no
/// request is expected.
///
/// Several threads may call all methods at once; each request is received by one of them. Requests may be answered in
/// any order and by any thread.
///
/// # The end
///
/// Dropping the server answers the requests that wait as if there were no device, and destroys the server in Xen once
/// the last [`Request`] that it has returned is answered. This takes up to a second if the guest is paused and so
/// cannot see an answer. Then the server stays in Xen, disabled, until the guest is destroyed.
///
/// A forked child must not use the server or its requests, whose pages it does not have. Dropping them does nothing
/// there.
///
/// If the process dies, the server stays, and vcpus that make requests wait until another process
/// [adopts](IoreqServer::adopt) it. Nothing announces the death of the guest: `next` asks Xen about once a second, and
/// returns [`Event::Gone`].
#[derive(Debug)]
pub struct IoreqServer {
    pub(super) shared: Arc<Shared>,
}

impl IoreqServer {
    /// Creates a server for the guest of a cache. It can receive requests, but has no ranges yet.
    ///
    /// Works with [restricted](crate::ForeignMemory::restrict) handles.
    ///
    /// # Errors
    ///
    /// If a vcpu already waits for the new server and cannot be answered, the server stays in Xen, disabled, until the
    /// guest is destroyed or a process adopts it.
    ///
    /// - [`Error::DmOp`](crate::Error::DmOp) if the guest is a PV guest (EINVAL), has 8 servers already (ENOSPC), or
    ///   does not exist (ESRCH); if Xen has no device models, as on Arm (ENOSYS or EOPNOTSUPP); before Linux 4.11
    ///   (EINVAL).
    /// - [`Error::Resource`](crate::Error::Resource) before Linux 4.18 or Xen 4.11.
    /// - [`Error::EventChannel`](crate::Error::EventChannel) if the guest has no vcpus yet (EINVAL), or `events` is
    ///   restricted to another domain (EACCES).
    pub fn create(cache: Arc<MapCache>, events: EventChannels) -> Result<IoreqServer> {
        IoreqServer::create_as(cache, events, false)
    }

    /// Creates a server that also receives buffered requests: writes for which the vcpu does not wait. Xen buffers
    /// writes to the frame buffer of a VGA card, and changes of the real-time clock. Other devices do not need this.
    ///
    /// What a vcpu has buffered is returned by [`next`](IoreqServer::next) before the vcpu's next request.
    ///
    /// One event can stand for many buffered requests. The thread that receives it takes the first of them, and does
    /// not wake threads that wait in `next`. So the others, and with them the requests of vcpus, wait until some thread
    /// calls `next` again, or until a waiting one looks by itself, which it does about once a second. A thread that
    /// serves such a server should do nothing that takes long between two calls.
    ///
    /// # Errors
    ///
    /// As [`create`](IoreqServer::create).
    pub fn create_with_buffer(cache: Arc<MapCache>, events: EventChannels) -> Result<IoreqServer> {
        IoreqServer::create_as(cache, events, true)
    }

    fn create_as(cache: Arc<MapCache>, events: EventChannels, has_buffer: bool) -> Result<IoreqServer> {
        let guest = cache.guest();
        let registration = Registration::create(guest.memory().clone(), guest.domid(), has_buffer)?;
        let ring = if has_buffer { Some(Ring::new(registration.map(BUFFER)?)) } else { None };
        IoreqServer::start(cache, events, registration, ring)
    }

    /// Takes over a server of the guest of a cache from a process that has died, or that has
    /// [detached](IoreqServer::detach) it. Requests that the other process has not answered arrive again.
    ///
    /// The other process must be gone: two processes that serve one server would answer each other's requests. One that
    /// has been killed is gone when waitpid(2) has returned it; until then its event channels may still be bound. The
    /// server keeps its ranges.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use xenmap::device_model::{EventChannels, IoRange, IoreqServer};
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Guest, GuestKind, MapCache};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Pvh, 16);
    /// let memory = host.open()?;
    /// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
    ///
    /// let server = IoreqServer::create(Arc::clone(&cache), EventChannels::open(&memory)?)?;
    /// server.add_range(IoRange::ports(0x500, 0x503))?;
    /// let id = server.detach(); // or the process dies
    ///
    /// let server = IoreqServer::adopt(cache, EventChannels::open(&memory)?, id)?;
    /// server.remove_range(IoRange::ports(0x500, 0x503))?; // it has kept its ranges
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// In each case the server stays, with its ranges, and can be adopted later.
    ///
    /// - [`Error::DmOp`](crate::Error::DmOp) if there is no such server (ENOENT).
    /// - [`Error::EventChannel`](crate::Error::EventChannel) if another process still has its event channels (EINVAL):
    ///   wait for its end, or try again a moment later.
    /// - Those of [`create`](IoreqServer::create).
    pub fn adopt(cache: Arc<MapCache>, events: EventChannels, id: ServerId) -> Result<IoreqServer> {
        let guest = cache.guest();
        let registration = Registration::find(guest.memory().clone(), guest.domid(), id)?;
        let ring = match registration.map(BUFFER) {
            Ok(page) => Some(Ring::new(page)),
            Err(e) if e.errno() == libc::ENOENT => None,
            Err(e) => return Err(e),
        };
        let server = IoreqServer::start(cache, events, registration, ring)?;
        server.shared.inbox.adopt()?;
        for channel in &server.shared.channels {
            // The process may have died after it had answered and before it told Xen. A needless event does no harm.
            channel.notify()?;
        }
        server.shared.registration.keep(false);
        Ok(server)
    }

    /// Maps the page of requests, binds the server's event channels, and enables it. An event that is sent before its
    /// channel is bound is not lost, because binding always sends one.
    pub(super) fn start(
        cache: Arc<MapCache>,
        events: EventChannels,
        registration: Registration,
        ring: Option<Ring>,
    ) -> Result<IoreqServer> {
        let slots = Slots::new(registration.map(REQUESTS)?);
        let buffer_port = ring.is_some().then(|| registration.buffer_port()).transpose()?;
        if slots.port(0)? == 0 {
            // Xen writes the ports when it enables a disabled server whose page exists. Until the channels are bound,
            // nobody could answer a request, so it is disabled again.
            for enabled in [false, true, false] {
                registration.enable(enabled)?;
            }
        }
        let mut ports = slots.ports()?;
        let vcpus = u32::try_from(ports.len()).unwrap_or(SLOTS);
        ports.extend(buffer_port);
        let inbox = Inbox::new(slots, ring, vcpus);
        let (channels, presence) = (Vec::new(), Mutex::new(Presence::new()));
        let mut shared = Shared { cache, events, inbox, channels, presence, registration };
        let bound = ports.into_iter().try_for_each(|port| {
            shared.channels.push(shared.events.bind(shared.registration.domid(), port)?);
            Ok(())
        });
        // After an error, the drop of a new server answers a vcpu that waits for it, or leaves the server in Xen.
        let server = IoreqServer { shared: Arc::new(shared) };
        bound.and_then(|()| server.shared.registration.enable(true))?;
        // Xen has not announced what the guest gave back before the server was enabled.
        server.shared.cache.invalidate_all();
        Ok(server)
    }

    /// Returns the server's number, which a process needs to [adopt](IoreqServer::adopt) it.
    #[must_use]
    pub fn id(&self) -> ServerId {
        self.shared.registration.id()
    }

    /// Returns the cache that the server invalidates when the guest balloons.
    #[must_use]
    pub fn cache(&self) -> &Arc<MapCache> {
        &self.shared.cache
    }

    /// Adds a range. From now on, an access that lies wholly inside arrives as a [`Request`].
    ///
    /// The server may have a range in common with others. The one with the highest number then receives the requests.
    ///
    /// # Errors
    ///
    /// [`Error::DmOp`](crate::Error::DmOp) if the range overlaps another one of this server (EEXIST), ends before it
    /// begins (EINVAL), or is one too many (ENOMEM): a server can have 256 of each type, where adjacent ones count as
    /// one.
    #[doc(alias = "XEN_DMOP_map_io_range_to_ioreq_server")]
    pub fn add_range(&self, range: IoRange) -> Result<()> {
        self.shared.registration.add_range(range)
    }

    /// Removes a range, or a part of one. Requests that have been made before may still arrive.
    ///
    /// # Errors
    ///
    /// [`Error::DmOp`](crate::Error::DmOp) if the server does not have the whole range (ENOENT).
    #[doc(alias = "XEN_DMOP_unmap_io_range_from_ioreq_server")]
    pub fn remove_range(&self, range: IoRange) -> Result<()> {
        self.shared.registration.remove_range(range)
    }

    /// Waits for a request or another event, and returns it. With `None` as the timeout, waits as long as it takes.
    /// Requests that this answers itself, such as those of a guest that gives memory back, do not prolong the wait.
    ///
    /// A program that [polls the descriptor](EventChannels#with-epoll) calls this with a timeout of 0 until it returns
    /// [`Event::TimedOut`].
    ///
    /// # Errors
    ///
    /// [`Error::EventChannel`](crate::Error::EventChannel) or [`Error::DmOp`](crate::Error::DmOp) if the host fails.
    /// Nothing that a guest does is an error.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Event> {
        let (mut timer, mut late_looks) = (Timer::new(timeout), 0);
        loop {
            let found = self.shared.look()?;
            if let Found::Event(event) = found {
                return Ok(event);
            }
            if self.shared.was_gone() {
                return Ok(Event::Gone);
            }
            let left = timer.left();
            late_looks += u32::from(left == Some(Duration::ZERO));
            if late_looks > MAX_LATE_LOOKS {
                return Ok(Event::TimedOut);
            }
            if matches!(found, Found::Answered) {
                continue;
            }
            match self.shared.events.wait_once(Some(left.map_or(CHECK_INTERVAL, |left| left.min(CHECK_INTERVAL)))) {
                Ok(Woken::TimedOut) if self.shared.is_gone()? => return Ok(Event::Gone),
                Ok(Woken::TimedOut) if left.is_some_and(|left| left <= CHECK_INTERVAL) => return Ok(Event::TimedOut),
                Ok(_) => {}
                // Some events were lost, so look.
                Err(e) if e.errno() == libc::EFBIG => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Passes all requests to a device, until the guest or the server is gone.
    ///
    /// The [module's example](super) uses it.
    ///
    /// # Errors
    ///
    /// As [`next`](IoreqServer::next).
    pub fn run(&self, device: &mut impl Registers) -> Result<()> {
        loop {
            match self.next(None)? {
                Event::Request(request) => request.serve(device),
                Event::Gone => return Ok(()),
                Event::TimeOffset(_) | Event::TimedOut => {}
            }
        }
    }

    /// Tells Xen which frames were written through the cache since the last call, so that a migration sends them again.
    /// Returns their number.
    ///
    /// Xen does not see what is written through a mapping. So a guest can only be migrated if its device model
    /// [tracks](MapCache::track_dirty) what it writes, and reports it: often, and once more when the guest is paused.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use xenmap::device_model::{EventChannels, IoreqServer};
    /// use xenmap::mock::MockHost;
    /// use xenmap::{Access, Gfn, Guest, GuestKind, MapCache, Protection};
    ///
    /// let host = MockHost::new();
    /// let domain = host.create_domain(GuestKind::Hvm, 16);
    /// let memory = host.open()?;
    /// let cache = Arc::new(MapCache::new(Guest::open(&memory, domain.domid())?));
    /// let server = IoreqServer::create(Arc::clone(&cache), EventChannels::open(&memory)?)?;
    ///
    /// domain.log_dirty(); // a migration begins
    /// cache.track_dirty(true);
    /// cache.get(Protection::ReadWrite, 0x3000, 8)?.write(0, 7_u64)?;
    /// assert_eq!(server.report_dirty()?, 1);
    /// assert_eq!(domain.take_dirty(), [Gfn::new(3)?]);
    /// # Ok::<(), xenmap::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::DmOp`](crate::Error::DmOp) if Xen refuses. No frame is lost: the next call reports those that this
    /// one has not reported.
    #[doc(alias = "XEN_DMOP_modified_memory")]
    pub fn report_dirty(&self) -> Result<u64> {
        let Shared { cache, registration, .. } = &*self.shared;
        let pfns = cache.take_dirty();
        for (index, some) in pfns.chunks(MAX_EXTENTS).enumerate() {
            let reported = registration.memory().modified_memory(registration.domid(), some);
            reported.inspect_err(|_| cache.put_back_dirty(&pfns[index * MAX_EXTENTS..]))?;
        }
        Ok(pfns.iter().map(|pfns| pfns.len() as u64).sum())
    }

    /// Leaves the server to another process, and returns its number, by which that process
    /// [adopts](IoreqServer::adopt) it. Until then vcpus that make requests wait.
    ///
    /// Requests that have been returned stay this process's: the other one can only adopt the server when they have
    /// been answered.
    #[must_use = "without its number, nobody can adopt the server"]
    pub fn detach(self) -> ServerId {
        self.shared.registration.keep(true);
        self.shared.registration.id()
    }
}

/// The descriptor is readable when something may have happened: see [`EventChannels`](EventChannels#with-epoll).
impl AsFd for IoreqServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.events.as_fd()
    }
}

impl Drop for IoreqServer {
    fn drop(&mut self) {
        let registration = &self.shared.registration;
        if registration.is_kept() {
            return;
        }
        // Afterwards whatever was sent is in the page, because Xen pauses the guest meanwhile.
        if let Err(e) = registration.enable(false) {
            log::debug!("ioreq server {} is not disabled: {e}", registration.id());
        }
        // As many as there can be, and no more in case the server is still enabled. A request that is dropped is
        // answered.
        for _ in 0..SLOTS + abi::IOREQ_BUFFER_SLOT_NUM {
            if matches!(self.shared.look(), Ok(Found::Nothing) | Err(_)) {
                break;
            }
        }
    }
}
