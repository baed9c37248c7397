//! Instants as people type them.

use std::time::Duration;

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};

use crate::model::time::LogTime;

/// Fewest digits of a number that is taken for Unix seconds: they reach back to 1973. A shorter number is more likely a time ago
/// without its unit, or a date without its dashes.
const UNIX_SECONDS_MIN_DIGITS: usize = 9;

/// What is accepted.
const FORMS: &str = "must be a time ago (5m, 1h30m, 2d, 1w), a date (2026-01-31), a local date and time \
    (2026-01-31 12:00), a time of today (12:00), an RFC 3339 instant (2026-01-31T12:00:00Z) or Unix seconds (1769860800)";

/// An instant: fixed, or relative to a present that is still to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// This one.
    At(LogTime),
    /// So long before the present.
    Ago(Duration),
}

// === impl Moment ===

impl Moment {
    /// Parses `text`. Dates and times without an offset are those of `zone`, and a time alone is that of the day of `now`.
    pub(super) fn parse(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Self, String> {
        let moment = ago(text)
            .map(Self::Ago)
            .or_else(|| fixed(text, zone, now).and_then(|instant| log_time(instant).map(Self::At)));
        moment.ok_or_else(|| FORMS.to_owned())
    }

    /// Parses `text` in the time zone of this machine.
    pub(super) fn parse_local(text: &str) -> Result<Self, String> {
        Self::parse(text, &TimeZone::system(), Timestamp::now())
    }

    /// Returns the instant, if it is `now`.
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

/// A length of time. Days have 24 hours, and weeks seven days.
fn ago(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    // jiff also reads `12:00:00`, which is a time of the day here.
    if text.contains(':') {
        return None;
    }
    // And `-5m`, `5m ago` and ISO 8601; the first two are negative.
    let span = text.parse::<Span>().ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    let duration: Duration = duration.try_into().ok()?;
    // Further back than instants reach.
    i64::try_from(duration.as_nanos()).ok().map(|_| duration)
}

fn fixed(text: &str, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return unix_seconds(text);
    }
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Some(instant);
    }
    // A zone's name would be passed over.
    if text.contains('[') {
        return None;
    }
    let local = if text.contains('-') {
        text.parse::<DateTime>().ok()?
    } else {
        let time = text.contains(':').then(|| text.parse::<Time>().ok()).flatten()?;
        now.to_zoned(zone.clone()).date().to_datetime(time)
    };
    // Of a time that a clock shows twice the first is meant.
    zone.to_zoned(local).ok().map(|zoned| zoned.timestamp())
}

/// Whole seconds, perhaps with a fraction.
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

    /// Half an hour off, as some zones are.
    const OFFSET: i32 = 5 * 3_600 + 1_800;

    fn parsed(text: &str) -> Result<Moment, String> {
        let zone = TimeZone::fixed(Offset::from_seconds(OFFSET).unwrap());
        Moment::parse(text, &zone, Timestamp::from_second(NOON).unwrap())
    }

    fn at(seconds: i64, nanos: i32) -> Moment {
        Moment::At(LogTime::from_parts(seconds, nanos).unwrap())
    }

    #[test]
    fn times_ago_are_read() {
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
            assert_eq!(parsed(text), Ok(Moment::Ago(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!(parsed("250ms"), Ok(Moment::Ago(Duration::from_millis(250))));
        assert_eq!(parsed("1.5h"), Ok(Moment::Ago(Duration::from_secs(5_400))));
    }

    #[test]
    fn fixed_instants_are_read() {
        const LOCAL_NOON: i64 = NOON - OFFSET as i64;
        for (text, expected) in [
            ("2026-01-31T12:00:00Z", at(NOON, 0)),
            ("2026-01-31 12:00:00Z", at(NOON, 0)),
            ("2026-01-31T13:00:00.5+01:00", at(NOON, 500_000_000)),
            ("2026-01-31T12:00Z", at(NOON, 0)),
            ("2026-01-31", at(LOCAL_NOON - 12 * 3_600, 0)),
            ("2026-01-31T12:00", at(LOCAL_NOON, 0)),
            ("2026-01-31 12:00:00.25", at(LOCAL_NOON, 250_000_000)),
            // At noon in London it is 17:30 there.
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
    fn other_texts_are_refused_with_every_form() {
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
    fn relative_instants_follow_the_present() {
        let now = LogTime::from_parts(NOON, 0).unwrap();
        assert_eq!(
            Moment::Ago(Duration::from_secs(60)).resolve(now),
            LogTime::from_parts(NOON - 60, 0).unwrap()
        );
        assert_eq!(at(1, 2).resolve(now), LogTime::from_parts(1, 2).unwrap());
    }
}
