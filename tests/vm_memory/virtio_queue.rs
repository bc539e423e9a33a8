//! rust-vmm's virtio-queue on a guest's RAM: a driver in the guest, and a disk that serves it.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]
#![expect(clippy::print_stdout, reason = "shows the memory of a failed test")]

use std::io::{Read, Write};
use std::sync::Arc;

use crate::common::{FRAME, mock, pfns};
use virtio_queue::{DescriptorChain, Queue, QueueT, Reader, Writer};
use vm_memory::bitmap::BS;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory, GuestRegionCollection};
use xenmap::mock::{Dom0, MockDomain, MockHost};
use xenmap::vm_memory::{CachedMemory, RamRegion};
use xenmap::{CacheConfig, Gfn, Guest, GuestKind, MapCache};

const FRAMES: usize = 64;
const END: u64 = (FRAMES * FRAME) as u64;
/// The address of a ballooned-out frame.
const HOLE: u64 = 0x9000;

const QUEUE_SIZE: u16 = 16;
// Each crosses a border of frames, and so of the smallest buckets. In the used ring, even one element does.
const DESCRIPTORS: u64 = 0x1F80;
const AVAILABLE: u64 = 0x2FF6;
const USED: u64 = 0x3FC0;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const IN: u32 = 0;
const OUT: u32 = 1;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const NOT_YET: u8 = 0xEE;

const SECTOR: usize = 512;

/// The driver in the guest, which reads and writes RAM as a guest does.
struct Driver {
    guest: MockDomain,
    /// The number of chains made available.
    available: u16,
}

/// A buffer of a chain: address, length, and whether the device writes it.
type Buffer = (u64, u32, bool);

