//! A server outlives the process that serves it.

use xenmap::device_model::{Event, EventChannels, IoRange, IoreqServer, Request, ServerId, Target};
use xenmap::{Error, GuestKind};

use crate::common::program::Step;
use crate::common::running::Running;
use crate::common::{Host, ThenChild, in_child, in_own_process};
use crate::life::set_state;
use crate::raw::{self, ANSWERED, IN_PROCESS, MAP_RANGE, READY, RawServer, dm_op, range_fields};
use crate::requests::{A_WHILE, Recorder, SOON, create_server, next_request, on_each_x86_host, ones, value};

const PORT: u16 = 0x500;

fn read(port: u16) -> [Step; 1] {
    [Step::In { port, size: 4 }]
}

fn ports() -> IoRange {
    IoRange::ports(PORT, PORT + 7)
}

fn adopt(host: &Host, running: &Running, id: ServerId) -> xenmap::Result<IoreqServer> {
    let (cache, events) = running.open(host);
    IoreqServer::adopt(cache, events, id)
}

/// Creates server 0, starts the guest, waits until both of its processors have sent a request, and takes that of
/// processor 0.
fn take_one_of_two_requests(host: &Host, running: &mut Running) -> RawServer {
    let server = RawServer::create(host, running);
    server.dm_op(MAP_RANGE, &range_fields(server.id, 0, PORT.into(), (PORT + 7).into())).unwrap();
    let channels = [0, 1].map(|vcpu| server.bind(vcpu));
    running.start();
    while [0, 1].map(|vcpu| server.page.state(vcpu)) != [READY, READY] {
        assert!(server.events.wait(SOON).unwrap().is_some(), "no request");
    }
    server.page.set_state(0, IN_PROCESS);
    drop(channels);
    server
}

/// Has server 0 served by a process that dies.
fn serve_and_die(host: &Host, running: &mut Running) {
    match host {
        // The processes do not share a simulated host. All that Xen and the kernel see of a death is that everything is
        // closed and unmapped.
        Host::Mock(_) => drop(take_one_of_two_requests(host, running)),
        Host::Xen(_) => {
            let child = |wait: &dyn Fn()| {
                let server = take_one_of_two_requests(host, running);
                wait();
                drop(server);
                false
            };
            assert!(in_child(child, || ThenChild::IsKilled));
        }
    }
}

#[test]
fn server_of_a_killed_process_is_adopted_with_all_requests() {
    in_own_process("adopt::server_of_a_killed_process_is_adopted_with_all_requests", || {
        on_each_x86_host(|host| {
            let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT), &read(PORT + 4)]);
            serve_and_die(host, &mut running);

            let server = adopt(host, &running, ServerId(0)).unwrap();
            let mut requests = [(); 2].map(|()| next_request(&server));
            requests.sort_by_key(Request::vcpu);
            assert_eq!(requests.each_ref().map(Request::vcpu), [Some(0), Some(1)]);
            for request in requests {
                request.serve(&mut Recorder::default());
            }

            let read = [PORT, PORT + 4].map(|port| vec![value(Target::Port(port)) & ones(4)]);
            assert_eq!(running.results(), read);
        });
    });
}

#[test]
fn answer_that_its_process_did_not_send_reaches_the_guest() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT)]);
        let server = RawServer::create(host, &running);
        server.dm_op(MAP_RANGE, &range_fields(server.id, 0, PORT.into(), (PORT + 3).into())).unwrap();
        let channel = server.bind(0);
        running.start();
        while server.page.state(0) != READY {
            assert!(server.events.wait(SOON).unwrap().is_some(), "no request");
        }
        server.page.set_state(0, ANSWERED);
        drop((channel, server));

        let _adopted = adopt(host, &running, ServerId(0)).unwrap();
        assert_eq!(running.results(), [[0]]);
    });
}

