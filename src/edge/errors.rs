//! **The one table** from what went wrong to what a caller is told: gRPC code, words, and details.
//!
//! The words name the field, quota or thing, and hold nothing internal; what is internal goes to the log under an id that the
//! words repeat.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, QuotaViolation, StatusExt as _};

use crate::access::refusal::{self, Refusal};
use crate::model::id::Replica;
use crate::model::quota::Exceeded;
use crate::model::view::Missing;
use crate::platform;
use crate::stream::StreamEnd;

/// Domain of the reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "leasemux";

/// Encodings of a request message that are supported, as gRPC names them.
const ENCODINGS: &str = "identity,gzip";

/// How long a caller should wait before trying again what is unavailable.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Those who are sent away by a gateway's end are asked to wait up to so much longer, each differently: they come back one after
/// another, and a thousand handshakes in a second are what one core can do.
const RETRY_SPREAD: Duration = Duration::from_secs(1);

/// Reason of what the platform cannot answer at the moment.
const PLATFORM_UNAVAILABLE: &str = "PLATFORM_UNAVAILABLE";

/// Replicas that a message names; the rest are counted. A status travels in headers, which are small.
const NAMED_MAX: usize = 8;

/// Why a call failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The request makes no sense.
    BadRequest {
        /// The field, as a path; empty if it is the request as a whole.
        field: String,
        /// What is wrong with it.
        description: String,
    },
    /// The caller may not.
    Refused(Refusal),
    /// No credentials, over a connection that asked for this public host, where clients are not asked for a certificate.
    NoCredentialsBy(Arc<str>),
    /// There is no such lease here, and it is the caller's own.
    NoLease,
    /// The lease has no such service or replica.
    Missing(Missing),
    /// No wanted replica was ever run before.
    NoPreviousRun,
    /// A quota is used up.
    Quota(Exceeded),
    /// The gateway is ending.
    Draining,
    /// The platform did not answer.
    Platform(platform::Error),
    /// Not offered.
    Unimplemented(&'static str),
    /// The request is compressed in a way that is not supported.
    Encoding,
    /// Too slow in sending the request.
    RequestTimeout,
}

// === impl CallError ===

impl CallError {
    /// A fault in one field of the request.
    pub fn field(field: impl Into<String>, description: impl fmt::Display) -> Self {
        Self::BadRequest { field: field.into(), description: description.to_string() }
    }

    /// A fault of the request as a whole.
    pub fn request(description: impl fmt::Display) -> Self {
        Self::field("", description)
    }

