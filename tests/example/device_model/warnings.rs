//! What the program prints of the library's log.

use log::{Level, Record};

use super::program::warnings::Warnings;

/// Returns what is printed for a record.
fn line(warnings: &Warnings, level: Level) -> Option<String> {
    warnings.line(&Record::builder().level(level).args(format_args!("vector 1 is lost")).build())
}

#[test]
fn only_warnings_and_errors_are_printed() {
    let warnings = Warnings::new();
    for level in [Level::Error, Level::Warn] {
        assert_eq!(line(&warnings, level).unwrap(), "device_model: warning: vector 1 is lost");
    }
    assert_eq!(line(&warnings, Level::Info), None);
}

#[test]
fn guest_that_causes_many_warnings_does_not_fill_the_log() {
    let warnings = Warnings::new();
    let lines: Vec<String> = (0..3000).filter_map(|_| line(&warnings, Level::Warn)).collect();
    assert_eq!(lines.len(), 1001);
    assert_eq!(lines[1000], "device_model: warning: there are more warnings, which are not shown");
}
