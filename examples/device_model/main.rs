//! A small device model: a disk (virtio-blk) for a guest of the simulated host.
//!
//!     cargo run --release --example device_model --features vm-memory
//!
//! The device is what would run on Xen: it reaches the guest's RAM through a [`MapCache`], of which it keeps little, and
//! lets rust-vmm's virtio-queue walk the queue. The guest is a thread that fills that queue, checks every answer, and
//! gives RAM back and takes other in its place meanwhile. For a while the guest is "migrated", and the frames that the
//! device writes are gathered.
//!
//! On a real Xen, [`ForeignMemory::open`](xenmap::ForeignMemory::open) takes the place of [`MockHost::open`], and what
//! is an [`Event`] here arrives through an ioreq server (libxendevicemodel).

#![expect(clippy::print_stdout, reason = "prints what it found")]

mod driver;

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use clap::Parser;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace};
use xenmap::mock::MockHost;
use xenmap::vm_memory::{CachedMemory, PinnedMemory};
use xenmap::{CacheConfig, Guest, GuestKind, MapCache, Pfn};

use driver::{AVAILABLE, DESCRIPTORS, Driver, USED};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Serves the disk of a simulated guest.
#[derive(Parser)]
struct Args {
    /// How many requests the guest makes at least.
    #[arg(long, default_value_t = 50_000)]
    requests: usize,
}

const RAM_FRAMES: usize = 16 << 10;
const DISK_SIZE: usize = 8 << 20;
const SECTOR: usize = 512;
const QUEUE_SIZE: u16 = 64;
/// The longest request that is served, in bytes. All that a request names is mapped at once, so a guest must not say how
/// much that is.
const LONGEST_REQUEST: u64 = 1 << 20;

/// The requests of virtio-blk, and the answers.
const READ: u32 = 0;
const WRITE: u32 = 1;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// What a device model is told.
enum Event {
    /// The guest has filled the queue: on Xen a write to the device's doorbell, an ioreq or an event channel.
    Kick,
    /// The guest has changed its memory: an ioreq of type `IOREQ_TYPE_INVALIDATE`, which asks to unmap all that is
    /// cached. The guest's vcpu waits until it is answered.
    Invalidate(Sender<()>),
    /// The toolstack begins or ends to migrate the guest.
    Migration(bool),
}

fn main() -> Result<()> {
    let args = Args::parse();
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, RAM_FRAMES);

    let foreign_memory = host.open()?;
    let guest = Guest::open(&foreign_memory, domain.domid())?;
    let ram = guest.ram_map()?.ranges();
    foreign_memory.restrict(domain.domid())?; // from now on it maps this guest's memory only, whatever happens
    let mut config = CacheConfig::default();
    config.bucket_size = 64 << 10;
    config.budget = 8 << 20; // of 64 MiB
    let cache = Arc::new(MapCache::with_config(guest.clone(), config)?);
    let memory = CachedMemory::new(Arc::clone(&cache), &ram);

    let (to_device, events) = channel();
    let (interrupt, interrupts) = channel();
    let started = Instant::now();
    let (device, driver) = std::thread::scope(|scope| {
        let device = scope.spawn(move || Device::new(guest, memory)?.run(events, &interrupt));
        let driver = Driver::new(&domain, to_device, interrupts).run(args.requests);
        (device.join(), driver)
    });
    let device = device.map_err(|_| "the device has panicked")??;
    driver?;
    let bytes_per_us = u128::from(device.bytes) / started.elapsed().as_micros().max(1);

    let statistics = cache.statistics();
    println!(
        "domain {}: {} requests, {} bytes, {bytes_per_us} MB/s",
        device.guest.domid(),
        device.requests,
        device.bytes
    );
    println!("every answer was right");
    println!("{} hits, {} misses, {} evictions", statistics.hits, statistics.misses, statistics.evictions);
    println!("{} invalidations, {} frames written under migration", device.invalidations, device.written.len());

    // The guest dies while some of it is mapped. Until the device model hears of it, and closes its cache, Xen keeps
    // what is left of the domain.
    domain.destroy();
    println!("dead, with {} frames mapped: zombies {:?}", host.references(domain.domid()), host.zombies());
    cache.close();
    println!("closed, with {} frames mapped: zombies {:?}", host.references(domain.domid()), host.zombies());
    if host.zombies().is_empty() { Ok(()) } else { Err("something is still mapped".into()) }
}

