//! The small lexical rules that every text of this crate shares: canonical base64 and canonical decimal numbers.
//!
//! Invariant: each function accepts one spelling for one value.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Standard base64 with padding.
pub(crate) fn base64_encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Strict standard base64: padding required, trailing bits zero, nothing skipped.
pub(crate) fn base64_decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// A decimal number without sign and without leading zeros.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    // `parse` would accept a plus sign and leading zeros, and a number has one spelling.
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit())
        && !text.is_empty()
        && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_has_one_spelling() {
        for (text, value) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("00", None),
            ("07", None),
            ("+7", None),
            ("-1", None),
            (" 1", None),
            ("1_0", None),
        ] {
            assert_eq!(decimal(text), value, "{text:?}");
        }
    }

    #[test]
    fn base64_with_stray_bits_is_refused() {
        assert_eq!(base64_decode("AA=="), Some(vec![0]));
        for bad in ["AB==", "AA", "A A=", "AA==\n", "-_=="] {
            assert_eq!(base64_decode(bad), None, "{bad:?}");
        }
    }
}
