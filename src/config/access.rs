//! Settings of authentication and authorization.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Uri;
use http::uri::Scheme;

use super::resolver::Resolver;
use super::start_checks::StartChecks;
use super::value::{address, directory, file, node};
use crate::model::id::Address;
use crate::model::parse::duration;

/// Grace periods. Below the minimum, a restart of the node would reject tenants; a revoked credential may be
/// accepted for as long as the maximum.
const GRACE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(7 * 24 * 3600);

/// The sources of trust (a trust directory, a node, or both), and the provider.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Authentication")]
pub(crate) struct AccessConfig {
    /// Directory of tenants' trusted certificates (*.pem) and account keys (*.pub), watched for changes
    #[arg(long, value_name = "DIR", value_parser = directory)]
    pub(crate) trust_dir: Option<PathBuf>,
    /// gRPC URL of an Akash node, for certificates and account keys that --trust-dir does not have
    #[arg(long, value_name = "URL", value_parser = node)]
    pub(crate) chain_grpc: Option<Uri>,
    /// PEM file with the authorities of an https node's certificate; default: the system's authorities
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) chain_ca: Option<PathBuf>,
    /// Grace period for which known tenants stay accepted while the node does not answer
    #[arg(long, value_name = "TIME", default_value = "6h", value_parser = duration(GRACE))]
    pub(crate) chain_grace: Duration,
    /// Provider (akash1…) whose leases are served, all others being rejected. Required with --platform
    /// kube or node
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) provider: Option<Address>,
    /// Certificate of an authority for the --public-hostname (PEM), for clients with a token
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) ca_tls_cert: Option<PathBuf>,
    /// Private key of --ca-tls-cert (PEM)
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) ca_tls_key: Option<PathBuf>,
}

/// Checks the settings. `is_source`: the gateway serves no tenants.
pub(super) fn check(resolver: &mut Resolver<'_>, is_source: bool, checks: &StartChecks) {
    if !resolver.is_given("chain_grpc") && !is_source {
        let what = "the directory of trusted tenants' certificates (*.pem) and account keys (*.pub), or --chain-grpc";
        resolver.require("trust_dir", what);
    }
    resolver.verify("chain_ca", |file: &PathBuf| (checks.authorities)(file));
    if resolver.is_given("chain_ca") {
        resolver.require("chain_grpc", "the node whose certificate --chain-ca signs");
        if resolver.get::<Uri>("chain_grpc").is_some_and(|node| node.scheme() == Some(&Scheme::HTTP)) {
            resolver
                .conflict("--chain-ca and --chain-grpc do not go together: an http node has no certificate");
        }
    }
}
