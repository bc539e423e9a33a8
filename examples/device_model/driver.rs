//! The guest's side on the simulated host: a driver that submits random reads and writes, and checks every answer.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_OK, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use xenmap::mock::{MockDomain, MockVcpu};
use xenmap::{FRAME_SIZE, Gfn};

use super::Result;
use super::probe::{self, Found};

const SECTOR: usize = 512;

/// The requests in flight. Each has memory of its own: a frame for header and status, then the data.
const SLOTS: u16 = 8;
const FIRST_SLOT: u64 = 16 << 20;
const SLOT_SIZE: u64 = 4 << 20;

/// The queues that the driver uses at most, and their size. Each queue's parts span borders of the device's buckets,
/// which is the hard case.
const MOST_QUEUES: u16 = 4;
const QUEUE_SIZE: u16 = 64;
const MIB: u64 = 1 << 20;

/// The descriptors of a request: header, two pieces of data, status.
const CHAIN: u16 = 4;
const HAS_NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// The data of the messages: of the configuration, and of queue 0.
const CONFIGURATION: u32 = 0x40;
const QUEUE: u32 = 0x41;

/// A driver in a guest of the simulated host.
pub(crate) struct Driver<'a> {
    guest: &'a MockDomain,
    vcpu: MockVcpu,
    device: Found,
    /// The number of requests that were put into each queue, which is also that of answers once they are waited for.
    queues: Vec<u16>,
    /// The expected content of the disk. Each queue has a part, since requests in two queues have no order.
    disk: Vec<u8>,
    random: usize,
}

/// A request in flight.
struct Request {
    slot: u16,
    data: [(u64, usize); 2],
    /// What must be read.
    expected: Option<Vec<u8>>,
}

