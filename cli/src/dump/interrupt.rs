//! Ctrl-C and its like: what was begun is undone, and the process ends.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::Result;

/// The signals that ask a process to end.
const ASKING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// For a process that was started by one that holds them back: lets them end it, and has it killed when the thread that
/// started it ends, however that comes about.
pub(crate) fn end_with_the_starter() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    ASKING.into_iter().collect::<SigSet>().thread_unblock()?;
    Ok(())
}

/// Has a write beyond the allowed size of a file fail, instead of ending the process.
pub(crate) fn survive_size_limits() -> Result<()> {
    Ok(SigSet::from(Signal::SIGXFSZ).thread_block()?)
}

/// The signals that ask a process to end, held back from the moment this is made.
pub(crate) struct Interrupts(SignalFd);

impl Interrupts {
    /// To be called before threads are made: they hold back what their maker does.
    pub(crate) fn hold_back() -> Result<Interrupts> {
        // What nohup has the process ignore it goes on ignoring.
        let ignored = ignored_signals()?;
        let is_heeded = |signal: &Signal| ignored & 1 << (*signal as u32 - 1) == 0;
        let signals: SigSet = ASKING.into_iter().filter(is_heeded).collect();
        signals.thread_block()?;
        Ok(Interrupts(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?))
    }

    /// Works in a thread of its own. If a signal comes first, undoes what must not stay and ends the process: the
    /// thread may be in a write that never returns.
    pub(crate) fn unless_one_comes<T: Send>(&self, work: impl FnOnce() -> T + Send, undo: impl FnOnce()) -> Result<T> {
        // The other end closes when the work is over, however it ends.
        let (working, over) = io::pipe()?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let _over = over;
                work()
            });
            let events = [self.0.as_fd(), working.as_fd()];
            let mut events = events.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            while poll(&mut events, PollTimeout::NONE) == Err(Errno::EINTR) {}
            if events[0].any().unwrap_or(false)
                && let Some(signal) = self.0.read_signal()?
            {
                undo();
                crate::say("interrupted");
                // As a shell reports who died of a signal.
                std::process::exit(128 + i32::try_from(signal.ssi_signo)?);
            }
            Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }
}

/// The signals that this process ignores, a bit for each, of which the lowest is that of signal 1.
fn ignored_signals() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ok(u64::from_str_radix(line.ok_or("/proc/self/status does not say which signals are ignored")?.trim(), 16)?)
}
