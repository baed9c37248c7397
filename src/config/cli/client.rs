//! The calls of a tenant.

use clap::Args;

use super::EXIT_CODES;

const LOGS_EXAMPLES: &str = "\
Examples:
  Everything that can still be read, from all services:
      leasemux logs $LEASE --identity tenant --ca server.pem
  The last 100 lines of one service, and whatever comes:
      leasemux logs $LEASE --identity tenant --ca server.pem \\
          --service web --tail 100 --follow
  Two replicas of a service since five minutes ago, with times:
      leasemux logs $LEASE --identity tenant --ca server.pem \\
          --service web --replica 0 --replica 1 --since 5m --timestamps
  One hour of a day, in the time zone of this machine:
      leasemux logs $LEASE --identity tenant --ca server.pem \\
          --since '2026-01-31 12:00' --until '2026-01-31 13:00'
  As JSON, one object a line, for a program:
      leasemux logs $LEASE --identity tenant --ca server.pem -f -o json \\
          | jq -r 'select(.type==\"line\").line'

A follow that is cut reconnects by itself and goes on exactly where it was. Text
lines go to standard output as they are; what is said about them (started,
ended, lost lines, reconnects) goes to standard error. On a terminal, control
sequences in lines other than colours are shown, not obeyed.";

// A gateway, and who asks it: of every command that calls one. (No doc comment: clap would take it for the command's.)
#[derive(Debug, Args)]
pub(in crate::config) struct TargetArgs {
    /// The gateway
    #[arg(long, env = "LEASEMUX_GATEWAY", value_name = "URL", default_value = "https://127.0.0.1:8446")]
    pub(in crate::config) gateway: Option<String>,
    /// Who you are: a directory with cert.pem and key.pem, as made by 'identity new'
    #[arg(long, env = "LEASEMUX_IDENTITY", value_name = "DIR")]
    pub(in crate::config) identity: Option<String>,
    /// Act by a token instead (AEP-64, see 'token new'): the token, or @ and a file that holds it
    #[arg(long, env = "LEASEMUX_TOKEN", hide_env_values = true, value_name = "TOKEN|@FILE")]
    pub(in crate::config) token: Option<String>,
    /// Trust the gateway if its certificate is in this file (PEM) or is signed by one that is; without it, the
    /// system's authorities decide
    #[arg(long, env = "LEASEMUX_CA", value_name = "FILE")]
    pub(in crate::config) ca: Option<String>,
    /// Trust any gateway, even one that is not the gateway
    #[arg(long, env = "LEASEMUX_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) insecure: Option<String>,
}

// Which services and replicas of a lease: of every command that is about some.
#[derive(Debug, Args)]
pub(in crate::config) struct ChoiceArgs {
    /// Only this service. Repeatable
    #[arg(long, env = "LEASEMUX_SERVICE", value_name = "NAME")]
    pub(in crate::config) service: Vec<String>,
    /// Only this replica of each --service, counted from 0. Repeatable
    #[arg(long, env = "LEASEMUX_REPLICA", value_name = "N")]
    pub(in crate::config) replica: Vec<String>,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  What runs under a lease:
      leasemux status $LEASE --identity tenant --ca server.pem
  As it changes:
      leasemux status $LEASE --identity tenant --ca server.pem --follow
  For a program, an object for each change; here, what is not ready:
      leasemux status $LEASE --identity tenant --ca server.pem -f -o json \\
          | jq -c '.services[] | {service,
                down: [.replicas[] | select(.ready | not) | .replica]}'

On a terminal a followed table is redrawn in place. Elsewhere the table is
printed once, and then each line that changed. A follow that is cut reconnects
by itself, and shows what is then.";

const RESTART_EXAMPLES: &str = "\
Examples:
  One service, replica after replica, waiting until all are back:
      leasemux restart $LEASE --identity tenant --ca server.pem --service web
  One replica of it:
      leasemux restart $LEASE --identity tenant --ca server.pem \\
          --service web --replica 1
  Everything under the lease; ask, and do not wait:
      leasemux restart $LEASE --identity tenant --ca server.pem \\
          --all --timeout 0
  By a name: done again within an hour, it joins the first instead:
      leasemux restart $LEASE --identity tenant --ca server.pem \\
          --service web --request-id deploy-7

Replicas restart one after the other. Each must come back and stay up before the
next is touched; the first that does not ends it, and the others are left alone.
Ctrl-C and --timeout end the waiting, not the restart.";

