//! The end of a websocket: its close frame, and the notice before it.

use std::fmt::Write as _;
use std::time::Duration;

use tonic_types::StatusExt as _;

use crate::access::refusal::Refusal;
use crate::edge::errors::{CallError, of_end};
use crate::edge::websocket::Close;
use crate::model::label::LabelValue as _;
use crate::model::metrics::WebsocketEnd;
use crate::model::text::truncate;
use crate::platform;
use crate::stream::StreamEnd;

/// Maximum length of a reason: a control frame has 125 bytes, of which the code takes two.
const REASON_MAX_BYTES: usize = 123;

/// Everything was sent.
const NORMAL: u16 = 1000;
/// The gateway shuts down.
const GOING_AWAY: u16 = 1001;
/// Any other failure, as in the Akash provider.
const FAILED: u16 = 4000;
/// The lease was not found, or has ended.
const LEASE_NOT_FOUND: u16 = 4001;
/// The platform cannot be reached.
const CLUSTER_UNAVAILABLE: u16 = 4002;

/// Delay before a stream that lagged is resumed: it is not the gateway that needs time.
const LAG_RETRY_AFTER: Duration = Duration::from_millis(250);

/// The end of a websocket stream: a close frame, and the text that explains it to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) code: u16,
    /// At most 123 bytes.
    pub(crate) reason: String,
    /// The sentence of the notice before the close frame; empty if the stream ended normally.
    pub(crate) text: String,
    /// The reason code of gRPC's `ErrorInfo`; empty if there is none.
    pub(crate) error: String,
    /// Delay before another attempt; `None` if that would fail too.
    pub(crate) retry_after: Option<Duration>,
    /// For metrics.
    pub(crate) label: WebsocketEnd,
}

// === impl Ending ===

impl Ending {
    /// Returns the ending of a websocket whose request failed.
    pub(crate) fn of_error(error: &CallError) -> Self {
        let label = match error {
            CallError::Quota(_) => WebsocketEnd::Quota,
            CallError::Draining => WebsocketEnd::Drain,
            _ => WebsocketEnd::Error,
        };
        let (code, reason) = match error {
            CallError::NoLease | CallError::Platform(platform::Error::NotFound(_)) => {
                (LEASE_NOT_FOUND, "lease not found")
            }
            CallError::Missing(_) => (FAILED, "service not found"),
            CallError::Quota(exceeded) => (FAILED, exceeded.quota.label()),
            CallError::Draining => (GOING_AWAY, ""),
            CallError::Refused(_) | CallError::NoCredentialsBy(_) => (FAILED, "credentials refused"),
            CallError::Platform(error) if error.is_retryable() => {
                (CLUSTER_UNAVAILABLE, "cluster not reachable")
            }
            _ => (FAILED, ""),
        };
        Self::new(code, reason, &error.to_status(), label)
    }

    /// Returns the ending of a websocket whose stream ended.
    pub(crate) fn of_end(end: &StreamEnd) -> Self {
        let (code, reason) = match end {
            StreamEnd::Done => (NORMAL, ""),
            StreamEnd::LeaseEnded => (LEASE_NOT_FOUND, "lease ended"),
            StreamEnd::Lagged(_) => (FAILED, "follower lagged"),
            StreamEnd::Exceeded(exceeded) => (FAILED, exceeded.quota.label()),
            StreamEnd::Unreadable(_) => (CLUSTER_UNAVAILABLE, "cluster not reachable"),
            StreamEnd::Draining => (GOING_AWAY, ""),
            StreamEnd::Refused(_) => (FAILED, "credentials no longer valid"),
        };
        let label = match end {
            StreamEnd::Done => WebsocketEnd::Complete,
            StreamEnd::LeaseEnded => WebsocketEnd::LeaseEnded,
            StreamEnd::Draining => WebsocketEnd::Drain,
            StreamEnd::Exceeded(_) => WebsocketEnd::Quota,
            StreamEnd::Lagged(_) | StreamEnd::Unreadable(_) => WebsocketEnd::Error,
            StreamEnd::Refused(Refusal::TokenExpired | Refusal::CertificateExpired) => WebsocketEnd::Expired,
            StreamEnd::Refused(_) => WebsocketEnd::Revoked,
        };
        let mut ending = Self::new(code, reason, &of_end(end), label);
        if let StreamEnd::Lagged(buffer) = end {
            // The text for gRPC names cursors, which this protocol does not have.
            ending.text =
                format!("the stream lagged behind the buffer of {buffer} and was closed, as requested");
            ending.retry_after = Some(LAG_RETRY_AFTER);
        }
        ending
    }

    /// Creates the ending of a stream for which no replica runs, and that does not wait for one.
    pub(crate) fn no_running_pods() -> Self {
        let text = "no replica of a chosen service is deployed under this lease".to_owned();
        Self::failed("no running pods", text, "REPLICA_NOT_FOUND")
    }

    /// Creates the ending of a stream that selects a service whose name no service can have.
    pub(crate) fn unknown_service(name: &str) -> Self {
        Self::failed("service not found", format!("the lease has no service {name}"), "SERVICE_NOT_FOUND")
    }

