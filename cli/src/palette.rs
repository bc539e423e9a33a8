//! Colours.

use std::io;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};

/// A style for each kind of text. A style is written before the text, and its alternate form (`{:#}`) after it.
#[expect(dead_code, reason = "not every command has colours yet")]
pub(crate) struct Palette {
    /// The headings of a table.
    pub(crate) heading: Style,
    /// The name before a value.
    pub(crate) name: Style,
    pub(crate) address: Style,
    /// Zeros, and whatever else matters least.
    pub(crate) faint: Style,
    /// The bytes that a search has found.
    pub(crate) found: Style,
    pub(crate) good: Style,
    pub(crate) warning: Style,
    pub(crate) bad: Style,
}

const PLAIN: Palette = Palette {
    heading: Style::new(),
    name: Style::new(),
    address: Style::new(),
    faint: Style::new(),
    found: Style::new(),
    good: Style::new(),
    warning: Style::new(),
    bad: Style::new(),
};

const COLOURED: Palette = Palette {
    heading: Style::new().bold().underline(),
    name: Style::new().bold(),
    address: AnsiColor::Green.on_default(),
    faint: Style::new().dimmed(),
    found: AnsiColor::Red.on_default().bold(),
    good: AnsiColor::Green.on_default(),
    warning: AnsiColor::Yellow.on_default(),
    bad: AnsiColor::Red.on_default(),
};

/// The style of the prefix of an error, as clap has it.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Sets the value of `--color` for all output of this process.
pub(crate) fn choose(choice: clap::ColorChoice) {
    let choice = match choice {
        clap::ColorChoice::Auto => ColorChoice::Auto,
        clap::ColorChoice::Always => ColorChoice::Always,
        clap::ColorChoice::Never => ColorChoice::Never,
    };
    choice.write_global();
}

/// Returns the styles for standard output: plain ones in a pipe, under `NO_COLOR`, or with `--color never`.
pub(crate) fn palette() -> &'static Palette {
    match AutoStream::choice(&io::stdout()) {
        ColorChoice::Never => &PLAIN,
        _ => &COLOURED,
    }
}
