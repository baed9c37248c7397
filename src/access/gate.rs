//! From credentials to an identity, or a refusal.
//!
//! What a connection presented is checked for its form once ([`Peer`]); each call on it asks anew whether it is valid at that
//! time and trusted. Whoever is admitted gets a [`Standing`] along, which tells when that ends.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cert::Presented;
use super::grants::Identity;
use super::refusal::Refusal;
use super::trust::{Trust, Verdict};
use crate::model::time::LogTime;

/// Decides who comes in. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Gate {
    trust: Arc<dyn Trust>,
}

/// What the peer of one connection presented, checked once for all calls on it. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `None`: no certificate.
    certificate: Option<Result<Presented, Refusal>>,
}

/// A caller who was let in.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Who they are.
    pub identity: Identity,
    /// How long they are believed.
    pub standing: Standing,
}

/// How long a caller is believed: until their certificate expires or is no longer trusted.
#[derive(Clone, Debug)]
pub struct Standing {
    withdrawn: CancellationToken,
    expires: Instant,
}

// === impl Peer ===

impl Peer {
    /// The peer of a connection whose handshake proved that it holds the key of the first certificate of `chain`. Costs one
    /// check of a signature.
    pub fn new(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let certificate = chain.filter(|chain| !chain.is_empty()).map(Presented::from_chain);
        Self { certificate }
    }
}

// === impl Gate ===

impl Gate {
    /// A gate that believes `trust`.
    pub fn new(trust: Arc<dyn Trust>) -> Self {
        Self { trust }
    }

    /// Who is calling, over a connection of `peer`, with this `authorization` header if there was one. `now` is the time by the
    /// wall clock, against which certificates are valid.
    ///
    /// The trust source is asked only about a certificate of good form that is valid now. Nothing is lost if the future is
    /// dropped.
    ///
    /// # Errors
    /// The first check that failed: credentials (one kind, and one that is accepted), form, time, trust.
    pub async fn admit(
        &self,
        peer: &Peer,
        authorization: Option<&[u8]>,
        now: LogTime,
    ) -> Result<Admission, Refusal> {
        let presented = match (&peer.certificate, authorization) {
            (Some(_), Some(_)) => return Err(Refusal::Ambiguous),
            (None, Some(_)) => return Err(Refusal::TokenNotAccepted),
            (None, None) => return Err(Refusal::NoCredentials),
            (Some(checked), None) => checked.as_ref().map_err(|refusal| *refusal)?,
        };
        presented.check_time(now)?;
        // Taken before the answer is waited for, like `now`: together they place the end of the period.
        let expires = Instant::now() + until(now, presented.not_after());
        let verdict = self
            .trust
            .certificate(presented.owner(), presented.serial())
            .await
            .map_err(|_| Refusal::TrustUnavailable)?;
        let Verdict::Trusted(trusted) = verdict else {
            return Err(Refusal::CertificateUnknown);
        };
        if trusted.der() != presented.der() {
            return Err(Refusal::CertificateDiffers);
        }
        Ok(Admission {
            identity: Identity::owner_in_person(presented.owner().clone()),
            standing: Standing { withdrawn: trusted.withdrawn().clone(), expires },
        })
    }
}

/// From `now` to `end`, rounded up to what a timer can tell apart: at the very end a certificate is still valid.
fn until(now: LogTime, end: LogTime) -> Duration {
    let nanos = end.as_nanos().saturating_sub(now.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or_default()).saturating_add(Duration::from_millis(1))
}

// === impl Standing ===

impl Standing {
    /// Waits until the caller is no longer believed, and tells why. Nothing is lost if it is cancelled.
    pub async fn ended(self) -> Refusal {
        tokio::select! {
            biased;
            () = self.withdrawn.cancelled() => Refusal::CertificateWithdrawn,
            () = tokio::time::sleep_until(self.expires) => Refusal::CertificateExpired,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_core::future::BoxFuture;

    use super::*;
    use crate::access::cert::Serial;
    use crate::access::testing::{NOW, Tenant};
    use crate::access::trust::{Trusted, Unavailable};
    use crate::model::id::Owner;

    /// The length of a tenant's certificate: a year.
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    /// Answers the same to everyone, and notes what it was asked.
    #[derive(Debug)]
    struct Double {
        answer: Result<Verdict, Unavailable>,
        asked: Mutex<Vec<(Owner, String)>>,
    }

    impl Trust for Double {
        fn certificate<'a>(
            &'a self,
            owner: &'a Owner,
            serial: &'a Serial,
        ) -> BoxFuture<'a, Result<Verdict, Unavailable>> {
            let question = (owner.clone(), serial.to_string());
            self.asked.lock().unwrap().push(question);
            Box::pin(std::future::ready(self.answer.clone()))
        }
    }