impl Driver {
    fn write(&self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address % FRAME as u64).unwrap();
        self.guest.write(Gfn::containing(address).unwrap(), offset, bytes);
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let offset = usize::try_from(address % FRAME as u64).unwrap();
        self.guest.read(Gfn::containing(address).unwrap(), offset, len)
    }

    fn write_descriptor(&self, table: u64, index: u16, (address, len): (u64, u32), flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// Writes a chain to the first entries of a table.
    fn write_chain(&self, table: u64, buffers: &[Buffer]) {
        for (&(address, len, is_written), index) in buffers.iter().zip(0..) {
            let more = if usize::from(index) + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if is_written { WRITE } else { 0 };
            self.write_descriptor(table, index, (address, len), flags, index + 1);
        }
    }

    /// Makes the chain that begins at the table's first entry available.
    fn kick(&mut self) {
        self.write(AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE), &0_u16.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    /// Returns how many chains came back, and the last one's head and number of written bytes.
    fn used(&self) -> (u16, u32, u32) {
        let count = u16::from_le_bytes(self.read(USED + 2, 2).try_into().unwrap());
        let element = self.read(USED + 4 + 8 * u64::from(count.wrapping_sub(1) % QUEUE_SIZE), 8);
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
        (count, word(0), word(4))
    }

    fn write_header(&self, address: u64, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(address, &header);
    }
}

/// The device: a queue, a disk, and one kind of access to the guest's RAM.
struct Device {
    memory: Memory,
    queue: Queue,
    disk: Vec<u8>,
}

enum Memory {
    Whole(Arc<GuestRegionCollection<RamRegion>>),
    Cached(CachedMemory),
}

impl Device {
    /// Serves all requests in the queue.
    fn serve(&mut self) {
        match &self.memory {
            Memory::Whole(ram) => serve(ram, &mut self.queue, &mut self.disk),
            Memory::Cached(ram) => serve(ram, &mut self.queue, &mut self.disk),
        }
    }

    fn has_valid_queue(&self) -> bool {
        match &self.memory {
            Memory::Whole(ram) => self.queue.is_valid(&**ram),
            Memory::Cached(ram) => self.queue.is_valid(&*ram.memory()),
        }
    }
}

fn serve<A: GuestAddressSpace>(space: &A, queue: &mut Queue, disk: &mut [u8]) {
    let memory = space.memory();
    assert!(queue.is_valid(&*memory));
    drop(memory);
    loop {
        // A new object for each request, so that only one request's memory is pinned.
        let memory = space.memory();
        let Some(chain) = queue.pop_descriptor_chain(memory.clone()) else { break };
        let head = chain.head_index();
        let written = serve_request::<A>(&memory, chain, disk).unwrap_or(0);
        if queue.add_used(&*memory, head, written).is_err() {
            queue.set_ready(false);
            break;
        }
    }
}

/// Serves a virtio-blk request, and returns how many bytes it wrote to the guest. Fails if the chain is malformed.
fn serve_request<A: GuestAddressSpace>(
    memory: &A::M,
    chain: DescriptorChain<A::T>,
    disk: &mut [u8],
) -> Result<u32, Box<dyn std::error::Error>> {
    let mut reader: Reader<'_, BS<'_, <A::M as GuestMemory>::Bitmap>> = chain.clone().reader(memory)?;
    let mut writer: Writer<'_, BS<'_, <A::M as GuestMemory>::Bitmap>> = chain.writer(memory)?;
    let mut header = [0; 16];
    reader.read_exact(&mut header)?;
    let kind = u32::from_le_bytes(header[..4].try_into()?);
    let sector = usize::try_from(u64::from_le_bytes(header[8..].try_into()?))?;
    let mut status = writer.split_at(writer.available_bytes().checked_sub(1).ok_or("no status byte")?)?;
    let len = if kind == IN { writer.available_bytes() } else { reader.available_bytes() };
    let start = sector.saturating_mul(SECTOR);
    let sectors = disk.get_mut(start..start.saturating_add(len));
    let answer = match (kind, sectors) {
        (IN, Some(sectors)) => writer.write_all(sectors).map(|()| OK)?,
        (OUT, Some(sectors)) => reader.read_exact(sectors).map(|()| OK)?,
        _ => IO_ERROR,
    };
    status.write_all(&[answer])?;
    Ok(u32::try_from(writer.bytes_written() + status.bytes_written())?)
}

/// Returns a guest's RAM through a cache whose budget is one bucket.
fn cached(guest: Guest, bucket_size: usize) -> CachedMemory {
    let mut config = CacheConfig::default();
    config.bucket_size = bucket_size;
    config.budget = bucket_size;
    let cache = MapCache::with_config(guest, config).unwrap();
    CachedMemory::new(Arc::new(cache), &[0..16, 16..FRAMES as u64].map(pfns))
}

/// Runs a test with RAM mapped as a whole, and through caches with several bucket sizes.
fn with_each_memory(test: impl Fn(&MockHost, &mut Driver, &mut Device)) {
    for bucket_size in [None, Some(4 << 10), Some(16 << 10), Some(64 << 10)] {
        println!("buckets: {bucket_size:?}");
        let host = mock(Dom0::Pv);
        let guest = host.create_domain(GuestKind::Hvm, FRAMES);
        guest.balloon_out(Gfn::containing(HOLE).unwrap());
        let foreign = host.open().unwrap();
        let opened = Guest::open(&foreign, guest.domid()).unwrap();
        let memory = match bucket_size {
            Some(bucket_size) => Memory::Cached(cached(opened, bucket_size)),
            None => Memory::Whole(Arc::new(opened.map_ram(&[0..16, 16..FRAMES as u64].map(pfns)).unwrap())),
        };
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        let disk = (0..=250).cycle().take(64 * SECTOR).collect();
        let mut device = Device { memory, queue, disk };
        let mut driver = Driver { guest: guest.clone(), available: 0 };
        test(&host, &mut driver, &mut device);
        if let Memory::Cached(ram) = &device.memory {
            assert_eq!(ram.cache().statistics().pinned, 0, "the request is still pinned");
        }
        drop(device);
        assert_eq!(host.references(guest.domid()), 0);
        guest.destroy();
        assert_eq!(host.zombies(), []);
    }
}

#[test]
fn block_read_fills_buffers_across_buckets() {
    with_each_memory(|_, driver, device| {
        driver.write_header(0x5FF8, IN, 3);
        driver.write(0x7FFF, &[NOT_YET]);
        let buffers = [
            (0x5FF8, 16, false),
            (0xAF01, 512, true),
            (0xBFFF, 2, true),
            (0x1_0F00, 3 * 4096, true),
            (0x6000, 1022, true),
            (0x7FFF, 1, true),
        ];
        driver.write_chain(DESCRIPTORS, &buffers);
        driver.kick();
        device.serve();
        assert_eq!(driver.used(), (1, 0, 512 + 2 + 3 * 4096 + 1022 + 1));
        assert_eq!(driver.read(0x7FFF, 1), [OK]);
        let mut data = Vec::new();
        for &(address, len, _) in &buffers[1..5] {
            data.extend(driver.read(address, len as usize));
        }
        assert_eq!(data, device.disk[3 * SECTOR..][..data.len()]);
        assert_eq!(driver.read(0xB101, 1), [0], "one byte too many was written");
    });
}

#[test]
fn block_write_takes_buffers_across_buckets() {
    with_each_memory(|_, driver, device| {
        let before = device.disk.clone();
        driver.write_header(0x6FF0, OUT, 1);
        let text: Vec<u8> = (0..=240).rev().cycle().take(5 * SECTOR).collect();
        driver.write(0xCE00, &text[..2 * SECTOR]);
        driver.write(0xAF80, &text[2 * SECTOR..]);
        let buffers = [(0x6FF0, 16, false), (0xCE00, 1024, false), (0xAF80, 1536, false), (0x5000, 1, true)];
        driver.write_chain(DESCRIPTORS, &buffers);
        driver.write(0x5000, &[NOT_YET]);
        driver.kick();
        device.serve();
        assert_eq!(driver.used(), (1, 0, 1));
        assert_eq!(driver.read(0x5000, 1), [OK]);
        assert_eq!(device.disk[SECTOR..6 * SECTOR], text);
        assert_eq!(device.disk[6 * SECTOR..], before[6 * SECTOR..]);
        assert_eq!(device.disk[..SECTOR], before[..SECTOR]);
    });
}

#[test]
fn indirect_table_across_buckets_is_followed() {
    with_each_memory(|_, driver, device| {
        let table = 0x1_3FE8;
        driver.write_header(0x5000, IN, 0);
        driver.write_chain(table, &[(0x5000, 16, false), (0x1_5E00, 1024, true), (0x5010, 1, true)]);
        driver.write_descriptor(DESCRIPTORS, 0, (table, 3 * 16), INDIRECT, 0);
        driver.kick();
        device.serve();
        assert_eq!(driver.used(), (1, 0, 1025));
        assert_eq!(driver.read(0x1_5E00, 1024), device.disk[..1024]);
    });
}

#[test]
fn rings_wrap_around() {
    with_each_memory(|_, driver, device| {
        for round in 0..3 * QUEUE_SIZE {
            let sector = u64::from(round % 60);
            driver.write_header(0x5000, IN, sector);
            driver.write_chain(DESCRIPTORS, &[(0x5000, 16, false), (0xBF00, 512, true), (0x5010, 1, true)]);
            driver.kick();
            device.serve();
            assert_eq!(driver.used(), (round + 1, 0, 513));
            assert_eq!(driver.read(0xBF00, 512), device.disk[usize::from(round % 60) * SECTOR..][..SECTOR]);
        }
    });
}

#[test]
fn malformed_chain_comes_back_unserved() {
    with_each_memory(|_, driver, device| {
        let disk = device.disk.clone();
        driver.write_header(0x5000, OUT, 0);
        let (header, status) = ((0x5000, 16, false), (0x5010, 1, true));
        let malformed: [&[Buffer]; 11] = [
            &[header, (END, 512, false), status],
            &[header, (END - 511, 512, false), status],
            &[header, (0x6000, u32::MAX, false), status],
            &[header, (u64::MAX, 1, false), status],
            &[header, (u64::MAX - 511, 512, false), status],
            &[header, (HOLE, 512, false), status],
            &[header, (HOLE - 4, 512, false), status],
            &[header, (0x6000, 512, false), (HOLE, 1, true)],
            &[header, (0x6000, 512, false)],
            &[(0x5000, 15, false), status],
            &[],
        ];
        for (buffers, count) in malformed.into_iter().zip(1..) {
            driver.write_descriptor(DESCRIPTORS, 0, (0, 0), 0, 0);
            driver.write_chain(DESCRIPTORS, buffers);
            driver.write(0x5010, &[NOT_YET]);
            driver.kick();
            device.serve();
            assert_eq!(driver.used(), (count, 0, 0), "{buffers:x?}");
            assert_eq!(driver.read(0x5010, 1), [NOT_YET], "{buffers:x?}");
        }
        assert!(device.disk == disk, "nothing was written");
    });
}

#[test]
fn cyclic_chain_ends() {
    with_each_memory(|_, driver, device| {
        driver.write_header(0x5000, OUT, 0);
        driver.write_descriptor(DESCRIPTORS, 0, (0x5000, 16), NEXT, 1);
        driver.write_descriptor(DESCRIPTORS, 1, (0x6000, 512), NEXT, 0);
        driver.kick();
        device.serve();
        assert_eq!(driver.used(), (1, 0, 0), "no status byte");
        // An indirect table that points to itself.
        driver.write_descriptor(DESCRIPTORS, 0, (DESCRIPTORS, 16), INDIRECT, 0);
        driver.kick();
        device.serve();
        assert_eq!(driver.used(), (2, 0, 0));
    });
}

#[test]
fn head_past_the_table_is_refused() {
    with_each_memory(|_, driver, device| {
        driver.write(AVAILABLE + 4, &QUEUE_SIZE.to_le_bytes());
        driver.write(AVAILABLE + 2, &1_u16.to_le_bytes());
        let Memory::Cached(ram) = &device.memory else { return };
        let memory = ram.memory();
        let mut chain = device.queue.pop_descriptor_chain(Arc::clone(&memory)).unwrap();
        assert!(chain.next().is_none());
        assert!(device.queue.add_used(&*memory, chain.head_index(), 0).is_err());
        assert_eq!(driver.used().0, 0);
    });
}

#[test]
fn queue_outside_of_ram_is_not_valid() {
    with_each_memory(|_, _, device| {
        assert!(device.has_valid_queue());
        for table in [END - 0x80, HOLE - 0x80, END, !0xF] {
            device.queue.try_set_desc_table_address(GuestAddress(table)).unwrap();
            assert!(!device.has_valid_queue(), "{table:#x}");
        }
    });
}

#[test]
fn request_sees_the_guests_current_memory() {
    with_each_memory(|_, driver, device| {
        let Memory::Cached(ram) = &device.memory else { return };
        let cache = Arc::clone(ram.cache());
        driver.write_header(0x5000, IN, 7);
        driver.write_chain(DESCRIPTORS, &[(0x5000, 16, false), (0x8000, 512, true), (0x5010, 1, true)]);
        driver.kick();
        device.serve();
        let frame = Gfn::containing(0x8000).unwrap();
        driver.guest.balloon_out(frame);
        driver.guest.populate(&[frame]);
        cache.invalidate(0x8000..0x9000);
        driver.kick();
        device.serve();
        assert_eq!(driver.used(), (2, 0, 513));
        assert_eq!(driver.read(0x8000, 512), device.disk[7 * SECTOR..8 * SECTOR]);
    });
}

#[test]
fn frames_written_by_a_request_are_reported() {
    with_each_memory(|_, driver, device| {
        let Memory::Cached(ram) = &device.memory else { return };
        let cache = Arc::clone(ram.cache());
        driver.write_header(0x5000, IN, 7);
        driver.write_chain(DESCRIPTORS, &[(0x5000, 16, false), (0xAF00, 512, true), (0xC010, 1, true)]);
        driver.kick();
        cache.track_dirty(true);
        device.serve();
        // The data, the status, and the used ring.
        assert_eq!(cache.take_dirty(), [3..4, 10..13]);
        assert!(cache.take_dirty().is_empty());
    });
}