#[test]
fn killed_guest_leaves_no_zombie_although_its_server_was_never_destroyed() {
    in_own_process("adopt::killed_guest_leaves_no_zombie_although_its_server_was_never_destroyed", || {
        on_each_x86_host(|host| {
            let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT), &read(PORT + 4)]);
            serve_and_die(host, &mut running);
            running.guest.destroy();
            assert_eq!(host.owned(running.guest.domid()), None);
        });
    });
}

#[test]
fn detached_server_is_adopted_with_its_ranges() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT)]);
        let id = create_server(host, &running, &[ports()]).detach();
        running.start();

        let server = adopt(host, &running, id).unwrap();
        assert_eq!(server.id(), id);
        next_request(&server).serve(&mut Recorder::default());

        assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4)]]);
        assert_eq!(server.add_range(ports()).unwrap_err().errno(), libc::EEXIST);
    });
}

#[test]
fn answered_request_is_not_taken_again_after_an_adoption() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT)]);
        let server = create_server(host, &running, &[ports()]);
        running.start();
        next_request(&server).serve(&mut Recorder::default());
        running.results();
        let adopted = adopt(host, &running, server.detach()).unwrap();
        assert!(matches!(adopted.next(A_WHILE), Ok(Event::TimedOut)));
    });
}

#[test]
fn server_is_not_adopted_while_another_handle_has_its_channels() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT)]);
        let server = create_server(host, &running, &[ports()]);
        assert!(matches!(adopt(host, &running, server.id()), Err(Error::EventChannel { .. })));

        running.start();
        next_request(&server).serve(&mut Recorder::default());
        assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4)]], "the server still works");
    });
}

#[test]
fn disabled_server_that_cannot_be_adopted_stays_disabled() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT)]);
        let server = create_server(host, &running, &[ports()]);
        set_state(server.cache(), server.id(), 0).unwrap();
        assert!(matches!(adopt(host, &running, server.id()), Err(Error::EventChannel { .. })));

        running.start();
        assert!(matches!(server.next(A_WHILE), Ok(Event::TimedOut)), "it receives requests");
        assert_eq!(running.results(), [[ones(4)]]);
    });
}

#[test]
fn server_without_ports_that_cannot_be_adopted_ends_up_disabled() {
    on_each_x86_host(|host| {
        for was_enabled in [0, 1] {
            let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT)]);
            let (cache, _) = running.open(host);
            let (memory, domid) = (cache.guest().memory(), cache.guest().domid());
            let id = raw::create_server(memory, domid).unwrap();
            dm_op(memory, domid, MAP_RANGE, &range_fields(id, 0, PORT.into(), (PORT + 3).into())).unwrap();
            set_state(&cache, ServerId(id), was_enabled).unwrap(); // its page does not exist yet
            let events = EventChannels::open(&host.open()).unwrap();
            events.restrict(host.unused_domid()).unwrap();

            let error = IoreqServer::adopt(cache, events, ServerId(id)).unwrap_err();

            assert_eq!(error.errno(), libc::EACCES);
            running.start();
            assert_eq!(running.results(), [[ones(4)]]);
        }
    });
}

#[test]
fn server_with_a_buffer_is_adopted_with_it() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&read(PORT)]);
        let (cache, events) = running.open(host);
        let server = IoreqServer::create_with_buffer(cache, events).unwrap();
        server.add_range(ports()).unwrap();
        let adopted = adopt(host, &running, server.detach()).unwrap();
        running.start();
        next_request(&adopted).serve(&mut Recorder::default());
        assert_eq!(running.results(), [[value(Target::Port(PORT)) & ones(4)]]);
    });
}

#[test]
fn server_that_does_not_exist_is_not_adopted() {
    on_each_x86_host(|host| {
        let running = host.create_running(GuestKind::Pvh, &[&read(PORT)]);
        let error = adopt(host, &running, ServerId(0)).unwrap_err();
        assert!(matches!(error, Error::DmOp { .. }) && error.errno() == libc::ENOENT, "{error:?}");
    });
}
