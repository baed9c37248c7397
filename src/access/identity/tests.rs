//! Creating, importing and loading identities.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};

use super::*;
use crate::access::testing::NOW;
use crate::model::id::Address;

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("a/b");
    IdentityFiles::create(&inner, NOW).unwrap();
    (dir, inner)
}

/// Checks that the error names the file and the reason, and repeats no content.
fn refused(dir: &Path, file: &str, why: &str) {
    let error = IdentityFiles::load(dir).unwrap_err();
    let text = format!("{error} {error:?}");
    let begin = dir.join(file).display().to_string();
    assert!(error.to_string().starts_with(&begin) && text.contains(why), "{text}");
    assert!(!text.contains("SECRET"), "{text}");
}

#[test]
fn created_identity_loads_and_has_valid_form() {
    let (_keep, dir) = fresh();
    let identity = IdentityFiles::load(&dir).unwrap();
    let address = std::fs::read_to_string(dir.join(ADDRESS_FILE)).unwrap();
    assert_eq!(address, format!("{}\n", identity.address()));
    let certificate = TenantCertificate::from_presented(&identity.chain).unwrap();
    assert_eq!(certificate.owner(), identity.address());
    assert_eq!(certificate.serial().as_str(), NOW.as_nanos().to_string());
    assert_eq!(certificate.check_time(NOW), Ok(()));
    let year = 365 * 24 * 3600 * 1_000_000_000;
    assert_eq!(certificate.not_after(), NOW.saturating_add_nanos(year));
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    assert_eq!(mode(&dir), DIR_MODE);
    assert_eq!(mode(&dir.join(KEY_FILE)), SECRET_MODE);
    assert_eq!(mode(&dir.join(MNEMONIC_FILE)), SECRET_MODE);
    let key = IdentityFiles::load_wallet(&dir).unwrap().key();
    assert_eq!(key.address(), *identity.address());
    let account = std::fs::read_to_string(dir.join(ACCOUNT_FILE)).unwrap();
    assert_eq!(account, format!("{} {key}\n", identity.address()));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), FILES.len());
}

/// The first account in `tests/vectors/wallets.json`, whose certificates are in `tests/vectors/certificates`.
fn known() -> Mnemonic {
    let wallets: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/vectors/wallets.json")).unwrap();
    Mnemonic::parse(wallets[0]["mnemonic"].as_str().unwrap()).unwrap()
}

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/certificates").join(name)
}

#[test]
fn imported_certificate_is_the_one_in_the_file() {
    let files = ["chain-sdk-go", "akashjs", "chain-sdk", "chain-sdk-next", "openssl-p384"];
    for name in files.map(|name| vector(&format!("{name}.pem"))) {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("tenant");
        let address = IdentityFiles::import(&dir, &known(), Some(&name), NOW).unwrap();
        let identity = IdentityFiles::load(&dir).unwrap();
        assert_eq!(*identity.address(), address);
        let der = CertificateDer::from_pem_file(&name).unwrap();
        assert_eq!(identity.chain, [der]);
        assert_eq!(IdentityFiles::load_wallet(&dir).unwrap().key().address(), address);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), FILES.len());
        let mode = |file: &str| dir.join(file).metadata().unwrap().mode() & 0o777;
        assert_eq!([KEY_FILE, MNEMONIC_FILE].map(mode), [SECRET_MODE; 2]);
        let key = std::fs::read_to_string(dir.join(KEY_FILE)).unwrap();
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n") && !key.contains("PUBLIC"), "{name:?}");
    }
}

#[test]
fn imported_account_without_certificate_gets_a_new_one() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("tenant");
    let address = IdentityFiles::import(&dir, &known(), None, NOW).unwrap();
    assert_eq!(address.as_str(), "akash1kp030650r7q7kf83xrs6873dw3pxeg2c0kzl6q");
    assert_eq!(*IdentityFiles::load(&dir).unwrap().address(), address);
    let error = IdentityFiles::import(&dir, &known(), None, NOW).unwrap_err();
    assert!(matches!(error, IdentityError::Exists { .. }), "{error}");
}

#[test]
fn key_in_sec1_form_is_imported() {
    let outer = tempfile::tempdir().unwrap();
    let text = std::fs::read(vector("akashjs.pem")).unwrap();
    let certificate = CertificateDer::from_pem_slice(&text).unwrap();
    let PrivateKeyDer::Pkcs8(pkcs8) = PrivateKeyDer::from_pem_slice(&text).unwrap() else { panic!() };
    // RFC 5208: version, algorithm, and an octet string with the key of RFC 5915.
    let (_, whole) = x509_parser::der_parser::parse_der(pkcs8.secret_pkcs8_der()).unwrap();
    let sec1 = whole.as_sequence().unwrap()[2].as_slice().unwrap();
    let file = outer.path().join("akash.pem");
    let text = [pem::encode(PEM_CERTIFICATE, &certificate), pem::encode(PEM_SEC1, sec1)]
        .map(|block| block.to_string());
    std::fs::write(&file, text.concat()).unwrap();
    let dir = outer.path().join("tenant");
    IdentityFiles::import(&dir, &known(), Some(&file), NOW).unwrap();
    assert_eq!(IdentityFiles::load(&dir).unwrap().chain, [certificate]);
}

