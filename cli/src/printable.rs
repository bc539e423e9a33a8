//! Escapes text from others, such as names of files and domains, for a terminal.

/// Escapes each character that a terminal would obey instead of showing it.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Returns a value as one line of JSON, with the same characters escaped.
pub(crate) fn json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(value)?;
    // These characters occur only in strings, and each is one unit of UTF-16.
    let escaped = |c: char| if is_obeyed(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Ok(json.chars().map(escaped).collect())
}

/// Returns whether a character is a control character (C0, DEL, C1), breaks lines, or changes the direction of text.
fn is_obeyed(c: char) -> bool {
    let is_break = matches!(c, '\u{2028}' | '\u{2029}');
    let is_bidi = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_break || is_bidi
}
