//! Arguments with a unit: shares and levels in millionths, budgets in microbits, ids in hex.
//!
//! Decimals are read digit by digit into integers, so that 0.05 is exactly 50,000 millionths: no float comes between
//! the user's text and the hashed value.

use evidenceos_kernel::evidence::Strategy;
use prost::bytes::Bytes;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Reads a decimal with at most six places as millionths: `0.05` is 50,000, `16` is 16,000,000.
pub fn millionths(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is not a decimal number with at most six places, like 0.05 or 16");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    // `parse` alone would accept a `+` before the digits.
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    // A seventh place would have to be rounded, and the hashed value must be the typed one.
    if !digits(whole) || !digits(fraction) || fraction.len() > 6 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    // Padded on the right, since a digit's place counts from the point.
    let fraction: u64 = format!("{fraction:0<6}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(1_000_000)
        .and_then(|whole| whole.checked_add(fraction))
        .ok_or_else(wrong)
}

/// Reads a share or a chance from 0 up to, but not including, 1.
pub fn share(text: &str) -> Result<u32, String> {
    match millionths(text)? {
        micros @ 0..1_000_000 => Ok(micros as u32),
        _ => Err(format!("{text} is not between 0 and 1")),
    }
}

/// Reads a chance strictly between 0 and 1.
pub fn chance(text: &str) -> Result<u32, String> {
    match millionths(text)? {
        micros @ 1..1_000_000 => Ok(micros as u32),
        _ => Err(format!("{text} is not strictly between 0 and 1")),
    }
}

/// Reads an id of 32 bytes: 64 hex digits.
pub fn id(text: &str) -> Result<Bytes, String> {
    match hex::decode(text) {
        Ok(bytes) if bytes.len() == 32 => Ok(bytes.into()),
        _ => Err(format!("{text:?} is not an id of 64 hex digits")),
    }
}

/// Reads a day (its first moment in UTC) or a moment of RFC 3339 as Unix milliseconds.
pub fn unix_ms(text: &str) -> Result<u64, String> {
    let moment = if text.len() == 10 {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    let parsed = OffsetDateTime::parse(&moment, &Rfc3339).map_err(|_| {
        format!("{text:?} is no date like 2026-11-01, and no time like 2026-11-01T12:00:00Z")
    })?;
    u64::try_from(parsed.unix_timestamp_nanos() / 1_000_000)
        .map_err(|_| format!("{text} is before 1970"))
}

/// Unix milliseconds for users, in UTC to the minute: `2026-11-01 12:00`.
pub fn utc(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1_000).unwrap_or(i64::MAX);
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok();
    let written = moment.and_then(|moment| moment.format(&Rfc3339).ok());
    written
        .and_then(|written| Some(format!("{} {}", written.get(..10)?, written.get(11..16)?)))
        .unwrap_or_default()
}

/// Parses a strategy of bets against the null: `grid`, or `fixed:P1`.
pub fn strategy(text: &str) -> Result<Strategy, String> {
    match text.split_once(':') {
        None if text == "grid" => Ok(Strategy::Grid),
        Some(("fixed", p1)) => chance(p1).map(|p1_micros| Strategy::FixedAlternative { p1_micros }),
        _ => Err(format!(
            "{text:?} is neither `grid` nor `fixed:P1`, like fixed:0.95"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_exactly() {
        let check =
            |text: &str, wanted: Option<u64>| assert_eq!(millionths(text).ok(), wanted, "{text}");
        check("0.05", Some(50_000));
        check("16", Some(16_000_000));
        check("2.5", Some(2_500_000));
        check("0.000001", Some(1));
        check("0.0000001", None);
        check(".5", None);
        check("5.", None);
        check("-1", None);
        check("1e3", None);
        check("NaN", None);
        check("", None);
        check("99999999999999999999", None);
    }

    #[test]
    fn days_and_moments_are_read_in_utc() {
        assert_eq!(unix_ms("1970-01-02"), Ok(86_400_000));
        assert_eq!(unix_ms("2026-11-01T12:00:00Z"), Ok(1_793_534_400_000));
        assert_eq!(unix_ms("2026-11-01T13:00:00+01:00"), Ok(1_793_534_400_000));
        assert_eq!(utc(1_793_534_400_000), "2026-11-01 12:00");
        for bad in [
            "",
            "yesterday",
            "2026-13-01",
            "2026-11-01 12:00",
            "1969-12-31",
        ] {
            assert!(unix_ms(bad).is_err(), "{bad}");
        }
        assert_eq!(utc(u64::MAX), "");
    }

    #[test]
    fn chances_lie_between_nought_and_one() {
        assert_eq!(chance("0.5"), Ok(500_000));
        assert!(chance("0").is_err() && chance("1").is_err());
        assert_eq!(share("0"), Ok(0));
        let p1_micros = 950_000;
        assert_eq!(
            strategy("fixed:0.95"),
            Ok(Strategy::FixedAlternative { p1_micros })
        );
        assert!(strategy("fixed:1").is_err() && strategy("best").is_err());
        assert!(id("abcd").is_err() && id(&"ab".repeat(32)).is_ok());
    }
}
