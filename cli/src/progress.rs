//! A progress bar.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use xenmap::FRAME_SIZE;

use crate::Result;

/// Work that ends sooner needs no bar.
const DELAY: Duration = Duration::from_secs(1);

/// A progress bar on stderr if that is a terminal. On drop, it disappears.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Makes a bar for work on this many frames; `what` names the work, such as "copying".
    pub(crate) fn new(what: &str, frames: u64) -> Result<Progress> {
        let template = "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
        let bar = ProgressBar::with_draw_target(Some(bytes(frames)), ProgressDrawTarget::hidden());
        Ok(Progress(bar.with_style(ProgressStyle::with_template(template)?).with_message(what.to_owned())))
    }

    /// Sets how many frames are done.
    pub(crate) fn set(&self, frames: u64) {
        let Progress(bar) = self;
        if bar.is_hidden() && bar.elapsed() > DELAY {
            // Stays hidden if stderr is not a terminal.
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.set_position(bytes(frames));
    }

    /// Removes the bar while something is printed, perhaps to the same terminal.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn bytes(frames: u64) -> u64 {
    frames.saturating_mul(FRAME_SIZE as u64)
}
