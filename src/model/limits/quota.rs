//! Quotas of tenants: of each owner and of all together.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;

use super::{FILTERS_MAX, Limits, RATE, STREAM_REPLICAS_MAX, WAIT};
use crate::model::parse::{duration, number, size};

/// Maximum number of streams. No process has memory for more.
const STREAMS_MAX: usize = 1 << 20;

/// Maximum number of history reads, above which no disk is faster.
const READS_MAX: usize = 65_536;

/// Rates of history reads. Below the minimum, they would never catch up with a service that logs.
const HISTORY_RATE: RangeInclusive<u64> = 64 << 10..=1 << 40;

/// Maximum number of queries to a node per second, more than one answers.
const CHAIN_QUERIES_MAX: u32 = 10_000;

/// Quotas that operators may change.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Quotas")]
pub struct QuotaLimits {
    /// Maximum open streams of all owners, including calls in progress
    // As many as connections. A stream whose peer takes nothing keeps up to 192 KiB alive.
    #[arg(long = "max-streams", value_name = "N", default_value = "16384", value_parser = number(1..=STREAMS_MAX))]
    pub streams: usize,
    /// Maximum open streams of one owner
    // A sixteenth of all.
    #[arg(long = "max-streams-per-owner", value_name = "N", default_value = "1024", value_parser = number(1..=STREAMS_MAX))]
    pub streams_per_owner: usize,
    /// Calls of one owner per second, with a burst of --max-streams-per-owner; 0 = no limit
    // All streams of an owner reconnect at once after a restart of the gateway.
    #[arg(long, value_name = "N", default_value = "100", value_parser = number(RATE))]
    pub requests_per_second: u32,
    /// Calls of all owners per second, with a burst of --max-streams; 0 = no limit
    // They cost a tenth of a core, mostly to check credentials.
    #[arg(long, value_name = "N", default_value = "2000", value_parser = number(RATE))]
    pub requests_per_second_in_all: u32,
    /// Failed authentications and connections per minute after which an address is blocked; 0 = no limit
    // A misconfigured client that retries each second barely exceeds it; one that guesses exceeds it by far.
    #[arg(long, value_name = "N", default_value = "60", value_parser = number(RATE))]
    pub auth_failures_per_minute: u32,
    /// Calls without credentials (health, reflection) of one address per second; 0 = no limit
    // No owner's quota applies to them. Probes and balancers call every few seconds each; a reflection
    // client sends some dozens at once.
    #[arg(long, value_name = "N", default_value = "20", value_parser = number(RATE))]
    pub open_calls_per_second: u32,
    /// Requests and calls of one address per second that are forwarded (--upstream-provider,
    /// --upstream-grpc); 0 = no limit
    // The provider checks their credentials, so no owner's quota applies to them. Users of Console have the
    // address of its proxy.
    #[arg(long, value_name = "N", default_value = "100", value_parser = number(RATE))]
    pub forwarded_per_second: u32,
    /// Maximum replicas in one request, for logs, status or restart
    // Each followed replica costs a replica stream, and a ring if it has no other follower.
    #[arg(long = "max-replicas-per-request", value_name = "N", default_value = "1024", value_parser = number(1..=STREAM_REPLICAS_MAX))]
    pub replicas_per_request: usize,
    /// Maximum filters in one request, in addition to the draft's single filter
    #[arg(long = "max-filters-per-request", value_name = "N", default_value = "64", value_parser = number(1..=FILTERS_MAX))]
    pub filters_per_request: usize,
    /// Restarts of one lease per hour; 0 = no limit
    // Each stops and starts containers on a shared machine.
    #[arg(long, value_name = "N", default_value = "60", value_parser = number(RATE))]
    pub restarts_per_hour: u32,
    /// Restarts of one owner's leases per hour; 0 = no limit
    // Ten leases at the limit of each.
    #[arg(long, value_name = "N", default_value = "600", value_parser = number(RATE))]
    pub restarts_per_hour_of_owner: u32,
    /// Restarts of all leases per hour; 0 = no limit
    // One every 1.5 seconds is enough load for a cluster's control plane.
    #[arg(long, value_name = "N", default_value = "2400", value_parser = number(RATE))]
    pub restarts_per_hour_in_all: u32,
    /// Maximum concurrent reads of older lines; further ones wait
    // Each holds a file and two buffers, and one alone can keep a disk busy.
    #[arg(long, value_name = "N", default_value = "64", value_parser = number(1..=READS_MAX))]
    pub history_reads: usize,
    /// Maximum concurrent reads of older lines of one owner, never including the last free one
    // A quarter of all. Never the last one, if there is more than one.
    #[arg(long, value_name = "N", default_value = "16", value_parser = number(1..=READS_MAX))]
    pub history_reads_per_owner: usize,
    /// Bytes of older lines per second for all owners; faster reads are throttled; 0 = no limit
    // They cost a tenth of a core for encryption, and half the throughput of a typical disk.
    #[arg(long = "history-rate", value_name = "SIZE", default_value = "256MiB", value_parser = history_rate)]
    pub history_bytes_per_second: u64,
    /// Bytes of older lines per second for one owner; faster reads are throttled; 0 = no limit
    // A quarter of all: the log that a replica keeps by default (50 MiB) takes less than a second.
    #[arg(long = "history-rate-per-owner", value_name = "SIZE", default_value = "64MiB", value_parser = history_rate)]
    pub history_bytes_per_second_per_owner: u64,
    /// Maximum wait for a read of older lines; then a stream that has sent nothing yet is rejected
    // Long enough for current reads to end, and as long as a user waits before an empty screen.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration(WAIT))]
    pub history_wait: Duration,
    /// Queries per second to the node of --chain-grpc about unknown callers; refreshes of known ones do not
    /// count
    // Zero would reject all unknown callers. The node is shared and often belongs to others. A thousand
    // tenants are still known within a minute.
    #[arg(long = "chain-queries", value_name = "N", default_value = "20", value_parser = number(1..=CHAIN_QUERIES_MAX))]
    pub chain_queries_per_second: u32,
}

/// The defaults of the flags.
impl Default for QuotaLimits {
    fn default() -> Self {
        Limits::default().quota
    }
}

/// Parses a rate of history reads; 0 = no limit.
fn history_rate(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    size(HISTORY_RATE)(text).map_err(|error| format!("{error}; or 0 for no limit"))
}
