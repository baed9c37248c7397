//! The command line, as clap sees it: names, defaults, help. Values stay text; `super::value` judges them.
//!
//! What the fields say is also what `completions`, `man` and docs/CONFIG.md say.
//!
//! Every flag also reads `LEASEMUX_` and its name in capitals; a test holds that. A switch may be given as
//! `--follow=false` too, so that one can be turned off that the environment turns on.

use clap::{Parser, Subcommand};

mod access;
mod client;
mod connections;
mod limits;
mod quotas;
mod serve;
mod shell;
mod tenant;
mod token;

pub(super) use self::access::AccessArgs;
pub(super) use self::client::{ChoiceArgs, LogsArgs, RestartArgs, StatusArgs, TargetArgs};
pub(super) use self::connections::ConnectionArgs;
pub(super) use self::limits::LimitsArgs;
pub(super) use self::quotas::QuotaArgs;
pub(super) use self::serve::{ServeArgs, StoreArgs};
pub(super) use self::shell::{CompletionsArgs, ManArgs};
pub(super) use self::tenant::{DemoArgs, IdentityArgs, IdentityCommand, IdentityImportArgs, IdentityNewArgs};
pub(super) use self::token::{TokenArgs, TokenCheckArgs, TokenCommand, TokenNewArgs};

/// How a program ends that was asked for nothing it could do.
const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed for another reason; for 'demo': lines were lost without a report
    2  wrong usage
    3  refused: not authenticated, not permitted, the gateway is not trusted,
       or a quota is used up
    4  not found: no such lease, service or replica
    5  unavailable: the gateway could not be reached, or is going away
    6  done, but lines were lost (each loss was reported on standard error)
    7  'restart': a replica did not come back, or was left alone since one
       before it did not
    8  'restart': not all are back yet; none has failed, and it goes on
  130  interrupted by Ctrl-C";

const PROGRAM_EXAMPLES: &str = "\
Examples:
  See it work on this machine, for ten seconds:
      leasemux demo --for 10s
  Make a tenant, trust it, and run a gateway with one lease of it:
      PROVIDER=akash1d3jkzum9d46hsgryv4kk7mnnw3exzar9zlwx9n
      leasemux identity new --dir tenant
      mkdir trusted && cp tenant/cert.pem trusted/tenant.pem
      leasemux serve --platform local --trust-dir trusted \\
          --lease $(cat tenant/address)/1/1/1/$PROVIDER=examples/shop.yaml
  Follow its logs:
      leasemux logs $(cat tenant/address)/1/1/1/$PROVIDER --follow \\
          --identity tenant --ca .leasemux/server.pem

Every flag can also be given by an environment variable: --admin-listen is
LEASEMUX_ADMIN_LISTEN. Several values are separated by commas there. 'serve'
also takes a file, where it is admin-listen.";

/// Follow the logs of Akash leases: a gateway that reads each log once, however many follow it.
#[derive(Debug, Parser)]
#[command(
    name = "leasemux",
    version = env!("LEASEMUX_VERSION"),
    after_help = PROGRAM_EXAMPLES,
    after_long_help = format!("{PROGRAM_EXAMPLES}\n\n{EXIT_CODES}"),
    arg_required_else_help = true,
    subcommand_required = true,
    disable_help_subcommand = true
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    Serve(Box<ServeArgs>),
    Logs(Box<LogsArgs>),
    Status(Box<StatusArgs>),
    Restart(Box<RestartArgs>),
    Identity(IdentityArgs),
    Token(TokenArgs),
    Demo(DemoArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}
