//! What making and checking tokens runs with.

use std::path::PathBuf;
use std::time::Duration;

use super::cli::{TokenCheckArgs, TokenNewArgs};
use super::faults::{ConfigErrors, Resolver};
use super::moment::Moment;
use super::secret::TokenSource;
use super::value::{directory, duration, lease, parsed};
use crate::model::id::{Address, LeaseId, ServiceName};
use crate::model::limits::TOKEN_LIFETIME_MAX;
use crate::model::time::LogTime;

/// Shortest lifetime of a token: a second is its unit.
const TTL_MIN: Duration = Duration::from_secs(1);

/// What `token new` makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenNewConfig {
    /// Whose: a directory with a mnemonic.
    pub identity: PathBuf,
    /// The words of its scopes; empty = everything, and then on all leases.
    pub scopes: Vec<String>,
    /// The leases; empty = all.
    pub leases: Vec<LeaseId>,
    /// The services of each lease. Not without leases, nor leases without services.
    pub services: Vec<ServiceName>,
    /// For how long.
    pub ttl: Duration,
}

/// What `token check` checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenCheckConfig {
    /// The token.
    pub token: TokenSource,
    /// The key of the account that should have signed it.
    pub keys: Keys,
    /// When.
    pub at: LogTime,
    /// Where; `None` = anywhere.
    pub provider: Option<Address>,
    /// For how long a token may be valid in all.
    pub longest: Duration,
}

/// Whose signature counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// The one of this key: 66 hexadecimal digits, which are not judged here.
    One(String),
    /// Those in a trust directory.
    Dir(PathBuf),
}

pub(super) fn resolve_new(
    args: &TokenNewArgs,
    mut read: Resolver<'_>,
) -> Result<TokenNewConfig, ConfigErrors> {
    let what = "a directory with a mnemonic, as made by 'identity new'";
    let identity = read.required("identity", args.identity.as_ref(), what, directory);
    let scopes = read.list("scope", &args.scope, |text| {
        let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        is_word.then(|| text.to_owned()).ok_or_else(|| "must be a scope, such as logs".to_owned())
    });
    let leases = read.list("lease", &args.lease, lease);
    let services = read.list("service", &args.service, parsed::<ServiceName>);
    if !args.lease.is_empty() && args.scope.is_empty() {
        read.missing("scope", "what the token grants on the --lease, such as logs,status");
    }
    match (args.lease.is_empty(), args.service.is_empty()) {
        (true, false) => read.missing("lease", "the lease whose --service is meant"),
        // As AEP-64 has it: there is no word for all services of one lease.
        (false, true) => read.missing("service", "which services of the --lease the token is for"),
        _ => {}
    }
    let ttl = read.one("ttl", args.ttl.as_ref(), duration(TTL_MIN..=TOKEN_LIFETIME_MAX));
    let whole = || Some(TokenNewConfig { identity: identity?, scopes, leases, services, ttl: ttl? });
    let config = whole();
    read.finish(config)
}

pub(super) fn resolve_check(
    args: &TokenCheckArgs,
    mut read: Resolver<'_>,
) -> Result<TokenCheckConfig, ConfigErrors> {
    let what = "the token, or @ and a file that holds it";
    if args.token.is_none() {
        read.missing("token", what);
    }
    let token = read.secret("token", args.token.as_ref(), TokenSource::parse);
    let [key, dir] = read.meant([("key", args.key.as_ref()), ("trust_dir", args.trust_dir.as_ref())]);
    match (key, dir) {
        (None, None) => read.missing("key", "whose signature counts, or --trust-dir"),
        (Some(_), Some(_)) => {
            read.unfit("--key and --trust-dir do not go together: one key counts, or those of a directory");
        }
        _ => {}
    }
    let key = read.one("key", key, |text| {
        let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| text.to_owned()).ok_or_else(|| "must be 66 hexadecimal digits".to_owned())
    });
    let dir = read.one("trust_dir", dir, directory);
    let now = LogTime::now();
    let at = read.one("at", args.at.as_ref(), |text| Moment::parse_local(text).map(|at| at.resolve(now)));
    let provider = read.one("provider", args.provider.as_ref(), |text| {
        parsed::<Address>(text)
            .map_err(|_| "must be an account address (lower-case bech32: akash1…)".to_owned())
    });
    let longest = read.one(
        "token_max_lifetime",
        args.token_max_lifetime.as_ref(),
        duration(TTL_MIN..=TOKEN_LIFETIME_MAX),
    );
    let keys = key.map(Keys::One).or(dir.map(Keys::Dir));
    let whole = || {
        Some(TokenCheckConfig {
            token: token?,
            keys: keys?,
            at: at.unwrap_or(now),
            provider,
            longest: longest?,
        })
    };
    let config = whole();
    read.finish(config)
}
