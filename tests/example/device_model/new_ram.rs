//! A guest that puts RAM where there was none, of which Xen tells nobody.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_OK, VIRTIO_BLK_T_IN};
use xenmap::mock::MockVcpu;
use xenmap::{FRAME_SIZE, Gfn, Protection};

use super::Machine;
use super::program::driver::Driver;
use super::program::probe::{self, Found};

/// Where the driver has the parts of queue 0, and its size.
const DESCRIPTORS: u64 = (1 << 20) - 0x80;
const AVAILABLE: u64 = (2 << 20) - 0x10;
const QUEUE_SIZE: u16 = 64;

const HEADER: u64 = 16 << 20;
const STATUS: u64 = HEADER + 16;
/// Two frames in one bucket of the cache. The guest gives the second one back.
const FRAME: u64 = 40 << 20;
const BALLOONED: u64 = FRAME + FRAME_SIZE as u64;

const HAS_NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
const IS_TABLE: u16 = 4;

struct Guest<'a> {
    machine: &'a Machine,
    vcpu: MockVcpu,
    found: Found,
    requests: u16,
}

impl Guest<'_> {
    fn start(machine: &Machine) -> Guest<'_> {
        Driver::start(&machine.domain, machine.content()).unwrap();
        let vcpu = machine.domain.vcpu(0);
        let found = probe::find_disk(&vcpu).unwrap();
        Guest { machine, vcpu, found, requests: 0 }
    }

    /// Reads a sector. The descriptors are in a table of their own, as Linux has them. Returns the status.
    fn read(&mut self, table: u64, data: u64) -> u32 {
        self.write(HEADER, &VIRTIO_BLK_T_IN.to_le_bytes());
        self.write(STATUS, &[0xEE]);
        let chain =
            [(HEADER, 16, HAS_NEXT, 1), (data, 512, HAS_NEXT | DEVICE_WRITES, 2), (STATUS, 1, DEVICE_WRITES, 0)];
        self.write(table, &chain.map(descriptor).concat());
        self.write(DESCRIPTORS, &descriptor((table, 48, IS_TABLE, 0)));
        self.write(AVAILABLE + 4 + 2 * u64::from(self.requests % QUEUE_SIZE), &[0; 2]);
        self.requests += 1;
        self.write(AVAILABLE + 2, &self.requests.to_le_bytes());
        self.vcpu.write(self.found.notify, 2, 0).unwrap();
        assert_eq!(self.vcpu.read(self.found.common + 0x14, 1).unwrap(), 0xF, "needs no reset");
        self.machine.domain.read(Gfn::containing(STATUS).unwrap(), 16, 1)[0].into()
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address).unwrap() % FRAME_SIZE;
        self.machine.domain.write(Gfn::containing(address).unwrap(), offset, bytes);
    }
}

fn descriptor((address, len, flags, next): (u64, u32, u16, u16)) -> [u8; 16] {
    let bytes = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
    bytes.try_into().unwrap()
}

fn ballooned() -> Gfn {
    Gfn::containing(BALLOONED).unwrap()
}

#[test]
fn memory_that_was_ballooned_out_when_the_program_started_is_used() {
    let machine = Machine::new();
    machine.domain.balloon_out(ballooned());
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        let mut guest = Guest::start(&machine);
        machine.domain.populate(&[ballooned()]);
        assert_eq!(guest.read(BALLOONED, BALLOONED + 1024), VIRTIO_BLK_S_OK);
    });
}

#[test]
fn hole_in_mapped_memory_that_is_filled_is_used() {
    for (table, data) in [(FRAME, BALLOONED), (BALLOONED, FRAME + 1024)] {
        let machine = Machine::new();
        let model = machine.open(false, None).unwrap();
        machine.serve(&model, || {
            let mut guest = Guest::start(&machine);
            machine.domain.balloon_out(ballooned());
            assert_eq!(guest.read(FRAME, FRAME + 1024), VIRTIO_BLK_S_OK); // maps the hole's neighbours
            machine.domain.populate(&[ballooned()]);
            assert_eq!(guest.read(table, data), VIRTIO_BLK_S_OK, "table {table:x}, data {data:x}");
        });
    }
}

#[test]
fn queue_in_a_hole_that_was_filled_is_used() {
    let used = Gfn::new(0x2FF).unwrap(); // where the answers of queue 0 are
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    machine.serve(&model, || {
        machine.domain.balloon_out(used);
        model.server.cache().get(Protection::ReadWrite, 2 << 20, 8).unwrap(); // maps the hole's neighbours
        machine.domain.populate(&[used]);
        Driver::start(&machine.domain, machine.content()).unwrap().run(14).unwrap();
    });
}
