//! The commands `token new` and `token check`.

use crate::access::account::AccountKey;
use crate::access::dir::key_in_dir;
use crate::access::refusal::Refusal;
use crate::access::tools::{SignError, TokenRequest, VerifyOptions, sign_token, verify_token};
use crate::client::exit::Exit;
use crate::config::{TokenCheckConfig, TokenNewConfig};
use crate::model::time::LogTime;

/// The exit code, and the reason.
pub(crate) type Failure = (Exit, String);

pub(crate) fn new(config: &TokenNewConfig) -> Result<String, Failure> {
    let request = TokenRequest {
        scopes: &config.scopes,
        leases: &config.leases,
        services: &config.services,
        ttl: config.ttl,
    };
    sign_token(&config.identity, &request, LogTime::now()).map_err(|error| {
        let exit = match error {
            SignError::Scope(_) | SignError::NotYours(..) | SignError::Refused(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        (exit, error.to_string())
    })
}

/// Verifies a token. Returns its claims as JSON.
pub(crate) fn check(config: &TokenCheckConfig) -> Result<String, Failure> {
    let usage = |text| (Exit::Usage, text);
    let token = config.token.read().map_err(|error| usage(format!("the token cannot be read: {error}")))?;
    let now = LogTime::now();
    let options = VerifyOptions {
        at: config.at.map_or(now, |at| at.resolve(now)),
        lifetime_max: config.token_max_lifetime,
        provider: config.provider.as_ref(),
    };
    let key: Option<AccountKey> = match &config.key {
        Some(hex) => Some(hex.parse().map_err(|error| usage(format!("--key {error}")))?),
        None => None,
    };
    let mut unreadable = None;
    let verified = verify_token(token.as_bytes(), &options, |owner| match &config.trust_dir {
        None => key.clone(),
        Some(dir) => key_in_dir(dir, owner).unwrap_or_else(|error| {
            unreadable = Some(format!("--trust-dir {}: {error}", dir.display()));
            None
        }),
    });
    match (verified, unreadable) {
        (_, Some(error)) => Err(usage(error)),
        (Ok(token), None) => Ok(format!("{:#}", token.claims().to_json())),
        (Err(error), None) => {
            let other_key = key.filter(|_| error.refusal == Refusal::AccountUnknown);
            let hint = other_key.map(|key| format!("; --key is that of {}", key.address()));
            let hint = hint.unwrap_or_default();
            Err((Exit::Failed, format!("refused: {}: {error}{hint}", error.refusal.reason())))
        }
    }
}
