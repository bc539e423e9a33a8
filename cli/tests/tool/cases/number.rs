//! Addresses and sizes on the command line.

use crate::number::number;

#[test]
fn number_is_decimal_hexadecimal_or_has_a_binary_unit() {
    for (text, expected) in [
        ("0", 0),
        ("4096", 4096),
        ("007", 7),
        ("0x1000", 0x1000),
        ("0XfF", 0xff),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("64KiB", 64 << 10),
        ("1M", 1 << 20),
        ("1mib", 1 << 20),
        ("2G", 2 << 30),
        ("2GIB", 2 << 30),
        ("1T", 1 << 40),
        ("0x10K", 0x4000),
        ("1TiB", 1 << 40),
        ("18446744073709551615", u64::MAX),
        ("0xffffffffffffffff", u64::MAX),
        ("16777215T", u64::MAX - (1 << 40) + 1),
    ] {
        assert_eq!(number(text), Ok(expected), "{text}");
    }
}

#[test]
fn anything_else_is_an_error_that_lists_the_forms() {
    let nonsense = ["", "x", "0x", "K", "+1", "-1", "1 K", "1_000", "1.5G", "10h", "1KB", "1P", "1B", "٣"];
    let too_large = ["18446744073709551616", "0x10000000000000000", "16777216T", "99999999999999999999K"];
    for (texts, expected) in [(&nonsense[..], "not a number"), (&too_large, "too large")] {
        for text in texts {
            let error = number(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
            assert!(["4096", "0x1000", "4K"].iter().all(|form| error.contains(form)), "{error}");
        }
    }
}
