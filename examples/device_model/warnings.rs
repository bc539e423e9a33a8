//! Prints warnings, of the library and of the device, to stderr.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::lock;

/// The most warnings that are printed in a second, since a guest can cause any number of them.
const MOST: u64 = 10;

/// A logger.
#[derive(Debug)]
pub(crate) struct Warnings(Mutex<Second>);

/// The last second that began with a warning, if there was one, and the number of warnings in it.
#[derive(Debug)]
struct Second {
    start: Option<Instant>,
    count: u64,
}

impl Warnings {
    pub(crate) const fn new() -> Warnings {
        Warnings(Mutex::new(Second { start: None, count: 0 }))
    }

    /// Prints warnings from now on, unless there is a logger already.
    pub(crate) fn print() {
        static WARNINGS: Warnings = Warnings::new();
        if log::set_logger(&WARNINGS).is_ok() {
            log::set_max_level(LevelFilter::Warn);
        }
    }

    /// Returns what is to be printed for a record: its line, after one about the warnings that were left out before.
    pub(crate) fn lines(&self, record: &Record<'_>, now: Instant) -> Option<String> {
        if !self.enabled(record.metadata()) {
            return None;
        }
        let mut second = lock(&self.0);
        let mut lines = String::new();
        if second.start.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1)) {
            let left_out = second.count.saturating_sub(MOST);
            if left_out != 0 {
                lines = format!("device_model: warning: {left_out} warnings were left out\n");
            }
            *second = Second { start: Some(now), count: 0 };
        }
        second.count += 1;
        (second.count <= MOST).then(|| lines + &format!("device_model: warning: {}", record.args()))
    }
}

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(lines) = self.lines(record, Instant::now()) {
            let _ = writeln!(std::io::stderr(), "{lines}"); // unlike eprintln, does not panic if stderr is closed
        }
    }

    fn flush(&self) {}
}
