//! All limits, with their units and reasons. Operators may change those in [`Limits`], which defines their
//! flags; the others are fixed.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Parser;

use super::parse::{duration, number, size};

mod connection;
mod quota;

pub use self::connection::ConnectionLimits;
pub use self::quota::QuotaLimits;

/// Maximum log bytes of a chunk. With framing and cursor, the message stays just under 16 KiB: one HTTP/2
/// DATA frame of the size that clients advertise, and one TLS record.
pub(crate) const CHUNK_MAX_BYTES: usize = 16_000;

/// Maximum lines of a chunk. With a timestamp per line, the message stays under 32 KiB.
pub(crate) const CHUNK_MAX_LINES: usize = 512;

/// Maximum size of a piece of a line. A longer line is delivered in pieces. 16 pieces of 16 KiB, as container
/// runtimes write them.
pub(crate) const LINE_HELD_MAX_BYTES: usize = 256 * 1024;

/// Maximum bytes per read of a log file: large enough to amortize the system call, small enough that a busy
/// file does not starve the others.
pub const READ_MAX_BYTES: usize = 256 * 1024;

/// Maximum size of a piece of a line in a CRI log file, as containerd writes it. A longer line has several
/// records, tagged P (partial).
pub(crate) const CRI_PIECE_MAX_BYTES: usize = 16 * 1024;

/// Size of the portions in which a stream hands messages to HTTP/2: exactly three DATA frames of the size
/// that clients advertise, which the TLS stream sends in one write. Other sizes would need a large and a
/// small write.
pub(crate) const STREAM_SEND_MAX_BYTES: usize = 3 * 16 * 1024;

/// HTTP/2 accepts another portion of a stream until it holds this many bytes of it. One byte more than a
/// portion means two portions per task switch between the stream and its connection; more portions are not
/// cheaper. A follower that reads nothing keeps at most four portions of shared ring bytes alive (two held,
/// one waiting, one being sent), plus the rest of a message.
pub(crate) const STREAM_HELD_BYTES: usize = STREAM_SEND_MAX_BYTES + 1;

/// Maximum filters of a request: more than a lease has services.
pub const FILTERS_MAX: usize = 64;

/// Maximum replica indices in all filters of a request: one per replica that a stream may follow.
pub const FILTER_REPLICAS_MAX: usize = 1_024;

/// Maximum cursors of a request: one per replica that a stream may follow.
pub const CURSORS_MAX: usize = 1_024;

/// Maximum replicas of one stream. Clients rely on this number.
pub const STREAM_REPLICAS_MAX: usize = 1_024;

/// Values of a heartbeat interval. Below the minimum, heartbeats of silent replicas would cost more than the
/// lines of busy ones; above the maximum, middleboxes have closed the connection.
pub(crate) const HEARTBEAT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// Maximum time that a caller can wait for a restart. The restart continues after that.
pub(crate) const RESTART_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// Maximum of the configurable token lifetime: one week. Akash's tools make tokens of 48 hours. For longer
/// access tenants use certificates, which can be revoked.
pub(crate) const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Values of a token lifetime, which counts in seconds.
pub(crate) const TOKEN_LIFETIME: RangeInclusive<Duration> = Duration::from_secs(1)..=TOKEN_LIFETIME_MAX;

/// Maximum messages in the mailbox of an actor: a burst of new followers. Senders wait for space.
pub(crate) const MAILBOX_MESSAGES: usize = 64;

/// Maximum runs of one replica in a view. Older logs are no longer readable.
pub(crate) const RUNS_MAX: usize = 64;

/// Default time for which a gateway still serves after it reports that it is not ready, if readiness is
/// polled. Kubernetes removes a terminating pod from its endpoints within a second or two, and balancers poll
/// every few seconds.
pub(crate) const LAME_DUCK: Duration = Duration::from_secs(5);

/// Readiness counts as polled for this time after a request: probes come every 10 s by default, slow ones
/// twice a minute.
pub(crate) const POLLED_WITHIN: Duration = Duration::from_secs(60);

/// Sizes of a ring. It must hold several chunks, or every burst would lose lines; there is one per followed
/// replica.
const RING_BYTES: RangeInclusive<u64> = 4 * CHUNK_MAX_BYTES as u64..=1 << 30;

