//! The device model of a guest: everything from the handles to the loop that serves the guest.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use xenmap::device_model::{Event, EventChannels, Interrupts, IoreqServer, Sbdf, ServerId};
use xenmap::vm_memory::CachedMemory;
use xenmap::{CacheConfig, Domid, ForeignMemory, Guest, MapCache, NumberRange, Pfn};

use super::bus::Bus;
use super::device::Device;
use super::disk::Disk;
use super::function::Function;
use super::image::Image;
use super::msix::Msix;
use super::queue::VirtQueue;
use super::signals::Signals;
use super::state::{State, StateFile};
use super::transport::Transport;
use super::{Result, lock};

/// What to serve, and how.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) image: Image,
    /// What the image is called.
    pub(crate) name: String,
    pub(crate) queues: u16,
    /// The most memory of the guest to keep mapped, in MiB.
    pub(crate) cache: usize,
    /// Whether QEMU serves the guest's other devices.
    pub(crate) is_beside_qemu: bool,
    /// The file that says which server to adopt, or into which to write that.
    pub(crate) server: Option<PathBuf>,
}

/// A disk for a guest, and what it needs.
pub(crate) struct Model {
    pub(crate) server: IoreqServer,
    pub(crate) device: Device,
    name: String,
    is_beside_qemu: bool,
    /// The file with the state, if there is one.
    file: Option<Mutex<StateFile>>,
    /// The state with which the server was adopted, if it was.
    pub(crate) adopted: Option<State>,
}

impl Model {
    /// Opens a guest, and creates or adopts a server for it. From then on, the handles can be used for nothing else.
    pub(crate) fn open(memory: &ForeignMemory, domid: Domid, options: Options) -> Result<Model> {
        let mut file = options.server.map(StateFile::open).transpose()?;
        let events = EventChannels::open(memory)?;
        let guest = Guest::open(memory, domid)?;
        // A restricted handle makes no hypercalls but those of a device model, so the guest is opened before.
        memory.restrict(domid)?;
        events.restrict(domid)?;

        let mut config = CacheConfig::default();
        config.budget = options.cache << 20;
        let cache = Arc::new(MapCache::with_config(guest.clone(), config)?);
        let queues = (0..options.queues).map(|_| VirtQueue::new()).collect::<std::result::Result<_, _>>();
        // All addresses, because the guest may get RAM anywhere later. The cache refuses addresses without RAM.
        let everywhere = NumberRange::try_from(0..Pfn::MAX.get() + 1)?;
        let device = Device {
            memory: CachedMemory::new(Arc::clone(&cache), &[everywhere]),
            disk: Disk::new(options.image, options.queues),
            queues: queues?,
            signals: Signals::new(Msix::new(Interrupts::new(guest), options.queues + 1)),
            is_bus_master: AtomicBool::new(false),
            status: AtomicU32::new(0),
            accepted: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
        };
        let Options { name, is_beside_qemu, .. } = options;
        let (server, adopted) = match file.as_ref().and_then(StateFile::state).cloned() {
            None => (IoreqServer::create(cache, events)?, None),
            Some(state) => {
                check(&state, domid, &device, is_beside_qemu)?;
                let id = ServerId(state.number("server")?);
                match IoreqServer::adopt(Arc::clone(&cache), events, id) {
                    Err(e) if e.errno() == libc::ENOENT => {
                        log::warn!("domain {domid} has no server {id}, which the state names: the disk starts anew");
                        file.as_mut().map_or(Ok(()), StateFile::remove)?;
                        let events = EventChannels::open(memory)?;
                        events.restrict(domid)?;
                        (IoreqServer::create(cache, events)?, None)
                    }
                    server => (server?, Some(state)),
                }
            }
        };
        Ok(Model { server, device, name, is_beside_qemu, file: file.map(Mutex::new), adopted })
    }

    /// Ends the model after an error. If the state is in a file, the server stays in Xen, and the guest waits until the
    /// program is started again. Otherwise the guest loses the disk.
    pub(crate) fn give_up(self) {
        if self.file.as_ref().is_some_and(|file| lock(file).state().is_some()) {
            let id = self.server.detach();
            log::warn!("server {id} stays, and the guest waits for it: start the program again");
        }
    }

