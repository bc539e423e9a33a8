//! What it costs to serve a request.

use xenmap::GuestKind;
use xenmap::device_model::{IoRange, Registers, Target};
use xenmap::mock::{Hypercalls, MockRep};

use crate::allocations::allocations;
use crate::common::program::Step;
use crate::common::running::DATA;
use crate::common::{FRAME, Host};
use crate::raw::Page;
use crate::requests::{create_server, next_request, on_each_x86_host};

struct Register(u64);

impl Registers for Register {
    fn read(&mut self, _: Target, _: usize) -> u64 {
        self.0
    }

    fn write(&mut self, _: Target, _: usize, value: u64) {
        self.0 = value;
    }
}

#[test]
fn served_request_allocates_nothing_and_costs_one_event() {
    const PORT: u16 = 0x500;
    on_each_x86_host(|host| {
        let rep = MockRep { ram: DATA * FRAME as u64, size: 4, count: 64, backwards: false };
        let program = [
            Step::In { port: PORT, size: 4 },
            Step::Out { port: PORT, size: 4, value: 7 },
            Step::RepIn { port: PORT, rep },
            Step::RepOut { port: PORT, rep },
        ];
        let mut running = host.create_running(GuestKind::Pvh, &[&program.repeat(4)]);
        let server = create_server(host, &running, &[IoRange::ports(PORT, PORT + 3)]);
        let page = Page::map(&host.open(), running.guest.domid(), server.id().0).unwrap();
        running.start();
        let mut device = Register(1);
        // Returns the count of allocations.
        let mut serve = |requests: usize| {
            let before = allocations();
            for _ in 0..requests {
                page.wait_until_ready(0);
                next_request(&server).serve(&mut device);
            }
            allocations() - before
        };
        // The first ones make the cache map the guest's RAM.
        assert_ne!(serve(program.len()), 0, "the counter does not count");
        let mut expected = hypercalls(host);
        assert!(expected.is_none_or(|counts| counts.dm_op > 0), "the counter does not count");

        assert_eq!(serve(3 * program.len()), 0);

        if let Some(counts) = &mut expected {
            counts.event_channel_op += 3 * program.len() as u64;
        }
        assert_eq!(hypercalls(host), expected, "no mapping, and no operation");
        running.results();
    });
}

/// Returns how often the simulated kernel has entered Xen; `None` on a real host.
fn hypercalls(host: &Host) -> Option<Hypercalls> {
    if let Host::Mock(host) = host { Some(host.hypercalls()) } else { None }
}
