//! Settings of `serve`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use http::Uri;
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::access::{self, AccessConfig};
use super::fleet::{self, FleetOptions};
use super::published::{self, PublishedOptions};
use super::resolver::Resolver;
use super::rest::{self, RestOptions};
use super::start_checks::StartChecks;
use super::value::{
    Format, LEASE, LOG_FORMATS, choice, collector, directory, file, hostname, lease_and_sdl, listen_address,
    must_be, name, network, new_directory,
};
use crate::model::id::{Address, LeaseId};
use crate::model::limits::Limits;
use crate::platform::kube::{CheckScope, ClusterAccess};
use crate::platform::local::LocalOptions;

const PLATFORMS: &[(&str, PlatformKind)] =
    &[("local", PlatformKind::Local), ("kube", PlatformKind::Kube), ("node", PlatformKind::Node)];

/// Settings with an address to listen on.
const LISTENERS: [&str; 4] = ["listen", "admin_listen", "rest_listen", "published_listen"];

const EXAMPLES: &str = include_str!("help/serve.txt").trim_ascii_end();

/// Run a gateway
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    override_usage = "leasemux serve --platform local --lease <LEASE=SDLFILE>... --trust-dir <DIR> [OPTIONS]
       leasemux serve --platform local --attach <DIR> --data-dir <DIR> --trust-dir <DIR> [OPTIONS]
       leasemux serve --platform <kube|node> --provider <ADDRESS> --trust-dir <DIR> [OPTIONS]
       leasemux serve --config <FILE> [OPTIONS]",
    after_help = EXAMPLES
)]
pub struct ServeConfig {
    /// TOML file for settings without a flag or variable; its keys are the flags' names, such as admin-listen
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Validate the configuration and exit, without starting: with 0, or with 2 after reporting every error
    #[arg(long)]
    check: bool,
    /// Where services run: 'local' (processes here), 'kube' (a cluster) or 'node' (a cluster, logs from disk)
    #[arg(long, value_name = "NAME", required = false, value_parser = choice(PLATFORMS, "'local', 'kube' or 'node'"))]
    pub(crate) platform: PlatformKind,
    /// A lease (owner/dseq/gseq/oseq/provider) and the SDL file of its services (--platform
    /// local). Repeatable
    #[arg(long = "lease", value_name = "LEASE=SDLFILE", value_parser = lease_and_sdl)]
    pub(crate) leases: Vec<(LeaseId, PathBuf)>,
    /// Serve the leases of another gateway on this machine, whose --data-dir this is: views and logs, without
    /// restarts (--platform local)
    #[arg(long, value_name = "DIR", value_parser = directory)]
    pub(crate) attach: Option<PathBuf>,
    /// Address for tenants (gRPC over TLS; the client certificate is optional)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8446", value_parser = listen_address)]
    pub(crate) listen: SocketAddr,
    /// Address for operators (HTTP: /metrics, /followers, /fleet, /live, /ready), without authentication:
    /// keep it private
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9446", value_parser = listen_address)]
    pub(crate) admin_listen: SocketAddr,
    /// Directory for logs, the gateway's generated certificate and stored answers of --chain-grpc
    #[arg(long, value_name = "DIR", default_value = ".leasemux", value_parser = new_directory)]
    pub(crate) data_dir: PathBuf,
    /// The gateway's certificate (PEM), reloaded when it changes; default: server.pem in --data-dir,
    /// generated
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) tls_key: Option<PathBuf>,
    /// Host name of the gateway, for the generated certificate and for clients that get --ca-tls-cert; in a
    /// cluster, the first is also the provider's by default. Repeatable
    #[arg(long = "public-hostname", value_name = "HOST", value_parser = hostname)]
    pub(crate) public_hostnames: Vec<String>,
    /// Format of the log on standard error: text or json
    #[arg(long, value_name = "FORM", default_value = "text", value_parser = choice(LOG_FORMATS, "text or json"))]
    pub(crate) log_format: Format,
    /// Log levels, such as 'info' or 'warn,leasemux=debug'; TLS and HTTP libraries log only errors unless
    /// named
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub(crate) log_filter: String,
    /// OpenTelemetry collector that gets the traces of calls (OTLP over gRPC), a span for each; default: none
    #[arg(long, value_name = "URL", value_parser = collector)]
    pub(crate) otlp_endpoint: Option<Uri>,
    /// Stop when standard input ends, for a parent process that supervises the gateway
    #[arg(long)]
    pub(crate) lifeline: bool,
    #[command(flatten)]
    pub(crate) access: AccessConfig,
    #[command(flatten)]
    pub(crate) kube: KubeOptions,
    #[command(flatten)]
    pub(crate) node: NodeOptions,
    #[command(flatten)]
    pub(crate) rest: RestOptions,
    #[command(flatten)]
    pub(crate) published: PublishedOptions,
    #[command(flatten)]
    pub(crate) fleet: FleetOptions,
    #[command(flatten)]
    pub(crate) local: LocalOptions,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Address or network of a proxy, whose PROXY protocol v2 headers then name the peer. Repeatable
    #[arg(long = "trusted-proxy", help_heading = "Limits of connections", value_name = "CIDR", value_parser = network)]
    pub(crate) trusted_proxies: Vec<IpNet>,
}

