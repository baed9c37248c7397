//! Handshakes with real clients. Submodules test the stream.

mod http2;
mod pipe;
mod write_batching;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

use super::{Error, TlsStream, accept, ensure, load, server_config};

/// Deadline that only a hang reaches.
const DEADLINE: Duration = Duration::from_secs(30);

struct Server {
    config: Arc<ServerConfig>,
    roots: Arc<RootCertStore>,
}

fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let made = ensure(dir.path(), &[], SystemTime::now()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&made.certificate).unwrap()).unwrap();
    Server {
        config: Arc::new(
            server_config(Arc::new(SingleCertAndKey::from(load(&made.certificate, &made.key).unwrap())))
                .unwrap(),
        ),
        roots: Arc::new(roots),
    }
}

impl Server {
    fn client(&self) -> ClientConfig {
        self.client_of(aws_lc_rs::default_provider(), None)
    }

    fn client_of(&self, provider: CryptoProvider, identity: Option<CertifiedKey>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(Arc::clone(&self.roots));
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(identity));
                builder.with_client_cert_resolver(resolver)
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// Returns the results of both sides over a pipe of `capacity` bytes.
    async fn handshake(
        &self,
        client: ClientConfig,
        capacity: usize,
    ) -> (io::Result<TlsStream<DuplexStream>>, io::Result<ClientStream<DuplexStream>>) {
        let (near, far) = tokio::io::duplex(capacity);
        let name = ServerName::try_from("localhost").unwrap();
        let accepted = accept(Arc::clone(&self.config), near);
        let connected = TlsConnector::from(Arc::new(client)).connect(name, far);
        tokio::time::timeout(DEADLINE, async { tokio::join!(accepted, connected) }).await.unwrap()
    }

    async fn refused(&self, hello: &[u8]) -> (io::Error, Vec<u8>) {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(hello).await.unwrap();
        let refused = tokio::time::timeout(DEADLINE, accept(Arc::clone(&self.config), near)).await.unwrap();
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        (refused.unwrap_err(), answer)
    }
}

/// Creates a client certificate, changed by `shape`, and its key.
fn identity(shape: impl FnOnce(&mut CertificateParams)) -> CertifiedKey {
    let mut params = CertificateParams::new(vec![]).unwrap();
    shape(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).unwrap();
    CertifiedKey::new(vec![certificate.der().clone()], key)
}

#[tokio::test]
async fn client_without_certificate_is_accepted() {
    let server = server();
    let (accepted, connected) = server.handshake(server.client(), 4096).await;
    assert!(accepted.unwrap().peer_certificates().is_none());
    let client = connected.unwrap();
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(
        client.get_ref().1.negotiated_key_exchange_group().unwrap().name(),
        NamedGroup::X25519MLKEM768
    );
}

#[tokio::test]
async fn certificate_of_any_form_is_accepted_and_returned() {
    let server = server();
    let critical = |params: &mut CertificateParams| {
        let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        unknown.set_criticality(true);
        params.custom_extensions = vec![unknown];
    };
    let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    for identity in [identity(|_| ()), identity(critical), identity(expired)] {
        let shown = identity.cert.clone();
        let client = server.client_of(aws_lc_rs::default_provider(), Some(identity));
        let (accepted, connected) = server.handshake(client, 4096).await;
        assert_eq!(accepted.unwrap().peer_certificates(), Some(&shown[..]));
        connected.unwrap();
    }
}

#[tokio::test]
async fn certificate_without_its_key_is_refused() {
    let server = server();
    let stolen = CertifiedKey::new(identity(|_| ()).cert, identity(|_| ()).key);
    let client = server.client_of(aws_lc_rs::default_provider(), Some(stolen));
    let (accepted, connected) = server.handshake(client, 64 * 1024).await;
    let refusal = accepted.unwrap_err();
    assert_eq!(refusal.kind(), io::ErrorKind::InvalidData);
    assert!(refusal.to_string().contains("BadSignature"), "{refusal}");
    // In TLS 1.3 the client gets the alert at its first read.
    let alert = connected.unwrap().read(&mut [0]).await.unwrap_err();
    assert!(alert.to_string().contains("DecryptError"), "{alert}");
}