    /// What the caller is told.
    pub fn to_status(&self) -> Status {
        match self {
            Self::BadRequest { field, description } => bad_request(field, description),
            Self::Refused(refusal) => refused(*refusal),
            Self::NoCredentialsBy(host) => {
                let refusal = Refusal::NoCredentials;
                let words = format!(
                    "{refusal}; {host} does not ask for a certificate: connect to mtls.{host} to use one"
                );
                status(Code::Unauthenticated, words, refusal.reason())
            }
            Self::NoLease => status(Code::NotFound, "the lease is not here", "LEASE_NOT_FOUND"),
            Self::Missing(Missing::Service(service)) => {
                status(Code::NotFound, format!("the lease has no service {service}"), "SERVICE_NOT_FOUND")
            }
            Self::Missing(Missing::Replica(replica)) => {
                let (service, index) = (&replica.service, replica.index);
                let words = format!("service {service} has no replica {index}");
                status(Code::NotFound, words, "REPLICA_NOT_FOUND")
            }
            Self::NoPreviousRun => {
                let words = "previous: no chosen replica was ever restarted, so there is no earlier log";
                status(Code::NotFound, words, "PREVIOUS_NOT_FOUND")
            }
            Self::Quota(exceeded) => quota_used_up(exceeded),
            Self::Draining => draining(),
            Self::Platform(error) => platform_failed(error),
            Self::Unimplemented(what) => status(Code::Unimplemented, *what, "NOT_OFFERED"),
            Self::Encoding => {
                let words = format!("grpc-encoding: the request must be compressed with one of {ENCODINGS}");
                let mut status = status(Code::Unimplemented, words, "NOT_OFFERED");
                status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static(ENCODINGS));
                status
            }
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

/// What a stream's end is told as.
pub fn of_end(end: &StreamEnd) -> Status {
    match end {
        StreamEnd::Complete => Status::new(Code::Ok, ""),
        StreamEnd::LeaseEnded => status(Code::NotFound, "the lease has ended", "LEASE_ENDED"),
        StreamEnd::Lagged(replica) => {
            let words = format!(
                "the stream fell behind the buffer of {replica} and asked to be closed then (on_lag = CLOSE); \
                 go on from the cursors of the last response"
            );
            status(Code::ResourceExhausted, words, "FOLLOWER_LAGGED")
        }
        StreamEnd::Exceeded(exceeded) => quota_used_up(exceeded),
        StreamEnd::Unreadable(replicas) => unreadable(replicas),
        StreamEnd::Draining => draining(),
        StreamEnd::Refused(refusal) => refused(*refusal),
    }
}

fn bad_request(field: &str, description: &str) -> Status {
    let words = if field.is_empty() { description.to_owned() } else { format!("{field}: {description}") };
    let mut details = with_reason("INVALID_REQUEST");
    details.add_bad_request_violation(field, description);
    Status::with_error_details(Code::InvalidArgument, words, details)
}

fn refused(refusal: Refusal) -> Status {
    let code = match refusal.kind() {
        refusal::RefusalKind::Unauthenticated => Code::Unauthenticated,
        refusal::RefusalKind::PermissionDenied => Code::PermissionDenied,
        refusal::RefusalKind::Unavailable => Code::Unavailable,
        refusal::RefusalKind::Exhausted => Code::ResourceExhausted,
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
    let mut details = with_reason("DRAINING");
    let spread = RETRY_SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
    details.set_retry_info(Some(RETRY_AFTER + spread));
    Status::with_error_details(Code::Unavailable, "the gateway is shutting down; call again", details)
}

fn platform_failed(error: &platform::Error) -> Status {
    if let platform::Error::NotFound(_) = error {
        return CallError::NoLease.to_status();
    }
    let id = uuid::Uuid::new_v4();
    tracing::error!(%id, error = error as &dyn std::error::Error, "platform failed");
    if error.is_retryable() {
        let mut details = with_reason(PLATFORM_UNAVAILABLE);
        details.set_retry_info(Some(RETRY_AFTER));
        let words = format!("what runs under the lease cannot be found out at present (error {id})");
        return Status::with_error_details(Code::Unavailable, words, details);
    }
    status(Code::Internal, format!("internal error {id}"), "INTERNAL")
}

fn unreadable(replicas: &[Replica]) -> Status {
    let mut named: Vec<String> = replicas.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if replicas.len() > NAMED_MAX {
        named.push(format!("{} more", replicas.len() - NAMED_MAX));
    }
    let mut details = with_reason(PLATFORM_UNAVAILABLE);
    details.set_retry_info(Some(RETRY_AFTER));
    let words = format!(
        "the logs of {} cannot be read at the moment; call again, from the cursors of the last response if there are any",
        named.join(", ")
    );
    Status::with_error_details(Code::Unavailable, words, details)
}

fn status(code: Code, words: impl Into<String>, reason: &str) -> Status {
    Status::with_error_details(code, words, with_reason(reason))
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
    fn those_sent_away_together_do_not_come_back_together() {
        let wait = || draining().get_details_retry_info().and_then(|info| info.retry_delay).unwrap();
        let mut waits: Vec<Duration> = (0..100).map(|_| wait()).collect();
        waits.sort();
        assert!(waits[0] >= RETRY_AFTER && waits[99] <= RETRY_AFTER + RETRY_SPREAD, "{waits:?}");
        waits.dedup();
        assert!(waits.len() > 90, "{waits:?}");
    }
}
