//! Requests: what arrives, and what the guest gets.

use std::time::Duration;

use xenmap::device_model::{Event, IoRange, IoreqServer, Registers, Request, Target};
use xenmap::mock::MockRep;
use xenmap::{Gfn, GuestKind};

use crate::common::program::Step;
use crate::common::running::{DATA, Running};
use crate::common::{FRAME, Host, on_each_host};
use crate::raw::TOO_LONG;

const PORT: u16 = 0x500;
const ADDRESS: u64 = 0xE000_0000;
const RAM: u64 = DATA * FRAME as u64;

/// Long enough for a request that comes.
pub(crate) const SOON: Option<Duration> = Some(TOO_LONG);
/// Long enough for a request that would come if Xen let the processor go on.
pub(crate) const A_WHILE: Option<Duration> = Some(Duration::from_millis(200));

/// Records what it receives, and reads as a [value] that depends on where it is read.
#[derive(Default)]
pub(crate) struct Recorder(pub(crate) Vec<(Target, usize, Option<u64>)>);

impl Registers for Recorder {
    fn read(&mut self, at: Target, size: usize) -> u64 {
        self.0.push((at, size, None));
        value(at)
    }

    fn write(&mut self, at: Target, size: usize, value: u64) {
        self.0.push((at, size, Some(value)));
    }
}

pub(crate) fn value(at: Target) -> u64 {
    let number = match at {
        Target::Port(port) => u64::from(port),
        Target::Memory(address) => address,
        Target::Pci { function, register } => {
            let [bus, device, function] = [function.bus(), function.device(), function.function()].map(u64::from);
            bus << 24 | device << 19 | function << 16 | u64::from(register)
        }
        other => panic!("{other:?}"),
    };
    0x1122_3344_5566_7788 ^ number
}

/// Returns the bits of a value of this size, all ones.
pub(crate) fn ones(size: usize) -> u64 {
    u64::MAX >> (64 - 8 * size)
}

/// Runs a test on each x86 host. (All of this program is listed in tests/xen/x86-only.txt.)
pub(crate) fn on_each_x86_host(test: impl Fn(&Host)) {
    on_each_host(|host| {
        if host.is_arm() {
            assert!(matches!(host, Host::Mock(_)), "this test needs an x86 Xen: list it in tests/xen/x86-only.txt");
        } else {
            test(host);
        }
    });
}

/// What has become of a guest that ran a program.
pub(crate) struct Served {
    /// What the device saw.
    pub(crate) accesses: Vec<(Target, usize, Option<u64>)>,
    /// The number of values of each request.
    pub(crate) counts: Vec<u32>,
    /// What the program read.
    pub(crate) results: Vec<u64>,
    pub(crate) running: Running,
}

pub(crate) fn create_server(host: &Host, running: &Running, ranges: &[IoRange]) -> IoreqServer {
    let (cache, events) = running.open(host);
    let server = IoreqServer::create(cache, events).unwrap();
    for &range in ranges {
        server.add_range(range).unwrap();
    }
    server
}

pub(crate) fn next_request(server: &IoreqServer) -> Request {
    match server.next(SOON).unwrap() {
        Event::Request(request) => request,
        other => panic!("{other:?}"),
    }
}

/// Serves a guest that runs a program, which makes `count` requests.
pub(crate) fn serve(host: &Host, ranges: &[IoRange], program: &[Step], count: usize) -> Served {
    let mut running = host.create_running(GuestKind::Pvh, &[program]);
    let server = create_server(host, &running, ranges);
    running.start();
    let (mut device, mut counts) = (Recorder::default(), Vec::new());
    for _ in 0..count {
        let request = next_request(&server);
        counts.push(request.count());
        request.serve(&mut device);
    }
    let results = running.results().remove(0);
    assert!(matches!(server.next(Some(Duration::ZERO)), Ok(Event::TimedOut)));
    Served { accesses: device.0, counts, results, running }
}

fn read_ram(running: &Running, address: u64, len: usize) -> Vec<u8> {
    let offset = usize::try_from(address % FRAME as u64).unwrap();
    assert!(offset + len <= FRAME);
    running.guest.read(Gfn::new(address / FRAME as u64).unwrap(), offset, len)
}

