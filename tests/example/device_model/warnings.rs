//! What the program prints of the library's log.

use std::time::{Duration, Instant};

use log::{Level, Record};

use super::program::warnings::Warnings;

/// Returns what is printed for a record at a time.
fn lines(warnings: &Warnings, level: Level, now: Instant) -> Option<String> {
    warnings.lines(&Record::builder().level(level).args(format_args!("vector 1 is lost")).build(), now)
}

#[test]
fn only_warnings_and_errors_are_printed() {
    let (warnings, now) = (Warnings::new(), Instant::now());
    for level in [Level::Error, Level::Warn] {
        assert_eq!(lines(&warnings, level, now).unwrap(), "device_model: warning: vector 1 is lost");
    }
    assert_eq!(lines(&warnings, Level::Info, now), None);
}

#[test]
fn guest_that_causes_many_warnings_neither_fills_the_log_nor_hides_later_ones() {
    let (warnings, start) = (Warnings::new(), Instant::now());
    let mut warn = |milliseconds| lines(&warnings, Level::Warn, start + Duration::from_millis(milliseconds));
    let first: Vec<String> = (0..1000).filter_map(&mut warn).collect();
    assert_eq!(first, vec!["device_model: warning: vector 1 is lost"; 10]);

    let next = warn(1000).unwrap();
    assert_eq!(next, "device_model: warning: 990 warnings were left out\ndevice_model: warning: vector 1 is lost");
    assert_eq!((1001..2000).filter_map(&mut warn).count(), 9);
    assert_eq!(warn(60_000).unwrap().lines().next(), Some("device_model: warning: 990 warnings were left out"));
    assert_eq!(warn(60_001).unwrap(), "device_model: warning: vector 1 is lost");
}
