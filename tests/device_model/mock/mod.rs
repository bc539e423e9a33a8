//! The mock itself: failures on demand, the end of a guest, and hosts without device models.

mod broken;
mod buffered;
mod processors;
mod stress;

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use xenmap::device_model::{Event, EventChannels, IoRange, IoreqServer, Registers, Sbdf, ServerId, Target};
use xenmap::mock::{Dom0, Fault, HostConfig, MockDomain, MockHost, Vcpu, VcpuStopped};
use xenmap::{Error, Guest, GuestKind, MapCache};

use crate::common::{ThenChild, in_child, in_own_process, mock, mock_with};
use crate::raw::Page;
use crate::requests::next_request;

const PORT: u16 = 0x500;
const ADDRESS: u64 = 0xF000_0000;
const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

/// A guest with two vcpus.
fn guest(host: &MockHost) -> MockDomain {
    let domain = host.create_domain(GuestKind::Pvh, 16);
    domain.set_vcpu(1, Vcpu::default());
    domain
}

fn open(host: &MockHost, domain: &MockDomain) -> (Arc<MapCache>, EventChannels) {
    let memory = host.open().unwrap();
    let guest = Guest::open(&memory, domain.domid()).unwrap();
    (Arc::new(MapCache::new(guest)), EventChannels::open(&memory).unwrap())
}

fn server(host: &MockHost, domain: &MockDomain) -> IoreqServer {
    let (cache, events) = open(host, domain);
    let server = IoreqServer::create(cache, events).unwrap();
    server.add_range(IoRange::ports(PORT, PORT + 3)).unwrap();
    server.add_range(IoRange::memory(ADDRESS, ADDRESS + 0xFFF)).unwrap();
    server
}

/// Maps the page of a server's requests.
fn map_page(host: &MockHost, domain: &MockDomain, id: ServerId) -> Page {
    Page::map(&host.open().unwrap(), domain.domid(), id.0).unwrap()
}

/// Reads the port on a thread of its own.
fn read_port(domain: &MockDomain, vcpu: u32) -> JoinHandle<Result<u64, VcpuStopped>> {
    let vcpu = domain.vcpu(vcpu);
    thread::spawn(move || vcpu.port_in(PORT, 4))
}

/// An access: whether it is a read, and the value.
type Seen = (bool, u64);

/// A register that keeps what the guest writes, and records all accesses.
#[derive(Clone, Default)]
struct Register(Arc<Mutex<(u64, Vec<Seen>)>>);

impl Registers for Register {
    fn read(&mut self, _: Target, _: usize) -> u64 {
        let (value, seen) = &mut *self.0.lock().unwrap();
        seen.push((true, *value));
        *value
    }

    fn write(&mut self, _: Target, _: usize, written: u64) {
        let (value, seen) = &mut *self.0.lock().unwrap();
        seen.push((false, written));
        *value = written;
    }
}

#[test]
fn lost_events_are_an_error_once_and_no_request_is_lost() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let server = server(&host, &domain);
    host.inject(Fault::LostEvents);
    assert!(matches!(server.next(AT_ONCE), Ok(Event::TimedOut)), "it has looked, and found nothing");
    let reading = read_port(&domain, 0);
    next_request(&server).serve(&mut Register::default());
    assert_eq!(reading.join().unwrap(), Ok(0));

    let (_, events) = open(&host, &domain);
    host.inject(Fault::LostEvents);
    let error = events.wait(AT_ONCE).unwrap_err();
    assert!(matches!(error, Error::EventChannel { operation: "read", .. }), "{error:?}");
    assert_eq!(error.errno(), libc::EFBIG);
    assert_eq!(events.wait(AT_ONCE).unwrap(), None);
}