#[test]
fn failed_import_leaves_nothing() {
    let outer = tempfile::tempdir().unwrap();
    let (dir, file) = (outer.path().join("tenant"), outer.path().join("akash.pem"));
    let import = |words: &Mnemonic, content: &[u8], now| {
        std::fs::write(&file, content).unwrap();
        let error = IdentityFiles::import(&dir, words, Some(&file), now).unwrap_err();
        assert!(!dir.exists(), "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains("akash.pem") && !text.contains("SECRET"), "{text}");
        error.to_string()
    };
    let [plain, encrypted] =
        ["akashjs.pem", "chain-sdk-go.pem"].map(|name| std::fs::read_to_string(vector(name)).unwrap());
    let certificate =
        pem::encode(PEM_CERTIFICATE, &CertificateDer::from_pem_slice(plain.as_bytes()).unwrap());
    let key = &plain[plain.find("-----BEGIN PRIVATE").unwrap()..];
    let other_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
    let words = known();
    let long_after = LogTime::from_parts(4_000_000_000, 0).unwrap();
    let cases: [(String, LogTime, &str); 10] = [
        (String::new(), NOW, "exactly one certificate"),
        (format!("{plain}{}", *certificate), NOW, "exactly one certificate"),
        (certificate.to_string(), NOW, "no private key"),
        (format!("{plain}{key}"), NOW, "more than one private key"),
        (format!("{}{other_key}", *certificate), NOW, "not its certificate's"),
        (format!("{}{}", *certificate, *pem::encode(PEM_PKCS8, b"SECRET")), NOW, "cannot be used"),
        (format!("{}{}", *certificate, *pem::encode(PEM_ENCRYPTED, b"SECRET")), NOW, "an encryption"),
        (
            format!("{}-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED", *certificate),
            NOW,
            "legacy encryption",
        ),
        (format!("{}-----BEGIN PRIVATE KEY-----\nSECRET?", *certificate), NOW, "well-formed PEM"),
        (plain.clone(), long_after, "expired"),
    ];
    for (content, now, why) in cases {
        let error = import(&words, content.as_bytes(), now);
        assert!(error.contains(why), "{why}: {error}");
    }
    let stranger = Mnemonic::generate().unwrap();
    assert!(import(&stranger, plain.as_bytes(), NOW).contains("another account"));
    assert!(import(&stranger, encrypted.as_bytes(), NOW).contains("another account"));
    let missing = outer.path().join("none.pem");
    let error = IdentityFiles::import(&dir, &words, Some(&missing), NOW).unwrap_err();
    assert!(error.to_string().contains("none.pem: No such file"), "{error}");
}

#[test]
fn two_identities_differ_in_every_file() {
    let ((_one, first), (_two, second)) = (fresh(), fresh());
    for name in FILES {
        let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert_ne!(read(&first), read(&second), "{name}");
    }
}

#[test]
fn subject_names_owner_and_form() {
    let owner = Address::from_account([1; 20]);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = certificate_params(&owner, NOW).unwrap().self_signed(&key).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
    assert_eq!(parsed.subject().to_string(), format!("CN={owner}, OID(2.23.133.2.6)={FORM}"));
    assert_eq!(parsed.subject(), parsed.issuer());
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && usage.data_encipherment());
    // Bits 0, 2 and 3, and no other.
    assert_eq!(usage.flags, 0b1101);
    assert!(!parsed.basic_constraints().unwrap().unwrap().value.ca);
}

#[test]
fn existing_file_is_not_overwritten() {
    for name in FILES {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), "mine").unwrap();
        let error = IdentityFiles::create(dir.path(), NOW).unwrap_err();
        assert!(matches!(&error, IdentityError::Exists { path } if path.ends_with(name)), "{error}");
        assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn dangling_link_is_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("elsewhere");
    std::os::unix::fs::symlink(&target, dir.path().join(KEY_FILE)).unwrap();
    let error = IdentityFiles::create(dir.path(), NOW).unwrap_err();
    assert!(matches!(error, IdentityError::Exists { .. }), "{error}");
    assert!(!target.exists());
}

#[test]
fn failure_half_way_leaves_nothing() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("new");
    let mut files = NewFiles::in_dir(&dir).unwrap();
    files.write(KEY_FILE, SECRET_MODE, b"key").unwrap();
    assert!(dir.join(KEY_FILE).exists());
    // As if another process were faster.
    let error = files.write(KEY_FILE, SECRET_MODE, b"other").unwrap_err();
    drop(files);
    assert!(matches!(error, IdentityError::Exists { .. }), "{error}");
    assert!(!dir.exists());
}

#[test]
fn directory_that_cannot_be_created_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = IdentityFiles::create(&file.join("dir"), NOW).unwrap_err().to_string();
    assert!(error.starts_with(&file.display().to_string()), "{error}");
}

