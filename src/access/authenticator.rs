//! From credentials to an identity, or a refusal.
//!
//! What a connection presented is checked for its form once ([`Peer`]); each call on it asks anew whether it is valid at that
//! time and trusted. A token is checked anew with each call, for it comes with each. Whoever is admitted gets a [`Standing`]
//! along, which tells when that ends.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::cert::TenantCertificate;
use super::grants::Identity;
use super::refusal::Refusal;
use super::token::{self, Token};
use super::trust::{RevocationSignal, Trust, TrustAnswer, TrustedItem, Unavailable};
use crate::model::id::{Address, Owner};
use crate::model::limits::Limits;
use crate::model::time::LogTime;

/// Decides who comes in. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Authenticator {
    trust: Arc<dyn Trust>,
    /// For how long a token may be valid in all.
    token_lifetime: Duration,
    /// The one provider whose leases are served; `None` = any.
    provider: Option<Address>,
}

/// What the peer of one connection presented, checked once for all calls on it. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `None`: no certificate.
    certificate: Option<Result<TenantCertificate, Refusal>>,
}

/// A caller who was let in.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Who they are.
    pub identity: Identity,
    /// How long they are believed.
    pub standing: CredentialValidity,
}

/// A caller who was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub refusal: Refusal,
    /// Who they said they are, as far as that could be read. It is not proved: for the log only.
    pub claimed: Option<Owner>,
}

/// How long a caller is believed: until their certificate or token expires, or they are no longer trusted.
#[derive(Clone, Debug)]
pub struct CredentialValidity {
    hold: RevocationSignal,
    withdrawn: Refusal,
    expires: Instant,
    expired: Refusal,
}

// === impl Peer ===

impl Peer {
    /// The peer of a connection whose handshake proved that it holds the key of the first certificate of `chain`. Costs one
    /// check of a signature.
    pub fn new(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let certificate = chain.filter(|chain| !chain.is_empty()).map(TenantCertificate::from_chain);
        Self { certificate }
    }
}

// === impl Gate ===

impl Authenticator {
    /// A gate that believes `trust`.
    pub fn new(trust: Arc<dyn Trust>) -> Self {
        Self { trust, token_lifetime: Limits::default().token_lifetime, provider: None }
    }

    /// The same, for tokens that are valid for `longest` at most in all.
    #[must_use]
    pub fn with_token_lifetime(mut self, longest: Duration) -> Self {
        self.token_lifetime = longest;
        self
    }

    /// The same, for leases of `provider` only, if one is given.
    #[must_use]
    pub fn with_provider(mut self, provider: Option<Address>) -> Self {
        self.provider = provider;
        self
    }

    /// Who is calling, over a connection of `peer`, with these `authorization` headers. `now` is the time by the wall clock,
    /// against which certificates and tokens are valid.
    ///
    /// The trust source is asked only about a certificate or token of good form that is valid now. Nothing is lost if the future
    /// is dropped.
    ///
    /// # Errors
    /// The first check that failed: credentials (one kind, and one that is accepted), form, time, trust, and of a token the
    /// signature.
    pub async fn admit(
        &self,
        peer: &Peer,
        authorization: &[&[u8]],
        now: LogTime,
    ) -> Result<Admission, Denial> {
        match (&peer.certificate, authorization) {
            (Some(_), [_, ..]) => Err(Refusal::Ambiguous.into()),
            (None, []) => Err(Refusal::NoCredentials.into()),
            (Some(Err(refusal)), []) => Err((*refusal).into()),
            (Some(Ok(presented)), []) => self
                .admit_certificate(presented, now)
                .await
                .map_err(|refusal| Denial { refusal, claimed: Some(presented.owner().clone()) }),
            (None, [authorization]) => {
                let token = token::bearer(authorization)
                    .and_then(|token| Token::parse(token).map_err(|fault| fault.refusal))?;
                self.admit_token(&token, now)
                    .await
                    .map_err(|refusal| Denial { refusal, claimed: Some(token.claims().issuer.clone()) })
            }
            (None, [_, _, ..]) => Err(Refusal::AuthorizationMalformed.into()),
        }
    }

