//! Bytes to look for, some digits of which may be left open.

use memchr::memmem::Finder;

use crate::Result;
use crate::args::BytesArgs;

pub(crate) struct Pattern {
    /// Each with the bits of it that count.
    bytes: Vec<(u8, u8)>,
    /// The longest part without open digits, and where in the pattern it is.
    fixed: Finder<'static>,
    fixed_at: usize,
}

impl Pattern {
    pub(crate) fn new(args: &BytesArgs) -> Result<Pattern> {
        let bytes = match (&args.text, &args.hex) {
            (Some(text), _) => text.bytes().map(|byte| (byte, 0xFF)).collect(),
            (None, hex) => parse_hex(hex.as_deref().unwrap_or_default())?,
        };
        if bytes.iter().all(|(_, mask)| *mask == 0) {
            return Err("there is nothing to look for: give at least one character or digit".into());
        }
        let is_fixed = |byte: &(u8, u8)| byte.1 == 0xFF;
        let parts = bytes.chunk_by(|a, b| is_fixed(a) == is_fixed(b));
        let parts = parts.scan(0, |next, part| Some((part, std::mem::replace(next, *next + part.len()))));
        let fixed_parts = parts.filter(|(part, _)| part.iter().all(is_fixed));
        // If there is none, the empty one is found everywhere.
        let (fixed, fixed_at) = fixed_parts.max_by_key(|(part, _)| part.len()).unwrap_or_default();
        let fixed: Vec<u8> = fixed.iter().map(|(byte, _)| *byte).collect();
        Ok(Pattern { fixed: Finder::new(&fixed).into_owned(), fixed_at, bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Where in some bytes the pattern is, overlapping matches included.
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

/// The bytes of `write`, none of which is open.
pub(crate) fn exact_bytes(args: &BytesArgs) -> Result<Vec<u8>> {
    let bytes = match (&args.text, &args.hex) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, hex) => {
            let bytes = parse_hex(hex.as_deref().unwrap_or_default())?;
            if bytes.iter().any(|(_, mask)| *mask != 0xFF) {
                return Err("? stands for any digit, which cannot be written".into());
            }
            bytes.into_iter().map(|(byte, _)| byte).collect()
        }
    };
    if bytes.is_empty() { Err("there is nothing to write".into()) } else { Ok(bytes) }
}

/// Pairs of hexadecimal digits: bytes, each with the bits of it that are given.
fn parse_hex(text: &str) -> Result<Vec<(u8, u8)>> {
    let digit = |c: char| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits = text.chars().filter(|c| !c.is_whitespace()).map(|c| match (c, digit(c)) {
        ('?', _) => Ok((0, 0)),
        (_, Some(digit)) => Ok((digit, 0xF)),
        (_, None) => Err(format!("{c} is no hexadecimal digit")),
    });
    let digits = digits.collect::<std::result::Result<Vec<(u8, u8)>, String>>()?;
    if !digits.len().is_multiple_of(2) {
        return Err("a byte is two hexadecimal digits, and here is half of one".into());
    }
    Ok(digits.chunks_exact(2).map(|pair| (pair[0].0 << 4 | pair[1].0, pair[0].1 << 4 | pair[1].1)).collect())
}
