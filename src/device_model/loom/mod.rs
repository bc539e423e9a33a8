//! Model checks of the protocol of requests: loom runs a guest's vcpus and the threads of a server in all interleavings.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib --target-dir target/loom device_model::`
//!
//! The threads of a server use the real [`Inbox`] and [`EventChannels`], on a simulated page and device.

mod host;

use ::loom::model::Builder;
use ::loom::sync::Arc;
use ::loom::thread;

use super::event_channels::{EventChannel, EventChannels};
use super::inbox::Inbox;
use super::slots::{READY, Slots};
use crate::types::Domid;
use host::{Device, Memory, SharedPage};

/// A server, and the host on which it runs.
struct Server {
    memory: std::sync::Arc<Memory>,
    device: std::sync::Arc<Device>,
    inbox: Inbox<SharedPage>,
    events: EventChannels,
    channels: Vec<EventChannel>,
    /// The vcpu and the number of each request that was taken. (Not loom's, which would see an ordering in it.)
    taken: std::sync::Mutex<Vec<(u32, u64)>>,
}

impl Server {
    fn new(vcpus: u32) -> Server {
        let memory = std::sync::Arc::new(Memory::new(vcpus));
        let device = std::sync::Arc::new(Device::default());
        let inbox = Inbox::new(Slots::new(SharedPage(memory.clone())), None, vcpus);
        let events = EventChannels::with_device(Box::new(device.clone()));
        let channels = (0..vcpus).map(|vcpu| events.bind(Domid::XEN, vcpu).unwrap()).collect();
        Server { memory, device, inbox, events, channels, taken: std::sync::Mutex::default() }
    }

    /// Looks for requests and answers them until the guest has none, as `IoreqServer::run` does.
    fn run(&self) {
        loop {
            if let Some((raw, vcpu)) = self.inbox.take().unwrap() {
                let vcpu = vcpu.unwrap();
                self.taken.lock().unwrap().push((vcpu, raw.address));
                self.inbox.answer(vcpu, Some(answer(vcpu, raw.address))).unwrap();
                self.channels[vcpu as usize].notify().unwrap();
                continue;
            }
            match self.events.wait(Some(std::time::Duration::ZERO)) {
                Ok(Some(_)) => {}
                Err(e) if e.errno() == libc::EFBIG => {}
                other => {
                    assert!(other.unwrap().is_none());
                    if !self.device.poll() {
                        return;
                    }
                }
            }
        }
    }

    /// Makes a vcpu's requests, one after the other, as Xen does.
    fn request(&self, vcpu: u32, requests: u64) {
        for number in 1..=requests {
            self.memory.put(vcpu, number);
            self.memory.set_state(vcpu, READY);
            self.device.send(vcpu);
            // Xen may look before it is notified.
            while !self.memory.is_answered(vcpu) {
                self.device.wait_for_notification(vcpu);
            }
            assert_eq!(self.memory.data(vcpu), answer(vcpu, number), "of another request");
            self.memory.set_state(vcpu, 0);
        }
    }
}

/// Returns what a vcpu's request with this number reads.
fn answer(vcpu: u32, number: u64) -> u64 {
    u64::MAX - 1000 * number - u64::from(vcpu)
}

/// How many vcpus make how many requests each, how many threads of the server answer them, and how many preemptions loom
/// tries: all interleavings would take hours.
struct Model {
    vcpus: u32,
    requests: u64,
    threads: usize,
    preemptions: usize,
}

/// Runs the threads of a model, and checks that each request was taken once. Loom reports a deadlock if a vcpu waits
/// forever.
fn check(model: Model, set_up: fn(&Server)) {
    let Model { vcpus, requests, threads, preemptions } = model;
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let server = Arc::new(Server::new(vcpus));
        set_up(&server);
        let spawn = |run: Box<dyn Fn(&Server)>| {
            let server = server.clone();
            thread::spawn(move || run(&server))
        };
        let guest: Vec<_> = (1..vcpus).map(|vcpu| spawn(Box::new(move |s| s.request(vcpu, requests)))).collect();
        let device_model: Vec<_> = (0..threads).map(|_| spawn(Box::new(Server::run))).collect();
        server.request(0, requests);
        guest.into_iter().for_each(|thread| thread.join().unwrap());
        server.device.close();
        device_model.into_iter().for_each(|thread| thread.join().unwrap());

        let mut taken = server.taken.lock().unwrap().clone();
        taken.sort_unstable();
        let made: Vec<_> = (0..vcpus).flat_map(|vcpu| (1..=requests).map(move |number| (vcpu, number))).collect();
        assert_eq!(taken, made, "each request is taken once");
    });
}

fn nothing(_: &Server) {}

#[test]
fn each_request_of_a_vcpu_is_answered() {
    check(Model { vcpus: 1, requests: 3, threads: 1, preemptions: 4 }, nothing);
}

#[test]
fn request_is_taken_by_one_of_two_threads() {
    check(Model { vcpus: 1, requests: 2, threads: 2, preemptions: 2 }, nothing);
}

#[test]
fn requests_of_two_vcpus_are_answered_by_one_thread() {
    check(Model { vcpus: 2, requests: 2, threads: 1, preemptions: 1 }, nothing);
    check(Model { vcpus: 2, requests: 1, threads: 1, preemptions: 2 }, nothing);
}

#[test]
fn requests_of_two_vcpus_are_answered_by_two_threads() {
    check(Model { vcpus: 2, requests: 1, threads: 2, preemptions: 1 }, nothing);
}

#[test]
fn no_request_is_lost_with_its_event() {
    check(Model { vcpus: 2, requests: 2, threads: 1, preemptions: 1 }, |server| server.device.overflow_once());
}
