//! Settings of the port for clients of the published proto.

use std::net::SocketAddr;

use clap::Args;

use super::value::listen_address;

/// Settings of that port.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Published LeaseRPC proto (clients of chain-sdk)")]
pub(crate) struct PublishedOptions {
    /// Address for clients of the published proto (chain-sdk), such as 0.0.0.0:8444: a request for logs that
    /// has only a lease gets one response there, and the draft's stream at --listen; default: off
    #[arg(long, value_name = "HOST:PORT", value_parser = listen_address)]
    pub(crate) published_listen: Option<SocketAddr>,
}
