//! Bytes as `hexdump -vC` shows them.

use std::io::{Result, Write};

use crate::palette::Palette;
use crate::parts::{Hole, Part};

const ROW: usize = 16;

/// Prints rows of bytes, and a line for each hole.
pub(crate) struct Hexdump {
    address: Colour,
    zero: Colour,
    found: Colour,
    hole: Colour,
    plain: Colour,
    /// The first and last address of what to highlight.
    highlight: Option<(u64, u64)>,
    /// The bytes of a row that is not complete yet, and the address of the first.
    row: Vec<u8>,
    row_address: u64,
    /// Room for a line, which is printed at once.
    line: Vec<u8>,
}

/// The escape sequences before and after a text.
struct Colour {
    start: String,
    end: String,
}

impl Colour {
    fn new(style: anstyle::Style) -> Colour {
        Colour { start: style.to_string(), end: format!("{style:#}") }
    }
}

impl Hexdump {
    pub(crate) fn new(palette: &Palette, highlight: Option<(u64, u64)>) -> Hexdump {
        Hexdump {
            address: Colour::new(palette.address),
            zero: Colour::new(palette.faint),
            found: Colour::new(palette.found),
            hole: Colour::new(palette.warning),
            plain: Colour::new(anstyle::Style::new()),
            highlight,
            row: Vec::with_capacity(ROW),
            row_address: 0,
            line: Vec::new(),
        }
    }

    /// Prints a part of a range. The last row of bytes is printed once it is complete, or by [`end`](Hexdump::end).
    pub(crate) fn part(&mut self, out: &mut impl Write, part: &Part<'_>) -> Result<()> {
        match part {
            Part::Bytes(first, bytes) => self.bytes(out, *first, bytes),
            Part::Hole(hole) => self.hole(out, hole),
        }
    }

    fn bytes(&mut self, out: &mut impl Write, first: u64, bytes: &[u8]) -> Result<()> {
        let mut address = first;
        let mut rest = bytes;
        if !self.row.is_empty() {
            let (more, after) = rest.split_at(rest.len().min(ROW - self.row.len()));
            self.row.extend(more);
            if self.row.len() < ROW {
                return Ok(());
            }
            self.end(out)?;
            address = address.wrapping_add(more.len() as u64);
            rest = after;
        }
        let rows = rest.chunks_exact(ROW);
        let incomplete = rows.remainder();
        for row in rows {
            self.print_row(out, address, row)?;
            // Not needed after the last address.
            address = address.wrapping_add(ROW as u64);
        }
        self.row.extend(incomplete);
        self.row_address = address;
        Ok(())
    }

    /// Prints an incomplete row, if there is one.
    pub(crate) fn end(&mut self, out: &mut impl Write) -> Result<()> {
        if self.row.is_empty() {
            return Ok(());
        }
        let mut row = std::mem::take(&mut self.row);
        self.print_row(out, self.row_address, &row)?;
        row.clear();
        self.row = row;
        Ok(())
    }

    fn hole(&mut self, out: &mut impl Write, hole: &Hole) -> Result<()> {
        self.end(out)?;
        let (address, colour) = (&self.address, &self.hole);
        // A row has the digits of a byte in place of the dashes.
        writeln!(out, "{}{:08x}{}  {}-- {hole}{}", address.start, hole.first, address.end, colour.start, colour.end)
    }

    fn print_row(&mut self, out: &mut impl Write, address: u64, row: &[u8]) -> Result<()> {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        write!(line, "{}{address:08x}{}", self.address.start, self.address.end)?;
        let mut colour = &self.plain;
        for (i, &byte) in row.iter().enumerate() {
            line.extend_from_slice(if i % 8 == 0 { b"  " } else { b" " });
            change_colour(&mut line, &mut colour, self.colour_of(address + i as u64, byte));
            line.extend_from_slice(&digits(byte));
        }
        change_colour(&mut line, &mut colour, &self.plain);
        for i in row.len()..ROW {
            line.extend_from_slice(if i % 8 == 0 { b"    " } else { b"   " });
        }
        line.extend(b"  |");
        for (i, &byte) in row.iter().enumerate() {
            change_colour(&mut line, &mut colour, self.colour_of(address + i as u64, byte));
            line.push(if byte == b' ' || byte.is_ascii_graphic() { byte } else { b'.' });
        }
        change_colour(&mut line, &mut colour, &self.plain);
        line.extend(b"|\n");
        self.line = line;
        out.write_all(&self.line)
    }

    fn colour_of(&self, address: u64, byte: u8) -> &Colour {
        match self.highlight {
            Some((first, last)) if (first..=last).contains(&address) => &self.found,
            _ if byte == 0 => &self.zero,
            _ => &self.plain,
        }
    }
}

/// Switches to the colour of the text that follows.
fn change_colour<'a>(line: &mut Vec<u8>, colour: &mut &'a Colour, to: &'a Colour) {
    if !std::ptr::eq(*colour, to) {
        line.extend_from_slice(colour.end.as_bytes());
        line.extend_from_slice(to.start.as_bytes());
        *colour = to;
    }
}

/// Appends the digits of some bytes, without spaces.
pub(crate) fn push_digits(hex: &mut String, bytes: &[u8]) {
    hex.reserve(2 * bytes.len());
    hex.extend(bytes.iter().flat_map(|&byte| digits(byte)).map(char::from));
}

fn digits(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 0xF].map(|digit| b"0123456789abcdef"[usize::from(digit)])
}
