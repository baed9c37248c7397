//! Tokens of AEP-64: JSON web tokens that an account signs for itself.
//!
//! Order of the checks: length, three parts, header, algorithm, form of the signature, claims ([`Claims`]),
//! time. Only then is the issuer's key looked up and the signature verified. Nothing in a token names a key.
//!
//! Two algorithms are accepted, both secp256k1 over SHA-256: `ES256K` signs header and claims as they are;
//! `ES256KADR36` signs a document that contains them and that wallets show to their owner (ADR-36).

use std::fmt;
use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use k256::ecdsa::Signature;
use sha2::{Digest as _, Sha256};

use self::json::Json;
use super::account::AccountKey;
use super::refusal::{Lifetime, Refusal};
use crate::model::id::Owner;
use crate::model::time::LogTime;

mod claims;
mod json;
#[cfg(test)]
mod tests;

pub use self::claims::Claims;

/// Maximum length of a token, in bytes: what proxies commonly accept in a header, and enough for some fifty
/// deployments.
const TOKEN_MAX_BYTES: usize = 8 * 1024;

/// Bytes of a signature: r and s.
const SIGNATURE_BYTES: usize = 64;

/// The scheme in the `authorization` header, in any case.
const SCHEME: &[u8] = b"bearer";

/// How a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The signature covers header and claims as they are.
    Es256k,
    /// The signature covers an ADR-36 document that contains them.
    Es256kAdr36,
}

/// A token of valid form, whose signature is not verified yet.
#[derive(Clone)]
pub struct Token {
    algorithm: Algorithm,
    claims: Claims,
    /// Digest of the signed text.
    digest: [u8; 32],
    signature: Signature,
}

/// Why a token is refused, and where in its claims. The text has both. The place may contain the name of an
/// unknown member: show it only to the token's holder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}{}", place(at))]
pub struct TokenError {
    /// The reason.
    pub refusal: Refusal,
    /// The place, such as `leases.permissions[0].scope`; empty for the token as a whole.
    pub at: String,
}

/// Returns the token in the value of an `authorization` header.
///
/// # Errors
/// [`Refusal::AuthorizationMalformed`] if it is anything but `Bearer` and a token.
pub fn bearer(authorization: &[u8]) -> Result<&[u8], Refusal> {
    let mut fields = authorization.split(|byte| *byte == b' ');
    match (fields.next(), fields.next(), fields.next()) {
        (Some(scheme), Some(token), None) if scheme.eq_ignore_ascii_case(SCHEME) && !token.is_empty() => {
            Ok(token)
        }
        _ => Err(Refusal::AuthorizationMalformed),
    }
}

// === impl Algorithm ===

impl Algorithm {
    /// Returns the name in a token's header.
    const fn name(self) -> &'static str {
        match self {
            Self::Es256k => "ES256K",
            Self::Es256kAdr36 => "ES256KADR36",
        }
    }

    /// Returns the digest to sign for `signed`, which is a token of `issuer` without its last part.
    pub(super) fn digest(self, signed: &[u8], issuer: &Owner) -> [u8; 32] {
        match self {
            Self::Es256k => Sha256::digest(signed).into(),
            Self::Es256kAdr36 => Sha256::digest(adr36(signed, issuer)).into(),
        }
    }
}

/// Returns the document that a wallet signs: compact JSON with sorted members, of a transaction that can
/// never be valid.
fn adr36(signed: &[u8], issuer: &Owner) -> String {
    format!(
        r#"{{"account_number":"0","chain_id":"","fee":{{"amount":[],"gas":"0"}},"memo":"","msgs":[{{"type":"sign/MsgSignData","value":{{"data":"{}","signer":"{issuer}"}}}}],"sequence":"0"}}"#,
        BASE64.encode(signed),
    )
}

// === impl Token ===

