//! Bytes as `hexdump -vC` shows them.

use std::io::{Result, Write};

const ROW: usize = 16;

/// Rows of bytes, of which the first is at `address`.
pub(crate) fn rows(out: &mut impl Write, address: u64, bytes: &[u8]) -> Result<()> {
    for (row, offset) in bytes.chunks(ROW).zip((0..).step_by(ROW)) {
        // The byte at `address + offset` is there, so this does not overflow.
        let address = address + offset;
        write!(out, "{address:08x}")?;
        for i in 0..ROW {
            if i % 8 == 0 {
                write!(out, " ")?;
            }
            match row.get(i) {
                Some(byte) => write!(out, " {byte:02x}")?,
                None => write!(out, "   ")?,
            }
        }
        let text: String = row.iter().map(|&byte| if is_printable(byte) { byte.into() } else { '.' }).collect();
        writeln!(out, "  |{text}|")?;
    }
    Ok(())
}

/// The last line: the address after the last byte, which may take one digit more than any address.
pub(crate) fn end(out: &mut impl Write, last: u64) -> Result<()> {
    writeln!(out, "{:08x}", u128::from(last) + 1)
}

fn is_printable(byte: u8) -> bool {
    byte == b' ' || byte.is_ascii_graphic()
}