    /// Returns whether the certificate of `peer` is trusted: of good form, valid now, and known. The trust source is asked
    /// only about a certificate of which it does not know the answer already, and if `may_ask` allows it. Cancel safe.
    pub async fn trusts(&self, peer: &Peer, now: LogTime, may_ask: impl FnOnce() -> bool) -> bool {
        let Some(Ok(presented)) = &peer.certificate else {
            return false;
        };
        if presented.check_time(now).is_err() {
            return false;
        }
        match self.trust.known_certificate(presented.owner(), presented.serial()) {
            Some(trusted) => trusted.der() == presented.der(),
            None => may_ask() && self.admit_certificate(presented, now).await.is_ok(),
        }
    }

    async fn admit_certificate(
        &self,
        presented: &TenantCertificate,
        now: LogTime,
    ) -> Result<Admission, Refusal> {
        presented.check_time(now)?;
        // Taken before the answer is waited for, like `now`: together they place the end of the period. At the very end a
        // certificate is still valid, and this is the least that a timer can tell apart.
        let expires = Instant::now() + until(now, presented.not_after()) + Duration::from_millis(1);
        let asked = self.trust.certificate(presented.owner(), presented.serial()).await;
        let trusted = trusted(asked, Refusal::CertificateUnknown)?;
        if trusted.der() != presented.der() {
            return Err(Refusal::CertificateDiffers);
        }
        Ok(Admission {
            identity: Identity::owner_in_person(presented.owner().clone()).at(self.provider.clone()),
            standing: CredentialValidity {
                hold: trusted.hold().clone(),
                withdrawn: Refusal::CertificateWithdrawn,
                expires,
                expired: Refusal::CertificateExpired,
            },
        })
    }

    async fn admit_token(&self, token: &Token, now: LogTime) -> Result<Admission, Refusal> {
        token.check_time(now, self.token_lifetime)?;
        let claims = token.claims();
        let expires = Instant::now() + until(now, instant(claims.expires));
        let asked = self.trust.account(&claims.issuer).await;
        let key = trusted(asked, Refusal::AccountUnknown)?;
        token.check_signature(key.what())?;
        Ok(Admission {
            identity: Identity::with_token(claims.issuer.clone(), claims.access.clone())
                .at(self.provider.clone()),
            standing: CredentialValidity {
                hold: key.hold().clone(),
                withdrawn: Refusal::AccountWithdrawn,
                expires,
                expired: Refusal::TokenExpired,
            },
        })
    }
}

fn trusted<T>(
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

/// The instant of these seconds since 1970, or the last one there is.
fn instant(seconds: u64) -> LogTime {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    LogTime::from_parts(seconds, 0).unwrap_or(LogTime::from_nanos(i64::MAX))
}

fn until(now: LogTime, end: LogTime) -> Duration {
    let nanos = end.as_nanos().saturating_sub(now.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
}

// === impl Denial ===

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, claimed: None }
    }
}

// === impl Standing ===

impl CredentialValidity {
    /// Waits until the caller is no longer believed, and tells why. Nothing is lost if it is cancelled.
    pub async fn ended(&self) -> Refusal {
        tokio::select! {
            biased;
            refusal = self.hold.ended(self.withdrawn) => refusal,
            () = tokio::time::sleep_until(self.expires) => self.expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_core::future::BoxFuture;

    use super::*;
    use crate::access::account::AccountKey;
    use crate::access::cert::Serial;
    use crate::access::grants::{Access, Services, TokenScope};
    use crate::access::refusal::Lifetime;
    use crate::access::testing::{NOW, Tenant};
    use crate::access::token::{Algorithm, Claims};
    use crate::access::trust::{AnyOf, TrustedItem, Unavailable};
    use crate::access::wallet::{Wallet, Words};
    use crate::model::id::LeaseId;
    use crate::model::id::Owner;

    /// The length of a tenant's certificate: a year.
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    /// Answers the same to everyone, and notes what it was asked.
    #[derive(Debug)]
    struct Double {
        answer: Result<TrustAnswer, Unavailable>,
        account: Result<TrustAnswer<AccountKey>, Unavailable>,
        asked: Mutex<Vec<(Owner, String)>>,
    }

    impl Trust for Double {
        fn certificate<'a>(
            &'a self,
            owner: &'a Owner,
            serial: &'a Serial,
        ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
            let question = (owner.clone(), serial.to_string());
            self.asked.lock().unwrap().push(question);
            Box::pin(std::future::ready(self.answer.clone()))
        }

        fn account<'a>(
            &'a self,
            owner: &'a Owner,
        ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
            self.asked.lock().unwrap().push((owner.clone(), "account".to_owned()));
            Box::pin(std::future::ready(self.account.clone()))
        }
    }

