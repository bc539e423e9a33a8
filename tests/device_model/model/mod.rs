//! Random actions of a guest, its toolstack and its device models, compared with a small model of Xen: who gets which
//! access, what it reads, and that no request is lost.

mod processor;
mod step;

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use xenmap::device_model::{EventChannel, EventChannels};
use xenmap::mock::{Dom0, MockDomain, MockHost, Vcpu, VcpuStopped};
use xenmap::{Domid, ForeignMemory, GuestKind};

use crate::common::bytes::Bytes;
use crate::common::mock;
use crate::raw::{
    ANSWERED, DESTROY_SERVER, IN_PROCESS, INVALIDATE, MAP_RANGE, Page, READY, SERVER_STATE, TOO_LONG, UNMAP_RANGE,
    create_server, destroy_fields, dm_op, range_fields, state_fields,
};
use crate::requests::ones;
use processor::{Doing, Processor};
use step::{Step, step};

/// No server.
const NONE: u16 = u16::MAX;

/// What all cases may take, with the search for the smallest one that fails.
const LIMIT: Duration = Duration::from_secs(180);

const VCPUS: usize = 2;
const PORT: u16 = 0x500;
const PORTS: usize = 8;

/// What the model knows of a server, and what a process has of it.
#[derive(Default)]
struct Server {
    is_enabled: bool,
    has_page: bool,
    /// Whether Xen has written the ports to the page.
    has_ports: bool,
    ranges: [bool; PORTS + 4],
    page: Option<Page>,
    channels: Vec<EventChannel>,
}

impl Server {
    fn has_all(&self, first: usize, last: usize) -> bool {
        self.ranges[first..=last].iter().all(|&is_mine| is_mine)
    }

    fn page(&self) -> &Page {
        self.page.as_ref().unwrap()
    }
}

struct Machine {
    domain: MockDomain,
    memory: ForeignMemory,
    events: EventChannels,
    servers: BTreeMap<u16, Server>,
    processors: Vec<Processor>,
    pauses: u32,
    answers: u64,
}

type Tested<T = ()> = Result<T, TestCaseError>;

fn errno<T>(result: Result<T, i32>) -> i32 {
    result.err().unwrap_or(0)
}

impl Machine {
    fn new(host: &MockHost) -> Machine {
        let domain = host.create_domain(GuestKind::Pvh, 64);
        domain.set_vcpu(u32::try_from(VCPUS).unwrap() - 1, Vcpu::default());
        let memory = host.open().unwrap();
        let events = EventChannels::open(&memory).unwrap();
        let processors = (0..).take(VCPUS).map(|number| Processor::start(&domain, number)).collect();
        Machine { domain, memory, events, servers: BTreeMap::new(), processors, pauses: 0, answers: 0 }
    }

    fn domid(&self) -> Domid {
        self.domain.domid()
    }

    fn dm_op(&self, op: u32, fields: &Bytes) -> i32 {
        errno(dm_op(&self.memory, self.domid(), op, fields))
    }

    fn change_range(&self, op: u32, id: u16, first: usize, last: usize) -> i32 {
        let [first, last] = [first, last].map(|port| (usize::from(PORT) + port) as u64);
        self.dm_op(op, &range_fields(id, 0, first, last))
    }

    /// Returns the number of the server that gets an access.
    fn route(&self, port: usize, size: usize) -> Option<u16> {
        let serving = |server: &Server| server.is_enabled && server.has_all(port, port + size - 1);
        self.servers.iter().rev().find(|(_, server)| serving(server)).map(|(&id, _)| id)
    }

    /// Waits for an event on a channel of a server, and nothing else.
    fn expect_event(&self, port: u32) -> Tested {
        prop_assert_eq!(self.events.wait(Some(TOO_LONG)).unwrap(), Some(port), "the event is lost");
        Ok(())
    }

    fn expect_result(&mut self, vcpu: usize, expected: u64) -> Tested {
        let result = self.processors[vcpu].results.recv_timeout(TOO_LONG);
        prop_assert_eq!(result, Ok(Ok(expected)), "vcpu {}", vcpu);
        self.processors[vcpu].doing = Doing::Nothing;
        Ok(())
    }

