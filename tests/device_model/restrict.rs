//! Handles that are restricted to a guest. (Those of all other tests are, too.)

use xenmap::device_model::{EventChannels, IoreqServer, ServerId};
use xenmap::{Error, ForeignMemory, Guest, GuestKind, MapCache, Protection, Resource};

use crate::common::Host;
use crate::common::bytes::Bytes;
use crate::common::program::Step;
use crate::common::running::Running;
use crate::raw::{CREATE_SERVER, RawServer, dm_op};
use crate::requests::{create_server, on_each_x86_host};

const PROGRAM: [Step; 1] = [Step::In { port: 0x500, size: 4 }];

fn running(host: &Host) -> Running {
    host.create_running(GuestKind::Pvh, &[&PROGRAM])
}

#[test]
fn device_of_memory_refuses_other_domains() {
    on_each_x86_host(|host| {
        let (ours, other) = (running(host), running(host));
        let theirs = create_server(host, &other, &[]);
        let (memory, domid) = (host.open(), other.guest.domid());
        let guest = Guest::open(&memory, domid).unwrap();
        memory.restrict(ours.guest.domid()).unwrap();
        let page = Resource::IoreqServer { id: theirs.id().0.into() };
        assert_eq!(dm_op(&memory, domid, CREATE_SERVER, &Bytes::default().up_to(6)), Err(libc::EPERM));
        let mapped = memory.map_resource(domid, Protection::ReadWrite, page, 1, 1);
        assert_eq!(mapped.unwrap_err().errno(), libc::EPERM);

        let events = EventChannels::open(&memory).unwrap();
        let cache = std::sync::Arc::new(MapCache::new(guest));
        let refused = IoreqServer::create(cache.clone(), events);
        assert!(matches!(&refused, Err(Error::DmOp { .. })), "{refused:?}");
        let events = EventChannels::open(&memory).unwrap();
        let refused = IoreqServer::adopt(cache, events, ServerId(theirs.id().0));
        assert!(matches!(&refused, Err(Error::DmOp { .. })), "{refused:?}");
    });
}

#[test]
fn device_of_memory_refuses_hypercalls_and_another_restriction() {
    on_each_x86_host(|host| {
        let (ours, other) = (running(host), running(host));
        let memory: ForeignMemory = host.open();
        memory.restrict(ours.guest.domid()).unwrap();
        assert_eq!(memory.current_reservation(ours.guest.domid()).unwrap_err().errno(), libc::EPERM);
        assert_eq!(memory.restrict(other.guest.domid()).unwrap_err().errno(), libc::EINVAL);
        memory.restrict(ours.guest.domid()).unwrap();
    });
}

#[test]
fn device_of_event_channels_refuses_other_domains_and_another_restriction() {
    on_each_x86_host(|host| {
        let (ours, other) = (running(host), running(host));
        let (server, theirs) = (RawServer::create(host, &ours), RawServer::create(host, &other));
        let (events, domid) = (&server.events, ours.guest.domid());
        assert_eq!(events.bind(other.guest.domid(), theirs.page.port(0)).unwrap_err().errno(), libc::EACCES);
        assert_eq!(events.bind(host.unused_domid(), 1).unwrap_err().errno(), libc::EACCES);
        for domid in [domid, other.guest.domid()] {
            assert_eq!(events.offer(domid).unwrap_err().errno(), libc::EACCES);
            assert_eq!(events.restrict(domid).unwrap_err().errno(), libc::EACCES);
        }
        events.bind(domid, server.page.port(0)).unwrap();
    });
}

#[test]
fn channel_that_was_bound_before_the_restriction_still_works() {
    on_each_x86_host(|host| {
        let (ours, other) = (running(host), running(host));
        let theirs = RawServer::create(host, &other);
        let events = EventChannels::open(&host.open()).unwrap();
        let channel = events.bind(other.guest.domid(), theirs.page.port(0)).unwrap();
        events.restrict(ours.guest.domid()).unwrap();
        assert_eq!(events.wait(crate::requests::SOON).unwrap(), Some(channel.port()));
        channel.notify().unwrap();
    });
}

#[test]
fn device_of_event_channels_is_not_restricted_to_dom0() {
    on_each_x86_host(|host| {
        let events = EventChannels::open(&host.open()).unwrap();
        let error = events.restrict(xenmap::Domid::new(0).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Restrict { .. }) && error.errno() == libc::EINVAL, "{error:?}");
    });
}
