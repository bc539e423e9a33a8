//! The guest: a driver that submits random reads and writes, and checks every response.

use std::sync::mpsc::{Receiver, Sender, channel};

use xenmap::mock::MockDomain;
use xenmap::{FRAME_SIZE, Gfn};

use crate::{DISK_SIZE, Event, OK, QUEUE_SIZE, READ, Result, SECTOR, WRITE};

// The parts of the queue span bucket boundaries, which is the hard case.
pub(crate) const DESCRIPTORS: u64 = 0xFF80;
pub(crate) const AVAILABLE: u64 = 0x1_FFF0;
pub(crate) const USED: u64 = 0x2_FFC0;

/// The maximum number of requests in flight. Each has RAM of its own: a frame for header and status, then the data.
const SLOTS: u16 = 8;
const SLOT_FRAMES: u64 = 1024;
/// The descriptors of a request: header, two pieces of data, status.
const CHAIN: u16 = 4;

const HAS_NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// The driver in the guest.
pub(crate) struct Driver<'a> {
    guest: &'a MockDomain,
    device: Sender<Event>,
    interrupts: Receiver<()>,
    /// How many chains were put into the available ring, and taken from the used ring.
    available: u16,
    used: u16,
    /// The expected content of the disk.
    disk: Vec<u8>,
    random: usize,
}

/// A request in flight: where its data is and, for a read, what the data must be.
struct Request {
    slot: u16,
    data: [(u64, usize); 2],
    expected: Option<Vec<u8>>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(guest: &'a MockDomain, device: Sender<Event>, interrupts: Receiver<()>) -> Driver<'a> {
        Driver { guest, device, interrupts, available: 0, used: 0, disk: vec![0; DISK_SIZE], random: 0x9E37_79B9 }
    }

    pub(crate) fn run(mut self, requests: usize) -> Result<()> {
        let rounds = requests.div_ceil(usize::from(SLOTS) - 1);
        for round in 0..rounds {
            if round == rounds / 3 || round == rounds * 2 / 3 {
                self.device.send(Event::Migration(round == rounds / 3))?;
            }
            // One slot at a time is idle. Now and then, its memory is ballooned while the device is working.
            let idle = u16::try_from(round % usize::from(SLOTS))?;
            let busy = (0..SLOTS).filter(|&slot| slot != idle);
            let requests: Vec<Request> = busy.map(|slot| self.submit(slot)).collect::<Result<_>>()?;
            self.device.send(Event::Kick)?;
            if round % 50 == 0 {
                self.balloon(idle)?;
            }
            self.interrupts.recv()?;
            requests.iter().try_for_each(|request| self.check(request))?;
        }
        Ok(())
    }

    /// Puts a random read or write into the queue.
    fn submit(&mut self, slot: u16) -> Result<Request> {
        let header = slot_frame(slot) * FRAME_SIZE as u64;
        let first = (header + (FRAME_SIZE + self.below(1 << 20)) as u64, 1 + self.below(9000));
        let second = (first.0 + (first.1 + self.below(1 << 20)) as u64, 1 + self.below(9000));
        let len = first.1 + second.1;
        let sector = self.below((DISK_SIZE - len) / SECTOR);
        let factor = u8::try_from(self.below(256))?;
        let place = &mut self.disk[sector * SECTOR..][..len];
        let is_read = factor % 2 == 0;
        let expected = is_read.then(|| place.to_vec());
        if !is_read {
            let bytes: Vec<u8> = (0..=u8::MAX).map(|i| i.wrapping_mul(factor)).cycle().take(len).collect();
            place.copy_from_slice(&bytes);
            self.write(first.0, &bytes[..first.1])?;
            self.write(second.0, &bytes[first.1..])?;
        }

        let (kind, flags) = if is_read { (READ, HAS_NEXT | DEVICE_WRITES) } else { (WRITE, HAS_NEXT) };
        let no_status_yet = [0xEE];
        self.write(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), &no_status_yet].concat())?;
        let chain = [
            (header, 16, HAS_NEXT),
            (first.0, first.1, flags),
            (second.0, second.1, flags),
            (header + 16, 1, DEVICE_WRITES),
        ];
        let head = slot * CHAIN;
        for ((address, len, flags), index) in chain.into_iter().zip(head..) {
            let len = u32::try_from(len)?.to_le_bytes();
            let (flags, next) = (flags.to_le_bytes(), (index + 1).to_le_bytes());
            let descriptor = [&address.to_le_bytes()[..], &len, &flags, &next].concat();
            self.write(DESCRIPTORS + 16 * u64::from(index), &descriptor)?;
        }
        self.write(AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE), &head.to_le_bytes())?;
        self.available = self.available.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.available.to_le_bytes())?;
        Ok(Request { slot, data: [first, second], expected })
    }

    /// Takes the next response, which must be that to `request`.
    fn check(&mut self, request: &Request) -> Result<()> {
        let head = self.read(USED + 4 + 8 * u64::from(self.used % QUEUE_SIZE), 4)?;
        self.used = self.used.wrapping_add(1);
        let status = self.read(slot_frame(request.slot) * FRAME_SIZE as u64 + 16, 1)?;
        if head != u32::from(request.slot * CHAIN).to_le_bytes() || status != [OK] {
            return Err(format!("slot {}: got status {status:?} for chain {head:?}", request.slot).into());
        }
        let [first, second] = request.data;
        match &request.expected {
            Some(expected) if [self.read(first.0, first.1)?, self.read(second.0, second.1)?].concat() != *expected => {
                Err("the data read differs from the data written".into())
            }
            _ => Ok(()),
        }
    }

    /// Balloons a slot's frames out and in again, so that the guest gets new memory for them.
    fn balloon(&mut self, slot: u16) -> Result<()> {
        let frames: Vec<Gfn> = Gfn::new(slot_frame(slot) + 1)?.range(256)?.into_iter().collect();
        for &frame in &frames {
            self.guest.balloon_out(frame);
        }
        let (done, is_done) = channel();
        self.device.send(Event::Invalidate(done))?;
        is_done.recv()?;
        self.guest.populate(&frames);
        Ok(())
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

fn slot_frame(slot: u16) -> u64 {
    (u64::from(slot) + 1) * SLOT_FRAMES
}
