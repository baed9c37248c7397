//! Limits of connections, and of what a peer may do on them.

use std::time::Duration;

/// Limits of connections that operators may change by flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections of all peers. An idle one costs about 33 KiB and a descriptor, so these cost half a
    /// GiB.
    pub max: usize,
    /// Open connections of one peer (an IPv4 address, or a /64 of IPv6): a sixteenth of all, so that only
    /// many peers together can exclude others. A whole office may share an address, and a follower may use a
    /// connection per replica.
    pub max_per_peer: usize,
    /// Timeout of the TLS handshake: three round trips on a very slow link, with lost packets.
    pub handshake: Duration,
    /// Timeout of the first call after the handshake: clients connect in order to call.
    pub first_call: Duration,
    /// A connection without open calls is closed after this time. Watching health is an open call.
    pub idle: Duration,
    /// A silent peer gets a ping after this time. Pings also keep middleboxes from closing a quiet
    /// connection, which most do after some minutes.
    pub keepalive: Duration,
    /// Concurrent streams per connection: sharing one connection is the cheap way to follow many logs.
    pub streams: u32,
    /// Maximum header bytes of a request, as HTTP/2 counts them. The longest header is a token, of at most 8
    /// KiB.
    pub header_max_bytes: u32,
    /// Maximum bytes of a request message. The longest sensible one (1024 cursors) has about 150 KiB.
    pub request_max_bytes: usize,
    /// Receive window of each stream and of the connection: the largest request.
    pub window_bytes: u32,
    /// Calls that a peer may reset before the gateway has processed them, until the connection is closed: a
    /// defence against rapid resets (CVE-2023-44487). The default of hyper, and far more than a normal client
    /// does.
    pub pending_resets: usize,
    /// Streams that the gateway may reset because of protocol errors of the peer, until the connection is
    /// closed (CVE-2025-8671, RUSTSEC-2024-0003).
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
