//! `serve`.

use clap::Args;

use super::access::AccessArgs;
use super::connections::ConnectionArgs;
use super::limits::LimitsArgs;
use super::quotas::QuotaArgs;

const SERVE_EXAMPLES: &str = "\
Examples:
  One lease of one tenant; the provider may be any other account address:
      PROVIDER=akash1d3jkzum9d46hsgryv4kk7mnnw3exzar9zlwx9n
      leasemux serve --platform local --trust-dir trusted \\
          --lease $(cat tenant/address)/1/1/1/$PROVIDER=examples/shop.yaml
  Two leases, open to the network under a name, from the environment:
      LEASEMUX_LEASE=$LEASE_A=a.yaml,$LEASE_B=b.yaml \\
      LEASEMUX_LISTEN=0.0.0.0:8446 \\
          leasemux serve --platform local --trust-dir trusted \\
          --public-hostname gateway.example.com
  The leases of an Akash provider's cluster, from inside it:
      leasemux serve --platform kube --provider $PROVIDER --trust-dir trusted \\
          --listen 0.0.0.0:8446 --public-hostname provider.example.com
  From a file, after looking into it:
      leasemux serve --config gateway.toml --check \\
          && leasemux serve --config gateway.toml

The gateway prints one line on standard output when it is ready, with the
addresses really bound:
  leasemux ready: gateway https://127.0.0.1:8446 admin http://127.0.0.1:9446
The log goes to standard error. SIGTERM or Ctrl-C ends it in order (--lame-duck,
then --drain-timeout); a second one at once. So does the end of its terminal
(SIGHUP), unless it was started by nohup.
The processes of all leases run as the user who started the gateway: nothing
isolates them from each other.";

