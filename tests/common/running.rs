//! Guests whose processors run programs, on the host under test.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use xenmap::device_model::EventChannels;
use xenmap::mock::{MockVcpu, VcpuStopped};
use xenmap::{Access, ForeignMapping, GuestKind, MapCache, Protection};

use super::program::{DONE, Step, assemble, execute};
use super::{FRAME, Guest, Host, Inner, pfns};

/// Frames of a guest that runs a program.
const FRAMES: usize = 64;
/// The frame with the results of vcpu 0. Each further vcpu has the next frame.
const RESULTS: u64 = 32;
/// The first frame that programs may use for their data.
pub const DATA: u64 = 40;

/// A guest with a processor for each program. They start together.
pub struct Running {
    pub guest: Guest,
    programs: Vec<Vec<Step>>,
    threads: Vec<JoinHandle<Result<Vec<u64>, VcpuStopped>>>,
}

impl Host {
    /// Creates a guest that will run a program on each of its processors.
    pub fn create_running(&self, kind: GuestKind, programs: &[&[Step]]) -> Running {
        let code = (0..).zip(programs).map(|(vcpu, program)| assemble(program, (RESULTS + vcpu) * FRAME as u64));
        let inner = match self {
            Host::Mock(host) => {
                let domain = host.create_domain(kind, FRAMES);
                domain.set_vcpu(u32::try_from(programs.len()).unwrap() - 1, xenmap::mock::Vcpu::default());
                Inner::Mock(host.clone(), domain)
            }
            Host::Xen(toolstack) => Inner::Xen(toolstack.create_running(kind, FRAMES, &code.collect::<Vec<_>>())),
        };
        let guest = Guest { inner, kind, destroyed: false };
        Running { guest, programs: programs.iter().map(|program| program.to_vec()).collect(), threads: Vec::new() }
    }
}

impl Running {
    /// Returns a cache of the guest's memory, and its event channels, on handles of their own, both restricted to the
    /// guest.
    pub fn open(&self, host: &Host) -> (Arc<MapCache>, EventChannels) {
        let (memory, domid) = (host.open(), self.guest.domid());
        let guest = xenmap::Guest::open(&memory, domid).unwrap();
        let events = EventChannels::open(&memory).unwrap();
        memory.restrict(domid).unwrap();
        events.restrict(domid).unwrap();
        (Arc::new(MapCache::new(guest)), events)
    }

    /// Starts the guest's processors.
    pub fn start(&mut self) {
        match &self.guest.inner {
            Inner::Mock(_, domain) => {
                for (number, program) in (0..).zip(self.programs.clone()) {
                    let (domain, vcpu): (_, MockVcpu) = (domain.clone(), domain.vcpu(number));
                    self.threads.push(std::thread::spawn(move || execute(&domain, &vcpu, &program)));
                }
            }
            Inner::Xen(domain) => domain.unpause(),
        }
    }

    /// Waits until the programs are done, and returns the results of each.
    pub fn results(&mut self) -> Vec<Vec<u64>> {
        if let Inner::Mock(..) = self.guest.inner {
            return self.threads.drain(..).map(|thread| thread.join().unwrap().unwrap()).collect();
        }
        let pages = self.result_pages();
        let deadline = Instant::now() + Duration::from_secs(20);
        let read = |(vcpu, program): (usize, &Vec<Step>)| {
            while !is_done(&pages, vcpu) {
                assert!(Instant::now() < deadline, "vcpu {vcpu} is not done");
                std::thread::sleep(Duration::from_millis(1));
            }
            let results = program.iter().filter(|step| step.has_result()).count();
            (0..results).map(|i| pages.view().read(vcpu * FRAME + 8 * i).unwrap()).collect()
        };
        self.programs.iter().enumerate().map(read).collect()
    }

    /// Returns whether a processor has done its program.
    pub fn is_done(&self, vcpu: usize) -> bool {
        match self.guest.inner {
            Inner::Mock(..) => self.threads[vcpu].is_finished(),
            Inner::Xen(_) => is_done(&self.result_pages(), vcpu),
        }
    }

    /// Maps the pages of the results on a real Xen.
    fn result_pages(&self) -> ForeignMapping {
        let guest = xenmap::Guest::open(&xenmap::ForeignMemory::open().unwrap(), self.guest.domid()).unwrap();
        let count = self.programs.len() as u64;
        guest.map(Protection::ReadOnly, pfns(RESULTS..RESULTS + count)).unwrap()
    }
}

fn is_done(pages: &ForeignMapping, vcpu: usize) -> bool {
    pages.view().read::<u32>(vcpu * FRAME + DONE).unwrap() != 0
}
