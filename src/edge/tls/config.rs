//! What the server offers in a handshake, and what it demands of a client.
//!
//! TLS 1.3 only, HTTP/2 only, no resumption: every connection shows its certificate anew. A client certificate is asked for
//! and may be absent. Of a certificate that is presented only *possession* is checked, that is, the signature over this very
//! handshake; its form and whether it is trusted are judged later, per call, where a refusal can say why.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, InconsistentKeys, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Error;

/// Largest PEM file that is read: chains and keys are a few KiB; anything beyond this is the wrong file.
const PEM_MAX_BYTES: u64 = 1024 * 1024;

/// Offered in ALPN; a client that wants something else is refused in the handshake.
const ALPN_H2: &[u8] = b"h2";

/// Checks that whoever presents a certificate holds its key, and nothing else about it.
#[derive(Debug)]
struct Possession {
    algorithms: WebPkiSupportedAlgorithms,
}

/// The configuration for a listener that presents `certified`, whatever name the client asks for.
///
/// # Errors
/// As [`server_config_of`].
pub fn server_config(certified: CertifiedKey) -> Result<ServerConfig, Error> {
    server_config_of(Arc::new(SingleCertAndKey::from(certified)))
}

/// The configuration for a listener that presents what `resolver` says, in each handshake anew.
///
/// # Errors
/// [`Error::Library`] if the library was built without what is asked of it.
pub fn server_config_of(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let possession = Possession { algorithms: provider().signature_verification_algorithms };
    server_config_by(Arc::new(possession), resolver)
}

/// The same for clients that are not asked for a certificate.
///
/// # Errors
/// As [`server_config_of`].
pub fn public_server_config_of(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    server_config_by(WebPkiClientVerifier::no_client_auth(), resolver)
}

fn server_config_by(
    verifier: Arc<dyn ClientCertVerifier>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::Library(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    // A client that puts ChaCha20 first would cost this side more than twice the time per byte.
    config.ignore_client_order = true;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Reads a certificate chain (own certificate first) and its private key from PEM files, and checks that they belong
/// together.
///
/// # Errors
/// [`Error::ReadKind`], [`Error::TrustValue`] or [`Error::Mismatch`], naming the file.
pub fn load(certificate: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let chain = read_chain(certificate)?;
    let private = read_key(key)?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|e| match e {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            Error::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        rustls::Error::InvalidCertificate(e) => {
            content(certificate, format!("not a usable certificate: {e}"))
        }
        e => content(key, format!("not a usable private key: {e}")),
    })
}

/// aws-lc-rs with our preferences; never installed as the default of the process, which is not ours to choose.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read_pem(path)?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| content(path, format!("not a PEM file: {e:?}")))?;
    if chain.is_empty() {
        return Err(content(path, "no `BEGIN CERTIFICATE` section".to_owned()));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = read_pem(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|e| {
        let what = match e {
            pem::Error::NoItemsFound
                if memchr::memmem::find(&text, b"BEGIN ENCRYPTED PRIVATE KEY").is_some() =>
            {
                "the private key is encrypted; it must be stored without a password".to_owned()
            }
            pem::Error::NoItemsFound => "no `BEGIN PRIVATE KEY` section".to_owned(),
            e => format!("not a PEM file: {e:?}"),
        };
        content(path, what)
    })
}

fn read_pem(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::open(path)?.take(PEM_MAX_BYTES + 1).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > PEM_MAX_BYTES {
        return Err(content(path, format!("larger than {PEM_MAX_BYTES} bytes, so not a PEM file of ours")));
    }
    Ok(text)
}

fn content(path: &Path, what: String) -> Error {
    Error::Content { path: path.to_owned(), what }
}

// === impl Possession ===

impl ClientCertVerifier for Possession {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Only the public key is taken from the certificate: the library's own parser refuses forms (versions, critical
        // extensions) that the gate must be able to refuse with a reason.
        let (_, parsed) = X509Certificate::from_der(cert).map_err(|_| CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.tbs_certificate.subject_pki.raw);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
