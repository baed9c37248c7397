//! Why a caller is turned away, in words for the caller.
//!
//! A refusal never repeats what a certificate, token or header holds, and says nothing of what exists here. The one exception
//! is the lifetime of a token, which helps only next to the limit.

use std::fmt;

use jiff::SignedDuration;

/// A length of time in whole seconds. Shown as the flags take it: `48h`, `1h 30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lifetime(pub u64);

/// Makes of one table the refusals, what each comes to, its stable word, and its text. A word also stands in
/// `model::metrics::labels`, for its counter; a test holds them together.
macro_rules! refusals {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident $({ $($(#[doc = $about:literal])+ $field:ident),+ })?: $kind:ident, $reason:literal,
            $words:literal;
    )+) => {
        /// Why a call was refused, or a running one ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum Refusal {
            $(
                $(#[doc = $doc])+
                #[error($words)]
                $name $({ $($(#[doc = $about])+ $field: Lifetime),+ })?,
            )+
        }

        impl Refusal {
            /// Each of them once, with lifetimes of zero.
            pub const ALL: [Self; [$($reason),+].len()] =
                [$(Self::$name $({ $($field: Lifetime(0)),+ })?),+];

            /// What it comes to.
            pub const fn kind(self) -> RefusalKind {
                match self { $(Self::$name $({ $($field: _),+ })? => RefusalKind::$kind,)+ }
            }

            /// One word for it that stays the same from release to release: for programs, and fit to be a metric label.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name $({ $($field: _),+ })? => $reason,)+ }
            }
        }
    };
}

/// What a refusal comes to: the edge makes a gRPC code of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// Who is calling is not established.
    Unauthenticated,
    /// It is, and this is not for them.
    PermissionDenied,
    /// It cannot be established just now; the same call may succeed later.
    Unavailable,
    /// It cannot be established just now because too much is asked; the same call may succeed later.
    Exhausted,
}

refusals! {
    /// Neither a certificate nor a token.
    NoCredentials: Unauthenticated, "CREDENTIALS_MISSING",
        "a client certificate or a token is required";
    /// A certificate and a token: which one counts would be a guess.
    Ambiguous: Unauthenticated, "CREDENTIALS_AMBIGUOUS",
        "a client certificate and a token were given together; use one of them";
    /// Not exactly one certificate.
    CertificateChain: Unauthenticated, "CERTIFICATE_CHAIN",
        "the client must present exactly one certificate, without a chain";
    /// Not X.509 in DER, larger than any tenant's certificate, or with an extension twice.
    CertificateMalformed: Unauthenticated, "CERTIFICATE_MALFORMED",
        "the client certificate is not a well-formed X.509 certificate";
    /// The subject does not hold exactly one common name that is an account address.
    CertificateSubject: Unauthenticated, "CERTIFICATE_SUBJECT",
        "the client certificate's subject must have exactly one common name, and it must be an account address \
         (lower-case bech32 starting with akash1)";
    /// The issuer's common name is not the subject's.
    CertificateIssuer: Unauthenticated, "CERTIFICATE_ISSUER",
        "the client certificate must be self-signed: its issuer's common name is not its subject's";
    /// The serial number is negative or too long.
    CertificateSerial: Unauthenticated, "CERTIFICATE_SERIAL",
        "the client certificate's serial number must not be negative, and must be at most 40 bytes long";
    /// The key is not an ECDSA key on a curve of TLS 1.3.
    CertificateKey: Unauthenticated, "CERTIFICATE_KEY",
        "the client certificate's key must be an ECDSA key on the curve P-256, P-384 or P-521";
    /// The signature algorithm is another one.
    CertificateAlgorithm: Unauthenticated, "CERTIFICATE_ALGORITHM",
        "the client certificate must be signed by ECDSA with SHA-256";
    /// The signature is not by the certificate's own key.
    CertificateSignature: Unauthenticated, "CERTIFICATE_SIGNATURE",
        "the client certificate's signature is not by its own key";
    /// It has an extended key usage without `clientAuth`.
    CertificateUsage: Unauthenticated, "CERTIFICATE_USAGE",
        "the client certificate's extended key usage must contain clientAuth";
    /// A critical extension that is not known.
    CertificateExtension: Unauthenticated, "CERTIFICATE_EXTENSION",
        "the client certificate has a critical extension that is not understood";
    /// Not valid yet.
    CertificateNotYetValid: Unauthenticated, "CERTIFICATE_NOT_YET_VALID",
        "the client certificate is not valid yet";
    /// Valid no longer.
    CertificateExpired: Unauthenticated, "CERTIFICATE_EXPIRED",
        "the client certificate has expired";
    /// None with this owner and serial number is trusted.
    CertificateUnknown: Unauthenticated, "CERTIFICATE_UNKNOWN",
        "the client certificate is not known";
    /// One with this owner and serial number is trusted, but it is another one.
    CertificateDiffers: Unauthenticated, "CERTIFICATE_DIFFERS",
        "the client certificate is not the one that is known by its owner and serial number";
    /// It is known, and was revoked.
    CertificateRevoked: Unauthenticated, "CERTIFICATE_REVOKED",
        "the client certificate was revoked";
    /// The chain has another key for it.
    CertificateKeyDiffers: Unauthenticated, "CERTIFICATE_KEY_DIFFERS",
        "the client certificate's key is not the one that the chain has for it";
    /// It was trusted when the call began.
    CertificateWithdrawn: Unauthenticated, "CERTIFICATE_WITHDRAWN",
        "the client certificate is no longer trusted";
    /// The `authorization` header is not a bearer token, or stands there twice.
    AuthorizationMalformed: Unauthenticated, "AUTHORIZATION_MALFORMED",
        "the authorization header must be given once, as `Bearer`, a space and a token";
    /// Longer than any token that makes sense.
    TokenTooLong: Unauthenticated, "TOKEN_TOO_LONG",
        "the token is longer than 8192 bytes";
    /// Not three parts of base64url.
    TokenMalformed: Unauthenticated, "TOKEN_MALFORMED",
        "the token must be three parts of unpadded base64url, joined by dots";
    /// The header is not a JSON object of `alg` and `typ` alone, or `typ` is not `JWT`.
    TokenHeader: Unauthenticated, "TOKEN_HEADER",
        "the token's header must be a JSON object with `alg`, with `typ` = `JWT`, and with nothing else";
    /// Another algorithm: `none`, one with a shared secret, or anything else.
    TokenAlgorithm: Unauthenticated, "TOKEN_ALGORITHM",
        "the token's algorithm must be ES256K or ES256KADR36";
    /// The signature is not two numbers of the right size.
    TokenSignatureForm: Unauthenticated, "TOKEN_SIGNATURE_FORM",
        "the token's signature must be 64 bytes, r and s, each within the order of secp256k1";
    /// The signature is the other one of the two that always fit.
    TokenSignatureHigh: Unauthenticated, "TOKEN_SIGNATURE_HIGH_S",
        "the token's signature must have the lower of the two possible s";
    /// The claims are not a JSON object.
    TokenClaims: Unauthenticated, "TOKEN_CLAIMS_MALFORMED",
        "the token's claims are not a JSON object";
    /// A member stands there twice.
    TokenMemberTwice: Unauthenticated, "TOKEN_MEMBER_TWICE",
        "the token's claims have a member twice";
    /// A member that the schema does not have.
    TokenMemberUnknown: Unauthenticated, "TOKEN_MEMBER_UNKNOWN",
        "the token's claims have a member that is not known";
    /// A member that the schema demands is not there.
    TokenMemberMissing: Unauthenticated, "TOKEN_MEMBER_MISSING",
        "the token's claims lack a member that must be there";
    /// A member that does not go with its `access`.
    TokenMemberMisplaced: Unauthenticated, "TOKEN_MEMBER_MISPLACED",
        "the token's claims have a member that does not go with the `access` beside it";
    /// A member of another type.
    TokenMemberType: Unauthenticated, "TOKEN_MEMBER_TYPE",
        "the token's claims have a member of the wrong type";
    /// `iss` is not an address of a key.
    TokenIssuer: Unauthenticated, "TOKEN_ISSUER",
        "the token's `iss` must be an account address (lower-case bech32: akash1 and 38 characters)";
    /// `version` is another one.
    TokenVersion: Unauthenticated, "TOKEN_VERSION",
        "the token's `version` must be v1";
    /// `jti` is empty.
    TokenId: Unauthenticated, "TOKEN_ID",
        "the token's `jti` must not be empty";
    /// A time is not whole seconds since 1970.
    TokenTime: Unauthenticated, "TOKEN_TIME",
        "the token's times must be whole seconds since 1970, without a sign or a fraction";
    /// `access` is another word.
    TokenAccess: Unauthenticated, "TOKEN_ACCESS",
        "the token's `access` must be full, scoped or granular";
    /// A list of scopes is empty.
    TokenScopeEmpty: Unauthenticated, "TOKEN_SCOPE_EMPTY",
        "the token has an empty `scope`";
    /// A scope that does not exist.
    TokenScopeUnknown: Unauthenticated, "TOKEN_SCOPE_UNKNOWN",
        "the token has a scope that is not known";
    /// A scope stands there twice.
    TokenScopeTwice: Unauthenticated, "TOKEN_SCOPE_TWICE",
        "the token has a scope twice";
    /// `permissions` is empty.
    TokenPermissionsEmpty: Unauthenticated, "TOKEN_PERMISSIONS_EMPTY",
        "the token's `permissions` are empty";
    /// `provider` is not an address of a key.
    TokenProvider: Unauthenticated, "TOKEN_PROVIDER",
        "the token has a `provider` that is not an account address (lower-case bech32: akash1 and 38 characters)";
    /// Two entries for one provider.
    TokenProviderTwice: Unauthenticated, "TOKEN_PROVIDER_TWICE",
        "the token has two entries for one provider";
    /// `deployments` is empty.
    TokenDeploymentsEmpty: Unauthenticated, "TOKEN_DEPLOYMENTS_EMPTY",
        "the token has an empty `deployments`";
    /// `dseq` is zero or out of range.
    TokenDseq: Unauthenticated, "TOKEN_DSEQ",
        "the token has a `dseq` that is not a whole number from 1 on";
    /// `gseq` or `oseq` is out of range.
    TokenSequence: Unauthenticated, "TOKEN_SEQUENCE",
        "the token has a `gseq` or `oseq` that is not a whole number of 32 bits";
    /// `oseq` without `gseq`.
    TokenOseq: Unauthenticated, "TOKEN_OSEQ",
        "the token has an `oseq` without a `gseq`";
    /// `services` is empty.
    TokenServicesEmpty: Unauthenticated, "TOKEN_SERVICES_EMPTY",
        "the token has an empty `services`";
    /// A service stands there twice.
    TokenServiceTwice: Unauthenticated, "TOKEN_SERVICE_TWICE",
        "the token has a service twice";
    /// Not valid yet.
    TokenNotYetValid: Unauthenticated, "TOKEN_NOT_YET_VALID",
        "the token is not valid yet (`nbf`)";
    /// Valid no longer.
    TokenExpired: Unauthenticated, "TOKEN_EXPIRED",
        "the token has expired (`exp`)";
    /// Valid for longer than this gateway allows.
    TokenLifetime {
        /// From `nbf` to `exp`.
        lifetime,
        /// The longest that is allowed.
        limit
    }: Unauthenticated, "TOKEN_LIFETIME",
        "the token is valid for {lifetime}, from `nbf` to `exp`; at most {limit} is allowed";
    /// The account has no key that is known here.
    AccountUnknown: Unauthenticated, "ACCOUNT_UNKNOWN",
        "the account of the token's `iss` is not known";
    /// The account exists and has never signed anything, so that nobody knows its key.
    AccountKeyless: Unauthenticated, "ACCOUNT_KEYLESS",
        "the account of the token's `iss` has no public key on the chain: it has not signed a transaction yet";
    /// The account belongs to several keys.
    AccountMultisig: Unauthenticated, "ACCOUNT_MULTISIG",
        "the account of the token's `iss` is a multi-signature account, which cannot sign tokens";
    /// The key of the account is of another kind.
    AccountKeyKind: Unauthenticated, "ACCOUNT_KEY_KIND",
        "the key of the token's `iss` is not a secp256k1 key";
    /// The signature is not by the key of the account.
    TokenSignature: Unauthenticated, "TOKEN_SIGNATURE",
        "the token's signature is not by the key of its `iss`";
    /// The key was trusted when the call began.
    AccountWithdrawn: Unauthenticated, "ACCOUNT_WITHDRAWN",
        "the key of the token's `iss` is no longer trusted";
    /// Nobody can say just now whether the caller is to be believed.
    TrustUnavailable: Unavailable, "TRUST_UNAVAILABLE",
        "whether the caller is to be believed cannot be found out at present; try again later";
    /// Too many questions to the trust source are under way to ask one more.
    TrustBusy: Exhausted, "TRUST_BUSY",
        "too many callers who are not known yet come at once; try again later";
    /// The lease is not the caller's, whether it exists or not.
    NotYours: PermissionDenied, "LEASE_NOT_YOURS",
        "the lease is not yours";
    /// The lease is the caller's, at a provider that is not served here.
    OtherProvider: PermissionDenied, "PROVIDER_NOT_SERVED",
        "the lease is not at the provider that this gateway serves";
    /// The token is not for this lease.
    LeaseNotGranted: PermissionDenied, "LEASE_NOT_GRANTED",
        "the token does not grant this lease";
    /// The token is for the lease, and not for this.
    ScopeNotGranted: PermissionDenied, "SCOPE_NOT_GRANTED",
        "the token does not grant this scope on the lease";
    /// The token is not for this service of the lease.
    ServiceNotGranted: PermissionDenied, "SERVICE_NOT_GRANTED",
        "the token does not grant a service that was asked for";
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
    fn every_refusal_has_its_own_reason_and_words() {
        let reasons: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.reason()).collect();
        let words: HashSet<_> = Refusal::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(reasons.len(), Refusal::ALL.len());
        assert_eq!(words.len(), Refusal::ALL.len());
        for reason in reasons {
            assert!(reason.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{reason}");
        }
    }

    #[test]
    fn too_long_lifetime_is_shown_with_its_limit() {
        let words = |lifetime, limit| {
            Refusal::TokenLifetime { lifetime: Lifetime(lifetime), limit: Lifetime(limit) }.to_string()
        };
        let shown = words(48 * 3_600, 5_400);
        assert!(shown.contains("for 48h,") && shown.contains("at most 1h 30m"), "{shown}");
        assert!(words(u64::MAX, 3_600).contains("at most 1h"));
    }
}
