//! Colours.

use std::io;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};

/// A style for each kind of text. A style is written before the text, and its alternate form (`{:#}`) after it.
#[expect(dead_code, reason = "not every command has colours yet")]
pub(crate) struct Palette {
    pub(crate) heading: Style,
    pub(crate) address: Style,
    /// Bytes that are zero, and whatever else matters least.
    pub(crate) faint: Style,
    /// What a search found.
    pub(crate) found: Style,
    pub(crate) good: Style,
    pub(crate) warning: Style,
    pub(crate) bad: Style,
}

const PLAIN: Palette = Palette {
    heading: Style::new(),
    address: Style::new(),
    faint: Style::new(),
    found: Style::new(),
    good: Style::new(),
    warning: Style::new(),
    bad: Style::new(),
};

const COLOURED: Palette = Palette {
    heading: Style::new().bold().underline(),
    address: AnsiColor::Green.on_default(),
    faint: Style::new().dimmed(),
    found: AnsiColor::Red.on_default().bold(),
    good: AnsiColor::Green.on_default(),
    warning: AnsiColor::Yellow.on_default(),
    bad: AnsiColor::Red.on_default(),
};

/// The style of the prefix of an error, the same as clap's.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Sets what `--color` says, for all output of this process.
pub(crate) fn choose(choice: clap::ColorChoice) {
    let choice = match choice {
        clap::ColorChoice::Auto => ColorChoice::Auto,
        clap::ColorChoice::Always => ColorChoice::Always,
        clap::ColorChoice::Never => ColorChoice::Never,
    };
    choice.write_global();
}

/// Returns the styles for standard output: plain ones in a pipe, under `NO_COLOR`, or if `--color` says so.
pub(crate) fn palette() -> &'static Palette {
    match AutoStream::choice(&io::stdout()) {
        ColorChoice::Never => &PLAIN,
        _ => &COLOURED,
    }
}
