//! Bytes to search for, in which digits can be wildcards, and bytes to write.

use std::fmt;

use memchr::memmem::Finder;

use crate::Result;
use crate::args::{BytesArgs, PatternArgs};
use crate::printable::printable;

pub(crate) struct Pattern {
    /// The option that it was given with, and its value.
    pub(crate) kind: &'static str,
    pub(crate) given: String,
    /// Each byte, with a mask of the bits that count.
    bytes: Vec<(u8, u8)>,
    /// The longest part without wildcards, and where in the pattern it is.
    fixed: Finder<'static>,
    fixed_at: usize,
}

impl Pattern {
    /// Returns all patterns, of which there is at least one.
    pub(crate) fn all(args: &PatternArgs) -> Result<Vec<Pattern>> {
        let text = args.text.iter().map(|text| Pattern::new("text", text, exact(text.bytes())));
        let hex = args.hex.iter().map(|digits| Pattern::new("hex", digits, parse_hex(digits)?));
        let utf16 = args.utf16.iter().map(|text| Pattern::new("utf16", text, exact(utf16(text))));
        text.chain(hex).chain(utf16).collect()
    }

    fn new(kind: &'static str, given: &str, bytes: Vec<(u8, u8)>) -> Result<Pattern> {
        if bytes.is_empty() {
            return Err("there is nothing to search for: give at least one character or digit".into());
        }
        if bytes.iter().all(|(_, mask)| *mask == 0) {
            return Err("the pattern matches everywhere: give at least one digit that is not ?".into());
        }
        let is_fixed = |byte: &(u8, u8)| byte.1 == 0xFF;
        let parts = bytes.chunk_by(|a, b| is_fixed(a) == is_fixed(b));
        let parts = parts.scan(0, |next, part| Some((part, std::mem::replace(next, *next + part.len()))));
        let fixed_parts = parts.filter(|(part, _)| part.iter().all(is_fixed));
        // If there is none, the empty one is found everywhere.
        let (fixed, fixed_at) = fixed_parts.max_by_key(|(part, _)| part.len()).unwrap_or_default();
        let fixed: Vec<u8> = fixed.iter().map(|(byte, _)| *byte).collect();
        Ok(Pattern { kind, given: given.to_owned(), fixed: Finder::new(&fixed).into_owned(), fixed_at, bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns where the pattern is in some bytes, in ascending order. Matches can overlap.
    pub(crate) fn matches(&self, bytes: &[u8]) -> impl Iterator<Item = usize> {
        let mut next = 0;
        std::iter::from_fn(move || {
            loop {
                let start = next + self.fixed.find(bytes.get(next + self.fixed_at..)?)?;
                next = start + 1;
                let candidate = bytes.get(start..start + self.len())?;
                if candidate.iter().zip(&self.bytes).all(|(found, (byte, mask))| found & mask == *byte) {
                    return Some(start);
                }
            }
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.kind, printable(&self.given))
    }
}

/// Returns the bytes to write, in which no digit can be a wildcard.
pub(crate) fn exact_bytes(args: &BytesArgs) -> Result<Vec<u8>> {
    let bytes = match args {
        BytesArgs { text: Some(text), .. } => text.clone().into_bytes(),
        BytesArgs { utf16: Some(text), .. } => utf16(text).collect(),
        BytesArgs { hex, .. } => {
            let bytes = parse_hex(hex.as_deref().unwrap_or_default())?;
            if bytes.iter().any(|(_, mask)| *mask != 0xFF) {
                return Err("? stands for any digit, which cannot be written".into());
            }
            bytes.into_iter().map(|(byte, _)| byte).collect()
        }
    };
    if bytes.is_empty() { Err("there is nothing to write".into()) } else { Ok(bytes) }
}

/// Encodes text as UTF-16LE.
fn utf16(text: &str) -> impl Iterator<Item = u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes)
}

/// Returns bytes of which all bits count.
fn exact(bytes: impl Iterator<Item = u8>) -> Vec<(u8, u8)> {
    bytes.map(|byte| (byte, 0xFF)).collect()
}

/// Parses pairs of hexadecimal digits. Returns the bytes, each with a mask of the bits that count.
fn parse_hex(text: &str) -> Result<Vec<(u8, u8)>> {
    let digit = |c: char| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits = text.chars().filter(|c| !c.is_whitespace()).map(|c| match (c, digit(c)) {
        ('?', _) => Ok((0, 0)),
        (_, Some(digit)) => Ok((digit, 0xF)),
        (_, None) => Err(format!("{c} is not a hexadecimal digit")),
    });
    let digits = digits.collect::<std::result::Result<Vec<(u8, u8)>, String>>()?;
    if !digits.len().is_multiple_of(2) {
        return Err("a byte is two hexadecimal digits, and the last one has only one".into());
    }
    Ok(digits.chunks_exact(2).map(|pair| (pair[0].0 << 4 | pair[1].0, pair[0].1 << 4 | pair[1].1)).collect())
}
