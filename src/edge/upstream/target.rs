//! The provider's address, and TLS connections to it.
//!
//! The address dialled and the name in the certificate are two things: the usual address is one inside the
//! cluster, and the certificate has the public host name.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, IpAddr, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::Failure;
use crate::access::provider::ProviderCertificates;
use crate::model::rate::{Bucket, Rate};
use crate::sys::pem::{self, PemError};
use crate::sys::read::PEM_MAX_BYTES;

/// Time limit for the TCP connection, and another one for TLS with the check of the certificate. A provider
/// in the same cluster takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Idle time after which the kernel probes the provider: it may vanish while a tunnel is quiet.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Least time between two log lines about failures to connect: every request of an outage fails.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum lookups of the provider's host name in progress. One blocks a thread, also after its time limit,
/// and the threads are those that read logs: while no name server answers, these must not wait.
const LOOKUPS_MAX: usize = 16;

const HTTPS_PORT: u16 = 443;

/// Why a provider cannot be used. The text names the address, name or file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("{0} is not the address of a provider: use https://HOST:PORT")]
    Address(Uri),
    #[error("`{0}` is neither a host name nor an IP address")]
    Name(String),
    #[error("cannot use {path}: {error}", path = path.display())]
    Authorities { path: PathBuf, error: PemError },
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// Decides whether the provider published a certificate that no authority vouches for.
pub(crate) trait ChainVerifier: fmt::Debug + Send + Sync {
    /// Returns whether the certificate (DER) is one of the provider's. The provider holds its key: the
    /// handshake proves that.
    fn is_published<'a>(
        &'a self,
        certificate: &'a CertificateDer<'static>,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
}

/// The certificates that are accepted of a provider.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// Those of the authorities in a file (PEM), for the provider's name.
    Authorities(PathBuf),
    /// Those of the system's authorities, for the provider's name.
    System,
    /// As `System`, and those that the provider published.
    SystemOrChain(Arc<dyn ChainVerifier>),
}

/// The address of a provider. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: Arc<str>,
    port: u16,
}

/// A provider to connect to. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Target {
    endpoint: Endpoint,
    name: ServerName<'static>,
    tls: TlsConnector,
    /// `None`: TLS checks the certificate.
    after_handshake: Option<CertificateCheck>,
    failure_log: FailureLog,
}

/// Logs failures to connect, at a bounded rate. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct FailureLog(Arc<Mutex<Bucket>>);

/// Checks a certificate after the handshake: a query of the chain is asynchronous, and a verifier of TLS is
/// not.
#[derive(Clone)]
struct CertificateCheck {
    /// `None`: the system has no authorities.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    chain: Arc<dyn ChainVerifier>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the certificate is neither valid for {name} nor published by the provider: {error}", name = .0.to_str(), error = .1)]
    Certificate(ServerName<'static>, rustls::Error),
}

/// Checks possession of the certificate's key only. The connection is used only after [`Target::connect`] has
/// checked the certificate.
#[derive(Debug)]
struct PossessionOnly(CryptoProvider);

impl ChainVerifier for ProviderCertificates {
    fn is_published<'a>(
        &'a self,
        certificate: &'a CertificateDer<'static>,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(self.contain(certificate))
    }
}

// === impl Endpoint ===

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Endpoint {
    /// Parses an address of the form `https://HOST:PORT`.
    pub(crate) fn parse(address: &Uri) -> Result<Self, TargetError> {
        let malformed = || TargetError::Address(address.clone());
        let has_path = address.path_and_query().is_some_and(|path| path.as_str() != "/");
        if address.scheme() != Some(&Scheme::HTTPS) || has_path {
            return Err(malformed());
        }
        let host = address.host().filter(|host| !host.is_empty()).ok_or_else(malformed)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').into();
        Ok(Self { host, port: address.port_u16().unwrap_or(HTTPS_PORT) })
    }

    /// Looks up the IP addresses.
    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.host.parse() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let permit = LOOKUPS.acquire().await.map_err(io::Error::other)?;
        let (host, port) = (Arc::clone(&self.host), self.port);
        let lookup = move || {
            let addresses = (&*host, port).to_socket_addrs().map(Vec::from_iter);
            // Held to the end, also if the future was dropped.
            drop(permit);
            addresses
        };
        tokio::task::spawn_blocking(lookup).await.map_err(io::Error::other)?
    }

    /// Opens a TCP connection.
    pub(super) async fn connect(&self) -> io::Result<TcpStream> {
        let connect = async { TcpStream::connect(&*self.addresses().await?).await };
        let tcp =
            tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| io::ErrorKind::TimedOut)??;
        tcp.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
        Ok(tcp)
    }
}

/// Limits the lookups of host names in progress, see [`LOOKUPS_MAX`].
static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_MAX);

// === impl ConnectError ===

impl ConnectError {
    /// Returns the failure of a request that needs the connection.
    pub(super) fn failure(&self) -> Failure {
        // rustls reports a certificate that it rejects as `InvalidData`.
        let is_certificate = match self {
            Self::Certificate(..) => true,
            Self::Io(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
            }
        };
        if is_certificate { Failure::CERTIFICATE } else { Failure::CONNECT }
    }
}

// === impl Target ===

