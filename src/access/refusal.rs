//! Why a caller is turned away, in words for the caller.
//!
//! A refusal never repeats what a certificate or header holds, and says nothing of what exists here.

/// Why a call was refused, or a running one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Neither a certificate nor a token.
    #[error("a client certificate is required")]
    NoCredentials,
    /// A certificate and a token: which one counts would be a guess.
    #[error("a client certificate and a token were given together; use one of them")]
    Ambiguous,
    /// A token.
    #[error("tokens are not accepted by this gateway; use a client certificate")]
    TokenNotAccepted,
    /// Not exactly one certificate.
    #[error("the client must present exactly one certificate, without a chain")]
    CertificateChain,
    /// Not X.509 in DER, larger than any tenant's certificate, or with an extension twice.
    #[error("the client certificate is not a well-formed X.509 certificate")]
    CertificateMalformed,
    /// The subject does not hold exactly one common name that is an account address.
    #[error(
        "the client certificate's subject must have exactly one common name, and it must be an account address \
         (lower-case bech32 starting with akash1)"
    )]
    CertificateSubject,
    /// The issuer's common name is not the subject's.
    #[error("the client certificate must be self-signed: its issuer's common name is not its subject's")]
    CertificateIssuer,
    /// The serial number is not positive, or too long.
    #[error("the client certificate's serial number must be positive and at most 40 bytes long")]
    CertificateSerial,
    /// The key is not on the curve P-256.
    #[error("the client certificate's key must be an ECDSA key on the curve P-256")]
    CertificateKey,
    /// The signature algorithm is another one.
    #[error("the client certificate must be signed by ECDSA with SHA-256")]
    CertificateAlgorithm,
    /// The signature is not by the certificate's own key.
    #[error("the client certificate's signature is not by its own key")]
    CertificateSignature,
    /// `clientAuth` is missing.
    #[error("the client certificate must be for client authentication (extended key usage clientAuth)")]
    CertificateUsage,
    /// It claims to be a certificate authority's.
    #[error("the client certificate must not be that of a certificate authority")]
    CertificateAuthority,
    /// A critical extension that means nothing here.
    #[error("the client certificate has a critical extension that is not understood")]
    CertificateExtension,
    /// Not valid yet.
    #[error("the client certificate is not valid yet")]
    CertificateNotYetValid,
    /// Valid no longer.
    #[error("the client certificate has expired")]
    CertificateExpired,
    /// None with this owner and serial number is trusted.
    #[error("the client certificate is not known")]
    CertificateUnknown,
    /// One with this owner and serial number is trusted, but it is another one.
    #[error("the client certificate is not the one that is known by its owner and serial number")]
    CertificateDiffers,
    /// It was trusted when the call began.
    #[error("the client certificate is no longer trusted")]
    CertificateWithdrawn,
    /// Nobody can say just now whether it is trusted.
    #[error("whether the client certificate is trusted cannot be found out at present; try again later")]
    TrustUnavailable,
    /// The lease is not the caller's, whether it exists or not.
    #[error("the lease is not yours")]
    NotYours,
}

/// What a refusal comes to: the edge makes a gRPC code of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who is calling is not established.
    Unauthenticated,
    /// It is, and this is not for them.
    PermissionDenied,
    /// It cannot be established just now; the same call may succeed later.
    Unavailable,
}

// === impl Refusal ===

impl Refusal {
    /// Each of them once.
    pub const ALL: [Self; 21] = [
        Self::NoCredentials,
        Self::Ambiguous,
        Self::TokenNotAccepted,
        Self::CertificateChain,
        Self::CertificateMalformed,
        Self::CertificateSubject,
        Self::CertificateIssuer,
        Self::CertificateSerial,
        Self::CertificateKey,
        Self::CertificateAlgorithm,
        Self::CertificateSignature,
        Self::CertificateUsage,
        Self::CertificateAuthority,
        Self::CertificateExtension,
        Self::CertificateNotYetValid,
        Self::CertificateExpired,
        Self::CertificateUnknown,
        Self::CertificateDiffers,
        Self::CertificateWithdrawn,
        Self::TrustUnavailable,
        Self::NotYours,
    ];

    /// What it comes to.
    pub const fn kind(self) -> Kind {
        match self {
            Self::NotYours => Kind::PermissionDenied,
            Self::TrustUnavailable => Kind::Unavailable,
            _ => Kind::Unauthenticated,
        }
    }

    /// One word for it that stays the same from release to release: for programs, and fit to be a metric label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoCredentials => "CREDENTIALS_MISSING",
            Self::Ambiguous => "CREDENTIALS_AMBIGUOUS",
            Self::TokenNotAccepted => "TOKEN_NOT_ACCEPTED",
            Self::CertificateChain => "CERTIFICATE_CHAIN",
            Self::CertificateMalformed => "CERTIFICATE_MALFORMED",
            Self::CertificateSubject => "CERTIFICATE_SUBJECT",
            Self::CertificateIssuer => "CERTIFICATE_ISSUER",
            Self::CertificateSerial => "CERTIFICATE_SERIAL",
            Self::CertificateKey => "CERTIFICATE_KEY",
            Self::CertificateAlgorithm => "CERTIFICATE_ALGORITHM",
            Self::CertificateSignature => "CERTIFICATE_SIGNATURE",
            Self::CertificateUsage => "CERTIFICATE_USAGE",
            Self::CertificateAuthority => "CERTIFICATE_AUTHORITY",
            Self::CertificateExtension => "CERTIFICATE_EXTENSION",
            Self::CertificateNotYetValid => "CERTIFICATE_NOT_YET_VALID",
            Self::CertificateExpired => "CERTIFICATE_EXPIRED",
            Self::CertificateUnknown => "CERTIFICATE_UNKNOWN",
            Self::CertificateDiffers => "CERTIFICATE_DIFFERS",
            Self::CertificateWithdrawn => "CERTIFICATE_WITHDRAWN",
            Self::TrustUnavailable => "TRUST_UNAVAILABLE",
            Self::NotYours => "LEASE_NOT_YOURS",
        }
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
}
