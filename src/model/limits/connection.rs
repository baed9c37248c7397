//! Of connections, and of what one peer may do over them.

use std::time::Duration;

/// Bounds of connections that an operator may change by flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at once, in all. An idle one costs some 33 KiB and a descriptor, so these cost half a GiB.
    pub max: usize,
    /// Connections at once from one peer address (an IPv4 address, or a /64 of IPv6): a sixteenth of all, so that it takes
    /// many to keep the others out. A whole office may stand behind one address, and a follower may have one for each replica.
    pub max_per_peer: usize,
    /// A connection must have completed its TLS handshake within this: three round trips on the worst link, and lost packets.
    pub handshake: Duration,
    /// It must then have made its first call within this.
    pub first_call: Duration,
    /// One without an open call is closed after this. Health being watched is an open call.
    pub idle: Duration,
    /// A peer that was silent for so long is asked for a sign of life; also keeps middle boxes from forgetting a quiet stream,
    /// most of which do after some minutes.
    pub keepalive: Duration,
    /// Streams at once on one connection: one connection for many streams is the cheap way to follow.
    pub streams: u32,
    /// Bytes of the headers of one request, as HTTP/2 counts them: a token is the longest, and has at most 8 KiB.
    pub header_max_bytes: u32,
    /// Bytes of one request message. The longest sensible one (1024 cursors) has some 150 KiB.
    pub request_max_bytes: usize,
    /// What a peer may send before it is read, for one stream and for all streams of the connection: the longest request.
    pub window_bytes: u32,
    /// Calls taken back before the gateway has seen them, until the connection is closed: against floods of calls that are
    /// taken back at once (CVE-2023-44487). hyper's default, and far more than any client does in good faith.
    pub pending_resets: usize,
    /// Streams that the gateway itself had to reset since the peer broke the protocol, until the connection is closed
    /// (CVE-2025-8671, and RUSTSEC-2024-0003).
    pub error_resets: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max: 16_384,
            max_per_peer: 1_024,
            handshake: Duration::from_secs(10),
            first_call: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            keepalive: Duration::from_secs(60),
            streams: 256,
            header_max_bytes: 16 * 1024,
            request_max_bytes: 256 * 1024,
            window_bytes: 256 * 1024,
            pending_resets: 20,
            error_resets: 128,
        }
    }
}
