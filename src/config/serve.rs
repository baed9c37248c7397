//! What a gateway runs with.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::access::{self, AccessConfig};
use super::cli::{ServeArgs, StoreArgs};
use super::faults::{ConfigErrors, Resolver};
use super::limits;
use super::probes::{ClusterProbe, Probes};
use super::value::{
    LEASE, directory, duration, file, hostname, lease_and_sdl, listen_address, name, network, new_directory,
    number, size,
};
use crate::model::id::{Address, LeaseId};
use crate::model::limits::{Limits, RUNS_MAX};

/// Smallest size at which a log file is rotated: one long line must fit.
const ROTATE_MIN_BYTES: u64 = 4 << 10;

/// Largest size at which a log file is rotated.
const ROTATE_MAX_BYTES: u64 = 1 << 40;

/// Longest grace period for services: no service manager waits longer for a gateway to end.
const STOP_GRACE_MAX: Duration = Duration::from_secs(3_600);

/// Most files of one run.
const ROTATE_FILES_MAX: usize = 1_000;

/// Everything that a gateway runs with. Files and directories that it names could be read when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where services run.
    pub platform: PlatformKind,
    /// The leases, each once, and the SDL file of each; not empty if services are run here, and else empty.
    pub leases: Vec<(LeaseId, PathBuf)>,
    /// Whom to let in.
    pub access: AccessConfig,
    /// Address for tenants.
    pub listen: SocketAddr,
    /// Address for the operator.
    pub admin_listen: SocketAddr,
    /// Directory for what the gateway writes; may not exist yet.
    pub data_dir: PathBuf,
    /// The gateway's certificate and its key; `None` = make one.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The certificate for the public host names, signed by an authority, and its key; `None` = they get the other one.
    pub ca_tls: Option<(PathBuf, PathBuf)>,
    /// Names for the certificate to be made, beyond those of this machine.
    pub public_hostnames: Vec<String>,
    /// Time between SIGTERM and SIGKILL when a service is restarted or the gateway ends.
    pub stop_grace: Duration,
    /// Bytes at which a log file is rotated.
    pub rotate_max_bytes: u64,
    /// Log files kept of one run, at least two.
    pub rotate_files: usize,
    /// Ended runs of one replica whose logs are kept; below [`RUNS_MAX`].
    pub kept_runs: usize,
    /// Proxies that are believed to say for whom they speak.
    pub trusted_proxies: Vec<IpNet>,
    /// The bounds.
    pub limits: Limits,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What is logged: directives that `tracing_subscriber::EnvFilter` takes.
    pub log_filter: String,
    /// Whether to stop when standard input ends.
    pub lifeline: bool,
}

/// Where services run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlatformKind {
    /// As processes of this machine.
    Local,
    /// In the cluster of an Akash provider.
    Kube(KubeOptions),
    /// Likewise, and this program is on one of its nodes, where it reads logs from disk.
    Node(KubeOptions, NodeOptions),
}

/// Which cluster, and of which provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeOptions {
    /// The kubeconfig; `None` = this program runs in the cluster, and asks as its service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; `None` = its current one.
    pub context: Option<String>,
    /// The provider whose leases are served.
    pub provider: Address,
    /// The provider's public host name.
    pub hostname: String,
    /// The namespace of the provider's own resources.
    pub manifest_namespace: String,
    /// The namespace in which gateways agree on restarts; `None` = the one that the program is in.
    pub coordination_namespace: Option<String>,
}

/// Which node of a cluster this program is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// The node's name, as the cluster has it.
    pub name: String,
    /// Where its kubelet has the logs of its pods.
    pub logs: PathBuf,
}

/// Form of the log on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The platforms by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Local,
    Kube,
    Node,
}

impl Named {
    /// With what it needs; `None` if that is missing.
    fn with(self, kube: Option<KubeOptions>, node: Option<NodeOptions>) -> Option<PlatformKind> {
        match self {
            Self::Local => Some(PlatformKind::Local),
            Self::Kube => kube.map(PlatformKind::Kube),
            Self::Node => kube.zip(node).map(|(kube, node)| PlatformKind::Node(kube, node)),
        }
    }
}

