//! Guests that write anything anywhere: the device answers, can be restarted, and works after a reset.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use xenmap::device_model::{Interrupts, Sbdf};
use xenmap::mock::{MockVcpu, VcpuStopped};
use xenmap::{FRAME_SIZE, Gfn};

use super::program::driver::Driver;
use super::program::probe::{self, Found};
use super::program::transport;
use super::{DISK_SIZE, Machine, state_file};

/// Where the driver has the parts of queue 0.
const DESCRIPTORS: u64 = (1 << 20) - 0x80;
const AVAILABLE: u64 = (2 << 20) - 0x10;
const USED: u64 = (3 << 20) - 0x40;
const HEADER: u64 = 16 << 20;
const HAS_NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
const END_OF_RAM: u64 = 48 << 20;

#[derive(Clone, Debug)]
enum Action {
    Port { port: u16, size: usize, value: Option<u64> },
    Config { device: u8, register: u8, size: usize, value: Option<u64> },
    Memory { offset: u64, size: usize, value: Option<u64> },
    Requests(Vec<Request>),
    Ram { address: u64, bytes: Vec<u8> },
}

/// A request, whose descriptors may be a chain that begins with a header.
#[derive(Clone, Debug)]
struct Request {
    kind: u32,
    sector: u64,
    descriptors: Vec<(u64, u32, u16, u16)>,
    head: u16,
}

/// Numbers of any size, and those close to a limit.
fn number() -> impl Strategy<Value = u64> {
    let limits = [0, 1, 2, 6, 0x42, 0x7F, 0x80, 0x8000, 0xFFFF, 0x1_0000, 0xFFFF_8000, 0xFFFF_FFFF, u64::MAX];
    prop_oneof![select(limits.to_vec()), any::<u64>(), (0..256_u64)]
}

/// A register of the function's memory: most of them are at the beginning of its parts.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..0x40_u64,
        2 => (0..6_u64, 0..0x40_u64).prop_map(|(part, offset)| part * 0x1000 + offset),
        1 => 0..u64::from(transport::SIZE) + 8,
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let addresses = [HEADER, HEADER + 16, END_OF_RAM - 8, END_OF_RAM, 0, u64::MAX - 3, DESCRIPTORS, USED, 0xE000_0000];
    let lengths = [0, 1, 15, 16, 17, 512, 1024, 0x1_0000, 8 << 20, 64 << 20, u32::MAX];
    let descriptor = (select(addresses.to_vec()), select(lengths.to_vec()), 0..8_u16, 0..9_u16);
    let kinds = [0, 1, 4, 8, 11, 13, 99, u32::MAX];
    let sectors = prop_oneof![0..2100_u64, any::<u64>()];
    let heads = prop_oneof![9 => Just(0), 1 => any::<u16>()];
    let request = (select(kinds.to_vec()), sectors, vec(descriptor, 1..8), heads, any::<bool>());
    request.prop_map(|(kind, sector, mut descriptors, head, is_chain)| {
        if is_chain {
            let last = descriptors.len() - 1;
            for ((index, next), (_, _, flags, link)) in (0..).zip(1..).zip(&mut descriptors) {
                *flags = *flags & DEVICE_WRITES | if index < last { HAS_NEXT } else { 0 };
                *link = next;
            }
            descriptors[0] = (HEADER, 16, if last == 0 { 0 } else { HAS_NEXT }, 1);
        }
        Request { kind, sector, descriptors, head }
    })
}

fn action() -> impl Strategy<Value = Action> {
    let value = || proptest::option::of(number());
    prop_oneof![
        1 => (0xCF8..0xD00_u16, select([1, 2, 4].to_vec()), value())
            .prop_map(|(port, size, value)| Action::Port { port, size, value }),
        2 => (0..3_u8, any::<u8>(), select([1, 2, 4].to_vec()), value())
            .prop_map(|(device, register, size, value)| Action::Config { device, register, size, value }),
        4 => (offset(), select([1, 2, 4, 8].to_vec()), value())
            .prop_map(|(offset, size, value)| Action::Memory { offset, size, value }),
        4 => vec(request(), 1..3).prop_map(Action::Requests),
        1 => (select([DESCRIPTORS, AVAILABLE, USED, HEADER].to_vec()), 0..40_u64, vec(any::<u8>(), 1..20))
            .prop_map(|(at, offset, bytes)| Action::Ram { address: at + offset, bytes }),
    ]
}

