//! All limits, with their units and reasons. Operators may change those in [`Limits`]; the others are fixed.

use std::time::Duration;

mod connection;
mod quota;

pub use self::connection::ConnectionLimits;
pub use self::quota::QuotaLimits;

/// Maximum log bytes of a chunk. With framing and cursor, the message stays just under 16 KiB: one HTTP/2
/// DATA frame of the size that clients advertise, and one TLS record.
pub const CHUNK_MAX_BYTES: usize = 16_000;

/// Maximum lines of a chunk. With a timestamp per line, the message stays under 32 KiB.
pub const CHUNK_MAX_LINES: usize = 512;

/// Maximum size of a piece of a line. A longer line is delivered in pieces. 16 pieces of 16 KiB, as container
/// runtimes write them.
pub const LINE_HELD_MAX_BYTES: usize = 256 * 1024;

/// Maximum bytes per read of a log file: large enough to amortize the system call, small enough that a busy
/// file does not starve the others.
pub const READ_MAX_BYTES: usize = 256 * 1024;

/// Maximum size of a piece of a line in a CRI log file, as containerd writes it. A longer line has several
/// records, tagged P (partial).
pub const CRI_PIECE_MAX_BYTES: usize = 16 * 1024;

/// Size of the portions in which a stream hands messages to HTTP/2: exactly three DATA frames of the size
/// that clients advertise, which the TLS stream sends in one write. Other sizes would need a large and a
/// small write.
pub const STREAM_SEND_MAX_BYTES: usize = 3 * 16 * 1024;

/// HTTP/2 accepts another portion of a stream until it holds this many bytes of it. One byte more than a
/// portion means two portions per task switch between the stream and its connection; more portions are not
/// cheaper. A follower that reads nothing keeps at most four portions of shared ring bytes alive (two held,
/// one waiting, one being sent), plus the rest of a message.
pub const STREAM_HELD_BYTES: usize = STREAM_SEND_MAX_BYTES + 1;

/// Maximum filters of a request: more than a lease has services.
pub const FILTERS_MAX: usize = 64;

/// Maximum replica indices in all filters of a request: one per replica that a stream may follow.
pub const FILTER_REPLICAS_MAX: usize = 1_024;

/// Maximum cursors of a request: one per replica that a stream may follow.
pub const CURSORS_MAX: usize = 1_024;

/// Maximum replicas of one stream. Clients rely on this number.
pub const STREAM_REPLICAS_MAX: usize = 1_024;

/// Maximum time that a caller can wait for a restart. The restart continues after that.
pub const RESTART_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// Maximum of the configurable token lifetime: one week. Akash's tools make tokens of 48 hours. For longer
/// access tenants use certificates, which can be revoked.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Maximum messages in the mailbox of an actor: a burst of new followers. Senders wait for space.
pub const MAILBOX_MESSAGES: usize = 64;

/// Maximum runs of one replica in a view. Older logs are no longer readable.
pub const RUNS_MAX: usize = 64;

/// Default time for which a gateway still serves after it reports that it is not ready, if readiness is
/// polled. Kubernetes removes a terminating pod from its endpoints within a second or two, and balancers poll
/// every few seconds.
pub const LAME_DUCK: Duration = Duration::from_secs(5);

/// Readiness counts as polled for this time after a request: probes come every 10 s by default, slow ones
/// twice a minute.
pub const POLLED_WITHIN: Duration = Duration::from_secs(60);

/// Limits that operators may change by flags. `docs/LIMITS.md` explains each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the ring of one replica, including its index: ten seconds of a busy service (400 KB/s).
    pub ring_max_bytes: usize,
    /// Time for which lines wait after a chunk was sent, so that they are sent together; zero = no wait. 5 ms
    /// are not noticeable, and bound a replica to 200 small messages per second.
    pub pace: Duration,
    /// Time for which an actor outlives its last follower, so that a reconnecting client finds the ring.
    pub actor_idle: Duration,
    /// A stream whose peer takes nothing for this time is reset.
    pub stall: Duration,
    /// Time for which calls are still served after readiness ends; `None` = [`LAME_DUCK`] if readiness is
    /// polled, otherwise zero.
    pub lame_duck: Option<Duration>,
    /// Time for streams to end after SIGTERM and the lame-duck time.
    pub drain: Duration,
    /// Interval of trust directory scans: bounds how long a removed certificate still counts if change
    /// notifications are missing.
    pub trust_poll: Duration,
    /// Maximum validity of a token, from `nbf` to `exp`. Tokens cannot be revoked, so this bounds the use of
    /// a stolen one. Akash's command line and Console request less than an hour. At most
    /// [`TOKEN_LIFETIME_MAX`].
    pub token_lifetime: Duration,
    /// Rejections of one peer per minute in the audit log, so that a peer cannot fill the disk; 0 = no limit.
    /// Equal to the authentication failures after which a peer is shut out.
    pub audit_refusals_per_minute: u32,
    /// Limits of connections.
    pub connection: ConnectionLimits,
    /// Limits of tenants.
    pub quota: QuotaLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ring_max_bytes: 4 * 1024 * 1024,
            pace: Duration::from_millis(5),
            actor_idle: Duration::from_secs(10),
            stall: Duration::from_secs(300),
            lame_duck: None,
            drain: Duration::from_secs(10),
            trust_poll: Duration::from_secs(5),
            token_lifetime: Duration::from_secs(3_600),
            audit_refusals_per_minute: 60,
            connection: ConnectionLimits::default(),
            quota: QuotaLimits::default(),
        }
    }
}