/// The disk, and what it has done. It owns all that it needs, so it can live as long as it likes, on any thread.
struct Device {
    guest: Guest,
    memory: CachedMemory,
    queue: Queue,
    disk: Vec<u8>,
    requests: usize,
    bytes: u64,
    invalidations: usize,
    /// The frames that were written while the guest was migrated.
    written: BTreeSet<Pfn>,
}

impl Device {
    fn new(guest: Guest, memory: CachedMemory) -> Result<Device> {
        // A real driver tells the device where it has put the queue.
        let mut queue = Queue::new(QUEUE_SIZE)?;
        queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS))?;
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE))?;
        queue.try_set_used_ring_address(GuestAddress(USED))?;
        queue.set_ready(true);
        if !queue.is_valid(&*memory.memory()) {
            return Err("the queue is not in the guest's RAM".into());
        }
        let written = BTreeSet::new();
        Ok(Device { guest, memory, queue, disk: vec![0; DISK_SIZE], requests: 0, bytes: 0, invalidations: 0, written })
    }

    fn run(mut self, events: Receiver<Event>, interrupt: &Sender<()>) -> Result<Device> {
        let cache = Arc::clone(self.memory.cache());
        for event in events {
            match event {
                Event::Kick => {
                    self.serve();
                    interrupt.send(())?;
                }
                Event::Invalidate(done) => {
                    cache.invalidate_all();
                    self.invalidations += 1;
                    done.send(())?;
                }
                Event::Migration(is_on) => cache.track_dirty(is_on),
            }
            // To be passed to XEN_DMOP_modified_memory: Xen does not see what is written through a mapping, and would
            // not send these frames again.
            self.written.extend(cache.take_dirty().into_iter().flatten());
        }
        Ok(self)
    }

    /// Serves all that is in the queue.
    fn serve(&mut self) {
        loop {
            // What a request uses stays mapped until `memory` is dropped: so each has its own.
            let memory = self.memory.memory();
            let Some(chain) = self.queue.pop_descriptor_chain(Arc::clone(&memory)) else { return };
            let head = chain.head_index();
            // A chain that makes no sense comes back as it is: there is no place for an answer.
            let (written, moved) = serve_request(&memory, chain, &mut self.disk).unwrap_or((0, 0));
            if self.queue.add_used(&*memory, head, written).is_err() {
                // The queue itself makes no sense. Nothing is served until the driver sets it up anew (a real device
                // says so by the status bit DEVICE_NEEDS_RESET).
                self.queue.set_ready(false);
                return;
            }
            self.requests += 1;
            self.bytes += moved;
        }
    }
}

/// Serves one request: a header, then the data, then a byte for the answer. Returns how many bytes were written to the
/// guest, and how many of the disk were moved. The guest may have written anything: its lengths have a limit, and no index
/// is trusted.
fn serve_request(
    memory: &PinnedMemory,
    chain: DescriptorChain<Arc<PinnedMemory>>,
    disk: &mut [u8],
) -> Result<(u32, u64)> {
    if chain.clone().map(|descriptor| u64::from(descriptor.len())).sum::<u64>() > LONGEST_REQUEST {
        return Err("it is too long".into());
    }
    let mut input = chain.clone().reader(memory)?;
    let mut output = chain.writer(memory)?;
    let mut header = [0; 16];
    input.read_exact(&mut header)?;
    let (kind, sector) = (u32::from_le_bytes(header[..4].try_into()?), u64::from_le_bytes(header[8..].try_into()?));
    let mut answer = output.split_at(output.available_bytes().checked_sub(1).ok_or("no place for the answer")?)?;

    let len = if kind == READ { output.available_bytes() } else { input.available_bytes() };
    let start = usize::try_from(sector)?.saturating_mul(SECTOR);
    let (status, moved) = match (kind, disk.get_mut(start..start.saturating_add(len))) {
        (READ, Some(sectors)) => (output.write_all(sectors).map(|()| OK)?, len as u64),
        (WRITE, Some(sectors)) => (input.read_exact(sectors).map(|()| OK)?, len as u64),
        (READ | WRITE, None) => (IO_ERROR, 0),
        _ => (UNSUPPORTED, 0),
    };
    answer.write_all(&[status])?;
    Ok((u32::try_from(output.bytes_written() + answer.bytes_written())?, moved))
}