/// A guest that does not keep to any rule.
struct Guest<'a> {
    machine: &'a Machine,
    vcpu: MockVcpu,
    found: Found,
    /// The number of requests that were made.
    available: u16,
}

impl Guest<'_> {
    fn act(&mut self, action: &Action) -> Result<(), VcpuStopped> {
        let vcpu = &self.vcpu;
        match action {
            Action::Port { port, size, value: None } => vcpu.port_in(*port, *size).map(drop),
            Action::Port { port, size, value: Some(value) } => vcpu.port_out(*port, *size, *value),
            Action::Config { device, register, size, value } => {
                let function = Sbdf::new(0, 0, *device, 0).unwrap();
                match value {
                    None => vcpu.pci_read(function, *register, *size).map(drop),
                    Some(value) => vcpu.pci_write(function, *register, *size, *value),
                }
            }
            Action::Memory { offset, size, value: None } => vcpu.read(self.found.common + offset, *size).map(drop),
            Action::Memory { offset, size, value: Some(value) } => {
                vcpu.write(self.found.common + offset, *size, *value)
            }
            Action::Requests(requests) => {
                for request in requests {
                    self.submit(request);
                }
                self.vcpu.write(self.found.notify, 2, 0)
            }
            Action::Ram { address, bytes } => {
                self.write(*address, bytes);
                self.vcpu.write(self.found.notify, 2, 0)
            }
        }
    }

    fn submit(&mut self, request: &Request) {
        self.write(HEADER, &[&request.kind.to_le_bytes()[..], &[0; 4], &request.sector.to_le_bytes()].concat());
        for (index, (address, len, flags, next)) in (0..).zip(&request.descriptors) {
            let descriptor =
                [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
            self.write(DESCRIPTORS + 16 * index, &descriptor);
        }
        self.write(AVAILABLE + 4 + 2 * u64::from(self.available % 64), &request.head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address).unwrap() % FRAME_SIZE;
        self.machine.domain.write(Gfn::containing(address).unwrap(), offset, bytes);
    }

    /// Resets the device, and takes all messages that it has sent.
    fn reset(&self, interrupts: &Interrupts) -> Found {
        let found = probe::find_disk(&self.vcpu).unwrap();
        self.vcpu.write(found.common + 0x14, 1, 0).unwrap();
        assert_eq!(self.vcpu.read(found.common + 0x14, 1).unwrap(), 0);
        let last = (0xFEE0_0000, 0x99);
        interrupts.send_msi(last.0, last.1).unwrap();
        while self.machine.domain.wait_for_msi().unwrap() != last {}
        found
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, max_shrink_iters: 30, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_guest_writes_ends_the_program_or_prevents_its_restart(
        actions in vec(action(), 0..120),
        is_read_only in any::<bool>(),
    ) {
        let machine = Machine::new();
        let path = state_file("arbitrary");
        let model = machine.open(is_read_only, Some(path.clone())).unwrap();
        let guest = machine.serve(&model, || {
            let vcpu = machine.domain.vcpu(0);
            Driver::start(&machine.domain, vec![0; DISK_SIZE]).unwrap();
            let found = probe::find_disk(&vcpu).unwrap();
            let mut guest = Guest { machine: &machine, vcpu, found, available: 0 };
            for action in &actions {
                guest.act(action).unwrap();
            }
            guest
        });
        let id = model.server.detach();
        drop(model.device);

        let model = machine.open(is_read_only, Some(path)).unwrap();
        assert_eq!(model.server.id(), id);
        let interrupts = Interrupts::new(model.server.cache().guest().clone());
        machine.serve(&model, || {
            guest.reset(&interrupts);
            let mut driver = Driver::start(&machine.domain, machine.content()).unwrap();
            if is_read_only {
                assert_eq!(machine.content(), vec![0; DISK_SIZE]);
            } else {
                driver.run(14).unwrap();
            }
        });
    }
}
