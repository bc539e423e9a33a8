//! Addresses and sizes on the command line.

const FORMS: &str = "write it as 4096, 0x1000, or 4K (also M, G and T; KiB, MiB, GiB and TiB are the same)";

/// Parses a number: decimal, hexadecimal after `0x`, or decimal with a binary unit. Case does not matter.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix, shift) = match lower.strip_prefix("0x") {
        Some(digits) => (digits, 16, 0),
        None => {
            let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let shift = match &lower[digits.len()..] {
                "" => 0,
                "k" | "kib" => 10,
                "m" | "mib" => 20,
                "g" | "gib" => 30,
                "t" | "tib" => 40,
                _ => return Err(format!("not a number; {FORMS}")),
            };
            (digits, 10, shift)
        }
    };
    // The parser of the standard library also takes a sign.
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(format!("not a number; {FORMS}"));
    }
    let number = u64::from_str_radix(digits, radix).ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| format!("too large, the largest number is {:#x}; {FORMS}", u64::MAX))
}
