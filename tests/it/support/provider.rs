//! A stand-in of the Akash provider behind the gateway: TLS, and a script per connection, which checks what
//! it receives byte for byte.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The host name in the stand-in's certificate.
pub(crate) const NAME: &str = "provider.example";

/// Time limit of a test's waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stand-in of the provider. Runs until it is dropped, which fails if a script failed.
pub(crate) struct StandIn {
    pub(crate) address: SocketAddr,
    pub(crate) certificate: Identity,
    accepted: Arc<AtomicUsize>,
    failed: Arc<AtomicBool>,
    running: JoinSet<()>,
}

/// A server certificate, which is its own authority.
pub(crate) struct Identity {
    pub(crate) pem: String,
    pub(crate) der: CertificateDer<'static>,
    key: KeyPair,
}

/// The body of a response to a gRPC call.
pub(crate) type GrpcBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Records that the script of a connection failed.
struct FailureFlag(Arc<AtomicBool>);

/// Accepts every client certificate, and clients without one.
#[derive(Debug)]
struct AnyClient(CryptoProvider);

// === impl Identity ===

impl Identity {
    /// Creates a certificate for [`NAME`].
    pub(crate) fn of_host() -> Self {
        Self::create(CertificateParams::new(vec![NAME.to_owned()]).unwrap())
    }

    /// Creates a certificate as providers publish it on the chain: only the account is named.
    pub(crate) fn of_account(address: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, address);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Self::create(params)
    }

    fn create(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), key }
    }

    /// Writes the certificate into a directory.
    pub(crate) fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("upstream-ca.pem");
        std::fs::write(&path, &self.pem).unwrap();
        path
    }

    fn server_config(&self) -> ServerConfig {
        let crypto = aws_lc_rs::default_provider();
        let key = self.key.serialize_der().try_into().unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(crypto.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyClient(crypto)))
            .with_single_cert(vec![self.der.clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

// === impl StandIn ===

impl StandIn {
    /// Starts a provider that runs `script` on each connection.
    pub(crate) async fn start<F>(script: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with(Identity::of_host(), script).await
    }

    pub(crate) async fn with<F>(
        certificate: Identity,
        script: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = TlsAcceptor::from(Arc::new(certificate.server_config()));
        let (accepted, failed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, failing) = (Arc::clone(&accepted), Arc::clone(&failed));
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let Ok(io) = tls.accept(socket).await else { continue };
                let (script, flag) = (script(io), FailureFlag(Arc::clone(&failing)));
                connections.spawn(async move {
                    let _flag = flag;
                    script.await;
                });
            }
        });
        Self { address, certificate, accepted, failed, running }
    }

    /// Starts a provider that answers gRPC calls. Their requests have the number of client certificates on
    /// the connection as an extension.
    pub(crate) async fn grpc<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = Response<GrpcBody>> + Send + 'static,
    {
        Self::start(move |io| {
            let answer = answer.clone();
            async move {
                let certificates = io.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
                let service = service_fn(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(certificates);
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let http = http2::Builder::new(TokioExecutor::new());
                // Connections are closed in any way.
                let _ = http.serve_connection(TokioIo::new(io), service).await;
            }
        })
        .await
    }

    /// Stops. Its address then refuses connections, which it may not do yet when it is only dropped.
    pub(crate) async fn stop(mut self) {
        self.running.shutdown().await;
    }

    /// Returns the number of connections that were accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for FailureFlag {
    fn drop(&mut self) {
        self.0.fetch_or(std::thread::panicking(), Ordering::SeqCst);
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let failed = self.failed.load(Ordering::SeqCst);
        assert!(!failed || std::thread::panicking(), "a script of the stand-in failed");
    }
}

// === impl AnyClient ===

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
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
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

// === bytes ===

/// Waits for `future`, but not for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Reads until the end, or until the connection breaks.
pub(crate) async fn read_all(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let _ = soon(io.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads the head of a message, up to and with its empty line.
pub(crate) async fn read_head(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(io.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Reads exactly `count` bytes.
pub(crate) async fn read_bytes(io: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    soon(io.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// Returns bytes that do not repeat soon.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}
