//! The command line, as clap sees it: names, defaults, help. Values stay text; `super::value` judges them.
//!
//! Every flag also reads `LEASEMUX_` and its name in capitals; a test holds that. A switch may be given as
//! `--follow=false` too, so that one can be turned off that the environment turns on.

use clap::{Args, Parser, Subcommand};

/// How a program ends that was asked for nothing it could do.
const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed for another reason; for 'demo': lines were lost without a report
    2  wrong usage
    3  refused: not authenticated, not permitted, or a quota is used up
    4  not found: no such lease, service or replica
    5  unavailable: the gateway could not be reached, or is going away
    6  done, but lines were lost (each loss was reported on standard error)
  130  interrupted by Ctrl-C";

const PROGRAM_EXAMPLES: &str = "\
Examples:
  See it work on this machine, for ten seconds:
      leasemux demo --for 10s
  Make a tenant, let the gateway trust it, and run a gateway with one lease of it:
      PROVIDER=akash1d3jkzum9d46hsgryv4kk7mnnw3exzar9zlwx9n
      leasemux identity new --dir tenant
      mkdir trusted && cp tenant/cert.pem trusted/tenant.pem
      leasemux serve --platform local --trust-dir trusted \\
          --lease $(cat tenant/address)/1/1/1/$PROVIDER=examples/shop.yaml
  Follow its logs:
      leasemux logs $(cat tenant/address)/1/1/1/$PROVIDER --follow \\
          --identity tenant --ca .leasemux/server.pem

Every flag can also be given by an environment variable: --admin-listen is LEASEMUX_ADMIN_LISTEN.
Several values are separated by commas there.";

const SERVE_EXAMPLES: &str = "\
Examples:
  One lease of one tenant; the provider may be any other account address:
      PROVIDER=akash1d3jkzum9d46hsgryv4kk7mnnw3exzar9zlwx9n
      leasemux serve --platform local --trust-dir trusted \\
          --lease $(cat tenant/address)/1/1/1/$PROVIDER=examples/shop.yaml
  Two leases, open to the network under a name, from the environment:
      LEASEMUX_LEASE=$LEASE_A=a.yaml,$LEASE_B=b.yaml LEASEMUX_LISTEN=0.0.0.0:8446 \\
          leasemux serve --platform local --trust-dir trusted --public-hostname gateway.example.com

The gateway prints one line on standard output when it is ready, with the addresses really bound:
      leasemux ready: gateway https://127.0.0.1:8446 admin http://127.0.0.1:9446
The log goes to standard error. SIGTERM or Ctrl-C ends it in order; a second one at once.
The processes of all leases run as the user who started the gateway: nothing isolates them from each other.";

const LOGS_EXAMPLES: &str = "\
Examples:
  Everything that can still be read, from all services:
      leasemux logs $LEASE --identity tenant --ca server.pem
  The last 100 lines of one service, and whatever comes:
      leasemux logs $LEASE --identity tenant --ca server.pem --service web --tail 100 --follow
  Two replicas of a service since five minutes ago, with times:
      leasemux logs $LEASE --identity tenant --ca server.pem --service web \\
          --replica 0 --replica 1 --since 5m --timestamps
  As JSON, one object a line, for a program:
      leasemux logs $LEASE --identity tenant --ca server.pem --follow -o json | jq -r 'select(.type==\"line\").line'

A follow that is cut reconnects by itself and goes on exactly where it was. Text lines go to standard output as they
are; what is said about them (started, ended, lost lines, reconnects) goes to standard error. On a terminal, control
sequences in lines other than colours are shown, not obeyed.";

const IDENTITY_EXAMPLES: &str = "\
Examples:
  A fresh tenant, trusted by a gateway that was started with --trust-dir trusted:
      leasemux identity new --dir tenant
      cp tenant/cert.pem trusted/tenant.pem
      cat tenant/address";

const DEMO_EXAMPLES: &str = "\
Examples:
  Ten seconds, then a summary:
      leasemux demo --for 10s
  With a thousand more followers, each on its own connection, each checking every line:
      leasemux demo --for 20s --followers 1000
  With services of your own; lines that begin with a counter (\"1 …\", \"2 …\") are checked:
      leasemux demo --sdl my.yaml";

/// Follow the logs of Akash leases: a gateway that reads each log once, however many follow it.
#[derive(Debug, Parser)]
#[command(
    name = "leasemux",
    version,
    after_help = PROGRAM_EXAMPLES,
    after_long_help = format!("{PROGRAM_EXAMPLES}\n\n{EXIT_CODES}"),
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = true
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Serve(Box<ServeArgs>),
    Logs(Box<LogsArgs>),
    Identity(IdentityArgs),
    Demo(DemoArgs),
}