    /// Returns the close frame.
    pub(crate) fn close(&self) -> Close {
        Close { code: self.code, reason: self.reason.clone().into(), end: self.label }
    }

    /// Appends lost lines or events, the `unit`, to the reason of a stream without notices.
    pub(crate) fn with_lost(mut self, count: u64, unit: &str) -> Self {
        if count > 0 {
            let separator = if self.reason.is_empty() { "" } else { "; " };
            let verb = if count == 1 { " was" } else { "s were" };
            let _ = write!(self.reason, "{separator}{count} {unit}{verb} missing");
            self.reason.truncate(truncate(&self.reason, REASON_MAX_BYTES).len());
        }
        self
    }

    fn failed(reason: &str, text: String, error: &str) -> Self {
        let (reason, error) = (reason.to_owned(), error.to_owned());
        Self { code: FAILED, reason, text, error, retry_after: None, label: WebsocketEnd::Error }
    }

    fn new(code: u16, reason: &str, status: &tonic::Status, label: WebsocketEnd) -> Self {
        let error = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let reason = truncate(reason, REASON_MAX_BYTES).to_owned();
        Self { code, reason, text: status.message().to_owned(), error, retry_after, label }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Replica;
    use crate::model::quota::{Exceeded, Quota, Subject};
    use crate::model::view::Missing;

    fn exceeded() -> Exceeded {
        let (quota, subject) = (Quota::StreamsPerOwner, Subject::Gateway);
        Exceeded { quota, subject, limit: 3, retry_after: None }
    }

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 0 }
    }

    #[test]
    fn failed_request_has_the_codes_of_the_provider() {
        let unavailable = || CallError::Platform(platform::Error::Unavailable("apiserver not ready".into()));
        let broken = || CallError::Platform(platform::Error::Broken("generic test error".into()));
        let missing = CallError::Missing(Missing::Service("web".parse().unwrap()));
        for (error, code, reason, name) in [
            (CallError::NoLease, 4001, "lease not found", "LEASE_NOT_FOUND"),
            (unavailable(), 4002, "cluster not reachable", "PLATFORM_UNAVAILABLE"),
            (broken(), 4000, "", "INTERNAL"),
            (missing, 4000, "service not found", "SERVICE_NOT_FOUND"),
            (CallError::Quota(exceeded()), 4000, "streams_per_owner", "QUOTA_USED_UP"),
            (CallError::Draining, 1001, "", "DRAINING"),
        ] {
            let close = Ending::of_error(&error);
            assert_eq!((close.code, close.reason.as_str(), close.error.as_str()), (code, reason, name));
            assert!(!close.text.is_empty() && !close.text.contains("test"), "{}", close.text);
        }
    }

    #[test]
    fn ended_stream_has_a_code_and_a_sentence() {
        for (end, code, reason) in [
            (StreamEnd::Done, 1000, ""),
            (StreamEnd::LeaseEnded, 4001, "lease ended"),
            (StreamEnd::Lagged("web/0".to_owned()), 4000, "follower lagged"),
            (StreamEnd::Exceeded(Box::new(exceeded())), 4000, "streams_per_owner"),
            (StreamEnd::Unreadable(vec![replica()]), 4002, "cluster not reachable"),
            (StreamEnd::Draining, 1001, ""),
            (StreamEnd::Refused(Refusal::CertificateRevoked), 4000, "credentials no longer valid"),
        ] {
            let close = Ending::of_end(&end);
            assert_eq!((close.code, close.reason.as_str()), (code, reason));
            assert_eq!(close.text.is_empty(), matches!(end, StreamEnd::Done), "{}", close.text);
        }
        assert!(!Ending::of_end(&StreamEnd::Lagged("web/0".to_owned())).text.contains("cursor"));
    }

    #[test]
    fn only_temporary_ends_have_a_delay() {
        for (end, is_temporary) in [
            (StreamEnd::LeaseEnded, false),
            (StreamEnd::Lagged("web/0".to_owned()), true),
            (StreamEnd::Unreadable(vec![replica()]), true),
            (StreamEnd::Draining, true),
            (StreamEnd::Refused(Refusal::TokenExpired), false),
            (StreamEnd::Refused(Refusal::TrustUnavailable), true),
        ] {
            assert_eq!(Ending::of_end(&end).retry_after.is_some(), is_temporary, "{end:?}");
        }
    }

    #[test]
    fn lost_lines_are_part_of_the_reason() {
        let close = |lines| Ending::of_end(&StreamEnd::LeaseEnded).with_lost(lines, "line").reason;
        assert_eq!(close(0), "lease ended");
        assert_eq!(close(1), "lease ended; 1 line was missing");
        assert_eq!(Ending::of_end(&StreamEnd::Done).with_lost(2, "event").reason, "2 events were missing");
        let long = Ending { reason: "ß".repeat(61), ..Ending::no_running_pods() };
        assert!(long.with_lost(u64::MAX, "line").reason.len() <= REASON_MAX_BYTES);
    }
}
