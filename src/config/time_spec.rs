//! Points in time, as typed by users.

use std::time::Duration;

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};

use crate::model::time::LogTime;

/// Minimum number of digits of Unix seconds, which reach back to 1973. A shorter number is more likely a
/// duration without its unit or a date without its dashes.
const UNIX_SECONDS_MIN_DIGITS: usize = 9;

/// Error text, which lists the accepted formats.
const FORMS: &str = "must be a time ago (5m, 1h30m, 2d, 1w), a date (2026-01-31), a local date and time \
    (2026-01-31 12:00), a time of today (12:00), an RFC 3339 instant (2026-01-31T12:00:00Z) or Unix seconds (1769860800)";

/// A point in time: fixed, or relative to a clock that is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSpec {
    /// An instant that depends on no clock.
    At(LogTime),
    /// This long before now.
    Ago(Duration),
}

// === impl TimeSpec ===

impl TimeSpec {
    /// Parses `text`. Dates and times without an offset are in `zone`. A time without a date is on the day of
    /// `now`.
    pub(super) fn parse(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Self, String> {
        let spec = ago(text)
            .map(Self::Ago)
            .or_else(|| fixed(text, zone, now).and_then(|instant| log_time(instant).map(Self::At)));
        spec.ok_or_else(|| FORMS.to_owned())
    }

    /// Parses `text` in the time zone of this machine.
    pub(super) fn parse_local(text: &str) -> Result<Self, String> {
        Self::parse(text, &TimeZone::system(), Timestamp::now())
    }

    /// Returns the instant, relative to `now`.
    pub fn resolve(self, now: LogTime) -> LogTime {
        match self {
            Self::At(instant) => instant,
            Self::Ago(ago) => {
                let nanos = i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX);
                now.saturating_add_nanos(-nanos)
            }
        }
    }
}

/// Parses a duration. Days have 24 hours, weeks seven days.
fn ago(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    // jiff also accepts `12:00:00`, which is a time of day here.
    if text.contains(':') {
        return None;
    }
    // It also accepts `-5m`, `5m ago` (both negative) and ISO 8601.
    let span = text.parse::<Span>().ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    let duration: Duration = duration.try_into().ok()?;
    // Rejects durations beyond the range of instants.
    i64::try_from(duration.as_nanos()).ok().map(|_| duration)
}

fn fixed(text: &str, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return unix_seconds(text);
    }
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Some(instant);
    }
    // jiff would ignore a zone's name.
    if text.contains('[') {
        return None;
    }
    let local = if text.contains('-') {
        text.parse::<DateTime>().ok()?
    } else {
        let time = text.contains(':').then(|| text.parse::<Time>().ok()).flatten()?;
        now.to_zoned(zone.clone()).date().to_datetime(time)
    };
    // Of a local time that occurs twice, this is the first.
    zone.to_zoned(local).ok().map(|zoned| zoned.timestamp())
}

/// Parses Unix seconds with an optional fraction.
fn unix_seconds(text: &str) -> Option<Timestamp> {
    const FRACTION_DIGITS: usize = 9;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_valid = seconds.len() >= UNIX_SECONDS_MIN_DIGITS
        && (1..=FRACTION_DIGITS).contains(&fraction.len())
        && !fraction.contains('.');
    if !is_valid {
        return None;
    }
    let nanos = format!("{fraction:0<FRACTION_DIGITS$}").parse().ok()?;
    Timestamp::new(seconds.parse().ok()?, nanos).ok()
}

fn log_time(instant: Timestamp) -> Option<LogTime> {
    i64::try_from(instant.as_nanosecond()).ok().map(LogTime::from_nanos)
}

#[cfg(test)]
mod tests {
    use jiff::tz::Offset;

    use super::*;

    /// 2026-01-31T12:00:00Z.
    const NOON: i64 = 1_769_860_800;

    /// 05:30, as in some zones.
    const OFFSET: i32 = 5 * 3_600 + 1_800;

    fn parsed(text: &str) -> Result<TimeSpec, String> {
        let zone = TimeZone::fixed(Offset::from_seconds(OFFSET).unwrap());
        TimeSpec::parse(text, &zone, Timestamp::from_second(NOON).unwrap())
    }

    fn at(seconds: i64, nanos: i32) -> TimeSpec {
        TimeSpec::At(LogTime::from_parts(seconds, nanos).unwrap())
    }

    #[test]
    fn durations_are_times_ago() {
        const DAY: u64 = 24 * 3_600;
        for (text, seconds) in [
            ("0", 0),
            ("0s", 0),
            ("5m", 300),
            ("1h30m", 5_400),
            ("1d", DAY),
            ("1w", 7 * DAY),
            ("1d12h", DAY + 12 * 3_600),
            ("1w 2d", 9 * DAY),
            ("90 minutes", 5_400),
        ] {
            assert_eq!(parsed(text), Ok(TimeSpec::Ago(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!(parsed("250ms"), Ok(TimeSpec::Ago(Duration::from_millis(250))));
        assert_eq!(parsed("1.5h"), Ok(TimeSpec::Ago(Duration::from_secs(5_400))));
    }

    #[test]
    fn fixed_instants_are_parsed() {
        const LOCAL_NOON: i64 = NOON - OFFSET as i64;
        for (text, expected) in [
            ("2026-01-31T12:00:00Z", at(NOON, 0)),
            ("2026-01-31 12:00:00Z", at(NOON, 0)),
            ("2026-01-31T13:00:00.5+01:00", at(NOON, 500_000_000)),
            ("2026-01-31T12:00Z", at(NOON, 0)),
            ("2026-01-31", at(LOCAL_NOON - 12 * 3_600, 0)),
            ("2026-01-31T12:00", at(LOCAL_NOON, 0)),
            ("2026-01-31 12:00:00.25", at(LOCAL_NOON, 250_000_000)),
            // Noon UTC is 17:30 in this zone.
            ("12:00", at(LOCAL_NOON, 0)),
            ("17:30:01", at(NOON + 1, 0)),
            ("1769860800", at(NOON, 0)),
            ("1769860800.5", at(NOON, 500_000_000)),
            ("1769860800.000000001", at(NOON, 1)),
        ] {
            assert_eq!(parsed(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_text_is_rejected_with_all_formats() {
        for text in [
            "",
            "yesterday",
            "-5m",
            "5m ago",
            "5",
            "60",
            "20260131",
            "1y",
            "1mo",
            "2026-01",
            "2026-13-01",
            "2026-01-31T25:00",
            "2026-01-31T12:00[Europe/Berlin]",
            "9999-01-01T00:00:00Z",
            "99999999999999999999",
            "1769860800.",
            "1769860800.1.2",
            "1769860800.0000000001",
            "1200",
            "25:00",
            "400y",
            "10000000w",
        ] {
            let wrong = parsed(text).expect_err(text);
            for form in ["5m", "1w", "2026-01-31)", "2026-01-31 12:00", "(12:00)", "RFC 3339", "Unix seconds"]
            {
                assert!(wrong.contains(form), "{form} in {wrong}");
            }
        }
    }

    #[test]
    fn relative_times_resolve_against_now() {
        let now = LogTime::from_parts(NOON, 0).unwrap();
        assert_eq!(
            TimeSpec::Ago(Duration::from_secs(60)).resolve(now),
            LogTime::from_parts(NOON - 60, 0).unwrap()
        );
        assert_eq!(at(1, 2).resolve(now), LogTime::from_parts(1, 2).unwrap());
    }
}