#[test]
fn server_that_cannot_be_created_leaves_nothing() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    for calls in 0.. {
        host.inject_after(calls, Fault::DmOp(libc::ENOMEM));
        let (cache, events) = open(&host, &domain);
        match IoreqServer::create(cache, events) {
            Err(e) => assert!(matches!(&e, Error::DmOp { .. }) && e.errno() == libc::ENOMEM, "{e}"),
            Ok(server) => {
                assert!(calls > 1, "creating a server takes several operations");
                assert_eq!(server.id(), ServerId(0), "one is left");
                break;
            }
        }
    }
}

#[test]
fn child_serves_nothing_and_the_parent_goes_on() {
    in_own_process("mock::child_serves_nothing_and_the_parent_goes_on", || {
        let host = mock(Dom0::Pv);
        let domain = guest(&host);
        let server = server(&host, &domain);
        let child = |wait: &dyn Fn()| {
            let (_, events) = open(&host, &domain);
            let refused = server.add_range(IoRange::ports(1, 1)).unwrap_err();
            let unbound = events.bind(domain.domid(), 1).unwrap_err();
            wait();
            refused.errno() == libc::ENODEV && unbound.errno() == libc::ENODEV
        };
        assert!(in_child(child, || ThenChild::Continues));
        let reading = read_port(&domain, 0);
        next_request(&server).serve(&mut Register::default());
        assert_eq!(reading.join().unwrap(), Ok(0));
    });
}

#[test]
fn fork_of_a_guest_has_no_servers() {
    let host = mock(Dom0::Pv);
    let domain = guest(&host);
    let _server = server(&host, &domain);
    let fork = domain.fork();
    fork.unpause();
    assert_eq!(fork.vcpu(0).port_in(PORT, 4), Ok(0xFFFF_FFFF));
}

#[test]
fn destroyed_guest_lets_everybody_go_on() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Hvm, 16);
    domain.set_vcpu(1, Vcpu::default());
    let server = server(&host, &domain);
    let waiting = read_port(&domain, 0);
    let request = next_request(&server);
    domain.pause();
    let paused = read_port(&domain, 1);
    let device = Sbdf::new(0, 0, 6, 0).unwrap();
    let [msi, line, isa] = [0, 1, 2].map(|what| {
        let domain = domain.clone();
        thread::spawn(move || match what {
            0 => domain.wait_for_msi().is_none(),
            1 => domain.wait_for_pci_line(device, 0, true).is_none(),
            _ => domain.wait_for_isa_line(7, true).is_none(),
        })
    });

    domain.destroy();

    assert_eq!(waiting.join().unwrap(), Err(VcpuStopped::Destroyed));
    assert_eq!(paused.join().unwrap(), Err(VcpuStopped::Destroyed));
    assert!(msi.join().unwrap() && line.join().unwrap() && isa.join().unwrap());
    drop(request);
    drop(server);
    assert_eq!(host.zombies(), []);
}

#[test]
fn vcpu_of_a_destroyed_guest_stops_even_if_its_number_is_used_again() {
    let host = mock(Dom0::Pv);
    for _ in 0..50 {
        let domain = guest(&host);
        let id = server(&host, &domain).detach();
        assert_eq!(id, ServerId(0));
        let reading = read_port(&domain, 0);
        map_page(&host, &domain, id).wait_until_ready(0);
        domain.destroy();
        let next = guest(&host);
        assert_eq!(next.domid(), domain.domid());
        assert_eq!(reading.join().unwrap(), Err(VcpuStopped::Destroyed));
        next.destroy();
    }
}

#[test]
fn hosts_without_device_models_say_so() {
    let errno = |config: HostConfig| {
        let host = mock_with(config);
        let domain = guest(&host);
        let (cache, events) = open(&host, &domain);
        IoreqServer::create(cache, events).unwrap_err().errno()
    };
    let (mut arm, mut old) = (HostConfig::default(), HostConfig::default());
    arm.dom0 = Dom0::Arm;
    old.kernel = (4, 10);
    assert_eq!([arm, old].map(errno), [libc::ENOSYS, libc::EINVAL]);
}
