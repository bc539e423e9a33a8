//! `xenmap dump --copy-by workers`, run as a person does, and its workers by themselves.

#![expect(unsafe_code, reason = "sets what a signal does")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::unistd::Pid;
use xenmap::FRAME_SIZE;

use crate::harness::*;

/// Makes a guest whose RAM is three shares, with a border of shares within an extent.
fn three_shares(folder: &Path) {
    let (content, zeros) = (pattern(3 * FRAME_SIZE), vec![0; 20_000 * FRAME_SIZE]);
    ram(folder, &[(frame(16_383), &content), (frame(16_400), &zeros), (frame(36_390), &content)]);
}

#[test]
fn workers_write_the_same_file() {
    let folder = folder("workers-same");
    three_shares(&folder);
    for (kind, format) in [("pvh", "raw"), ("pvh", "xen"), ("pv", "elf")] {
        for way in ["single", "workers"] {
            let args = format!("--mock ram --mock-kind {kind} dump --format {format} --copy-by {way} {way}");
            let output = run_in(&folder, &args);
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert_eq!(text(&output.stderr).matches('\n').count(), 1, "{}", text(&output.stderr));
        }
        let files = ["single", "workers"].map(|way| fs::read(folder.join(way)).unwrap());
        assert!(files[0] == files[1], "{kind} {format}");
        for way in ["single", "workers"] {
            fs::remove_file(folder.join(way)).unwrap();
        }
    }
}

#[test]
fn workers_take_the_same_file_for_ram_whatever_it_is_called_or_looks_like() {
    let folder = folder("workers-name");
    let ram: Vec<u8> = b"\x7fELF".iter().copied().chain(pattern(2 * FRAME_SIZE - 4)).collect();
    fs::write(folder.join("-dash"), &ram).unwrap();
    let mut command = tool();
    command.current_dir(&folder).args(["--mock=-dash", "--mock-raw"]);
    let output = command.args("dump --copy-by workers out".split(' ')).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(fs::read(folder.join("out")).unwrap() == ram);
}

#[test]
fn workers_that_cannot_open_the_host_are_an_error_in_one_line() {
    let folder = folder("workers-host");
    ram(&folder, &[(0, CANARY)]);
    // Their standard input is another file.
    let mut command = tool();
    command.current_dir(&folder).args("--mock /dev/stdin dump --copy-by workers out".split(' '));
    let output = command.stdin(File::open(folder.join("ram")).unwrap()).output().unwrap();
    assert_eq!(refusal(&output), "a worker failed: cannot use /dev/stdin: not a regular file");
    assert_eq!(names(&folder), ["ram"]);
}

/// The longest wait for something that must happen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The signals that ask a process to end.
const ASKING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// A process that is killed when the test ends.
struct Process(Child);

impl Process {
    /// Starts it as a worker is started: while the signals of [`ASKING`] are blocked. (A shell may have ignored them.)
    fn start(command: &mut Command) -> Process {
        let asking: SigSet = ASKING.into_iter().collect();
        for signal in ASKING {
            // SAFETY: the default action.
            unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.unwrap();
        }
        asking.thread_block().unwrap();
        let child = command.spawn();
        asking.thread_unblock().unwrap();
        Process(child.unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

/// Returns a line of the status of a process; `None` if the process is gone or a zombie.
fn status(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
    line("State:").filter(|state| !state.starts_with(['Z', 'X']))?;
    line(name)
}

/// Waits until `what` returns something.
fn wait_for<T>(what: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "this never happens");
        std::thread::yield_now();
    }
}

fn wait_for_end_of(pid: u32) {
    wait_for(|| status(pid, "State:").is_none().then_some(()));
}

/// Returns whether a process blocks a signal.
fn blocks(pid: u32, signal: Signal) -> Option<bool> {
    let mask = u64::from_str_radix(&status(pid, "SigBlk:")?, 16).unwrap();
    Some(mask & 1 << (signal as u32 - 1) != 0)
}

#[test]
fn worker_handles_signals_that_its_parent_blocks() {
    let folder = folder("worker-signals");
    ram(&folder, &[(0, CANARY)]);
    for signal in ASKING {
        let mut command = tool();
        command.current_dir(&folder).args(["worker", "--mock", "ram"]);
        // It gets no job, but looks at signals before that.
        let mut worker = Process::start(command.stdin(Stdio::piped()));
        send(worker.pid(), signal);
        assert_eq!(worker.0.wait().unwrap().signal(), Some(signal as i32));
    }
}

#[test]
fn worker_does_not_outlive_its_parent() {
    let folder = folder("worker-orphan");
    ram(&folder, &[(0, CANARY)]);
    let mut command = Command::new("sh");
    // It waits for its job, which the test could still give.
    let script = "exec 3<&0; \"$0\" worker --mock ram <&3 >/dev/null & echo $!; wait";
    command.current_dir(&folder).args(["-c", script]).arg(tool().get_program());
    let mut shell = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(shell.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let worker = line.trim().parse().unwrap();
    // It has unblocked the signals.
    wait_for(|| blocks(worker, Signal::SIGTERM).filter(|held| !held));
    send(shell.pid(), Signal::SIGKILL);
    wait_for_end_of(worker);
}

/// Returns a dump that cannot finish, and its worker, which is stopped.
fn dump_with_a_stopped_worker(folder: &Path) -> (Process, u32) {
    three_shares(folder);
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "no worker could be stopped");
        let mut command = tool();
        command.current_dir(folder).args("--mock ram dump --copy-by workers out".split(' '));
        let mut dump = Process::start(command.stderr(Stdio::piped()));
        while dump.0.try_wait().unwrap().is_none() {
            let is_ready = |worker: &u32| blocks(*worker, Signal::SIGTERM) == Some(false);
            let Some(worker) = children_of(dump.pid()).into_iter().find(is_ready) else { continue };
            send(worker, Signal::SIGSTOP);
            let state = wait_for(|| match status(worker, "State:") {
                Some(state) if !state.starts_with('T') => None,
                state => Some(state),
            });
            if state.is_some() {
                return (dump, worker);
            }
        }
        // The dump was written before a worker could be stopped.
        fs::remove_file(folder.join("out")).unwrap();
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let children = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let children: Vec<String> = children.collect();
    children.iter().flat_map(|line| line.split_whitespace()).map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn interrupted_dump_leaves_neither_a_worker_nor_a_file() {
    let folder = folder("workers-interrupted");
    for signal in ASKING {
        let (mut dump, worker) = dump_with_a_stopped_worker(&folder);
        send(dump.pid(), signal);
        let mut stderr = String::new();
        dump.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(stderr, "xenmap: interrupted\n");
        assert_eq!(dump.0.wait().unwrap().code(), Some(128 + signal as i32));
        wait_for_end_of(worker);
        assert_eq!(names(&folder), ["ram"]);
    }
}

#[test]
fn killed_dump_leaves_neither_a_worker_nor_a_file() {
    let folder = folder("workers-killed");
    let (dump, worker) = dump_with_a_stopped_worker(&folder);
    send(dump.pid(), Signal::SIGKILL);
    wait_for_end_of(worker);
    assert_eq!(names(&folder), ["ram"]);
}

#[test]
fn worker_that_dies_half_way_leaves_no_file() {
    let folder = folder("workers-half");
    let (mut dump, worker) = dump_with_a_stopped_worker(&folder);
    send(worker, Signal::SIGKILL);
    let mut stderr = String::new();
    dump.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(stderr.starts_with("xenmap: a worker ") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(dump.0.wait().unwrap().code(), Some(2));
    assert_eq!(names(&folder), ["ram"]);
}
