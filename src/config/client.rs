//! Settings of the commands that call a gateway.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Uri;

use super::lease_parts::{self, LeaseSource};
use super::lines::{self, FormConfig, LogsOutput, SelectionConfig};
use super::resolver::Resolver;
use super::service_selector::ServiceSelector;
use super::time_spec::TimeSpec;
use super::token_source::TokenSource;
use super::value::{Format, LEASE, choice, file, gateway, identity, lease, parsed, tail};
use crate::model::id::{LeaseId, RequestId};
use crate::model::limits::{FILTER_REPLICAS_MAX, FILTERS_MAX, RESTART_TIMEOUT_MAX};
use crate::model::parse::{duration, number};
use crate::model::proto::lease::OnLag;

/// The exit codes that the help lists.
pub(super) const EXIT_CODES: &str = include_str!("help/exit-codes.txt").trim_ascii_end();

const LOGS_EXAMPLES: &str = include_str!("help/logs.txt").trim_ascii_end();

const STATUS_EXAMPLES: &str = include_str!("help/status.txt").trim_ascii_end();

const RESTART_EXAMPLES: &str = include_str!("help/restart.txt").trim_ascii_end();

/// Print the logs of a lease's services
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    override_usage = "leasemux logs [LEASE] [--identity <DIR> | --token <TOKEN|@FILE>] [--ca <FILE> | --insecure] [OPTIONS]",
    after_help = LOGS_EXAMPLES,
    after_long_help = format!("{LOGS_EXAMPLES}\n\n{EXIT_CODES}")
)]
#[expect(clippy::struct_excessive_bools, reason = "independent flags")]
pub struct LogsConfig {
    /// The lease, the gateway, and the selected replicas.
    #[command(flatten)]
    pub call: CallConfig,
    /// Continue with new lines, through restarts and disconnects
    #[arg(short, long)]
    pub follow: bool,
    /// Start with the last N lines of each replica; 0 = new lines only, all (or -1) = every line
    #[arg(short = 'n', long, value_name = "N", default_value = "all", hide_default_value = true, value_parser = tail)]
    pub tail: TailLines,
    /// Start at this time: 5m or 2d (ago), 2026-01-31, '2026-01-31 12:00', 12:00, RFC 3339 or Unix seconds
    #[arg(long, visible_alias = "since-time", value_name = "TIME", value_parser = TimeSpec::parse_local)]
    pub since: Option<TimeSpec>,
    /// End at this time, in the formats of --since; not with --follow or --tail
    #[arg(long, value_name = "TIME", value_parser = TimeSpec::parse_local)]
    pub until: Option<TimeSpec>,
    /// Print the time of each line before it; in a template without {time}, before {line}
    #[arg(short = 't', long)]
    pub timestamps: bool,
    /// Draw no progress on a terminal
    #[arg(short, long)]
    pub quiet: bool,
    /// Read the previous run of each container; not with --follow
    #[arg(long)]
    pub previous: bool,
    /// If this side is too slow: 'drop' skips lines and reports them, 'refill' reads them from the log again,
    /// 'close' reconnects and reads them again; default: drop on a terminal, otherwise refill
    #[arg(long, value_name = "WHAT", value_parser = choice(LAG_POLICIES, "drop, refill or close"))]
    pub on_lag: Option<OnLag>,
    /// Output format: text, json, or template=TEXT with {service}, {replica}, {instance}, {time} and {line}
    #[arg(short, long, value_name = "FORM", default_value = "text", value_parser = LogsOutput::parse)]
    pub output: LogsOutput,
    /// Which lines are printed, of those that the gateway sends.
    #[command(flatten)]
    pub selection: SelectionConfig,
    /// How lines are printed.
    #[command(flatten)]
    pub form: FormConfig,
}

/// A number of last lines; `None` = all. An alias, because clap would treat an `Option` as an optional flag.
type TailLines = Option<u64>;

/// Print the status of a lease's services
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    override_usage = "leasemux status [LEASE] [--identity <DIR> | --token <TOKEN|@FILE>] [--ca <FILE> | --insecure] [OPTIONS]",
    after_help = STATUS_EXAMPLES,
    after_long_help = format!("{STATUS_EXAMPLES}\n\n{EXIT_CODES}")
)]
pub struct StatusConfig {
    /// The lease, the gateway, and the selected replicas.
    #[command(flatten)]
    pub call: CallConfig,
    /// Print every change, through disconnects
    #[arg(short, long)]
    pub follow: bool,
    /// Output format: table or json; 'text' is an alias of table
    #[arg(short, long, value_name = "FORM", default_value = "table", value_parser = choice(FORMATS, "table or json"))]
    pub output: Format,
}

/// Restart a lease's services, one replica at a time
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    override_usage = "leasemux restart [LEASE] <--service <NAME> | --all> [--identity <DIR> | --token <TOKEN|@FILE>] [--ca <FILE> | --insecure] [OPTIONS]",
    after_help = RESTART_EXAMPLES,
    after_long_help = format!("{RESTART_EXAMPLES}\n\n{EXIT_CODES}")
)]
pub struct RestartConfig {
    /// The lease, the gateway, and the selected replicas.
    #[command(flatten)]
    pub call: CallConfig,
    /// Restart all services of the lease, instead of --service
    #[arg(long)]
    pub all: bool,
    /// Maximum wait until the replicas are ready, at most 1h; 0 = do not wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration(Duration::ZERO..=RESTART_TIMEOUT_MAX))]
    pub timeout: Duration,
    /// Draw no progress on a terminal
    #[arg(short, long)]
    pub quiet: bool,
    /// Name of this restart: the same command with the same name joins it for an hour; random if not given
    #[arg(long, value_name = "ID", value_parser = parsed::<RequestId>)]
    pub request_id: Option<RequestId>,
    /// Output format: table or json; 'text' is an alias of table
    #[arg(short, long, value_name = "FORM", default_value = "table", value_parser = choice(FORMATS, "table or json"))]
    pub output: Format,
}

