//! Servers of one guest that come and go while its vcpus make accesses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use xenmap::GuestKind;
use xenmap::device_model::{Event, IoreqServer, Registers, Target};
use xenmap::mock::{Dom0, MockDomain, MockHost, MockVcpu, Vcpu, VcpuStopped};

use super::{PORT, open, server};
use crate::common::mock;
use crate::raw::TOO_LONG;
use crate::requests::ones;

const VCPUS: u32 = 4;
const SERVERS: usize = 3;
/// How many answers each vcpu gets.
const ANSWERS: usize = 30;

/// What a device answers.
const VALUE: u64 = 0x1234_5678;

struct Constant;

impl Registers for Constant {
    fn read(&mut self, _: Target, _: usize) -> u64 {
        VALUE
    }

    fn write(&mut self, _: Target, _: usize, _: u64) {}
}

/// Has a server for some requests. It ends in one of three ways.
fn serve_a_while(host: &MockHost, domain: &MockDomain, round: usize) {
    let server = server(host, domain);
    let next = || match server.next(Some(Duration::from_millis(1))).unwrap() {
        Event::Request(request) => Some(request),
        _ => None,
    };
    for request in (0..5).map_while(|_| next()) {
        request.serve(&mut Constant);
    }
    match round % 3 {
        0 => drop(server),
        1 => {
            let (cache, events) = open(host, domain);
            drop(IoreqServer::adopt(cache, events, server.detach()).unwrap());
        }
        _ => {
            let request = next();
            drop(server);
            if let Some(request) = request {
                request.serve(&mut Constant);
            }
        }
    }
}

/// Reads until there were enough answers, or something that is neither an answer nor ones. Returns the last value.
fn read_answers(vcpu: &MockVcpu) -> Result<u64, VcpuStopped> {
    let mut answers = 0;
    loop {
        match vcpu.port_in(PORT, 4)? {
            VALUE if answers == ANSWERS => return Ok(VALUE),
            VALUE => answers += 1,
            value if value == ones(4) => {}
            other => return Ok(other),
        }
    }
}

#[test]
fn each_access_ends_while_servers_come_and_go() {
    let host = mock(Dom0::Pv);
    let domain = host.create_domain(GuestKind::Pvh, 16);
    domain.set_vcpu(VCPUS - 1, Vcpu::default());
    let is_over = AtomicBool::new(false);
    let (end, ends) = mpsc::channel();
    let results: Vec<_> = thread::scope(|scope| {
        for first in 0..SERVERS {
            let (host, domain, is_over) = (&host, &domain, &is_over);
            scope.spawn(move || {
                let rounds = (first..).take_while(|_| !is_over.load(Ordering::Relaxed));
                rounds.for_each(|round| serve_a_while(host, domain, round));
            });
        }
        for number in 0..VCPUS {
            let (domain, end) = (domain.clone(), end.clone());
            scope.spawn(move || {
                if number == 0 {
                    domain.frames().into_iter().for_each(|gfn| domain.balloon_out(gfn));
                }
                end.send(read_answers(&domain.vcpu(number))).unwrap();
            });
        }
        let wait = || ends.recv_timeout(TOO_LONG).inspect_err(|_| domain.destroy()); // which ends all waiting
        let results = (0..VCPUS).map(|_| wait()).collect();
        is_over.store(true, Ordering::Relaxed);
        results
    });
    assert_eq!(results, vec![Ok(Ok(VALUE)); VCPUS as usize]);
    let all: Vec<IoreqServer> = (0..8).map(|_| server(&host, &domain)).collect();
    assert_eq!(all[0].id().0, 0, "no server was left");
}
