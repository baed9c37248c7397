//! The end of a stream, as the page gets it: a last object, and a close frame.

use std::time::Duration;

use http::StatusCode;
use tonic::Code;

use crate::client::error::CallError;
use crate::edge::websocket::Close;
use crate::model::entry_json;
use crate::model::metrics::WebsocketEnd;

/// Everything was sent.
const NORMAL: u16 = 1000;
/// The gateway shuts down, or could not be reached.
const GOING_AWAY: u16 = 1001;
/// Another failure.
const FAILED: u16 = 4000;
/// The lease was not found, or has ended.
const LEASE_NOT_FOUND: u16 = 4001;

/// The word for a gateway that cannot be reached, which sends no reason.
const UNREACHABLE: &str = "GATEWAY_UNREACHABLE";

/// Delay before another attempt, if the gateway asked for none.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Why a stream ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    code: u16,
    reason: String,
    message: String,
    retry_after: Option<Duration>,
}

// === impl End ===

impl End {
    /// Returns the end of a stream that was sent completely.
    pub(super) fn complete() -> Self {
        Self { code: NORMAL, reason: String::new(), message: String::new(), retry_after: None }
    }

    /// Returns the end of a stream that failed.
    pub(super) fn failed(error: &CallError) -> Self {
        let is_retryable = error.is_retryable();
        let code = match error.code() {
            _ if error.is_lease_gone() => LEASE_NOT_FOUND,
            Code::Unavailable if is_retryable => GOING_AWAY,
            _ => FAILED,
        };
        Self {
            code,
            reason: reason(error),
            message: error.to_string(),
            retry_after: is_retryable.then(|| error.retry_after().unwrap_or(RETRY_AFTER)),
        }
    }

    /// Returns the last object of the stream; nothing if it is complete.
    pub(super) fn object(&self) -> Option<Vec<u8>> {
        (self.code != NORMAL).then(|| entry_json::end(&self.reason, &self.message, self.retry_after))
    }

    /// Returns the close frame.
    pub(super) fn close(&self) -> Close {
        let end = if self.code == NORMAL { WebsocketEnd::Complete } else { WebsocketEnd::Error };
        Close { code: self.code, reason: self.reason.clone().into(), end }
    }
}

/// Returns the word for an error.
pub(super) fn reason(error: &CallError) -> String {
    error
        .reason()
        .unwrap_or_else(|| if error.is_retryable() { UNREACHABLE.to_owned() } else { String::new() })
}

/// Returns the status of HTTP for an error.
pub(super) fn status(error: &CallError) -> StatusCode {
    match error.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::Unauthenticated | Code::PermissionDenied => StatusCode::UNAUTHORIZED,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::BAD_GATEWAY,
    }
}