    fn gate(answer: Result<Verdict, Unavailable>) -> (Gate, Arc<Double>) {
        let double = Arc::new(Double { answer, asked: Mutex::default() });
        (Gate::new(Arc::clone(&double) as Arc<dyn Trust>), double)
    }

    fn trusting(certificate: &CertificateDer<'_>) -> (Gate, Trusted) {
        let trusted = Trusted::new(certificate.as_ref().into());
        (gate(Ok(Verdict::Trusted(trusted.clone()))).0, trusted)
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
        let trusted = Trusted::new(certificate.as_ref().into());
        let (gate, double) = gate(Ok(Verdict::Trusted(trusted)));
        let peer = peer(&certificate);
        for _ in 0..2 {
            let admission = gate.admit(&peer, None, NOW).await.unwrap();
            assert_eq!(*admission.identity.owner(), tenant.address);
        }
        let question = (tenant.address, "77".to_owned());
        assert_eq!(*double.asked.lock().unwrap(), [question.clone(), question]);
    }

    #[tokio::test]
    async fn what_fails_by_itself_costs_no_question() {
        let good = Tenant::new(1, 1).certificate();
        let (gate, double) = gate(Err(Unavailable));
        let cases: [(Peer, Option<&[u8]>, LogTime, Refusal); 8] = [
            (Peer::new(None), None, NOW, Refusal::NoCredentials),
            (Peer::new(Some(&[])), None, NOW, Refusal::NoCredentials),
            (Peer::new(None), Some(b"Bearer x"), NOW, Refusal::TokenNotAccepted),
            (peer(&good), Some(b""), NOW, Refusal::Ambiguous),
            (peer(&b"x".to_vec().into()), None, NOW, Refusal::CertificateMalformed),
            (Peer::new(Some(&[good.clone(), good.clone()])), None, NOW, Refusal::CertificateChain),
            (peer(&good), None, NOW.saturating_add_nanos(-1), Refusal::CertificateNotYetValid),
            (peer(&good), None, later(YEAR + Duration::from_nanos(1)), Refusal::CertificateExpired),
        ];
        for (peer, authorization, now, expected) in cases {
            let refusal = gate.admit(&peer, authorization, now).await.unwrap_err();
            assert_eq!(refusal, expected);
        }
        assert!(double.asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn trust_has_the_last_word() {
        let good = Tenant::new(1, 1).certificate();
        let refusal = |answer| {
            let (gate, peer) = (gate(answer).0, peer(&good));
            async move { gate.admit(&peer, None, NOW).await.unwrap_err() }
        };
        assert_eq!(refusal(Ok(Verdict::Unknown)).await, Refusal::CertificateUnknown);
        assert_eq!(refusal(Err(Unavailable)).await, Refusal::TrustUnavailable);
    }

    #[tokio::test]
    async fn a_forgery_of_the_same_owner_and_serial_number_is_not_the_trusted_one() {
        let genuine = Tenant::new(1, 1).certificate();
        let forged = Tenant::new(1, 1).certificate();
        let (gate, _) = trusting(&genuine);
        let refusal = gate.admit(&peer(&forged), None, NOW).await.unwrap_err();
        assert_eq!(refusal, Refusal::CertificateDiffers);
        gate.admit(&peer(&genuine), None, NOW).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn standing_ends_when_the_certificate_expires() {
        let certificate = Tenant::new(1, 1).certificate();
        let (gate, _) = trusting(&certificate);
        let began = Instant::now();
        let admission = gate.admit(&peer(&certificate), None, NOW).await.unwrap();
        assert_eq!(admission.standing.ended().await, Refusal::CertificateExpired);
        assert!(began.elapsed() > YEAR && began.elapsed() < YEAR + Duration::from_secs(1));

        let began = Instant::now();
        let admission = gate.admit(&peer(&certificate), None, later(YEAR)).await.unwrap();
        assert_eq!(admission.standing.ended().await, Refusal::CertificateExpired);
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn standing_ends_when_trust_is_withdrawn() {
        let mut tenant = Tenant::new(1, 1);
        tenant.params.not_after = rcgen::date_time_ymd(9999, 12, 31);
        let certificate = tenant.certificate();
        let (gate, trusted) = trusting(&certificate);
        let first = gate.admit(&peer(&certificate), None, NOW).await.unwrap();
        let second = gate.admit(&peer(&certificate), None, NOW).await.unwrap();
        let withdraw = async {
            tokio::time::sleep(100 * YEAR).await;
            trusted.withdraw();
        };
        let (first, second, ()) = tokio::join!(first.standing.ended(), second.standing.ended(), withdraw);
        assert_eq!((first, second), (Refusal::CertificateWithdrawn, Refusal::CertificateWithdrawn));
        // Who is let in at this very moment is put out at once.
        let third = gate.admit(&peer(&certificate), None, NOW).await.unwrap();
        assert_eq!(third.standing.ended().await, Refusal::CertificateWithdrawn);
    }
}