impl Token {
    /// Reads a token and checks everything but its time and signature.
    ///
    /// # Errors
    /// The first check that failed, in the module's order.
    pub fn parse(token: &[u8]) -> Result<Self, TokenError> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(Refusal::TokenTooLong.into());
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::TokenMalformed.into());
        };
        let decode = |part| BASE64URL_NOPAD.decode(part).map_err(|_| Refusal::TokenMalformed);
        let (header_json, claims_json, signature_bytes) =
            (decode(header)?, decode(payload)?, decode(signature)?);
        let algorithm = parse_header(&header_json)?;
        let signature = parse_signature(&signature_bytes)?;
        let claims = Claims::parse(&claims_json)?;
        let signed = &token[..header.len() + 1 + payload.len()];
        let digest = algorithm.digest(signed, &claims.issuer);
        Ok(Self { algorithm, claims, digest, signature })
    }

    /// Checks that `now` is between `nbf` (inclusive) and `exp` (exclusive), and that these are at most
    /// `lifetime_max` apart.
    ///
    /// Expiry is reported first, because an expired token is replaced whatever its lifetime; then the
    /// lifetime, because waiting does not help a token that lives too long.
    pub(super) fn check_time(&self, now: LogTime, lifetime_max: Duration) -> Result<(), Refusal> {
        // A clock before 1970 precedes every token.
        let now = u64::try_from(now.parts().0).unwrap_or_default();
        let lifetime = self.claims.expires.saturating_sub(self.claims.not_before);
        let limit = lifetime_max.as_secs();
        if now >= self.claims.expires {
            Err(Refusal::TokenExpired)
        } else if lifetime > limit {
            Err(Refusal::TokenLifetime { lifetime: Lifetime(lifetime), limit: Lifetime(limit) })
        } else if now < self.claims.not_before {
            Err(Refusal::TokenNotYetValid)
        } else {
            Ok(())
        }
    }

    /// Verifies the signature by `key`. The caller has made sure that this is the issuer's key.
    pub(super) fn check_signature(&self, key: &AccountKey) -> Result<(), Refusal> {
        key.verify(&self.digest, &self.signature)
    }

    #[cfg(test)]
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the issuer and what it grants, not verified yet.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// Omits the signature.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("algorithm", &self.algorithm)
            .field("claims", &self.claims)
            .finish_non_exhaustive()
    }
}

fn parse_header(header: &[u8]) -> Result<Algorithm, Refusal> {
    let Some(Json::Object(members)) = Json::parse(header) else {
        return Err(Refusal::TokenHeader);
    };
    let [mut algorithm, mut form] = [None; 2];
    for (name, value) in &members {
        let member = match name.as_str() {
            "alg" => &mut algorithm,
            "typ" => &mut form,
            _ => return Err(Refusal::TokenHeader),
        };
        if member.replace(value).is_some() {
            return Err(Refusal::TokenHeader);
        }
    }
    let is = |value: Option<&Json>, word: &str| matches!(value, Some(Json::Text(text)) if text == word);
    if algorithm.is_none() || !is(form, "JWT") {
        return Err(Refusal::TokenHeader);
    }
    let known = [Algorithm::Es256k, Algorithm::Es256kAdr36];
    known.into_iter().find(|known| is(algorithm, known.name())).ok_or(Refusal::TokenAlgorithm)
}

fn parse_signature(bytes: &[u8]) -> Result<Signature, Refusal> {
    if bytes.len() != SIGNATURE_BYTES {
        return Err(Refusal::TokenSignatureForm);
    }
    // Refuses zero, and numbers that are not below the order of the group.
    let signature = Signature::from_slice(bytes).map_err(|_| Refusal::TokenSignatureForm)?;
    // Both (r, s) and (r, -s) verify: without this check, anyone could make a second token from one.
    if signature.normalize_s() != signature {
        return Err(Refusal::TokenSignatureHigh);
    }
    Ok(signature)
}

// === impl TokenError ===

impl From<Refusal> for TokenError {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, at: String::new() }
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        error.refusal
    }
}

fn place(at: &str) -> String {
    if at.is_empty() { String::new() } else { format!(" (at {})", at.escape_debug()) }
}