    /// Follows an access that starts. Returns whether the guest is still alive.
    fn follow(&mut self, vcpu: usize, port: usize, size: usize) -> Tested<bool> {
        let Some(id) = self.route(port, size) else {
            self.expect_result(vcpu, ones(size))?;
            return Ok(true);
        };
        if !self.servers[&id].has_ports {
            let result = self.processors[vcpu].results.recv_timeout(TOO_LONG);
            self.processors[vcpu].doing = Doing::Nothing;
            let Ok(Err(VcpuStopped::Crashed(reason))) = result else {
                return Err(TestCaseError::fail(format!("not crashed: {result:?}")));
            };
            prop_assert!(reason.starts_with("device model set bad event channel 0"), "{}", reason);
            return Ok(false);
        }
        self.processors[vcpu].doing = Doing::Waiting { server: id, size };
        match self.servers[&id].channels.get(vcpu) {
            Some(channel) => self.expect_event(channel.port())?,
            None => self.map(id).unwrap().wait_until_ready(vcpu),
        }
        Ok(true)
    }

    fn map(&self, id: u16) -> xenmap::Result<Page> {
        Page::map(&self.memory, self.domid(), id)
    }

    /// Does a step, and compares. Returns whether the guest is still alive.
    fn run(&mut self, step: Step) -> Tested<bool> {
        match step {
            Step::Start(first, last) => {
                if let Some(id) = self.create()? {
                    for step in [Step::Map(id), Step::Enable(id, true), Step::Bind(id), Step::Add(id, first, last)] {
                        self.run(step)?;
                    }
                }
            }
            Step::Create => drop(self.create()?),
            Step::Map(id) => match self.map(id) {
                Ok(page) => {
                    let server = self.servers.get_mut(&id).unwrap();
                    (server.has_page, server.page) = (true, Some(page));
                }
                Err(e) => prop_assert_eq!((e.errno(), self.servers.contains_key(&id)), (libc::ENOENT, false)),
            },
            Step::Enable(id, on) => {
                let answer = self.dm_op(SERVER_STATE, &state_fields(id, on.into()));
                prop_assert_eq!(answer, self.errno_for(id));
                if let Some(server) = self.servers.get_mut(&id) {
                    server.has_ports |= on && !server.is_enabled && server.has_page;
                    server.is_enabled = on;
                }
            }
            Step::Add(id, first, last) => {
                let answer = self.change_range(MAP_RANGE, id, first, last);
                let Some(server) = self.servers.get_mut(&id) else {
                    prop_assert_eq!(answer, libc::ENOENT);
                    return Ok(true);
                };
                let overlaps = server.ranges[first..=last].contains(&true);
                prop_assert_eq!(answer, if overlaps { libc::EEXIST } else { 0 });
                if !overlaps {
                    server.ranges[first..=last].fill(true);
                }
            }
            Step::Remove(id, first, last) => {
                let answer = self.change_range(UNMAP_RANGE, id, first, last);
                let server = self.servers.get_mut(&id).filter(|server| server.has_all(first, last));
                prop_assert_eq!(answer, if server.is_some() { 0 } else { libc::ENOENT });
                if let Some(server) = server {
                    server.ranges[first..=last].fill(false);
                }
            }
            Step::Bind(id) => self.bind(id)?,
            Step::Die(id) => {
                if let Some(server) = self.servers.get_mut(&id) {
                    (server.page, server.channels) = (None, Vec::new());
                }
            }
            Step::DestroyServer(id) => {
                prop_assert_eq!(self.dm_op(DESTROY_SERVER, &destroy_fields(id)), self.errno_for(id));
                self.servers.remove(&id);
                for processor in &mut self.processors {
                    processor.doing = match processor.doing {
                        Doing::Waiting { server, .. } if server == id => Doing::Stuck,
                        // The answer goes with the server.
                        Doing::Answered { server, .. } if server == id => Doing::Answered { server: NONE, value: 0 },
                        doing => doing,
                    };
                }
            }
            Step::Access { vcpu, port, size } => return self.begin(vcpu, port, size),
            Step::Take(vcpu) => {
                if let Some((server, _)) = self.served(vcpu).filter(|(server, _)| server.page().state(vcpu) == READY) {
                    server.page().set_state(vcpu, IN_PROCESS);
                }
            }
            Step::Answer(vcpu) => self.answer(vcpu)?,
            Step::Balloon => self.balloon()?,
            Step::Pause => {
                self.domain.pause();
                self.pauses += 1;
            }
            Step::Unpause => return self.unpause(),
        }
        Ok(true)
    }

    fn errno_for(&self, id: u16) -> i32 {
        if self.servers.contains_key(&id) { 0 } else { libc::ENOENT }
    }