/// Run a gateway
#[derive(Debug, Args)]
#[command(
    override_usage = "leasemux serve --platform <NAME> --lease <LEASE=SDLFILE>... --trust-dir <DIR> [OPTIONS]",
    after_help = SERVE_EXAMPLES
)]
pub(super) struct ServeArgs {
    /// Where services run: 'local' runs them as processes of this machine
    #[arg(long, env = "LEASEMUX_PLATFORM", value_name = "NAME")]
    pub(super) platform: Option<String>,
    /// A lease and the SDL file of what runs under it; LEASE is owner/dseq/gseq/oseq/provider. Repeatable
    #[arg(long, env = "LEASEMUX_LEASE", value_name = "LEASE=SDLFILE")]
    pub(super) lease: Vec<String>,
    /// Directory of trusted tenants' certificates (*.pem); picked up and dropped while running
    #[arg(long, env = "LEASEMUX_TRUST_DIR", value_name = "DIR")]
    pub(super) trust_dir: Option<String>,
    /// Address for tenants (gRPC over mutual TLS)
    #[arg(long, env = "LEASEMUX_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:8446")]
    pub(super) listen: Option<String>,
    /// Address for the operator (HTTP: /metrics, /live, /ready)
    #[arg(long, env = "LEASEMUX_ADMIN_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:9446")]
    pub(super) admin_listen: Option<String>,
    /// Directory for logs and for the certificate that the gateway makes itself
    #[arg(long, env = "LEASEMUX_DATA_DIR", value_name = "DIR", default_value = ".leasemux")]
    pub(super) data_dir: Option<String>,
    /// The gateway's certificate (PEM); without it one is made in the data directory as server.pem
    #[arg(long, env = "LEASEMUX_TLS_CERT", value_name = "FILE")]
    pub(super) tls_cert: Option<String>,
    /// The private key of --tls-cert (PEM)
    #[arg(long, env = "LEASEMUX_TLS_KEY", value_name = "FILE")]
    pub(super) tls_key: Option<String>,
    /// A name under which clients reach the gateway, for the certificate that it makes. Repeatable
    #[arg(long, env = "LEASEMUX_PUBLIC_HOSTNAME", value_name = "HOST")]
    pub(super) public_hostname: Vec<String>,
    /// Form of the log on standard error: text or json
    #[arg(long, env = "LEASEMUX_LOG_FORMAT", value_name = "FORM", default_value = "text")]
    pub(super) log_format: Option<String>,
    /// What is logged, such as 'info' or 'warn,leasemux=debug'
    #[arg(long, env = "LEASEMUX_LOG_FILTER", value_name = "FILTER", default_value = "info")]
    pub(super) log_filter: Option<String>,
    /// Stop when standard input ends (for a parent process that supervises the gateway)
    #[arg(long, env = "LEASEMUX_LIFELINE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) lifeline: Option<String>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    #[command(flatten)]
    pub(super) limits: LimitsArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Logs on disk")]
pub(super) struct StoreArgs {
    /// Rotate a container's log file when it has grown to this size
    #[arg(long, env = "LEASEMUX_ROTATE_MAX_BYTES", value_name = "SIZE", default_value = "10MiB")]
    pub(super) rotate_max_bytes: Option<String>,
    /// Keep this many log files of each run, the one being written included
    #[arg(long, env = "LEASEMUX_ROTATE_FILES", value_name = "N", default_value = "5")]
    pub(super) rotate_files: Option<String>,
    /// Keep the logs of this many ended runs of each replica
    #[arg(long, env = "LEASEMUX_KEPT_RUNS", value_name = "N", default_value = "10")]
    pub(super) kept_runs: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitsArgs {
    /// Lines held in memory for the followers of one replica; who falls further behind loses lines and is told
    #[arg(long, env = "LEASEMUX_RING_MAX_BYTES", value_name = "SIZE", default_value = "4MiB")]
    pub(super) ring_max_bytes: Option<String>,
    /// How long lines may wait for others to leave with them; 0 = never
    #[arg(long, env = "LEASEMUX_PACE", value_name = "TIME", default_value = "5ms")]
    pub(super) pace: Option<String>,
    /// How long a replica's log stays open after its last follower has gone
    #[arg(long, env = "LEASEMUX_ACTOR_IDLE", value_name = "TIME", default_value = "10s")]
    pub(super) actor_idle: Option<String>,
    /// Reset a follower that takes nothing for so long
    #[arg(long, env = "LEASEMUX_STALL_TIMEOUT", value_name = "TIME", default_value = "5m")]
    pub(super) stall_timeout: Option<String>,
    /// Reads of older lines at once, in all
    #[arg(long, env = "LEASEMUX_HISTORY_READS", value_name = "N", default_value = "64")]
    pub(super) history_reads: Option<String>,
    /// Connections at once, in all
    #[arg(long, env = "LEASEMUX_MAX_CONNECTIONS", value_name = "N", default_value = "16384")]
    pub(super) max_connections: Option<String>,
    /// Streams at once on one connection
    #[arg(long, env = "LEASEMUX_STREAMS_PER_CONNECTION", value_name = "N", default_value = "256")]
    pub(super) streams_per_connection: Option<String>,
    /// Drop a connection whose TLS handshake takes longer
    #[arg(long, env = "LEASEMUX_HANDSHAKE_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub(super) handshake_timeout: Option<String>,
    /// How long streams may take to end when the gateway is stopped
    #[arg(long, env = "LEASEMUX_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub(super) drain_timeout: Option<String>,
    /// How often the trust directory is looked at, should the system not tell of changes
    #[arg(long, env = "LEASEMUX_TRUST_POLL", value_name = "TIME", default_value = "5s")]
    pub(super) trust_poll: Option<String>,
}

/// Print the logs of a lease's services
#[derive(Debug, Args)]
#[command(override_usage = "leasemux logs <LEASE> --identity <DIR> [--ca <FILE> | --insecure] [OPTIONS]", after_help = LOGS_EXAMPLES, after_long_help = format!("{LOGS_EXAMPLES}\n\n{EXIT_CODES}"))]
pub(super) struct LogsArgs {
    /// The lease: owner/dseq/gseq/oseq/provider
    #[arg(value_name = "LEASE")]
    pub(super) lease: Option<String>,
    /// The gateway
    #[arg(long, env = "LEASEMUX_GATEWAY", value_name = "URL", default_value = "https://127.0.0.1:8446")]
    pub(super) gateway: Option<String>,
    /// Who you are: a directory with cert.pem and key.pem, as made by 'identity new'
    #[arg(long, env = "LEASEMUX_IDENTITY", value_name = "DIR")]
    pub(super) identity: Option<String>,
    /// Trust the gateway if its certificate is in this file (PEM) or is signed by one that is; without it, the
    /// system's authorities decide
    #[arg(long, env = "LEASEMUX_CA", value_name = "FILE")]
    pub(super) ca: Option<String>,
    /// Trust any gateway, even one that is not the gateway
    #[arg(long, env = "LEASEMUX_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) insecure: Option<String>,
    /// Only this service. Repeatable
    #[arg(long, env = "LEASEMUX_SERVICE", value_name = "NAME")]
    pub(super) service: Vec<String>,
    /// Only this replica of each --service, counted from 0. Repeatable
    #[arg(long, env = "LEASEMUX_REPLICA", value_name = "N")]
    pub(super) replica: Vec<String>,
    /// Stay for lines that are yet to come, through restarts and cut connections
    #[arg(short, long, env = "LEASEMUX_FOLLOW", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) follow: Option<String>,
    /// Begin with the last N lines of each replica; 0 = with what is yet to come
    #[arg(long, env = "LEASEMUX_TAIL", value_name = "N")]
    pub(super) tail: Option<String>,
    /// Begin at this instant: a time ago (5m, 1h30m) or RFC 3339
    #[arg(long, env = "LEASEMUX_SINCE", value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Begin each line with the time at which it was written
    #[arg(long, env = "LEASEMUX_TIMESTAMPS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) timestamps: Option<String>,
    /// The run of each container before the present one
    #[arg(long, env = "LEASEMUX_PREVIOUS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) previous: Option<String>,
    /// When this side cannot keep up: 'drop' skips lines and reports them, 'close' goes back and reads them again
    #[arg(long, env = "LEASEMUX_ON_LAG", value_name = "WHAT", default_value = "drop")]
    pub(super) on_lag: Option<String>,
    /// Form of the output: text or json
    #[arg(short, long, env = "LEASEMUX_OUTPUT", value_name = "FORM", default_value = "text")]
    pub(super) output: Option<String>,
}

/// Make a tenant's identity
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = IDENTITY_EXAMPLES, disable_help_subcommand = true)]
pub(super) struct IdentityArgs {
    #[command(subcommand)]
    pub(super) command: IdentityCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum IdentityCommand {
    New(IdentityNewArgs),
}

/// Make an account address, a key and a certificate, as Akash's own tools shape them
///
/// Writes cert.pem, key.pem (readable only by you) and address into the directory, and overwrites nothing.
#[derive(Debug, Args)]
#[command(override_usage = "leasemux identity new --dir <DIR>", after_help = IDENTITY_EXAMPLES)]
pub(super) struct IdentityNewArgs {
    /// Directory to write to; made if there is none
    #[arg(long, env = "LEASEMUX_DIR", value_name = "DIR")]
    pub(super) dir: Option<String>,
}

/// Start a gateway with sample services, and follow them as a tenant
///
/// Everything is real (processes, gRPC over mutual TLS), thrown away at the end, and checked: exits with 1 if a follower
/// misses a line that was not reported as lost, or sees one twice.
#[derive(Debug, Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub(super) struct DemoArgs {
    /// End by itself after so long; without it, Ctrl-C ends it
    #[arg(long = "for", id = "for", env = "LEASEMUX_FOR", value_name = "TIME")]
    pub(super) duration: Option<String>,
    /// Attach so many more followers, which count and check
    #[arg(long, env = "LEASEMUX_FOLLOWERS", value_name = "N", default_value = "0")]
    pub(super) followers: Option<String>,
    /// Run these services instead of the sample
    #[arg(long, env = "LEASEMUX_SDL", value_name = "FILE")]
    pub(super) sdl: Option<String>,
    /// Show the gateway's own log
    #[arg(short, long, env = "LEASEMUX_VERBOSE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) verbose: Option<String>,
}
