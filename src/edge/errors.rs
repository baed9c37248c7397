//! **The one table** of errors: the gRPC code, text and details of each.
//!
//! Texts are for callers. They name the field, quota or object, and nothing internal. Internal errors go to
//! the log under an id that the text repeats.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, QuotaViolation, StatusExt as _};

use super::upstream::failure::Failure;
use crate::access::refusal::{Refusal, RefusalKind};
use crate::model::id::Replica;
use crate::model::label::LabelValue as _;
use crate::model::metrics::UpstreamFailure;
use crate::model::quota::Exceeded;
use crate::model::view::Missing;
use crate::platform;
use crate::restart::RequestError;
use crate::stream::StreamEnd;

/// Domain of the reasons in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "leasemux";

/// Supported encodings of request messages, by their gRPC names.
const ENCODINGS: &str = "identity,gzip";

/// Retry-after hint of temporary errors.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Callers of a draining gateway get a retry-after hint that is longer by up to this, each by a random part.
/// They reconnect over a second, because one core completes about a thousand handshakes in a second.
const RETRY_SPREAD: Duration = Duration::from_secs(1);

/// Reason of errors that the platform may recover from.
const PLATFORM_UNAVAILABLE: &str = "PLATFORM_UNAVAILABLE";

/// Most replicas that a message names; the rest are counted. A status travels in headers, which are small.
const NAMED_MAX: usize = 8;

/// Why a call failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The request is invalid.
    BadRequest {
        /// Path of the field; empty for the request as a whole.
        field: String,
        description: String,
    },
    /// The caller is not authenticated or not authorised.
    Refused(Refusal),
    /// No credentials, on a connection to this public host, where clients are not asked for a certificate.
    NoCredentialsBy(Arc<str>),
    /// The lease does not exist. Callers that do not own it get `Refused` instead.
    NoLease,
    /// The lease has no such service or replica.
    Missing(Missing),
    /// No selected replica has a previous run.
    NoPreviousRun,
    /// A quota is used up.
    Quota(Exceeded),
    /// The gateway is shutting down.
    Draining,
    Platform(platform::Error),
    /// The feature is not supported.
    Unimplemented(&'static str),
    /// The compression of the request is not supported.
    Encoding,
    /// The request did not arrive in time.
    RequestTimeout,
    /// The call can only be made at the provider itself, which has this address.
    CallDirectly(Arc<str>),
    /// The provider behind the gateway gave no response.
    Upstream(Failure),
}

// === impl CallError ===

impl CallError {
    /// Creates an error about one field of the request.
    pub(super) fn field(field: impl Into<String>, description: impl fmt::Display) -> Self {
        Self::BadRequest { field: field.into(), description: description.to_string() }
    }

    /// Creates an error about the request as a whole.
    pub(super) fn request(description: impl fmt::Display) -> Self {
        Self::field("", description)
    }

    /// Returns the status for the caller.
    pub(crate) fn to_status(&self) -> Status {
        match self {
            Self::BadRequest { field, description } => bad_request(field, description),
            Self::Refused(refusal) => refused(*refusal),
            Self::NoCredentialsBy(host) => {
                let refusal = Refusal::NoCredentials;
                let text = format!(
                    "{refusal}; {host} does not ask for a certificate: connect to mtls.{host} to use one"
                );
                status(Code::Unauthenticated, text, refusal.reason())
            }
            Self::NoLease => {
                status(Code::NotFound, "the lease does not exist on this gateway", "LEASE_NOT_FOUND")
            }
            Self::Missing(Missing::Service(service)) => {
                status(Code::NotFound, format!("the lease has no service {service}"), "SERVICE_NOT_FOUND")
            }
            Self::Missing(Missing::Replica(replica)) => {
                let (service, index) = (&replica.service, replica.index);
                let text = format!("service {service} has no replica {index}");
                status(Code::NotFound, text, "REPLICA_NOT_FOUND")
            }
            Self::NoPreviousRun => {
                let text = "previous: no selected replica has restarted, so there is no previous log";
                status(Code::NotFound, text, "PREVIOUS_NOT_FOUND")
            }
            Self::Quota(exceeded) => quota_used_up(exceeded),
            Self::Draining => draining(),
            Self::Platform(error) => platform_failed(error),
            Self::Unimplemented(text) => status(Code::Unimplemented, *text, "NOT_OFFERED"),
            Self::Encoding => {
                let text = format!("grpc-encoding: the request must be compressed with one of {ENCODINGS}");
                let mut status = status(Code::Unimplemented, text, "NOT_OFFERED");
                status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static(ENCODINGS));
                status
            }
            Self::CallDirectly(address) => {
                let text = format!(
                    "bind_tls: the quote would be bound to the TLS connection of this gateway; call {address}, \
                     where the provider terminates TLS"
                );
                status(Code::FailedPrecondition, text, "CALL_PROVIDER_DIRECTLY")
            }
            Self::Upstream(failure) => upstream_failed(*failure),
            Self::RequestTimeout => {
                status(Code::DeadlineExceeded, "the request did not arrive in time", "REQUEST_TIMEOUT")
            }
        }
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Exceeded> for CallError {
    fn from(exceeded: Exceeded) -> Self {
        Self::Quota(exceeded)
    }
}

impl From<RequestError> for CallError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::RequestIdReused => {
                Self::field("request_id", "was used within the last hour for another lease or other replicas")
            }
            RequestError::QuotaExceeded(exceeded) => exceeded.into(),
            RequestError::LockUnavailable(reason) => Self::Platform(platform::Error::Unavailable(format!(
                "restart lock is not available: {reason}"
            ))),
            RequestError::ShuttingDown => Self::Draining,
        }
    }
}