    fn create(&mut self) -> Tested<Option<u16>> {
        let free = (0..8).find(|id| !self.servers.contains_key(id));
        prop_assert_eq!(create_server(&self.memory, self.domid()), free.ok_or(libc::ENOSPC));
        self.servers.extend(free.map(|id| (id, Server::default())));
        Ok(free)
    }

    /// Binds the channels of a server that has ports and no channels. Each has an event at once.
    fn bind(&mut self, id: u16) -> Tested {
        let server = self.servers.get_mut(&id).filter(|server| server.has_ports && server.channels.is_empty());
        let Some(server) = server else { return Ok(()) };
        let Some(page) = &server.page else { return Ok(()) };
        for vcpu in 0..VCPUS {
            server.channels.push(self.events.bind(self.domain.domid(), page.port(vcpu)).unwrap());
        }
        let ports: Vec<u32> = server.channels.iter().map(EventChannel::port).collect();
        ports.into_iter().try_for_each(|port| self.expect_event(port))
    }

    /// Returns whether Xen would crash if it sent something to a server.
    fn is_fatal(&self, id: u16) -> bool {
        !self.servers[&id].has_page
    }

    fn begin(&mut self, vcpu: usize, port: usize, size: usize) -> Tested<bool> {
        let is_fatal = self.route(port, size).is_some_and(|id| self.is_fatal(id));
        if self.processors[vcpu].doing != Doing::Nothing || (is_fatal && self.pauses == 0) {
            return Ok(true);
        }
        self.processors[vcpu].commands.send((PORT + u16::try_from(port).unwrap(), size)).unwrap();
        if self.pauses > 0 {
            self.processors[vcpu].doing = Doing::Queued { port, size };
            return Ok(true);
        }
        self.follow(vcpu, port, size)
    }

    /// Returns the server for which a vcpu waits, and the size of the access, if a process serves it.
    fn served(&self, vcpu: usize) -> Option<(&Server, usize)> {
        let Doing::Waiting { server, size } = self.processors[vcpu].doing else { return None };
        let server = &self.servers[&server];
        (server.page.is_some() && !server.channels.is_empty()).then_some((server, size))
    }

    fn answer(&mut self, vcpu: usize) -> Tested {
        self.answers += 1;
        let data = self.answers.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let Some((server, size)) = self.served(vcpu) else { return Ok(()) };
        server.page().set_data(vcpu, data);
        server.page().set_state(vcpu, ANSWERED);
        server.channels[vcpu].notify().unwrap();
        let value = data & ones(size);
        if self.pauses == 0 {
            return self.expect_result(vcpu, value);
        }
        if let Doing::Waiting { server, .. } = self.processors[vcpu].doing {
            self.processors[vcpu].doing = Doing::Answered { server, value };
        }
        Ok(())
    }

    /// Gives a frame back, if there are enabled servers, and processes to answer: vcpu 0 waits for each server.
    fn balloon(&mut self) -> Tested {
        let enabled = || self.servers.values().rev().filter(|server| server.is_enabled);
        let can_answer = |server: &Server| server.page.is_some() && (!server.has_ports || !server.channels.is_empty());
        let is_free = self.pauses == 0 && self.processors[0].doing == Doing::Nothing;
        if !is_free || enabled().count() == 0 || !enabled().all(can_answer) {
            return Ok(());
        }
        let (domain, (done, is_done)) = (self.domain.clone(), mpsc::channel());
        let last = domain.frames().pop().unwrap();
        let balloon = thread::spawn(move || {
            domain.balloon_out(last);
            done.send(()).unwrap();
        });
        // Xen leaves out those whose page has no ports.
        for server in enabled().filter(|server| server.has_ports) {
            self.expect_event(server.channels[0].port())?;
            prop_assert_eq!((server.page().type_(0), server.page().state(0)), (INVALIDATE, READY));
            prop_assert_eq!(is_done.try_recv(), Err(mpsc::TryRecvError::Empty));
            server.page().set_state(0, ANSWERED);
            server.channels[0].notify().unwrap();
        }
        prop_assert_eq!(is_done.recv_timeout(TOO_LONG), Ok(()));
        balloon.join().unwrap();
        Ok(())
    }

