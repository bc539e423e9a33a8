//! A small device model: a disk (virtio-blk) for a guest of the simulated host.
//!
//!     cargo run --release --example device_model --features vm-memory
//!
//! The device would run unchanged on Xen: it accesses the guest's RAM through a [`MapCache`] with a small budget, and
//! uses rust-vmm's virtio-queue to walk the queue. The guest is a thread that fills the queue, checks every response,
//! and balloons memory out and in meanwhile. For part of the time the guest is "migrated": the frames that the device
//! writes are recorded.
//!
//! On a real Xen, use [`ForeignMemory::open`](xenmap::ForeignMemory::open) instead of [`MockHost::open`]; each
//! [`Event`] arrives through an ioreq server (libxendevicemodel).

#![expect(clippy::print_stdout, reason = "prints its results")]

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

/// Serves the disk of a simulated guest, and checks every response
#[derive(Parser)]
struct Args {
    /// Make at least this many requests
    #[arg(long, default_value_t = 50_000)]
    requests: usize,
}

const RAM_FRAMES: usize = 16 << 10;
const DISK_SIZE: usize = 8 << 20;
const SECTOR: usize = 512;
const QUEUE_SIZE: u16 = 64;
/// The longest request to serve, in bytes. All memory that a request names is mapped at once, so the device must limit
/// it.
const LONGEST_REQUEST: u64 = 1 << 20;

/// Request types of virtio-blk, then status values.
const READ: u32 = 0;
const WRITE: u32 = 1;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// What happens to a device model.
enum Event {
    /// The guest has filled the queue. On Xen, this is a write to the device's doorbell: an ioreq or an event channel.
    Kick,
    /// The guest has changed its memory. On Xen, this is an ioreq of type `IOREQ_TYPE_INVALIDATE`, which asks to unmap
    /// everything. The guest's vcpu waits for the reply.
    Invalidate(Sender<()>),
    /// The toolstack starts (`true`) or stops migrating the guest.
    Migration(bool),
}

fn main() -> Result<()> {
    let args = Args::parse();
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Hvm, RAM_FRAMES);

    let foreign_memory = host.open()?;
    let guest = Guest::open(&foreign_memory, domain.domid())?;
    let ram = guest.ram_map()?.ranges();
    foreign_memory.restrict(domain.domid())?; // from now on, the handle can only map this guest's memory
    let mut config = CacheConfig::default();
    config.bucket_size = 64 << 10;
    config.budget = 8 << 20; // the guest has 64 MiB
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
        "domain {}: served {} requests, {} bytes at {bytes_per_us} MB/s",
        device.guest.domid(),
        device.requests,
        device.bytes
    );
    println!("all responses were correct");
    println!("cache: {} hits, {} misses, {} evictions", statistics.hits, statistics.misses, statistics.evictions);
    println!("{} invalidations; {} frames dirtied during migration", device.invalidations, device.dirty.len());

    // The guest dies while some of its memory is mapped. Xen keeps the domain as a zombie until the device model closes
    // its cache.
    domain.destroy();
    println!(
        "guest destroyed: {} frames still mapped, {} zombie",
        host.references(domain.domid()),
        host.zombies().len()
    );
    cache.close();
    println!("cache closed: {} frames still mapped, {} zombies", host.references(domain.domid()), host.zombies().len());
    if host.zombies().is_empty() { Ok(()) } else { Err("some frames are still mapped".into()) }
}

/// The disk, and counters. It borrows nothing, so it can live on any thread for any time.
struct Device {
    guest: Guest,
    memory: CachedMemory,
    queue: Queue,
    disk: Vec<u8>,
    requests: usize,
    bytes: u64,
    invalidations: usize,
    /// The frames that were written during migration.
    dirty: BTreeSet<Pfn>,
}

impl Device {
    fn new(guest: Guest, memory: CachedMemory) -> Result<Device> {
        // A real driver passes these addresses to the device.
        let mut queue = Queue::new(QUEUE_SIZE)?;
        queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS))?;
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE))?;
        queue.try_set_used_ring_address(GuestAddress(USED))?;
        queue.set_ready(true);
        if !queue.is_valid(&*memory.memory()) {
            return Err("the queue is not in the guest's RAM".into());
        }
        let dirty = BTreeSet::new();
        Ok(Device { guest, memory, queue, disk: vec![0; DISK_SIZE], requests: 0, bytes: 0, invalidations: 0, dirty })
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
            // A real device model passes these to XEN_DMOP_modified_memory: Xen does not see writes through a mapping,
            // and would not send these frames again.
            self.dirty.extend(cache.take_dirty().into_iter().flatten());
        }
        Ok(self)
    }

    /// Serves all requests in the queue.
    fn serve(&mut self) {
        loop {
            // What a request uses stays mapped until `memory` is dropped, so each request has its own.
            let memory = self.memory.memory();
            let Some(chain) = self.queue.pop_descriptor_chain(Arc::clone(&memory)) else { return };
            let head = chain.head_index();
            // An invalid chain is returned unchanged, since it has no place for a status.
            let (written, moved) = serve_request(&memory, chain, &mut self.disk).unwrap_or((0, 0));
            if self.queue.add_used(&*memory, head, written).is_err() {
                // The queue itself is invalid. Stop until the driver resets the device (a real device asks for that by
                // the status bit DEVICE_NEEDS_RESET).
                self.queue.set_ready(false);
                return;
            }
            self.requests += 1;
            self.bytes += moved;
        }
    }
}

/// Serves one request: a header, the data, and a byte for the status. Returns how many bytes were written to the guest,
/// and how many bytes of the disk were read or written. The request is untrusted: lengths are limited, and indices are
/// checked.
fn serve_request(
    memory: &PinnedMemory,
    chain: DescriptorChain<Arc<PinnedMemory>>,
    disk: &mut [u8],
) -> Result<(u32, u64)> {
    if chain.clone().map(|descriptor| u64::from(descriptor.len())).sum::<u64>() > LONGEST_REQUEST {
        return Err("the request is too long".into());
    }
    let mut input = chain.clone().reader(memory)?;
    let mut output = chain.writer(memory)?;
    let mut header = [0; 16];
    input.read_exact(&mut header)?;
    let (kind, sector) = (u32::from_le_bytes(header[..4].try_into()?), u64::from_le_bytes(header[8..].try_into()?));
    let mut status_byte = output.split_at(output.available_bytes().checked_sub(1).ok_or("no place for the status")?)?;

    let len = if kind == READ { output.available_bytes() } else { input.available_bytes() };
    let start = usize::try_from(sector)?.saturating_mul(SECTOR);
    let (status, moved) = match (kind, disk.get_mut(start..start.saturating_add(len))) {
        (READ, Some(sectors)) => (output.write_all(sectors).map(|()| OK)?, len as u64),
        (WRITE, Some(sectors)) => (input.read_exact(sectors).map(|()| OK)?, len as u64),
        (READ | WRITE, None) => (IO_ERROR, 0),
        _ => (UNSUPPORTED, 0),
    };
    status_byte.write_all(&[status])?;
    Ok((u32::try_from(output.bytes_written() + status_byte.bytes_written())?, moved))
}
