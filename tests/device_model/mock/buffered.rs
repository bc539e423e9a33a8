//! Buffered requests, for which the guest does not wait.

use std::thread;

use xenmap::GuestKind;
use xenmap::device_model::{Event, IoRange, IoreqServer, Target};
use xenmap::mock::{Dom0, MockDomain, MockHost, Vcpu};

use super::{ADDRESS, AT_ONCE, Register, map_page, open, server};
use crate::common::mock;
use crate::requests::{SOON, next_request, ones};

/// An HVM guest with two vcpus: Xen buffers nothing for others.
fn guest(host: &MockHost) -> MockDomain {
    let domain = host.create_domain(GuestKind::Hvm, 16);
    domain.set_vcpu(1, Vcpu::default());
    domain
}

fn server_with_buffer(host: &MockHost, domain: &MockDomain) -> IoreqServer {
    let (cache, events) = open(host, domain);
    let server = IoreqServer::create_with_buffer(cache, events).unwrap();
    server.add_range(IoRange::memory(0xA_0000, 0xB_FFFF)).unwrap();
    server
}

#[test]
fn buffered_writes_wait_for_nobody_until_the_ring_is_full() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let server = server_with_buffer(&host, &domain);
    let vcpu = domain.vcpu(0);
    let expect = |address: u64, size: usize, value: u64| {
        let request = next_request(&server);
        assert_eq!((request.target(), request.size(), request.vcpu()), (Target::Memory(address), size, None));
        let register = Register::default();
        request.serve(&mut register.clone());
        assert_eq!(register.0.lock().unwrap().1, [(false, value)]);
    };
    // Several times round the ring, with values of one and of two slots.
    for value in 0..2000 {
        let size = 1 << (value % 4);
        let value = (value << 40 | value) & ones(size);
        vcpu.write_buffered(0xA_0000, size, value).unwrap();
        vcpu.write_buffered(0xB_FFFC, 4, value & 0xFFFF).unwrap();
        expect(0xA_0000, size, value);
        expect(0xB_FFFC, 4, value & 0xFFFF);
    }
    for value in 0..511 {
        vcpu.write_buffered(0xA_0000, 4, value).unwrap();
    }
    let waiting = thread::spawn(move || vcpu.write_buffered(0xA_0000, 4, 511));
    map_page(&host, &domain, server.id()).wait_until_ready(0);
    let mut found = Vec::new();
    while found.len() < 512 {
        let request = next_request(&server);
        let register = Register::default();
        let vcpu = request.vcpu();
        request.serve(&mut register.clone());
        found.push((register.0.lock().unwrap().0, vcpu));
    }
    waiting.join().unwrap().unwrap();
    found.sort_unstable();
    let expected: Vec<(u64, Option<u32>)> = (0..512).map(|value| (value, (value == 511).then_some(0))).collect();
    assert_eq!(found, expected);
}

#[test]
fn buffered_write_to_a_server_without_a_buffer_waits() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let server = server(&host, &domain);
    let vcpu = domain.vcpu(0);
    let writing = thread::spawn(move || vcpu.write_buffered(ADDRESS, 4, 5));
    let request = next_request(&server);
    assert_eq!(request.vcpu(), Some(0));
    request.serve(&mut Register::default());
    assert_eq!(writing.join().unwrap(), Ok(()));
}

#[test]
fn change_of_the_clock_reaches_every_server_with_a_buffer() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let servers = [(); 2].map(|()| server_with_buffer(&host, &domain));
    let without = server(&host, &domain);
    domain.vcpu(1).move_clock(-7).unwrap();
    for server in &servers {
        assert!(matches!(server.next(SOON), Ok(Event::TimeOffset(-7))));
    }
    assert!(matches!(without.next(AT_ONCE), Ok(Event::TimedOut)));
}

#[test]
#[should_panic(expected = "Xen buffers nothing for a Pvh guest")]
fn buffered_write_of_a_pvh_guest_panics() {
    let domain = mock(Dom0::Pv).create_domain(GuestKind::Pvh, 16);
    let _ = domain.vcpu(0).write_buffered(0xA_0000, 4, 5);
}

#[test]
#[should_panic(expected = "Xen buffers nothing for a Pvh guest")]
fn change_of_the_clock_of_a_pvh_guest_panics() {
    let domain = mock(Dom0::Pv).create_domain(GuestKind::Pvh, 16);
    let _ = domain.vcpu(0).move_clock(-7);
}

#[test]
#[should_panic(expected = "crosses the end of a page")]
fn buffered_write_over_the_end_of_a_page_panics() {
    let _ = guest(&mock(Dom0::Pv)).vcpu(0).write_buffered(0xA_0FFE, 4, 5);
}
