//! Parsers of numbers, durations and sizes in a range. Their errors state the range.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;

/// Units of sizes, in bytes. Longer names come before the names that end them.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// Returns a parser for a whole number within `range`.
pub(crate) fn number<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let value = text.parse().ok().filter(|value| range.contains(value));
        value.ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }
}

/// Returns a parser for a duration within `range`: `250ms`, `10s`, `5m`, `1h30m`, `0`.
pub(crate) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let value = any_duration(text).filter(|value| range.contains(value));
        value.ok_or_else(|| {
            let (from, to) = (show_duration(*range.start()), show_duration(*range.end()));
            format!("must be a time with its unit, such as 250ms, 10s or 5m, from {from} to {to}")
        })
    }
}

/// Returns a parser for a size in bytes within `range`: `4MiB`, `500kB`, plain bytes.
pub(crate) fn size<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let value = any_size(text).filter(|value| range.contains(value));
        value.and_then(|value| T::try_from(value).ok()).ok_or_else(|| {
            let (from, to) = (show_size(*range.start()), show_size(*range.end()));
            format!("must be a size, such as 65536, 512KiB or 4MiB, from {from} to {to}")
        })
    }
}

fn any_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    // jiff also reads `-5m`, `5m ago` and ISO 8601; the first two are negative.
    text.parse::<SignedDuration>().ok()?.try_into().ok()
}

fn any_size(text: &str) -> Option<u64> {
    let split = |(name, factor): &(&str, u64)| Some((text.strip_suffix(name)?.trim_end(), *factor));
    let (digits, factor) = SIZE_UNITS.iter().find_map(split).unwrap_or((text, 1));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

pub(crate) fn show_duration(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), |short| format!("{short:#}"))
}

fn show_size(bytes: u64) -> String {
    let unit =
        SIZE_UNITS[..4].iter().rev().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// Asserts that `parse` accepts the good texts with these values, and rejects the bad ones with a hint.
#[cfg(test)]
pub(crate) fn check_parser<T: PartialEq + std::fmt::Debug>(
    parse: impl Fn(&str) -> Result<T, String>,
    good: &[(&str, T)],
    bad: &[&str],
) {
    for (text, value) in good {
        assert_eq!(parse(text).as_ref(), Ok(value), "{text}");
    }
    for text in bad {
        let error = parse(text).expect_err(text);
        assert!(error.contains("must be"), "{text}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        check_parser(
            duration(Duration::ZERO..=s(3600)),
            &[("0", s(0)), ("5ms", ms(5)), ("10s", s(10)), ("5m", s(300)), ("1m30s", s(90)), ("1h", s(3600))],
            &["", "5", "-5s", "5 parsecs", "61m", "5s ago", "1e3s"],
        );
        assert!(duration(ms(100)..=s(300))("1ms").unwrap_err().contains("from 100ms to 5m"));
    }

    #[test]
    fn sizes() {
        check_parser(
            size::<u64>(0..=1 << 30),
            &[
                ("0", 0),
                ("65536", 65536),
                ("4MiB", 4 << 20),
                ("4 MiB", 4 << 20),
                ("10kB", 10_000),
                ("7B", 7),
                ("1GiB", 1 << 30),
            ],
            &[
                "",
                "B",
                "MiB",
                "-1",
                "+1",
                "1.5MiB",
                "4mib",
                "2GiB",
                "99999999999999999999",
                "99999999999TiB",
                "4MiBMiB",
            ],
        );
        assert!(size::<u64>(4096..=1 << 30)("1").unwrap_err().contains("from 4KiB to 1GiB"));
    }
}
