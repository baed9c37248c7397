//! Authentication: from credentials to an identity, or a refusal.
//!
//! The form of a certificate is checked once per connection ([`ClientCertificate`]); its validity period and
//! trust are checked for each call. A token comes with each call and is checked in full each time.
//! `CredentialValidity` then ends running calls.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::cert::{TenantCertificate, saturating_time};
use super::grants::{Access, Identity};
use super::refusal::Refusal;
use super::token::{self, Token};
use super::trust::{RevocationSignal, Trust, TrustAnswer, TrustedItem, Unavailable};
use crate::model::id::{Address, Owner};
use crate::model::limits::Limits;
use crate::model::time::LogTime;

/// Authenticates callers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authenticator {
    pub(crate) trust: Arc<dyn Trust>,
    /// Maximum lifetime of tokens, from `nbf` to `exp`.
    pub(crate) token_lifetime_max: Duration,
    /// The one provider whose leases are served; `None` = any.
    pub(crate) provider: Option<Address>,
}

/// The certificate that a client presented in the handshake, if it did. Its form is checked once for all
/// calls of the connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientCertificate(Option<Result<TenantCertificate, Refusal>>);

/// An authenticated caller.
#[derive(Clone, Debug)]
pub(crate) struct Authenticated {
    pub(crate) identity: Identity,
    pub(crate) validity: CredentialValidity,
}

/// Why a caller was not authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuthError {
    pub(crate) refusal: Refusal,
    /// The owner that the credential names, if it could be read. Unproven: for the log only.
    pub(crate) claimed: Option<Owner>,
}

/// How long a credential is valid: until it expires or loses its trust.
#[derive(Clone, Debug)]
pub(crate) struct CredentialValidity {
    revocation: RevocationSignal,
    revoked: Refusal,
    expires: Instant,
    expired: Refusal,
}

// === impl ClientCertificate ===

impl ClientCertificate {
    /// Checks the form of the first certificate in `chain`. The handshake has proved possession of its key.
    /// Costs one signature verification.
    pub fn new(chain: Option<&[CertificateDer<'_>]>) -> Self {
        Self(chain.filter(|chain| !chain.is_empty()).map(TenantCertificate::from_presented))
    }

    /// Returns whether the client presented a certificate, of any form.
    pub(crate) fn is_present(&self) -> bool {
        self.0.is_some()
    }
}

// === impl Authenticator ===

impl Authenticator {
    /// Creates an authenticator that relies on `trust`, with the default limit on the lifetime of tokens, for
    /// leases of any provider.
    pub fn new(trust: Arc<dyn Trust>) -> Self {
        Self { trust, token_lifetime_max: Limits::default().token_lifetime, provider: None }
    }

    /// Authenticates a call with this client certificate and these `authorization` headers, at the wall-clock
    /// time `now`. Fails with the first check that failed: credentials (exactly one), form, time, trust and,
    /// for a token, the signature.
    ///
    /// Asks the trust source only about a certificate or token that is well-formed and valid at `now`. Cancel
    /// safe.
    pub(crate) async fn authenticate(
        &self,
        certificate: &ClientCertificate,
        authorization: &[&[u8]],
        now: LogTime,
    ) -> Result<Authenticated, AuthError> {
        match (&certificate.0, authorization) {
            (Some(_), [_, ..]) => Err(Refusal::Ambiguous.into()),
            (None, []) => Err(Refusal::NoCredentials.into()),
            (Some(Err(refusal)), []) => Err((*refusal).into()),
            (Some(Ok(certificate)), []) => self
                .authenticate_certificate(certificate, now)
                .await
                .map_err(|refusal| AuthError { refusal, claimed: Some(certificate.owner().clone()) }),
            (None, [authorization]) => {
                let token = Token::parse(token::bearer(authorization)?).map_err(Refusal::from)?;
                self.authenticate_token(&token, now)
                    .await
                    .map_err(|refusal| AuthError { refusal, claimed: Some(token.claims().issuer.clone()) })
            }
            (None, [_, _, ..]) => Err(Refusal::AuthorizationMalformed.into()),
        }
    }

