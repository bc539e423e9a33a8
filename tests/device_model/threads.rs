//! Several threads that serve a guest, programs that only poll, and guests that are paused.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use xenmap::GuestKind;
use xenmap::device_model::{Event, IoRange, Registers, Target};

use crate::common::program::Step;
use crate::raw::TOO_LONG;
use crate::requests::{SOON, create_server, next_request, on_each_x86_host};

const PORT: u16 = 0x500;
const NOW: Option<Duration> = Some(Duration::ZERO);

/// Reads as how often each port was read.
#[derive(Default)]
struct Counters(BTreeMap<u16, u64>);

impl Registers for Counters {
    fn read(&mut self, at: Target, _: usize) -> u64 {
        let Target::Port(port) = at else { panic!("{at:?}") };
        let count = self.0.entry(port).or_default();
        *count += 1;
        *count
    }

    fn write(&mut self, _: Target, _: usize, _: u64) {}
}

#[test]
fn threads_share_the_requests_of_all_vcpus() {
    const VCPUS: u16 = 4;
    const READS: usize = 50;
    on_each_x86_host(|host| {
        let programs: Vec<Vec<Step>> =
            (0..VCPUS).map(|vcpu| vec![Step::In { port: PORT + 4 * vcpu, size: 4 }; READS]).collect();
        let programs: Vec<&[Step]> = programs.iter().map(Vec::as_slice).collect();
        let mut running = host.create_running(GuestKind::Pvh, &programs);
        let server = create_server(host, &running, &[IoRange::ports(PORT, PORT + 4 * VCPUS - 1)]);
        running.start();
        let (count, device) = (AtomicUsize::new(0), Mutex::new(Counters::default()));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Event::Request(request) = server.next(SOON).unwrap() {
                        request.serve(&mut *device.lock().unwrap());
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let counts: Vec<u64> = (1..=READS as u64).collect();
            assert_eq!(running.results(), vec![counts; VCPUS.into()], "each vcpu reads its own answers, in order");
            running.guest.destroy(); // ends both threads
        });
        assert_eq!(count.into_inner(), READS * usize::from(VCPUS));
    });
}

#[test]
fn program_that_only_polls_notices_the_death_of_the_guest() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&[]]);
        let server = create_server(host, &running, &[]);
        running.guest.destroy();
        let deadline = Instant::now() + TOO_LONG;
        loop {
            poll(&mut [PollFd::new(server.as_fd(), PollFlags::POLLIN)], 100_u16).unwrap();
            match server.next(NOW).unwrap() {
                Event::Gone => break,
                other => assert!(matches!(other, Event::TimedOut) && Instant::now() < deadline, "{other:?}"),
            }
        }
        assert!(matches!(server.next(NOW), Ok(Event::Gone)), "for good, and at once");
    });
}

#[test]
fn paused_guest_sees_the_answer_when_it_runs_again() {
    on_each_x86_host(|host| {
        let mut running = host.create_running(GuestKind::Pvh, &[&[Step::In { port: PORT, size: 4 }]]);
        let server = create_server(host, &running, &[IoRange::ports(PORT, PORT + 3)]);
        // A handle of its own, because a restricted one may not pause.
        let guest = xenmap::Guest::open(&host.open(), running.guest.domid()).unwrap();
        running.start();
        let request = next_request(&server);
        let paused = guest.pause().unwrap();
        drop(server);
        request.serve(&mut Counters::default());
        drop(paused);
        assert_eq!(running.results(), [[1]]);
    });
}
