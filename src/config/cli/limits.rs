//! The bounds of `serve` that are not of connections or tenants.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(in crate::config) struct LimitsArgs {
    /// Lines held in memory for the followers of one replica; who falls further behind loses lines and is told
    #[arg(long, env = "LEASEMUX_RING_MAX_BYTES", value_name = "SIZE", default_value = "4MiB")]
    pub(in crate::config) ring_max_bytes: Option<String>,
    /// How long lines may wait for others to leave with them; 0 = never
    #[arg(long, env = "LEASEMUX_PACE", value_name = "TIME", default_value = "5ms")]
    pub(in crate::config) pace: Option<String>,
    /// How long a replica's log stays open after its last follower has gone
    #[arg(long, env = "LEASEMUX_ACTOR_IDLE", value_name = "TIME", default_value = "10s")]
    pub(in crate::config) actor_idle: Option<String>,
    /// Reset a stream whose peer takes nothing for so long
    #[arg(long, env = "LEASEMUX_STALL_TIMEOUT", value_name = "TIME", default_value = "5m")]
    pub(in crate::config) stall_timeout: Option<String>,
    /// How long the gateway serves on when it is stopped, not ready any more, so that whoever polls /ready or gRPC health finds
    /// out first; 0 = not at all. Default: 5s if anybody did within the last minute, else 0
    #[arg(long, env = "LEASEMUX_LAME_DUCK", value_name = "TIME")]
    pub(in crate::config) lame_duck: Option<String>,
    /// How long streams may then take to end
    #[arg(long, env = "LEASEMUX_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub(in crate::config) drain_timeout: Option<String>,
    /// How often the trust directory is looked at, should the system not tell of changes
    #[arg(long, env = "LEASEMUX_TRUST_POLL", value_name = "TIME", default_value = "5s")]
    pub(in crate::config) trust_poll: Option<String>,
    /// Refuse a token that is valid for longer in all, from nbf to exp
    #[arg(long, env = "LEASEMUX_TOKEN_MAX_LIFETIME", value_name = "TIME", default_value = "1h")]
    pub(in crate::config) token_max_lifetime: Option<String>,
    /// Refusals of one address per minute that the audit log tells; further ones are counted there. 0 = no limit
    #[arg(long, env = "LEASEMUX_AUDIT_REFUSALS_PER_MINUTE", value_name = "N", default_value = "60")]
    pub(in crate::config) audit_refusals_per_minute: Option<String>,
}
