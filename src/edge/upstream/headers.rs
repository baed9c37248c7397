//! Headers that belong to one connection, and do not pass a proxy (RFC 9110 §7.6.1).

use http::header::{
    CONNECTION, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

/// The only protocol to which a connection may be upgraded. An upgrade to HTTP/2 would tunnel requests past
/// the gateway.
pub(super) const WEBSOCKET: &str = "websocket";

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The headers of a connection that HTTP/2 forbids.
const OF_CONNECTION: [HeaderName; 5] = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE];

/// The headers of a connection in HTTP/1.1 only. gRPC needs `te: trailers` in each call.
const OF_HTTP1_CONNECTION: [HeaderName; 4] = [TE, TRAILER, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION];

/// Headers that `Connection` must not remove: they determine the recipient, the caller and the length.
const PROTECTED: [HeaderName; 3] =
    [http::header::HOST, http::header::AUTHORIZATION, http::header::CONTENT_LENGTH];

/// Removes the headers of an HTTP/1.1 connection, and those that `Connection` names.
pub(super) fn remove_of_http1(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !PROTECTED.contains(name))
        .collect();
    for name in named.iter().chain(&OF_CONNECTION).chain(&OF_HTTP1_CONNECTION) {
        headers.remove(name);
    }
}

/// Removes the headers that HTTP/2 forbids.
pub(super) fn remove_of_http2(headers: &mut HeaderMap) {
    for name in &OF_CONNECTION {
        headers.remove(name);
    }
}

/// Returns whether the headers upgrade the connection to a websocket.
pub(super) fn is_websocket_upgrade(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, WEBSOCKET)
}

/// Adds the headers that upgrade the connection to a websocket.
pub(super) fn add_websocket_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|one| one.eq_ignore_ascii_case(token))
}

/// Returns the elements of a header that is a list.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}