#[test]
fn clock_before_1970_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = IdentityFiles::create(dir.path(), LogTime::from_nanos(-1)).unwrap_err();
    assert!(matches!(error, IdentityError::Clock), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn error_names_the_file_and_not_its_content() {
    let (_keep, dir) = fresh();
    let (_other, other) = fresh();
    let overwrite = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        move || std::fs::write(&path, &good).unwrap()
    };
    let of_other = |name: &str| std::fs::read(other.join(name)).unwrap();
    let large = vec![b'x'; usize::try_from(FILE_MAX_BYTES).unwrap() + 1];
    let twice = [of_other(CERTIFICATE_FILE), of_other(CERTIFICATE_FILE)].concat();
    let cases: [(&str, &[u8], &str); 10] = [
        (CERTIFICATE_FILE, b"SECRET", "no certificate"),
        (CERTIFICATE_FILE, b"-----BEGIN CERTIFICATE-----\nSECRET", "well-formed"),
        (
            CERTIFICATE_FILE,
            b"-----BEGIN CERTIFICATE-----\nSECRET==\n-----END CERTIFICATE-----",
            "well-formed",
        ),
        (CERTIFICATE_FILE, &twice, "exactly one"),
        (CERTIFICATE_FILE, &large, "larger than"),
        (KEY_FILE, b"SECRET", "private key"),
        (KEY_FILE, b"-----BEGIN PRIVATE KEY-----\nU0VDUkVU\n-----END PRIVATE KEY-----", "cannot be used"),
        (KEY_FILE, b"-----BEGIN PRIVATE KEY SECRET\n", "well-formed"),
        (KEY_FILE, &of_other(KEY_FILE), "not its certificate's"),
        (ADDRESS_FILE, &of_other(ADDRESS_FILE), "not the address"),
    ];
    for (name, content, why) in cases {
        let restore = overwrite(name, content);
        refused(&dir, name, why);
        restore();
        IdentityFiles::load(&dir).unwrap();
    }
    for name in [CERTIFICATE_FILE, KEY_FILE] {
        let good = std::fs::read(dir.join(name)).unwrap();
        std::fs::remove_file(dir.join(name)).unwrap();
        refused(&dir, name, "No such file");
        std::fs::write(dir.join(name), good).unwrap();
    }
    std::fs::remove_file(dir.join(ADDRESS_FILE)).unwrap();
    IdentityFiles::load(&dir).unwrap();
}

#[test]
fn mnemonic_must_match_the_address_and_is_not_repeated() {
    let ((_one, dir), (_two, other)) = (fresh(), fresh());
    let refused = |why: &str| {
        let error = IdentityFiles::load_wallet(&dir).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(why) && !text.contains("SECRET"), "{text}");
    };
    std::fs::copy(other.join(MNEMONIC_FILE), dir.join(MNEMONIC_FILE)).unwrap();
    refused("not the address");
    std::fs::write(dir.join(MNEMONIC_FILE), "SECRET").unwrap();
    refused("mnemonic");
    std::fs::write(dir.join(MNEMONIC_FILE), [0xff]).unwrap();
    refused("is not text");
    std::fs::remove_file(dir.join(MNEMONIC_FILE)).unwrap();
    refused("No such file");
    IdentityFiles::load(&dir).unwrap();
}

/// Verifies proof of possession only.
#[derive(Debug)]
struct PossessionOnly(Arc<CryptoProvider>);

impl ClientCertVerifier for PossessionOnly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = public_key(certificate).ok_or(rustls::CertificateError::BadEncoding)?;
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Runs a handshake of this client in memory. Returns the certificates that the server received.
fn shake_hands(client: Credentials) -> Result<Vec<CertificateDer<'static>>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(["mtls.localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(PossessionOnly(Arc::clone(&provider))))
        .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())?;
    let mut server = ServerConnection::new(Arc::new(config))?;
    let signer = any_supported_type(&client.1)?;
    let resolver = SingleCertAndKey::from(CertifiedKey::new(client.0, signer));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(resolver));
    let mut client = ClientConnection::new(Arc::new(config), "mtls.localhost".try_into().unwrap())?;
    while server.is_handshaking() || client.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(server.peer_certificates().unwrap().to_vec())
}

#[test]
fn handshake_accepts_certificate_with_its_key_only() {
    let ((_one, first), (_two, second)) = (fresh(), fresh());
    let parts = |dir: &Path| IdentityFiles::load(dir).unwrap().into_parts();
    let seen = shake_hands(parts(&first)).unwrap();
    assert_eq!(seen, parts(&first).0);
    let stolen = (parts(&first).0, parts(&second).1);
    let error = shake_hands(stolen).unwrap_err();
    assert!(
        matches!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature)),
        "{error}"
    );
}

#[test]
fn debug_output_omits_the_key() {
    let (_keep, dir) = fresh();
    let identity = IdentityFiles::load(&dir).unwrap();
    assert_eq!(format!("{identity:?}"), format!("IdentityFiles {{ address: {}, .. }}", identity.address()));
}
