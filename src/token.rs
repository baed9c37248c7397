//! The commands about tokens.

use leasemux::access::account::AccountKey;
use leasemux::access::refusal::Refusal;
use leasemux::access::tools::{MintError, TokenRequest, VerifyOptions, judge, key_in, mint};
use leasemux::client::exit::Exit;
use leasemux::config::{Keys, TokenCheckConfig, TokenNewConfig};
use leasemux::model::time::LogTime;

/// What is told of a failure, and how the program ends.
pub(super) type Failure = (Exit, String);

/// A fresh token.
pub(super) fn new(config: &TokenNewConfig) -> Result<String, Failure> {
    let wish = TokenRequest {
        scopes: &config.scopes,
        leases: &config.leases,
        services: &config.services,
        ttl: config.ttl,
    };
    mint(&config.identity, &wish, LogTime::now()).map_err(|error| {
        let exit = match error {
            MintError::Scope(_) | MintError::NotYours(..) | MintError::Refused(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        (exit, error.to_string())
    })
}

/// What a token claims, as JSON, if it would be accepted.
pub(super) fn check(config: &TokenCheckConfig) -> Result<String, Failure> {
    let usage = |text| (Exit::Usage, text);
    let token = config.token.read().map_err(|error| usage(format!("the token cannot be read: {error}")))?;
    let circumstances =
        VerifyOptions { at: config.at, longest: config.longest, provider: config.provider.as_ref() };
    let key: Option<AccountKey> = match &config.keys {
        Keys::One(hex) => Some(hex.parse().map_err(|error| usage(format!("--key {error}")))?),
        Keys::Dir(_) => None,
    };
    let mut unreadable = None;
    let judged = judge(token.as_bytes(), &circumstances, |owner| match &config.keys {
        Keys::One(_) => key.clone(),
        Keys::Dir(dir) => key_in(dir, owner).unwrap_or_else(|error| {
            unreadable = Some(format!("--trust-dir {}: {error}", dir.display()));
            None
        }),
    });
    match (judged, unreadable) {
        (_, Some(error)) => Err(usage(error)),
        (Ok(token), None) => Ok(format!("{:#}", token.claims().to_json())),
        (Err(fault), None) => {
            let whose = key.filter(|_| fault.refusal == Refusal::AccountUnknown);
            let whose = whose.map(|key| format!("; --key is that of {}", key.address())).unwrap_or_default();
            Err((Exit::Failed, format!("refused: {}: {fault}{whose}", fault.refusal.reason())))
        }
    }
}