    fn unpause(&mut self) -> Tested<bool> {
        match self.pauses {
            0 => return Ok(true),
            1 => {}
            _ => {
                self.domain.unpause();
                self.pauses -= 1;
                return Ok(true);
            }
        }
        let doing: Vec<Doing> = self.processors.iter().map(|processor| processor.doing).collect();
        let (mut crashing, mut others_go_on) = (None, false);
        for (vcpu, doing) in doing.iter().enumerate() {
            match *doing {
                Doing::Queued { port, size } => match self.route(port, size) {
                    Some(id) if self.is_fatal(id) => return Ok(true),
                    Some(id) if !self.servers[&id].has_ports => crashing = Some((vcpu, port, size)),
                    _ => others_go_on = true,
                },
                Doing::Answered { .. } => others_go_on = true,
                _ => {}
            }
        }
        if crashing.is_some() && others_go_on {
            // Nothing tells whether the others are faster than the crash.
            return Ok(true);
        }
        self.domain.unpause();
        self.pauses = 0;
        if let Some((vcpu, port, size)) = crashing {
            return self.follow(vcpu, port, size);
        }
        // Events arrive in any order, so wait for the results first.
        for (vcpu, doing) in doing.iter().enumerate() {
            if let Doing::Answered { value, .. } = *doing {
                self.expect_result(vcpu, value)?;
            }
        }
        self.follow_queued(&doing)?;
        Ok(true)
    }

    /// Follows accesses that have started at the same time.
    fn follow_queued(&mut self, doing: &[Doing]) -> Tested {
        let mut ports = Vec::new();
        for (vcpu, doing) in doing.iter().enumerate() {
            let Doing::Queued { port, size } = *doing else { continue };
            match self.route(port, size) {
                None => self.expect_result(vcpu, ones(size))?,
                Some(id) => {
                    self.processors[vcpu].doing = Doing::Waiting { server: id, size };
                    match self.servers[&id].channels.get(vcpu) {
                        Some(channel) => ports.push(channel.port()),
                        None => self.map(id).unwrap().wait_until_ready(vcpu),
                    }
                }
            }
        }
        while !ports.is_empty() {
            let port = self.events.wait(Some(TOO_LONG)).unwrap();
            let Some(found) = ports.iter().position(|&expected| Some(expected) == port) else {
                return Err(TestCaseError::fail(format!("{port:?} instead of {ports:?}")));
            };
            ports.swap_remove(found);
        }
        Ok(())
    }

    /// Destroys the guest: every processor that waits learns of it, and nothing is left of the guest.
    fn end(self, host: &MockHost, is_alive: bool) -> Tested {
        let waiting = |processor: &&Processor| processor.doing != Doing::Nothing;
        if !is_alive {
            for processor in self.processors.iter().filter(waiting) {
                let result = processor.results.recv_timeout(TOO_LONG);
                prop_assert!(matches!(result, Ok(Err(VcpuStopped::Crashed(_)))), "{:?}", result);
            }
        }
        self.domain.destroy();
        for processor in self.processors {
            if is_alive && processor.doing != Doing::Nothing {
                prop_assert_eq!(processor.results.recv_timeout(TOO_LONG), Ok(Err(VcpuStopped::Destroyed)));
            }
            drop(processor.commands);
            processor.thread.join().unwrap();
        }
        drop(self.servers);
        prop_assert_eq!(host.zombies(), []);
        Ok(())
    }
}

fn run(host: &MockHost, steps: Vec<Step>) -> Tested {
    let mut machine = Machine::new(host);
    let mut is_alive = true;
    for step in steps {
        is_alive = machine.run(step)?;
        prop_assert_eq!(machine.events.wait(Some(Duration::ZERO)).unwrap(), None, "nobody has sent an event");
        if !is_alive {
            break;
        }
    }
    machine.end(host, is_alive)
}

#[test]
fn any_order_of_actions_matches_the_model() {
    let (done, is_done) = mpsc::channel();
    let runs = thread::spawn(move || {
        let mut runner = TestRunner::new(Config {
            cases: 300,
            failure_persistence: None,
            max_shrink_time: 60_000,
            ..Config::default()
        });
        let host = mock(Dom0::Pv);
        let result = runner.run(&proptest::collection::vec(step(), 1..80), |steps| run(&host, steps));
        // The other end is gone if the test has failed already.
        let _ = done.send(());
        result.unwrap_or_else(|e| panic!("{e}"));
    });
    let waited = is_done.recv_timeout(LIMIT);
    assert_ne!(waited, Err(RecvTimeoutError::Timeout), "something waits forever");
    runs.join().unwrap();
}
