//! The form of a tenant's certificate: one self-signed ECDSA certificate whose common name is the owner's
//! address, as on Akash.
//!
//! A certificate is trusted only if a trust source has the same bytes, so the form protects little. It
//! guarantees that the certificate names one account and one serial number, which are the key of the lookup.
//! It also repeats what an Akash provider checks (`go/util/tls/verify.go` of chain-sdk), so that both accept
//! the same certificates. `docs/SECURITY.md` compares each rule with the provider's.
//!
//! Order of the checks: one certificate, well-formed, subject, issuer, serial number, key, signature
//! algorithm, signature, extended key usage, critical extensions. The validity period comes last, because it
//! alone changes during a connection. All of them precede a query of a trust source. A certificate that
//! passes is not yet trusted: its address is only a claim.
//!
//! Not checked: basic constraints (Akash's TypeScript tools wrote `CA:TRUE` for two years) and key usage
//! (Akash's tools omit `digitalSignature`).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P521_SHA256_ASN1, EcdsaVerificationAlgorithm,
    UnparsedPublicKey,
};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ECDSA_WITH_SHA256,
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_CERTIFICATE_POLICIES, OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_INHIBIT_ANY_POLICY, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_POLICY_CONSTRAINTS, OID_X509_EXT_POLICY_MAPPINGS,
    OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use super::refusal::Refusal;
use crate::model::id::Owner;
use crate::model::time::LogTime;

/// Maximum size of a certificate, in bytes of DER. A tenant's has about 500; the limit bounds what an unknown
/// caller makes us parse.
pub(super) const CERTIFICATE_MAX_BYTES: usize = 8 * 1024;

/// Maximum length of a serial number, in bytes: what Akash's chain accepts. (RFC 5280 allows 20.)
const SERIAL_MAX_BYTES: usize = 40;

/// Extensions that may be critical: those that Go's `crypto/x509`, and with it the provider, understands. All
/// but the extended key usage restrict names, or certificates that this one would sign. Nothing here depends
/// on either.
const CRITICAL_UNDERSTOOD: [Oid<'static>; 10] = [
    OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_CERTIFICATE_POLICIES,
    OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE,
    OID_X509_EXT_INHIBIT_ANY_POLICY,
    OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_NAME_CONSTRAINTS,
    OID_X509_EXT_POLICY_CONSTRAINTS,
    OID_X509_EXT_POLICY_MAPPINGS,
    OID_X509_EXT_SUBJECT_ALT_NAME,
];

/// A curve that a certificate's key may use.
struct Curve {
    oid: Oid<'static>,
    /// Bytes of an uncompressed point: a tag and two coordinates. Go accepts no other form.
    point_bytes: usize,
    /// The chain and the provider hash with SHA-256 whatever the curve.
    verification: &'static EcdsaVerificationAlgorithm,
}

/// The curves of TLS 1.3 that Go supports.
static CURVES: [Curve; 3] = [
    Curve { oid: OID_EC_P256, point_bytes: 65, verification: &ECDSA_P256_SHA256_ASN1 },
    Curve { oid: OID_NIST_EC_P384, point_bytes: 97, verification: &ECDSA_P384_SHA256_ASN1 },
    Curve { oid: OID_NIST_EC_P521, point_bytes: 133, verification: &ECDSA_P521_SHA256_ASN1 },
];

/// A certificate of valid form: the owner that it claims, and the bytes that a trust source must confirm.
#[derive(Clone, PartialEq, Eq)]
pub struct TenantCertificate {
    owner: Owner,
    serial: Serial,
    der: Arc<[u8]>,
    not_before: LogTime,
    not_after: LogTime,
}

/// A certificate's serial number as trust sources have it: not negative, in decimal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Serial(Arc<str>);

/// Returns the public key in `certificate`, whatever the rest of its form.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let parsed = parse(certificate).ok()?;
    Some(SubjectPublicKeyInfoDer::from(parsed.subject_pki.raw).into_owned())
}

