//! The certificates that a provider published: clients of its account verify it by them.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::cert::provider_serial;
use super::trust::{Trust, TrustAnswer};
use crate::model::id::Owner;
use crate::model::time::LogTime;

/// Verifies server certificates by the account of one provider.
#[derive(Debug)]
pub(crate) struct ProviderCertificates {
    trust: Arc<dyn Trust>,
    provider: Owner,
}

// === impl ProviderCertificates ===

impl ProviderCertificates {
    /// Asks `trust` for certificates of `provider`.
    pub(crate) fn new(trust: Arc<dyn Trust>, provider: Owner) -> Self {
        Self { trust, provider }
    }

    /// Returns whether the provider published this certificate, and it is valid now. An unavailable trust
    /// source counts as no.
    pub(crate) async fn contain(&self, certificate: &CertificateDer<'_>) -> bool {
        let serial = match provider_serial(certificate, &self.provider, LogTime::now()) {
            Ok(serial) => serial,
            Err(refusal) => {
                tracing::debug!(%refusal, "certificate is not one of the provider's");
                return false;
            }
        };
        match self.trust.certificate(&self.provider, &serial).await {
            Ok(TrustAnswer::Trusted(trusted)) => **trusted.value() == **certificate,
            Ok(TrustAnswer::Unknown | TrustAnswer::Refused(_)) => false,
            Err(error) => {
                tracing::debug!(%error, "failed to look up the provider's certificate");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_core::future::BoxFuture;
    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::access::account::AccountKey;
    use crate::access::cert::Serial;
    use crate::access::testing::Tenant;
    use crate::access::trust::{TrustedItem, Unavailable};

    /// Trusts one certificate, of any owner and serial number; `None`: is unavailable.
    #[derive(Debug)]
    struct Only(Option<Arc<[u8]>>);

    impl Trust for Only {
        fn certificate<'a>(
            &'a self,
            _: &'a Owner,
            _: &'a Serial,
        ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
            let answer = self.0.clone().map(|der| TrustAnswer::Trusted(TrustedItem::new(der)));
            Box::pin(std::future::ready(answer.ok_or(Unavailable)))
        }

        fn account_key<'a>(
            &'a self,
            _: &'a Owner,
        ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
            Box::pin(std::future::ready(Err(Unavailable)))
        }
    }

    #[tokio::test]
    async fn only_the_published_certificate_is_contained() {
        let of_provider = |number| {
            let mut provider = Tenant::new(number, 7);
            provider.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            provider.params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            provider.params.not_after = rcgen::date_time_ymd(2200, 1, 1);
            (provider.address.clone(), provider.certificate())
        };
        let (address, certificate) = of_provider(1);
        let (other_address, other) = of_provider(2);
        let contains = async |trusted: Option<&CertificateDer<'_>>, address: &Owner| {
            let trust = Arc::new(Only(trusted.map(|der| der.as_ref().into())));
            ProviderCertificates::new(trust, address.clone()).contain(&certificate).await
        };
        assert!(contains(Some(&certificate), &address).await);
        assert!(!contains(Some(&other), &address).await);
        assert!(!contains(Some(&certificate), &other_address).await);
        assert!(!contains(None, &address).await);
    }
}
