//! Settings of `token`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::resolver::Resolver;
use super::time_spec::TimeSpec;
use super::token_source::TokenSource;
use super::value::{address, directory, lease, must_be, parsed};
use crate::access::grants::EVERY_SERVICE;
use crate::model::id::{Address, LeaseId, ServiceName};
use crate::model::limits::TOKEN_LIFETIME;
use crate::model::parse::duration;

const NEW_EXAMPLES: &str = include_str!("help/token-new.txt").trim_ascii_end();

const CHECK_EXAMPLES: &str = include_str!("help/token-check.txt").trim_ascii_end();

/// Sign a token with the account of an identity, and print it
///
/// Any holder of the token has its permissions until it expires. It cannot be revoked.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(override_usage = "leasemux token new --identity <DIR> [OPTIONS]", after_help = NEW_EXAMPLES)]
pub struct TokenNewConfig {
    /// The identity that signs: a directory with a mnemonic, as 'identity new' creates it
    #[arg(long, value_name = "DIR", required = false, value_parser = directory)]
    pub identity: PathBuf,
    /// A permission: logs, status, restart, or another scope of AEP-64; default: all. Repeatable
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', value_parser = scope)]
    pub scopes: Vec<String>,
    /// A lease (owner/dseq/gseq/oseq/provider), with --scope and --service; default: all leases. Repeatable
    #[arg(long = "lease", value_name = "LEASE", value_parser = lease)]
    pub leases: Vec<LeaseId>,
    /// A service of each --lease, because AEP-64 grants a lease by its services; '*' is every service, also
    /// later ones. Repeatable
    #[arg(long = "service", value_name = "NAME", value_parser = service)]
    pub services: Vec<String>,
    /// Lifetime; a gateway accepts at most its --token-max-lifetime, by default an hour
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration(TOKEN_LIFETIME))]
    pub ttl: Duration,
}

/// Check whether a gateway would accept a token, and print the reason if not
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(override_usage = "leasemux token check <TOKEN> <--key <PUBKEY_HEX> | --trust-dir <DIR>> [OPTIONS]", after_help = CHECK_EXAMPLES)]
pub struct TokenCheckConfig {
    /// The token, or @ and the file that holds it
    #[arg(value_name = "TOKEN", required = false, hide_env_values = true, value_parser = TokenSource::parse)]
    pub token: TokenSource,
    /// Public key of the account that should have signed it: 66 hexadecimal digits
    #[arg(long, value_name = "PUBKEY_HEX", value_parser = hex)]
    pub key: Option<String>,
    /// Directory of account keys (*.pub), as in a gateway's --trust-dir
    #[arg(long, value_name = "DIR", value_parser = directory)]
    pub trust_dir: Option<PathBuf>,
    /// Time of the check, in the formats of 'logs --since'; default: now
    #[arg(long, value_name = "TIME", value_parser = TimeSpec::parse_local)]
    pub at: Option<TimeSpec>,
    /// Reject a token that grants nothing at this provider
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub provider: Option<Address>,
    /// Reject a token whose lifetime is longer
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration(TOKEN_LIFETIME))]
    pub token_max_lifetime: Duration,
}

/// Parses a scope of AEP-64.
fn scope(text: &str) -> Result<String, String> {
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    must_be(is_word.then(|| text.to_owned()), "a scope, such as logs")
}

/// Parses the name of a service, or the one that stands for all.
fn service(text: &str) -> Result<String, String> {
    if text != EVERY_SERVICE {
        parsed::<ServiceName>(text)?;
    }
    Ok(text.to_owned())
}

/// Parses hexadecimal digits. The check itself rejects other numbers of digits.
fn hex(text: &str) -> Result<String, String> {
    let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    must_be(is_hex.then(|| text.to_owned()), "66 hexadecimal digits")
}

pub(super) fn check_new(resolver: &mut Resolver<'_>) {
    resolver.require("identity", "a directory with a mnemonic, as 'identity new' creates it");
    if resolver.is_given("leases") {
        resolver.require("scopes", "the permissions on the --lease, such as logs,status");
        // AEP-64 requires them for a single lease.
        resolver.require("services", "the services of the --lease, or '*' for all");
    }
    if resolver.is_given("services") {
        resolver.require("leases", "the lease of the --service");
    }
}

pub(super) fn check_check(resolver: &mut Resolver<'_>) {
    resolver.require("token", "the token, or @ and the file that holds it");
    match (resolver.is_given("key"), resolver.is_given("trust_dir")) {
        (true, true) => resolver
            .conflict("--key and --trust-dir do not go together: give one key, or a directory of keys"),
        (false, false) => resolver.require("key", "the key that may have signed the token, or --trust-dir"),
        _ => {}
    }
}
