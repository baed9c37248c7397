//! Times in a log.

use std::fmt;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// A time in a log: nanoseconds since the Unix epoch, between the years 1677 and 2262.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogTime(i64);

// === impl LogTime ===

impl LogTime {
    /// A time before every line.
    pub const MIN: Self = Self(i64::MIN);

    /// The latest time that can be represented.
    pub const MAX: Self = Self(i64::MAX);

    /// Creates a time from nanoseconds since the Unix epoch.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Creates a time from seconds and nanoseconds since the Unix epoch. Returns `None` if it is out of range
    /// or `nanos` is not below a second.
    pub fn from_parts(seconds: i64, nanos: i32) -> Option<Self> {
        let nanos = i64::from(nanos);
        if !(0..NANOS_PER_SECOND).contains(&nanos) {
            return None;
        }
        // `MIN` means "before every line".
        seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(nanos).filter(|all| *all != i64::MIN).map(Self)
    }

    /// Returns the current time of the system clock.
    pub fn now() -> Self {
        let nanos = jiff::Timestamp::now().as_nanosecond();
        Self(i64::try_from(nanos).unwrap_or(i64::MAX))
    }

    /// Returns nanoseconds since the Unix epoch.
    pub(crate) const fn as_nanos(self) -> i64 {
        self.0
    }

    /// Returns whole seconds since the Unix epoch, rounded down, and the remaining nanoseconds.
    pub const fn parts(self) -> (i64, i32) {
        #[expect(clippy::cast_possible_truncation, reason = "below 10^9")]
        (self.0.div_euclid(NANOS_PER_SECOND), self.0.rem_euclid(NANOS_PER_SECOND) as i32)
    }

    /// Returns the time `nanos` later, at most [`LogTime::MAX`].
    #[must_use]
    pub const fn saturating_add_nanos(self, nanos: i64) -> Self {
        Self(self.0.saturating_add(nanos))
    }
}

impl Default for LogTime {
    fn default() -> Self {
        Self::MIN
    }
}

/// RFC 3339 in UTC with nine fractional digits, like kubelets: `2026-11-23T12:00:00.000000001Z`.
impl fmt::Display for LogTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(self.0.into()) {
            Ok(stamp) => write!(f, "{stamp:.9}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl fmt::Debug for LogTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::MIN { f.write_str("MIN") } else { fmt::Display::fmt(self, f) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_trip() {
        for nanos in [0, 1, -1, 1_700_000_000_123_456_789, -1_700_000_000_000_000_001, i64::MAX] {
            let time = LogTime::from_nanos(nanos);
            let (seconds, below) = time.parts();
            assert_eq!(LogTime::from_parts(seconds, below), Some(time), "{nanos}");
        }
        assert_eq!(LogTime::from_parts(i64::MAX, 0), None);
        assert_eq!(LogTime::from_parts(0, 1_000_000_000), None);
        assert_eq!(LogTime::from_parts(0, -1), None);
    }

    #[test]
    fn time_displays_nine_digits() {
        assert_eq!(LogTime::from_nanos(1).to_string(), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(LogTime::from_nanos(NANOS_PER_SECOND).to_string(), "1970-01-01T00:00:01.000000000Z");
    }
}
