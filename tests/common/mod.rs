//! The host under test: the mock, or a real Xen if `XENMAP_TEST_XEN` names the kind of dom0 (`pv`, `pvh` or `arm64`).
//! The tests are the same for all; `expected` says what differs.

#![allow(clippy::allow_attributes, reason = "not every test program needs it")]
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(unsafe_code, reason = "makes toolstack hypercalls, and forks")]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::print_stdout, reason = "shows the host and guest of a failed test")]
#![allow(clippy::unused_self, reason = "these are methods for uniformity")]

pub mod bytes;
pub mod expected;
pub mod program;
pub mod running;
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

/// The simulated hosts: the kind of dom0, and the bytes of its kernel's pages.
pub const MOCKS: [(Dom0, usize); 4] =
    [(Dom0::Pv, FRAME), (Dom0::Pvh, FRAME), (Dom0::Arm, FRAME), (Dom0::Arm, 4 * FRAME)];

/// The UUID of every guest.
pub const HANDLE: [u8; 16] = *b"a guest (xenmap)";

/// The host under test.
pub enum Host {
    Mock(MockHost),
    Xen(xen::Toolstack),
}

/// A guest of the host under test, destroyed on drop.
pub struct Guest {
    inner: Inner,
    kind: GuestKind,
    destroyed: bool,
}

enum Inner {
    Mock(MockHost, MockDomain),
    Xen(xen::Domain),
}

/// Formats an error with its sources: `what: why`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn xen_dom0() -> Option<String> {
    std::env::var("XENMAP_TEST_XEN").ok()
}

/// Runs a test on the real Xen, or on each simulated host.
pub fn on_each_host(test: impl Fn(&Host)) {
    if xen_dom0().is_some() {
        return test(&Host::Xen(xen::Toolstack::new()));
    }
    for (dom0, page_size) in MOCKS {
        println!("on the mock, {dom0:?} dom0 with pages of {page_size} bytes");
        test(&Host::Mock(mock_with_pages(dom0, page_size)));
    }
}

/// Runs a test on each host that has PV guests; Arm has none. List the test in tests/xen/x86-only.txt.
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

/// Returns a simulated host, for a test that cannot run on a real one. List the test in tests/xen/mock-only.txt with
/// the reason.
pub fn mock(dom0: Dom0) -> MockHost {
    mock_with_pages(dom0, FRAME)
}

/// Like [`mock`], with a kernel that has pages of `page_size` bytes.
pub fn mock_with_pages(dom0: Dom0, page_size: usize) -> MockHost {
    let mut config = HostConfig::default();
    config.dom0 = dom0;
    config.page_size = page_size;
    mock_with(config)
}

