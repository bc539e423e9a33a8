//! What the contract suite runs on: the simulated host, or the real Xen that `XENMAP_TEST_XEN` (`pv`, `pvh` or `arm64`,
//! the kind of dom0) says we are on. A test is the same for both; what differs by kind of host is in `expected`.

#![allow(clippy::allow_attributes, reason = "what one test file has no use for, another has")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(unsafe_code, reason = "hypercalls of a toolstack, forks")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "says which host and guest a failing test was on")]
#![allow(clippy::unused_self, reason = "what is asked of a host is a method of it")]

pub mod expected;
pub mod translation;
mod xen;

use std::ops::Range;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use xenmap::mock::{Dom0, HostConfig, MockDomain, MockHost};
use xenmap::{
    Access, Domid, Error, ForeignMapping, ForeignMemory, Gfn, GuestKind, NumberRange, Pfn, Protection, Result,
};

pub use Protection::{ReadOnly, ReadWrite};

pub const FRAME: usize = xenmap::FRAME_SIZE;

/// The kinds of simulated hosts: which dom0, and the bytes of its kernel's pages.
pub const MOCKS: [(Dom0, usize); 4] =
    [(Dom0::Pv, FRAME), (Dom0::Pvh, FRAME), (Dom0::Arm, FRAME), (Dom0::Arm, 4 * FRAME)];

/// The UUID of every guest.
pub const HANDLE: [u8; 16] = *b"a guest (xenmap)";

/// The host under test.
pub enum Host {
    Mock(MockHost),
    Xen(xen::Toolstack),
}

/// A guest of the host under test, which the test has to itself; it is destroyed when it is dropped.
pub struct Guest {
    inner: Inner,
    kind: GuestKind,
    destroyed: bool,
}

enum Inner {
    Mock(MockHost, MockDomain),
    Xen(xen::Domain),
}

/// An error with its causes: `what: why`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn xen_dom0() -> Option<String> {
    std::env::var("XENMAP_TEST_XEN").ok()
}

/// Runs a test on each host there is: on Xen the one we are on, else each kind that the mock has.
pub fn on_each_host(test: impl Fn(&Host)) {
    if xen_dom0().is_some() {
        return test(&Host::Xen(xen::Toolstack::new()));
    }
    for (dom0, page_size) in MOCKS {
        println!("on the mock, {dom0:?} dom0 with pages of {page_size} bytes");
        test(&Host::Mock(mock_with_pages(dom0, page_size)));
    }
}

/// Runs a test on each host that has PV guests: there are none on Arm. A test that uses it is listed in
/// tests/xen/x86-only.txt.
pub fn on_each_host_with_pv_guests(test: impl Fn(&Host)) {
    on_each_host(|host| {
        if host.guest_kinds().contains(&GuestKind::Pv) {
            test(host);
        } else {
            assert!(matches!(host, Host::Mock(_)), "this test needs a PV guest: list it in tests/xen/x86-only.txt");
        }
    });
}

/// Runs a test with each kind of guest on each host.
pub fn with_each_guest(frames: usize, test: impl Fn(&Host, Guest)) {
    on_each_host(|host| {
        for kind in host.guest_kinds() {
            println!("{kind:?} guest");
            test(host, host.create(*kind, frames));
        }
    });
}

/// A simulated host, for what a real one cannot be brought to do. A test that uses it is listed in
/// tests/xen/mock-only.txt with the reason.
pub fn mock(dom0: Dom0) -> MockHost {
    mock_with_pages(dom0, FRAME)
}

/// The same, with a kernel that has pages of so many bytes.
pub fn mock_with_pages(dom0: Dom0, page_size: usize) -> MockHost {
    let mut config = HostConfig::default();
    config.dom0 = dom0;
    config.page_size = page_size;
    mock_with(config)
}

/// See [`mock`].
pub fn mock_with(config: HostConfig) -> MockHost {
    assert!(xen_dom0().is_none(), "this test needs the mock: list it in tests/xen/mock-only.txt");
    MockHost::with_config(config)
}

impl Host {
    pub fn open(&self) -> ForeignMemory {
        match self {
            Host::Mock(host) => host.open().unwrap(),
            Host::Xen(_) => ForeignMemory::open().unwrap(),
        }
    }

    pub fn create(&self, kind: GuestKind, frames: usize) -> Guest {
        let inner = match self {
            Host::Mock(host) => Inner::Mock(host.clone(), host.create_domain(kind, frames)),
            Host::Xen(toolstack) => Inner::Xen(toolstack.create_domain(kind, frames)),
        };
        Guest { inner, kind, destroyed: false }
    }

    /// Bytes of a page of the host's kernel.
    pub fn page_size(&self) -> usize {
        match self {
            Host::Mock(host) => host.page_size(),
            // SAFETY: takes a number only.
            Host::Xen(_) => usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap(),
        }
    }

    /// How many frames a domain owns; `None` once it is gone.
    pub fn owned(&self, domid: Domid) -> Option<u64> {
        match self.open().current_reservation(domid) {
            Ok(frames) => Some(frames),
            Err(e) if e.errno() == libc::ESRCH => None,
            Err(e) => panic!("{e}"),
        }
    }

