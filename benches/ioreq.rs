//! The cost of an ioreq: from the guest's instruction to the next one.
//!
//! On Xen (`tests/xen/run pv --lane cost`, or `pvh`) a dom0's clock counts the instructions of the guest, Xen and dom0.
//! The bench compares this crate with the bare system calls, and fails if it costs much more. Elsewhere it measures the
//! simulated host, in requests a second.

#![expect(unsafe_code, reason = "makes the bare system calls")]
#![expect(clippy::print_stdout, reason = "prints what it has measured")]
#![expect(clippy::unwrap_used, reason = "a panic fails the bench")]

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use xenmap::device_model::{Event, IoRange, IoreqServer, Registers, Target};
use xenmap::{Access, GuestKind, Protection, Resource};

use common::Host;
use common::program::Step;

#[path = "../tests/common/mod.rs"]
mod common;

const PORT: u16 = 0x500;
/// Requests in a round: as many as fit into a program.
const REQUESTS: u32 = 1000;
/// Rounds of each way; the cheapest counts.
const ROUNDS: usize = 5;
/// How much more than the bare system calls this crate may cost.
const LIMIT: f64 = 1.05;

struct Sink(u64);

impl Registers for Sink {
    fn read(&mut self, _: Target, _: usize) -> u64 {
        self.0
    }

    fn write(&mut self, _: Target, _: usize, value: u64) {
        self.0 = value;
    }
}

fn main() {
    let is_xen = std::env::var_os("XENMAP_TEST_XEN").is_some();
    common::on_each_host(|host| {
        if host.is_arm() {
            return;
        }
        if is_xen {
            compare(host);
        } else {
            let round = (0..ROUNDS).map(|_| serve(host, by_this_crate)).min().unwrap_or_default();
            println!("{:.0} requests a second on the simulated host", 1.0 / round.as_secs_f64());
        }
    });
}

fn compare(host: &Host) {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(serve(host, by_this_crate));
        bare.push(serve(host, by_bare_calls));
    }
    let [ours, bare] = [ours, bare].map(|rounds| rounds.into_iter().min().unwrap_or_default());
    let ratio = ours.div_duration_f64(bare);
    println!("| instructions of an ioreq | bare system calls | ratio |");
    println!("|---|---|---|");
    println!("| {} | {} | {ratio:.4} |", ours.as_nanos(), bare.as_nanos());
    let is_good = ratio <= LIMIT;
    println!("{} ioreq::round_trip_costs_hardly_more_than_the_system_calls", if is_good { "PASS" } else { "FAIL" });
    if !is_good {
        std::process::exit(1);
    }
}

/// Runs a guest that writes to a port, and returns the time of a request.
fn serve(host: &Host, serve: fn(IoreqServer) -> Duration) -> Duration {
    let program = vec![Step::Out { port: PORT, size: 4, value: 1 }; REQUESTS as usize];
    let mut running = host.create_running(GuestKind::Pvh, &[&program]);
    let (cache, events) = running.open(host);
    let server = IoreqServer::create(cache, events).unwrap();
    server.add_range(IoRange::ports(PORT, PORT + 3)).unwrap();
    running.start();
    let time = serve(server) / (REQUESTS - 1);
    running.results();
    time
}

/// Returns the time from the first request to the last one.
#[expect(clippy::needless_pass_by_value, reason = "the other way needs it")]
fn by_this_crate(server: IoreqServer) -> Duration {
    let mut device = Sink(0);
    let mut start = Instant::now();
    for request in 0..REQUESTS {
        let Ok(Event::Request(arrived)) = server.next(None) else { panic!("request {request} is missing") };
        if request == 0 {
            start = Instant::now();
        }
        arrived.serve(&mut device);
    }
    let time = start.elapsed();
    assert_eq!(device.0, 1);
    time
}

/// Does the same with poll(2), read(2), write(2) and ioctl(2), and plain accesses to the page.
fn by_bare_calls(server: IoreqServer) -> Duration {
    const BIND_INTERDOMAIN: libc::Ioctl = 0x0008_4501;
    const NOTIFY: libc::Ioctl = 0x0004_4504;

    let (memory, domid) = (server.cache().guest().memory().clone(), server.cache().guest().domid());
    let id = server.detach();
    let resource = Resource::IoreqServer { id: id.0.into() };
    let page = memory.map_resource(domid, Protection::ReadWrite, resource, 1, 1).unwrap();
    let port: u32 = page.view().read(24).unwrap();
    let slot = page.view().as_ptr();
    #[expect(clippy::cast_ptr_alignment, reason = "the page is aligned, and so is byte 8")]
    let (state_at, value_at) = (slot.wrapping_add(30), slot.wrapping_add(8).cast::<u64>());
    let flags = libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/xen/evtchn").unwrap();
    let mut remote = [u32::from(domid.get()), port];
    // SAFETY: this ioctl takes two integers.
    let bound = unsafe { libc::ioctl(file.as_raw_fd(), BIND_INTERDOMAIN, remote.as_mut_ptr()) };
    let mut bound = u32::try_from(bound).unwrap();
    let (mut start, mut done, mut sum) = (Instant::now(), 0, 0_u64);
    while done < REQUESTS {
        // SAFETY: byte 30 of the mapped page holds the state.
        let state = unsafe { state_at.read_volatile() };
        if state & 0xF == 1 {
            if done == 0 {
                start = Instant::now();
            }
            // SAFETY: as above.
            unsafe { state_at.write_volatile(state & !0xF | 2) };
            // SAFETY: the value is in bytes 8 to 15 of the mapped page, which is aligned.
            sum += unsafe { value_at.read_volatile() };
            // SAFETY: as above.
            unsafe { state_at.write_volatile(state & !0xF | 3) };
            // SAFETY: this ioctl takes an integer.
            unsafe { libc::ioctl(file.as_raw_fd(), NOTIFY, &raw mut bound) };
            done += 1;
            continue;
        }
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which lives until the call returns.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1);
        let mut event = [0; 4];
        (&file).read_exact(&mut event).unwrap();
        (&file).write_all(&event).unwrap();
    }
    let time = start.elapsed();
    assert_eq!(sum, u64::from(REQUESTS));
    time
}
