//! Certificates for tests, valid and invalid.

use std::sync::LazyLock;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SerialNumber};
use rustls::pki_types::CertificateDer;

use super::cert::TenantCertificate;
use super::identity::certificate_params;
use crate::model::id::Address;
use crate::model::time::LogTime;

/// The time of tests, at which their certificates start to be valid.
pub(crate) const NOW: LogTime = LogTime::from_nanos(1_760_000_000_000_000_000);

/// A tenant and the parts of its certificate, which a test may change.
pub(crate) struct Tenant {
    pub(crate) address: Address,
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
}

/// Returns a certificate that is the same for all tests of a run.
pub(crate) fn fixed_certificate() -> CertificateDer<'static> {
    static CERTIFICATE: LazyLock<CertificateDer<'static>> = LazyLock::new(|| Tenant::new(1, 1).certificate());
    CERTIFICATE.clone()
}

impl Tenant {
    /// Creates tenant `number` with a new key and a certificate of this serial number.
    pub(crate) fn new(number: u8, serial: u64) -> Self {
        let address = Address::from_account([number; 20]);
        let mut params = certificate_params(&address, NOW).unwrap();
        params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
        Self { address, params, key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    /// Signs a new certificate. Two of them differ in their signature.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.params.self_signed(&self.key).unwrap().der().clone()
    }

    /// Signs a new certificate. Returns it checked, and as PEM.
    pub(crate) fn issue(&self) -> (TenantCertificate, String) {
        let certificate = self.params.self_signed(&self.key).unwrap();
        (TenantCertificate::from_der(certificate.der()).unwrap(), certificate.pem())
    }
}