    /// Serves the guest until it is gone. Each queue has a thread of its own. Calls `serving` once the guest can find
    /// the disk.
    pub(crate) fn run(&self, serving: impl FnOnce()) -> Result<()> {
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&self.device);
            let bells = (0..self.device.queues.len()).map(|queue| {
                let (bell, rings) = sync_channel(1);
                // Ends when the other end is dropped.
                scope.spawn(move || rings.iter().for_each(|()| self.device.serve(queue)));
                bell
            });
            let mut function = self.function(Transport::new(&self.device, bells.collect())?)?;
            println!("{}", self.description());
            serving();
            // As `IoreqServer::run` does, but the function learns of each request, and not only of its values.
            loop {
                match self.server.next(None)? {
                    Event::Request(request) => function.serve(request),
                    Event::Gone => break,
                    _ => {}
                }
            }
            self.server.cache().close();
            if let Some(Err(e)) = self.file.as_ref().map(|file| lock(file).remove()) {
                log::warn!("the file with the state of a guest that is gone remains: {e}");
            }
            Ok(())
        })
    }

    /// Returns the function as the guest finds it, or as it has left it.
    pub(crate) fn function<'a>(&'a self, transport: Transport<'a>) -> Result<Function<'a>> {
        let function = |device| Sbdf::new(0, 0, device, 0).ok_or("there is no such device");
        let (at, bus) =
            if self.is_beside_qemu { (function(6)?, None) } else { (function(1)?, Some(Bus::new(function(0)?))) };
        let mut function = Function::new(&self.server, at, transport, bus, self.file.as_ref())?;
        match &self.adopted {
            Some(state) => function.restore(state)?,
            None => function.save()?,
        }
        function.answer()?;
        Ok(function)
    }

    fn description(&self) -> String {
        let (image, adopted) = (self.device.disk.image(), if self.adopted.is_some() { " (adopted)" } else { "" });
        format!(
            "serving domain {}: {}, {} bytes{}, queues: {}, server {}{adopted}",
            self.server.cache().guest().domid(),
            self.name,
            image.len(),
            if image.is_read_only() { ", read-only" } else { "" },
            self.device.queues.len(),
            self.server.id(),
        )
    }

    /// Returns the numbers of requests, bytes, and hits and misses of the cache, in lines.
    pub(crate) fn statistics(&self) -> String {
        let ((requests, bytes), cache) = (self.device.disk.counts(), self.server.cache().statistics());
        format!(
            "{requests} requests, {bytes} bytes read and written\nmap cache: {} hits, {} misses, {} evictions",
            cache.hits, cache.misses, cache.evictions
        )
    }
}

/// Ends the threads of the queues, also after an error or a panic. Otherwise a guest that keeps making requests
/// would keep them running.
struct StopOnDrop<'a>(&'a Device);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_stopping.store(true, Ordering::SeqCst);
    }
}

/// Checks that a state is of this guest, and of a disk with the same options.
fn check(state: &State, domid: Domid, device: &Device, is_beside_qemu: bool) -> Result<()> {
    let (number, image) = (state.number::<u64>("domain")?, device.disk.image());
    if number != u64::from(domid.get()) {
        return Err(format!("the state is of domain {number}: remove the file, or use another one").into());
    }
    if state.get("image")? != image.identity() {
        return Err("the state is of a disk with another --image".into());
    }
    let size = state.number::<u64>("size")?;
    if size != image.len() {
        return Err(format!("the state is of an image of {size} bytes").into());
    }
    let queues = state.all("queue").count();
    if queues != device.queues.len() {
        return Err(format!("the state is of a disk with --queues {queues}").into());
    }
    for (name, option, is) in
        [("read_only", "--read-only", image.is_read_only()), ("beside_qemu", "--beside-qemu", is_beside_qemu)]
    {
        if state.number::<u64>(name)? != u64::from(is) {
            let with = if is { "without" } else { "with" };
            return Err(format!("the state is of a disk {with} {option}").into());
        }
    }
    Ok(())
}
