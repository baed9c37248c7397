//! What is trusted. A source of trust is asked as Akash's chain is: for certificates by owner and serial number, for the key of
//! an account by its address.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_core::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::account::AccountKey;
use super::cert::Serial;
use super::refusal::Refusal;
use crate::model::id::Owner;

/// All bytes of a certificate.
pub type Certificate = Arc<[u8]>;

/// A source of trust. One instance serves all calls.
pub trait Trust: fmt::Debug + Send + Sync + 'static {
    /// The certificate that is trusted under this owner and serial number, if one is.
    ///
    /// Only asked for certificates of good form. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`Unavailable`] if that cannot be said just now. A source that is in doubt says so; it does not guess.
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        serial: &'a Serial,
    ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>>;

    /// Returns the certificate that is trusted under this owner and serial number if the source has the answer at hand. Asks
    /// nobody, and may be out of date: for a decision that costs little if it is wrong.
    fn known_certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        let _ = (owner, serial);
        None
    }

    /// The key of this account, if it is known. The key is the account's own: its address is this one.
    ///
    /// Only asked for issuers of tokens of good form. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// As of [`Trust::certificate`].
    fn account<'a>(&'a self, owner: &'a Owner)
    -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>>;
}

/// Several sources, asked in order until one trusts. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct AnyOf(pub Vec<Arc<dyn Trust>>);

/// A source's answer.
#[derive(Clone, Debug)]
pub enum TrustAnswer<T = Certificate> {
    /// This one is.
    Trusted(TrustedItem<T>),
    /// None is.
    Unknown,
    /// None is, for a reason of its own.
    Refused(Refusal),
}

/// Something that is trusted, and the news should that change. Cloning is cheap.
#[derive(Clone)]
pub struct TrustedItem<T = Certificate> {
    what: T,
    hold: RevocationSignal,
}

/// How long something is trusted: until all clones are told that it no longer is. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct RevocationSignal(Arc<Held>);

#[derive(Debug, Default)]
struct Held {
    ended: CancellationToken,
    /// Whether it ended because nobody could say any more whether it still is trusted.
    lapsed: AtomicBool,
}

/// The source cannot say at present; the same question may be answered later. Why is for the log, and the source has written
/// it there: once for an outage, not for each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the trust source is unavailable")]
pub struct Unavailable;

// === impl AnyOf ===

impl AnyOf {
    /// What the first source says that trusts. If none does: that it cannot be said, if one cannot; or else the reason of the
    /// last that has one.
    async fn first<'a, T>(
        &'a self,
        ask: impl Fn(&'a dyn Trust) -> BoxFuture<'a, Result<TrustAnswer<T>, Unavailable>>,
    ) -> Result<TrustAnswer<T>, Unavailable> {
        let mut answer = Ok(TrustAnswer::Unknown);
        for source in &self.0 {
            match ask(source.as_ref()).await {
                Ok(TrustAnswer::Trusted(trusted)) => return Ok(TrustAnswer::Trusted(trusted)),
                Ok(TrustAnswer::Unknown) => {}
                other => answer = answer.and(other),
            }
        }
        answer
    }
}

impl Trust for AnyOf {
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        serial: &'a Serial,
    ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
        Box::pin(self.first(move |source| source.certificate(owner, serial)))
    }

    fn known_certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        self.0.iter().find_map(|source| source.known_certificate(owner, serial))
    }

    fn account<'a>(
        &'a self,
        owner: &'a Owner,
    ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
        Box::pin(self.first(move |source| source.account(owner)))
    }
}

// === impl Trusted ===

impl<T> TrustedItem<T> {
    /// Trust in this, from now until it is withdrawn.
    pub fn new(what: T) -> Self {
        Self::held(what, RevocationSignal::default())
    }

    /// Trust in this for as long as `hold` lasts.
    pub fn held(what: T, hold: RevocationSignal) -> Self {
        Self { what, hold }
    }

    /// What is trusted.
    pub fn what(&self) -> &T {
        &self.what
    }

    /// For how long.
    pub fn hold(&self) -> &RevocationSignal {
        &self.hold
    }

    /// Cancelled when the trust is withdrawn, and for good.
    pub fn withdrawn(&self) -> &CancellationToken {
        &self.hold.0.ended
    }

    /// Ends the trust, for every clone.
    pub fn withdraw(&self) {
        self.hold.withdraw();
    }
}

impl TrustedItem<Certificate> {
    /// All bytes of the certificate. Only one that equals it is trusted.
    pub fn der(&self) -> &Certificate {
        &self.what
    }
}

/// Without what is trusted.
impl<T> fmt::Debug for TrustedItem<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trusted").field("withdrawn", &self.withdrawn().is_cancelled()).finish_non_exhaustive()
    }
}

// === impl Hold ===

impl RevocationSignal {
    /// Ends the trust, for every clone.
    pub fn withdraw(&self) {
        self.0.ended.cancel();
    }

    /// Ends the trust, for every clone, because it could not be confirmed for too long.
    pub fn lapse(&self) {
        self.0.lapsed.store(true, Ordering::Relaxed);
        self.0.ended.cancel();
    }

    /// Whether anybody but the caller has a clone.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Waits until the trust ends, and tells what that comes to: `withdrawn`, or that it could not be confirmed. Nothing is lost
    /// if it is cancelled.
    pub(super) async fn ended(&self, withdrawn: Refusal) -> Refusal {
        self.0.ended.cancelled().await;
        if self.0.lapsed.load(Ordering::Relaxed) { Refusal::TrustUnavailable } else { withdrawn }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Says(Result<TrustAnswer, Unavailable>);

    impl Trust for Says {
        fn certificate<'a>(
            &'a self,
            _: &'a Owner,
            _: &'a Serial,
        ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
            Box::pin(std::future::ready(self.0.clone()))
        }

        fn account<'a>(
            &'a self,
            _: &'a Owner,
        ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
            Box::pin(std::future::ready(Err(Unavailable)))
        }
    }

    #[tokio::test]
    async fn the_first_that_trusts_decides_and_doubt_is_not_taken_for_a_no() {
        let tenant = crate::access::testing::Tenant::new(1, 1).issue().0;
        let trusted = || Ok(TrustAnswer::Trusted(TrustedItem::new([1].into())));
        let (unknown, doubt) = (|| Ok(TrustAnswer::Unknown), || Err(Unavailable));
        let revoked = || Ok(TrustAnswer::Refused(Refusal::CertificateRevoked));
        let cases: [(Vec<Result<TrustAnswer, Unavailable>>, &str); 8] = [
            (vec![], "unknown"),
            (vec![unknown(), unknown()], "unknown"),
            (vec![unknown(), trusted()], "trusted"),
            (vec![doubt(), trusted()], "trusted"),
            (vec![revoked(), trusted()], "trusted"),
            (vec![unknown(), revoked()], "refused"),
            (vec![unknown(), doubt()], "doubt"),
            (vec![doubt(), revoked()], "doubt"),
        ];
        for (sources, expected) in cases {
            let shown = format!("{sources:?}");
            let sources = sources.into_iter().map(|says| Arc::new(Says(says)) as Arc<dyn Trust>);
            let answer = match AnyOf(sources.collect()).certificate(tenant.owner(), tenant.serial()).await {
                Ok(TrustAnswer::Trusted(_)) => "trusted",
                Ok(TrustAnswer::Unknown) => "unknown",
                Ok(TrustAnswer::Refused(_)) => "refused",
                Err(Unavailable) => "doubt",
            };
            assert_eq!(answer, expected, "{shown}");
        }
    }
}
