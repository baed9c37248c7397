//! The form of a tenant's certificate, as Akash tenants have them: one self-signed ECDSA certificate whose common name is the
//! owner's address.
//!
//! A certificate is trusted only if a trust source holds the same bytes, so the form protects little. It makes sure that the
//! certificate names one account and one serial number, which are the key of the lookup, and it repeats what an Akash provider
//! checks (`go/util/tls/verify.go` of chain-sdk), so that both accept the same certificates. `docs/SECURITY.md` compares each
//! rule with the provider's.
//!
//! The checks, in order: one certificate, well-formed, subject, issuer, serial number, key, signature algorithm, signature,
//! extended key usage, critical extensions; and last, because it alone changes during a connection, the time. All of them come
//! before any query of a trust source. A certificate that passes is not yet trusted: its address is only a claim.
//!
//! Not checked: basic constraints (Akash's TypeScript tools wrote `CA:TRUE` for two years) and key usage (Akash's tools leave
//! out `digitalSignature`).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P521_SHA256_ASN1, EcdsaVerificationAlgorithm,
    UnparsedPublicKey,
};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ECDSA_WITH_SHA256,
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_CERTIFICATE_POLICIES, OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_INHIBIT_ANY_POLICY, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_POLICY_CONSTRAINTS, OID_X509_EXT_POLICY_MAPPINGS,
    OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use super::refusal::Refusal;
use crate::model::id::Owner;
use crate::model::time::LogTime;

/// Largest certificate, in bytes of DER. A tenant's has about 500; the limit bounds what a stranger can have parsed.
pub const CERTIFICATE_MAX_BYTES: usize = 8 * 1024;

/// Longest serial number, in bytes: what Akash's chain takes. (RFC 5280 would have 20.)
const SERIAL_MAX_BYTES: usize = 40;

/// Extensions that may be critical: those that Go's `crypto/x509`, and with it the provider, understands. Except for the
/// extended key usage they restrict names, or certificates that this one would sign, and nothing here depends on either.
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

/// A curve that a certificate's key may be on: those of TLS 1.3 among the ones that Go knows.
struct Curve {
    oid: Oid<'static>,
    /// Bytes of an uncompressed point: a tag and two coordinates. Go reads no other form.
    point_bytes: usize,
    /// How the signature is verified. The chain and the provider hash with SHA-256 whatever the curve.
    verification: &'static EcdsaVerificationAlgorithm,
}

static CURVES: [Curve; 3] = [
    Curve { oid: OID_EC_P256, point_bytes: 65, verification: &ECDSA_P256_SHA256_ASN1 },
    Curve { oid: OID_NIST_EC_P384, point_bytes: 97, verification: &ECDSA_P384_SHA256_ASN1 },
    Curve { oid: OID_NIST_EC_P521, point_bytes: 133, verification: &ECDSA_P521_SHA256_ASN1 },
];

/// A certificate of good form: who it says it is, and the bytes that a trust source must agree to.
#[derive(Clone, PartialEq, Eq)]
pub struct TenantCertificate {
    owner: Owner,
    serial: Serial,
    der: Arc<[u8]>,
    not_before: LogTime,
    not_after: LogTime,
}

/// A certificate's serial number as a trust source has it: not negative, in decimal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Arc<str>);

/// The public key in `certificate`, whatever its form else: what a handshake needs to check possession. `None` if it cannot
/// be found.
pub fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let parsed = parse(certificate).ok()?;
    Some(SubjectPublicKeyInfoDer::from(parsed.subject_pki.raw).into_owned())
}

// === impl TenantCertificate ===

