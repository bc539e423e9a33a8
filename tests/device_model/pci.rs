//! Configuration space of PCI functions, through ports 0xCF8 and 0xCFC.

use xenmap::device_model::{IoRange, Sbdf, Target};

use crate::common::program::Step;
use crate::requests::{on_each_x86_host, ones, serve, value};

const ADDRESS_PORT: u16 = 0xCF8;
const DATA_PORT: u16 = 0xCFC;
const ENABLED: u64 = 1 << 31;

fn function(bus: u8, device: u8, function: u8) -> Sbdf {
    Sbdf::new(0, bus, device, function).unwrap()
}

/// Returns the instruction that selects a register.
fn select(at: Sbdf, register: u8) -> Step {
    let [bus, device, function] = [at.bus(), at.device(), at.function()].map(u64::from);
    let value = ENABLED | bus << 16 | device << 11 | function << 8 | u64::from(register & 0xFC);
    Step::Out { port: ADDRESS_PORT, size: 4, value }
}

fn read(register: u8, size: usize) -> Step {
    Step::In { port: DATA_PORT + u16::from(register % 4), size }
}

fn write(register: u8, size: usize, value: u64) -> Step {
    Step::Out { port: DATA_PORT + u16::from(register % 4), size, value }
}

#[test]
fn registers_of_a_bus_are_read_and_written_with_each_size() {
    on_each_x86_host(|host| {
        let accesses = [
            (function(0, 0, 0), 0x00, 4),
            (function(0, 3, 0), 0x0E, 1),
            (function(0, 3, 7), 0x06, 2),
            (function(0, 31, 7), 0xFC, 4),
            (function(0, 31, 7), 0xFF, 1),
        ];
        let program: Vec<Step> = accesses
            .iter()
            .flat_map(|&(at, register, size)| {
                [select(at, register), write(register, size, 0x8877_6655), read(register, size)]
            })
            .collect();
        let bus = IoRange::pci(function(0, 0, 0), function(0, 31, 7));
        let served = serve(host, &[bus], &program, 2 * accesses.len());
        let targets = accesses.map(|(function, register, _)| Target::Pci { function, register: register.into() });
        let mut expected = Vec::new();
        for (at, (.., size)) in targets.into_iter().zip(accesses) {
            expected.extend([(at, size, Some(0x8877_6655 & ones(size))), (at, size, None)]);
        }
        assert_eq!(served.accesses, expected);
        let values: Vec<u64> =
            targets.into_iter().zip(accesses).map(|(at, (.., size))| value(at) & ones(size)).collect();
        assert_eq!(served.results, values);
    });
}

#[test]
fn functions_outside_the_range_read_ones() {
    on_each_x86_host(|host| {
        let ours = function(0, 4, 1);
        let others = [function(0, 4, 0), function(0, 4, 2), function(1, 4, 1)];
        let mut program: Vec<Step> = others.iter().flat_map(|&at| [select(at, 0), read(0, 4)]).collect();
        program.extend([select(ours, 0), read(0, 4)]);
        let served = serve(host, &[IoRange::pci(ours, ours)], &program, 1);
        let at = Target::Pci { function: ours, register: 0 };
        assert_eq!(served.accesses, [(at, 4, None)]);
        assert_eq!(served.results, [ones(4), ones(4), ones(4), value(at) & ones(4)]);
    });
}

#[test]
fn address_port_goes_to_its_server_and_selects_a_register_only_with_4_bytes() {
    on_each_x86_host(|host| {
        let ours = function(0, 4, 1);
        let program = [
            select(ours, 8),
            Step::In { port: ADDRESS_PORT, size: 4 },
            Step::Out { port: ADDRESS_PORT + 3, size: 1, value: 1 },
            Step::Out { port: ADDRESS_PORT, size: 2, value: 0 },
            read(8, 4),
        ];
        let ranges = [IoRange::ports(ADDRESS_PORT, ADDRESS_PORT + 3), IoRange::pci(ours, ours)];
        let served = serve(host, &ranges, &program, 5);
        let port = Target::Port(ADDRESS_PORT);
        let at = Target::Pci { function: ours, register: 8 };
        let expected = [
            (port, 4, Some(ENABLED | 0x2108)),
            (port, 4, None),
            (Target::Port(ADDRESS_PORT + 3), 1, Some(1)),
            (port, 2, Some(0)),
            (at, 4, None),
        ];
        assert_eq!(served.accesses, expected);
        assert_eq!(served.results, [value(port) & ones(4), value(at) & ones(4)]);
    });
}

#[test]
fn data_port_is_an_ordinary_port_while_no_function_is_selected() {
    on_each_x86_host(|host| {
        let ours = function(0, 4, 1);
        let deselect = Step::Out { port: ADDRESS_PORT, size: 4, value: 0x2100 };
        let program = [read(0, 4), select(ours, 0), deselect, read(2, 2)];
        let ranges = [IoRange::ports(DATA_PORT, DATA_PORT + 3), IoRange::pci(ours, ours)];
        let served = serve(host, &ranges, &program, 2);
        assert_eq!(served.accesses, [(Target::Port(DATA_PORT), 4, None), (Target::Port(DATA_PORT + 2), 2, None)]);
    });
}
