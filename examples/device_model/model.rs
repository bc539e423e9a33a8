//! The device model of a guest: everything from the handles to the loop that serves the guest.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use xenmap::device_model::{EventChannels, Interrupts, IoreqServer, Sbdf, ServerId};
use xenmap::vm_memory::CachedMemory;
use xenmap::{CacheConfig, Domid, ForeignMemory, Guest, MapCache};

use super::Result;
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
    path: Option<PathBuf>,
    adopted: Option<State>,
}

impl Model {
    /// Opens a guest, and creates or adopts a server for it. From then on, the handles can be used for nothing else.
    pub(crate) fn open(memory: &ForeignMemory, domid: Domid, options: Options) -> Result<Model> {
        let adopted = options.server.as_deref().map(StateFile::read).transpose()?.flatten();
        let events = EventChannels::open(memory)?;
        let guest = Guest::open(memory, domid)?;
        let ram = guest.ram_map()?.ranges();
        // A restricted handle makes no hypercalls but those of a device model, so the RAM map comes before.
        memory.restrict(domid)?;
        events.restrict(domid)?;

        let mut config = CacheConfig::default();
        config.budget = options.cache << 20;
        let cache = Arc::new(MapCache::with_config(guest.clone(), config)?);
        let queues =
            (0..options.queues).map(|_| VirtQueue::new().map(Mutex::new)).collect::<std::result::Result<_, _>>();
        let device = Device {
            memory: CachedMemory::new(Arc::clone(&cache), &ram),
            disk: Disk::new(options.image, options.queues),
            queues: queues?,
            signals: Signals::new(Msix::new(Interrupts::new(guest), options.queues + 1)),
            status: AtomicU32::new(0),
            accepted: AtomicU64::new(0),
        };
        let server = match &adopted {
            None => IoreqServer::create(cache, events)?,
            Some(state) => {
                // An error after this destroys the server, so what an operator may get wrong is checked before.
                let ([number], [beside_qemu]) = (state.get("domain")?, state.get("beside_qemu")?);
                let queues = state.all("queue").count();
                if number != u64::from(domid.get()) {
                    return Err(format!("the state is of domain {number}: remove the file, or use another one").into());
                }
                if queues != device.queues.len() {
                    return Err(format!("the state is of a disk with --queues {queues}").into());
                }
                if beside_qemu != u64::from(options.is_beside_qemu) {
                    let with = if options.is_beside_qemu { "without" } else { "with" };
                    return Err(format!("the state is of a disk {with} --beside-qemu").into());
                }
                let [id] = state.get("server")?;
                IoreqServer::adopt(cache, events, ServerId(u16::try_from(id)?))?
            }
        };
        let Options { name, is_beside_qemu, server: path, .. } = options;
        Ok(Model { server, device, name, is_beside_qemu, path, adopted })
    }

    /// Serves the guest until it is gone. Each queue has a thread of its own. Calls `serving` once the guest can find
    /// the disk.
    pub(crate) fn run(&self, serving: impl FnOnce()) -> Result<()> {
        std::thread::scope(|scope| {
            let bells = (0..self.device.queues.len()).map(|queue| {
                let (bell, rings) = sync_channel(1);
                // Ends when the other end is dropped.
                scope.spawn(move || rings.iter().for_each(|()| self.device.serve(queue)));
                bell
            });
            let mut function = self.function(Transport::new(&self.device, bells.collect()))?;
            println!("{}", self.description());
            serving();
            self.server.run(&mut function)?;
            self.server.cache().close();
            if let Err(e) = function.forget() {
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
        let file = self.path.clone().map(StateFile::new);
        let mut function = Function::new(&self.server, at, transport, bus, file)?;
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
