//! What it costs to serve a request.

#![expect(unsafe_code, reason = "implements an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use xenmap::GuestKind;
use xenmap::device_model::{IoRange, Registers, Target};
use xenmap::mock::MockRep;

use crate::common::program::Step;
use crate::common::running::DATA;
use crate::common::{FRAME, Host};
use crate::requests::{create_server, next_request, on_each_x86_host};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: forwards every call to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

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
fn served_request_allocates_nothing_and_maps_nothing() {
    const PORT: u16 = 0x500;
    on_each_x86_host(|host| {
        let rep = MockRep { ram: DATA * FRAME as u64, size: 4, count: 64, backwards: false };
        let program: Vec<Step> = [
            Step::In { port: PORT, size: 4 },
            Step::Out { port: PORT, size: 4, value: 7 },
            Step::RepIn { port: PORT, rep },
            Step::RepOut { port: PORT, rep },
        ]
        .repeat(4);
        let mut running = host.create_running(GuestKind::Pvh, &[&program]);
        let server = create_server(host, &running, &[IoRange::ports(PORT, PORT + 3)]);
        running.start();
        let mut device = Register(1);
        let costs: Vec<_> = program
            .iter()
            .map(|_| {
                let request = next_request(&server);
                let entered = hypercalls(host);
                let before = ALLOCATIONS.get();
                request.serve(&mut device);
                let allocated = ALLOCATIONS.get() - before;
                (allocated, hypercalls(host) != entered)
            })
            .collect();
        running.results();
        // The first ones make the cache map the guest's RAM.
        assert_eq!(costs[4..], vec![(0, false); program.len() - 4]);
        assert!(costs[..4].iter().any(|&(allocations, _)| allocations > 0), "the counter does not count");
    });
}

/// Returns how often the simulated kernel has entered Xen; `None` on a real host.
fn hypercalls(host: &Host) -> Option<xenmap::mock::Hypercalls> {
    if let Host::Mock(host) = host { Some(host.hypercalls()) } else { None }
}