/// Settings of the platforms in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Kubernetes (--platform kube or node)")]
pub(crate) struct KubeOptions {
    /// Kubeconfig of the cluster; default: the service account of the pod in which the gateway runs
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of --kubeconfig; default: its current one
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) kube_context: Option<String>,
    /// Public host name of the provider, for forwarded ports; default: the first --public-hostname
    #[arg(long, value_name = "HOST", value_parser = hostname)]
    pub(crate) cluster_public_hostname: Option<String>,
    /// Namespace of the provider's own resources, such as host names
    #[arg(long, value_name = "NAME", default_value = "lease", value_parser = name)]
    pub(crate) manifest_namespace: String,
    /// Namespace for restart locks, the same for all gateways; default: that of the service account or
    /// context
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) coordination_namespace: Option<String>,
}

/// Settings of the platform `node`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Kubernetes (--platform kube or node)")]
pub(crate) struct NodeOptions {
    /// Name of the node on which the gateway runs (--platform node)
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) node_name: Option<String>,
    /// Directory of the kubelet's pod logs on that node (--platform node)
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods", value_parser = new_directory)]
    pub(crate) pod_logs_dir: PathBuf,
}

/// Where services run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlatformKind {
    /// As processes of this machine.
    Local,
    /// In the cluster of an Akash provider.
    Kube,
    /// Likewise, with the gateway on one of its nodes, where it reads logs from disk.
    Node,
}

// === impl KubeOptions ===

impl KubeOptions {
    /// Returns how to reach the cluster.
    pub(crate) fn access(&self) -> ClusterAccess {
        ClusterAccess {
            kubeconfig: self.kubeconfig.clone(),
            context: self.kube_context.clone(),
            manifest_namespace: self.manifest_namespace.clone(),
            coordination_namespace: self.coordination_namespace.clone(),
        }
    }
}

