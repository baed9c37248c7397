//! Making tokens, and finding out what is wrong with them.

use clap::{Args, Subcommand};

const TOKEN_EXAMPLES: &str = "\
Examples:
  A token for logs and status of one service, for a quarter of an hour:
      leasemux token new --identity tenant --lease $LEASE --service web \\
          --scope logs,status > web.token
  What it says, and whether a gateway with this trust directory would take it:
      leasemux token check @web.token --trust-dir trusted
  Use it:
      leasemux logs $LEASE --token @web.token --ca server.pem";

const TOKEN_NEW_EXAMPLES: &str = "\
Examples:
  Everything, for a quarter of an hour:
      leasemux token new --identity tenant
  Logs and status of all leases, for an hour:
      leasemux token new --identity tenant --scope logs,status --ttl 1h
  Restarts of two services of one lease:
      leasemux token new --identity tenant --lease $LEASE --scope restart \\
          --service web --service api";

const TOKEN_CHECK_EXAMPLES: &str = "\
Examples:
  Against the keys that a gateway trusts:
      leasemux token check @web.token --trust-dir trusted
  Against one key, as it was at another time, at the provider that it is for:
      leasemux token check @web.token --at 2026-11-25T12:00:00Z \\
          --key $(cut -d' ' -f2 tenant/account.pub) --provider $PROVIDER

Exit codes:
    0  it would be accepted; its claims are printed as JSON
    1  it would be refused; the reason is on standard error
    2  wrong usage: nothing was judged";

/// Make tokens (AEP-64), or check them
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = TOKEN_EXAMPLES, disable_help_subcommand = true)]
pub(in crate::config) struct TokenArgs {
    #[command(subcommand)]
    pub(in crate::config) command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::config) enum TokenCommand {
    New(TokenNewArgs),
    Check(TokenCheckArgs),
}

/// Sign a token with the account of an identity, and print it
///
/// Whoever has the token may do what it grants until it expires; it cannot be called back.
#[derive(Debug, Args)]
#[command(override_usage = "leasemux token new --identity <DIR> [OPTIONS]", after_help = TOKEN_NEW_EXAMPLES)]
pub(in crate::config) struct TokenNewArgs {
    /// Whose token: a directory with a mnemonic, as made by 'identity new'
    #[arg(long, env = "LEASEMUX_IDENTITY", value_name = "DIR")]
    pub(in crate::config) identity: Option<String>,
    /// What it grants: logs, status, restart, or another scope of AEP-64; without it, everything. Repeatable
    #[arg(long, env = "LEASEMUX_SCOPE", value_name = "SCOPE", value_delimiter = ',')]
    pub(in crate::config) scope: Vec<String>,
    /// On which lease (owner/dseq/gseq/oseq/provider); without it, on all. Needs a scope and a service. Repeatable
    #[arg(long, env = "LEASEMUX_LEASE", value_name = "LEASE")]
    pub(in crate::config) lease: Vec<String>,
    /// On which service of each --lease: AEP-64 grants one lease by its services. Repeatable
    #[arg(long, env = "LEASEMUX_SERVICE", value_name = "NAME")]
    pub(in crate::config) service: Vec<String>,
    /// For how long it is valid. A gateway takes an hour at most, unless it is told otherwise
    #[arg(long, env = "LEASEMUX_TTL", value_name = "TIME", default_value = "15m")]
    pub(in crate::config) ttl: Option<String>,
}

/// Tell whether a token would be accepted, or why not
#[derive(Debug, Args)]
#[command(override_usage = "leasemux token check <TOKEN> <--key <PUBKEY_HEX> | --trust-dir <DIR>> [OPTIONS]", after_help = TOKEN_CHECK_EXAMPLES)]
pub(in crate::config) struct TokenCheckArgs {
    /// The token, or @ and a file that holds it
    #[arg(value_name = "TOKEN")]
    pub(in crate::config) token: Option<String>,
    /// The public key of the account that should have signed it: 66 hexadecimal digits
    #[arg(long, env = "LEASEMUX_KEY", value_name = "PUBKEY_HEX")]
    pub(in crate::config) key: Option<String>,
    /// A directory of account keys (*.pub), as a gateway trusts it
    #[arg(long, env = "LEASEMUX_TRUST_DIR", value_name = "DIR")]
    pub(in crate::config) trust_dir: Option<String>,
    /// As it would be at this instant, written as for 'logs --since'; without it, now
    #[arg(long, env = "LEASEMUX_AT", value_name = "TIME")]
    pub(in crate::config) at: Option<String>,
    /// At this provider: a token that grants nothing there is refused
    #[arg(long, env = "LEASEMUX_PROVIDER", value_name = "ADDRESS")]
    pub(in crate::config) provider: Option<String>,
    /// At a gateway that refuses tokens that are valid for longer in all
    #[arg(long, env = "LEASEMUX_TOKEN_MAX_LIFETIME", value_name = "TIME", default_value = "1h")]
    pub(in crate::config) token_max_lifetime: Option<String>,
}
