//! What tenants may use.

use std::time::Duration;

use super::{RATE_MAX, TIMEOUT_MAX};
use crate::config::cli::QuotaArgs;
use crate::config::faults::Resolver;
use crate::config::value::{duration, number, size};
use crate::model::limits::{FILTERS_MAX, QuotaLimits, STREAM_REPLICAS_MAX};

/// Most streams and history reads: more than a process has memory for.
const STREAMS_MAX: usize = 1 << 20;

/// Most history reads: more than any disk is the better for.
const READS_MAX: usize = 65_536;

/// Slowest pace of history reads: below it they would never catch up with a service that prints.
const HISTORY_RATE_MIN: u64 = 64 << 10;

/// Fastest.
const HISTORY_RATE_MAX: u64 = 1 << 40;

/// Most questions to a node a second: more than one answers.
const CHAIN_QUERIES_MAX: u32 = 10_000;

pub(super) fn resolve(args: &QuotaArgs, read: &mut Resolver<'_>) -> Option<QuotaLimits> {
    let streams = || number(1..=STREAMS_MAX);
    let reads = || number(1..=READS_MAX);
    let rate = || number(0..=RATE_MAX);
    let in_all = read.one("max_streams", args.max_streams.as_ref(), streams());
    let of_owner = read.one("max_streams_per_owner", args.max_streams_per_owner.as_ref(), streams());
    let requests = read.one("requests_per_second", args.requests_per_second.as_ref(), rate());
    let requests_in_all =
        read.one("requests_per_second_in_all", args.requests_per_second_in_all.as_ref(), rate());
    let failures = read.one("auth_failures_per_minute", args.auth_failures_per_minute.as_ref(), rate());
    let open_calls = read.one("open_calls_per_second", args.open_calls_per_second.as_ref(), rate());
    let replicas = number(1..=STREAM_REPLICAS_MAX);
    let replicas = read.one("max_replicas_per_request", args.max_replicas_per_request.as_ref(), replicas);
    let filters = number(1..=FILTERS_MAX);
    let filters = read.one("max_filters_per_request", args.max_filters_per_request.as_ref(), filters);
    let restarts = read.one("restarts_per_hour", args.restarts_per_hour.as_ref(), rate());
    let restarts_of_owner =
        read.one("restarts_per_hour_of_owner", args.restarts_per_hour_of_owner.as_ref(), rate());
    let restarts_in_all =
        read.one("restarts_per_hour_in_all", args.restarts_per_hour_in_all.as_ref(), rate());
    let history_reads = read.one("history_reads", args.history_reads.as_ref(), reads());
    let reads_of_owner = read.one("history_reads_per_owner", args.history_reads_per_owner.as_ref(), reads());
    let bytes = read.one("history_rate", args.history_rate.as_ref(), history_rate);
    let bytes_of_owner =
        read.one("history_rate_per_owner", args.history_rate_per_owner.as_ref(), history_rate);
    let wait = duration(Duration::ZERO..=TIMEOUT_MAX);
    let history_wait = read.one("history_wait", args.history_wait.as_ref(), wait);
    let chain = number(1..=CHAIN_QUERIES_MAX);
    let chain_queries = read.one("chain_queries", args.chain_queries.as_ref(), chain);
    Some(QuotaLimits {
        streams: in_all?,
        streams_per_owner: of_owner?,
        requests_per_second: requests?,
        requests_per_second_in_all: requests_in_all?,
        auth_failures_per_minute: failures?,
        open_calls_per_second: open_calls?,
        replicas_per_request: replicas?,
        filters_per_request: filters?,
        restarts_per_hour: restarts?,
        restarts_per_hour_of_owner: restarts_of_owner?,
        restarts_per_hour_in_all: restarts_in_all?,
        history_reads: history_reads?,
        history_reads_per_owner: reads_of_owner?,
        history_bytes_per_second: bytes?,
        history_bytes_per_second_per_owner: bytes_of_owner?,
        history_wait: history_wait?,
        chain_queries_per_second: chain_queries?,
    })
}

fn history_rate(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    size(HISTORY_RATE_MIN..=HISTORY_RATE_MAX)(text).map_err(|right| format!("{right}; or 0 for no limit"))
}
