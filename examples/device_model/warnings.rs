//! Prints warnings, of the library and of the device, to stderr.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The most warnings that are printed, since a guest can cause any number of them.
const MOST: u64 = 1000;

/// A logger.
#[derive(Debug)]
pub(crate) struct Warnings(AtomicU64);

impl Warnings {
    pub(crate) const fn new() -> Warnings {
        Warnings(AtomicU64::new(0))
    }

    /// Prints warnings from now on, unless there is a logger already.
    pub(crate) fn print() {
        static WARNINGS: Warnings = Warnings::new();
        if log::set_logger(&WARNINGS).is_ok() {
            log::set_max_level(LevelFilter::Warn);
        }
    }

    /// Returns the line to be printed for a record, if there is one.
    pub(crate) fn line(&self, record: &Record<'_>) -> Option<String> {
        if !self.enabled(record.metadata()) {
            return None;
        }
        match self.0.fetch_add(1, Ordering::Relaxed) {
            ..MOST => Some(format!("device_model: warning: {}", record.args())),
            MOST => Some("device_model: warning: there are more warnings, which are not shown".to_owned()),
            _ => None,
        }
    }
}

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(line) = self.line(record) {
            let _ = writeln!(std::io::stderr(), "{line}"); // unlike eprintln, does not panic if stderr is closed
        }
    }

    fn flush(&self) {}
}
