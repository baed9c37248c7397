use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::Gauge;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::support::{NAME, Pki, endpoint, noise, pki, read_all, read_bytes, soon, until};
use crate::edge::drain::Drain;
use crate::edge::upstream::client_hello::{self, MtlsMode, Route};
use crate::edge::upstream::copy::{Copied, CopyEnd};
use crate::edge::upstream::limits::TunnelLimiter;
use crate::edge::upstream::splice::{SpliceError, Splicer};
use crate::model::peer::PeerNet;

/// A gateway that splices every connection that is not for its public name, `gw.example`, to the provider,
/// and terminates the others.
struct Front {
    address: SocketAddr,
    drain: Drain,
    limiter: TunnelLimiter,
    /// The ends of spliced connections.
    ends: mpsc::Receiver<Result<Copied, SpliceError>>,
    _running: JoinSet<()>,
}

impl Front {
    async fn start(provider: SocketAddr, own: &Pki, max: usize) -> Self {
        let (drain, limiter) = (Drain::default(), TunnelLimiter::new(max, Gauge::noop()));
        let splicer = Splicer::new(endpoint(provider), limiter.clone(), drain.clone());
        let tls = TlsAcceptor::from(Arc::new(own.server.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, ends) = mpsc::channel(100);
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut socket, address) = listener.accept().await.unwrap();
                let peer = PeerNet::from(address.ip());
                let (splicer, tls, ended) = (splicer.clone(), tls.clone(), ended.clone());
                connections.spawn(async move {
                    let hello = client_hello::read(&mut socket).await.unwrap();
                    match hello.route(MtlsMode::Passthrough, |name| name == "gw.example") {
                        Route::Splice => ended.send(splicer.splice(hello, socket, peer).await).await.unwrap(),
                        Route::Terminate => {
                            let mut io = tls.accept(hello.replay(socket)).await.unwrap();
                            io.write_all(b"terminated").await.unwrap();
                            io.shutdown().await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, drain, limiter, ends, _running: running }
    }
}

/// A TLS client that accepts `server`, with a certificate or without.
fn client(server: &Pki, certificate: Option<(CertificateDer<'static>, KeyPair)>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let trusted = crate::sys::pem::read_certificates(&server.authority, 1 << 20).unwrap();
    roots.add_parsable_certificates(trusted);
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            builder.with_client_auth_cert(vec![certificate], key.serialize_der().try_into().unwrap()).unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

fn name(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).unwrap()
}

/// A provider that asks for a client certificate, which `client` signed, and echoes.
fn provider_config(own: &Pki, client: &CertificateDer<'static>) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(client.clone()).unwrap();
    let crypto = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&crypto));
    let resolver = Arc::clone(&own.server.cert_resolver);
    ServerConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_cert_resolver(resolver)
}

#[tokio::test]
async fn foreign_name_is_spliced_with_its_client_certificate() {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["tenant".to_owned()]).unwrap().self_signed(&key).unwrap();
    let certificate = certificate.der().clone();
    let provider_pki = pki(b"http/1.1");
    let acceptor = TlsAcceptor::from(Arc::new(provider_config(&provider_pki, &certificate)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway_pki = pki(b"http/1.1");
    let mut front = Front::start(listener.local_addr().unwrap(), &gateway_pki, 1).await;

    let expected = certificate.clone();
    let mut provider = JoinSet::new();
    provider.spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let io = acceptor.accept(socket).await.unwrap();
        let (_, session) = io.get_ref();
        assert_eq!(session.server_name(), Some(NAME));
        assert_eq!(session.peer_certificates().unwrap()[0], expected);
        let (mut read, mut write) = tokio::io::split(io);
        let copied = tokio::io::copy(&mut read, &mut write).await.unwrap();
        // After the client's end the provider still sends.
        write.write_all(b"the end").await.unwrap();
        write.shutdown().await.unwrap();
        copied
    });
    let tls = client(&provider_pki, Some((certificate, key)));
    let socket = TcpStream::connect(front.address).await.unwrap();
    let io = soon(tls.connect(name(NAME), socket)).await.unwrap();
    assert!(front.limiter.try_acquire(None).is_none());
    let (mut read, mut write) = tokio::io::split(io);
    let bytes = noise(2_000_000);
    let send = async {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), received) = tokio::join!(send, read_bytes(&mut read, bytes.len()));
    assert!(received == bytes);
    assert_eq!(soon(read_all(&mut read)).await, "the end");
    assert_eq!(soon(provider.join_next()).await.unwrap().unwrap(), bytes.len() as u64);
    drop((read, write));
    let copied = soon(front.ends.recv()).await.unwrap().unwrap();
    assert_eq!(copied.end, CopyEnd::Complete);
    assert!(copied.from_client_bytes > 2_000_000 && copied.from_upstream_bytes > 2_000_000, "{copied:?}");
    until(|| front.limiter.try_acquire(None).is_some()).await;
}

