//! The handshake: checks a request for an upgrade to a websocket, and makes the answer. Pure.
//!
//! Offers of subprotocols and extensions are ignored, so that none is in use.

use aws_lc_rs::digest;
use bytes::Bytes;
use data_encoding::BASE64;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Full;

/// Appended to the client's key before it is hashed (RFC 6455 §1.3).
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Length of the client's key in Base64: 16 bytes.
const KEY_TEXT_BYTES: usize = 24;

/// The version of RFC 6455.
const VERSION: &str = "13";

/// Why an upgrade is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(
        "this route is a websocket: send a GET request of HTTP/1.1 without a body, and ask for the upgrade"
    )]
    Method,
    #[error("this route is a websocket: send the headers `Connection: Upgrade` and `Upgrade: websocket`")]
    NotUpgrade,
    #[error("unsupported websocket version: send the header `Sec-WebSocket-Version: 13`")]
    Version,
    #[error("invalid websocket key: send one header `Sec-WebSocket-Key` with 16 bytes in Base64")]
    Key,
    #[error("the origin is not allowed: host and port of `Origin` must be those of `Host`")]
    Origin,
}

/// A valid request for an upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upgrade {
    accept: HeaderValue,
}

/// Checks whether the request asks for a websocket that may be opened.
pub(crate) fn check<B>(request: &Request<B>) -> Result<Upgrade, HandshakeError> {
    let headers = request.headers();
    // Bytes of a body would be read as frames, or delay the upgrade.
    if request.method() != Method::GET || request.version() != Version::HTTP_11 || has_body(headers) {
        return Err(HandshakeError::Method);
    }
    if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
        return Err(HandshakeError::NotUpgrade);
    }
    if !has_token(headers, SEC_WEBSOCKET_VERSION, VERSION) {
        return Err(HandshakeError::Version);
    }
    let accept = accept_key(headers).ok_or(HandshakeError::Key)?;
    // Pages cannot set the header of a token, but a browser may present a client certificate for them.
    if !is_same_origin(request.uri(), headers) {
        return Err(HandshakeError::Origin);
    }
    Ok(Upgrade { accept })
}

/// Whether the request announces a body.
fn has_body(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).into_iter();
    headers.contains_key(TRANSFER_ENCODING) || lengths.any(|length| length != "0")
}

/// Whether a header, which may be a list or repeated, has this token in any case.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Returns the answer to the client's key; `None` if there is not exactly one, or if it is malformed.
fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).into_iter();
    let key = keys.next().filter(|_| keys.next().is_none())?.as_bytes();
    if key.len() != KEY_TEXT_BYTES || BASE64.decode(key).is_err() {
        return None;
    }
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, ACCEPT_SUFFIX].concat());
    HeaderValue::try_from(BASE64.encode(hash.as_ref())).ok()
}

/// Whether each `Origin` that was sent has the host and port of `Host`. Compares the text, as the Akash
/// provider does: a default port that only one of them names is a difference.
pub(crate) fn is_same_origin(target: &Uri, headers: &HeaderMap) -> bool {
    let host = target.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.or_else(|| headers.get(HOST).map(HeaderValue::as_bytes));
    headers.get_all(ORIGIN).into_iter().all(|origin| {
        let origin = Uri::try_from(origin.as_bytes()).ok();
        let origin = origin.as_ref().filter(|uri| uri.scheme().is_some()).and_then(Uri::authority);
        origin.zip(host).is_some_and(|(origin, host)| origin.as_str().as_bytes().eq_ignore_ascii_case(host))
    })
}

// === impl Upgrade ===

impl Upgrade {
    /// Returns the answer with which the connection becomes a websocket.
    pub(crate) fn response<B: Default>(self) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        response
    }
}

// === impl HandshakeError ===

impl HandshakeError {
    pub(crate) fn status(self) -> StatusCode {
        if self == Self::Origin { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST }
    }

