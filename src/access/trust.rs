//! Trust sources.
//!
//! A source is asked as Akash's chain is: for a certificate by owner and serial number, or for the key of an
//! account by its address. [`dir`](super::dir) answers from a directory, [`chain`](super::chain) from an
//! Akash node.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_core::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::account::AccountKey;
use super::cert::{Serial, TenantCertificate};
use super::refusal::Refusal;
use crate::model::id::Owner;

/// A certificate in DER.
pub type Certificate = Arc<[u8]>;

/// The answer of a trust source, once it is there.
pub(crate) type TrustFuture<'a, T = Certificate> = BoxFuture<'a, Result<TrustAnswer<T>, Unavailable>>;

/// A source of trust. One instance serves all calls.
pub trait Trust: fmt::Debug + Send + Sync + 'static {
    /// Returns the certificate that is trusted for this owner and serial number.
    ///
    /// Called only for certificates of valid form. Cancel safe.
    ///
    /// # Errors
    /// [`Unavailable`] if the source does not know at present. A source in doubt never guesses.
    fn certificate<'a>(&'a self, owner: &'a Owner, serial: &'a Serial) -> TrustFuture<'a>;

    /// Returns the certificate that is trusted for this owner and serial number, if the source has it in
    /// memory. Starts no query, and the answer may be out of date: use it only for decisions that cost little
    /// if they are wrong.
    fn known_certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        let _ = (owner, serial);
        None
    }

    /// Returns the key of this account. The address of the key is `owner`.
    ///
    /// Called only for issuers of tokens of valid form. Cancel safe.
    ///
    /// # Errors
    /// As for [`Trust::certificate`].
    fn account_key<'a>(&'a self, owner: &'a Owner) -> TrustFuture<'a, AccountKey>;
}

/// Several sources, asked in order until one trusts. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct AnyOf(pub Vec<Arc<dyn Trust>>);

/// The answer of a trust source.
pub type TrustAnswer<T = Certificate> = Answer<TrustedItem<T>>;

/// An answer about one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// This item is trusted.
    Trusted(T),
    /// No item is trusted.
    Unknown,
    /// No item is trusted, for this reason.
    Refused(Refusal),
}

/// A trusted item and the signal that ends its trust. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TrustedItem<T = Certificate> {
    pub(super) value: T,
    pub(super) revocation: RevocationSignal,
}

/// Signals the end of trust to all clones. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct RevocationSignal(Arc<RevocationState>);

#[derive(Debug, Default)]
struct RevocationState {
    ended: CancellationToken,
    /// The trust ended because the source could not confirm it, not because it was revoked.
    unconfirmed: AtomicBool,
}

/// The source does not know at present; the same question may be answered later. The source logs the cause
/// once per outage, not for each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the trust source is unavailable")]
pub struct Unavailable;

/// The key of a trusted item.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum TrustId {
    Certificate(Owner, Serial),
    Account(Owner),
}

/// The value of a trusted item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TrustValue {
    Certificate(Certificate),
    Account(AccountKey),
}

/// One item that a source trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TrustEntry {
    pub(super) key: TrustId,
    pub(super) value: TrustValue,
}

// === impl AnyOf ===

impl AnyOf {
    /// Returns the first answer that trusts. Without one, [`Unavailable`] if any source is, else the last
    /// refusal.
    async fn first<'a, T>(
        &'a self,
        ask: impl Fn(&'a dyn Trust) -> TrustFuture<'a, T>,
    ) -> Result<TrustAnswer<T>, Unavailable> {
        let mut answer = Ok(TrustAnswer::Unknown);
        for source in &self.0 {
            match ask(source.as_ref()).await {
                Ok(TrustAnswer::Trusted(trusted)) => return Ok(TrustAnswer::Trusted(trusted)),
                Ok(TrustAnswer::Unknown) => {}
                // `Unavailable` wins over a refusal: the source that does not answer might trust.
                other => answer = answer.and(other),
            }
        }
        answer
    }
}

impl Trust for AnyOf {
    fn certificate<'a>(&'a self, owner: &'a Owner, serial: &'a Serial) -> TrustFuture<'a> {
        Box::pin(self.first(move |source| source.certificate(owner, serial)))
    }

    fn known_certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        self.0.iter().find_map(|source| source.known_certificate(owner, serial))
    }

    fn account_key<'a>(&'a self, owner: &'a Owner) -> TrustFuture<'a, AccountKey> {
        Box::pin(self.first(move |source| source.account_key(owner)))
    }
}

// === impl Answer ===

impl<T> From<Option<T>> for Answer<T> {
    fn from(trusted: Option<T>) -> Self {
        trusted.map_or(Self::Unknown, Self::Trusted)
    }
}