/// What comes of the flags.
#[derive(Debug)]
pub(super) enum Resolved {
    /// The configuration.
    Serve(Box<ServeConfig>),
    /// It was only to be checked, and nothing is wrong with it; notes on what could not be checked.
    Checked(Vec<String>),
}

/// The configuration, unless it was only to be checked.
pub(super) fn resolve(
    args: &ServeArgs,
    probes: &Probes,
    mut read: Resolver<'_>,
) -> Result<Resolved, ConfigErrors> {
    let check = read.switch("check", args.check.as_ref());
    let probes = if check { probes } else { &Probes::NONE };
    let named = named(args, &mut read);
    let in_cluster = matches!(named, Some(Named::Kube | Named::Node));
    let leases = leases(args, in_cluster, probes, &mut read);
    let access = access::resolve(&args.access, probes, &mut read);
    let provider = access.as_ref().and_then(|access| access.provider.clone());
    for (lease, _) in
        leases.iter().filter(|(lease, _)| provider.as_ref().is_some_and(|at| at != lease.provider()))
    {
        read.wrong("lease", &lease.to_string(), "must be a lease of the --provider");
    }
    let kube = kube(args, in_cluster, provider, probes, &mut read);
    let node = node(args, named == Some(Named::Node), &mut read);
    let address = |text: &str| listen_address(text).and_then(|address| probes.listen(address));
    let listen = read.one("listen", args.listen.as_ref(), address);
    let admin_listen = read.one("admin_listen", args.admin_listen.as_ref(), address);
    if listen.zip(admin_listen).is_some_and(|(one, other)| collide(one, other)) {
        read.unfit("--listen and --admin-listen are the same address: they must differ");
    }
    let data_dir = read.one("data_dir", args.data_dir.as_ref(), |text| {
        new_directory(text).and_then(|dir| probes.data_dir(dir))
    });
    let tls = pair(["tls_cert", "tls_key"], [&args.tls_cert, &args.tls_key], probes, &mut read);
    let given = [&args.access.ca_tls_cert, &args.access.ca_tls_key];
    let ca_tls = pair(["ca_tls_cert", "ca_tls_key"], given, probes, &mut read);
    let public_hostnames = read.list("public_hostname", &args.public_hostname, hostname);
    if ca_tls.is_some() && args.public_hostname.is_empty() {
        read.missing("public_hostname", "the name that --ca-tls-cert is for");
    }
    let kube = kube.map(|options| with_hostname(options, &public_hostnames));
    let platform = named.and_then(|named| named.with(kube, node));
    let grace = duration(Duration::ZERO..=STOP_GRACE_MAX);
    let stop_grace = read.one("stop_grace", args.services.stop_grace.as_ref(), grace);
    let store = store(&args.store, &mut read);
    let trusted_proxies = read.list("trusted_proxy", &args.connections.trusted_proxy, network);
    let limits = limits::resolve(&args.limits, &args.connections, &args.quotas, &mut read);
    let log_format = read.one("log_format", args.log_format.as_ref(), |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be text or json".to_owned()),
    });
    let log_filter = read.one("log_filter", args.log_filter.as_ref(), log_filter);
    let lifeline = read.switch("lifeline", args.lifeline.as_ref());
    let whole = || {
        let (rotate_max_bytes, rotate_files, kept_runs) = store?;
        Some(ServeConfig {
            platform: platform?,
            leases,
            access: access?,
            listen: listen?,
            admin_listen: admin_listen?,
            data_dir: data_dir?,
            tls,
            ca_tls,
            public_hostnames,
            stop_grace: stop_grace?,
            rotate_max_bytes,
            rotate_files,
            kept_runs,
            trusted_proxies,
            limits: limits?,
            log_format: log_format?,
            log_filter: log_filter?,
            lifeline,
        })
    };
    let config = whole();
    let notes = read.notes();
    let config = read.finish(config)?;
    Ok(if check { Resolved::Checked(notes) } else { Resolved::Serve(Box::new(config)) })
}

