//! Reasons why a request or call is not forwarded, or gets no response of the provider.

use http::StatusCode;

use crate::model::metrics::UpstreamFailure;

/// Why a request has no response of the provider. The text is for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    pub(crate) reason: UpstreamFailure,
    pub(crate) text: &'static str,
}

impl Failure {
    pub(super) const TOO_LARGE: Self = Self {
        reason: UpstreamFailure::TooLarge,
        text: "the request is too large: at most 4 MiB are forwarded",
    };
    pub(super) const SLOW_REQUEST: Self = Self {
        reason: UpstreamFailure::SlowRequest,
        text: "the request did not arrive in time; send it again",
    };
    pub(super) const BUSY: Self = Self {
        reason: UpstreamFailure::Busy,
        text: "the gateway forwards too many requests at present; try again later",
    };
    pub(super) const CONNECT: Self = Self {
        reason: UpstreamFailure::Connect,
        text: "the provider behind this gateway cannot be reached; try again later",
    };
    pub(super) const CERTIFICATE: Self = Self {
        reason: UpstreamFailure::Certificate,
        text: "the provider behind this gateway cannot be verified; inform its operator",
    };
    pub(super) const BROKEN: Self = Self {
        reason: UpstreamFailure::Broken,
        text: "the provider behind this gateway sent no valid response; check whether the request took effect",
    };
    pub(super) const TIMEOUT: Self = Self {
        reason: UpstreamFailure::Timeout,
        text: "the provider behind this gateway did not respond in time; check whether the request took effect",
    };

    pub(super) const fn bad_request(text: &'static str) -> Self {
        Self { reason: UpstreamFailure::BadRequest, text }
    }

    /// Returns the HTTP status.
    pub(crate) const fn status(&self) -> StatusCode {
        match self.reason {
            UpstreamFailure::BadRequest => StatusCode::BAD_REQUEST,
            UpstreamFailure::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            UpstreamFailure::SlowRequest => StatusCode::REQUEST_TIMEOUT,
            UpstreamFailure::Busy => StatusCode::SERVICE_UNAVAILABLE,
            UpstreamFailure::Connect | UpstreamFailure::Certificate | UpstreamFailure::Broken => {
                StatusCode::BAD_GATEWAY
            }
            UpstreamFailure::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}
