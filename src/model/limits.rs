//! Every bound, with its unit and its reason. What an operator may change stands in [`Limits`]; the rest is fixed.

use std::time::Duration;

mod connection;
mod quota;

pub use self::connection::ConnectionLimits;
pub use self::quota::QuotaLimits;

/// Most log bytes in one chunk: with framing and cursor the message stays just under 16 KiB, which is one HTTP/2 DATA frame
/// of the size that clients advertise, and one TLS record.
pub const CHUNK_MAX_BYTES: usize = 16_000;

/// Most lines in one chunk: with a timestamp before each, the message still stays below 32 KiB.
pub const CHUNK_MAX_LINES: usize = 512;

/// Longest piece of a line that is handed on at a time. A longer line comes in several pieces. Sixteen of a runtime's own 16 KiB pieces.
pub const LINE_HELD_MAX_BYTES: usize = 256 * 1024;

/// Most log bytes read from a file at a time: enough to make the system call cheap, little enough for one loud file not to
/// starve quiet ones.
pub const READ_MAX_BYTES: usize = 256 * 1024;

/// Longest piece of a line in a CRI log file, as containerd writes them; a longer line is tagged P (partial) and goes on.
pub const CRI_PIECE_MAX_BYTES: usize = 16 * 1024;

/// A stream hands messages to HTTP/2 in portions of this many bytes: exactly three DATA frames of the size that clients advertise,
/// which the TLS stream sends in one write; a backlog handed over in other sizes leaves in a large and a small one.
pub const STREAM_SEND_MAX_BYTES: usize = 3 * 16 * 1024;

/// HTTP/2 takes a portion of a stream unless it holds this many bytes of it: so one more when it holds one, and a backlog leaves
/// two portions at a turn, for one change from the stream's task to the connection's and back. More are not cheaper. A follower
/// that reads nothing keeps up to four portions of the ring's bytes alive (two held, one waiting, one being sent) and the rest of
/// a message, and nothing of its own.
pub const STREAM_HELD_BYTES: usize = STREAM_SEND_MAX_BYTES + 1;

/// Most filters in a request: more services than a lease has.
pub const FILTERS_MAX: usize = 64;

/// Most replica indices in all filters of a request.
pub const FILTER_REPLICAS_MAX: usize = 1_024;

/// Most cursors in a request: one per replica that a stream may follow.
pub const CURSORS_MAX: usize = 1_024;

/// Most replicas that one stream follows.
pub const STREAM_REPLICAS_MAX: usize = 1_024;

/// The longest that a caller waits for a restart; it goes on without being waited for.
pub const RESTART_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// Longest lifetime of a token that an operator may allow: a week. Tools of Akash's make tokens of 48 hours; what should work
/// for longer than a week is a certificate, which can be revoked.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Most messages that wait in an actor's mailbox; whoever subscribes then waits for room.
pub const MAILBOX_MESSAGES: usize = 64;

/// Runs of one replica that a view names at most; older logs are no longer readable.
pub const RUNS_MAX: usize = 64;

/// How long a gateway that somebody polls serves on after it is no longer ready, unless told otherwise. Kubernetes takes a pod that ends
/// out of its endpoints within a second or two; balancers poll every few seconds.
pub const LAME_DUCK: Duration = Duration::from_secs(5);

/// Whoever asked for readiness within this polls it: probes come every 10 s by default, and slow ones twice a minute.
pub const POLLED_WITHIN: Duration = Duration::from_secs(60);

/// Bounds that an operator may change by flags. `docs/LIMITS.md` tells what each is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that the ring of one replica holds: frames and their line index. Ten seconds of a loud service (400 KB/s).
    pub ring_max_bytes: usize,
    /// After a chunk has left, further lines wait up to this long to leave together; zero = never wait.
    pub pace: Duration,
    /// How long an actor outlives its last follower, so that a reconnect finds its ring.
    pub actor_idle: Duration,
    /// A peer that takes nothing for this long is reset.
    pub stall: Duration,
    /// How long calls are still served after readiness is gone; `None` = [`LAME_DUCK`] if somebody polls it, else not at all.
    pub lame_duck: Option<Duration>,
    /// How long streams may take to end after a SIGTERM and the lame-duck time.
    pub drain: Duration,
    /// How long after a change to a trust directory running streams go on at most, should the system not tell of it.
    pub trust_poll: Duration,
    /// For how long a token may be valid in all, from `nbf` to `exp`: a stolen one is good for no longer, since none can be
    /// called back. An hour is more than Akash's command line and Console ask for; at most [`TOKEN_LIFETIME_MAX`].
    pub token_lifetime: Duration,
    /// Refusals of one peer per minute that the audit log tells, so that it fills no disk; 0 = all. As many as a peer may fail to say
    /// who it is, before it is shut out.
    pub audit_refusals_per_minute: u32,
    /// Of connections.
    pub connection: ConnectionLimits,
    /// Of what tenants use.
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