    /// A number that no domain has.
    pub fn nobody(&self) -> Domid {
        Domid::new(31_000).unwrap()
    }

    /// Frames of Xen itself that anyone may read; on Arm, numbers that are nothing of the kind.
    pub fn xen_frames(&self) -> Vec<Gfn> {
        match self {
            _ if self.is_arm() => (0..4).map(|gfn| Gfn::new(gfn).unwrap()).collect(),
            Host::Mock(host) => host.xen_frames(),
            Host::Xen(toolstack) => toolstack.machine_to_phys_frames(),
        }
    }
}

impl Guest {
    pub fn domid(&self) -> Domid {
        match &self.inner {
            Inner::Mock(_, guest) => guest.domid(),
            Inner::Xen(guest) => guest.domid(),
        }
    }

    pub fn kind(&self) -> GuestKind {
        self.kind
    }

    /// Its frames, in ascending order of its own memory.
    pub fn gfns(&self) -> Vec<Gfn> {
        match &self.inner {
            Inner::Mock(_, guest) => guest.frames(),
            Inner::Xen(guest) => guest.gfns(),
        }
    }

    /// A frame number where it has no RAM, and neither has anybody else.
    pub fn hole(&self) -> Gfn {
        Gfn::new(match self.kind {
            GuestKind::Pv => 0x1234_5678,
            _ => 0xE_0000,
        })
        .unwrap()
    }

    pub fn write(&self, gfn: Gfn, offset: usize, bytes: &[u8]) {
        match &self.inner {
            Inner::Mock(_, guest) => guest.write(gfn, offset, bytes),
            Inner::Xen(guest) => map_one(guest.domid(), ReadWrite, gfn).view().write_bytes(offset, bytes).unwrap(),
        }
    }

    pub fn read(&self, gfn: Gfn, offset: usize, len: usize) -> Vec<u8> {
        match &self.inner {
            Inner::Mock(_, guest) => guest.read(gfn, offset, len),
            Inner::Xen(guest) => {
                let mut bytes = vec![0; len];
                map_one(guest.domid(), ReadOnly, gfn).view().read_bytes(offset, &mut bytes).unwrap();
                bytes
            }
        }
    }

    /// Writes its place in `gfns` into the first 8 bytes of each frame.
    pub fn number_frames(&self) {
        match &self.inner {
            Inner::Mock(_, guest) => {
                for (i, &gfn) in guest.frames().iter().enumerate() {
                    guest.write(gfn, 0, &(i as u64).to_ne_bytes());
                }
            }
            Inner::Xen(guest) => {
                let mapping = ForeignMemory::open().unwrap().map_foreign_batch(guest.domid(), ReadWrite, &guest.gfns());
                number(&mapping.unwrap());
            }
        }
    }

    pub fn balloon_out(&self, gfn: Gfn) {
        match &self.inner {
            Inner::Mock(_, guest) => guest.balloon_out(gfn),
            Inner::Xen(guest) => guest.balloon_out(gfn),
        }
    }

    pub fn populate(&self, gfn: Gfn) {
        match &self.inner {
            Inner::Mock(_, guest) => guest.populate(&[gfn]),
            Inner::Xen(guest) => guest.populate(gfn),
        }
    }

    /// Gives it frames that get memory when they are first touched, and a pool of so many frames of memory.
    pub fn populate_on_demand(&self, gfns: &[Gfn], pool: usize) {
        match &self.inner {
            Inner::Mock(_, guest) => guest.populate_on_demand(gfns, pool),
            Inner::Xen(guest) => guest.populate_on_demand(gfns, pool),
        }
    }

    pub fn pin_page_table(&self, gfn: Gfn) -> std::io::Result<()> {
        match &self.inner {
            Inner::Mock(_, guest) => guest.pin_page_table(gfn),
            Inner::Xen(guest) => guest.pin_page_table(gfn),
        }
    }

    pub fn unpin_page_table(&self, gfn: Gfn) {
        match &self.inner {
            Inner::Mock(_, guest) => guest.unpin_page_table(gfn),
            Inner::Xen(guest) => guest.unpin_page_table(gfn),
        }
    }

    /// Lets it run; a new guest of a real toolstack is paused. (It has no vcpu that would do anything.)
    pub fn start(&self) {
        match &self.inner {
            Inner::Mock(..) => {}
            Inner::Xen(guest) => guest.unpause(),
        }
    }

    /// Pauses it once more, as its toolstack does.
    pub fn pause(&self) {
        match &self.inner {
            Inner::Mock(_, guest) => guest.pause(),
            Inner::Xen(guest) => guest.pause(),
        }
    }

    pub fn unpause(&self) {
        match &self.inner {
            Inner::Mock(_, guest) => guest.unpause(),
            Inner::Xen(guest) => guest.unpause(),
        }
    }

