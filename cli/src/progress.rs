//! A progress bar for those who wait.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use xenmap::FRAME_SIZE;

use crate::Result;

/// What is done sooner needs no bar.
const DELAY: Duration = Duration::from_secs(1);

/// A bar with rate and time left, on stderr if that is a terminal. It goes away when it is dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// `what` is what is done to so many frames, such as "copying".
    pub(crate) fn new(what: &str, frames: u64) -> Result<Progress> {
        let template = "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
        let bar = ProgressBar::with_draw_target(Some(bytes(frames)), ProgressDrawTarget::hidden());
        Ok(Progress(bar.with_style(ProgressStyle::with_template(template)?).with_message(what.to_owned())))
    }

    /// That so many frames are done, all in all.
    pub(crate) fn set(&self, frames: u64) {
        let Progress(bar) = self;
        if bar.is_hidden() && bar.elapsed() > DELAY {
            // Hidden still if stderr is no terminal.
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.set_position(bytes(frames));
    }

    /// Takes the bar away while something is printed, perhaps on the same terminal.
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
