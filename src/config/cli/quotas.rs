//! What tenants may use.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Quotas")]
pub(in crate::config) struct QuotaArgs {
    /// Streams open at once, of all owners; calls that are being answered count
    #[arg(long, env = "LEASEMUX_MAX_STREAMS", value_name = "N", default_value = "16384")]
    pub(in crate::config) max_streams: Option<String>,
    /// Streams open at once, of one owner
    #[arg(long, env = "LEASEMUX_MAX_STREAMS_PER_OWNER", value_name = "N", default_value = "1024")]
    pub(in crate::config) max_streams_per_owner: Option<String>,
    /// Calls of one owner per second; 0 = no limit. All of an owner's streams may come back at once
    #[arg(long, env = "LEASEMUX_REQUESTS_PER_SECOND", value_name = "N", default_value = "100")]
    pub(in crate::config) requests_per_second: Option<String>,
    /// Calls of all owners per second; 0 = no limit. All streams may come back at once
    #[arg(long, env = "LEASEMUX_REQUESTS_PER_SECOND_IN_ALL", value_name = "N", default_value = "2000")]
    pub(in crate::config) requests_per_second_in_all: Option<String>,
    /// Failed authentications and broken connections from one address per minute, after which it is shut out for a minute; 0 = no limit
    #[arg(long, env = "LEASEMUX_AUTH_FAILURES_PER_MINUTE", value_name = "N", default_value = "60")]
    pub(in crate::config) auth_failures_per_minute: Option<String>,
    /// Calls of health and reflection from one address per second, which need no credentials; 0 = no limit
    #[arg(long, env = "LEASEMUX_OPEN_CALLS_PER_SECOND", value_name = "N", default_value = "20")]
    pub(in crate::config) open_calls_per_second: Option<String>,
    /// Replicas that one request may choose, for logs, status or restart
    #[arg(long, env = "LEASEMUX_MAX_REPLICAS_PER_REQUEST", value_name = "N", default_value = "1024")]
    pub(in crate::config) max_replicas_per_request: Option<String>,
    /// Filters of one request, beside the one of the draft
    #[arg(long, env = "LEASEMUX_MAX_FILTERS_PER_REQUEST", value_name = "N", default_value = "64")]
    pub(in crate::config) max_filters_per_request: Option<String>,
    /// Restarts of one lease per hour; 0 = no limit
    #[arg(long, env = "LEASEMUX_RESTARTS_PER_HOUR", value_name = "N", default_value = "60")]
    pub(in crate::config) restarts_per_hour: Option<String>,
    /// Restarts of all leases of one owner per hour; 0 = no limit
    #[arg(long, env = "LEASEMUX_RESTARTS_PER_HOUR_OF_OWNER", value_name = "N", default_value = "600")]
    pub(in crate::config) restarts_per_hour_of_owner: Option<String>,
    /// Restarts per hour, of all leases; 0 = no limit
    #[arg(long, env = "LEASEMUX_RESTARTS_PER_HOUR_IN_ALL", value_name = "N", default_value = "2400")]
    pub(in crate::config) restarts_per_hour_in_all: Option<String>,
    /// Reads of older lines at once, in all; further ones wait
    #[arg(long, env = "LEASEMUX_HISTORY_READS", value_name = "N", default_value = "64")]
    pub(in crate::config) history_reads: Option<String>,
    /// Reads of older lines at once, of one owner, who never has the last one; further ones wait
    #[arg(long, env = "LEASEMUX_HISTORY_READS_PER_OWNER", value_name = "N", default_value = "16")]
    pub(in crate::config) history_reads_per_owner: Option<String>,
    /// Bytes of older lines per second, in all; faster reads are slowed down; 0 = no limit
    #[arg(long, env = "LEASEMUX_HISTORY_RATE", value_name = "SIZE", default_value = "256MiB")]
    pub(in crate::config) history_rate: Option<String>,
    /// Bytes of older lines per second, of one owner; faster reads are slowed down; 0 = no limit
    #[arg(long, env = "LEASEMUX_HISTORY_RATE_PER_OWNER", value_name = "SIZE", default_value = "64MiB")]
    pub(in crate::config) history_rate_per_owner: Option<String>,
    /// Longest wait for a read of older lines, where others are in the way, before a stream that was sent nothing is refused
    #[arg(long, env = "LEASEMUX_HISTORY_WAIT", value_name = "TIME", default_value = "30s")]
    pub(in crate::config) history_wait: Option<String>,
    /// Questions per second, of all, to the node of --chain-grpc about who is not known yet; who is known is confirmed besides
    #[arg(long, env = "LEASEMUX_CHAIN_QUERIES", value_name = "N", default_value = "20")]
    pub(in crate::config) chain_queries: Option<String>,
}
