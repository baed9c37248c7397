//! Of what tenants use, each and in all.

use std::time::Duration;

use super::{FILTERS_MAX, STREAM_REPLICAS_MAX};

/// Quotas that an operator may change by flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Streams open at once, of all owners; a call that is being answered counts as one. As many as connections. One whose peer
    /// takes nothing keeps up to 192 KiB alive.
    pub streams: usize,
    /// Streams open at once of one owner: a sixteenth.
    pub streams_per_owner: usize,
    /// Calls of one owner per second; 0 = as many as they like. Even so all of an owner's streams may come back at once, since
    /// they do when a gateway was started anew.
    pub requests_per_second: u32,
    /// Calls of all owners per second; 0 = as many as they like. A tenth of a core of an ordinary machine, most of it for the caller's
    /// credentials. Even so all streams may come back at once.
    pub requests_per_second_in_all: u32,
    /// Calls and handshakes of one peer address per minute that fail to establish who it is; 0 = as many as they like. A client
    /// that is set up wrongly and tries each second does not pass it by much; one that guesses does.
    pub auth_failures_per_minute: u32,
    /// Calls of health and reflection from one peer address per second; 0 = no limit. They need no credentials, so no owner's
    /// quota bounds them. Probes and balancers call every few seconds each; a reflection client sends some dozens at once.
    pub open_calls_per_second: u32,
    /// Replicas that one request may choose; at most [`STREAM_REPLICAS_MAX`], which is what clients reckon with. Each that is followed
    /// costs a lane, and its ring if nobody else follows it.
    pub replicas_per_request: usize,
    /// Filters of one request beside the one that the draft has; at most [`FILTERS_MAX`], more services than a lease has.
    pub filters_per_request: usize,
    /// Restarts of one lease per hour; 0 = as many as they like. Each ends and starts containers, on a machine of others too.
    pub restarts_per_hour: u32,
    /// Restarts of all leases of one owner per hour; 0 = as many as they like. Ten leases at the limit of each.
    pub restarts_per_hour_of_owner: u32,
    /// Restarts per hour, of all; 0 = as many as they like. One every second or two keeps a cluster's control plane busy enough.
    pub restarts_per_hour_in_all: u32,
    /// History reads (of lines older than a ring) at once, in all. Each holds a file and two buffers, and one is enough to keep
    /// a disk busy.
    pub history_reads: usize,
    /// History reads at once of one owner: a quarter. Never the last one, if there is more than one.
    pub history_reads_per_owner: usize,
    /// Log bytes per second of all history reads together; 0 = as fast as they can. A tenth of a core for encryption, and half
    /// of what one disk of the usual kind gives.
    pub history_bytes_per_second: u64,
    /// Log bytes per second of one owner's history reads; 0 = as fast as they can. A quarter: what one replica keeps by default
    /// (50 MiB) is there within a second.
    pub history_bytes_per_second_per_owner: u64,
    /// How long a stream that was sent nothing yet waits for its first history read, if more are asked for than may be at once or
    /// as fast; then it is refused. Long enough for reads that go on to end, and no longer than somebody looks at an empty screen.
    pub history_wait: Duration,
    /// Questions to an Akash node per second, of all, about callers who are not known yet; 0 would let nobody new in. A node is
    /// shared, often somebody else's, and even so a thousand tenants are known within a minute.
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