    /// Returns whether the certificate is well-formed, valid at `now` and trusted. Queries the trust source
    /// only if it does not have the answer in memory and `may_query` allows it. Cancel safe.
    pub(crate) async fn trusts(
        &self,
        certificate: &ClientCertificate,
        now: LogTime,
        may_query: impl FnOnce() -> bool,
    ) -> bool {
        let Some(Ok(certificate)) = &certificate.0 else {
            return false;
        };
        if certificate.check_time(now).is_err() {
            return false;
        }
        match self.trust.known_certificate(certificate.owner(), certificate.serial()) {
            Some(trusted) => trusted.value == *certificate.der(),
            None => may_query() && self.authenticate_certificate(certificate, now).await.is_ok(),
        }
    }

    async fn authenticate_certificate(
        &self,
        certificate: &TenantCertificate,
        now: LogTime,
    ) -> Result<Authenticated, Refusal> {
        certificate.check_time(now)?;
        // Both clocks are read at once: `now` is wall time, the timer needs monotonic time. Waiting in
        // between would move the expiry later. `not_after` is inclusive, so the timer fires one millisecond
        // later, the least that it distinguishes.
        let expires = Instant::now() + time_until(certificate.not_after(), now) + Duration::from_millis(1);
        let answer = self.trust.certificate(certificate.owner(), certificate.serial()).await;
        let trusted = require_trusted(answer, Refusal::CertificateUnknown)?;
        if trusted.value != *certificate.der() {
            return Err(Refusal::CertificateDiffers);
        }
        Ok(Authenticated {
            identity: Identity::new(certificate.owner().clone(), Access::Full, self.provider.clone()),
            validity: CredentialValidity {
                revocation: trusted.revocation,
                revoked: Refusal::CertificateWithdrawn,
                expires,
                expired: Refusal::CertificateExpired,
            },
        })
    }

    async fn authenticate_token(&self, token: &Token, now: LogTime) -> Result<Authenticated, Refusal> {
        token.check_time(now, self.token_lifetime_max)?;
        let claims = token.claims();
        let end = saturating_time(i64::try_from(claims.expires).unwrap_or(i64::MAX));
        // As for a certificate, but `exp` is exclusive.
        let expires = Instant::now() + time_until(end, now);
        let answer = self.trust.account_key(&claims.issuer).await;
        let trusted = require_trusted(answer, Refusal::AccountUnknown)?;
        token.check_signature(&trusted.value)?;
        Ok(Authenticated {
            identity: Identity::new(claims.issuer.clone(), claims.access.clone(), self.provider.clone()),
            validity: CredentialValidity {
                revocation: trusted.revocation,
                revoked: Refusal::AccountWithdrawn,
                expires,
                expired: Refusal::TokenExpired,
            },
        })
    }
}

fn require_trusted<T>(
    answer: Result<TrustAnswer<T>, Unavailable>,
    unknown: Refusal,
) -> Result<TrustedItem<T>, Refusal> {
    match answer {
        Ok(TrustAnswer::Trusted(trusted)) => Ok(trusted),
        Ok(TrustAnswer::Unknown) => Err(unknown),
        Ok(TrustAnswer::Refused(refusal)) => Err(refusal),
        Err(Unavailable) => Err(Refusal::TrustUnavailable),
    }
}

fn time_until(end: LogTime, now: LogTime) -> Duration {
    let nanos = end.as_nanos().saturating_sub(now.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
}

// === impl AuthError ===

impl From<Refusal> for AuthError {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, claimed: None }
    }
}

// === impl CredentialValidity ===

impl CredentialValidity {
    /// Lets a stream outlive its token until it is `grace` old. Withdrawn trust still ends it, and so does
    /// the expiry of a certificate.
    #[must_use]
    pub(crate) fn with_token_grace(mut self, grace: Duration) -> Self {
        if self.expired == Refusal::TokenExpired {
            self.expires = self.expires.max(Instant::now() + grace);
        }
        self
    }