/// Memory budgets. Below the minimum, a unary call for logs and the read of another stream use it up.
const MEMORY_BUDGET: RangeInclusive<u64> = 32 << 20..=1 << 40;

/// Maximum pace. Above it, people see lines arrive in bursts.
const PACE_MAX: Duration = Duration::from_secs(1);

/// Maximum of a timeout.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Values of a timeout. Below the minimum, handshakes would fail and polling would be a busy loop.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=TIMEOUT_MAX;

/// Values of a wait that may be zero.
const WAIT: RangeInclusive<Duration> = Duration::ZERO..=TIMEOUT_MAX;

/// Values of a rate; 0 = no limit.
const RATE: RangeInclusive<u32> = 0..=1_000_000;

/// Limits that operators may change. Each field defines its flag: help, name, default and valid values. A
/// comment gives the reason of the default; `docs/LIMITS.md` explains more.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Size of the ring of a replica's recent lines; a follower that lags more loses lines and gets a gap
    /// message
    // Includes the index of the ring. Ten seconds of a busy service (400 KB/s).
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = size::<usize>(RING_BYTES))]
    pub ring_max_bytes: usize,
    /// Memory for rings, send buffers and reads of older lines together; default: half of what the cgroup or
    /// the machine allows
    // Connections and the process itself need the other half. `None` in tests and benchmarks: unlimited.
    #[arg(long, value_name = "SIZE", value_parser = size::<usize>(MEMORY_BUDGET))]
    pub memory_budget: Option<usize>,
    /// Maximum delay of lines to send several together; 0 = no delay
    // 5 ms are not noticeable, and bound a replica to 200 small messages per second.
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = duration(Duration::ZERO..=PACE_MAX))]
    pub pace: Duration,
    /// Time for which a replica's log stays open after its last follower left
    // A client that reconnects finds the ring.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration(WAIT))]
    pub actor_idle: Duration,
    /// Reset a stream whose peer accepts no data for this long
    #[arg(long = "stall-timeout", value_name = "TIME", default_value = "5m", value_parser = duration(TIMEOUT))]
    pub stall: Duration,
    /// Time to keep serving at shutdown after /ready and gRPC health fail; default: 5s if recently polled,
    /// else 0
    // `None` = `LAME_DUCK` if readiness is polled, otherwise zero.
    #[arg(long, value_name = "TIME", value_parser = duration(WAIT))]
    pub lame_duck: Option<Duration>,
    /// Time for streams to end after --lame-duck, before they are reset
    #[arg(long = "drain-timeout", value_name = "TIME", default_value = "10s", value_parser = duration(WAIT))]
    pub drain: Duration,
    /// Interval for polling the trust directory, in case the system reports no changes
    // Bounds how long a removed certificate still counts if change notifications are missing.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration(TIMEOUT))]
    pub trust_poll: Duration,
    /// Reject a token with a longer lifetime, from nbf to exp
    // Tokens cannot be revoked, so this bounds the use of a stolen one. Akash's command line and Console
    // request less than an hour.
    #[arg(long = "token-max-lifetime", value_name = "TIME", default_value = "1h", value_parser = duration(TOKEN_LIFETIME))]
    pub token_lifetime: Duration,
    /// Refused and rejected calls per address and minute in the audit log; further ones are only counted. 0 =
    /// no limit
    // A peer cannot fill the disk. Equal to the authentication failures after which a peer is shut out.
    #[arg(long, value_name = "N", default_value = "60", value_parser = number(RATE))]
    pub audit_refusals_per_minute: u32,
    /// Limits of connections and of their peers.
    #[command(flatten)]
    pub connection: ConnectionLimits,
    /// Limits of each owner, and of all together.
    #[command(flatten)]
    pub quota: QuotaLimits,
}

/// The defaults of the flags. Every flag has a valid default or is optional, so parsing cannot fail.
impl Default for Limits {
    fn default() -> Self {
        Self::parse_from(["limits"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_valid_default() {
        Limits::try_parse_from(["limits"]).unwrap_or_else(|error| panic!("{error}"));
    }
}
