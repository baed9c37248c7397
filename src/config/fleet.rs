//! Settings of a fleet of gateways.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use http::Uri;

use super::resolver::Resolver;
use super::value::{choice, file, must_be, server};
use crate::exchange::liveness::GATEWAYS_MAX;
use crate::exchange::subjects::{Subjects, SubjectsError};
use crate::model::id::Address;
use crate::model::parse::{duration, number};
use crate::sys::read::read_bounded;

/// Grace periods. A server that restarts needs half a second; lines of members wait for as long as the
/// maximum.
const GRACE: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(60);

/// Numbers of direct tails: more than a node has streams for.
const DIRECT_TAILS: RangeInclusive<usize> = 1..=16_384;

/// Numbers of members: up to the gateways that one bus serves.
const MEMBERS: RangeInclusive<usize> = 1..=GATEWAYS_MAX;

/// Maximum number of servers. A cluster with more is a super-cluster, of which a gateway uses one region.
const SERVERS_MAX: usize = 64;

/// Maximum size of a file with secrets: hundreds of them.
const SECRET_MAX_BYTES: u64 = 64 * 1024;

const ROLES: &[(&str, GatewayRole)] = &[("gateway", GatewayRole::Gateway), ("source", GatewayRole::Source)];

/// Settings of gateways that serve tenants.
const OF_TENANTS: [&str; 5] = ["listen", "rest_listen", "published_listen", "trust_dir", "chain_grpc"];

/// Flags that need `--nats`.
const DEPENDENT: [&str; 12] = [
    "nats_creds",
    "nats_nkey",
    "nats_ca",
    "nats_cert",
    "nats_key",
    "fleet",
    "fleet_secret",
    "fleet_role",
    "fleet_grace",
    "fleet_direct_tails",
    "fleet_members_max",
    "fleet_share_quotas",
];

/// Settings of the NATS servers, and of the fleet that shares tails over them.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Fleet of gateways (NATS)")]
pub struct FleetOptions {
    /// NATS servers (tls://HOST:PORT; nats://HOST:PORT for this machine), separated by commas: gateways with
    /// the same servers and --fleet share one log tail per replica; default: this gateway tails for itself
    #[arg(long, value_name = "URLS", value_parser = servers)]
    pub(crate) nats: Option<NatsServers>,
    /// Credentials of a NATS user (.creds: JWT and seed), read at the start
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) nats_creds: Option<PathBuf>,
    /// Seed of a NATS user's nkey, read at the start
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) nats_nkey: Option<PathBuf>,
    /// PEM file with the authorities of the servers' certificates; default: the system's authorities
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) nats_ca: Option<PathBuf>,
    /// The gateway's certificate for the servers (PEM)
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) nats_cert: Option<PathBuf>,
    /// Private key of --nats-cert (PEM)
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) nats_key: Option<PathBuf>,
    /// Name of the fleet, the same for all its gateways: letters, digits, dashes and underscores; default:
    /// the --provider
    #[arg(long, value_name = "NAME", value_parser = fleet)]
    pub(crate) fleet: Option<String>,
    /// File whose last line (at least 32 bytes) keys the names of subjects, the same for all gateways;
    /// default: names that a list of leases reveals
    #[arg(long, value_name = "FILE", value_parser = secret)]
    pub(crate) fleet_secret: Option<FleetSecret>,
    /// What the gateway does: 'gateway' (serves tenants), or 'source' (serves none, and publishes the logs of
    /// its node's pods for the other gateways; --platform node)
    #[arg(long, value_name = "ROLE", default_value = "gateway", value_parser = choice(ROLES, "'gateway' or 'source'"))]
    pub(crate) fleet_role: GatewayRole,
    /// Grace period after which a gateway tails for itself when NATS is away
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration(GRACE))]
    pub(crate) fleet_grace: Duration,
    /// Maximum log tails of replicas that this gateway does not publish; further replicas wait for NATS
    #[arg(long, value_name = "N", default_value = "256", value_parser = number(DIRECT_TAILS))]
    pub(crate) fleet_direct_tails: usize,
    /// Maximum gateways that get the lines of one replica from this one; further gateways tail for themselves
    // As many as one bus serves. Each costs its publisher some 40 bytes and an answer every five seconds.
    #[arg(long, value_name = "N", default_value = "4096", value_parser = number(MEMBERS))]
    pub(crate) fleet_members_max: usize,
    /// Divide --max-streams-per-owner by the number of gateways in the fleet, rounded up; fewer gateways
    /// count after a minute, and while NATS is away the last number does
    #[arg(long)]
    pub(crate) fleet_share_quotas: bool,
}

/// The role of a gateway in its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GatewayRole {
    /// It serves tenants.
    Gateway,
    /// It publishes the logs of its node's pods.
    Source,
}

/// URLs of NATS servers, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NatsServers(pub(crate) Vec<String>);

/// The content of the file with the fleet's secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct FleetSecret(String);