impl TenantCertificate {
    /// Checks everything about the certificates that a peer presented, but the time.
    ///
    /// # Errors
    /// The first check that failed, in the order above.
    pub fn from_chain(chain: &[CertificateDer<'_>]) -> Result<Self, Refusal> {
        match chain {
            [] => Err(Refusal::NoCredentials),
            [one] => Self::from_der(one),
            _ => Err(Refusal::CertificateChain),
        }
    }

    /// Checks everything about one certificate, but the time.
    ///
    /// # Errors
    /// The first check that failed, in the order above.
    pub fn from_der(der: &CertificateDer<'_>) -> Result<Self, Refusal> {
        let certificate = parse(der)?;
        check_extensions_unique(&certificate)?;
        let owner = common_name(&certificate.subject)
            .and_then(|name| name.parse::<Owner>().ok())
            .ok_or(Refusal::CertificateSubject)?;
        if common_name(&certificate.issuer) != Some(owner.as_str()) {
            return Err(Refusal::CertificateIssuer);
        }
        let serial = Serial::of(&certificate)?;
        check_signature(&certificate)?;
        check_extensions(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            owner,
            serial,
            der: der.as_ref().into(),
            not_before: instant(validity.not_before),
            not_after: instant(validity.not_after),
        })
    }

    /// Checks that the certificate is valid at `now`. Both ends of its period belong to it.
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

    /// The account that it says it belongs to.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Its serial number.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// All its bytes.
    pub fn der(&self) -> &Arc<[u8]> {
        &self.der
    }

    /// The last instant at which it is valid.
    pub fn not_after(&self) -> LogTime {
        self.not_after
    }
}

/// Without the bytes.
impl fmt::Debug for TenantCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented")
            .field("owner", &self.owner)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

// === impl Serial ===

impl Serial {
    fn of(certificate: &X509Certificate<'_>) -> Result<Self, Refusal> {
        // A negative one would share its place on the chain with the positive one of the same digits.
        let bytes = certificate.raw_serial();
        let negative = bytes.first().is_none_or(|first| *first >= 0x80);
        // A leading zero marks a positive number and is not part of it.
        let length = bytes.len() - usize::from(bytes.first() == Some(&0));
        if !negative && length <= SERIAL_MAX_BYTES {
            Ok(Self(certificate.serial.to_string().into()))
        } else {
            Err(Refusal::CertificateSerial)
        }
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === the checks ===

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refusal> {
    if der.len() > CERTIFICATE_MAX_BYTES {
        return Err(Refusal::CertificateMalformed);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Refusal::CertificateMalformed),
    }
}

/// The common name, if there is exactly one and it is text.
fn common_name<'a>(name: &'a X509Name<'_>) -> Option<&'a str> {
    let mut names = name.iter_common_name();
    let only = names.next()?;
    match names.next() {
        None => only.as_str().ok(),
        Some(_) => None,
    }
}

fn check_signature(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let (curve, point) = key_of(&certificate.subject_pki).ok_or(Refusal::CertificateKey)?;
    // The certificate names the algorithm inside and outside the signed part; RFC 5280 demands that they are equal.
    let algorithms = [&certificate.signature_algorithm, &certificate.signature];
    if algorithms.iter().any(|algorithm| algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256) {
        return Err(Refusal::CertificateAlgorithm);
    }
    UnparsedPublicKey::new(curve.verification, point)
        .verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
        .map_err(|_| Refusal::CertificateSignature)
}

/// Returns the curve and the point, if the key is an uncompressed point on one of [`CURVES`]. Whether the point is on the
/// curve shows when the signature is verified.
fn key_of<'a>(key: &'a SubjectPublicKeyInfo<'_>) -> Option<(&'static Curve, &'a [u8])> {
    let oid = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let curve = CURVES.iter().find(|curve| curve.oid == oid)?;
    let point = key.subject_public_key.data.as_ref();
    let uncompressed = point.len() == curve.point_bytes && point.first() == Some(&4);
    (key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && uncompressed).then_some((curve, point))
}

/// Refuses a certificate that has an extension twice, as Go does: which one counts would be a guess.
fn check_extensions_unique(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    certificate.extensions_map().map(drop).map_err(|_| Refusal::CertificateMalformed)
}

fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    check_usage(certificate)?;
    let understood = |oid: &Oid<'_>| CRITICAL_UNDERSTOOD.iter().any(|known| known == oid);
    let mut extensions = certificate.extensions().iter();
    if extensions.any(|one| one.critical && !understood(&one.oid)) {
        return Err(Refusal::CertificateExtension);
    }
    Ok(())
}

