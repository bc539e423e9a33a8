//! Tests of `examples/device_model` on the simulated host: of the program, and of its parts.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod arbitrary;
mod busy;
mod memory;
mod new_ram;
mod registers;
mod requests;
mod restart;
mod warnings;

#[path = "../../../examples/device_model/main.rs"]
#[expect(dead_code, reason = "the tests use parts of the program")]
mod program;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use program::buffers::Buffers;
use program::image::Image;
use program::model::{Model, Options};
use program::queue::Chain;
use program::transport::Transport;
use xenmap::device_model::Event;
use xenmap::mock::{MockDomain, MockHost};
use xenmap::{FRAME_SIZE, GuestKind};

use crate::example;

const DISK_SIZE: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// A guest of a simulated host, and a disk of zeros for it.
struct Machine {
    host: MockHost,
    domain: MockDomain,
    disk: File,
}

impl Machine {
    fn new() -> Machine {
        Machine::with_ram(48)
    }

    /// Creates a machine with this many MiB of RAM.
    fn with_ram(mib: usize) -> Machine {
        let host = MockHost::new();
        let domain = host.create_domain(GuestKind::Pvh, (mib << 20) / FRAME_SIZE);
        let fd = nix::sys::memfd::memfd_create(c"xenmap-test", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let disk = File::from(fd);
        disk.set_len(DISK_SIZE as u64).unwrap();
        Machine { host, domain, disk }
    }

    fn content(&self) -> Vec<u8> {
        let mut content = vec![0; DISK_SIZE];
        self.disk.read_exact_at(&mut content, 0).unwrap();
        content
    }

    fn open(&self, is_read_only: bool, server: Option<PathBuf>) -> program::Result<Model> {
        let image = Image::new(self.disk.try_clone().unwrap(), is_read_only)?;
        let name = "a test's disk".to_owned();
        let options = Options { image, name, queues: 2, cache: 8, is_beside_qemu: false, server };
        Model::open(&self.host.open()?, self.domain.domid(), options)
    }

    /// Serves the guest while it does something, and returns what that returns. A guest that waits for something that
    /// does not come fails the test.
    fn serve<T: Send>(&self, model: &Model, guest: impl FnOnce() -> T + Send) -> T {
        let (bells, rings): (Vec<_>, Vec<_>) = model.device.queues.iter().map(|_| sync_channel(1)).unzip();
        let mut function = model.function(Transport::new(&model.device, bells).unwrap()).unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| {
                let _done = Done(&is_done);
                guest()
            });
            // If this thread panics, the guest does not wait for it forever.
            let _destroyed = DestroyOnPanic(&self.domain);
            let started = Instant::now();
            while !is_done.load(Ordering::SeqCst) {
                assert!(started.elapsed() < DEADLINE, "the guest still waits");
                if let Event::Request(request) = model.server.next(Some(Duration::from_millis(1))).unwrap() {
                    function.serve(request);
                }
                for (queue, rings) in rings.iter().enumerate() {
                    while rings.try_recv().is_ok() {
                        model.device.serve(queue);
                    }
                }
            }
            guest.join().unwrap()
        })
    }
}

/// Returns a request with these buffers: the address and the length of each.
fn chain(readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Chain {
    let [readable, writable] = [readable, writable].map(|ranges| {
        let mut buffers = Buffers::default();
        for &(address, len) in ranges {
            buffers.push(address, len);
        }
        buffers
    });
    Chain { head: 0, readable, writable }
}

/// Returns a path for the state of a test's disk, where no file is.
fn state_file(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("device_model");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(test);
    let _ = std::fs::remove_file(&path); // an earlier run may have left one
    path
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct DestroyOnPanic<'a>(&'a MockDomain);

impl Drop for DestroyOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.destroy();
        }
    }
}

#[test]
fn simulated_guest_gets_right_answers() {
    for queues in ["1", "2"] {
        let output = example("device_model").args(["--requests", "300", "--queues", queues]).output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        let text = String::from_utf8(output.stdout).unwrap();
        for expected in [
            "serving domain 1: a temporary file, 8388608 bytes",
            "domain 1 is gone: 3",
            " misses, ",
            " requests per second, and all answers were right",
            "0 zombies after that",
        ] {
            assert!(text.contains(expected), "{text}");
        }
        assert!(output.status.success());
    }
}

/// Runs the program, and checks that it is refused with this text.
#[track_caller]
fn assert_refused(args: &[&str], expected: &str) {
    let output = example("device_model").args(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_arguments_are_refused() {
    for (args, expected) in [
        (&["--domain", "1"][..], "not provided:\n  --image <FILE>"),
        (&["--image", "/dev/null"], "not provided:\n  --domain <DOMID>"),
        (&["--server", "state"], "not provided:"),
        (&["--read-only"], "not provided:"),
        (&["--beside-qemu"], "not provided:"),
        (&["--domain", "x", "--image", "disk"], "invalid value 'x' for '--domain <DOMID>'"),
        (&["--domain", "1", "--image", "disk", "--requests", "9"], "cannot be used with '--requests <REQUESTS>'"),
        (&["--queues", "0"], "0 is not in 1..=16"),
        (&["--queues", "17"], "17 is not in 1..=16"),
        (&["--cache", "0"], "invalid value '0' for '--cache <MIB>'"),
        (&["disk"], "unexpected argument 'disk'"),
    ] {
        assert_refused(args, expected);
    }
}

#[test]
fn image_that_is_no_disk_is_refused_in_one_line() {
    let path = state_file("image");
    let image = path.to_str().unwrap();
    let refused = |image: &str, expected: &str| {
        for last in [&[][..], &["--read-only"]] {
            let args = [&["--domain", "1", "--image", image], last].concat();
            assert_refused(&args, &format!("device_model: cannot open {image}: {expected}"));
        }
    };
    refused(image, "No such file");
    refused("/dev/null", "it is neither a file nor a block device\n");
    refused(path.parent().unwrap().to_str().unwrap(), "it is neither a file nor a block device\n");
    for (len, expected) in [(0, "it is empty\n"), (1000, "its 1000 bytes are not a multiple of 512\n")] {
        File::create(&path).unwrap().set_len(len).unwrap();
        refused(image, expected);
    }
    File::create(&path).unwrap().set_len(512).unwrap();
    assert_refused(&["--domain", "40000", "--image", image], "device_model: 40000 does not name a domain");
}