/// Parses URLs of servers. Credentials in a URL would be logged, so they come from files only.
fn servers(text: &str) -> Result<NatsServers, String> {
    let urls: Option<Vec<String>> = text.split(',').map(|url| nats_server(url.trim())).collect();
    let urls = urls.filter(|urls| urls.len() <= SERVERS_MAX).map(NatsServers);
    must_be(
        urls,
        "URLs with TLS, such as tls://nats-0.example.com:4222,tls://nats-1.example.com:4222, without user and \
         password; only on this machine also without TLS, such as nats://127.0.0.1:4222",
    )
}

fn nats_server(url: &str) -> Option<String> {
    let uri: Uri = server(url, &["tls", "nats"])?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    (uri.scheme_str() == Some("tls") || is_here).then(|| url.trim_end_matches('/').to_owned())
}

fn fleet(text: &str) -> Result<String, String> {
    let is_valid = Subjects::new(text, None).is_ok();
    must_be(is_valid.then(|| text.to_owned()), "1 to 64 letters, digits, dashes or underscores")
}

/// Reads a file with a secret.
fn secret(text: &str) -> Result<FleetSecret, String> {
    let read = read_bounded(Path::new(text), SECRET_MAX_BYTES);
    let bytes = read.map_err(|error| format!("must be a readable file: {error}"))?;
    let secret = String::from_utf8(bytes).ok().filter(|text| Subjects::new("fleet", Some(text)).is_ok());
    let valid = "a file whose last line has at least 32 bytes, as `openssl rand -hex 32` prints it";
    must_be(secret.map(FleetSecret), valid)
}

// === impl FleetSecret ===

/// Without the secret.
impl fmt::Debug for FleetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FleetSecret").finish_non_exhaustive()
    }
}

// === impl FleetOptions ===

impl FleetOptions {
    /// Returns the subjects of the fleet, if one is configured. Its default name is `provider`.
    pub(crate) fn subjects(&self, provider: Option<&Address>) -> Result<Option<Subjects>, SubjectsError> {
        if self.nats.is_none() {
            return Ok(None);
        }
        let name = self.fleet.as_deref().or(provider.map(Address::as_str)).unwrap_or_default();
        Subjects::new(name, self.fleet_secret.as_ref().map(|secret| secret.0.as_str())).map(Some)
    }
}

/// Whether the gateway serves no tenants.
pub(super) fn is_source(resolver: &Resolver<'_>) -> bool {
    resolver.get::<GatewayRole>("fleet_role") == Some(&GatewayRole::Source)
}

/// Checks the settings against each other.
pub(super) fn check(resolver: &mut Resolver<'_>) {
    let is_built = cfg!(feature = "nats");
    resolver.verify("nats", |_: &NatsServers| {
        let valid =
            "left out: this program was built without the feature `nats` (cargo build --features nats)";
        must_be(is_built.then_some(()), valid)
    });
    if let Some(id) = DEPENDENT.iter().find(|id| resolver.is_given(id)) {
        let flag = id.replace('_', "-");
        resolver.require("nats", &format!("the NATS servers that --{flag} is about"));
    }
    if is_source(resolver) {
        let given: Vec<&str> = OF_TENANTS.into_iter().filter(|id| resolver.is_given(id)).collect();
        for id in given {
            let flag = id.replace('_', "-");
            resolver.conflict(&format!(
                "--{flag} and --fleet-role source do not go together: it serves no tenants"
            ));
        }
    }
    if !resolver.is_given("nats") {
        return;
    }
    if resolver.is_given("nats_creds") && resolver.is_given("nats_nkey") {
        resolver.conflict("--nats-creds and --nats-nkey do not go together: a gateway is one user");
    }
    if !resolver.is_given("provider") {
        resolver
            .require("fleet", "the name that all gateways of the fleet share (by default the --provider)");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::parse::check_parser;

    #[test]
    fn servers_have_tls_unless_they_are_here() {
        let urls = |all: &[&str]| NatsServers(all.iter().map(ToString::to_string).collect());
        check_parser(
            servers,
            &[
                ("tls://nats.example.com:4222", urls(&["tls://nats.example.com:4222"])),
                ("tls://a, tls://10.0.0.7:4222/", urls(&["tls://a", "tls://10.0.0.7:4222"])),
                ("nats://127.0.0.2:4222", urls(&["nats://127.0.0.2:4222"])),
                ("nats://localhost,nats://[::1]:1", urls(&["nats://localhost", "nats://[::1]:1"])),
            ],
            &[
                "",
                "nats.example.com:4222",
                "nats://nats.example.com:4222",
                "nats://10.0.0.7:4222",
                "tls://a,nats://b",
                "tls://a,",
                "ws://127.0.0.1",
                "tls://user:password@a",
                "tls://a/path",
            ],
        );
    }

    #[test]
    fn secret_is_long_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let read = || secret(path.to_str().unwrap());
        assert!(read().unwrap_err().starts_with("must be a readable file"));
        fs::write(&path, "0123456789abcdef0123456789abcdef\nshort\n").unwrap();
        assert!(read().unwrap_err().contains("at least 32 bytes"));
        fs::write(&path, "short\n0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(format!("{:?}", read().unwrap()), "FleetSecret(..)");
    }
}