/// Returns the serial number of a provider's certificate, which must be valid at `now` and name `provider`.
/// Akash's clients check the same before they look the certificate up on the chain. Possession of its key is
/// the caller's concern.
///
/// # Errors
/// The first check that failed.
pub(super) fn provider_serial(
    der: &CertificateDer<'_>,
    provider: &Owner,
    now: LogTime,
) -> Result<Serial, Refusal> {
    let certificate = parse(der)?;
    certificate.extensions_map().map_err(|_| Refusal::CertificateMalformed)?;
    if common_name(&certificate.subject) != Some(provider.as_str()) {
        return Err(Refusal::CertificateSubject);
    }
    if common_name(&certificate.issuer) != Some(provider.as_str()) {
        return Err(Refusal::CertificateIssuer);
    }
    check_usage(&certificate, |usage| usage.server_auth)?;
    check_critical_extensions(&certificate)?;
    let validity = certificate.validity();
    if now < saturating_time(validity.not_before.timestamp()) {
        return Err(Refusal::CertificateNotYetValid);
    }
    if now > saturating_time(validity.not_after.timestamp()) {
        return Err(Refusal::CertificateExpired);
    }
    Serial::of(&certificate)
}

/// Returns the time of these seconds since 1970, or the nearest that can be represented: a certificate may be
/// valid until the year 9999.
pub(super) fn saturating_time(seconds: i64) -> LogTime {
    LogTime::from_parts(seconds, 0).unwrap_or(if seconds < 0 { LogTime::MIN } else { LogTime::MAX })
}

// === impl TenantCertificate ===

impl TenantCertificate {
    /// Checks the certificates that a peer presented. Does not check the time.
    ///
    /// # Errors
    /// The first check that failed, in the module's order.
    pub(crate) fn from_presented(chain: &[CertificateDer<'_>]) -> Result<Self, Refusal> {
        match chain {
            [] => Err(Refusal::NoCredentials),
            [one] => Self::from_der(one),
            _ => Err(Refusal::CertificateChain),
        }
    }

    /// Checks one certificate. Does not check the time.
    ///
    /// # Errors
    /// The first check that failed, in the module's order.
    pub fn from_der(der: &CertificateDer<'_>) -> Result<Self, Refusal> {
        let certificate = parse(der)?;
        // Go refuses a certificate that has an extension twice, too: which one counts would be a guess.
        certificate.extensions_map().map_err(|_| Refusal::CertificateMalformed)?;
        let owner = common_name(&certificate.subject)
            .and_then(|name| name.parse::<Owner>().ok())
            .ok_or(Refusal::CertificateSubject)?;
        if common_name(&certificate.issuer) != Some(owner.as_str()) {
            return Err(Refusal::CertificateIssuer);
        }
        let serial = Serial::of(&certificate)?;
        check_signature(&certificate)?;
        check_usage(&certificate, |usage| usage.client_auth)?;
        check_critical_extensions(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            owner,
            serial,
            der: der.as_ref().into(),
            not_before: saturating_time(validity.not_before.timestamp()),
            not_after: saturating_time(validity.not_after.timestamp()),
        })
    }

    /// Checks that the certificate is valid at `now`. Both ends of the period are inclusive.
    ///
    /// # Errors
    /// [`Refusal::CertificateNotYetValid`] or [`Refusal::CertificateExpired`].
    pub fn check_time(&self, now: LogTime) -> Result<(), Refusal> {
        if now < self.not_before {
            Err(Refusal::CertificateNotYetValid)
        } else if now > self.not_after {
            Err(Refusal::CertificateExpired)
        } else {
            Ok(())
        }
    }

    /// Returns the account that the certificate claims.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Returns the serial number, the second half of the lookup key.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Returns the certificate as it was presented, in DER.
    pub fn der(&self) -> &Arc<[u8]> {
        &self.der
    }

    /// Returns the last instant at which the certificate is valid.
    pub fn not_after(&self) -> LogTime {
        self.not_after
    }
}

/// Omits the bytes.
impl fmt::Debug for TenantCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantCertificate")
            .field("owner", &self.owner)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

// === impl Serial ===