// === impl TrustedItem ===

impl<T> TrustedItem<T> {
    /// Creates an item that is trusted until it is revoked.
    pub fn new(value: T) -> Self {
        Self { value, revocation: RevocationSignal::default() }
    }

    /// Returns the item.
    pub(super) fn value(&self) -> &T {
        &self.value
    }

    /// Ends the trust, for all clones.
    pub fn end_trust(&self) {
        self.revocation.end_trust();
    }
}

impl TrustedItem<TrustValue> {
    pub(super) fn into_certificate(self) -> Option<TrustedItem> {
        let TrustValue::Certificate(value) = self.value else { return None };
        Some(TrustedItem { value, revocation: self.revocation })
    }

    pub(super) fn into_account(self) -> Option<TrustedItem<AccountKey>> {
        let TrustValue::Account(value) = self.value else { return None };
        Some(TrustedItem { value, revocation: self.revocation })
    }
}

// === impl RevocationSignal ===

impl RevocationSignal {
    pub(super) fn end_trust(&self) {
        self.0.ended.cancel();
    }

    /// Ends the trust, for all clones, because it was not confirmed within the grace period.
    pub(super) fn end_unconfirmed(&self) {
        self.0.unconfirmed.store(true, Ordering::Relaxed);
        self.0.ended.cancel();
    }

    #[cfg(test)]
    pub(super) fn is_ended(&self) -> bool {
        self.0.ended.is_cancelled()
    }

    /// Returns whether there are other clones. Each running call holds one, so this means that a call depends
    /// on the item.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Waits until the trust ends. Returns `revoked`, or that the trust could not be confirmed. Cancel safe.
    pub(super) async fn ended(&self, revoked: Refusal) -> Refusal {
        self.0.ended.cancelled().await;
        if self.0.unconfirmed.load(Ordering::Relaxed) { Refusal::TrustUnavailable } else { revoked }
    }
}

// === impl TrustEntry ===

impl From<TenantCertificate> for TrustEntry {
    fn from(certificate: TenantCertificate) -> Self {
        let key = TrustId::Certificate(certificate.owner().clone(), certificate.serial().clone());
        Self { key, value: TrustValue::Certificate(Certificate::clone(certificate.der())) }
    }
}

impl From<AccountKey> for TrustEntry {
    fn from(key: AccountKey) -> Self {
        Self { key: TrustId::Account(key.address()), value: TrustValue::Account(key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct FixedAnswer(Result<TrustAnswer, Unavailable>);

    impl Trust for FixedAnswer {
        fn certificate<'a>(&'a self, _: &'a Owner, _: &'a Serial) -> TrustFuture<'a> {
            Box::pin(std::future::ready(self.0.clone()))
        }

        fn account_key<'a>(&'a self, _: &'a Owner) -> TrustFuture<'a, AccountKey> {
            Box::pin(std::future::ready(Err(Unavailable)))
        }
    }

    #[tokio::test]
    async fn first_source_that_trusts_decides_and_unavailable_is_not_no() {
        let tenant = crate::access::testing::Tenant::new(1, 1).issue().0;
        let trusted = || Ok(TrustAnswer::Trusted(TrustedItem::new([1].into())));
        let (unknown, unavailable) = (|| Ok(TrustAnswer::Unknown), || Err(Unavailable));
        let revoked = || Ok(TrustAnswer::Refused(Refusal::CertificateRevoked));
        let cases: [(Vec<Result<TrustAnswer, Unavailable>>, &str); 8] = [
            (vec![], "unknown"),
            (vec![unknown(), unknown()], "unknown"),
            (vec![unknown(), trusted()], "trusted"),
            (vec![unavailable(), trusted()], "trusted"),
            (vec![revoked(), trusted()], "trusted"),
            (vec![unknown(), revoked()], "refused"),
            (vec![unknown(), unavailable()], "unavailable"),
            (vec![unavailable(), revoked()], "unavailable"),
        ];
        for (sources, expected) in cases {
            let shown = format!("{sources:?}");
            let sources = sources.into_iter().map(|answer| Arc::new(FixedAnswer(answer)) as Arc<dyn Trust>);
            let answer = match AnyOf(sources.collect()).certificate(tenant.owner(), tenant.serial()).await {
                Ok(TrustAnswer::Trusted(_)) => "trusted",
                Ok(TrustAnswer::Unknown) => "unknown",
                Ok(TrustAnswer::Refused(_)) => "refused",
                Err(Unavailable) => "unavailable",
            };
            assert_eq!(answer, expected, "{shown}");
        }
    }
}