/// Print the logs of a lease's services
#[derive(Debug, Args)]
#[command(override_usage = "leasemux logs <LEASE> <--identity <DIR> | --token <TOKEN|@FILE>> [--ca <FILE> | --insecure] [OPTIONS]", after_help = LOGS_EXAMPLES, after_long_help = format!("{LOGS_EXAMPLES}\n\n{EXIT_CODES}"))]
pub(in crate::config) struct LogsArgs {
    /// The lease: owner/dseq/gseq/oseq/provider
    #[arg(value_name = "LEASE")]
    pub(in crate::config) lease: Option<String>,
    #[command(flatten)]
    pub(in crate::config) target: TargetArgs,
    #[command(flatten)]
    pub(in crate::config) choice: ChoiceArgs,
    /// Stay for lines that are yet to come, through restarts and cut connections
    #[arg(short, long, env = "LEASEMUX_FOLLOW", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) follow: Option<String>,
    /// Begin with the last N lines of each replica; 0 = only new lines, all (or -1) = every line, as without it
    #[arg(short = 'n', long, env = "LEASEMUX_TAIL", value_name = "N")]
    pub(in crate::config) tail: Option<String>,
    /// Begin at this instant: a time ago by the gateway's clock (5m, 1h30m, 2d, 1w), a date (2026-01-31), a local date
    /// and time (2026-01-31 12:00), a time of today (12:00), RFC 3339 or Unix seconds
    #[arg(long, env = "LEASEMUX_SINCE", value_name = "TIME")]
    pub(in crate::config) since: Option<String>,
    /// End each replica's log before its first line later than this instant, written as for --since; not with --follow or
    /// --tail
    #[arg(long, env = "LEASEMUX_UNTIL", value_name = "TIME")]
    pub(in crate::config) until: Option<String>,
    /// Begin each line with the time at which it was written
    #[arg(short = 't', long, env = "LEASEMUX_TIMESTAMPS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) timestamps: Option<String>,
    /// The run of each container before the present one
    #[arg(long, env = "LEASEMUX_PREVIOUS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) previous: Option<String>,
    /// When this side cannot keep up: 'drop' skips lines and reports them, 'close' goes back and reads them again
    #[arg(long, env = "LEASEMUX_ON_LAG", value_name = "WHAT", default_value = "drop")]
    pub(in crate::config) on_lag: Option<String>,
    /// Form of the output: text or json. 'table', as the other commands call what is for people, is text
    #[arg(short, long, env = "LEASEMUX_OUTPUT", value_name = "FORM", default_value = "text")]
    pub(in crate::config) output: Option<String>,
}

/// Print how a lease's services are doing
#[derive(Debug, Args)]
#[command(override_usage = "leasemux status <LEASE> <--identity <DIR> | --token <TOKEN|@FILE>> [--ca <FILE> | --insecure] [OPTIONS]", after_help = STATUS_EXAMPLES, after_long_help = format!("{STATUS_EXAMPLES}\n\n{EXIT_CODES}"))]
pub(in crate::config) struct StatusArgs {
    /// The lease: owner/dseq/gseq/oseq/provider
    #[arg(value_name = "LEASE")]
    pub(in crate::config) lease: Option<String>,
    #[command(flatten)]
    pub(in crate::config) target: TargetArgs,
    #[command(flatten)]
    pub(in crate::config) choice: ChoiceArgs,
    /// Stay, and show each change, through cut connections
    #[arg(short, long, env = "LEASEMUX_FOLLOW", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) follow: Option<String>,
    /// Form of the output: table or json. 'text', as 'logs' calls what is for people, is a table
    #[arg(short, long, env = "LEASEMUX_OUTPUT", value_name = "FORM", default_value = "table")]
    pub(in crate::config) output: Option<String>,
}

/// Restart a lease's services, one replica after the other
#[derive(Debug, Args)]
#[command(override_usage = "leasemux restart <LEASE> <--service <NAME> | --all> <--identity <DIR> | --token <TOKEN|@FILE>> [--ca <FILE> | --insecure] [OPTIONS]", after_help = RESTART_EXAMPLES, after_long_help = format!("{RESTART_EXAMPLES}\n\n{EXIT_CODES}"))]
pub(in crate::config) struct RestartArgs {
    /// The lease: owner/dseq/gseq/oseq/provider
    #[arg(value_name = "LEASE")]
    pub(in crate::config) lease: Option<String>,
    #[command(flatten)]
    pub(in crate::config) target: TargetArgs,
    #[command(flatten)]
    pub(in crate::config) choice: ChoiceArgs,
    /// Every service of the lease, instead of --service
    #[arg(long, env = "LEASEMUX_ALL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) all: Option<String>,
    /// How long to wait for them to come back, at most 1h; 0 = do not wait
    #[arg(long, env = "LEASEMUX_TIMEOUT", value_name = "TIME", default_value = "60s")]
    pub(in crate::config) timeout: Option<String>,
    /// The name of this restart: within an hour, the same command with the same name joins it instead of restarting
    /// again. Without it, one is made up
    #[arg(long, env = "LEASEMUX_REQUEST_ID", value_name = "ID")]
    pub(in crate::config) request_id: Option<String>,
    /// Form of the output: table or json. 'text', as 'logs' calls what is for people, is a table
    #[arg(short, long, env = "LEASEMUX_OUTPUT", value_name = "FORM", default_value = "table")]
    pub(in crate::config) output: Option<String>,
}
