//! Answers of the server.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

pub(super) type Reply = Response<Full<Bytes>>;

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
