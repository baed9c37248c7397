//! Reasons why a request is not forwarded, or gets no response of the provider.

use http::StatusCode;

use crate::model::label::label;

label! {
    /// The reason for a metric.
    pub(crate) enum FailureReason as "reason" {
        /// The request is malformed or ambiguous.
        BadRequest = "bad_request",
        /// The request body is too large.
        TooLarge = "too_large",
        /// The request body did not arrive in time.
        SlowRequest = "slow_request",
        /// Too many requests or tunnels are in progress.
        Busy = "busy",
        /// The provider cannot be reached.
        Connect = "connect",
        /// The provider's certificate is not trusted.
        Certificate = "certificate",
        /// The provider closed the connection before it responded, or its response is malformed.
        Broken = "broken",
        /// The provider did not respond in time.
        Timeout = "timeout",
    }
}

/// Why a request has no response of the provider. The text is for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    pub(crate) reason: FailureReason,
    pub(crate) text: &'static str,
}

impl Failure {
    pub(super) const TOO_LARGE: Self = Self {
        reason: FailureReason::TooLarge,
        text: "the request body is too large: at most 4 MiB are forwarded",
    };
    pub(super) const SLOW_REQUEST: Self = Self {
        reason: FailureReason::SlowRequest,
        text: "the request body did not arrive in time; send it again",
    };
    pub(super) const BUSY: Self = Self {
        reason: FailureReason::Busy,
        text: "the gateway forwards too many requests at present; try again later",
    };
    pub(super) const CONNECT: Self = Self {
        reason: FailureReason::Connect,
        text: "the provider behind this gateway cannot be reached; try again later",
    };
    pub(super) const CERTIFICATE: Self = Self {
        reason: FailureReason::Certificate,
        text: "the provider behind this gateway cannot be verified; tell the operator",
    };
    pub(super) const BROKEN: Self = Self {
        reason: FailureReason::Broken,
        text: "the provider behind this gateway sent no valid response; check whether the request took effect",
    };
    pub(super) const TIMEOUT: Self = Self {
        reason: FailureReason::Timeout,
        text: "the provider behind this gateway did not respond in time; check whether the request took effect",
    };

    pub(super) const fn bad_request(text: &'static str) -> Self {
        Self { reason: FailureReason::BadRequest, text }
    }

    /// Returns the HTTP status.
    pub(crate) const fn status(&self) -> StatusCode {
        match self.reason {
            FailureReason::BadRequest => StatusCode::BAD_REQUEST,
            FailureReason::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            FailureReason::SlowRequest => StatusCode::REQUEST_TIMEOUT,
            FailureReason::Busy => StatusCode::SERVICE_UNAVAILABLE,
            FailureReason::Connect | FailureReason::Certificate | FailureReason::Broken => {
                StatusCode::BAD_GATEWAY
            }
            FailureReason::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}