/// Which platform was asked for.
fn named(args: &ServeArgs, read: &mut Resolver<'_>) -> Option<Named> {
    let right =
        "where services run; 'local' runs them as processes of this machine, 'kube' finds them in a cluster";
    read.required("platform", args.platform.as_ref(), right, |text| match text {
        "local" => Ok(Named::Local),
        "kube" => Ok(Named::Kube),
        "node" => Ok(Named::Node),
        _ => Err("must be 'local', 'kube' or 'node'".to_owned()),
    })
}

/// The cluster, if it is `wanted`; else its flags have nothing to say.
fn kube(
    args: &ServeArgs,
    wanted: bool,
    provider: Option<Address>,
    probes: &Probes,
    read: &mut Resolver<'_>,
) -> Option<KubeOptions> {
    let provider_given = args.access.provider.is_some();
    let args = &args.kube;
    let kubeconfig = read.one("kubeconfig", args.kubeconfig.as_ref(), file);
    let context = read.one("kube_context", args.kube_context.as_ref(), name);
    if context.is_some() && args.kubeconfig.is_none() {
        read.missing("kubeconfig", "the file that --kube-context is in");
    }
    let manifest_namespace = read.one("manifest_namespace", args.manifest_namespace.as_ref(), name);
    let coordination_namespace =
        read.one("coordination_namespace", args.coordination_namespace.as_ref(), name);
    let hostname = args.cluster_public_hostname.as_ref();
    let hostname = read.one("cluster_public_hostname", hostname, super::value::hostname);
    if !wanted {
        return None;
    }
    let is_read = kubeconfig.is_some() || args.kubeconfig.is_none();
    if let Some(manifest_namespace) = manifest_namespace.as_deref().filter(|_| is_read) {
        let (kubeconfig, context) = (kubeconfig.as_deref(), context.as_deref());
        let coordination_namespace = coordination_namespace.as_deref();
        match probes.cluster(&ClusterProbe {
            kubeconfig,
            context,
            manifest_namespace,
            coordination_namespace,
        }) {
            Ok(note) => read.note(note),
            Err(what) => read.unfit(&what),
        }
    }
    if !provider_given {
        read.missing("provider", "the address of the provider whose leases are served");
    }
    Some(KubeOptions {
        kubeconfig,
        context,
        provider: provider?,
        hostname: hostname.unwrap_or_default(),
        manifest_namespace: manifest_namespace?,
        coordination_namespace,
    })
}

/// The node, if it is `wanted`.
fn node(args: &ServeArgs, wanted: bool, read: &mut Resolver<'_>) -> Option<NodeOptions> {
    let args = &args.kube;
    if !wanted {
        read.one("node_name", args.node_name.as_ref(), name);
        read.one("pod_logs_dir", args.pod_logs_dir.as_ref(), new_directory);
        return None;
    }
    let right = "the name of the node that this program is on, as the cluster has it";
    let named = read.required("node_name", args.node_name.as_ref(), right, name);
    let logs = read.one("pod_logs_dir", args.pod_logs_dir.as_ref(), directory);
    Some(NodeOptions { name: named?, logs: logs? })
}

/// The provider's host name is that of the gateway beside it, unless another is given.
fn with_hostname(mut options: KubeOptions, public: &[String]) -> KubeOptions {
    if options.hostname.is_empty()
        && let Some(first) = public.first()
    {
        options.hostname.clone_from(first);
    }
    options
}

