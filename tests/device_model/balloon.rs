//! A guest gives memory back, and waits until all servers have forgotten it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use xenmap::device_model::{Event, IoRange, IoreqServer, Target};
use xenmap::mock::MockRep;
use xenmap::{Access, Gfn, GuestKind, MapCache, Protection};

use crate::common::program::Step;
use crate::common::running::{DATA, Running};
use crate::common::{FRAME, Host};
use crate::raw::{ANSWERED, INVALIDATE, RawServer, TOO_LONG};
use crate::requests::{A_WHILE, Recorder, next_request, on_each_x86_host};

const PORT: u16 = 0x500;
const ADDRESS: u64 = DATA * FRAME as u64;

/// The guest gives a frame back, then makes a request.
const PROGRAM: [Step; 2] = [Step::BalloonOut { frame: DATA }, Step::Out { port: PORT, size: 1, value: 0 }];

/// Creates a server whose cache has mapped the frame.
fn server_with_a_mapping(host: &Host, running: &Running) -> (IoreqServer, Arc<MapCache>) {
    let (cache, events) = running.open(host);
    let server = IoreqServer::create(Arc::clone(&cache), events).unwrap();
    cache.get(Protection::ReadWrite, ADDRESS, 8).unwrap().write(0, 7_u64).unwrap();
    assert_ne!(cache.statistics().mapped_bytes, 0);
    (server, cache)
}

#[test]
fn cache_is_invalidated_before_the_processor_goes_on() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&PROGRAM]);
        let (server, cache) = server_with_a_mapping(host, &running);
        server.add_range(IoRange::ports(PORT, PORT)).unwrap();
        let owned = host.owned(running.guest.domid()).unwrap();

        running.start();
        let request = next_request(&server);

        assert_eq!(cache.statistics().mapped_bytes, 0);
        assert_eq!(host.owned(running.guest.domid()), Some(owned - 1), "nothing keeps the frame");
        assert!(cache.get(Protection::ReadOnly, ADDRESS, 8).is_err());
        assert!(cache.get(Protection::ReadOnly, ADDRESS + FRAME as u64, 8).is_ok());
        request.serve(&mut Recorder::default());
        assert_eq!(running.results(), [[1]]);
    });
}

#[test]
fn request_to_invalidate_has_no_values() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&PROGRAM]);
        let server = RawServer::create(host, &running);
        let channel = server.bind(0);
        running.start();
        server.page.wait_until_ready(0);

        let (type_, count) = (server.page.type_(0), server.page.count(0));
        server.page.set_state(0, ANSWERED);
        channel.notify().unwrap();

        assert_eq!((type_, count), (INVALIDATE, 0));
        assert_eq!(running.results(), [[1]]);
    });
}

#[test]
fn frame_that_comes_back_is_served_although_its_neighbour_was_used_meanwhile() {
    on_each_x86_host(|host| {
        let values = MockRep { ram: ADDRESS, size: 4, count: 2, backwards: false };
        let program = [&PROGRAM[..], &[Step::RepOut { port: PORT, rep: values }]].concat();
        let mut running = host.create_running(GuestKind::Pvh, &[&program]);
        let (server, cache) = server_with_a_mapping(host, &running);
        server.add_range(IoRange::ports(PORT, PORT + 3)).unwrap();
        running.start();
        let request = next_request(&server); // the frame is out
        cache.get(Protection::ReadOnly, ADDRESS + FRAME as u64, 8).unwrap(); // its bucket is mapped without it

        let frame = Gfn::new(DATA).unwrap();
        running.guest.populate(frame);
        running.guest.write(frame, 0, &[1, 0, 0, 0, 2, 0, 0, 0]);
        request.serve(&mut Recorder::default());

        let mut device = Recorder::default();
        next_request(&server).serve(&mut device);
        let written = [1, 2].map(|value| (Target::Port(PORT), 4, Some(value)));
        assert_eq!(device.0, written);
        assert_eq!(running.results(), [[1]]);
    });
}

#[test]
fn processor_waits_for_every_server() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&PROGRAM]);
        let (one, ones_cache) = server_with_a_mapping(host, &running);
        let (other, others_cache) = server_with_a_mapping(host, &running);
        one.add_range(IoRange::ports(PORT, PORT)).unwrap();

        running.start();
        let deadline = Instant::now() + TOO_LONG;
        while ones_cache.statistics().mapped_bytes != 0 {
            assert!(Instant::now() < deadline, "the server is not asked to invalidate");
            assert!(matches!(one.next(Some(Duration::from_millis(1))), Ok(Event::TimedOut)));
        }
        assert!(matches!(one.next(A_WHILE), Ok(Event::TimedOut)), "the processor has not waited for the other server");
        assert_ne!(others_cache.statistics().mapped_bytes, 0);
        assert!(matches!(other.next(Some(Duration::ZERO)), Ok(Event::TimedOut)));
        assert_eq!(others_cache.statistics().mapped_bytes, 0);

        next_request(&one).serve(&mut Recorder::default());
        assert_eq!(running.results(), [[1]]);
    });
}

#[test]
fn pinned_frame_stays_mapped_until_it_is_unpinned() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&PROGRAM]);
        let (server, cache) = server_with_a_mapping(host, &running);
        server.add_range(IoRange::ports(PORT, PORT)).unwrap();
        let owned = host.owned(running.guest.domid());
        let pinned = cache.get(Protection::ReadWrite, ADDRESS, 8).unwrap();

        running.start();
        next_request(&server).serve(&mut Recorder::default());
        assert_eq!(running.results(), [[1]]);

        assert_eq!(pinned.read::<u64>(0).unwrap(), 7);
        assert!(cache.get(Protection::ReadOnly, ADDRESS, 8).is_err(), "the cache no longer has the frame");
        assert_eq!(host.owned(running.guest.domid()), owned);
        drop(pinned);
        assert_eq!(host.owned(running.guest.domid()), owned.map(|frames| frames - 1));
    });
}
