//! Numbers on the command line and in messages.

const FORMS: &str = "write it as 4096, 0x1000, or 4K (also M, G and T; KiB, MiB, GiB and TiB are the same)";

/// Parses a number: decimal, or hexadecimal after `0x`, perhaps with a binary unit. Case does not matter.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (radix, rest) = lower.strip_prefix("0x").map_or((10, &lower[..]), |rest| (16, rest));
    let (digits, unit) = rest.split_at(rest.find(|c: char| !c.is_digit(radix)).unwrap_or(rest.len()));
    let shift = match unit {
        "" => Some(0),
        "k" | "kib" => Some(10),
        "m" | "mib" => Some(20),
        "g" | "gib" => Some(30),
        "t" | "tib" => Some(40),
        _ => None,
    };
    let shift = shift.filter(|_| !digits.is_empty()).ok_or_else(|| format!("not a number; {FORMS}"))?;
    let number = u64::from_str_radix(digits, radix).ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| format!("too large, the largest number is {:#x}; {FORMS}", u64::MAX))
}

/// Returns the size of some frames in the largest unit that it is a multiple of.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB")];
    match units.into_iter().find(|(unit, _)| bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{} KiB", bytes >> 10),
    }
}

/// Returns a number and the word for what is counted, such as `1 byte` or `2 bytes`.
pub(crate) fn count(number: u64, word: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {word}{s}")
}