/// Checks the extended key usage as Go does: without one a certificate is for every use.
fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let mut extensions = certificate.extensions().iter();
    let Some(usage) = extensions.find(|one| one.oid == OID_X509_EXT_EXTENDED_KEY_USAGE) else {
        return Ok(());
    };
    match usage.parsed_extension() {
        ParsedExtension::ExtendedKeyUsage(usage) if usage.client_auth || usage.any => Ok(()),
        ParsedExtension::ExtendedKeyUsage(_) => Err(Refusal::CertificateUsage),
        // One that cannot be parsed must not count as absent.
        _ => Err(Refusal::CertificateMalformed),
    }
}

/// The nearest instant that there is: a certificate may be valid until the year 9999.
fn instant(time: ASN1Time) -> LogTime {
    let seconds = time.timestamp();
    LogTime::from_parts(seconds, 0).unwrap_or(if seconds < 0 {
        LogTime::MIN
    } else {
        LogTime::from_nanos(i64::MAX)
    })
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
        TenantCertificate::from_chain(std::slice::from_ref(der))
    }

    /// A good certificate but for what `spoil` does to it, and what becomes of it.
    fn spoilt(spoil: impl FnOnce(&mut Tenant)) -> Result<TenantCertificate, Refusal> {
        let mut tenant = Tenant::new(1, 1);
        spoil(&mut tenant);
        check(&tenant.certificate())
    }

    fn refused(expected: Refusal, spoil: impl FnOnce(&mut Tenant)) {
        assert_eq!(spoilt(spoil).unwrap_err(), expected);
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

    /// `der` with every (or only the `n`th) `old` in it replaced.
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
    fn a_good_certificate_says_whose_it_is() {
        let tenant = Tenant::new(1, 1_700_000_000_123_456_789);
        let certificate = tenant.certificate();
        let presented = check(&certificate).unwrap();
        assert_eq!(*presented.owner(), tenant.address);
        assert_eq!(presented.serial().as_str(), "1700000000123456789");
        assert_eq!(presented.der()[..], certificate[..]);
        assert_eq!(presented.check_time(NOW), Ok(()));
        assert!(!format!("{presented:?}").contains("der"));
    }

    #[test]
    fn there_must_be_exactly_one() {
        let certificate = Tenant::new(1, 1).certificate();
        assert_eq!(TenantCertificate::from_chain(&[]), Err(Refusal::NoCredentials));
        let two = [certificate.clone(), certificate];
        assert_eq!(TenantCertificate::from_chain(&two), Err(Refusal::CertificateChain));
    }

    #[test]
    fn what_is_not_a_certificate_is_malformed() {
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
    fn the_subject_is_one_account_address() {
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
    fn the_issuer_is_the_subject() {
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
    fn serial_number_is_not_negative_and_not_too_long() {
        let serial = |bytes: &[u8]| {
            let number = SerialNumber::from_slice(bytes);
            spoilt(|tenant| tenant.params.serial_number = Some(number))
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
        spoilt(|tenant| tenant.key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA256).unwrap()).unwrap();
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
    fn the_signature_is_by_its_own_key_with_sha256() {
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
            spoilt(|tenant| tenant.params.extended_key_usages = usages).unwrap();
        }
        refused(Refusal::CertificateMalformed, |tenant| {
            tenant.params.extended_key_usages.clear();
            with_extension(EXTENDED_KEY_USAGE, &[0x30, 3, 1], false)(tenant);
        });
    }

    #[test]
    fn basic_constraints_and_key_usage_decide_nothing() {
        let path_length = BasicConstraints::Constrained(3);
        for is_ca in
            [IsCa::NoCa, IsCa::ExplicitNoCa, IsCa::Ca(BasicConstraints::Unconstrained), IsCa::Ca(path_length)]
        {
            spoilt(|tenant| tenant.params.is_ca = is_ca).unwrap();
        }
        spoilt(|tenant| tenant.params.key_usages.clear()).unwrap();
    }

    /// What Akash's tools wrote, and what an operator makes with openssl: see `tests/vectors/certificates`.
    #[test]
    fn certificates_of_published_tools_are_accepted() {
        for (pem, authority) in [(AKASHJS, true), (CHAIN_SDK, true), (CHAIN_SDK_NEXT, false), (OPENSSL, true)]
        {
            let der = CertificateDer::from_pem_slice(pem).unwrap();
            let (_, parsed) = X509Certificate::from_der(&der).unwrap();
            assert_eq!(parsed.is_ca(), authority);
            let presented = check(&der).unwrap();
            assert_eq!(presented.owner().as_str(), ADDRESS);
            assert_eq!(presented.check_time(NOW), Ok(()));
            // The key as the TypeScript tools publish it on the chain, where it must be the certificate's.
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
        spoilt(with_extension(UNKNOWN, &[5, 0], false)).unwrap();
        let names = [0x30, 3, 0x82, 1, b'a'];
        spoilt(with_extension(SUBJECT_ALTERNATIVE_NAME, &names, true)).unwrap();
        // As Akash's Go tools write it for the host "a".
        let constraints = [0x30, 7, 0xa0, 5, 0x30, 3, 0x82, 1, b'a'];
        spoilt(with_extension(NAME_CONSTRAINTS, &constraints, true)).unwrap();
    }

    /// Everything is wrong, and mended one after the other: each time the next reason is told.
    #[test]
    fn the_checks_come_in_their_order() {
        type Spoil = fn(&mut Tenant);
        let spoils: [(Refusal, Spoil); 5] = [
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
            spoils[first..].iter().for_each(|(_, spoil)| spoil(&mut tenant));
            tenant.certificate()
        };
        for (first, (refusal, _)) in spoils.iter().enumerate() {
            assert_eq!(check(&from(first)), Err(*refusal));
        }
        check(&from(spoils.len())).unwrap();
        // What can only be done to one that is made already: another issuer before all of these but the first; another algorithm,
        // and a signature that does not fit, between key and usage.
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
    fn both_ends_of_its_period_belong_to_it() {
        let presented = spoilt(|tenant| {
            tenant.params.not_before = time::OffsetDateTime::from_unix_timestamp(100).unwrap();
            tenant.params.not_after = time::OffsetDateTime::from_unix_timestamp(200).unwrap();
        })
        .unwrap();
        let at = |nanos| presented.check_time(LogTime::from_nanos(nanos));
        assert_eq!(at(99_999_999_999), Err(Refusal::CertificateNotYetValid));
        assert_eq!(at(100_000_000_000), Ok(()));
        assert_eq!(at(200_000_000_000), Ok(()));
        assert_eq!(at(200_000_000_001), Err(Refusal::CertificateExpired));
    }

    #[test]
    fn it_may_be_valid_for_longer_than_we_can_count() {
        let presented =
            spoilt(|tenant| tenant.params.not_after = rcgen::date_time_ymd(9999, 12, 31)).unwrap();
        assert_eq!(presented.not_after(), LogTime::from_nanos(i64::MAX));
        assert_eq!(presented.check_time(NOW), Ok(()));
    }

    #[test]
    fn the_public_key_is_found_whatever_the_form() {
        let tenant = Tenant::new(1, 1);
        let expected = rcgen::PublicKeyData::subject_public_key_info(&tenant.key);
        assert_eq!(public_key(&tenant.certificate()).unwrap().as_ref(), expected);
        assert!(public_key(&CertificateDer::from(b"hello".to_vec())).is_none());
    }

    /// Whatever was done to a good certificate, it says the same or is refused. (A few bits of its DER are read leniently; it
    /// is for the trust source to agree with every byte.)
    fn says_no_more_than_before(bytes: Vec<u8>) {
        static GOOD: LazyLock<TenantCertificate> =
            LazyLock::new(|| check(&testing::fixed_certificate()).unwrap());
        let bytes = CertificateDer::from(bytes);
        let _ = public_key(&bytes);
        if let Ok(altered) = check(&bytes) {
            let said = |one: &TenantCertificate| {
                (one.owner.clone(), one.serial.clone(), one.not_before, one.not_after)
            };
            assert_eq!(said(&altered), said(&GOOD));
        }
    }

    #[test]
    fn flipping_one_bit_makes_it_say_nothing_else() {
        let good = testing::fixed_certificate();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            says_no_more_than_before(bytes);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert_eq!(check(&bytes.into()), Err(Refusal::CertificateMalformed));
        }

        #[test]
        fn altering_it_makes_it_say_nothing_else(
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
            says_no_more_than_before(bytes);
        }
    }
}
