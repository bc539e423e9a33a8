//! From creation to destruction, and what happens when one side dies.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xenmap::device_model::{Event, IoRange, IoreqServer, ServerId, Target};
use xenmap::{GuestKind, MapCache, Result};

use crate::common::program::Step;
use crate::common::{ThenChild, in_child, in_own_process};
use crate::raw::{DESTROY_SERVER, SERVER_STATE, destroy_fields, dm_op, state_fields};
use crate::requests::{A_WHILE, Recorder, SOON, create_server, next_request, on_each_x86_host, ones, value};

const PORT: u16 = 0x500;
const READ: [Step; 1] = [Step::In { port: PORT, size: 4 }];

fn ports() -> IoRange {
    IoRange::ports(PORT, PORT + 3)
}

fn errno<T>(result: Result<T>) -> i32 {
    result.err().map_or(0, |e| e.errno())
}

/// Enables or disables a server without the library.
pub(crate) fn set_state(cache: &MapCache, id: ServerId, enabled: u8) -> std::result::Result<Vec<u8>, i32> {
    dm_op(cache.guest().memory(), cache.guest().domid(), SERVER_STATE, &state_fields(id.0, enabled))
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn ranges_are_refused_as_xen_refuses_them() {
    on_each_x86_host(|host| {
        let running = host.create_running(GuestKind::Pvh, &[&READ]);
        let server = create_server(host, &running, &[]);
        assert_eq!(errno(server.add_range(IoRange::ports(7, 5))), libc::EINVAL);
        assert_eq!(errno(server.remove_range(ports())), libc::ENOENT);
        assert_eq!(errno(server.add_range(ports())), 0);
        assert_eq!(errno(server.add_range(IoRange::ports(PORT + 3, PORT + 9))), libc::EEXIST);
        assert_eq!(errno(server.remove_range(IoRange::ports(PORT + 1, PORT + 1))), 0);
        assert_eq!(errno(server.add_range(IoRange::ports(PORT + 1, PORT + 1))), 0);
        // Adjacent ranges have become one.
        for first in 0x1000..0x1000 + 255 {
            server.add_range(IoRange::ports(2 * first, 2 * first)).unwrap();
        }
        assert_eq!(errno(server.add_range(IoRange::ports(1, 1))), libc::ENOMEM);
    });
}

#[test]
fn server_with_the_highest_number_gets_the_request() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let [low, high] = [(); 2].map(|()| create_server(host, &running, &[ports()]));
        assert!(low.id() < high.id());
        running.start();
        next_request(&high).serve(&mut Recorder::default());
        assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4)]]);
        assert!(matches!(low.next(Some(Duration::ZERO)), Ok(Event::TimedOut)));
    });
}

#[test]
fn ninth_server_is_refused_and_a_dropped_one_makes_room() {
    on_each_x86_host(|host| {
        let running = host.create_running(GuestKind::Pvh, &[&READ]);
        let create = || {
            let (cache, events) = running.open(host);
            IoreqServer::create(cache, events)
        };
        let mut servers: Vec<IoreqServer> = (0..8).map(|_| create().unwrap()).collect();
        assert_eq!(errno(create()), libc::ENOSPC);
        let dropped = servers.remove(3).id();
        assert_eq!(create().unwrap().id(), dropped);
    });
}

#[test]
fn dropped_server_answers_what_waits() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let server = create_server(host, &running, &[ports()]);
        while is_readable(server.as_fd()) {
            assert!(matches!(server.next(Some(Duration::ZERO)), Ok(Event::TimedOut)));
        }
        running.start();
        let events = poll(&mut [PollFd::new(server.as_fd(), PollFlags::POLLIN)], 20_000_u16).unwrap();
        assert_eq!(events, 1, "no request");
        drop(server);
        assert_eq!(running.results(), [[0xFFFF_FFFF]]);
    });
}

#[test]
fn request_can_be_answered_after_its_server_was_dropped() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let server = create_server(host, &running, &[ports()]);
        running.start();
        let request = next_request(&server);
        drop(server);
        std::thread::spawn(move || drop(request)).join().unwrap();
        assert_eq!(running.results(), [[0xFFFF_FFFF]]);
    });
}

#[test]
fn server_that_a_forked_child_drops_serves_on_in_the_parent() {
    in_own_process("life::server_that_a_forked_child_drops_serves_on_in_the_parent", || {
        on_each_x86_host(|host| {
            let mut running = host.create_running(GuestKind::Pvh, &[&[READ[0], READ[0]]]);
            let server = create_server(host, &running, &[ports()]);
            running.start();
            let request = next_request(&server);
            assert!(matches!(server.next(Some(Duration::ZERO)), Ok(Event::TimedOut)), "all events are received");
            let inherited = Cell::new(Some((request, server)));
            let child = |wait: &dyn Fn()| {
                drop(inherited.take());
                wait();
                true
            };
            assert!(in_child(child, || ThenChild::Continues));

            let (request, server) = inherited.take().unwrap();
            request.serve(&mut Recorder::default());
            next_request(&server).serve(&mut Recorder::default());
            assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4); 2]]);
        });
    });
}

