//! TLS 1.3 for clients, by rustls with aws-lc-rs: the configurations of the server, and their selection by
//! server name (SNI).
//!
//! `cert_reload` reloads a certificate and its key, [`generate`] creates one if the operator has none, and
//! [`stream`] carries HTTP/2 in few, large writes.
//!
//! HTTP/2 only, no resumption: every connection presents its certificate anew. A client certificate is
//! requested and may be absent. Only *possession* of its key is checked, by the signature over this
//! handshake. Its form and trust are checked per call, where a refusal can be a gRPC status with a reason.
//!
//! As Akash providers do, a gateway with a certificate that an authority signed presents it for exactly the
//! public host names, and requests no client certificate there: clients of these names bring a token. For
//! every other name, and without one, it presents its own certificate.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, InconsistentKeys, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::sys::pem::{PemError, read_certificates, read_private_key};
use crate::sys::read::PEM_MAX_BYTES;

pub(crate) mod cert_reload;
pub mod generate;
pub mod stream;
#[cfg(test)]
mod tests;

pub use cert_reload::ReloadingCert;
pub use generate::{Generated, ensure};
pub use stream::{TlsStream, accept};

/// The only protocol in ALPN. A client that offers others fails the handshake.
const ALPN_H2: &[u8] = b"h2";

/// Why there is no usable server certificate. Each text names the file or host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or its directory cannot be used.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The content of a file is invalid.
    #[error("{path}: {what}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The problem.
        what: String,
    },
    /// The certificate was made for another key.
    #[error("the key in {key} does not belong to the certificate in {certificate}", key = key.display(), certificate = certificate.display())]
    Mismatch {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// A host that cannot be in a certificate.
    #[error("`{0}` is neither a host name nor an IP address")]
    Host(String),
    /// The TLS library failed.
    #[error("TLS cannot be set up: {0}")]
    Library(String),
}

/// The same on the port with HTTP/1.1. A client that offers none is accepted.
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Checks that a client holds the key of its certificate, and nothing else.
#[derive(Debug)]
struct Possession {
    algorithms: WebPkiSupportedAlgorithms,
}

/// The TLS configurations, by the server name that the client asks for. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct SniConfigs {
    public: Option<Arc<PublicConfig>>,
    /// For all other names, and for none.
    default: Arc<ServerConfig>,
}

/// The configuration for the public host names.
#[derive(Debug)]
struct PublicConfig {
    hosts: BTreeSet<String>,
    config: Arc<ServerConfig>,
}

/// Creates a configuration that presents the certificate of `resolver`, and requests one of the client.
///
/// # Errors
/// [`Error::Library`] if the library was built without a required feature.
pub fn server_config(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let possession = Possession { algorithms: provider().signature_verification_algorithms };
    config_with(Arc::new(possession), resolver)
}

/// Creates the configuration of a port with HTTP/1.1, which is otherwise that of [`server_config`].
///
/// # Errors
/// As [`server_config`].
pub fn http1_server_config(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let mut config = server_config(resolver)?;
    config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
    Ok(config)
}

/// Creates a configuration that requests no client certificate.
///
/// # Errors
/// As [`server_config`].
pub fn public_server_config(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    config_with(WebPkiClientVerifier::no_client_auth(), resolver)
}

fn config_with(
    verifier: Arc<dyn ClientCertVerifier>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::Library(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    // ChaCha20, which some clients prefer, takes this side more than twice the time per byte.
    config.ignore_client_order = true;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Reads a certificate chain (own certificate first) and its private key from PEM files, and checks that they
/// match.
///
/// # Errors
/// [`Error::File`], [`Error::Content`] or [`Error::Mismatch`].
pub fn load(certificate: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let chain = read_certificates(certificate, PEM_MAX_BYTES).map_err(|e| pem_error(certificate, e))?;
    let private = read_private_key(key, PEM_MAX_BYTES).map_err(|e| pem_error(key, e))?;
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

/// Returns aws-lc-rs with our preferences. Not installed as the default of the process, which may have other
/// users.
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

fn pem_error(path: &Path, error: PemError) -> Error {
    match error {
        PemError::Read(source) => Error::File { action: "read", path: path.to_owned(), source },
        error => content(path, error.to_string()),
    }
}

fn content(path: &Path, what: String) -> Error {
    Error::Content { path: path.to_owned(), what }
}

// === impl SniConfigs ===

impl SniConfigs {
    /// Adds `config` for clients that ask for one of `hosts`.
    #[must_use]
    pub fn with_public(mut self, hosts: &[String], config: Arc<ServerConfig>) -> Self {
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        self.public = Some(Arc::new(PublicConfig { hosts, config }));
        self
    }

    /// Returns the only configuration, if the server name makes no difference.
    fn only(&self) -> Option<Arc<ServerConfig>> {
        self.public.is_none().then(|| Arc::clone(&self.default))
    }

    /// Returns the configuration for a client that asks for `name`, or for none.
    fn of(&self, name: Option<&str>) -> Arc<ServerConfig> {
        let public = self.public.as_ref().filter(|public| name.and_then(|name| public.host(name)).is_some());
        Arc::clone(public.map_or(&self.default, |public| &public.config))
    }

    /// Returns the public host that `name` means. Its clients are not asked for a certificate.
    pub(super) fn public_name(&self, name: &str) -> Option<Arc<str>> {
        self.public.as_ref()?.host(name).map(Arc::from)
    }
}

/// One configuration for all names.
impl From<Arc<ServerConfig>> for SniConfigs {
    fn from(default: Arc<ServerConfig>) -> Self {
        Self { public: None, default }
    }
}

// === impl PublicConfig ===

impl PublicConfig {
    fn host(&self, name: &str) -> Option<&str> {
        // A trailing dot does not change the name.
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.hosts.get(&name).map(String::as_str)
    }
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
        // Only the public key is read from the certificate. The library's own parser rejects forms (versions,
        // critical extensions) that must be refused per call, with a reason.
        let (_, parsed) = X509Certificate::from_der(cert).map_err(|_| CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.tbs_certificate.subject_pki.raw);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