impl CallConfig {
    /// Returns whether a service is selected by a pattern.
    pub(crate) fn has_patterns(&self) -> bool {
        self.services.iter().any(|service| service.pattern().is_some())
    }
}

impl LogsConfig {
    /// Returns whether the printed lines begin with their times or contain them.
    pub fn has_times(&self) -> bool {
        self.timestamps || self.output.has_time()
    }
}

pub(super) const LAG_POLICIES: &[(&str, OnLag)] =
    &[("drop", OnLag::Drop), ("refill", OnLag::Refill), ("close", OnLag::Close)];

const FORMATS: &[(&str, Format)] = &[("text", Format::Text), ("table", Format::Text), ("json", Format::Json)];

/// The settings that all calls have: the lease, the gateway, and the selected replicas.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CallConfig {
    /// The lease: owner/dseq/gseq/oseq/provider; default: that of the context
    #[arg(value_name = "LEASE", required = false, value_parser = lease)]
    pub lease: LeaseId,
    /// The parts of the lease, or a context that has one. Resolved: `lease` has the result.
    #[command(flatten)]
    pub source: LeaseSource,
    /// The gateway, and the credentials for it.
    #[command(flatten)]
    pub target: Target,
    /// Only this service; or a pattern such as 'web-*' (quoted), which selects the lease's services when the
    /// command starts. Repeatable
    #[arg(long = "service", value_name = "NAME", value_parser = parsed::<ServiceSelector>)]
    pub services: Vec<ServiceSelector>,
    /// Only this replica of each --service, counted from 0. Repeatable
    #[arg(long = "replica", value_name = "N", value_parser = number(0..=u32::MAX))]
    pub replicas: Vec<u32>,
}

/// A gateway, and the credentials for it.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Target {
    /// URL of the gateway
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1:8446", value_parser = gateway)]
    pub gateway: Uri,
    /// Your identity: a directory with cert.pem and key.pem, as 'identity new' creates it
    #[arg(long, value_name = "DIR", value_parser = identity)]
    pub identity: Option<PathBuf>,
    /// Authenticate with a token instead (AEP-64, see 'token new'): the token, or @ and the file that holds
    /// it
    #[arg(long, hide_env_values = true, value_name = "TOKEN|@FILE", value_parser = TokenSource::parse)]
    pub token: Option<TokenSource>,
    /// PEM file with the gateway's certificate or its authority's; default: the system's authorities
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub ca: Option<PathBuf>,
    /// Do not verify the gateway's certificate (insecure)
    #[arg(long)]
    pub insecure: bool,
}

pub(super) fn check_logs(resolver: &mut Resolver<'_>) {
    check_call(resolver);
    lines::check(resolver);
    let (follow, until) = (resolver.is_on("follow"), resolver.get::<TimeSpec>("until").copied());
    if follow && resolver.is_on("previous") {
        resolver.conflict("--previous and --follow do not go together: a previous run has no new lines");
    }
    let Some(until) = until else { return };
    if follow {
        resolver.conflict("--until and --follow do not go together: a follow has no end");
    }
    if resolver.get::<TailLines>("tail").copied().flatten().is_some() {
        resolver.conflict(
            "--until and --tail do not go together: the gateway counts the last lines from the newest",
        );
    }
    let is_before = match (until, resolver.get::<TimeSpec>("since").copied()) {
        (TimeSpec::At(until), Some(TimeSpec::At(since))) => until < since,
        (TimeSpec::Ago(until), Some(TimeSpec::Ago(since))) => until > since,
        // Depends on the gateway's clock.
        _ => false,
    };
    if is_before {
        resolver.conflict("--until is before --since: no line is in between");
    }
}

pub(super) fn check_restart(resolver: &mut Resolver<'_>) {
    check_call(resolver);
    if resolver.is_on("all") && resolver.is_given("services") {
        resolver.conflict("--all and --service do not go together: restart all services or some");
    }
    // `check_call` reports replicas without a service.
    if !resolver.is_on("all") && !resolver.is_given("replicas") {
        resolver.require("services", "the service to restart; --all restarts all services");
    }
}

/// Checks the settings that all calls have.
pub(super) fn check_call(resolver: &mut Resolver<'_>) {
    check_target(resolver);
    let services = resolver.list::<ServiceSelector>("services").len();
    let replicas = resolver.list::<u32>("replicas").len() * services;
    if services > FILTERS_MAX {
        resolver.conflict(&format!("--service is given {services} times: at most {FILTERS_MAX}"));
    }
    if replicas > FILTER_REPLICAS_MAX {
        let error =
            format!("--service and --replica select {replicas} replicas: at most {FILTER_REPLICAS_MAX}");
        resolver.conflict(&error);
    }
    if resolver.is_given("replicas") {
        resolver.require("services", "the service of --replica");
    }
}

/// Checks the lease, the gateway and the credentials.
pub(super) fn check_target(resolver: &mut Resolver<'_>) {
    lease_parts::resolve(resolver);
    if !resolver.is_given("dseq") {
        resolver.require("lease", &format!("{LEASE}; or give --dseq, or use a context with a lease"));
    }
    if resolver.is_given("identity") && resolver.is_given("token") {
        resolver.conflict("--identity and --token do not go together: a gateway takes one of them");
    }
    if resolver.is_given("ca") && resolver.is_on("insecure") {
        resolver.conflict("--ca and --insecure do not go together: trust one certificate or any");
    }
}