/// Returns values of 4 bytes as they are in RAM.
fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()[..4].to_vec()).collect()
}

#[test]
fn port_is_read_and_written_with_each_size() {
    on_each_x86_host(|host| {
        let program: Vec<Step> = [1, 2, 4]
            .into_iter()
            .flat_map(|size| [Step::Out { port: PORT, size, value: 0x8877_6655 }, Step::In { port: PORT, size }])
            .collect();
        let served = serve(host, &[IoRange::ports(PORT, PORT + 3)], &program, 6);
        let at = Target::Port(PORT);
        let seen = [(1, 0x55), (2, 0x6655), (4, 0x8877_6655)];
        let expected: Vec<_> = seen.iter().flat_map(|&(size, v)| [(at, size, Some(v)), (at, size, None)]).collect();
        assert_eq!(served.accesses, expected);
        assert_eq!(served.results, [1, 2, 4].map(|size| value(at) & ones(size)));
    });
}

#[test]
fn address_is_read_and_written_with_each_size() {
    on_each_x86_host(|host| {
        let program: Vec<Step> = [1, 2, 4, 8]
            .into_iter()
            .flat_map(|size| {
                let address = ADDRESS + 0x10 * size as u64;
                [Step::Write { address, size, value: 0x8877_6655_4433_2211 }, Step::Read { address, size }]
            })
            .collect();
        let served = serve(host, &[IoRange::memory(ADDRESS, ADDRESS + 0xFFF)], &program, 8);
        let mut expected = Vec::new();
        for size in [1, 2, 4, 8] {
            let at = Target::Memory(ADDRESS + 0x10 * size as u64);
            expected.extend([(at, size, Some(0x8877_6655_4433_2211 & ones(size))), (at, size, None)]);
        }
        assert_eq!(served.accesses, expected);
        let read = [1, 2, 4, 8].map(|size| value(Target::Memory(ADDRESS + 0x10 * size as u64)) & ones(size));
        assert_eq!(served.results, read);
    });
}

#[test]
fn access_over_the_end_of_a_page_arrives_in_two_parts() {
    on_each_x86_host(|host| {
        let program = [
            Step::Read { address: ADDRESS + 0xFFE, size: 4 },
            Step::Write { address: ADDRESS + 0xFFC, size: 8, value: 0x8877_6655_4433_2211 },
        ];
        let served = serve(host, &[IoRange::memory(ADDRESS, ADDRESS + 0x1FFF)], &program, 4);
        let [low, high] = [0xFFE, 0x1000].map(|offset| Target::Memory(ADDRESS + offset));
        let written = [(0xFFC, 0x4433_2211), (0x1000, 0x8877_6655)];
        let mut expected = vec![(low, 2, None), (high, 2, None)];
        expected.extend(written.map(|(offset, value)| (Target::Memory(ADDRESS + offset), 4, Some(value))));
        assert_eq!(served.accesses, expected);
        assert_eq!(served.results, [value(low) & 0xFFFF | (value(high) & 0xFFFF) << 16]);
    });
}

#[test]
fn part_of_an_access_on_another_page_can_be_outside_the_range() {
    on_each_x86_host(|host| {
        let program = [Step::Read { address: ADDRESS + 0xFFE, size: 4 }];
        let served = serve(host, &[IoRange::memory(ADDRESS, ADDRESS + 0xFFF)], &program, 1);
        let at = Target::Memory(ADDRESS + 0xFFE);
        assert_eq!(served.accesses, [(at, 2, None)]);
        assert_eq!(served.results, [0xFFFF_0000 | value(at) & 0xFFFF]);
    });
}

