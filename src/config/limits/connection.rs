//! The bounds of connections.

use std::time::Duration;

use super::{TIMEOUT_MAX, TIMEOUT_MIN};
use crate::config::cli::ConnectionArgs;
use crate::config::faults::Resolver;
use crate::config::value::{duration, number, size};
use crate::model::limits::ConnectionLimits;

/// Most connections: as many as a process may have files, generously.
const CONNECTIONS_MAX: usize = 1 << 20;

/// Most streams of one connection.
const STREAMS_MAX: u32 = 65_536;

/// Smallest and largest bound of a request's headers: those of gRPC's clients alone are a few hundred bytes, and proxies stop at
/// a few dozen KiB.
const HEADER_BYTES: (u64, u64) = (4 << 10, 1 << 20);

/// Smallest and largest bound of a request: a lease and some filters, and nobody's honest request.
const REQUEST_BYTES: (u64, u64) = (4 << 10, 16 << 20);

/// Smallest and largest window: HTTP/2's own default, which no client expects less than, and what one peer may make the gateway
/// hold.
const WINDOW_BYTES: (u64, u64) = (65_535, 16 << 20);

/// Most resets that a connection may survive: beyond it the bound would be none.
const RESETS_MAX: usize = 100_000;

/// Shortest keepalive: below it pings would be the load.
const KEEPALIVE_MIN: Duration = Duration::from_secs(1);

pub(super) fn resolve(args: &ConnectionArgs, read: &mut Resolver<'_>) -> Option<ConnectionLimits> {
    let timeout = || duration(TIMEOUT_MIN..=TIMEOUT_MAX);
    let connections = || number(1..=CONNECTIONS_MAX);
    let resets = || number(1..=RESETS_MAX);
    let bytes = |(from, to): (u64, u64)| size(from..=to);
    let max = read.one("max_connections", args.max_connections.as_ref(), connections());
    let per_peer = args.max_connections_per_peer.as_ref();
    let max_per_peer = read.one("max_connections_per_peer", per_peer, connections());
    let handshake = read.one("handshake_timeout", args.handshake_timeout.as_ref(), timeout());
    let first_call = read.one("first_call_timeout", args.first_call_timeout.as_ref(), timeout());
    let idle = read.one("idle_timeout", args.idle_timeout.as_ref(), timeout());
    let keepalive = duration(KEEPALIVE_MIN..=TIMEOUT_MAX);
    let keepalive = read.one("keepalive_interval", args.keepalive_interval.as_ref(), keepalive);
    let streams = args.streams_per_connection.as_ref();
    let streams = read.one("streams_per_connection", streams, number(1..=STREAMS_MAX));
    let header = read.one("max_header_bytes", args.max_header_bytes.as_ref(), bytes(HEADER_BYTES));
    let request = read.one("max_request_bytes", args.max_request_bytes.as_ref(), bytes(REQUEST_BYTES));
    let window = read.one("receive_window", args.receive_window.as_ref(), bytes(WINDOW_BYTES));
    let pending_resets = read.one("max_pending_resets", args.max_pending_resets.as_ref(), resets());
    let error_resets = read.one("max_error_resets", args.max_error_resets.as_ref(), resets());
    Some(ConnectionLimits {
        max: max?,
        max_per_peer: max_per_peer?,
        handshake: handshake?,
        first_call: first_call?,
        idle: idle?,
        keepalive: keepalive?,
        streams: streams?,
        header_max_bytes: u32::try_from(header?).ok()?,
        request_max_bytes: usize::try_from(request?).ok()?,
        window_bytes: u32::try_from(window?).ok()?,
        pending_resets: pending_resets?,
        error_resets: error_resets?,
    })
}