impl Serial {
    fn of(certificate: &X509Certificate<'_>) -> Result<Self, Refusal> {
        let bytes = certificate.raw_serial();
        // A negative number would collide on the chain with the positive one of the same digits.
        let negative = bytes.first().is_none_or(|first| *first >= 0x80);
        // A leading zero marks a positive number and is not part of it.
        let length = bytes.len() - usize::from(bytes.first() == Some(&0));
        if !negative && length <= SERIAL_MAX_BYTES {
            Ok(Self(certificate.serial.to_string().into()))
        } else {
            Err(Refusal::CertificateSerial)
        }
    }

    /// Returns the decimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === checks ===

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refusal> {
    if der.len() > CERTIFICATE_MAX_BYTES {
        return Err(Refusal::CertificateMalformed);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Refusal::CertificateMalformed),
    }
}

/// Returns the common name if there is exactly one and it is text.
fn common_name<'a>(name: &'a X509Name<'_>) -> Option<&'a str> {
    let mut names = name.iter_common_name();
    let only = names.next()?;
    match names.next() {
        None => only.as_str().ok(),
        Some(_) => None,
    }
}

fn check_signature(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let (curve, point) = curve_and_point(&certificate.subject_pki).ok_or(Refusal::CertificateKey)?;
    // A certificate names the algorithm inside and outside of the signed part; RFC 5280 requires that both
    // are equal.
    let algorithms = [&certificate.signature_algorithm, &certificate.signature];
    if algorithms.iter().any(|algorithm| algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256) {
        return Err(Refusal::CertificateAlgorithm);
    }
    UnparsedPublicKey::new(curve.verification, point)
        .verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
        .map_err(|_| Refusal::CertificateSignature)
}

/// Returns the curve and the point if the key is an uncompressed point on one of [`CURVES`]. The verification
/// of the signature checks that the point is on the curve.
fn curve_and_point<'a>(key: &'a SubjectPublicKeyInfo<'_>) -> Option<(&'static Curve, &'a [u8])> {
    let oid = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let curve = CURVES.iter().find(|curve| curve.oid == oid)?;
    let point = key.subject_public_key.data.as_ref();
    let uncompressed = point.len() == curve.point_bytes && point.first() == Some(&4);
    (key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && uncompressed).then_some((curve, point))
}