/// Checks the settings against each other, and with `checks`. Returns a note if something could not be
/// checked.
pub(super) fn check(resolver: &mut Resolver<'_>, checks: &StartChecks) -> Option<String> {
    resolver.require(
        "platform",
        "where services run: 'local' (processes of this machine), 'kube' or 'node' (a cluster)",
    );
    let platform = resolver.get::<PlatformKind>("platform").copied();
    let in_cluster = matches!(platform, Some(PlatformKind::Kube | PlatformKind::Node));
    check_leases(resolver, in_cluster, checks);
    let is_source = fleet::is_source(resolver);
    if is_source && platform.is_some_and(|platform| platform != PlatformKind::Node) {
        resolver.conflict("--fleet-role source goes with --platform node");
    }
    access::check(resolver, is_source, checks);
    let note = check_cluster(resolver, in_cluster, checks);
    if platform == Some(PlatformKind::Node) {
        resolver.require("node_name", "the name of the node on which the gateway runs, as in the cluster");
        resolver.verify("pod_logs_dir", |dir: &PathBuf| directory(&dir.to_string_lossy()).map(drop));
    }
    rest::check(resolver, checks);
    published::check(resolver);
    fleet::check(resolver);
    check_certificate(resolver, ["nats_cert", "nats_key"], checks);
    resolver.verify("nats_ca", |file: &PathBuf| (checks.authorities)(file));
    for id in LISTENERS {
        resolver.verify(id, |address: &SocketAddr| (checks.listen)(*address));
    }
    for (index, one) in LISTENERS.iter().enumerate() {
        for other in &LISTENERS[index + 1..] {
            let address = |id| resolver.get::<SocketAddr>(id).copied();
            if address(one).zip(address(other)).is_some_and(|(one, other)| collide(one, other)) {
                let [one, other] = [one, other].map(|id| id.replace('_', "-"));
                resolver.conflict(&format!("--{one} and --{other} are the same address: they must differ"));
            }
        }
    }
    resolver.verify("otlp_endpoint", |_: &Uri| check_otlp(cfg!(feature = "otlp")));
    resolver.verify("data_dir", |dir: &PathBuf| (checks.data_dir)(dir));
    check_certificate(resolver, ["tls_cert", "tls_key"], checks);
    check_certificate(resolver, ["ca_tls_cert", "ca_tls_key"], checks);
    if resolver.is_given("ca_tls_cert") && resolver.is_given("ca_tls_key") {
        resolver.require("public_hostnames", "the host name of --ca-tls-cert");
    }
    let notes: Vec<String> = note.into_iter().chain(check_nats(resolver, checks)).collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// Uses the servers of the fleet. Only if there is no error until here, because it takes seconds if they do
/// not answer. Returns a note about their settings.
fn check_nats(resolver: &mut Resolver<'_>, checks: &StartChecks) -> Option<String> {
    let options = resolver.group::<FleetOptions>().filter(|_| resolver.is_valid())?;
    let subjects = options.subjects(resolver.get::<Address>("provider")).ok().flatten()?;
    let node = resolver.get::<String>("node_name").filter(|_| fleet::is_source(resolver));
    (checks.nats)(&options, &subjects, node.map(String::as_str)).unwrap_or_else(|error| {
        resolver.conflict(&error);
        None
    })
}

fn check_leases(resolver: &mut Resolver<'_>, in_cluster: bool, checks: &StartChecks) {
    type Lease = (LeaseId, PathBuf);
    if resolver.is_given("attach") {
        if in_cluster {
            resolver.conflict("--attach goes with --platform local");
        }
        if resolver.is_given("leases") {
            resolver.conflict("--attach and --lease do not go together: the other gateway has the leases");
        }
        let dirs = ["attach", "data_dir"].map(|id| resolver.get::<PathBuf>(id).cloned());
        if dirs[0].is_some() && dirs[0] == dirs[1] {
            resolver.conflict("--attach is the --data-dir: they must differ");
        }
    } else if !in_cluster {
        resolver.require("leases", &format!("LEASE=SDLFILE, where LEASE is {LEASE}"));
    } else if resolver.is_given("leases") {
        resolver.conflict("--lease goes with --platform local: the leases of a cluster are discovered");
    }
    resolver.verify("leases", |(_, sdl): &Lease| (checks.sdl)(sdl));
    let mut seen = BTreeSet::new();
    resolver.verify("leases", |(lease, _): &Lease| {
        must_be(seen.insert(lease.clone()).then_some(()), "given once only")
    });
    if let Some(provider) = resolver.get::<Address>("provider").cloned() {
        resolver.verify("leases", |(lease, _): &Lease| {
            must_be((*lease.provider() == provider).then_some(()), "a lease of the --provider")
        });
    }
}

fn check_cluster(resolver: &mut Resolver<'_>, in_cluster: bool, checks: &StartChecks) -> Option<String> {
    if resolver.is_given("kube_context") {
        resolver.require("kubeconfig", "the file with the --kube-context");
    }
    if !in_cluster {
        return None;
    }
    resolver.require("provider", "the address of the provider whose leases are served");
    let scope = if fleet::is_source(resolver) { CheckScope::NodePods } else { CheckScope::Leases };
    let options = resolver.group::<KubeOptions>()?;
    if resolver.is_given("kubeconfig") && options.kubeconfig.is_none() {
        return None;
    }
    (checks.cluster)(&options.access(), scope).unwrap_or_else(|error| {
        resolver.conflict(&error);
        None
    })
}

/// Checks a certificate and its key, which are given together or not at all.
fn check_certificate(resolver: &mut Resolver<'_>, [cert, key]: [&str; 2], checks: &StartChecks) {
    let flag = |id: &str| format!("--{}", id.replace('_', "-"));
    if resolver.is_given(cert) {
        resolver.require(key, &format!("the private key of {}", flag(cert)));
    }
    if resolver.is_given(key) {
        resolver.require(cert, &format!("the certificate of {}", flag(key)));
    }
    let files = resolver.get::<PathBuf>(cert).zip(resolver.get::<PathBuf>(key));
    if let Some(Err(reason)) = files.map(|(cert, key)| (checks.certificate)(cert, key)) {
        resolver.conflict(&format!("{} and {} cannot be used: {reason}", flag(cert), flag(key)));
    }
}

/// Checks that the program can export traces. `is_built_in`: it was built with the feature.
fn check_otlp(is_built_in: bool) -> Result<(), String> {
    let error =
        "this program was built without the feature `otlp`; use the image, or build with --features otlp";
    is_built_in.then_some(()).ok_or_else(|| error.to_owned())
}

/// Returns whether a process cannot listen on both: they are equal, or one is unspecified.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let is_wildcard =
        one.is_ipv4() == other.is_ipv4() && (one.ip().is_unspecified() || other.ip().is_unspecified());
    one.port() == other.port() && one.port() != 0 && (one == other || is_wildcard)
}