/// Like [`mock`], with any configuration.
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

    /// Returns the bytes of a page of the host's kernel.
    pub fn page_size(&self) -> usize {
        match self {
            Host::Mock(host) => host.page_size(),
            // SAFETY: the call takes only a number.
            Host::Xen(_) => usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap(),
        }
    }

    /// Returns how many frames a domain owns; `None` once it is gone.
    pub fn owned(&self, domid: Domid) -> Option<u64> {
        match self.open().current_reservation(domid) {
            Ok(frames) => Some(frames),
            Err(e) if e.errno() == libc::ESRCH => None,
            Err(e) => panic!("{e}"),
        }
    }

    /// Returns a number that no domain has.
    pub fn unused_domid(&self) -> Domid {
        Domid::new(31_000).unwrap()
    }

    /// Returns frames of Xen itself that anyone may read; on Arm, which has none, arbitrary numbers.
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

    /// Returns its frames, in ascending order of guest-physical addresses.
    pub fn gfns(&self) -> Vec<Gfn> {
        match &self.inner {
            Inner::Mock(_, guest) => guest.frames(),
            Inner::Xen(guest) => guest.gfns(),
        }
    }

    /// Returns a frame number where no guest has RAM.
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

    /// Writes each frame's index in `gfns` into its first 8 bytes.
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

    /// Adds frames that get memory when they are first touched, from a pool of `pool` frames.
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

    /// Unpauses a new guest, which a real toolstack creates paused. (It has no vcpu that could run.)
    pub fn start(&self) {
        match &self.inner {
            Inner::Mock(..) => {}
            Inner::Xen(guest) => guest.unpause(),
        }
    }

    /// Pauses it once more, as a toolstack does.
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

    /// Makes Xen log which frames are modified, as during a migration.
    pub fn log_dirty(&self) {
        match &self.inner {
            Inner::Mock(_, guest) => guest.log_dirty(),
            Inner::Xen(guest) => guest.log_dirty(),
        }
    }

    /// Returns the frames that were modified since the last call.
    pub fn take_dirty(&self) -> Vec<Gfn> {
        match &self.inner {
            Inner::Mock(_, guest) => guest.take_dirty(),
            Inner::Xen(guest) => guest.take_dirty(),
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

/// Writes each frame's index in the mapping into its first 8 bytes.
pub fn number(mapping: &ForeignMapping) {
    for i in 0..mapping.frames() {
        mapping.view().write(i * FRAME, i as u64).unwrap();
    }
}

/// Reads what [`number`] or [`Guest::number_frames`] wrote.
pub fn numbers(mapping: &ForeignMapping) -> Vec<u64> {
    (0..mapping.frames()).map(|i| mapping.view().read(i * FRAME).unwrap()).collect()
}

/// Populates pieces of RAM with a hole before each, and returns the ranges of RAM.
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

/// Returns the indices and errnos of the frames that failed.
pub fn failures(result: Result<ForeignMapping>) -> Vec<(usize, i32)> {
    match result {
        Err(Error::Frames(errors)) => errors.failed().iter().map(|e| (e.index, e.errno)).collect(),
        Err(e) => panic!("not about frames: {e}"),
        Ok(mapping) => panic!("all {} frames were mapped", mapping.frames()),
    }
}

/// The environment variable that tells a child process its task.
const TASK: &str = "XENMAP_TEST_TASK";

/// Runs the test `module::name` again in its own process, where [`current_task`] returns `task`. Returns `None` in that
/// process.
pub fn run_in_own_process(test: &str, task: &str) -> Option<Output> {
    if std::env::var_os(TASK).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(TASK, task).output().unwrap();
    assert!(text_of(&output).contains("running 1 test\n"), "{test}: {}", text_of(&output));
    Some(output)
}

/// Returns what a process wrote to stdout and stderr.
fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a test's body in its own process, because the test forks or depends on state of the whole process. `test` is
/// the test's own `module::name`.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    match run_in_own_process(test, "") {
        None => body(),
        Some(output) => assert!(output.status.success(), "{test}: {}", text_of(&output)),
    }
}

/// Locks the count of leaked mappings, which all tests in a process share.
pub fn leaks() -> MutexGuard<'static, ()> {
    static LEAKS: Mutex<()> = Mutex::new(());
    LEAKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the task of this process; see [`run_in_own_process`].
pub fn current_task() -> String {
    std::env::var(TASK).unwrap()
}

/// Runs `child` in a forked process, and returns whether it returned true (or was killed as requested). `child` gets a
/// function that waits for the parent. While it waits, `parent` runs, and decides whether the child continues or is
/// killed.
///
/// Call it only in a test that runs [`in_own_process`]. Otherwise the child could inherit a mapping that another thread
/// has just made and not yet excluded from forks, and the host would count it.
pub fn in_child(child: impl FnOnce(&dyn Fn()) -> bool, parent: impl FnOnce() -> ThenChild) -> bool {
    let (ready_read, ready_write) = std::io::pipe().unwrap();
    let (go_read, go_write) = std::io::pipe().unwrap();
    // SAFETY: the child only runs the closure and exits by _exit. It needs only locks of this test's objects, which no
    // other thread holds, and glibc keeps its allocator usable in the child.
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
            // SAFETY: the process ends here.
            unsafe { libc::_exit(i32::from(!good)) }
        }
        pid => {
            use std::io::{Read, Write};
            drop((ready_write, go_read));
            let reached = (&ready_read).read_exact(&mut [0]).is_ok();
            let then = if reached { parent() } else { ThenChild::Continues };
            match then {
                ThenChild::Continues => drop((&go_write).write_all(b"g")),
                // SAFETY: `pid` is our own child, not yet waited for.
                ThenChild::IsKilled => assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0),
            }
            let mut status = 0;
            // SAFETY: waits for our own child, and writes only `status`.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            match then {
                ThenChild::Continues => reached && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
                ThenChild::IsKilled => libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL,
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ThenChild {
    Continues,
    IsKilled,
}
