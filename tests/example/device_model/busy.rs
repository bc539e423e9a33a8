//! A guest whose queue is never empty.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use xenmap::mock::Fault;
use xenmap::{FRAME_SIZE, Gfn};

use super::program::driver::Driver;
use super::program::probe;
use super::{Machine, state_file};

/// Where the driver has the parts of queue 0, which has room for 64 requests.
const DESCRIPTORS: u64 = (1 << 20) - 0x80;
const AVAILABLE: u64 = (2 << 20) - 0x10;
const USED: u64 = (3 << 20) - 0x40;
const QUEUE_SIZE: u64 = 64;

/// The memory of the only request: a header, its status, and the data.
const HEADER: u64 = 16 << 20;
const STATUS: u64 = HEADER + 16;
const DATA: u64 = 17 << 20;

/// Writes the data, which takes longer than to make the next request.
const WRITE: u32 = 1;
const DATA_LEN: u32 = 1 << 20;
const HAS_NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// The requests that the device has not answered yet.
const DEPTH: u16 = 32;
const PATIENCE: Duration = Duration::from_secs(10);

/// A guest that makes the same request again and again, and wants no interrupts.
struct Busy<'a>(&'a Machine);

impl<'a> Busy<'a> {
    /// Sets up the disk. There are requests, of which the device has not been notified.
    fn start(machine: &'a Machine) -> Busy<'a> {
        Driver::start(&machine.domain, machine.content()).unwrap();
        let busy = Busy(machine);
        busy.write(HEADER, &WRITE.to_le_bytes());
        let descriptors = [(HEADER, 16, HAS_NEXT), (DATA, DATA_LEN, HAS_NEXT), (STATUS, 1, DEVICE_WRITES)];
        busy.write(STATUS, &[0xEE]);
        for ((address, len, flags), index) in descriptors.into_iter().zip(0..) {
            let (len, flags, next) = (u32::to_le_bytes(len), flags.to_le_bytes(), (index + 1_u16).to_le_bytes());
            let descriptor = [&address.to_le_bytes()[..], &len, &flags, &next].concat();
            busy.write(DESCRIPTORS + 16 * u64::from(index), &descriptor);
        }
        // The number of answers after which the guest wants an interrupt.
        busy.write(AVAILABLE + 4 + 2 * QUEUE_SIZE, &0x8000_u16.to_le_bytes());
        busy.refill();
        busy
    }

    fn refill(&self) {
        self.write(AVAILABLE + 2, &(self.answered() + DEPTH).to_le_bytes());
    }

    /// Makes requests until something else is over. Returns false if that takes too long.
    fn refill_until(&self, is_over: &AtomicBool) -> bool {
        let started = Instant::now();
        while !is_over.load(Ordering::SeqCst) && started.elapsed() < PATIENCE {
            self.refill();
            std::thread::yield_now();
        }
        is_over.load(Ordering::SeqCst)
    }

    /// Returns the number of requests that the device has answered.
    fn answered(&self) -> u16 {
        let offset = usize::try_from(USED).unwrap() % FRAME_SIZE + 2;
        let bytes = self.0.domain.read(Gfn::containing(USED).unwrap(), offset, 2);
        u16::from_le_bytes(bytes.try_into().unwrap())
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address).unwrap() % FRAME_SIZE;
        self.0.domain.write(Gfn::containing(address).unwrap(), offset, bytes);
    }
}

/// Checks that the program ends although there are always more requests. `serving` makes it fail.
#[track_caller]
fn assert_ends(test: &str, serving: impl FnOnce(&Machine)) {
    let machine = Machine::new();
    let path = state_file(test);
    let model = machine.open(false, Some(path.clone())).unwrap();
    let busy = machine.serve(&model, || Busy::start(&machine));
    let _ = model.server.detach();
    drop(model.device);
    let model = machine.open(false, Some(path)).unwrap(); // and begins with the requests by itself
    let is_over = AtomicBool::new(false);

    let was_over = std::thread::scope(|scope| {
        let guest = scope.spawn(|| busy.refill_until(&is_over));
        let ended = catch_unwind(AssertUnwindSafe(|| model.run(|| serving(&machine))));
        is_over.store(true, Ordering::SeqCst);
        assert!(!matches!(ended, Ok(Ok(()))));
        guest.join().unwrap()
    });

    assert!(was_over, "the program has served the guest to the end");
    busy.refill();
    let before = busy.answered();
    model.device.serve(0);
    assert_eq!(busy.answered(), before, "the program has ended, and serves no more");
    assert_eq!(machine.domain.read(Gfn::containing(STATUS).unwrap(), 16, 1), [0], "no request has succeeded");
}

#[test]
fn program_that_fails_ends_although_there_are_more_requests() {
    assert_ends("busy_error", |machine| machine.host.inject(Fault::DmOp(libc::EFAULT)));
}

#[test]
fn program_that_panics_ends_although_there_are_more_requests() {
    assert_ends("busy_panic", |_| panic!("as the test wants"));
}

#[test]
fn no_request_begins_while_a_reset_waits_for_another_one() {
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();

    machine.serve(&model, || {
        let busy = Busy::start(&machine);
        let vcpu = machine.domain.vcpu(0);
        let common = probe::find_disk(&vcpu).unwrap().common;
        std::thread::scope(|scope| {
            let request = model.device.queues[0].ring.lock().unwrap();
            busy.refill();
            let before = busy.answered();
            let reset = scope.spawn(move || vcpu.write(common + 0x14, 1, 0).unwrap());
            let started = Instant::now();
            while model.device.status.load(Ordering::SeqCst) != 0 && started.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            let status = model.device.status.load(Ordering::SeqCst);
            drop(request);
            model.device.serve(0);
            reset.join().unwrap();
            assert_eq!((status, busy.answered()), (0, before));
        });
    });
}

#[test]
fn registers_do_not_wait_for_a_request() {
    let machine = Machine::new();
    let model = machine.open(false, Some(state_file("slow"))).unwrap();

    let was_over = machine.serve(&model, || {
        Driver::start(&machine.domain, machine.content()).unwrap();
        let vcpu = machine.domain.vcpu(0);
        let found = probe::find_disk(&vcpu).unwrap();
        let ((begins, has_begun), (ends, is_over)) = (channel(), channel());
        std::thread::scope(|scope| {
            let ring = &model.device.queues[0].ring;
            let request = scope.spawn(move || {
                let _served = ring.lock().unwrap();
                begins.send(()).unwrap();
                is_over.recv_timeout(PATIENCE).is_ok()
            });
            has_begun.recv().unwrap();
            vcpu.write(found.common + 0x16, 2, 0).unwrap();
            let read = |register, size| vcpu.read(found.common + register, size).unwrap();
            let (size, vector, is_enabled, used) = (read(0x18, 2), read(0x1A, 2), read(0x1C, 2), read(0x30, 8));
            assert_eq!((size, vector, is_enabled, used), (QUEUE_SIZE, 1, 1, USED));
            vcpu.write(found.common + 0x1A, 2, 2).unwrap();
            assert_eq!(read(0x1A, 2), 2);
            vcpu.write(found.notify, 2, 1).unwrap();
            let _ = ends.send(());
            request.join().unwrap()
        })
    });

    assert!(was_over, "the registers have waited for the request");
}
