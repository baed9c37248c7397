//! Settings of the port for clients of the published proto.

use std::net::SocketAddr;

use clap::Args;
use http::Uri;

use super::resolver::Resolver;
use super::rest::{MTLS, require_for_passthrough};
use super::value::{choice, listen_address, provider_url};
use crate::edge::upstream::client_hello::MtlsMode;

/// Settings of that port.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Published LeaseRPC proto (clients of chain-sdk)")]
pub(crate) struct PublishedOptions {
    /// Address for clients of the published proto (chain-sdk), such as 0.0.0.0:8444: a request for logs that
    /// has only a lease gets one response there, and the draft's stream at --listen; default: off
    #[arg(long, value_name = "HOST:PORT", value_parser = listen_address)]
    pub(crate) published_listen: Option<SocketAddr>,
    /// The gRPC server of the Akash provider behind the gateway (https://HOST:PORT), which gets all calls
    /// that are not served here, as manifests and attestation, on both gRPC ports; default: none
    #[arg(long, value_name = "URL", value_parser = provider_url)]
    pub(crate) upstream_grpc: Option<Uri>,
    /// What happens at --published-listen to connections for other names than --public-hostname: passthrough
    /// (to the provider) or terminate (served here); default: passthrough with --upstream-grpc
    #[arg(long, value_name = "WHAT", value_parser = choice(MTLS, "passthrough or terminate"))]
    pub(crate) published_mtls: Option<MtlsMode>,
}

// === impl PublishedOptions ===

impl PublishedOptions {
    /// Returns what happens to connections for other names than the public ones, if there is a provider.
    pub(crate) fn mtls_mode(&self) -> MtlsMode {
        self.published_mtls.unwrap_or(MtlsMode::Passthrough)
    }
}

/// Checks the settings against others.
pub(super) fn check(resolver: &mut Resolver<'_>) {
    if resolver.is_given("published_mtls") {
        resolver.require("published_listen", "the address of the connections that --published-mtls is about");
    }
    let by_default = !resolver.is_given("published_mtls")
        && resolver.is_given("upstream_grpc")
        && resolver.is_given("published_listen");
    let given = resolver.get::<MtlsMode>("published_mtls");
    let is_passthrough = given.map_or(by_default, |mode| *mode == MtlsMode::Passthrough);
    if is_passthrough {
        require_for_passthrough(resolver, "upstream_grpc", "published_mtls");
    }
}
