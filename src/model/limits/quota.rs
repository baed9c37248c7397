//! Quotas of tenants: of each owner and of all together.

use std::time::Duration;

use super::{FILTERS_MAX, STREAM_REPLICAS_MAX};

/// Quotas that operators may change by flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Open streams of all owners, including unary calls in progress: as many as connections. A stream whose
    /// peer takes nothing keeps up to 192 KiB alive.
    pub streams: usize,
    /// Open streams of one owner: a sixteenth of all.
    pub streams_per_owner: usize,
    /// Calls of one owner per second; 0 = no limit. The burst covers all streams of an owner, which reconnect
    /// at once after a restart of the gateway.
    pub requests_per_second: u32,
    /// Calls of all owners per second; 0 = no limit. They cost a tenth of a core, mostly to check
    /// credentials. The burst covers all streams.
    pub requests_per_second_in_all: u32,
    /// Failed authentications and handshakes of one peer per minute; 0 = no limit. A misconfigured client
    /// that retries each second barely exceeds it; one that guesses exceeds it by far.
    pub auth_failures_per_minute: u32,
    /// Calls of health and reflection of one peer per second; 0 = no limit. They need no credentials, so no
    /// owner's quota applies. Probes and balancers call every few seconds each; a reflection client sends
    /// some dozens at once.
    pub open_calls_per_second: u32,
    /// Replicas that one request may select; at most [`STREAM_REPLICAS_MAX`], on which clients rely. Each
    /// followed replica costs a replica stream, and a ring if it has no other follower.
    pub replicas_per_request: usize,
    /// Filters of one request, besides the single filter of the draft; at most [`FILTERS_MAX`].
    pub filters_per_request: usize,
    /// Restarts of one lease per hour; 0 = no limit. Each stops and starts containers on a shared machine.
    pub restarts_per_hour: u32,
    /// Restarts of all leases of one owner per hour; 0 = no limit. Ten leases at the limit of each.
    pub restarts_per_hour_of_owner: u32,
    /// Restarts of all owners per hour; 0 = no limit. One every 1.5 seconds is enough load for a cluster's
    /// control plane.
    pub restarts_per_hour_in_all: u32,
    /// Concurrent history reads (of lines older than a ring) of all owners. Each holds a file and two
    /// buffers, and one alone can keep a disk busy.
    pub history_reads: usize,
    /// Concurrent history reads of one owner: a quarter of all. Never the last one, if there is more than
    /// one.
    pub history_reads_per_owner: usize,
    /// Log bytes per second of all history reads; 0 = no limit. They cost a tenth of a core for encryption,
    /// and half the throughput of a typical disk.
    pub history_bytes_per_second: u64,
    /// Log bytes per second of one owner's history reads; 0 = no limit. A quarter of all: the log that a
    /// replica keeps by default (50 MiB) takes less than a second.
    pub history_bytes_per_second_per_owner: u64,
    /// Time for which a stream without output waits for its first history read if a quota of history reads is
    /// used up; then it is rejected. Long enough for current reads to end, and as long as a user waits before
    /// an empty screen.
    pub history_wait: Duration,
    /// Queries to an Akash node about unknown callers per second; 0 would reject all of them. The node is
    /// shared and often belongs to others. A thousand tenants are still known within a minute.
    pub chain_queries_per_second: u32,
}

impl Default for QuotaLimits {
    fn default() -> Self {
        Self {
            streams: 16_384,
            streams_per_owner: 1_024,
            requests_per_second: 100,
            requests_per_second_in_all: 2_000,
            auth_failures_per_minute: 60,
            open_calls_per_second: 20,
            replicas_per_request: STREAM_REPLICAS_MAX,
            filters_per_request: FILTERS_MAX,
            restarts_per_hour: 60,
            restarts_per_hour_of_owner: 600,
            restarts_per_hour_in_all: 2_400,
            history_reads: 64,
            history_reads_per_owner: 16,
            history_bytes_per_second: 256 * 1024 * 1024,
            history_bytes_per_second_per_owner: 64 * 1024 * 1024,
            history_wait: Duration::from_secs(30),
            chain_queries_per_second: 20,
        }
    }
}
