//! Signals such as that of Ctrl-C: the tool undoes what it has begun, and ends.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::Result;

/// The signals that ask a process to end.
const ASKING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Makes a worker end with its parent: unblocks the signals that the parent blocks, and has the kernel kill the worker
/// when the thread that started it ends, for whatever reason.
pub(crate) fn end_with_parent() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    ASKING.into_iter().collect::<SigSet>().thread_unblock()?;
    Ok(())
}

/// Makes a write past the allowed file size fail instead of ending the process.
pub(crate) fn survive_size_limits() -> Result<()> {
    Ok(SigSet::from(Signal::SIGXFSZ).thread_block()?)
}

/// What [`Interrupts::wait`] has waited for.
pub(crate) enum Event {
    /// The number of the signal.
    Signal(i32),
    Over,
    TimeUp,
}

/// Receives the signals that ask a process to end, which are blocked.
pub(crate) struct Interrupts(SignalFd);

impl Interrupts {
    /// Blocks the signals. Call this before starting threads, because they inherit what is blocked.
    pub(crate) fn block() -> Result<Interrupts> {
        // Signals that are ignored, as under nohup, stay ignored.
        let ignored = ignored_signals()?;
        let is_handled = |signal: &Signal| ignored & 1 << (*signal as u32 - 1) == 0;
        let signals: SigSet = ASKING.into_iter().filter(is_handled).collect();
        signals.thread_block()?;
        Ok(Interrupts(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?))
    }

    /// Runs `work` in a thread. If a signal arrives first, calls `undo` and ends the process, without waiting for the
    /// thread, which may be in a write that never returns.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send, undo: impl FnOnce()) -> Result<T> {
        // The thread's end closes when the work is over, even after a panic.
        let (working, over) = io::pipe()?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let _over = over;
                work()
            });
            if let Event::Signal(signal) = self.wait(working.as_fd(), PollTimeout::NONE)? {
                undo();
                crate::say("interrupted");
                // A shell reports the same code for a process that a signal ended.
                std::process::exit(128 + signal);
            }
            Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// Waits for a signal, for the other end of `work` to be closed, or until the time is up.
    pub(crate) fn wait(&self, work: BorrowedFd<'_>, timeout: PollTimeout) -> Result<Event> {
        let mut events = [self.0.as_fd(), work].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        while poll(&mut events, timeout) == Err(Errno::EINTR) {}
        let [has_signal, is_over] = events.map(|event| event.any().unwrap_or(false));
        if has_signal && let Some(signal) = self.0.read_signal()? {
            return Ok(Event::Signal(i32::try_from(signal.ssi_signo)?));
        }
        Ok(if is_over { Event::Over } else { Event::TimeUp })
    }
}

/// Returns the signals that this process ignores, a bit for each; the lowest bit is that of signal 1.
fn ignored_signals() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ok(u64::from_str_radix(line.ok_or("/proc/self/status does not say which signals are ignored")?.trim(), 16)?)
}
