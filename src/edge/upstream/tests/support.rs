use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics::Gauge;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::edge::drain::Drain;
use crate::edge::upstream::framing::FramingGuard;
use crate::edge::upstream::limits::TunnelLimiter;
use crate::edge::upstream::provider::UpstreamProvider;
use crate::edge::upstream::target::{Endpoint, Trust};

/// The name in the stand-in's certificate.
pub(super) const NAME: &str = "provider.example";

/// Time limit of a test's waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate for [`NAME`], which is its own authority.
pub(super) struct Pki {
    pub(super) authority: PathBuf,
    pub(super) server: ServerConfig,
    _dir: TempDir,
}

/// A stand-in of the provider. Runs until it is dropped.
pub(super) struct StandIn {
    pub(super) address: SocketAddr,
    pub(super) pki: Pki,
    accepted: Arc<AtomicUsize>,
    failed: Arc<AtomicBool>,
    _running: JoinSet<()>,
}

/// Records that the script of a connection failed.
struct FailureFlag(Arc<AtomicBool>);

/// The gateway's part: forwards everything. Runs until it is dropped.
pub(super) struct Front {
    pub(super) address: SocketAddr,
    pub(super) drain: Drain,
    pub(super) limiter: TunnelLimiter,
    _running: JoinSet<()>,
}

pub(super) fn pki(protocol: &[u8]) -> Pki {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let authority = dir.path().join("authority.pem");
    std::fs::write(&authority, certificate.pem()).unwrap();
    let mut server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    server.alpn_protocols = vec![protocol.to_vec()];
    Pki { authority, server, _dir: dir }
}

pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::parse(&format!("https://{address}").parse().unwrap()).unwrap()
}

/// Waits for `future`, but not for ever.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Waits until `condition` holds.
pub(super) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

// === impl StandIn ===

impl StandIn {
    /// Starts a provider that runs `script` on each connection, with the number of the connection.
    pub(super) async fn start<F>(script: impl Fn(TlsStream<TcpStream>, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pki = pki(b"http/1.1");
        let tls = TlsAcceptor::from(Arc::new(pki.server.clone()));
        let accepted = Arc::new(AtomicUsize::new(0));
        let failed = Arc::new(AtomicBool::new(false));
        let (counted, failing) = (Arc::clone(&accepted), Arc::clone(&failed));
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let tls = tls.accept(socket).await;
                if let Ok(tls) = tls {
                    let (script, flag) = (script(tls, number), FailureFlag(Arc::clone(&failing)));
                    connections.spawn(async move {
                        let _flag = flag;
                        script.await;
                    });
                }
            }
        });
        Self { address, pki, accepted, failed, _running: running }
    }

    /// Starts a provider that must not get a request.
    pub(super) async fn unused() -> Self {
        Self::start(|_, _| async {}).await
    }

    pub(super) fn accepted(&self) -> usize {
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

// === impl Front ===

impl Front {
    pub(super) async fn start(provider: &StandIn) -> Self {
        Self::limited(provider, 8).await
    }

    /// Starts a gateway with at most `max` tunnels.
    pub(super) async fn limited(provider: &StandIn, max: usize) -> Self {
        let trust = Trust::Authorities(provider.pki.authority.clone());
        Self::of(endpoint(provider.address), Some(NAME), &trust, max).await
    }

    pub(super) async fn of(endpoint: Endpoint, name: Option<&str>, trust: &Trust, max: usize) -> Self {
        let (drain, limiter) = (Drain::default(), TunnelLimiter::new(max, Gauge::noop()));
        let provider = UpstreamProvider::new(endpoint, name, trust, limiter.clone(), drain.clone()).unwrap();
        let tunnels = drain.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (provider, tunnels) = (provider.clone(), tunnels.clone());
                let service = service_fn(move |request| {
                    let (provider, tunnels) = (provider.clone(), tunnels.clone());
                    async move {
                        let run_tunnel = |tunnel| tunnels.spawn(tunnel);
                        Ok::<_, Infallible>(provider.forward(request, None, run_tunnel).await)
                    }
                });
                let io = TokioIo::new(FramingGuard::new(socket));
                connections.spawn(async move {
                    let _ = http1::Builder::new().serve_connection(io, service).with_upgrades().await;
                });
            }
        });
        Self { address, drain, limiter, _running: running }
    }

    /// Connects a client.
    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes on a new connection. Returns everything until the gateway closes it.
    pub(super) async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.write_all(request.as_ref()).await.unwrap();
        read_all(&mut client).await
    }
}

/// Reads until the end, or until the connection breaks.
pub(super) async fn read_all(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let _ = soon(io.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads the head of a message, up to and with its empty line.
pub(super) async fn read_head(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(io.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Reads exactly `count` bytes.
pub(super) async fn read_bytes(io: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    soon(io.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// Reads a body of chunks.
pub(super) async fn read_chunked(io: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut size = Vec::new();
        while !size.ends_with(b"\r\n") {
            size.push(soon(io.read_u8()).await.unwrap());
        }
        let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
        let chunk = read_bytes(io, size + 2).await;
        body.extend_from_slice(&chunk[..size]);
        if size == 0 {
            return body;
        }
    }
}

/// Returns bytes that do not repeat soon.
pub(super) fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Returns the body of a response: what follows the head.
pub(super) fn body_of(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
