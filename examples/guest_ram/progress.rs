//! A progress bar for those who wait.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Result;

/// What is done sooner needs no bar.
const DELAY: Duration = Duration::from_secs(1);

pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(frames: u64) -> Result<Progress> {
        let style = ProgressStyle::with_template("{elapsed} {wide_bar} {pos} of {len} frames found, {msg} tried")?;
        Ok(Progress(ProgressBar::with_draw_target(Some(frames), ProgressDrawTarget::hidden()).with_style(style)))
    }

    /// Shows how far it is, if stderr is a terminal.
    pub(crate) fn set(&self, found: u64, tried: u64) {
        let Progress(bar) = self;
        if bar.is_hidden() && bar.elapsed() > DELAY {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.set_message(tried.to_string());
        bar.set_position(found);
    }
}
