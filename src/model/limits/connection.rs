//! Limits of connections and their peers.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;

use super::{Limits, TIMEOUT, TIMEOUT_MAX};
use crate::model::parse::{duration, number, size};

/// Maximum number of connections. No process may open more files.
const CONNECTIONS_MAX: usize = 1 << 20;

/// Maximum number of streams of one connection.
const STREAMS_MAX: u32 = 65_536;

/// Sizes of a request's headers. gRPC clients send a few hundred bytes; proxies accept a few dozen KiB.
const HEADER_BYTES: RangeInclusive<u64> = 4 << 10..=1 << 20;

/// Sizes of a request message: a lease and some filters, far below the maximum.
const REQUEST_BYTES: RangeInclusive<u64> = 4 << 10..=16 << 20;

/// Sizes of a receive window: at least HTTP/2's default, which clients expect; at most what one peer may
/// occupy.
const WINDOW_BYTES: RangeInclusive<u64> = 65_535..=16 << 20;

/// Maximum number of resets, above which the limit would not protect.
const RESETS_MAX: usize = 100_000;

/// Minimum keepalive interval, below which pings would be a load.
const KEEPALIVE_MIN: Duration = Duration::from_secs(1);

/// Limits of connections that operators may change.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Limits of connections")]
pub struct ConnectionLimits {
    /// Maximum open connections; further ones are closed immediately
    // An idle one costs about 33 KiB and a descriptor, so these cost half a GiB.
    #[arg(long = "max-connections", value_name = "N", default_value = "16384", value_parser = number(1..=CONNECTIONS_MAX))]
    pub max: usize,
    /// Maximum open connections of one address (IPv6: of one /64); further ones are closed immediately
    // A sixteenth of all, so that only many peers together can exclude others. A whole office may share an
    // address, and a follower may use a connection per replica.
    #[arg(long = "max-connections-per-peer", value_name = "N", default_value = "1024", value_parser = number(1..=CONNECTIONS_MAX))]
    pub max_per_peer: usize,
    /// Close a connection whose TLS handshake takes longer
    // Three round trips on a very slow link, with lost packets.
    #[arg(long = "handshake-timeout", value_name = "TIME", default_value = "10s", value_parser = duration(TIMEOUT))]
    pub handshake: Duration,
    /// Close a connection that makes no call for this long after its handshake
    // Clients connect in order to call.
    #[arg(long = "first-call-timeout", value_name = "TIME", default_value = "10s", value_parser = duration(TIMEOUT))]
    pub first_call: Duration,
    /// Close a connection that has had no open call for this long
    // Watching health is an open call.
    #[arg(long = "idle-timeout", value_name = "TIME", default_value = "5m", value_parser = duration(TIMEOUT))]
    pub idle: Duration,
    /// Ping a peer that was silent for this long
    // Pings also keep middleboxes from closing a quiet connection, which most do after some minutes.
    #[arg(long = "keepalive-interval", value_name = "TIME", default_value = "1m", value_parser = duration(KEEPALIVE_MIN..=TIMEOUT_MAX))]
    pub keepalive: Duration,
    /// Maximum open streams of one connection
    // Sharing one connection is the cheap way to follow many logs.
    #[arg(long = "streams-per-connection", id = "streams_per_connection", value_name = "N", default_value = "256", value_parser = number(1..=STREAMS_MAX))]
    pub streams: u32,
    /// Maximum size of the headers of one request
    // As HTTP/2 counts them. The longest header is a token, of at most 8 KiB.
    #[arg(long = "max-header-bytes", value_name = "SIZE", default_value = "16KiB", value_parser = size::<u32>(HEADER_BYTES))]
    pub header_max_bytes: u32,
    /// Maximum size of one request message
    // The longest sensible one (1024 cursors) has about 150 KiB.
    #[arg(long = "max-request-bytes", value_name = "SIZE", default_value = "256KiB", value_parser = size::<usize>(REQUEST_BYTES))]
    pub request_max_bytes: usize,
    /// HTTP/2 receive window of each stream and each connection
    // The largest request.
    #[arg(long = "receive-window", value_name = "SIZE", default_value = "256KiB", value_parser = size::<u32>(WINDOW_BYTES))]
    pub window_bytes: u32,
    /// Close a connection after this many calls that were cancelled before they were handled
    // A defence against rapid resets (CVE-2023-44487). The default of hyper, and far more than a normal
    // client does.
    #[arg(long = "max-pending-resets", value_name = "N", default_value = "20", value_parser = number(1..=RESETS_MAX))]
    pub pending_resets: usize,
    /// Close a connection after this many streams that were reset for a protocol error
    // A defence against CVE-2025-8671 and RUSTSEC-2024-0003.
    #[arg(long = "max-error-resets", value_name = "N", default_value = "128", value_parser = number(1..=RESETS_MAX))]
    pub error_resets: usize,
}

/// The defaults of the flags.
impl Default for ConnectionLimits {
    fn default() -> Self {
        Limits::default().connection
    }
}