    /// Returns the answer with which the connection stays HTTP.
    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(format!("{self}\n")));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self != Self::Origin {
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::handshake::client::generate_request;
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    /// A request with the given headers instead of the usual ones; an empty value removes a header.
    fn request(changes: &[(&str, &str)]) -> Request<()> {
        let mut headers = vec![
            ("host", "provider.test:8443"),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", KEY),
        ];
        headers.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        headers.extend(changes.iter().filter(|(_, value)| !value.is_empty()));
        let mut request = Request::get("/lease/1/1/1/logs?follow=true");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn valid_request_is_accepted() {
        // Key and answer are the example of RFC 6455 §1.3.
        let response = check(&request(&[])).unwrap().response::<()>();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["upgrade"], "websocket");
        for changes in [
            [("connection", "keep-alive, UPGRADE"), ("upgrade", "WebSocket")],
            [("connection", "keep-alive"), ("connection", "upgrade")],
            [("sec-websocket-extensions", "permessage-deflate"), ("sec-websocket-protocol", "chat")],
            [("content-length", "0"), ("content-type", "application/json")],
        ] {
            let response = check(&request(&changes)).unwrap().response::<()>();
            assert_eq!(response.headers().len(), 3);
        }
    }

    #[test]
    fn invalid_requests_are_refused() {
        use HandshakeError::{Key, Method, NotUpgrade, Version};
        for (changes, error) in [
            ([("content-length", "5")].as_slice(), Method),
            (&[("transfer-encoding", "chunked")], Method),
            (&[("connection", "keep-alive")], NotUpgrade),
            (&[("connection", "")], NotUpgrade),
            (&[("upgrade", "h2c")], NotUpgrade),
            (&[("sec-websocket-version", "12")], Version),
            (&[("sec-websocket-version", "")], Version),
            (&[("sec-websocket-key", "")], Key),
            (&[("sec-websocket-key", "c2hvcnQ=")], Key),
            (&[("sec-websocket-key", "not base64, 24 byte long")], Key),
            (&[("sec-websocket-key", KEY), ("sec-websocket-key", KEY)], Key),
        ] {
            assert_eq!(check(&request(changes)), Err(error), "{changes:?}");
            let response = error.response();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST);
            assert_eq!(response.headers()["sec-websocket-version"], "13");
        }
        let mut post = request(&[]);
        *post.method_mut() = http::Method::POST;
        assert_eq!(check(&post), Err(Method));
    }

    #[test]
    fn origin_must_equal_host() {
        let with = |origin| check(&request(&[("origin", origin)])).map(|_| ());
        for same in ["https://provider.test:8443", "https://PROVIDER.test:8443", "http://provider.test:8443/"]
        {
            assert_eq!(with(same), Ok(()), "{same}");
        }
        for other in [
            "https://provider.test",
            "https://provider.test:8444",
            "https://evil.test:8443",
            "https://evil.test@provider.test:8443",
            "provider.test:8443",
            "null",
            "https://",
            "\u{fc}",
        ] {
            assert_eq!(with(other), Err(HandshakeError::Origin), "{other}");
        }
        assert_eq!(HandshakeError::Origin.response().status(), StatusCode::FORBIDDEN);
        let both = [("origin", "https://provider.test:8443"), ("origin", "https://evil.test")];
        assert_eq!(check(&request(&both)), Err(HandshakeError::Origin));
        let no_host = [("origin", "https://provider.test:8443"), ("host", "")];
        assert_eq!(check(&request(&no_host)), Err(HandshakeError::Origin));
    }

    #[test]
    fn answer_equals_that_of_tungstenite() {
        for _ in 0..20 {
            let mut client = Request::get("ws://provider.test/").body(()).unwrap();
            let key = tokio_tungstenite::tungstenite::handshake::client::generate_key();
            for (name, value) in [
                ("host", "x"),
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
            ] {
                client.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            client.headers_mut().insert(SEC_WEBSOCKET_KEY, key.parse().unwrap());
            assert!(generate_request(client.clone()).is_ok());
            let response = check(&client).unwrap().response::<()>();
            assert_eq!(response.headers()["sec-websocket-accept"], derive_accept_key(key.as_bytes()));
        }
    }
}