/// Parses log levels. The library would accept a misspelt level as the name of a target, and log nothing
/// else.
fn log_filter(text: &str) -> Result<String, String> {
    let is_word =
        |part: &&str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte));
    let unknown =
        text.split(',').map(str::trim).find(|part| is_word(part) && part.parse::<LevelFilter>().is_err());
    let error = match unknown {
        Some(word) => Some(format!("`{word}` is none of off, error, warn, info, debug, trace")),
        None => EnvFilter::try_new(text).err().map(|error| error.to_string()),
    };
    match error {
        None => Ok(text.to_owned()),
        Some(error) => Err(format!("must be levels by target, such as 'warn,leasemux=debug' ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_collide_are_found() {
        let cases = [
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "[::1]:1", false),
            ("0.0.0.0:0", "127.0.0.1:0", false),
        ];
        for (one, other, expected) in cases {
            assert_eq!(collide(one.parse().unwrap(), other.parse().unwrap()), expected, "{one} {other}");
        }
    }

    #[test]
    fn endpoint_without_the_feature_names_it() {
        assert_eq!(check_otlp(true), Ok(()));
        assert!(check_otlp(false).unwrap_err().contains("--features otlp"));
    }

    #[test]
    fn misspelt_log_level_is_rejected() {
        for good in
            ["info", "WARN", "off", "", "warn,leasemux=debug", "warn,h2=off", "leasemux[stream{id=1}]=trace"]
        {
            assert_eq!(log_filter(good).as_deref(), Ok(good));
        }
        for (bad, why) in
            [("inof", "`inof` is none of"), ("leasemux=debug,warning", "`warning`"), ("a=b=c", "(")]
        {
            let error = log_filter(bad).unwrap_err();
            assert!(error.starts_with("must be levels by target") && error.contains(why), "{bad}: {error}");
        }
    }
}
