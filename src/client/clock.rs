//! Estimates the gateway's clock.
//!
//! Times of lines and container starts are from the provider's machines, so `--since 5m` and ages refer to a
//! clock there; this machine's clock may be wrong by minutes. Every response carries the gateway's time in
//! the header `date` (RFC 9110), in whole seconds. A difference within that resolution counts as none.

use std::time::Duration;

use jiff::fmt::rfc2822;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::model::time::LogTime;

/// How much older than the response a `date` may be: it has whole seconds, and servers update it once a
/// second.
const DATE_STALE_NANOS: i64 = 2_000_000_000;

/// Limit on the query for the gateway's time. Without a response this machine's clock is used.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Difference between the gateway's clock and this machine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClockOffset {
    /// Added to this machine's time. Rounded down, so that `--since` misses nothing.
    nanos: i64,
}

// === impl ClockOffset ===

impl ClockOffset {
    /// Asks for the gateway's time by a health check, which needs no permission. Error responses count too.
    pub(super) async fn query(channel: Channel) -> Self {
        let sent = LogTime::now();
        let mut health = HealthClient::new(channel);
        let answer = tokio::time::timeout(QUERY_TIMEOUT, health.check(HealthCheckRequest::default())).await;
        match answer {
            Ok(Ok(answer)) => Self::from_response(answer.metadata(), sent),
            Ok(Err(status)) => Self::from_response(status.metadata(), sent),
            Err(_) => Self::default(),
        }
    }

    /// Returns the offset that follows from a response to a request sent at `sent` and received now; none
    /// without a `date`.
    pub(super) fn from_response(response: &MetadataMap, sent: LogTime) -> Self {
        let received = LogTime::now();
        let date = response.get("date").and_then(|date| date.to_str().ok()).and_then(parse_date);
        date.map_or_else(Self::default, |date| Self::between(date, sent, received))
    }

    /// Returns the offset that follows from `date` in a response made between `sent` and `received` by this
    /// machine's clock.
    fn between(date: LogTime, sent: LogTime, received: LogTime) -> Self {
        let date = date.as_nanos();
        // The gateway's clock was between `date` and two seconds later when the response was made.
        let least = date.saturating_sub(received.as_nanos());
        let most = date.saturating_add(DATE_STALE_NANOS).saturating_sub(sent.as_nanos());
        let nanos = if least > 0 || most < 0 { least } else { 0 };
        Self { nanos }
    }

    /// Returns the gateway's current time.
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

    fn offset(date_s: i64, sent_ms: i64, received_ms: i64) -> i64 {
        ClockOffset::between(millis(date_s * 1_000), millis(sent_ms), millis(received_ms)).nanos / 1_000_000
    }

    #[test]
    fn offset_within_date_resolution_is_zero() {
        // Equal clocks: the date is rounded down, and up to a second older still.
        assert_eq!(offset(100, 100_000, 100_010), 0);
        assert_eq!(offset(100, 101_990, 101_999), 0);
        // A slow round trip.
        assert_eq!(offset(100, 95_000, 104_000), 0);
    }

    #[test]
    fn offset_beyond_date_resolution_is_rounded_down() {
        // This machine is ten minutes ahead: between 598 and 600.01 s.
        assert_eq!(offset(100, 700_000, 700_010), -600_010);
        // It is ten minutes slow.
        assert_eq!(offset(700, 100_000, 100_010), 599_990);
        assert_eq!(offset(100, 102_500, 102_510), -2_510);
        assert_eq!(offset(103, 102_500, 102_510), 490);
    }

    #[test]
    fn http_date_is_parsed() {
        let date = parse_date("Sat, 31 Jan 2026 12:00:00 GMT");
        assert_eq!(date, LogTime::from_parts(1_769_860_800, 0));
        for wrong in ["", "now", "2026-01-31T12:00:00Z", "Sun, 31 Jan 2026 12:00:00 GMT"] {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
        let mut metadata = MetadataMap::new();
        assert_eq!(ClockOffset::from_response(&metadata, LogTime::now()), ClockOffset::default());
        metadata.insert("date", "Sat, 31 Jan 1970 12:00:00 GMT".parse().unwrap());
        let found = ClockOffset::from_response(&metadata, LogTime::now());
        assert!(found.now() < LogTime::from_parts(40 * 86_400, 0).unwrap(), "{found:?}");
    }
}
