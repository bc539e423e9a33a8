//! What a device model writes, and what a migration learns of it.

use std::sync::Arc;

use xenmap::device_model::{IoRange, IoreqServer, Target};
use xenmap::mock::MockRep;
use xenmap::{Access, GuestKind, MapCache, Protection};

use crate::common::program::Step;
use crate::common::running::{DATA, Running};
use crate::common::{FRAME, Host, pfns};
use crate::requests::{Recorder, next_request, on_each_x86_host, value};

const PORT: u16 = 0x500;
const ADDRESS: u64 = DATA * FRAME as u64;

/// Creates a server and its cache.
fn serve(host: &Host, running: &Running) -> (IoreqServer, Arc<MapCache>) {
    let (cache, events) = running.open(host);
    (IoreqServer::create(Arc::clone(&cache), events).unwrap(), cache)
}

fn write(cache: &MapCache, frame: u64, count: usize) {
    let pinned = cache.get(Protection::ReadWrite, frame * FRAME as u64, count * FRAME).unwrap();
    for i in 0..count {
        pinned.write(i * FRAME, 7_u64).unwrap();
    }
}

fn dirty(running: &Running) -> Vec<u64> {
    running.guest.take_dirty().iter().map(|gfn| gfn.get()).collect()
}

#[test]
fn written_frames_are_marked_when_they_are_reported() {
    on_each_x86_host(|host| {
        let running = host.create_running(GuestKind::Pvh, &[&[Step::In { port: PORT, size: 4 }]]);
        let (server, cache) = serve(host, &running);
        running.guest.log_dirty();
        cache.track_dirty(true);

        write(&cache, DATA, 1);
        write(&cache, DATA + 5, 3);
        cache.get(Protection::ReadOnly, (DATA + 10) * FRAME as u64, 8).unwrap();
        assert_eq!(dirty(&running), Vec::<u64>::new(), "Xen does not see writes of other domains");

        assert_eq!(server.report_dirty().unwrap(), 4);
        assert_eq!(dirty(&running), [DATA, DATA + 5, DATA + 6, DATA + 7]);
        assert_eq!(server.report_dirty().unwrap(), 0);
        assert_eq!(dirty(&running), Vec::<u64>::new());
    });
}

#[test]
fn many_ranges_are_reported() {
    on_each_x86_host(|host| {
        let running = host.create_running(GuestKind::Pvh, &[&[Step::In { port: PORT, size: 4 }]]);
        let (server, cache) = serve(host, &running);
        running.guest.log_dirty();
        cache.track_dirty(true);
        let frames: Vec<u64> = (1..60).step_by(2).collect();
        for &frame in &frames {
            write(&cache, frame, 1);
        }
        assert_eq!(server.report_dirty().unwrap(), frames.len() as u64);
        assert_eq!(dirty(&running), frames);
    });
}

#[test]
fn reports_are_accepted_while_nothing_is_logged() {
    on_each_x86_host(|host| {
        let running = host.create_running(GuestKind::Pvh, &[&[Step::In { port: PORT, size: 4 }]]);
        let (server, cache) = serve(host, &running);
        cache.track_dirty(true);
        write(&cache, DATA, 2);
        assert_eq!(server.report_dirty().unwrap(), 2);
        running.guest.log_dirty();
        assert_eq!(dirty(&running), Vec::<u64>::new(), "what was reported before is not marked");
    });
}

#[test]
fn ram_that_a_request_has_filled_is_reported() {
    on_each_x86_host(|host| {
        let rep = MockRep { ram: ADDRESS, size: 4, count: 2, backwards: false };
        let mut running = host.create_running(GuestKind::Pvh, &[&[Step::RepIn { port: PORT, rep }]]);
        let (server, cache) = serve(host, &running);
        server.add_range(IoRange::ports(PORT, PORT + 3)).unwrap();
        cache.track_dirty(true);
        running.start();
        next_request(&server).serve(&mut Recorder::default());
        running.results();
        assert_eq!(cache.take_dirty(), [pfns(DATA..DATA + 1)]);
        let word = cache.get(Protection::ReadOnly, ADDRESS + 4, 4).unwrap().read::<u32>(0).unwrap();
        assert_eq!(u64::from(word), value(Target::Port(PORT)) & 0xFFFF_FFFF);
    });
}