#[test]
fn access_that_is_partly_outside_a_range_reads_ones() {
    on_each_x86_host(|host| {
        let address = ADDRESS + 0x10;
        let program = [
            Step::In { port: PORT, size: 4 },
            Step::In { port: PORT - 1, size: 2 },
            Step::Read { address, size: 8 },
            Step::Read { address: address - 4, size: 8 },
            // All of a repeated instruction's values in a page must be in the range.
            Step::RepRead { address, rep: MockRep { ram: RAM, size: 4, count: 3, backwards: false } },
            Step::In { port: PORT, size: 2 },
            Step::Read { address, size: 4 },
        ];
        let ranges = [IoRange::ports(PORT, PORT + 1), IoRange::memory(address, address + 5)];
        let served = serve(host, &ranges, &program, 2);
        let (port, memory) = (Target::Port(PORT), Target::Memory(address));
        assert_eq!(served.accesses, [(port, 2, None), (memory, 4, None)]);
        let read = [ones(4), ones(2), u64::MAX, u64::MAX, value(port) & ones(2), value(memory) & ones(4)];
        assert_eq!(served.results, read);
        assert_eq!(read_ram(&served.running, RAM, 13), [vec![0xFF; 12], vec![0]].concat());
    });
}

#[test]
fn access_without_a_server_reads_ones_and_writes_nothing() {
    on_each_x86_host(|host| {
        let rep = MockRep { ram: RAM, size: 2, count: 3, backwards: false };
        let program = [
            Step::Out { port: PORT, size: 4, value: 1 },
            Step::In { port: PORT, size: 1 },
            Step::In { port: PORT, size: 2 },
            Step::In { port: PORT, size: 4 },
            Step::Write { address: ADDRESS, size: 8, value: 1 },
            Step::Read { address: ADDRESS, size: 8 },
            Step::Xadd { address: ADDRESS, value: 1 },
            Step::RepIn { port: PORT, rep },
            Step::RepRead { address: ADDRESS, rep: MockRep { ram: RAM + 0x100, ..rep } },
            Step::RepOut { port: PORT, rep },
            Step::RepWrite { address: ADDRESS, rep },
        ];
        let served = serve(host, &[IoRange::ports(PORT + 4, PORT + 7)], &program, 0);
        assert_eq!(served.results, [0xFF, 0xFFFF, ones(4), u64::MAX, ones(4)]);
        for address in [RAM, RAM + 0x100] {
            assert_eq!(read_ram(&served.running, address, 7), [vec![0xFF; 6], vec![0]].concat());
        }
    });
}

#[test]
fn repeated_instruction_moves_values_between_ram_and_device() {
    on_each_x86_host(|host| {
        let rep = |ram, size, count| MockRep { ram, size, count, backwards: false };
        let program = [
            Step::RepRead { address: ADDRESS, rep: rep(RAM, 4, 3) },
            Step::RepWrite { address: ADDRESS + 0x100, rep: rep(RAM, 4, 3) },
            Step::RepIn { port: PORT, rep: rep(RAM + 0x100, 2, 2) },
            Step::RepOut { port: PORT, rep: rep(RAM + 0x100, 2, 2) },
            Step::RepRead { address: ADDRESS + 8, rep: MockRep { backwards: true, ..rep(RAM + 0x208, 4, 3) } },
        ];
        let ranges = [IoRange::memory(ADDRESS, ADDRESS + 0xFFF), IoRange::ports(PORT, PORT + 3)];
        let served = serve(host, &ranges, &program, 5);
        let memory = |offset| Target::Memory(ADDRESS + offset);
        let low = |at| value(at) & ones(4);
        let port = Target::Port(PORT);
        let mut expected: Vec<_> = [0, 4, 8].map(|offset| (memory(offset), 4, None)).into();
        expected.extend([0, 4, 8].map(|offset| (memory(0x100 + offset), 4, Some(low(memory(offset))))));
        expected.extend([(port, 2, None); 2]);
        expected.extend([(port, 2, Some(value(port) & 0xFFFF)); 2]);
        expected.extend([8, 4, 0].map(|offset| (memory(offset), 4, None)));
        assert_eq!(served.accesses, expected);
        let read = words(&[0, 4, 8].map(|offset| value(memory(offset))));
        assert_eq!(read_ram(&served.running, RAM, 12), read);
        assert_eq!(read_ram(&served.running, RAM + 0x200, 12), read, "backwards, the last value is the first one");
    });
}