#[test]
fn server_with_a_buffer_serves_as_one_without() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let (cache, events) = running.open(host);
        let server = IoreqServer::create_with_buffer(cache, events).unwrap();
        server.add_range(ports()).unwrap();
        running.start();
        next_request(&server).serve(&mut Recorder::default());
        assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4)]]);
        assert!(matches!(server.next(Some(Duration::ZERO)), Ok(Event::TimedOut)), "nothing is buffered for PVH guests");
        let id = server.id();
        drop(server);
        assert_eq!(create_server(host, &running, &[]).id(), id, "it has been destroyed");
    });
}

#[test]
fn server_that_is_disabled_still_answers_what_it_has() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&[READ[0], READ[0]]]);
        let server = create_server(host, &running, &[ports()]);
        running.start();
        let request = next_request(&server);
        set_state(&running.open(host).0, server.id(), 0).unwrap();
        request.serve(&mut Recorder::default());
        assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4), ones(4)]], "later ones do not come");
    });
}

#[test]
fn server_can_be_enabled_again() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let server = create_server(host, &running, &[ports()]);
        for enabled in [0, 1] {
            set_state(&running.open(host).0, server.id(), enabled).unwrap();
        }
        running.start();
        next_request(&server).serve(&mut Recorder::default());
        assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4)]]);
    });
}

#[test]
fn server_that_is_destroyed_with_a_request_leaves_a_processor_that_never_goes_on() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let server = create_server(host, &running, &[ports()]);
        let other = create_server(host, &running, &[]);
        running.start();
        let request = next_request(&server);
        let cache = running.open(host).0;
        let (memory, domid) = (cache.guest().memory(), cache.guest().domid());
        dm_op(memory, domid, DESTROY_SERVER, &destroy_fields(server.id().0)).unwrap();

        request.serve(&mut Recorder::default());
        assert!(matches!(other.next(A_WHILE), Ok(Event::TimedOut)));
        assert!(!running.is_done(0));
        assert!(matches!(server.next(SOON), Ok(Event::Gone)));

        running.guest.destroy();
        drop((server, other));
        assert_eq!(host.owned(running.guest.domid()), None);
    });
}

#[test]
fn request_of_a_paused_guest_is_answered_and_the_guest_goes_on_when_it_is_unpaused() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&[READ[0], READ[0]]]);
        let server = create_server(host, &running, &[ports()]);
        running.start();
        let request = next_request(&server);
        running.guest.pause();
        request.serve(&mut Recorder::default());
        assert!(matches!(server.next(A_WHILE), Ok(Event::TimedOut)));
        running.guest.unpause();
        next_request(&server).serve(&mut Recorder::default());
        assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4); 2]]);
    });
}

#[test]
fn waiting_server_learns_that_the_guest_is_gone() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let server = create_server(host, &running, &[ports()]);
        running.start();
        drop(next_request(&server));
        running.results();
        let waiting = std::thread::spawn(move || server.run(&mut Recorder::default()));
        running.guest.destroy();
        waiting.join().unwrap().unwrap();
        assert_eq!(host.owned(running.guest.domid()), None, "the server has been dropped");
    });
}

#[test]
fn request_of_a_guest_that_is_gone_can_be_answered() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let server = create_server(host, &running, &[ports()]);
        running.start();
        let request = next_request(&server);
        running.guest.destroy();
        request.serve(&mut Recorder::default());
        assert!(matches!(server.next(SOON), Ok(Event::Gone)));
        drop(server);
        assert_eq!(host.owned(running.guest.domid()), None);
    });
}

#[test]
fn server_of_a_dead_guest_says_so_and_leaves_no_zombie() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&READ]);
        let server = create_server(host, &running, &[]);
        let domid = running.guest.domid();
        running.guest.destroy();
        assert_eq!(host.owned(domid), Some(0), "the page of requests keeps a zombie");
        assert!(matches!(server.next(SOON), Ok(Event::Gone)));
        drop(server);
        assert_eq!(host.owned(domid), None);
    });
}

#[test]
fn pv_guest_has_no_servers() {
    on_each_x86_host(|host| {
        let guest = host.create(GuestKind::Pv, 4);
        let memory = host.open();
        let cache = MapCache::new(xenmap::Guest::open(&memory, guest.domid()).unwrap());
        let events = xenmap::device_model::EventChannels::open(&memory).unwrap();
        assert_eq!(errno(IoreqServer::create(cache.into(), events)), libc::EINVAL);
    });
}
