//! Tokens of AEP-64: JSON web tokens that an account signs for itself.
//!
//! The checks come in this order: length, three parts, header, algorithm, form of the signature, claims ([`claims`]), time; and
//! only then is a key asked for, by the issuer, and the signature checked. Nothing in a token names a key.
//!
//! Two algorithms count, both by secp256k1 over SHA-256: `ES256K` signs header and claims as they stand, `ES256KADR36` a document
//! that wallets show to their owner (ADR-36), with header and claims in it.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use k256::ecdsa::Signature;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::time::Duration;

use self::json::Json;
use super::account::AccountKey;
use super::refusal::{Lifetime, Refusal};
use crate::model::id::Owner;
use crate::model::time::LogTime;

pub mod claims;
mod json;
#[cfg(test)]
mod tests;
mod write;

pub use self::claims::Claims;

/// Longest token, in bytes: what proxies commonly let pass in a header, and room for some fifty deployments.
pub const TOKEN_MAX_BYTES: usize = 8 * 1024;

/// Bytes of a signature: r and s.
const SIGNATURE_BYTES: usize = 64;

/// The scheme in the `authorization` header, in any case.
const SCHEME: &[u8] = b"bearer";

/// How a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Header and claims as they stand.
    Es256k,
    /// An ADR-36 document that holds them.
    Es256kAdr36,
}

/// A token of good form, whose signature is not checked yet.
#[derive(Clone)]
pub struct Token {
    algorithm: Algorithm,
    claims: Claims,
    /// Of what was signed.
    digest: [u8; 32],
    signature: Signature,
}

/// Why a token is refused, and where in its claims the reason is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub refusal: Refusal,
    /// Where, such as `leases.permissions[0].scope`; empty if it is the token as a whole.
    pub at: String,
}

/// The token in the value of an `authorization` header.
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
    /// Its name in a token's header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Es256k => "ES256K",
            Self::Es256kAdr36 => "ES256KADR36",
        }
    }

    /// The digest of what is signed for `signed`, which is a token without its last part, by `issuer`.
    pub(super) fn digest(self, signed: &[u8], issuer: &Owner) -> [u8; 32] {
        match self {
            Self::Es256k => Sha256::digest(signed).into(),
            Self::Es256kAdr36 => Sha256::digest(adr36(signed, issuer)).into(),
        }
    }
}

/// What a wallet signs: compact JSON with sorted members, of a transaction that can never be one.
fn adr36(signed: &[u8], issuer: &Owner) -> String {
    format!(
        r#"{{"account_number":"0","chain_id":"","fee":{{"amount":[],"gas":"0"}},"memo":"","msgs":[{{"type":"sign/MsgSignData","value":{{"data":"{}","signer":"{issuer}"}}}}],"sequence":"0"}}"#,
        BASE64.encode(signed),
    )
}

// === impl Token ===

impl Token {
    /// Reads a token and checks everything but time and signature.
    ///
    /// # Errors
    /// The first check that failed, in the order above.
    pub fn parse(token: &[u8]) -> Result<Self, Fault> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(Refusal::TokenTooLong.into());
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::TokenMalformed.into());
        };
        let decode = |part| BASE64URL_NOPAD.decode(part).map_err(|_| Fault::from(Refusal::TokenMalformed));
        let (header_json, claims_json, signature_bytes) =
            (decode(header)?, decode(payload)?, decode(signature)?);
        let algorithm = algorithm(&header_json)?;
        let signature = signature_of(&signature_bytes)?;
        let claims = Claims::parse(&claims_json)?;
        let signed = &token[..header.len() + 1 + payload.len()];
        let digest = algorithm.digest(signed, &claims.issuer);
        Ok(Self { algorithm, claims, digest, signature })
    }

    /// Checks that the token is valid at `now`, from `nbf` on and before `exp`, and not for longer than `longest` in all.
    ///
    /// # Errors
    /// [`Refusal::TokenExpired`], [`Refusal::TokenLifetime`] or [`Refusal::TokenNotYetValid`], in this order: an expired token
    /// is replaced whatever its lifetime, and waiting does not help one that lives too long.
    pub fn check_time(&self, now: LogTime, longest: Duration) -> Result<(), Refusal> {
        // A clock before 1970 is before every token.
        let now = u64::try_from(now.parts().0).unwrap_or_default();
        let lifetime = self.claims.expires.saturating_sub(self.claims.not_before);
        let limit = longest.as_secs();
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

    /// Checks that the token is signed by `key`, which must be the issuer's: that is for whoever found it to see to.
    ///
    /// # Errors
    /// [`Refusal::TokenSignature`].
    pub fn check_signature(&self, key: &AccountKey) -> Result<(), Refusal> {
        key.verify(&self.digest, &self.signature)
    }

    /// How it is signed.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What it claims.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// Without the signature.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("algorithm", &self.algorithm)
            .field("claims", &self.claims)
            .finish_non_exhaustive()
    }
}

fn algorithm(header: &[u8]) -> Result<Algorithm, Refusal> {
    let Some(Json::Object(members)) = Json::parse(header) else {
        return Err(Refusal::TokenHeader);
    };
    let [mut algorithm, mut form] = [None; 2];
    for (name, value) in &members {
        let place = match name.as_str() {
            "alg" => &mut algorithm,
            "typ" => &mut form,
            _ => return Err(Refusal::TokenHeader),
        };
        if place.replace(value).is_some() {
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

fn signature_of(bytes: &[u8]) -> Result<Signature, Refusal> {
    if bytes.len() != SIGNATURE_BYTES {
        return Err(Refusal::TokenSignatureForm);
    }
    // Refuses zero, and what is not below the order of the group.
    let signature = Signature::from_slice(bytes).map_err(|_| Refusal::TokenSignatureForm)?;
    // Of (r, s) and (r, -s) both fit or neither: without this, anybody could make a second token of one.
    if signature.normalize_s() != signature {
        return Err(Refusal::TokenSignatureHigh);
    }
    Ok(signature)
}

// === impl Fault ===

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, at: String::new() }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        fault.refusal
    }
}

/// The reason, and where. The place may hold the name of a member that is not known: it is for who holds the token.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refusal.fmt(f)?;
        if !self.at.is_empty() {
            write!(f, " (at {})", self.at.escape_debug())?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