    pub fn destroy(&mut self) {
        self.destroyed = true;
        match &self.inner {
            Inner::Mock(_, guest) => guest.destroy(),
            Inner::Xen(guest) => guest.destroy(),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !self.destroyed && !std::thread::panicking() {
            self.destroy();
        }
    }
}

fn map_one(domid: Domid, protection: Protection, gfn: Gfn) -> ForeignMapping {
    ForeignMemory::open().unwrap().map_foreign_batch(domid, protection, &[gfn]).unwrap()
}

pub fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

pub fn pfns(numbers: Range<u64>) -> NumberRange<Pfn> {
    numbers.try_into().unwrap()
}

/// Writes into each frame its place in the mapping.
pub fn number(mapping: &ForeignMapping) {
    for i in 0..mapping.frames() {
        mapping.view().write(i * FRAME, i as u64).unwrap();
    }
}

/// What [`number`] or [`Guest::number_frames`] has written.
pub fn numbers(mapping: &ForeignMapping) -> Vec<u64> {
    (0..mapping.frames()).map(|i| mapping.view().read(i * FRAME).unwrap()).collect()
}

/// Gives a guest pieces of RAM, each a hole's length behind the one before, and returns where RAM is.
pub fn lay_out(guest: &MockDomain, holes_and_pieces: Vec<(u64, u64)>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut next = 0;
    for (hole, len) in holes_and_pieces {
        let piece = next + hole..next + hole + len;
        next = piece.end;
        let gfns: Vec<Gfn> = piece.clone().map(|pfn| Gfn::new(pfn).unwrap()).collect();
        guest.populate(&gfns);
        match ranges.last_mut() {
            Some(last) if last.end == piece.start => last.end = piece.end,
            _ => ranges.push(piece),
        }
    }
    ranges
}

/// The indices and errors of the frames that failed.
pub fn failures(result: Result<ForeignMapping>) -> Vec<(usize, i32)> {
    match result {
        Err(Error::Frames(errors)) => errors.failed().iter().map(|e| (e.index, e.errno)).collect(),
        Err(e) => panic!("not about frames: {e}"),
        Ok(mapping) => panic!("all {} frames were mapped", mapping.frames()),
    }
}

/// What the child of a test is to do.
const TASK: &str = "XENMAP_TEST_TASK";

/// Runs a test, `module::name`, once more in a process of its own, where [`its_task`] is this; in that process returns
/// `None`.
pub fn in_a_process_of_its_own(test: &str, task: &str) -> Option<Output> {
    if std::env::var_os(TASK).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(TASK, task).output().unwrap();
    assert!(said(&output).contains("running 1 test\n"), "{test}: {}", said(&output));
    Some(output)
}

/// What such a process wrote, of both kinds.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs what a test does in a process of its own, for the sake of what belongs to a process as a whole: `test` is the
/// test's own `module::name`.
pub fn alone(test: &str, body: impl FnOnce()) {
    match in_a_process_of_its_own(test, "") {
        None => body(),
        Some(output) => assert!(output.status.success(), "{test}: {}", said(&output)),
    }
}

/// Is held by tests that look at the count of leaked mappings, or add to it: it is the process's.
pub fn leaks() -> MutexGuard<'static, ()> {
    static LEAKS: Mutex<()> = Mutex::new(());
    LEAKS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn its_task() -> String {
    std::env::var(TASK).unwrap()
}

/// Runs a function in a forked child, which leaves with status 0 if it returns true. It gets a function that waits
/// for the parent; the parent's own part runs while it waits, and says whether to kill the child instead of letting
/// it go on.
///
/// For tests that run [`alone`]: what another thread has just mapped, and not yet marked as not to be inherited, would
/// be mapped in the child too, and be counted.
pub fn in_child(child: impl FnOnce(&dyn Fn()) -> bool, parent: impl FnOnce() -> ThenChild) -> bool {
    let (ready_read, ready_write) = std::io::pipe().unwrap();
    let (go_read, go_write) = std::io::pipe().unwrap();
    // SAFETY: the child runs the closure and leaves by _exit; the locks it needs are those of objects of this test,
    // which no other thread holds, and glibc makes its allocator usable in the child.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            drop((ready_read, go_write));
            let wait = || {
                use std::io::{Read, Write};
                (&ready_write).write_all(b"r").unwrap();
                (&go_read).read_exact(&mut [0]).unwrap();
            };
            let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| child(&wait))).unwrap_or(false);
            // SAFETY: leaves at once.
            unsafe { libc::_exit(i32::from(!good)) }
        }
        pid => {
            use std::io::{Read, Write};
            drop((ready_write, go_read));
            let reached = (&ready_read).read_exact(&mut [0]).is_ok();
            let then = if reached { parent() } else { ThenChild::GoesOn };
            match then {
                ThenChild::GoesOn => drop((&go_write).write_all(b"g")),
                // SAFETY: our own child, which has not been waited for.
                ThenChild::IsKilled => assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0),
            }
            let mut status = 0;
            // SAFETY: waits for our own child, into our own integer.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            match then {
                ThenChild::GoesOn => reached && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
                ThenChild::IsKilled => libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL,
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ThenChild {
    GoesOn,
    IsKilled,
}