impl<'a> Driver<'a> {
    /// Finds the disk, which has this content, and starts it.
    pub(crate) fn start(guest: &'a MockDomain, content: Vec<u8>) -> Result<Driver<'a>> {
        let vcpu = guest.vcpu(0);
        let device = probe::find_disk(&vcpu)?;
        let sectors = usize::try_from(vcpu.read(device.configuration, 8)?)?;
        let queues = u16::try_from(vcpu.read(device.common + 0x12, 2)?)?.min(MOST_QUEUES);
        if content.len() != sectors * SECTOR {
            return Err(format!("the disk has {sectors} sectors").into());
        }
        let queue_counts = vec![0; queues.into()];
        let mut driver = Driver { guest, vcpu, device, queues: queue_counts, disk: content, random: 0x9E37_79B9 };
        driver.set_up(queues)?;
        Ok(driver)
    }

    fn set_up(&mut self, queues: u16) -> Result<()> {
        self.device.enable_messages(&self.vcpu, CONFIGURATION, queues + 1)?;
        self.set(0x14, 1, 0)?; // reset
        self.set(0x14, 1, 1 | 2)?; // a driver has found the device
        for half in 0..2 {
            self.set(0x00, 4, half)?;
            let offered = self.get(0x04, 4)?;
            self.set(0x08, 4, half)?;
            self.set(0x0C, 4, offered)?;
        }
        self.set(0x14, 1, 1 | 2 | 8)?; // has accepted the features
        if self.get(0x14, 1)? & 8 == 0 {
            return Err("the device refuses its own features".into());
        }
        self.set(0x10, 2, 0)?;
        for queue in 0..queues {
            let ring = [0; 6 + 8 * QUEUE_SIZE as usize];
            self.write(available(queue), &ring)?;
            self.write(used(queue), &ring)?;
            self.set(0x16, 2, queue.into())?;
            self.set(0x18, 2, QUEUE_SIZE.into())?;
            self.set(0x1A, 2, u64::from(queue) + 1)?;
            for (register, address) in [(0x20, descriptors(queue)), (0x28, available(queue)), (0x30, used(queue))] {
                self.set(register, 4, address & 0xFFFF_FFFF)?;
                self.set(register + 4, 4, address >> 32)?;
            }
            self.set(0x1C, 2, 1)?;
        }
        self.set(0x14, 1, 1 | 2 | 8 | 4)
    }

    /// Makes at least this many requests, and checks the answers.
    pub(crate) fn run(&mut self, requests: usize) -> Result<()> {
        for round in 0..requests.div_ceil(usize::from(SLOTS) - 1) {
            // One slot at a time is idle. Now and then, its memory is ballooned while the device is working.
            let idle = u16::try_from(round % usize::from(SLOTS))?;
            let busy = (0..SLOTS).filter(|&slot| slot != idle);
            let requests: Vec<Request> = busy.map(|slot| self.submit_random(slot)).collect::<Result<_>>()?;
            let kicked = self.kick(&requests)?;
            if round % 64 == 0 {
                self.balloon(idle)?;
            }
            self.wait(&kicked)?;
            requests.iter().try_for_each(|request| self.check(request))?;
            if round % 64 == 1 {
                self.clear_and_flush()?;
            }
        }
        Ok(())
    }

    /// Puts a random read or write into a queue.
    fn submit_random(&mut self, slot: u16) -> Result<Request> {
        let len = SECTOR * (2 + self.below(40));
        let first = (data(slot) + self.below(1 << 20) as u64, 1 + self.below(len - 1));
        let second = (first.0 + (first.1 + self.below(1 << 20)) as u64, len - first.1);
        let sector = self.place(slot, len);
        let factor = u8::try_from(self.below(256))?;
        let place = &mut self.disk[sector * SECTOR..][..len];
        if factor % 2 == 0 {
            let expected = Some(place.to_vec());
            self.submit(slot, VIRTIO_BLK_T_IN, sector, [first, second])?;
            return Ok(Request { slot, data: [first, second], expected });
        }
        let bytes: Vec<u8> = (0..=u8::MAX).map(|i| i.wrapping_mul(factor)).cycle().take(len).collect();
        place.copy_from_slice(&bytes);
        self.write(first.0, &bytes[..first.1])?;
        self.write(second.0, &bytes[first.1..])?;
        self.submit(slot, VIRTIO_BLK_T_OUT, sector, [first, second])?;
        Ok(Request { slot, data: [first, second], expected: None })
    }

    /// Discards sectors, makes them zero, flushes, and asks for the disk's name.
    fn clear_and_flush(&mut self) -> Result<()> {
        let (slot, sectors) = (0, 1 + self.below(64));
        let sector = self.place(slot, sectors * SECTOR);
        let range = [&sector.to_le_bytes()[..], &u32::try_from(sectors)?.to_le_bytes(), &[0; 4]].concat();
        self.disk[sector * SECTOR..][..sectors * SECTOR].fill(0);
        let name = b"xenmap\0\0".to_vec();
        for (kind, len, expected) in [
            (VIRTIO_BLK_T_DISCARD, 16, None),
            (VIRTIO_BLK_T_WRITE_ZEROES, 16, None),
            (VIRTIO_BLK_T_FLUSH, 0, None),
            (VIRTIO_BLK_T_GET_ID, 8, Some(name)),
        ] {
            self.write(data(slot), &range)?;
            let pieces = [(data(slot), len), (data(slot), 0)];
            self.submit(slot, kind, 0, pieces)?;
            let request = Request { slot, data: pieces, expected };
            let kicked = self.kick(std::slice::from_ref(&request))?;
            self.wait(&kicked)?;
            self.check(&request)?;
        }
        Ok(())
    }

    /// Puts a request into the queue of a slot.
    fn submit(&mut self, slot: u16, kind: u32, sector: usize, [first, second]: [(u64, usize); 2]) -> Result<()> {
        let queue = self.queue_of(slot);
        let is_read = matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID);
        let flags = if is_read { HAS_NEXT | DEVICE_WRITES } else { HAS_NEXT };
        let no_status_yet = [0xEE];
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), &no_status_yet].concat();
        self.write(header_of(slot), &header)?;
        let chain = [
            (header_of(slot), 16, HAS_NEXT),
            (first.0, first.1, flags),
            (second.0, second.1, flags),
            (header_of(slot) + 16, 1, DEVICE_WRITES),
        ];
        let head = slot * CHAIN;
        for ((address, len, flags), index) in chain.into_iter().zip(head..) {
            let len = u32::try_from(len)?.to_le_bytes();
            let (flags, next) = (flags.to_le_bytes(), (index + 1).to_le_bytes());
            let descriptor = [&address.to_le_bytes()[..], &len, &flags, &next].concat();
            self.write(descriptors(queue) + 16 * u64::from(index), &descriptor)?;
        }
        let count = &mut self.queues[usize::from(queue)];
        let place = *count % QUEUE_SIZE;
        *count = count.wrapping_add(1);
        self.write(available(queue) + 4 + 2 * u64::from(place), &head.to_le_bytes())
    }

    /// Makes requests available, notifies the device of them, and returns their queues.
    fn kick(&self, requests: &[Request]) -> Result<Vec<u16>> {
        let mut queues: Vec<u16> = requests.iter().map(|request| self.queue_of(request.slot)).collect();
        queues.sort_unstable();
        queues.dedup();
        for &queue in &queues {
            let count = self.queues[usize::from(queue)];
            // The device interrupts when it has answered the last one.
            let event = available(queue) + 4 + 2 * u64::from(QUEUE_SIZE);
            self.write(event, &count.wrapping_sub(1).to_le_bytes())?;
            self.write(available(queue) + 2, &count.to_le_bytes())?;
            let at = self.device.notify + u64::from(queue) * self.device.notify_step;
            self.vcpu.write(at, 2, queue.into())?;
        }
        Ok(queues)
    }

    /// Waits until the device has answered all requests of these queues.
    fn wait(&self, queues: &[u16]) -> Result<()> {
        for &queue in queues {
            // There may be more interrupts than needed.
            while self.read(used(queue) + 2, 2)? != self.queues[usize::from(queue)].to_le_bytes() {
                match self.guest.wait_for_msi() {
                    Some((0xFEE0_0000, QUEUE..)) => {}
                    other => return Err(format!("unexpected message: {other:x?}").into()),
                }
            }
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<()> {
        let status = self.read(header_of(request.slot) + 16, 1)?;
        if u32::from(status[0]) != VIRTIO_BLK_S_OK {
            return Err(format!("slot {}: status {status:?}", request.slot).into());
        }
        let [first, second] = request.data;
        match &request.expected {
            Some(expected) if [self.read(first.0, first.1)?, self.read(second.0, second.1)?].concat() != *expected => {
                Err("the data read differs from the data written".into())
            }
            _ => Ok(()),
        }
    }

    /// Balloons frames of a slot out and in again, so that the guest has new memory there.
    fn balloon(&self, slot: u16) -> Result<()> {
        let frames: Vec<Gfn> = Gfn::containing(data(slot))?.range(16)?.into_iter().collect();
        for &frame in &frames {
            self.guest.balloon_out(frame); // waits until the device model has let go of it
        }
        self.guest.populate(&frames);
        Ok(())
    }

    fn queue_of(&self, slot: u16) -> u16 {
        slot % u16::try_from(self.queues.len()).unwrap_or(1)
    }

    /// Returns a random sector of the part of the disk that the slot's queue has, with `len` bytes after it.
    fn place(&mut self, slot: u16, len: usize) -> usize {
        let part = self.disk.len() / self.queues.len() / SECTOR;
        usize::from(self.queue_of(slot)) * part + self.below(part - len / SECTOR)
    }

    fn get(&self, register: u64, size: usize) -> Result<u64> {
        Ok(self.vcpu.read(self.device.common + register, size)?)
    }

    fn set(&self, register: u64, size: usize, value: u64) -> Result<()> {
        Ok(self.vcpu.write(self.device.common + register, size, value)?)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.guest.write(Gfn::containing(address)?, usize::try_from(address)? % FRAME_SIZE, bytes);
        Ok(())
    }

    fn read(&self, address: u64, len: usize) -> Result<Vec<u8>> {
        Ok(self.guest.read(Gfn::containing(address)?, usize::try_from(address)? % FRAME_SIZE, len))
    }

    /// Returns a pseudorandom number below `limit` (xorshift).
    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }
}

fn descriptors(queue: u16) -> u64 {
    (3 * u64::from(queue) + 1) * MIB - 0x80
}

fn available(queue: u16) -> u64 {
    (3 * u64::from(queue) + 2) * MIB - 0x10
}

fn used(queue: u16) -> u64 {
    (3 * u64::from(queue) + 3) * MIB - 0x40
}

fn header_of(slot: u16) -> u64 {
    FIRST_SLOT + u64::from(slot) * SLOT_SIZE
}

fn data(slot: u16) -> u64 {
    header_of(slot) + FRAME_SIZE as u64
}
