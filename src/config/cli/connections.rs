//! The bounds of connections.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits of connections")]
pub(in crate::config) struct ConnectionArgs {
    /// A proxy before the gateway, by address or network: its connections begin with a PROXY protocol v2 header, and peers are those named there. Repeatable
    #[arg(long, env = "LEASEMUX_TRUSTED_PROXY", value_name = "CIDR")]
    pub(in crate::config) trusted_proxy: Vec<String>,
    /// Connections at once, in all; further ones are closed at once
    #[arg(long, env = "LEASEMUX_MAX_CONNECTIONS", value_name = "N", default_value = "16384")]
    pub(in crate::config) max_connections: Option<String>,
    /// Connections at once from one address (IPv6: from one /64); further ones are closed at once
    #[arg(long, env = "LEASEMUX_MAX_CONNECTIONS_PER_PEER", value_name = "N", default_value = "1024")]
    pub(in crate::config) max_connections_per_peer: Option<String>,
    /// Drop a connection whose TLS handshake takes longer
    #[arg(long, env = "LEASEMUX_HANDSHAKE_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub(in crate::config) handshake_timeout: Option<String>,
    /// Drop a connection that makes no call for so long after its handshake
    #[arg(long, env = "LEASEMUX_FIRST_CALL_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub(in crate::config) first_call_timeout: Option<String>,
    /// Close a connection that has had no open call for so long
    #[arg(long, env = "LEASEMUX_IDLE_TIMEOUT", value_name = "TIME", default_value = "5m")]
    pub(in crate::config) idle_timeout: Option<String>,
    /// Ask a peer that was silent for so long for a sign of life
    #[arg(long, env = "LEASEMUX_KEEPALIVE_INTERVAL", value_name = "TIME", default_value = "1m")]
    pub(in crate::config) keepalive_interval: Option<String>,
    /// Streams at once on one connection
    #[arg(long, env = "LEASEMUX_STREAMS_PER_CONNECTION", value_name = "N", default_value = "256")]
    pub(in crate::config) streams_per_connection: Option<String>,
    /// Headers of one request
    #[arg(long, env = "LEASEMUX_MAX_HEADER_BYTES", value_name = "SIZE", default_value = "16KiB")]
    pub(in crate::config) max_header_bytes: Option<String>,
    /// Message of one request
    #[arg(long, env = "LEASEMUX_MAX_REQUEST_BYTES", value_name = "SIZE", default_value = "256KiB")]
    pub(in crate::config) max_request_bytes: Option<String>,
    /// What a peer may send before it is read, for one stream and for its connection
    #[arg(long, env = "LEASEMUX_RECEIVE_WINDOW", value_name = "SIZE", default_value = "256KiB")]
    pub(in crate::config) receive_window: Option<String>,
    /// Close a connection on which so many calls were taken back before they were looked at
    #[arg(long, env = "LEASEMUX_MAX_PENDING_RESETS", value_name = "N", default_value = "20")]
    pub(in crate::config) max_pending_resets: Option<String>,
    /// Close a connection on which so many streams had to be reset since they broke the protocol
    #[arg(long, env = "LEASEMUX_MAX_ERROR_RESETS", value_name = "N", default_value = "128")]
    pub(in crate::config) max_error_resets: Option<String>,
}