    /// Waits until the credential is no longer valid and returns the reason. Cancel safe.
    pub(crate) async fn ended(&self) -> Refusal {
        tokio::select! {
            biased;
            refusal = self.revocation.ended(self.revoked) => refusal,
            () = tokio::time::sleep_until(self.expires) => self.expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::access::account::AccountKey;
    use crate::access::cert::Serial;
    use crate::access::grants::{Access, Services, TokenScope};
    use crate::access::refusal::Lifetime;
    use crate::access::testing::{NOW, Tenant};
    use crate::access::token::{Algorithm, Claims};
    use crate::access::trust::{AnyOf, TrustFuture};
    use crate::access::wallet::{Mnemonic, Wallet};
    use crate::model::id::LeaseId;
    use crate::model::id::Owner;

    /// The length of a tenant's certificate: a year.
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    /// Gives everyone the same answer, and records the questions.
    #[derive(Debug)]
    struct FakeTrust {
        answer: Result<TrustAnswer, Unavailable>,
        account: Result<TrustAnswer<AccountKey>, Unavailable>,
        asked: Mutex<Vec<(Owner, String)>>,
    }

    impl Trust for FakeTrust {
        fn certificate<'a>(&'a self, owner: &'a Owner, serial: &'a Serial) -> TrustFuture<'a> {
            self.asked.lock().push((owner.clone(), serial.to_string()));
            Box::pin(std::future::ready(self.answer.clone()))
        }

        fn account_key<'a>(&'a self, owner: &'a Owner) -> TrustFuture<'a, AccountKey> {
            self.asked.lock().push((owner.clone(), "account".to_owned()));
            Box::pin(std::future::ready(self.account.clone()))
        }
    }

    fn authenticator(answer: Result<TrustAnswer, Unavailable>) -> (Authenticator, Arc<FakeTrust>) {
        let fake = Arc::new(FakeTrust { answer, account: Err(Unavailable), asked: Mutex::default() });
        (Authenticator::new(Arc::clone(&fake) as Arc<dyn Trust>), fake)
    }

    fn trusting(certificate: &CertificateDer<'_>) -> (Authenticator, TrustedItem) {
        let trusted = TrustedItem::new(certificate.as_ref().into());
        (authenticator(Ok(TrustAnswer::Trusted(trusted.clone()))).0, trusted)
    }

    fn presented(certificate: &CertificateDer<'_>) -> ClientCertificate {
        ClientCertificate::new(Some(std::slice::from_ref(certificate)))
    }

    fn later(by: Duration) -> LogTime {
        NOW.saturating_add_nanos(i64::try_from(by.as_nanos()).unwrap())
    }

    #[tokio::test]
    async fn trusted_certificate_is_authenticated() {
        let tenant = Tenant::new(1, 77);
        let certificate = tenant.certificate();
        let trusted = TrustedItem::new(certificate.as_ref().into());
        let (authenticator, fake) = authenticator(Ok(TrustAnswer::Trusted(trusted)));
        let presented = presented(&certificate);
        for _ in 0..2 {
            let caller = authenticator.authenticate(&presented, &[], NOW).await.unwrap();
            assert_eq!(*caller.identity.owner(), tenant.address);
        }
        let question = (tenant.address, "77".to_owned());
        assert_eq!(*fake.asked.lock(), [question.clone(), question]);
    }