/// Returns the status with which a stream ends.
pub(super) fn of_end(end: &StreamEnd) -> Status {
    match end {
        StreamEnd::Done => Status::new(Code::Ok, ""),
        StreamEnd::LeaseEnded => status(Code::NotFound, "the lease has ended", "LEASE_ENDED"),
        StreamEnd::Lagged(buffer) => {
            let text = format!(
                "the stream lagged behind the buffer of {buffer} and was closed, as requested (on_lag = CLOSE); \
                 resume from the cursors of the last response"
            );
            status(Code::ResourceExhausted, text, "FOLLOWER_LAGGED")
        }
        StreamEnd::Exceeded(exceeded) => quota_used_up(exceeded),
        StreamEnd::Unreadable(replicas) => unreadable(replicas),
        StreamEnd::Draining => draining(),
        StreamEnd::Refused(refusal) => refused(*refusal),
    }
}

fn bad_request(field: &str, description: &str) -> Status {
    let text = if field.is_empty() { description.to_owned() } else { format!("{field}: {description}") };
    let mut details = with_reason("INVALID_REQUEST");
    details.add_bad_request_violation(field, description);
    Status::with_error_details(Code::InvalidArgument, text, details)
}

fn refused(refusal: Refusal) -> Status {
    let code = match refusal.kind() {
        RefusalKind::Unauthenticated => Code::Unauthenticated,
        RefusalKind::PermissionDenied => Code::PermissionDenied,
        RefusalKind::Unavailable => Code::Unavailable,
        RefusalKind::Exhausted => Code::ResourceExhausted,
    };
    let mut details = with_reason(refusal.reason());
    if matches!(code, Code::Unavailable | Code::ResourceExhausted) {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    Status::with_error_details(code, refusal.to_string(), details)
}

fn quota_used_up(exceeded: &Exceeded) -> Status {
    let mut details = ErrorDetails::new();
    let metadata = HashMap::from([("quota".to_owned(), exceeded.quota.label().to_owned())]);
    details.set_error_info("QUOTA_USED_UP", DOMAIN, metadata);
    let mut violation = QuotaViolation::new(exceeded.subject.to_string(), exceeded.to_string());
    violation.api_service = DOMAIN.into();
    violation.quota_id = exceeded.quota.label().into();
    violation.quota_value = i64::try_from(exceeded.limit).unwrap_or(i64::MAX);
    details.set_quota_failure(vec![violation]);
    if exceeded.retry_after.is_some() {
        details.set_retry_info(exceeded.retry_after);
    }
    Status::with_error_details(Code::ResourceExhausted, exceeded.to_string(), details)
}

fn draining() -> Status {
    let spread = RETRY_SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
    unavailable("the gateway is shutting down; call again", "DRAINING", RETRY_AFTER + spread)
}

fn platform_failed(error: &platform::Error) -> Status {
    if let platform::Error::NotFound(_) = error {
        return CallError::NoLease.to_status();
    }
    let id = uuid::Uuid::new_v4();
    tracing::error!(%id, error = error as &dyn std::error::Error, "platform request failed");
    if error.is_retryable() {
        let text = format!("lease state is temporarily unavailable (error {id})");
        return unavailable(text, PLATFORM_UNAVAILABLE, RETRY_AFTER);
    }
    status(Code::Internal, format!("internal error {id}"), "INTERNAL")
}

fn upstream_failed(Failure { reason, text }: Failure) -> Status {
    match reason {
        // The call had no effect.
        UpstreamFailure::Connect | UpstreamFailure::Certificate | UpstreamFailure::Busy => {
            unavailable(text, "UPSTREAM_UNAVAILABLE", RETRY_AFTER)
        }
        UpstreamFailure::Broken => status(Code::Unavailable, text, "UPSTREAM_UNAVAILABLE"),
        UpstreamFailure::Timeout => status(Code::DeadlineExceeded, text, "UPSTREAM_TIMEOUT"),
        UpstreamFailure::SlowRequest => status(Code::DeadlineExceeded, text, "REQUEST_TIMEOUT"),
        UpstreamFailure::BadRequest | UpstreamFailure::TooLarge => bad_request("", text),
    }
}

fn unreadable(replicas: &[Replica]) -> Status {
    let mut named: Vec<String> = replicas.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if replicas.len() > NAMED_MAX {
        named.push(format!("{} more", replicas.len() - NAMED_MAX));
    }
    let text = format!(
        "logs of {} are temporarily unavailable; call again, from the cursors of the last response if there are any",
        named.join(", ")
    );
    unavailable(text, PLATFORM_UNAVAILABLE, RETRY_AFTER)
}

fn unavailable(text: impl Into<String>, reason: &str, retry_after: Duration) -> Status {
    let mut details = with_reason(reason);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::Unavailable, text, details)
}

fn status(code: Code, text: impl Into<String>, reason: &str) -> Status {
    Status::with_error_details(code, text, with_reason(reason))
}

fn with_reason(reason: &str) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, HashMap::new());
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_of_a_draining_gateway_retry_at_random_times() {
        let wait = || draining().get_details_retry_info().and_then(|info| info.retry_delay).unwrap();
        let mut waits: Vec<Duration> = (0..100).map(|_| wait()).collect();
        waits.sort();
        assert!(waits[0] >= RETRY_AFTER && waits[99] <= RETRY_AFTER + RETRY_SPREAD, "{waits:?}");
        waits.dedup();
        assert!(waits.len() > 90, "{waits:?}");
    }
}