/// Checks the extended key usage as Go does: a certificate without one is for every use.
fn check_usage(
    certificate: &X509Certificate<'_>,
    allows: impl Fn(&ExtendedKeyUsage<'_>) -> bool,
) -> Result<(), Refusal> {
    let mut extensions = certificate.extensions().iter();
    let Some(usage) = extensions.find(|one| one.oid == OID_X509_EXT_EXTENDED_KEY_USAGE) else {
        return Ok(());
    };
    match usage.parsed_extension() {
        ParsedExtension::ExtendedKeyUsage(usage) if allows(usage) || usage.any => Ok(()),
        ParsedExtension::ExtendedKeyUsage(_) => Err(Refusal::CertificateUsage),
        // One that cannot be parsed must not count as absent.
        _ => Err(Refusal::CertificateMalformed),
    }
}

fn check_critical_extensions(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let understood = |oid: &Oid<'_>| CRITICAL_UNDERSTOOD.iter().any(|known| known == oid);
    let mut extensions = certificate.extensions().iter();
    if extensions.any(|one| one.critical && !understood(&one.oid)) {
        return Err(Refusal::CertificateExtension);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA256, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
        PKCS_RSA_SHA256, RsaKeySize, SerialNumber,
    };
    use rustls::pki_types::pem::PemObject as _;
    use x509_parser::pem::Pem;

    use super::*;
    use crate::access::testing::{self, NOW, Tenant};

    const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
    const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
    const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
    const UNKNOWN: &[u64] = &[1, 3, 6, 1, 4, 1, 99_999, 1];

    const AKASHJS: &[u8] = include_bytes!("../../tests/vectors/certificates/akashjs.pem");
    const CHAIN_SDK: &[u8] = include_bytes!("../../tests/vectors/certificates/chain-sdk.pem");
    const CHAIN_SDK_NEXT: &[u8] = include_bytes!("../../tests/vectors/certificates/chain-sdk-next.pem");
    const OPENSSL: &[u8] = include_bytes!("../../tests/vectors/certificates/openssl-p384.pem");

    /// The account that all of them name.
    const ADDRESS: &str = "akash1kp030650r7q7kf83xrs6873dw3pxeg2c0kzl6q";

    fn check(der: &CertificateDer<'_>) -> Result<TenantCertificate, Refusal> {
        TenantCertificate::from_presented(std::slice::from_ref(der))
    }

    /// Checks a certificate that is valid but for the change by `change`.
    fn check_changed(change: impl FnOnce(&mut Tenant)) -> Result<TenantCertificate, Refusal> {
        let mut tenant = Tenant::new(1, 1);
        change(&mut tenant);
        check(&tenant.certificate())
    }

    fn refused(expected: Refusal, change: impl FnOnce(&mut Tenant)) {
        assert_eq!(check_changed(change).unwrap_err(), expected);
    }

    fn with_extension(oid: &[u64], content: &[u8], critical: bool) -> impl FnOnce(&mut Tenant) {
        let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
        extension.set_criticality(critical);
        move |tenant| tenant.params.custom_extensions.push(extension)
    }

    fn with_name(name: &str) -> impl FnOnce(&mut Tenant) {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        |tenant| tenant.params.distinguished_name = subject
    }

    /// Returns `der` with each `old`, or only the `n`th, replaced.
    fn patched(
        der: &CertificateDer<'_>,
        old: &[u8],
        new: &[u8],
        only: Option<usize>,
    ) -> CertificateDer<'static> {
        let mut bytes = der.to_vec();
        let places: Vec<usize> =
            (0..bytes.len() - old.len()).filter(|at| bytes[*at..].starts_with(old)).collect();
        assert!(!places.is_empty());
        for (n, at) in places.into_iter().enumerate() {
            if only.is_none_or(|only| only == n) {
                bytes[at..at + old.len()].copy_from_slice(new);
            }
        }
        bytes.into()
    }

    #[test]
    fn provider_certificate_of_the_provider_has_a_serial() {
        let mut tenant = Tenant::new(1, 7);
        let owner = tenant.address.clone();
        tenant.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let serial = |provider, now| provider_serial(&tenant.certificate(), provider, now);
        assert_eq!(serial(&owner, NOW).unwrap().as_str(), "7");
        let other = Tenant::new(2, 7).address;
        assert_eq!(serial(&other, NOW), Err(Refusal::CertificateSubject));
        assert_eq!(serial(&owner, LogTime::MAX), Err(Refusal::CertificateExpired));
        assert_eq!(serial(&owner, LogTime::MIN), Err(Refusal::CertificateNotYetValid));
        let client = Tenant::new(1, 7).certificate();
        assert_eq!(provider_serial(&client, &owner, NOW), Err(Refusal::CertificateUsage));
    }

    #[test]
    fn valid_certificate_names_its_owner() {
        let tenant = Tenant::new(1, 1_700_000_000_123_456_789);
        let certificate = tenant.certificate();
        let checked = check(&certificate).unwrap();
        assert_eq!(*checked.owner(), tenant.address);
        assert_eq!(checked.serial().as_str(), "1700000000123456789");
        assert_eq!(checked.der()[..], certificate[..]);
        assert_eq!(checked.check_time(NOW), Ok(()));
        assert!(!format!("{checked:?}").contains("der"));
    }

    #[test]
    fn chain_of_other_than_one_certificate_is_refused() {
        let certificate = Tenant::new(1, 1).certificate();
        assert_eq!(TenantCertificate::from_presented(&[]), Err(Refusal::NoCredentials));
        let two = [certificate.clone(), certificate];
        assert_eq!(TenantCertificate::from_presented(&two), Err(Refusal::CertificateChain));
    }

    #[test]
    fn bytes_that_are_no_certificate_are_malformed() {
        let good = Tenant::new(1, 1).certificate();
        let mut trailing = good.to_vec();
        trailing.push(0);
        let cut = good[..good.len() - 1].to_vec();
        for bytes in [Vec::new(), b"hello".to_vec(), trailing, cut] {
            assert_eq!(check(&bytes.into()), Err(Refusal::CertificateMalformed));
        }
        let large = vec![0; CERTIFICATE_MAX_BYTES];
        refused(Refusal::CertificateMalformed, with_extension(UNKNOWN, &large, false));
        refused(Refusal::CertificateMalformed, |tenant| {
            with_extension(UNKNOWN, &[5, 0], false)(tenant);
            with_extension(UNKNOWN, &[5, 0], false)(tenant);
        });
    }

    #[test]
    fn subject_must_be_one_account_address() {
        let address = Tenant::new(1, 1).address;
        refused(Refusal::CertificateSubject, with_name(&address.as_str().to_uppercase()));
        refused(Refusal::CertificateSubject, with_name("localhost"));
        refused(Refusal::CertificateSubject, with_name(&format!("{address} ")));
        refused(Refusal::CertificateSubject, |tenant| {
            tenant.params.distinguished_name = DistinguishedName::new();
        });
        refused(Refusal::CertificateSubject, |tenant| {
            let second = DnType::CustomDnType(vec![2, 5, 4, 3]);
            let name = tenant.address.to_string();
            tenant.params.distinguished_name.push(second, name);
        });
    }

    #[test]
    fn issuer_must_be_the_subject() {
        let (mine, theirs) = (Tenant::new(1, 1), Tenant::new(2, 1));
        let signed_by = |issuer: &rcgen::CertificateParams, key: &KeyPair| {
            let issuer = Issuer::from_params(issuer, key);
            check(mine.params.signed_by(&mine.key, &issuer).unwrap().der())
        };
        assert_eq!(signed_by(&theirs.params, &theirs.key), Err(Refusal::CertificateIssuer));
        assert_eq!(signed_by(&theirs.params, &mine.key), Err(Refusal::CertificateIssuer));
        assert_eq!(signed_by(&mine.params, &theirs.key), Err(Refusal::CertificateSignature));
        signed_by(&mine.params, &mine.key).unwrap();
    }

    #[test]
    fn serial_number_must_not_be_negative_or_too_long() {
        let serial = |bytes: &[u8]| {
            let number = SerialNumber::from_slice(bytes);
            check_changed(|tenant| tenant.params.serial_number = Some(number))
        };
        assert_eq!(serial(&[0]).unwrap().serial().as_str(), "0");
        assert_eq!(serial(&[0xff; SERIAL_MAX_BYTES + 1]), Err(Refusal::CertificateSerial));
        assert!(serial(&[0xff; SERIAL_MAX_BYTES]).is_ok());
        let long = serial(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(long.serial().as_str(), "1208925819614629174706176");
        let good = Tenant::new(1, 0x0123_4567_89ab_cdef).certificate();
        let negative = patched(&good, &0x0123_4567_89ab_cdef_u64.to_be_bytes(), &[0x81; 8], None);
        assert_eq!(check(&negative), Err(Refusal::CertificateSerial));
    }

    #[test]
    fn key_on_a_curve_of_tls_1_3_is_accepted() {
        check_changed(|tenant| tenant.key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA256).unwrap()).unwrap();
        let p384 = CertificateDer::from_pem_slice(OPENSSL).unwrap();
        assert_eq!(check(&p384).unwrap().owner().as_str(), ADDRESS);
    }

    #[test]
    fn key_that_is_not_ecdsa_is_refused() {
        for key in [
            KeyPair::generate_for(&PKCS_ED25519).unwrap(),
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
        ] {
            refused(Refusal::CertificateKey, |tenant| tenant.key = key);
        }
        let prime256v1 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
        let prime239v3 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 6];
        let other_curve = patched(&Tenant::new(1, 1).certificate(), &prime256v1, &prime239v3, None);
        assert_eq!(check(&other_curve), Err(Refusal::CertificateKey));
    }

    #[test]
    fn signature_must_be_by_own_key_with_sha256() {
        let good = Tenant::new(1, 1).certificate();
        let sha256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        let sha384 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
        for which in [None, Some(0), Some(1)] {
            let other = patched(&good, &sha256, &sha384, which);
            assert_eq!(check(&other), Err(Refusal::CertificateAlgorithm), "{which:?}");
        }
        for kind in [&PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512] {
            refused(Refusal::CertificateAlgorithm, |tenant| {
                tenant.key = KeyPair::generate_for(kind).unwrap();
            });
        }
        let mut forged = good.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(check(&forged.into()), Err(Refusal::CertificateSignature));
    }

    #[test]
    fn extended_key_usage_without_client_auth_is_refused() {
        use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
        for usages in [vec![ServerAuth], vec![ServerAuth, CodeSigning]] {
            refused(Refusal::CertificateUsage, |tenant| tenant.params.extended_key_usages = usages);
        }
        for usages in [vec![], vec![Any], vec![ServerAuth, ClientAuth]] {
            check_changed(|tenant| tenant.params.extended_key_usages = usages).unwrap();
        }
        refused(Refusal::CertificateMalformed, |tenant| {
            tenant.params.extended_key_usages.clear();
            with_extension(EXTENDED_KEY_USAGE, &[0x30, 3, 1], false)(tenant);
        });
    }

    #[test]
    fn basic_constraints_and_key_usage_are_ignored() {
        let path_length = BasicConstraints::Constrained(3);
        for is_ca in
            [IsCa::NoCa, IsCa::ExplicitNoCa, IsCa::Ca(BasicConstraints::Unconstrained), IsCa::Ca(path_length)]
        {
            check_changed(|tenant| tenant.params.is_ca = is_ca).unwrap();
        }
        check_changed(|tenant| tenant.params.key_usages.clear()).unwrap();
    }

    /// Certificates of Akash's tools, and one made with openssl: see `tests/vectors/certificates`.
    #[test]
    fn certificates_of_published_tools_are_accepted() {
        for (pem, authority) in [(AKASHJS, true), (CHAIN_SDK, true), (CHAIN_SDK_NEXT, false), (OPENSSL, true)]
        {
            let der = CertificateDer::from_pem_slice(pem).unwrap();
            let (_, parsed) = X509Certificate::from_der(&der).unwrap();
            assert_eq!(parsed.is_ca(), authority);
            let checked = check(&der).unwrap();
            assert_eq!(checked.owner().as_str(), ADDRESS);
            assert_eq!(checked.check_time(NOW), Ok(()));
            // The TypeScript tools publish this key on the chain; it must be the certificate's.
            for block in Pem::iter_from_buffer(pem).map(|block| block.unwrap()) {
                if block.label == "EC PUBLIC KEY" {
                    assert_eq!(block.contents, parsed.subject_pki.raw);
                }
            }
        }
    }

    #[test]
    fn critical_extension_that_go_does_not_know_is_refused() {
        refused(Refusal::CertificateExtension, with_extension(UNKNOWN, &[5, 0], true));
        check_changed(with_extension(UNKNOWN, &[5, 0], false)).unwrap();
        let names = [0x30, 3, 0x82, 1, b'a'];
        check_changed(with_extension(SUBJECT_ALTERNATIVE_NAME, &names, true)).unwrap();
        // As Akash's Go tools write it for the host "a".
        let constraints = [0x30, 7, 0xa0, 5, 0x30, 3, 0x82, 1, b'a'];
        check_changed(with_extension(NAME_CONSTRAINTS, &constraints, true)).unwrap();
    }

    /// Repairs a certificate that fails every check, one check after the other.
    #[test]
    fn first_failed_check_is_reported() {
        type Change = fn(&mut Tenant);
        let changes: [(Refusal, Change); 5] = [
            (Refusal::CertificateSubject, |tenant| with_name("localhost")(tenant)),
            (Refusal::CertificateSerial, |tenant| {
                tenant.params.serial_number = Some(SerialNumber::from_slice(&[1; SERIAL_MAX_BYTES + 1]));
            }),
            (Refusal::CertificateKey, |tenant| {
                tenant.key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
            }),
            (Refusal::CertificateUsage, |tenant| {
                tenant.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            (Refusal::CertificateExtension, |tenant| with_extension(UNKNOWN, &[5, 0], true)(tenant)),
        ];
        let from = |first: usize| {
            let mut tenant = Tenant::new(1, 1);
            changes[first..].iter().for_each(|(_, change)| change(&mut tenant));
            tenant.certificate()
        };
        for (first, (refusal, _)) in changes.iter().enumerate() {
            assert_eq!(check(&from(first)), Err(*refusal));
        }
        check(&from(changes.len())).unwrap();
        // These defects need a finished certificate: another issuer (checked second), and another algorithm
        // or a wrong signature (checked between key and usage).
        let (address, other) = (Tenant::new(1, 1).address, Tenant::new(2, 1).address);
        let issuer = |der| patched(der, address.as_str().as_bytes(), other.as_str().as_bytes(), Some(0));
        assert_eq!(check(&issuer(&from(1))), Err(Refusal::CertificateIssuer));
        let forged = |first| {
            let mut der = from(first).to_vec();
            *der.last_mut().unwrap() ^= 1;
            CertificateDer::from(der)
        };
        let [sha256, sha384] = [2, 3].map(|hash| [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, hash]);
        assert_eq!(check(&patched(&forged(3), &sha256, &sha384, None)), Err(Refusal::CertificateAlgorithm));
        assert_eq!(check(&forged(3)), Err(Refusal::CertificateSignature));
        assert_eq!(check(&forged(2)), Err(Refusal::CertificateKey));
    }

    #[test]
    fn both_ends_of_validity_period_are_inclusive() {
        let checked = check_changed(|tenant| {
            tenant.params.not_before = time::OffsetDateTime::from_unix_timestamp(100).unwrap();
            tenant.params.not_after = time::OffsetDateTime::from_unix_timestamp(200).unwrap();
        })
        .unwrap();
        let at = |nanos| checked.check_time(LogTime::from_nanos(nanos));
        assert_eq!(at(99_999_999_999), Err(Refusal::CertificateNotYetValid));
        assert_eq!(at(100_000_000_000), Ok(()));
        assert_eq!(at(200_000_000_000), Ok(()));
        assert_eq!(at(200_000_000_001), Err(Refusal::CertificateExpired));
    }

    #[test]
    fn validity_beyond_representable_time_saturates() {
        let checked =
            check_changed(|tenant| tenant.params.not_after = rcgen::date_time_ymd(9999, 12, 31)).unwrap();
        assert_eq!(checked.not_after(), LogTime::MAX);
        assert_eq!(checked.check_time(NOW), Ok(()));
    }

    #[test]
    fn public_key_is_found_whatever_the_form() {
        let tenant = Tenant::new(1, 1);
        let expected = rcgen::PublicKeyData::subject_public_key_info(&tenant.key);
        assert_eq!(public_key(&tenant.certificate()).unwrap().as_ref(), expected);
        assert!(public_key(&CertificateDer::from(b"hello".to_vec())).is_none());
    }

    /// Checks that an altered certificate is refused or makes the same claims. (The parser is lenient about a
    /// few bits; the trust source compares every byte.)
    fn assert_claims_unchanged(bytes: Vec<u8>) {
        static GOOD: LazyLock<TenantCertificate> =
            LazyLock::new(|| check(&testing::fixed_certificate()).unwrap());
        let bytes = CertificateDer::from(bytes);
        let _ = public_key(&bytes);
        if let Ok(altered) = check(&bytes) {
            let claims = |one: &TenantCertificate| {
                (one.owner.clone(), one.serial.clone(), one.not_before, one.not_after)
            };
            assert_eq!(claims(&altered), claims(&GOOD));
        }
    }

    #[test]
    fn flipped_bit_changes_no_claim() {
        let good = testing::fixed_certificate();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_claims_unchanged(bytes);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert_eq!(check(&bytes.into()), Err(Refusal::CertificateMalformed));
        }

        #[test]
        fn altered_certificate_changes_no_claim(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
        ) {
            let mut bytes = testing::fixed_certificate().to_vec();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            assert_claims_unchanged(bytes);
        }
    }
}