    #[tokio::test]
    async fn invalid_credentials_cause_no_trust_query() {
        let good = Tenant::new(1, 1).certificate();
        let (authenticator, fake) = authenticator(Err(Unavailable));
        let cases: [(ClientCertificate, &[&[u8]], LogTime, Refusal); 10] = [
            (ClientCertificate::new(None), &[], NOW, Refusal::NoCredentials),
            (ClientCertificate::new(Some(&[])), &[], NOW, Refusal::NoCredentials),
            (ClientCertificate::new(None), &[b"Basic x"], NOW, Refusal::AuthorizationMalformed),
            (ClientCertificate::new(None), &[b"Bearer x"], NOW, Refusal::TokenMalformed),
            (ClientCertificate::new(None), &[b"Bearer x", b"Bearer x"], NOW, Refusal::AuthorizationMalformed),
            (presented(&good), &[b""], NOW, Refusal::Ambiguous),
            (presented(&b"x".to_vec().into()), &[], NOW, Refusal::CertificateMalformed),
            (
                ClientCertificate::new(Some(&[good.clone(), good.clone()])),
                &[],
                NOW,
                Refusal::CertificateChain,
            ),
            (presented(&good), &[], NOW.saturating_add_nanos(-1), Refusal::CertificateNotYetValid),
            (presented(&good), &[], later(YEAR + Duration::from_nanos(1)), Refusal::CertificateExpired),
        ];
        for (certificate, authorization, now, expected) in cases {
            let refusal =
                authenticator.authenticate(&certificate, authorization, now).await.unwrap_err().refusal;
            assert_eq!(refusal, expected);
        }
        assert!(fake.asked.lock().is_empty());
    }

    /// Has this certificate in memory, and fails if it is queried.
    #[derive(Debug)]
    struct CachedTrust(TrustedItem);