impl Target {
    /// Creates a target that speaks `protocol` (ALPN). It presents a certificate for `name`; by default the
    /// host of the endpoint. Does not check that the provider is reachable.
    pub(super) fn new(
        endpoint: Endpoint,
        name: Option<&str>,
        trust: &Trust,
        protocol: &[u8],
    ) -> Result<Self, TargetError> {
        let name = name.unwrap_or(&endpoint.host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TargetError::Name(name.to_owned()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let library = |error: rustls::Error| TargetError::Tls(error.to_string());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(library)?;
        let authorities = Arc::new(trust.authorities()?);
        let (config, after_handshake) = match trust {
            Trust::Authorities(_) | Trust::System => (builder.with_root_certificates(authorities), None),
            Trust::SystemOrChain(chain) => {
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(authorities, Arc::clone(&provider));
                // Fails if the system has no authorities.
                let check = CertificateCheck { authorities: verifier.build().ok(), chain: Arc::clone(chain) };
                let possession = Arc::new(PossessionOnly((*provider).clone()));
                let builder = builder.dangerous().with_custom_certificate_verifier(possession);
                (builder, Some(check))
            }
        };
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        // A resumed session would not present the certificate again.
        config.resumption = Resumption::disabled();
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Self { endpoint, name, tls, after_handshake, failure_log: FailureLog::new() })
    }

    /// Returns the provider's name, as it stands in a `Host` header.
    pub(super) fn host(&self) -> String {
        match &self.name {
            ServerName::IpAddress(IpAddr::V6(_)) => format!("[{}]", self.name.to_str()),
            name => name.to_str().into_owned(),
        }
    }

    /// Returns whether the provider accepts TCP connections.
    pub(super) async fn is_reachable(&self) -> bool {
        self.endpoint.connect().await.is_ok()
    }

    /// Opens a TLS connection. Its certificate is checked. Presents no client certificate. Logs failures.
    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let connected = self.connect_unlogged().await;
        if let Err(error) = &connected {
            self.report(error);
        }
        connected
    }

    /// Logs a reason why a connection cannot be used, at a bounded rate.
    pub(super) fn report(&self, error: &dyn fmt::Display) {
        self.failure_log.report(&self.endpoint, error);
    }

    async fn connect_unlogged(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let tcp = self.endpoint.connect().await?;
        let tls = async {
            let tls = self.tls.connect(self.name.clone(), tcp).await?;
            self.check_certificate(&tls).await?;
            Ok(tls)
        };
        let timed_out = |_| ConnectError::Io(io::ErrorKind::TimedOut.into());
        tokio::time::timeout(CONNECT_TIMEOUT, tls).await.map_err(timed_out)?
    }

    async fn check_certificate(&self, tls: &TlsStream<TcpStream>) -> Result<(), ConnectError> {
        let Some(CertificateCheck { authorities, chain }) = &self.after_handshake else {
            return Ok(());
        };
        let rejected = |error| ConnectError::Certificate(self.name.clone(), error);
        let presented = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let [certificate, intermediates @ ..] = presented else {
            return Err(rejected(rustls::Error::NoCertificatesPresented));
        };
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let verified = authorities.as_ref().map_or(Err(unknown), |authorities| {
            authorities.verify_server_cert(certificate, intermediates, &self.name, &[], UnixTime::now())
        });
        match verified {
            Ok(_) => Ok(()),
            Err(_) if chain.is_published(certificate).await => Ok(()),
            Err(error) => Err(rejected(error)),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("endpoint", &self.endpoint)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

// === impl FailureLog ===

impl FailureLog {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Bucket::new(Rate::new(1, FAILURE_LOG_INTERVAL)))))
    }

    pub(super) fn report(&self, endpoint: &Endpoint, error: &dyn fmt::Display) {
        if self.0.lock().try_take(1, Instant::now().into_std()).is_ok() {
            tracing::warn!(%error, address = %endpoint, "failed to connect to the provider");
        }
    }
}

// === impl Trust ===

impl Trust {
    fn authorities(&self) -> Result<RootCertStore, TargetError> {
        let mut roots = RootCertStore::empty();
        if let Self::Authorities(path) = self {
            let failed = |error| TargetError::Authorities { path: path.clone(), error };
            let certificates = pem::read_certificates(path, PEM_MAX_BYTES).map_err(failed)?;
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(failed(PemError::NoCertificate));
            }
        } else {
            // An unreadable authority matters only if no other one vouches for the provider; connecting
            // reports it.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Ok(roots)
    }
}

// === impl PossessionOnly ===

impl ServerCertVerifier for PossessionOnly {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
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
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lookups_in_progress_are_limited() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let of_host =
            |host: &str| Endpoint::parse(&format!("https://{host}:{port}").parse().unwrap()).unwrap();
        let (by_name, by_address) = (of_host("localhost"), of_host("127.0.0.1"));
        by_name.connect().await.unwrap();
        let all = LOOKUPS.acquire_many(u32::try_from(LOOKUPS_MAX).unwrap()).await.unwrap();
        tokio::time::pause();
        assert_eq!(by_name.connect().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        tokio::time::resume();
        by_address.connect().await.unwrap();
        drop(all);
        by_name.connect().await.unwrap();
    }
}