#[tokio::test]
async fn malformed_certificate_is_refused() {
    let server = server();
    let CertifiedKey { key, .. } = identity(|_| ());
    let nonsense = CertifiedKey::new(vec![CertificateDer::from(vec![0x30, 3, 1, 2, 3])], key);
    let client = server.client_of(aws_lc_rs::default_provider(), Some(nonsense));
    let (accepted, _) = server.handshake(client, 64 * 1024).await;
    assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn cipher_is_chosen_by_the_server() {
    let server = server();
    let (aes128, aes256, chacha) = (
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    );
    let cases =
        [(vec![chacha, aes256, aes128], aes128), (vec![chacha, aes256], aes256), (vec![chacha], chacha)];
    for (offered, chosen) in cases {
        let provider = CryptoProvider { cipher_suites: offered, ..aws_lc_rs::default_provider() };
        let (accepted, connected) = server.handshake(server.client_of(provider, None), 4096).await;
        accepted.unwrap();
        assert_eq!(connected.unwrap().get_ref().1.negotiated_cipher_suite(), Some(chosen));
    }
}

#[tokio::test]
async fn classical_key_exchange_is_accepted() {
    let server = server();
    let groups: [&'static dyn SupportedKxGroup; 2] = [kx_group::X25519, kx_group::SECP256R1];
    for group in groups {
        let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
        let (accepted, connected) = server.handshake(server.client_of(provider, None), 4096).await;
        accepted.unwrap();
        connected.unwrap();
    }
}

#[tokio::test]
async fn sessions_are_not_resumed() {
    let server = server();
    let client = server.client();
    for _ in 0..2 {
        let (accepted, connected) = server.handshake(client.clone(), 4096).await;
        accepted.unwrap().shutdown().await.unwrap();
        let mut client = connected.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn client_of_http_1_is_refused() {
    let server = server();
    let mut client = server.client();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (accepted, connected) = server.handshake(client, 4096).await;
    assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::InvalidData);
    connected.unwrap_err();
}

/// A `ClientHello` of TLS 1.2: no session, one cipher suite (ECDHE-ECDSA-AES128-GCM), no compression, and one
/// extension (`signature_algorithms`: ECDSA with P-256 and SHA-256).
const HELLO_OF_TLS_1_2: &[u8] = include_bytes!("../../../tests/vectors/client-hello-tls-1.2.bin");

#[tokio::test]
async fn tls_1_2_is_refused_with_an_alert() {
    let (error, answer) = server().refused(HELLO_OF_TLS_1_2).await;
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    let protocol_version = [21, 3, 3, 0, 2, 2, 70];
    assert_eq!(answer, protocol_version);
}

#[tokio::test]
async fn garbage_is_refused() {
    let server = server();
    let requests: [&[u8]; 3] =
        [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0xff; 1000]];
    for garbage in requests {
        let (error, _) = server.refused(garbage).await;
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}

#[tokio::test]
async fn closed_connection_is_an_unexpected_eof() {
    let server = server();
    for sent in [0, 20] {
        let (near, mut far) = tokio::io::duplex(4096);
        far.write_all(HELLO_OF_TLS_1_2.split_at(sent).0).await.unwrap();
        drop(far);
        let error = accept(Arc::clone(&server.config), near).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn errors_name_the_file_and_the_problem() {
    let dir = tempfile::tempdir().unwrap();
    let good = ensure(dir.path(), &[], SystemTime::now()).unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let missing = dir.path().join("missing.pem");
    let empty = file("empty.pem", "");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let encrypted = file("encrypted.pem", encrypted);
    let cut = file("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let nonsense = file("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let huge = file("huge.pem", &"x".repeat(2 * 1024 * 1024));
    let other = file("other.pem", &KeyPair::generate().unwrap().serialize_pem());
    let (certificate, key) = (&good.certificate, &good.key);
    let cases: [(&Path, &Path, &str); 10] = [
        (&missing, key, "cannot read {1}: No such file"),
        (certificate, &missing, "cannot read {2}: No such file"),
        (&empty, key, "{1}: there is no certificate in it"),
        (key, key, "{1}: there is no certificate in it"),
        (certificate, certificate, "{2}: there is no private key in it"),
        (certificate, &encrypted, "{2}: the private key is encrypted"),
        (&cut, key, "{1}: it is not well-formed PEM"),
        (&nonsense, key, "{1}: not a usable certificate"),
        (&huge, key, "cannot read {1}: larger than 1048576 bytes"),
        (certificate, &other, "the key in {2} does not belong to the certificate in {1}"),
    ];
    for (certificate, key, expected) in cases {
        let error: Error = load(certificate, key).unwrap_err();
        let expected =
            expected.replace("{1}", certificate.to_str().unwrap()).replace("{2}", key.to_str().unwrap());
        assert!(error.to_string().starts_with(&expected), "{error}\nis not\n{expected}");
    }
}
