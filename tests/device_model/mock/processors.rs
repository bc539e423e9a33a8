//! What only a simulated processor does: single instructions, on several threads, or of a paused guest.

use std::thread;

use xenmap::device_model::{Event, IoRange, Registers, Sbdf, Target};
use xenmap::mock::{Dom0, MockRep, Vcpu};
use xenmap::{Gfn, Guest, Protection};

use super::{ADDRESS, AT_ONCE, PORT, Register, guest, read_port, server};
use crate::common::mock;
use crate::requests::next_request;

#[test]
fn vcpus_do_not_mix_up_their_pci_registers() {
    /// Reads as the number of the register.
    struct Numbers;

    impl Registers for Numbers {
        fn read(&mut self, at: Target, _: usize) -> u64 {
            if let Target::Pci { register, .. } = at { u64::from(register) } else { u64::MAX }
        }

        fn write(&mut self, _: Target, _: usize, _: u64) {}
    }

    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let function = Sbdf::new(0, 0, 3, 0).unwrap();
    let server = server(&host, &domain);
    server.add_range(IoRange::pci(function, function)).unwrap();
    let device = thread::spawn(move || server.run(&mut Numbers));
    let readers = [0, 1].map(|number| {
        let vcpu = domain.vcpu(number);
        thread::spawn(move || {
            let registers = (0..60).map(|register| 4 * register);
            registers.map(|register| vcpu.pci_read(function, register, 1).unwrap()).collect::<Vec<u64>>()
        })
    });
    let expected: Vec<u64> = (0..60).map(|register| 4 * register).collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), expected);
    }
    domain.destroy();
    device.join().unwrap().unwrap();
}

#[test]
fn access_to_ram_reaches_no_server() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let server = server(&host, &domain);
    server.add_range(IoRange::memory(0, 0xFFFF)).unwrap();
    let vcpu = domain.vcpu(0);
    vcpu.write(0x1FFE, 4, 0x4433_2211).unwrap();
    assert_eq!(vcpu.read(0x1FFE, 8), Ok(0x4433_2211));
    assert_eq!(domain.read(Gfn::new(1).unwrap(), 0xFFE, 4), [0x11, 0x22, 0x33, 0x44]);
    assert!(matches!(server.next(AT_ONCE), Ok(Event::TimedOut)));
}

#[test]
fn guest_goes_on_when_the_library_unpauses_it() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let guest = Guest::open(&host.open().unwrap(), domain.domid()).unwrap();
    let paused = guest.pause().unwrap();
    let reading = read_port(&domain, 0);
    drop(paused);
    assert_eq!(reading.join().unwrap(), Ok(0xFFFF_FFFF));
}

#[test]
fn paused_guest_that_gives_memory_back_invalidates_when_it_is_unpaused() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let server = server(&host, &domain);
    drop(server.cache().get(Protection::ReadOnly, 0, 8).unwrap());
    domain.pause();
    domain.balloon_out(domain.frames()[3]);
    assert!(matches!(server.next(AT_ONCE), Ok(Event::TimedOut)));
    assert_ne!(server.cache().statistics().mapped_bytes, 0);
    let reading = read_port(&domain, 1);
    domain.unpause();
    next_request(&server).serve(&mut Register::default());
    assert_eq!(server.cache().statistics().mapped_bytes, 0);
    assert_eq!(reading.join().unwrap(), Ok(0));
}

#[test]
fn server_that_is_enabled_after_a_guest_gave_memory_back_is_asked_to_invalidate() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    domain.balloon_out(domain.frames()[3]);
    let server = server(&host, &domain);
    drop(server.cache().get(Protection::ReadOnly, 0, 8).unwrap());
    let reading = read_port(&domain, 1);
    next_request(&server).serve(&mut Register::default());
    assert_eq!(server.cache().statistics().mapped_bytes, 0);
    assert_eq!(reading.join().unwrap(), Ok(0));
}

#[test]
fn repeated_instruction_that_nobody_serves_reads_ones_into_ram_backwards_too() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let vcpu = domain.vcpu(0);
    let rep = MockRep { ram: 0x1008, size: 4, count: 3, backwards: true };
    vcpu.rep_read(ADDRESS + 8, rep).unwrap();
    let gfn = Gfn::new(1).unwrap();
    assert_eq!(domain.read(gfn, 0, 13), [&[0xFF; 12][..], &[0]].concat());
    vcpu.rep_port_in(0x80, MockRep { ram: 4, size: 4, count: 5, backwards: true }).unwrap();
    assert_eq!(domain.read(Gfn::new(0).unwrap(), 0, 9), [&[0xFF; 8][..], &[0]].concat());
}

#[test]
fn many_values_for_a_hole_cost_no_more_than_two() {
    for is_read in [true, false] {
        let cost = |count| {
            let host = mock(Dom0::Pv);
            let domain = guest(&host);
            let server = server(&host, &domain);
            let vcpu = domain.vcpu(0);
            let rep = MockRep { ram: 3 << 12, size: 4, count, backwards: false };
            let accessing =
                thread::spawn(move || if is_read { vcpu.rep_port_in(PORT, rep) } else { vcpu.rep_port_out(PORT, rep) });
            let request = next_request(&server);
            domain.pause(); // or it waits until the cache is invalidated
            domain.balloon_out(domain.frames()[3]);
            let (before, mut device) = (host.hypercalls(), Register::default());
            request.serve(&mut device);
            let after = host.hypercalls();
            assert_eq!(device.0.lock().unwrap().1.len(), count as usize);
            drop(server);
            domain.unpause();
            accessing.join().unwrap().unwrap();
            (after.mmu_update - before.mmu_update, after.pte_writes - before.pte_writes)
        };
        assert_eq!(cost(1024), cost(2));
    }
}

#[test]
#[should_panic(expected = "no instruction accesses 3 bytes")]
fn access_of_a_size_that_does_not_exist_panics() {
    let _ = guest(&mock(Dom0::Pv)).vcpu(0).read(ADDRESS, 3);
}

#[test]
#[should_panic(expected = "add vcpus before a device model serves the guest")]
fn vcpu_that_is_added_late_panics() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let _server = server(&host, &domain);
    domain.set_vcpu(2, Vcpu::default());
}