#[test]
fn repeated_instruction_is_cut_at_pages_of_device_and_ram() {
    on_each_x86_host(|host| {
        let forwards = MockRep { ram: RAM, size: 4, count: 5, backwards: false };
        let program = [
            Step::RepRead { address: ADDRESS + 0xFF8, rep: forwards },
            Step::RepWrite { address: ADDRESS + 0x2004, rep: MockRep { ram: RAM + 16, backwards: true, ..forwards } },
            Step::RepRead { address: ADDRESS, rep: MockRep { ram: RAM + 0xFF8, ..forwards } },
        ];
        let served = serve(host, &[IoRange::memory(ADDRESS, ADDRESS + 0x2FFF)], &program, 7);
        // Backwards, Xen also leaves the first value of a page of RAM for a request of its own.
        assert_eq!(served.counts, [2, 3, 2, 2, 1, 2, 3]);
        let memory = |offset| Target::Memory(ADDRESS + offset);
        let read = [0xFF8, 0xFFC, 0x1000, 0x1004, 0x1008].map(memory);
        let mut expected: Vec<_> = read.map(|at| (at, 4, None)).into();
        let written = [0x2004, 0x2000, 0x1FFC, 0x1FF8, 0x1FF4].into_iter().zip(read.iter().rev());
        expected.extend(written.map(|(to, &from)| (memory(to), 4, Some(value(from) & ones(4)))));
        let last = [0, 4, 8, 0xC, 0x10].map(memory);
        expected.extend(last.map(|at| (at, 4, None)));
        assert_eq!(served.accesses, expected);
        assert_eq!(read_ram(&served.running, RAM, 20), words(&read.map(value)));
        assert_eq!(read_ram(&served.running, RAM + 0xFF8, 8), words(&last.map(value)[..2]));
        assert_eq!(read_ram(&served.running, RAM + 0x1000, 12), words(&last.map(value)[2..]));
    });
}

#[test]
fn value_over_the_end_of_a_page_is_whole_except_the_last_one() {
    on_each_x86_host(|host| {
        let rep = |count| MockRep { ram: RAM, size: 4, count, backwards: false };
        let program = [
            Step::RepRead { address: ADDRESS + 0xFFE, rep: rep(3) },
            // Xen's emulator makes an ordinary access of a single value.
            Step::RepRead { address: ADDRESS + 0xFF6, rep: rep(3) },
        ];
        let served = serve(host, &[IoRange::memory(ADDRESS, ADDRESS + 0x1FFF)], &program, 5);
        assert_eq!(served.counts, [1, 2, 2, 1, 1]);
        let expected = [(0xFFE, 4), (0x1002, 4), (0x1006, 4), (0xFF6, 4), (0xFFA, 4), (0xFFE, 2), (0x1000, 2)];
        assert_eq!(served.accesses, expected.map(|(offset, size)| (Target::Memory(ADDRESS + offset), size, None)));
        let [low, high] = [0xFFE, 0x1000].map(|offset| value(Target::Memory(ADDRESS + offset)) & ones(2));
        assert_eq!(read_ram(&served.running, RAM + 8, 4), words(&[low | high << 16]));
    });
}

#[test]
fn repeated_port_access_is_cut_at_pages_of_ram() {
    on_each_x86_host(|host| {
        let rep = MockRep { ram: RAM + 0xFFC, size: 2, count: 5, backwards: false };
        let backwards = MockRep { ram: RAM + 0x2004, backwards: true, ..rep };
        let program = [
            Step::RepIn { port: PORT, rep },
            Step::RepOut { port: PORT, rep },
            Step::RepIn { port: PORT, rep: backwards },
            Step::RepOut { port: PORT, rep: backwards },
        ];
        let served = serve(host, &[IoRange::ports(PORT, PORT + 1)], &program, 10);
        assert_eq!(served.counts, [2, 3, 2, 3, 2, 1, 2, 2, 1, 2]);
        let port = Target::Port(PORT);
        let (read, written) = ([(port, 2, None); 5], [(port, 2, Some(value(port) & ones(2))); 5]);
        assert_eq!(served.accesses, [read, written, read, written].concat());
    });
}

#[test]
fn repeated_store_writes_the_value_to_each_address() {
    on_each_x86_host(|host| {
        let store = |address, count| Step::RepStore { address, size: 4, count, value: 0x1234_5678 };
        let program = [store(ADDRESS + 0x10, 3), store(ADDRESS + 0xFF8, 4)];
        let served = serve(host, &[IoRange::memory(ADDRESS, ADDRESS + 0x1FFF)], &program, 3);
        assert_eq!(served.counts, [3, 2, 2]);
        let written = |offset| (Target::Memory(ADDRESS + offset), 4, Some(0x1234_5678));
        assert_eq!(served.accesses, [0x10, 0x14, 0x18, 0xFF8, 0xFFC, 0x1000, 0x1004].map(written));
    });
}

