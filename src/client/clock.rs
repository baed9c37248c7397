//! The gateway's clock, as far as a client can tell.
//!
//! Lines and starts of containers are stamped on the provider's machines, so `--since 5m` and ages are meant by a clock there, and
//! this machine's may be wrong by minutes. Every response carries the gateway's time in the header `date` (RFC 9110), in whole
//! seconds. A difference that this cannot tell from none is taken for none.

use std::time::Duration;

use jiff::fmt::rfc2822;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::model::time::LogTime;

/// How far a `date` may be behind the clock that it is from: it has whole seconds, and servers make it anew once a second.
const DATE_STALE_NANOS: i64 = 2_000_000_000;

/// How long the question for the time may take. Without an answer this machine's clock has to do.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Difference between the gateway's clock and this machine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClockOffset {
    /// What has to be added to this machine's time; rounded down, so that `--since` misses nothing.
    nanos: i64,
}

// === impl ClockOffset ===

impl ClockOffset {
    /// Asks for the gateway's time by its health check, which needs no permission. Any answer will do.
    pub(super) async fn ask(channel: Channel) -> Self {
        let asked = LogTime::now();
        let mut health = HealthClient::new(channel);
        let answer = tokio::time::timeout(ASK_TIMEOUT, health.check(HealthCheckRequest::default())).await;
        match answer {
            Ok(Ok(answer)) => Self::of(answer.metadata(), asked),
            Ok(Err(status)) => Self::of(status.metadata(), asked),
            Err(_) => Self::default(),
        }
    }

    /// Returns the difference that follows from a response that was asked for at `asked` and is here now; none if it has no
    /// `date`.
    pub(super) fn of(response: &MetadataMap, asked: LogTime) -> Self {
        let answered = LogTime::now();
        let date = response.get("date").and_then(|date| date.to_str().ok()).and_then(parse_date);
        date.map_or_else(Self::default, |date| Self::between(date, asked, answered))
    }

    /// Returns the difference that follows from `date` in a response that was made between `asked` and `answered` of this
    /// machine's clock.
    fn between(date: LogTime, asked: LogTime, answered: LogTime) -> Self {
        let date = date.as_nanos();
        // The gateway's clock was at `date` when the response was made, or up to two seconds ahead of it.
        let least = date.saturating_sub(answered.as_nanos());
        let most = date.saturating_add(DATE_STALE_NANOS).saturating_sub(asked.as_nanos());
        let nanos = if least > 0 || most < 0 { least } else { 0 };
        Self { nanos }
    }

    /// Returns the gateway's present time.
    pub(super) fn now(self) -> LogTime {
        LogTime::now().saturating_add_nanos(self.nanos)
    }
}

fn parse_date(text: &str) -> Option<LogTime> {
    LogTime::from_parts(rfc2822::parse(text).ok()?.timestamp().as_second(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: i64) -> LogTime {
        LogTime::from_nanos(millis * 1_000_000)
    }

    fn offset(date_s: i64, asked_ms: i64, answered_ms: i64) -> i64 {
        ClockOffset::between(millis(date_s * 1_000), millis(asked_ms), millis(answered_ms)).nanos / 1_000_000
    }

    #[test]
    fn offset_within_the_resolution_of_a_date_is_none() {
        // The same clock: the date is rounded down, and up to a second older still.
        assert_eq!(offset(100, 100_000, 100_010), 0);
        assert_eq!(offset(100, 101_990, 101_999), 0);
        // A slow way there and back.
        assert_eq!(offset(100, 95_000, 104_000), 0);
    }

    #[test]
    fn offset_beyond_it_is_rounded_down() {
        // This machine is ten minutes ahead: between 598 and 600.01 s.
        assert_eq!(offset(100, 700_000, 700_010), -600_010);
        // It is ten minutes behind.
        assert_eq!(offset(700, 100_000, 100_010), 599_990);
        assert_eq!(offset(100, 102_500, 102_510), -2_510);
        assert_eq!(offset(103, 102_500, 102_510), 490);
    }

    #[test]
    fn dates_are_read_as_http_has_them() {
        let date = parse_date("Sat, 31 Jan 2026 12:00:00 GMT");
        assert_eq!(date, LogTime::from_parts(1_769_860_800, 0));
        for wrong in ["", "now", "2026-01-31T12:00:00Z", "Sun, 31 Jan 2026 12:00:00 GMT"] {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
        let mut metadata = MetadataMap::new();
        assert_eq!(ClockOffset::of(&metadata, LogTime::now()), ClockOffset::default());
        metadata.insert("date", "Sat, 31 Jan 1970 12:00:00 GMT".parse().unwrap());
        let found = ClockOffset::of(&metadata, LogTime::now());
        assert!(found.now() < LogTime::from_parts(40 * 86_400, 0).unwrap(), "{found:?}");
    }
}
