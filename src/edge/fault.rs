//! Which ends of a connection are the peer's fault, and so count as failures of the peer like failed authentications.
//!
//! - An error of HTTP/2 that ends the whole connection, found by the library: its frames break the protocol
//!   (`PROTOCOL_ERROR`, `FRAME_SIZE_ERROR`, `FLOW_CONTROL_ERROR`, `COMPRESSION_ERROR`, `STREAM_CLOSED`) or are a flood
//!   (`ENHANCE_YOUR_CALM`: streams that are reset at once, streams that must be reset, headers or empty frames without end).
//! - The same announced by the peer: GOAWAY with an error code. The library then reports the peer's code in place of its own, so
//!   a flood behind such a frame could not be told from an honest end. Clients that close in order send `NO_ERROR`.
//! - TLS that breaks after the handshake.
//!
//! Everything else is not: a connection that is reset or vanishes, ends with or without `NO_ERROR`, or was closed by the gateway.

use std::error::Error as _;
use std::io;

use h2::Reason;

/// Whether this error, with which a connection ended, is the peer's fault.
pub(super) fn is_peers(error: &hyper::Error) -> bool {
    let cause = error.source();
    let Some(http) = cause.and_then(|cause| cause.downcast_ref::<h2::Error>()) else {
        return cause.and_then(|cause| cause.downcast_ref::<io::Error>()).is_some_and(breaks_tls);
    };
    match http.get_io() {
        Some(error) => breaks_tls(error),
        None => http.is_go_away() && http.reason().is_some_and(|reason| reason != Reason::NO_ERROR),
    }
}

/// The TLS stream uses `InvalidData` for what the TLS library rejects, and for nothing else.
fn breaks_tls(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}