fn leases(
    args: &ServeArgs,
    is_kube: bool,
    probes: &Probes,
    read: &mut Resolver<'_>,
) -> Vec<(LeaseId, PathBuf)> {
    let leases = read.list("lease", &args.lease, |text| {
        let (lease, sdl) = lease_and_sdl(text)?;
        Ok((lease, probes.sdl(sdl)?))
    });
    if is_kube && !args.lease.is_empty() {
        read.unfit("--lease goes with --platform local: a cluster's leases are found by themselves");
    }
    if args.lease.is_empty() && !is_kube {
        read.missing("lease", &format!("LEASE=SDLFILE, where LEASE is {LEASE}"));
    }
    let mut seen = BTreeSet::new();
    for (lease, _) in &leases {
        if !seen.insert(lease) {
            read.wrong("lease", &lease.to_string(), "must be given once only");
        }
    }
    leases
}

/// A certificate and its key, of the flags with these ids.
fn pair(
    [cert_id, key_id]: [&str; 2],
    [cert, key]: [&Option<String>; 2],
    probes: &Probes,
    read: &mut Resolver<'_>,
) -> Option<(PathBuf, PathBuf)> {
    let flag = |id: &str| format!("--{}", id.replace('_', "-"));
    let (cert_flag, key_flag) = (flag(cert_id), flag(key_id));
    match (cert, key) {
        (Some(_), None) => read.missing(key_id, &format!("the private key that belongs to {cert_flag}")),
        (None, Some(_)) => read.missing(cert_id, &format!("the certificate that {key_flag} belongs to")),
        _ => {}
    }
    let cert = read.one(cert_id, cert.as_ref(), file);
    let key = read.one(key_id, key.as_ref(), file);
    let (cert, key) = cert.zip(key)?;
    if let Err(what) = probes.certificate(&cert, &key) {
        read.unfit(&format!("{cert_flag} and {key_flag} cannot be used: {what}"));
    }
    Some((cert, key))
}

/// Whether nobody can listen on both: they are the same, or one of them is every address of its kind.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let every =
        one.is_ipv4() == other.is_ipv4() && (one.ip().is_unspecified() || other.ip().is_unspecified());
    one.port() == other.port() && one.port() != 0 && (one == other || every)
}

/// Directives of the log. A word alone that is no level would be a target of which all is logged, and nothing of any other: a slip
/// of the hand that ends in silence.
fn log_filter(text: &str) -> Result<String, String> {
    let is_word =
        |part: &&str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte));
    let unknown =
        text.split(',').map(str::trim).find(|part| is_word(part) && part.parse::<LevelFilter>().is_err());
    let wrong = match unknown {
        Some(word) => Some(format!("`{word}` is none of off, error, warn, info, debug, trace")),
        None => EnvFilter::try_new(text).err().map(|error| error.to_string()),
    };
    match wrong {
        None => Ok(text.to_owned()),
        Some(wrong) => Err(format!("must be levels by target, such as 'warn,leasemux=debug' ({wrong})")),
    }
}

fn store(args: &StoreArgs, read: &mut Resolver<'_>) -> Option<(u64, usize, usize)> {
    let bytes = size(ROTATE_MIN_BYTES..=ROTATE_MAX_BYTES);
    let bytes = read.one("rotate_max_bytes", args.rotate_max_bytes.as_ref(), bytes);
    // Fewer than two, and rotation would lose what was written last.
    let files = read.one("rotate_files", args.rotate_files.as_ref(), number(2..=ROTATE_FILES_MAX));
    let runs = read.one("kept_runs", args.kept_runs.as_ref(), number(1..=RUNS_MAX - 1));
    Some((bytes?, files?, runs?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_both_be_listened_on_are_told() {
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
    fn a_misspelt_level_is_no_silence() {
        for good in
            ["info", "WARN", "off", "", "warn,leasemux=debug", "warn,h2=off", "leasemux[stream{id=1}]=trace"]
        {
            assert_eq!(log_filter(good).as_deref(), Ok(good));
        }
        for (bad, why) in
            [("inof", "`inof` is none of"), ("leasemux=debug,warning", "`warning`"), ("a=b=c", "(")]
        {
            let right = log_filter(bad).unwrap_err();
            assert!(right.starts_with("must be levels by target") && right.contains(why), "{bad}: {right}");
        }
    }
}
