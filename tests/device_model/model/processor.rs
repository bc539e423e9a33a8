//! Processors, each on a thread of its own, and what they are doing.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use xenmap::mock::{MockDomain, VcpuStopped};

/// What a processor does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Doing {
    Nothing,
    /// It starts when the guest is unpaused.
    Queued {
        port: usize,
        size: usize,
    },
    /// It waits for a server.
    Waiting {
        server: u16,
        size: usize,
    },
    /// It reads this when the guest is unpaused.
    Answered {
        server: u16,
        value: u64,
    },
    /// Its server was destroyed.
    Stuck,
}

pub(super) struct Processor {
    pub(super) commands: Sender<(u16, usize)>,
    pub(super) results: Receiver<Result<u64, VcpuStopped>>,
    pub(super) doing: Doing,
    pub(super) thread: JoinHandle<()>,
}

impl Processor {
    pub(super) fn start(domain: &MockDomain, number: u32) -> Processor {
        let (commands, instructions) = mpsc::channel::<(u16, usize)>();
        let (done, results) = mpsc::channel();
        let vcpu = domain.vcpu(number);
        let thread = thread::spawn(move || {
            for (port, size) in instructions {
                done.send(vcpu.port_in(port, size)).unwrap();
            }
        });
        Processor { commands, results, doing: Doing::Nothing, thread }
    }
}
