//! Escapes text from others, such as names of files and domains, for a terminal.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

/// Escapes each character that a terminal would obey instead of showing it.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Writes a value as one line of JSON, with the same characters escaped.
pub(crate) fn write_json(mut out: impl Write, value: &impl Serialize) -> io::Result<()> {
    // The conversion keeps the kind of an error: a closed pipe is not reported.
    value.serialize(&mut Serializer::with_formatter(&mut out, EscapedJson))?;
    writeln!(out)
}

/// JSON without spaces, with everything escaped that a terminal would obey.
struct EscapedJson;

impl Formatter for EscapedJson {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, found) in fragment.match_indices(is_obeyed) {
            out.write_all(&fragment.as_bytes()[plain..at])?;
            // Each of these characters is one unit of UTF-16.
            found.encode_utf16().try_for_each(|unit| write!(out, "\\u{unit:04x}"))?;
            plain = at + found.len();
        }
        out.write_all(&fragment.as_bytes()[plain..])
    }
}

/// Returns whether a character is a control character (C0, DEL, C1), breaks lines, or changes the direction of text.
fn is_obeyed(c: char) -> bool {
    let is_break = matches!(c, '\u{2028}' | '\u{2029}');
    let is_bidi = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_break || is_bidi
}