    impl Trust for CachedTrust {
        fn certificate<'a>(&'a self, _: &'a Owner, _: &'a Serial) -> TrustFuture<'a> {
            panic!("queried")
        }

        fn known_certificate(&self, _: &Owner, _: &Serial) -> Option<TrustedItem> {
            Some(self.0.clone())
        }

        fn account_key<'a>(&'a self, _: &'a Owner) -> TrustFuture<'a, AccountKey> {
            panic!("queried")
        }
    }

    #[tokio::test]
    async fn known_certificate_is_trusted_without_query() {
        let (good, other) = (Tenant::new(1, 1).certificate(), Tenant::new(2, 1).certificate());
        let authenticator = Authenticator::new(Arc::new(CachedTrust(TrustedItem::new(good.as_ref().into()))));
        let refuse = || panic!("queried");
        assert!(authenticator.trusts(&presented(&good), NOW, refuse).await);
        assert!(!authenticator.trusts(&presented(&other), NOW, refuse).await);
        assert!(!authenticator.trusts(&ClientCertificate::new(None), NOW, refuse).await);
        assert!(!authenticator.trusts(&presented(&b"x".to_vec().into()), NOW, refuse).await);
        let expired = later(YEAR + Duration::from_nanos(1));
        assert!(!authenticator.trusts(&presented(&good), expired, refuse).await);
    }

    #[tokio::test]
    async fn unknown_certificate_is_queried_only_if_allowed() {
        let good = Tenant::new(1, 1).certificate();
        let (authenticator, trusted) = trusting(&good);
        assert!(!authenticator.trusts(&presented(&good), NOW, || false).await);
        assert!(authenticator.trusts(&presented(&good), NOW, || true).await);
        let sources = AnyOf(vec![Arc::new(CachedTrust(trusted)) as Arc<dyn Trust>]);
        assert!(Authenticator::new(Arc::new(sources)).trusts(&presented(&good), NOW, || false).await);
    }

    #[tokio::test]
    async fn answer_of_trust_source_decides() {
        let good = Tenant::new(1, 1).certificate();
        let refusal = |answer| {
            let (authenticator, presented) = (authenticator(answer).0, presented(&good));
            async move { authenticator.authenticate(&presented, &[], NOW).await.unwrap_err().refusal }
        };
        assert_eq!(refusal(Ok(TrustAnswer::Unknown)).await, Refusal::CertificateUnknown);
        assert_eq!(refusal(Err(Unavailable)).await, Refusal::TrustUnavailable);
    }

    #[tokio::test]
    async fn forged_certificate_with_same_owner_and_serial_is_refused() {
        let genuine = Tenant::new(1, 1).certificate();
        let forged = Tenant::new(1, 1).certificate();
        let (authenticator, _) = trusting(&genuine);
        let error = authenticator.authenticate(&presented(&forged), &[], NOW).await.unwrap_err();
        assert_eq!(error.refusal, Refusal::CertificateDiffers);
        authenticator.authenticate(&presented(&genuine), &[], NOW).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn validity_ends_when_certificate_expires() {
        let certificate = Tenant::new(1, 1).certificate();
        let (authenticator, _) = trusting(&certificate);
        let began = Instant::now();
        let caller = authenticator.authenticate(&presented(&certificate), &[], NOW).await.unwrap();
        assert_eq!(caller.validity.ended().await, Refusal::CertificateExpired);
        assert!(began.elapsed() > YEAR && began.elapsed() < YEAR + Duration::from_secs(1));

        let began = Instant::now();
        let caller = authenticator.authenticate(&presented(&certificate), &[], later(YEAR)).await.unwrap();
        assert_eq!(caller.validity.ended().await, Refusal::CertificateExpired);
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn validity_ends_when_trust_is_revoked() {
        let mut tenant = Tenant::new(1, 1);
        tenant.params.not_after = rcgen::date_time_ymd(9999, 12, 31);
        let certificate = tenant.certificate();
        let (authenticator, trusted) = trusting(&certificate);
        let first = authenticator.authenticate(&presented(&certificate), &[], NOW).await.unwrap();
        let second = authenticator.authenticate(&presented(&certificate), &[], NOW).await.unwrap();
        let revoke = async {
            tokio::time::sleep(100 * YEAR).await;
            trusted.end_trust();
        };
        let (first, second, ()) = tokio::join!(first.validity.ended(), second.validity.ended(), revoke);
        assert_eq!((first, second), (Refusal::CertificateWithdrawn, Refusal::CertificateWithdrawn));
        // A call after the revocation ends at once.
        let third = authenticator.authenticate(&presented(&certificate), &[], NOW).await.unwrap();
        assert_eq!(third.validity.ended().await, Refusal::CertificateWithdrawn);
    }

    /// Returns an account, and a header with its token, which is valid from [`NOW`] for `seconds`.
    fn token(seconds: u64) -> (Wallet, String) {
        let wallet = Mnemonic::generate().unwrap().wallet().unwrap();
        let header = header_of(&wallet, wallet.key().address(), seconds);
        (wallet, header)
    }

    fn header_of(signer: &Wallet, issuer: Owner, seconds: u64) -> String {
        let begin = u64::try_from(NOW.parts().0).unwrap();
        let access = Access::Scoped([TokenScope::Logs].into_iter().collect());
        let expires = begin + seconds;
        let claims = Claims { issuer, issued: begin, not_before: begin, expires, id: None, access };
        format!("Bearer {}", signer.sign(Algorithm::Es256k, &claims).unwrap())
    }

    fn knowing(account: Result<TrustAnswer<AccountKey>, Unavailable>) -> (Authenticator, Arc<FakeTrust>) {
        let fake = Arc::new(FakeTrust { answer: Err(Unavailable), account, asked: Mutex::default() });
        (Authenticator::new(Arc::clone(&fake) as Arc<dyn Trust>), fake)
    }

    async fn error(authenticator: &Authenticator, header: &str, now: LogTime) -> AuthError {
        authenticator
            .authenticate(&ClientCertificate::new(None), &[header.as_bytes()], now)
            .await
            .unwrap_err()
    }

    #[tokio::test]
    async fn token_of_known_account_grants_its_scopes() {
        let (wallet, header) = token(600);
        let owner = wallet.key().address();
        let (authenticator, fake) = knowing(Ok(TrustAnswer::Trusted(TrustedItem::new(wallet.key()))));
        let caller = authenticator
            .authenticate(&ClientCertificate::new(None), &[header.as_bytes()], NOW)
            .await
            .unwrap();
        assert_eq!(*caller.identity.owner(), owner);
        let provider = Owner::from_account([9; 20]);
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap();
        assert_eq!(caller.identity.authorize(&lease, TokenScope::Logs), Ok(Services::All));
        assert_eq!(caller.identity.authorize(&lease, TokenScope::Restart), Err(Refusal::ScopeNotGranted));
        assert_eq!(*fake.asked.lock(), [(owner, "account".to_owned())]);
    }

    #[tokio::test]
    async fn invalid_token_causes_no_trust_query() {
        let (wallet, header) = token(600);
        let (authenticator, fake) = knowing(Ok(TrustAnswer::Trusted(TrustedItem::new(wallet.key()))));
        let authenticator = Authenticator { token_lifetime_max: Duration::from_secs(600), ..authenticator };
        let claimed = Some(wallet.key().address());
        let late = later(Duration::from_secs(600));
        let early = NOW.saturating_add_nanos(-1);
        let long = header_of(&wallet, wallet.key().address(), 601);
        let too_long = Refusal::TokenLifetime { lifetime: Lifetime(601), limit: Lifetime(600) };
        for (header, now, refusal) in [
            (&header, late, Refusal::TokenExpired),
            (&header, early, Refusal::TokenNotYetValid),
            (&long, NOW, too_long),
            (&long, later(Duration::from_secs(601)), Refusal::TokenExpired),
        ] {
            assert_eq!(
                error(&authenticator, header, now).await,
                AuthError { refusal, claimed: claimed.clone() }
            );
        }
        let broken = &header[..header.len() - 2];
        assert_eq!(error(&authenticator, broken, NOW).await.refusal, Refusal::TokenSignatureForm);
        assert!(fake.asked.lock().is_empty());
    }

    #[tokio::test]
    async fn token_signed_by_another_key_is_refused() {
        let ((mine, header), (other, _)) = (token(600), token(600));
        let knows = |key| knowing(Ok(TrustAnswer::Trusted(TrustedItem::new(key)))).0;
        assert_eq!(error(&knows(other.key()), &header, NOW).await.refusal, Refusal::TokenSignature);
        let forged = header_of(&other, mine.key().address(), 600);
        assert_eq!(error(&knows(mine.key()), &forged, NOW).await.refusal, Refusal::TokenSignature);
    }

    #[tokio::test]
    async fn refusal_of_key_source_is_passed_on() {
        let (_, header) = token(600);
        for (answer, refusal) in [
            (Ok(TrustAnswer::Unknown), Refusal::AccountUnknown),
            (Ok(TrustAnswer::Refused(Refusal::AccountMultisig)), Refusal::AccountMultisig),
            (Ok(TrustAnswer::Refused(Refusal::AccountKeyless)), Refusal::AccountKeyless),
            (Err(Unavailable), Refusal::TrustUnavailable),
        ] {
            assert_eq!(error(&knowing(answer).0, &header, NOW).await.refusal, refusal);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn validity_of_token_ends_at_expiry_or_revocation() {
        let (wallet, header) = token(600);
        let trusted = TrustedItem::new(wallet.key());
        let (authenticator, _) = knowing(Ok(TrustAnswer::Trusted(trusted.clone())));
        let validity = || async {
            authenticator
                .authenticate(&ClientCertificate::new(None), &[header.as_bytes()], NOW)
                .await
                .unwrap()
                .validity
        };
        let began = Instant::now();
        assert_eq!(validity().await.ended().await, Refusal::TokenExpired);
        let second = Duration::from_secs(1);
        assert!(began.elapsed() >= 600 * second && began.elapsed() < 601 * second);
        let running = validity().await;
        trusted.end_trust();
        assert_eq!(running.ended().await, Refusal::AccountWithdrawn);
        // The source can no longer confirm the key.
        let trusted = TrustedItem::new(wallet.key());
        let (authenticator, _) = knowing(Ok(TrustAnswer::Trusted(trusted.clone())));
        let caller = authenticator
            .authenticate(&ClientCertificate::new(None), &[header.as_bytes()], NOW)
            .await
            .unwrap();
        trusted.revocation.end_unconfirmed();
        assert_eq!(caller.validity.ended().await, Refusal::TrustUnavailable);
    }
}