#[test]
fn locked_addition_is_a_read_and_a_write() {
    on_each_x86_host(|host| {
        let program = [Step::Xadd { address: ADDRESS + 4, value: 3 }];
        let served = serve(host, &[IoRange::memory(ADDRESS, ADDRESS + 7)], &program, 2);
        let at = Target::Memory(ADDRESS + 4);
        let old = value(at) & ones(4);
        assert_eq!(served.accesses, [(at, 4, None), (at, 4, Some(old + 3))]);
        assert_eq!(served.results, [old]);
    });
}

#[test]
fn requests_of_two_processors_wait_at_once_and_are_answered_on_other_threads() {
    on_each_x86_host(|host| {
        let program = |offset| [Step::In { port: PORT + offset, size: 2 }, Step::In { port: PORT + offset, size: 1 }];
        let mut running = host.create_running(GuestKind::Pvh, &[&program(0), &program(4)]);
        let server = create_server(host, &running, &[IoRange::ports(PORT, PORT + 7)]);
        running.start();
        for size in [2, 1] {
            let mut requests = [(); 2].map(|()| next_request(&server));
            requests.sort_by_key(Request::vcpu);
            assert_eq!(
                requests.each_ref().map(|request| (request.vcpu(), request.size())),
                [0, 1].map(|v| (Some(v), size))
            );
            let [first, second] = requests;
            // The second one is answered first.
            for request in [second, first] {
                std::thread::spawn(move || request.serve(&mut Recorder::default())).join().unwrap();
            }
        }
        let read = [0, 4].map(|offset| value(Target::Port(PORT + offset)));
        assert_eq!(running.results(), read.map(|value| vec![value & ones(2), value & ones(1)]));
    });
}

#[test]
fn dropped_request_reads_ones_and_writes_nothing() {
    on_each_x86_host(|host| {
        let program = [
            Step::In { port: PORT, size: 4 },
            Step::Out { port: PORT, size: 4, value: 1 },
            Step::RepIn { port: PORT, rep: MockRep { ram: RAM, size: 2, count: 3, backwards: false } },
        ];
        let mut running = host.create_running(GuestKind::Pvh, &[&program]);
        let server = create_server(host, &running, &[IoRange::ports(PORT, PORT + 3)]);
        running.start();
        for _ in program {
            drop(next_request(&server));
        }
        assert_eq!(running.results(), [[0xFFFF_FFFF]]);
        assert_eq!(read_ram(&running, RAM, 7), [vec![0xFF; 6], vec![0]].concat());
    });
}

#[test]
fn ranges_change_while_the_guest_runs() {
    on_each_x86_host(|host| {
        let (before, after) =
            (IoRange::memory(ADDRESS, ADDRESS + 0xFFF), IoRange::memory(ADDRESS + 0x4000, ADDRESS + 0x4FFF));
        let read = |offset| Step::Read { address: ADDRESS + offset, size: 4 };
        let program = [read(0), read(0x4000), Step::Out { port: PORT, size: 1, value: 0 }, read(0), read(0x4000)];
        let mut running = host.create_running(GuestKind::Pvh, &[&program]);
        let server = create_server(host, &running, &[IoRange::ports(PORT, PORT), before]);
        running.start();
        let mut device = Recorder::default();
        next_request(&server).serve(&mut device);
        let moves = next_request(&server);
        server.remove_range(before).unwrap();
        server.add_range(after).unwrap();
        moves.serve(&mut device);
        next_request(&server).serve(&mut device);
        let [low, high] = [0, 0x4000].map(|offset| Target::Memory(ADDRESS + offset));
        assert_eq!(device.0, [(low, 4, None), (Target::Port(PORT), 1, Some(0)), (high, 4, None)]);
        assert_eq!(running.results(), [[value(low) & ones(4), ones(4), ones(4), value(high) & ones(4)]]);
    });
}