/// Run a gateway
#[derive(Debug, Args)]
#[command(
    override_usage = "leasemux serve --platform <NAME> --lease <LEASE=SDLFILE>... --trust-dir <DIR> [OPTIONS]
       leasemux serve --config <FILE> [OPTIONS]",
    after_help = SERVE_EXAMPLES
)]
pub(in crate::config) struct ServeArgs {
    /// Take what neither flags nor variables give from this file (TOML); its keys are the flags' names, such as admin-listen
    #[arg(long, env = "LEASEMUX_CONFIG", value_name = "FILE")]
    pub(in crate::config) config: Option<String>,
    /// Start nothing: look into what is configured (SDL files, certificate and key, addresses too), tell every fault, and
    /// exit with 0 if there is none, else with 2
    #[arg(long, env = "LEASEMUX_CHECK", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) check: Option<String>,
    /// Where services run: 'local' runs them as processes of this machine, 'kube' finds them in an Akash provider's cluster,
    /// 'node' does so too, and reads the logs of the node that it is on from disk
    #[arg(long, env = "LEASEMUX_PLATFORM", value_name = "NAME")]
    pub(in crate::config) platform: Option<String>,
    /// A lease and the SDL file of what runs under it; LEASE is owner/dseq/gseq/oseq/provider. Repeatable
    #[arg(long, env = "LEASEMUX_LEASE", value_name = "LEASE=SDLFILE")]
    pub(in crate::config) lease: Vec<String>,
    /// Address for tenants (gRPC over mutual TLS)
    #[arg(long, env = "LEASEMUX_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:8446")]
    pub(in crate::config) listen: Option<String>,
    /// Address for the operator (HTTP: /metrics, /followers, /live, /ready); keep it private: it asks nobody who they are
    #[arg(long, env = "LEASEMUX_ADMIN_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:9446")]
    pub(in crate::config) admin_listen: Option<String>,
    /// Directory for logs and for the certificate that the gateway makes itself
    #[arg(long, env = "LEASEMUX_DATA_DIR", value_name = "DIR", default_value = ".leasemux")]
    pub(in crate::config) data_dir: Option<String>,
    /// The gateway's certificate (PEM), read again whenever it or its key changes; without it one is made in the data
    /// directory as server.pem
    #[arg(long, env = "LEASEMUX_TLS_CERT", value_name = "FILE")]
    pub(in crate::config) tls_cert: Option<String>,
    /// The private key of --tls-cert (PEM)
    #[arg(long, env = "LEASEMUX_TLS_KEY", value_name = "FILE")]
    pub(in crate::config) tls_key: Option<String>,
    /// A name under which clients reach the gateway, for the certificate that it makes, beside the address of --listen. Repeatable
    #[arg(long, env = "LEASEMUX_PUBLIC_HOSTNAME", value_name = "HOST")]
    pub(in crate::config) public_hostname: Vec<String>,
    /// Form of the log on standard error: text or json
    #[arg(long, env = "LEASEMUX_LOG_FORMAT", value_name = "FORM", default_value = "text")]
    pub(in crate::config) log_format: Option<String>,
    /// What is logged, such as 'info' or 'warn,leasemux=debug'; of the TLS and HTTP libraries (rustls, h2, hyper) only errors, unless they are named
    #[arg(long, env = "LEASEMUX_LOG_FILTER", value_name = "FILTER", default_value = "info")]
    pub(in crate::config) log_filter: Option<String>,
    /// Stop when standard input ends (for a parent process that supervises the gateway)
    #[arg(long, env = "LEASEMUX_LIFELINE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) lifeline: Option<String>,
    #[command(flatten)]
    pub(in crate::config) access: AccessArgs,
    #[command(flatten)]
    pub(in crate::config) kube: KubeArgs,
    #[command(flatten)]
    pub(in crate::config) services: ServiceArgs,
    #[command(flatten)]
    pub(in crate::config) store: StoreArgs,
    #[command(flatten)]
    pub(in crate::config) limits: LimitsArgs,
    #[command(flatten)]
    pub(in crate::config) connections: ConnectionArgs,
    #[command(flatten)]
    pub(in crate::config) quotas: QuotaArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Kubernetes (--platform kube or node)")]
pub(in crate::config) struct KubeArgs {
    /// How to reach the cluster; without it the gateway runs in it, and asks as its service account
    #[arg(long, env = "LEASEMUX_KUBECONFIG", value_name = "FILE")]
    pub(in crate::config) kubeconfig: Option<String>,
    /// The context of --kubeconfig; without it the current one
    #[arg(long, env = "LEASEMUX_KUBE_CONTEXT", value_name = "NAME")]
    pub(in crate::config) kube_context: Option<String>,
    /// The provider's public host name, where forwarded ports are reached; without it the first --public-hostname
    #[arg(long, env = "LEASEMUX_CLUSTER_PUBLIC_HOSTNAME", value_name = "HOST")]
    pub(in crate::config) cluster_public_hostname: Option<String>,
    /// The namespace of the provider's own resources, such as host names
    #[arg(long, env = "LEASEMUX_MANIFEST_NAMESPACE", value_name = "NAME", default_value = "lease")]
    pub(in crate::config) manifest_namespace: Option<String>,
    /// The namespace in which gateways agree on restarts, the same for all of a cluster; without it that of the service account, or
    /// of the kubeconfig's context
    #[arg(long, env = "LEASEMUX_COORDINATION_NAMESPACE", value_name = "NAME")]
    pub(in crate::config) coordination_namespace: Option<String>,
    /// The name of the node that the gateway is on (--platform node)
    #[arg(long, env = "LEASEMUX_NODE_NAME", value_name = "NAME")]
    pub(in crate::config) node_name: Option<String>,
    /// Where that node's kubelet has the logs of its pods (--platform node)
    #[arg(long, env = "LEASEMUX_POD_LOGS_DIR", value_name = "DIR", default_value = "/var/log/pods")]
    pub(in crate::config) pod_logs_dir: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Services (--platform local)")]
pub(in crate::config) struct ServiceArgs {
    /// Time between SIGTERM to a service's first process and SIGKILL to everything left of it, in a restart and at the
    /// gateway's end, at most 1h
    #[arg(long, env = "LEASEMUX_STOP_GRACE", value_name = "TIME", default_value = "10s")]
    pub(in crate::config) stop_grace: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Logs on disk (--platform local)")]
pub(in crate::config) struct StoreArgs {
    /// Rotate a container's log file when it has grown to this size
    #[arg(long, env = "LEASEMUX_ROTATE_MAX_BYTES", value_name = "SIZE", default_value = "10MiB")]
    pub(in crate::config) rotate_max_bytes: Option<String>,
    /// Keep this many log files of each run, the one being written included
    #[arg(long, env = "LEASEMUX_ROTATE_FILES", value_name = "N", default_value = "5")]
    pub(in crate::config) rotate_files: Option<String>,
    /// Keep the logs of this many ended runs of each replica
    #[arg(long, env = "LEASEMUX_KEPT_RUNS", value_name = "N", default_value = "10")]
    pub(in crate::config) kept_runs: Option<String>,
}