    fn gate(answer: Result<TrustAnswer, Unavailable>) -> (Authenticator, Arc<Double>) {
        let double = Arc::new(Double { answer, account: Err(Unavailable), asked: Mutex::default() });
        (Authenticator::new(Arc::clone(&double) as Arc<dyn Trust>), double)
    }

    fn trusting(certificate: &CertificateDer<'_>) -> (Authenticator, TrustedItem) {
        let trusted = TrustedItem::new(certificate.as_ref().into());
        (gate(Ok(TrustAnswer::Trusted(trusted.clone()))).0, trusted)
    }

    fn peer(certificate: &CertificateDer<'_>) -> Peer {
        Peer::new(Some(std::slice::from_ref(certificate)))
    }

    fn later(by: Duration) -> LogTime {
        NOW.saturating_add_nanos(i64::try_from(by.as_nanos()).unwrap())
    }

    #[tokio::test]
    async fn a_trusted_certificate_is_let_in() {
        let tenant = Tenant::new(1, 77);
        let certificate = tenant.certificate();
        let trusted = TrustedItem::new(certificate.as_ref().into());
        let (gate, double) = gate(Ok(TrustAnswer::Trusted(trusted)));
        let peer = peer(&certificate);
        for _ in 0..2 {
            let admission = gate.admit(&peer, &[], NOW).await.unwrap();
            assert_eq!(*admission.identity.owner(), tenant.address);
        }
        let question = (tenant.address, "77".to_owned());
        assert_eq!(*double.asked.lock().unwrap(), [question.clone(), question]);
    }

    #[tokio::test]
    async fn what_fails_by_itself_costs_no_question() {
        let good = Tenant::new(1, 1).certificate();
        let (gate, double) = gate(Err(Unavailable));
        let cases: [(Peer, &[&[u8]], LogTime, Refusal); 10] = [
            (Peer::new(None), &[], NOW, Refusal::NoCredentials),
            (Peer::new(Some(&[])), &[], NOW, Refusal::NoCredentials),
            (Peer::new(None), &[b"Basic x"], NOW, Refusal::AuthorizationMalformed),
            (Peer::new(None), &[b"Bearer x"], NOW, Refusal::TokenMalformed),
            (Peer::new(None), &[b"Bearer x", b"Bearer x"], NOW, Refusal::AuthorizationMalformed),
            (peer(&good), &[b""], NOW, Refusal::Ambiguous),
            (peer(&b"x".to_vec().into()), &[], NOW, Refusal::CertificateMalformed),
            (Peer::new(Some(&[good.clone(), good.clone()])), &[], NOW, Refusal::CertificateChain),
            (peer(&good), &[], NOW.saturating_add_nanos(-1), Refusal::CertificateNotYetValid),
            (peer(&good), &[], later(YEAR + Duration::from_nanos(1)), Refusal::CertificateExpired),
        ];
        for (peer, authorization, now, expected) in cases {
            let refusal = gate.admit(&peer, authorization, now).await.unwrap_err().refusal;
            assert_eq!(refusal, expected);
        }
        assert!(double.asked.lock().unwrap().is_empty());
    }

    /// Has this certificate at hand, and is not to be asked about it.
    #[derive(Debug)]
    struct AtHand(TrustedItem);

    impl Trust for AtHand {
        fn certificate<'a>(
            &'a self,
            _: &'a Owner,
            _: &'a Serial,
        ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
            panic!("asked")
        }

        fn known_certificate(&self, _: &Owner, _: &Serial) -> Option<TrustedItem> {
            Some(self.0.clone())
        }

