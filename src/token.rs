//! The commands about tokens.

use leasemux::access::tools::{Circumstances, Wish, judge, key_in, mint};
use leasemux::config::{Keys, TokenCheckConfig, TokenNewConfig};
use leasemux::model::time::LogTime;

/// A fresh token.
pub(super) fn new(config: &TokenNewConfig) -> Result<String, String> {
    let wish =
        Wish { scopes: &config.scopes, leases: &config.leases, services: &config.services, ttl: config.ttl };
    mint(&config.identity, &wish, LogTime::now()).map_err(|error| error.to_string())
}

/// What a token claims, as JSON, if it would be accepted.
pub(super) fn check(config: &TokenCheckConfig) -> Result<String, String> {
    let token = config.token.read().map_err(|error| format!("the token cannot be read: {error}"))?;
    let circumstances =
        Circumstances { at: config.at, longest: config.longest, provider: config.provider.as_ref() };
    let key = match &config.keys {
        Keys::One(hex) => Some(hex.parse().map_err(|error| format!("--key {error}"))?),
        Keys::Dir(_) => None,
    };
    let mut unreadable = None;
    let judged = judge(token.as_bytes(), &circumstances, |owner| match &config.keys {
        Keys::One(_) => key,
        Keys::Dir(dir) => key_in(dir, owner).unwrap_or_else(|error| {
            unreadable = Some(format!("--trust-dir {}: {error}", dir.display()));
            None
        }),
    });
    match (judged, unreadable) {
        (_, Some(error)) => Err(error),
        (Ok(token), None) => Ok(format!("{:#}", token.claims().to_json())),
        (Err(fault), None) => Err(format!("refused: {}: {fault}", fault.refusal.reason())),
    }
}
