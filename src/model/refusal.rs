//! Reasons for refusing a caller, with texts for that caller.
//!
//! A text never repeats the content of a certificate, token or header, and reveals nothing about what exists
//! here. The one exception is the lifetime of a token, which helps only next to the limit.

use std::fmt;

use jiff::SignedDuration;

use super::label::{LabelSet, LabelValue};

/// A length of time in whole seconds. Displayed as flags accept it: `48h`, `1h 30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lifetime(pub u64);

/// Defines the refusals from one table: name, kind, stable reason code, and text (which is also the
/// documentation).
macro_rules! refusals {
    ($(
        $name:ident $({ $($(#[doc = $about:literal])+ $field:ident),+ })?: $kind:ident, $reason:literal, $text:literal;
    )+) => {
        /// Why a call was refused, or a running one ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum Refusal {
            $(
                #[doc = $text]
                #[error($text)]
                $name $({ $($(#[doc = $about])+ $field: Lifetime),+ })?,
            )+
        }

        impl Refusal {
            /// Every refusal once, with lifetimes of zero.
            pub const ALL: [Self; [$($reason),+].len()] =
                [$(Self::$name $({ $($field: Lifetime(0)),+ })?),+];

            /// Returns the kind of the refusal.
            pub const fn kind(self) -> RefusalKind {
                match self { $(Self::$name $({ $($field: _),+ })? => RefusalKind::$kind,)+ }
            }

            /// Returns the reason code, which is the same in every release: for programs and metric labels.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name $({ $($field: _),+ })? => $reason,)+ }
            }
        }

        impl LabelValue for Refusal {
            const SET: LabelSet = LabelSet { name: "reason", values: &[$($reason),+] };

            fn index(self) -> usize {
                // Every reason is in the list.
                Self::SET.values.iter().position(|reason| *reason == self.reason()).unwrap_or_default()
            }
        }
    };
}

/// The kind of a refusal, which determines the gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The caller is not authenticated.
    Unauthenticated,
    /// The caller is authenticated, but not authorized.
    PermissionDenied,
    /// A dependency is unavailable; a retry may succeed.
    Unavailable,
    /// A limit is reached; a retry may succeed.
    Exhausted,
}

refusals! {
    NoCredentials: Unauthenticated, "CREDENTIALS_MISSING",
        "a client certificate or a token is required";
    // Which one counts would be a guess.
    Ambiguous: Unauthenticated, "CREDENTIALS_AMBIGUOUS",
        "a client certificate and a token were given together; use one of them";
    // For calls that are forwarded: the provider behind the gateway does not see the certificate.
    TokenRequired: Unauthenticated, "TOKEN_REQUIRED",
        "this method needs a token on this gateway";
    CertificateChain: Unauthenticated, "CERTIFICATE_CHAIN",
        "the client must present exactly one certificate, without a chain";
    // Also for one that is larger than the limit, or has an extension twice.
    CertificateMalformed: Unauthenticated, "CERTIFICATE_MALFORMED",
        "the client certificate is not a well-formed X.509 certificate";
    CertificateSubject: Unauthenticated, "CERTIFICATE_SUBJECT",
        "the client certificate's subject must have exactly one common name, and it must be an account address \
         (lower-case bech32 starting with akash1)";
    CertificateIssuer: Unauthenticated, "CERTIFICATE_ISSUER",
        "the client certificate must be self-signed: its issuer's common name is not its subject's";
    CertificateSerial: Unauthenticated, "CERTIFICATE_SERIAL",
        "the client certificate's serial number must not be negative, and must be at most 40 bytes long";
    CertificateKey: Unauthenticated, "CERTIFICATE_KEY",
        "the client certificate's key must be an ECDSA key on the curve P-256, P-384 or P-521";
    CertificateAlgorithm: Unauthenticated, "CERTIFICATE_ALGORITHM",
        "the client certificate must be signed by ECDSA with SHA-256";
    CertificateSignature: Unauthenticated, "CERTIFICATE_SIGNATURE",
        "the client certificate's signature is not by its own key";
    CertificateUsage: Unauthenticated, "CERTIFICATE_USAGE",
        "the client certificate's extended key usage must contain clientAuth";
    CertificateExtension: Unauthenticated, "CERTIFICATE_EXTENSION",
        "the client certificate has a critical extension that is not supported";
    CertificateNotYetValid: Unauthenticated, "CERTIFICATE_NOT_YET_VALID",
        "the client certificate is not valid yet";
    CertificateExpired: Unauthenticated, "CERTIFICATE_EXPIRED",
        "the client certificate has expired";
    // The source has no certificate of this owner and serial number.
    CertificateUnknown: Unauthenticated, "CERTIFICATE_UNKNOWN",
        "the client certificate is not known";
    CertificateDiffers: Unauthenticated, "CERTIFICATE_DIFFERS",
        "the client certificate is not the one that is known by its owner and serial number";
    CertificateRevoked: Unauthenticated, "CERTIFICATE_REVOKED",
        "the client certificate was revoked";
    CertificateKeyDiffers: Unauthenticated, "CERTIFICATE_KEY_DIFFERS",
        "the client certificate's key is not the one that the chain has for it";
    // It was trusted when the call began.
    CertificateWithdrawn: Unauthenticated, "CERTIFICATE_WITHDRAWN",
        "the client certificate is no longer trusted";
    AuthorizationMalformed: Unauthenticated, "AUTHORIZATION_MALFORMED",
        "the authorization header must be given once, as `Bearer`, a space and a token";
    TokenTooLong: Unauthenticated, "TOKEN_TOO_LONG",
        "the token is longer than 8192 bytes";
    TokenMalformed: Unauthenticated, "TOKEN_MALFORMED",
        "the token must be three parts of unpadded base64url, joined by dots";
    TokenHeader: Unauthenticated, "TOKEN_HEADER",
        "the token's header must be a JSON object with `alg`, with `typ` = `JWT`, and with nothing else";
    TokenAlgorithm: Unauthenticated, "TOKEN_ALGORITHM",
        "the token's algorithm must be ES256K or ES256KADR36";
    TokenSignatureForm: Unauthenticated, "TOKEN_SIGNATURE_FORM",
        "the token's signature must be 64 bytes, r and s, each within the order of secp256k1";
    // Two values of s always verify.
    TokenSignatureHigh: Unauthenticated, "TOKEN_SIGNATURE_HIGH_S",
        "the token's signature must have the lower of the two possible values of s";
    TokenClaims: Unauthenticated, "TOKEN_CLAIMS_MALFORMED",
        "the token's claims are not a JSON object";
    TokenMemberTwice: Unauthenticated, "TOKEN_MEMBER_TWICE",
        "the token's claims have a member twice";
    TokenMemberUnknown: Unauthenticated, "TOKEN_MEMBER_UNKNOWN",
        "the token's claims have an unknown member";
    TokenMemberMissing: Unauthenticated, "TOKEN_MEMBER_MISSING",
        "the token's claims lack a required member";
    TokenMemberMisplaced: Unauthenticated, "TOKEN_MEMBER_MISPLACED",
        "the token's claims have a member that the `access` beside it does not allow";
    TokenMemberType: Unauthenticated, "TOKEN_MEMBER_TYPE",
        "the token's claims have a member of the wrong type";
    TokenIssuer: Unauthenticated, "TOKEN_ISSUER",
        "the token's `iss` must be an account address (lower-case bech32: akash1 and 38 characters)";
    TokenVersion: Unauthenticated, "TOKEN_VERSION",
        "the token's `version` must be v1";
    TokenId: Unauthenticated, "TOKEN_ID",
        "the token's `jti` must not be empty";
    TokenTime: Unauthenticated, "TOKEN_TIME",
        "the token's times must be whole seconds since 1970, without a sign or a fraction";
    TokenAccess: Unauthenticated, "TOKEN_ACCESS",
        "the token's `access` must be full, scoped or granular";
    TokenScopeEmpty: Unauthenticated, "TOKEN_SCOPE_EMPTY",
        "the token has an empty `scope`";
    TokenScopeUnknown: Unauthenticated, "TOKEN_SCOPE_UNKNOWN",
        "the token has an unknown scope";
    TokenScopeTwice: Unauthenticated, "TOKEN_SCOPE_TWICE",
        "the token has a scope twice";
    TokenPermissionsEmpty: Unauthenticated, "TOKEN_PERMISSIONS_EMPTY",
        "the token's `permissions` are empty";
    TokenProvider: Unauthenticated, "TOKEN_PROVIDER",
        "the token has a `provider` that is not an account address (lower-case bech32: akash1 and 38 characters)";
    TokenProviderTwice: Unauthenticated, "TOKEN_PROVIDER_TWICE",
        "the token has two entries for one provider";
    TokenDeploymentsEmpty: Unauthenticated, "TOKEN_DEPLOYMENTS_EMPTY",
        "the token has an empty `deployments`";
    TokenDseq: Unauthenticated, "TOKEN_DSEQ",
        "the token has a `dseq` that is not a whole number from 1 to 2^64 - 1";
    TokenSequence: Unauthenticated, "TOKEN_SEQUENCE",
        "the token has a `gseq` or `oseq` that is not a whole number from 0 to 2^32 - 1";
    TokenOseq: Unauthenticated, "TOKEN_OSEQ",
        "the token has an `oseq` without a `gseq`";
    TokenServicesEmpty: Unauthenticated, "TOKEN_SERVICES_EMPTY",
        "the token has an empty `services`";
    TokenServiceTwice: Unauthenticated, "TOKEN_SERVICE_TWICE",
        "the token has a service twice";
    TokenNotYetValid: Unauthenticated, "TOKEN_NOT_YET_VALID",
        "the token is not valid yet (`nbf`)";
    TokenExpired: Unauthenticated, "TOKEN_EXPIRED",
        "the token has expired (`exp`)";
    TokenLifetime {
        /// From `nbf` to `exp`.
        lifetime,
        /// The maximum of this gateway (`--token-max-lifetime`).
        limit
    }: Unauthenticated, "TOKEN_LIFETIME",
        "the token is valid for {lifetime}, from `nbf` to `exp`; at most {limit} is allowed";
    AccountUnknown: Unauthenticated, "ACCOUNT_UNKNOWN",
        "the account of the token's `iss` is not known";
    AccountKeyless: Unauthenticated, "ACCOUNT_KEYLESS",
        "the account of the token's `iss` has no public key on the chain: it has not signed a transaction yet";
    AccountMultisig: Unauthenticated, "ACCOUNT_MULTISIG",
        "the account of the token's `iss` is a multi-signature account, which cannot sign tokens";
    AccountKeyKind: Unauthenticated, "ACCOUNT_KEY_KIND",
        "the key of the token's `iss` is not a secp256k1 key";
    TokenSignature: Unauthenticated, "TOKEN_SIGNATURE",
        "the token's signature is not by the key of its `iss`";
    // It was trusted when the call began.
    AccountWithdrawn: Unauthenticated, "ACCOUNT_WITHDRAWN",
        "the key of the token's `iss` is no longer trusted";
    TrustUnavailable: Unavailable, "TRUST_UNAVAILABLE",
        "the credentials cannot be checked at present; try again later";
    // A metric label only: callers get QUOTA_USED_UP with the quota `chain_queries`.
    TrustBusy: Exhausted, "TRUST_BUSY",
        "too many unknown callers are being checked; try again later";
    // The same text whether the lease exists or not.
    NotYours: PermissionDenied, "LEASE_NOT_YOURS",
        "the lease is not yours";
    OtherProvider: PermissionDenied, "PROVIDER_NOT_SERVED",
        "the lease is not at the provider that this gateway serves";
    LeaseNotGranted: PermissionDenied, "LEASE_NOT_GRANTED",
        "the token does not grant this lease";
    ScopeNotGranted: PermissionDenied, "SCOPE_NOT_GRANTED",
        "the token does not grant this scope on the lease";
    ServiceNotGranted: PermissionDenied, "SERVICE_NOT_GRANTED",
        "the token does not grant a requested service";
}

// === impl Lifetime ===

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", SignedDuration::from_secs(i64::try_from(self.0).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_refusal_has_its_own_reason_and_text() {
        let reasons: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.reason()).collect();
        let texts: HashSet<_> = Refusal::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(reasons.len(), Refusal::ALL.len());
        assert_eq!(texts.len(), Refusal::ALL.len());
        for reason in reasons {
            assert!(reason.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{reason}");
        }
    }

    #[test]
    fn excessive_lifetime_is_shown_with_its_limit() {
        let texts = |lifetime, limit| {
            Refusal::TokenLifetime { lifetime: Lifetime(lifetime), limit: Lifetime(limit) }.to_string()
        };
        let shown = texts(48 * 3_600, 5_400);
        assert!(shown.contains("for 48h,") && shown.contains("at most 1h 30m"), "{shown}");
        assert!(texts(u64::MAX, 3_600).contains("at most 1h"));
    }
}