        fn account<'a>(
            &'a self,
            _: &'a Owner,
        ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
            panic!("asked")
        }
    }

    #[tokio::test]
    async fn known_certificate_is_trusted_without_a_question() {
        let (good, other) = (Tenant::new(1, 1).certificate(), Tenant::new(2, 1).certificate());
        let gate = Authenticator::new(Arc::new(AtHand(TrustedItem::new(good.as_ref().into()))));
        let refuse = || panic!("asked");
        assert!(gate.trusts(&peer(&good), NOW, refuse).await);
        assert!(!gate.trusts(&peer(&other), NOW, refuse).await);
        assert!(!gate.trusts(&Peer::new(None), NOW, refuse).await);
        assert!(!gate.trusts(&peer(&b"x".to_vec().into()), NOW, refuse).await);
        let expired = later(YEAR + Duration::from_nanos(1));
        assert!(!gate.trusts(&peer(&good), expired, refuse).await);
    }

    #[tokio::test]
    async fn unknown_certificate_is_asked_about_if_allowed() {
        let good = Tenant::new(1, 1).certificate();
        let (gate, trusted) = trusting(&good);
        assert!(!gate.trusts(&peer(&good), NOW, || false).await);
        assert!(gate.trusts(&peer(&good), NOW, || true).await);
        let sources = AnyOf(vec![Arc::new(AtHand(trusted)) as Arc<dyn Trust>]);
        assert!(Authenticator::new(Arc::new(sources)).trusts(&peer(&good), NOW, || false).await);
    }

    #[tokio::test]
    async fn trust_has_the_last_word() {
        let good = Tenant::new(1, 1).certificate();
        let refusal = |answer| {
            let (gate, peer) = (gate(answer).0, peer(&good));
            async move { gate.admit(&peer, &[], NOW).await.unwrap_err().refusal }
        };
        assert_eq!(refusal(Ok(TrustAnswer::Unknown)).await, Refusal::CertificateUnknown);
        assert_eq!(refusal(Err(Unavailable)).await, Refusal::TrustUnavailable);
    }

    #[tokio::test]
    async fn a_forgery_of_the_same_owner_and_serial_number_is_not_the_trusted_one() {
        let genuine = Tenant::new(1, 1).certificate();
        let forged = Tenant::new(1, 1).certificate();
        let (gate, _) = trusting(&genuine);
        let denial = gate.admit(&peer(&forged), &[], NOW).await.unwrap_err();
        assert_eq!(denial.refusal, Refusal::CertificateDiffers);
        gate.admit(&peer(&genuine), &[], NOW).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn standing_ends_when_the_certificate_expires() {
        let certificate = Tenant::new(1, 1).certificate();
        let (gate, _) = trusting(&certificate);
        let began = Instant::now();
        let admission = gate.admit(&peer(&certificate), &[], NOW).await.unwrap();
        assert_eq!(admission.standing.ended().await, Refusal::CertificateExpired);
        assert!(began.elapsed() > YEAR && began.elapsed() < YEAR + Duration::from_secs(1));

        let began = Instant::now();
        let admission = gate.admit(&peer(&certificate), &[], later(YEAR)).await.unwrap();
        assert_eq!(admission.standing.ended().await, Refusal::CertificateExpired);
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn standing_ends_when_trust_is_withdrawn() {
        let mut tenant = Tenant::new(1, 1);
        tenant.params.not_after = rcgen::date_time_ymd(9999, 12, 31);
        let certificate = tenant.certificate();
        let (gate, trusted) = trusting(&certificate);
        let first = gate.admit(&peer(&certificate), &[], NOW).await.unwrap();
        let second = gate.admit(&peer(&certificate), &[], NOW).await.unwrap();
        let withdraw = async {
            tokio::time::sleep(100 * YEAR).await;
            trusted.withdraw();
        };
        let (first, second, ()) = tokio::join!(first.standing.ended(), second.standing.ended(), withdraw);
        assert_eq!((first, second), (Refusal::CertificateWithdrawn, Refusal::CertificateWithdrawn));
        // Who is let in at this very moment is put out at once.
        let third = gate.admit(&peer(&certificate), &[], NOW).await.unwrap();
        assert_eq!(third.standing.ended().await, Refusal::CertificateWithdrawn);
    }

    /// A tenant with an account, a token of theirs that is valid from [`NOW`] on for so many seconds, and its header.
    fn token(seconds: u64) -> (Wallet, String) {
        let wallet = Words::fresh().unwrap().wallet().unwrap();
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

    fn knowing(account: Result<TrustAnswer<AccountKey>, Unavailable>) -> (Authenticator, Arc<Double>) {
        let double = Arc::new(Double { answer: Err(Unavailable), account, asked: Mutex::default() });
        (Authenticator::new(Arc::clone(&double) as Arc<dyn Trust>), double)
    }

    async fn refused(gate: &Authenticator, header: &str, now: LogTime) -> Denial {
        gate.admit(&Peer::new(None), &[header.as_bytes()], now).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_token_of_a_known_account_lets_in_to_what_it_grants() {
        let (wallet, header) = token(600);
        let owner = wallet.key().address();
        let (gate, double) = knowing(Ok(TrustAnswer::Trusted(TrustedItem::new(wallet.key()))));
        let admission = gate.admit(&Peer::new(None), &[header.as_bytes()], NOW).await.unwrap();
        assert_eq!(*admission.identity.owner(), owner);
        let provider = Owner::from_account([9; 20]);
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap();
        assert_eq!(admission.identity.may(&lease, TokenScope::Logs), Ok(Services::All));
        assert_eq!(admission.identity.may(&lease, TokenScope::Restart), Err(Refusal::ScopeNotGranted));
        assert_eq!(*double.asked.lock().unwrap(), [(owner, "account".to_owned())]);
    }

    #[tokio::test]
    async fn a_token_that_fails_by_itself_costs_no_question() {
        let (wallet, header) = token(600);
        let (gate, double) = knowing(Ok(TrustAnswer::Trusted(TrustedItem::new(wallet.key()))));
        let gate = gate.with_token_lifetime(Duration::from_secs(600));
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
            assert_eq!(refused(&gate, header, now).await, Denial { refusal, claimed: claimed.clone() });
        }
        let broken = &header[..header.len() - 2];
        assert_eq!(refused(&gate, broken, NOW).await.refusal, Refusal::TokenSignatureForm);
        assert!(double.asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn only_the_issuers_own_key_counts() {
        let ((mine, header), (other, _)) = (token(600), token(600));
        let knows = |key| knowing(Ok(TrustAnswer::Trusted(TrustedItem::new(key)))).0;
        assert_eq!(refused(&knows(other.key()), &header, NOW).await.refusal, Refusal::TokenSignature);
        let forged = header_of(&other, mine.key().address(), 600);
        assert_eq!(refused(&knows(mine.key()), &forged, NOW).await.refusal, Refusal::TokenSignature);
    }

    #[tokio::test]
    async fn the_source_of_keys_has_its_own_reasons() {
        let (_, header) = token(600);
        for (answer, refusal) in [
            (Ok(TrustAnswer::Unknown), Refusal::AccountUnknown),
            (Ok(TrustAnswer::Refused(Refusal::AccountMultisig)), Refusal::AccountMultisig),
            (Ok(TrustAnswer::Refused(Refusal::AccountKeyless)), Refusal::AccountKeyless),
            (Err(Unavailable), Refusal::TrustUnavailable),
        ] {
            assert_eq!(refused(&knowing(answer).0, &header, NOW).await.refusal, refusal);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn standing_by_a_token_ends_when_it_expires_or_its_key_is_withdrawn() {
        let (wallet, header) = token(600);
        let trusted = TrustedItem::new(wallet.key());
        let (gate, _) = knowing(Ok(TrustAnswer::Trusted(trusted.clone())));
        let admit =
            || async { gate.admit(&Peer::new(None), &[header.as_bytes()], NOW).await.unwrap().standing };
        let began = Instant::now();
        assert_eq!(admit().await.ended().await, Refusal::TokenExpired);
        let second = Duration::from_secs(1);
        assert!(began.elapsed() >= 600 * second && began.elapsed() < 601 * second);
        let standing = admit().await;
        trusted.withdraw();
        assert_eq!(standing.ended().await, Refusal::AccountWithdrawn);
        // And if nobody can say any more whether it is.
        let trusted = TrustedItem::new(wallet.key());
        let (gate, _) = knowing(Ok(TrustAnswer::Trusted(trusted.clone())));
        let admission = gate.admit(&Peer::new(None), &[header.as_bytes()], NOW).await.unwrap();
        trusted.hold().lapse();
        assert_eq!(admission.standing.ended().await, Refusal::TrustUnavailable);
    }
}
