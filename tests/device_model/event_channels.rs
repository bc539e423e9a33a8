//! Event channels.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xenmap::device_model::{EventChannel, EventChannels};
use xenmap::{Domid, Error, GuestKind, Result};

use crate::common::Host;
use crate::common::program::Step;
use crate::common::running::Running;
use crate::raw::{ANSWERED, MAP_RANGE, READY, RawServer, SERVER_STATE, range_fields, state_fields};
use crate::requests::{SOON, on_each_x86_host};

const PORT: u16 = 0x500;
const NOW: Option<Duration> = Some(Duration::ZERO);

fn running(host: &Host) -> Running {
    let program = [Step::Out { port: PORT, size: 1, value: 0 }];
    host.create_running(GuestKind::Pvh, &[&program, &program])
}

fn errno<T>(result: Result<T>) -> i32 {
    match result {
        Err(Error::EventChannel { source, .. }) => source.raw_os_error().unwrap(),
        Err(e) => panic!("{e}"),
        Ok(_) => 0,
    }
}

fn is_readable(events: &EventChannels) -> bool {
    poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn new_channel_has_one_event_pending() {
    on_each_x86_host(|host| {
        let running = running(host);
        let server = RawServer::create(host, &running);
        let channel = server.bind(0);
        assert!(is_readable(&server.events));
        assert_eq!(server.events.wait(NOW).unwrap(), Some(channel.port()));
        assert!(!is_readable(&server.events));
        assert_eq!(server.events.wait(NOW).unwrap(), None);
    });
}

#[test]
fn channels_have_ports_of_their_own() {
    on_each_x86_host(|host| {
        let running = running(host);
        let server = RawServer::create(host, &running);
        let channels = [0, 1].map(|vcpu| server.bind(vcpu));
        let mut events = [(); 2].map(|()| server.events.wait(SOON).unwrap().unwrap());
        let mut ports = channels.each_ref().map(EventChannel::port);
        events.sort_unstable();
        ports.sort_unstable();
        assert_eq!(events, ports);
        assert_ne!(ports[0], ports[1]);
        assert_eq!(server.events.wait(NOW).unwrap(), None);
    });
}

#[test]
fn wait_ends_after_its_timeout() {
    on_each_x86_host(|host| {
        let running = running(host);
        let server = RawServer::create(host, &running);
        let _channel = server.bind(0);
        assert!(server.events.wait(SOON).unwrap().is_some());
        let (start, timeout) = (Instant::now(), Duration::from_millis(30));
        assert_eq!(server.events.wait(Some(timeout)).unwrap(), None);
        assert!(start.elapsed() >= timeout);
    });
}

#[test]
fn event_of_the_guest_arrives_and_the_answer_reaches_it() {
    on_each_x86_host(|host| {
        let mut running = running(host);
        let server = RawServer::create(host, &running);
        server.dm_op(MAP_RANGE, &range_fields(server.id, 0, PORT.into(), PORT.into())).unwrap();
        let channels = [0, 1].map(|vcpu| server.bind(vcpu));
        for _ in &channels {
            assert!(server.events.wait(SOON).unwrap().is_some());
        }

        running.start();
        for _ in 0..2 {
            let port = server.events.wait(SOON).unwrap().unwrap();
            let vcpu = channels.iter().position(|channel| channel.port() == port).unwrap();
            assert_eq!(server.page.state(vcpu), READY);
            server.page.set_state(vcpu, ANSWERED);
            // Needless events do no harm.
            (0..3).for_each(|_| channels[vcpu].notify().unwrap());
        }

        running.results();
        assert_eq!([0, 1].map(|vcpu| server.page.state(vcpu)), [0, 0]);
        assert_eq!(server.events.wait(NOW).unwrap(), None);
    });
}

#[test]
fn event_before_the_channel_is_bound_is_not_lost() {
    on_each_x86_host(|host| {
        let mut running = running(host);
        let server = RawServer::create(host, &running);
        server.dm_op(MAP_RANGE, &range_fields(server.id, 0, PORT.into(), PORT.into())).unwrap();
        running.start();
        for vcpu in [0, 1] {
            server.page.wait_until_ready(vcpu);
            let channel = server.bind(vcpu);
            assert_eq!(server.events.wait(SOON).unwrap(), Some(channel.port()));
            server.page.set_state(vcpu, ANSWERED);
            channel.notify().unwrap();
        }
        running.results();
    });
}

#[test]
fn dropped_channel_can_be_bound_again() {
    on_each_x86_host(|host| {
        let running = running(host);
        let server = RawServer::create(host, &running);
        let (domid, port) = (server.cache.guest().domid(), server.page.port(0));
        let channel = server.bind(0);
        assert_eq!(errno(server.events.bind(domid, port)), libc::EINVAL, "it is taken");
        assert_eq!(server.events.wait(NOW).unwrap(), Some(channel.port()));
        drop(channel);
        let again = server.bind(0);
        assert_eq!(server.events.wait(NOW).unwrap(), Some(again.port()));
        assert_eq!(server.events.wait(NOW).unwrap(), None);
    });
}

#[test]
fn handle_that_is_dropped_frees_its_ports() {
    on_each_x86_host(|host| {
        let running = running(host);
        let RawServer { events, .. } = &RawServer::create(host, &running);
        let server = RawServer::create(host, &running);
        let (domid, port) = (running.guest.domid(), server.page.port(0));
        let channel = server.bind(0);
        let other_port = server.page.port(1);
        drop(server);
        assert_eq!(errno(events.bind(domid, port)), libc::EINVAL, "the channel keeps the device open");
        drop(channel);
        for port in [port, other_port] {
            events.bind(domid, port).unwrap();
        }
    });
}

#[test]
fn wrong_ports_and_domains_are_refused() {
    on_each_x86_host(|host| {
        let running = running(host);
        let server = RawServer::create(host, &running);
        let events = EventChannels::open(&host.open()).unwrap();
        let domid = server.cache.guest().domid();
        for (domid, port, expected) in
            [(domid, 0, libc::EINVAL), (domid, 9999, libc::EINVAL), (host.unused_domid(), 1, libc::ESRCH)]
        {
            assert_eq!(errno(events.bind(domid, port)), expected, "port {port} of domain {domid}");
        }
        assert_eq!(errno(events.offer(host.unused_domid())), 0, "Xen does not look whether there is such a domain");
    });
}

#[test]
fn ports_are_known_once_the_server_is_enabled() {
    on_each_x86_host(|host| {
        let running = running(host);
        let server = RawServer::create_disabled(host, &running);
        assert_eq!([0, 1].map(|vcpu| server.page.port(vcpu)), [0, 0]);
        assert_eq!(errno(server.events.bind(running.guest.domid(), 0)), libc::EINVAL);

        server.dm_op(SERVER_STATE, &state_fields(server.id, 1)).unwrap();

        assert_ne!(server.page.port(0), 0);
        assert_ne!(server.page.port(1), server.page.port(0));
        assert_eq!(server.page.port(2), 0, "the guest has 2 vcpus");
    });
}

/// Dom0 offers a port to itself.
#[test]
fn events_go_both_ways() {
    on_each_x86_host(|host| {
        let dom0 = Domid::new(0).unwrap();
        let [ours, theirs] = [(); 2].map(|()| EventChannels::open(&host.open()).unwrap());
        let offered = ours.offer(dom0).unwrap();
        let bound = theirs.bind(dom0, offered.port()).unwrap();
        assert_eq!(theirs.wait(SOON).unwrap(), Some(bound.port()));
        for _ in 0..2 {
            offered.notify().unwrap();
            assert_eq!(theirs.wait(SOON).unwrap(), Some(bound.port()));
            assert_eq!(ours.wait(NOW).unwrap(), None);
            bound.notify().unwrap();
            assert_eq!(ours.wait(SOON).unwrap(), Some(offered.port()));
            assert_eq!(theirs.wait(NOW).unwrap(), None);
        }
        drop(bound);
        offered.notify().unwrap();
        let again = theirs.bind(dom0, offered.port()).unwrap();
        assert_eq!(theirs.wait(SOON).unwrap(), Some(again.port()));
        assert_eq!(theirs.wait(NOW).unwrap(), None);
    });
}

#[test]
fn port_is_bound_only_by_the_domain_that_it_was_offered_to() {
    on_each_x86_host(|host| {
        let running = running(host);
        let events = EventChannels::open(&host.open()).unwrap();
        let offered = events.offer(running.guest.domid()).unwrap();
        assert_eq!(errno(events.bind(Domid::new(0).unwrap(), offered.port())), libc::EINVAL);
    });
}

#[test]
fn waiting_thread_receives_an_event() {
    on_each_x86_host(|host| {
        let dom0 = Domid::new(0).unwrap();
        let [ours, theirs] = [(); 2].map(|()| EventChannels::open(&host.open()).unwrap());
        let offered = ours.offer(dom0).unwrap();
        let bound = theirs.bind(dom0, offered.port()).unwrap();
        assert!(theirs.wait(SOON).unwrap().is_some());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| theirs.wait(None).unwrap());
            offered.notify().unwrap();
            assert_eq!(waiting.join().unwrap(), Some(bound.port()));
        });
    });
}

#[test]
fn offered_channel_that_nobody_has_bound_can_be_notified() {
    on_each_x86_host(|host| {
        let running = running(host);
        let events = EventChannels::open(&host.open()).unwrap();
        let offered = events.offer(running.guest.domid()).unwrap();
        assert_eq!(events.wait(NOW).unwrap(), None);
        offered.notify().unwrap();
        let other = events.offer(running.guest.domid()).unwrap();
        assert_ne!(offered.port(), other.port());
    });
}

#[test]
fn channel_of_a_guest_that_is_gone_can_be_notified_and_dropped() {
    on_each_x86_host(|host| {
        let mut running = running(host);
        let RawServer { events, .. } = &RawServer::create(host, &running);
        let server = RawServer::create(host, &running);
        let port = server.page.port(0);
        let channel = events.bind(running.guest.domid(), port).unwrap();
        assert!(events.wait(NOW).unwrap().is_some());
        drop(server);
        running.guest.destroy();
        channel.notify().unwrap();
        assert_eq!(events.wait(NOW).unwrap(), None, "nothing tells that the guest is gone");
        assert_eq!(errno(events.bind(running.guest.domid(), port)), libc::EINVAL, "a zombie has no ports");
    });
}
