//! Answers of the server. All have the headers that restrict the page.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

pub(super) type Reply = Response<Full<Bytes>>;

/// The page loads its own files and calls its own server, and nothing else: log lines are untrusted.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'";

const JSON: &str = "application/json; charset=utf-8";

/// The body of a failed request.
#[derive(Serialize)]
struct ErrorBody<'a> {
    reason: &'a str,
    message: &'a str,
}

pub(super) fn of(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

pub(super) fn json(body: impl Into<Bytes>) -> Reply {
    of(StatusCode::OK, JSON, body)
}

/// Returns the answer to a failed request. `reason` is a word for programs, `message` a sentence.
pub(super) fn error(status: StatusCode, reason: &str, message: &str) -> Reply {
    of(status, JSON, serde_json::to_vec(&ErrorBody { reason, message }).unwrap_or_default())
}

/// Adds the headers that all answers have.
pub(super) fn restrict(headers: &mut HeaderMap) {
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