#[tokio::test]
async fn public_name_is_terminated() {
    let gateway_pki = pki(b"http/1.1");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = Front::start(listener.local_addr().unwrap(), &gateway_pki, 1).await;
    let socket = TcpStream::connect(front.address).await.unwrap();
    let failed = soon(client(&gateway_pki, None).connect(name("gw.example"), socket)).await.unwrap_err();
    // The handshake reached the gateway's own certificate.
    assert!(failed.to_string().contains("gw.example"), "{failed}");
}

/// Sends a `ClientHello` without a name, and no more.
async fn hello(front: &Front) -> (TcpStream, Vec<u8>) {
    let config = client(&pki(b"http/1.1"), None).config().clone();
    let mut config = (*config).clone();
    config.enable_sni = false;
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name(NAME)).unwrap();
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes).unwrap();
    let mut socket = TcpStream::connect(front.address).await.unwrap();
    socket.write_all(&bytes).await.unwrap();
    (socket, bytes)
}

#[tokio::test]
async fn spliced_bytes_are_those_that_were_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut front = Front::start(listener.local_addr().unwrap(), &pki(b"http/1.1"), 1).await;
    let (mut socket, sent) = hello(&front).await;
    let (mut provider, _) = soon(listener.accept()).await.unwrap();
    assert_eq!(read_bytes(&mut provider, sent.len()).await, sent);
    // Above the limit: closed without a byte.
    let (mut second, _) = hello(&front).await;
    assert_eq!(soon(read_all(&mut second)).await, "");
    assert!(matches!(soon(front.ends.recv()).await, Some(Err(SpliceError::Limit))));
    // A half-close passes, and the other half works on.
    socket.write_all(b"abc").await.unwrap();
    socket.shutdown().await.unwrap();
    assert_eq!(soon(read_all(&mut provider)).await, "abc");
    provider.write_all(b"def").await.unwrap();
    assert_eq!(read_bytes(&mut socket, 3).await, b"def");
    drop(provider);
    assert_eq!(soon(read_all(&mut socket)).await, "");
    let copied = soon(front.ends.recv()).await.unwrap().unwrap();
    assert_eq!((copied.from_client_bytes, copied.from_upstream_bytes), (sent.len() as u64 + 3, 3));
    assert_eq!(copied.end, CopyEnd::Complete);
}

#[tokio::test]
async fn idle_spliced_connection_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut front = Front::start(listener.local_addr().unwrap(), &pki(b"http/1.1"), 1).await;
    let (mut socket, sent) = hello(&front).await;
    let (mut provider, _) = soon(listener.accept()).await.unwrap();
    read_bytes(&mut provider, sent.len()).await;
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(290)).await;
    provider.write_all(b"x").await.unwrap();
    socket.read_exact(&mut [0]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(290)).await;
    assert!(front.ends.try_recv().is_err());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let copied = front.ends.recv().await.unwrap().unwrap();
    assert_eq!(copied.end, CopyEnd::Idle);
    assert_eq!(socket.read(&mut [0]).await.unwrap_or_default(), 0);
    assert_eq!(provider.read(&mut [0]).await.unwrap_or_default(), 0);
}

#[tokio::test]
async fn splicing_ends_at_the_drain_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut front = Front::start(listener.local_addr().unwrap(), &pki(b"http/1.1"), 1).await;
    let (mut socket, sent) = hello(&front).await;
    let (mut provider, _) = soon(listener.accept()).await.unwrap();
    read_bytes(&mut provider, sent.len()).await;
    front.drain.begin();
    provider.write_all(b"abc").await.unwrap();
    assert_eq!(read_bytes(&mut socket, 3).await, b"abc");
    front.drain.finish(Duration::ZERO).await;
    assert!(matches!(soon(front.ends.recv()).await, Some(Err(SpliceError::Cut))));
    assert_eq!(soon(read_all(&mut socket)).await, "");
}

#[tokio::test]
async fn splice_without_provider_closes_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut front = Front::start(listener.local_addr().unwrap(), &pki(b"http/1.1"), 1).await;
    drop(listener);
    let (mut socket, _) = hello(&front).await;
    assert_eq!(soon(read_all(&mut socket)).await, "");
    assert!(matches!(soon(front.ends.recv()).await, Some(Err(SpliceError::Connect(_)))));
    assert!(front.limiter.try_acquire(None).is_some());
}
