//! The main port with real sockets, TLS and time, and trust from a directory.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use leasemux::access::dir::DirTrust;
use leasemux::access::identity::IdentityFiles;
use leasemux::client::connect::{Client, Connector};
use leasemux::config::Target;
use leasemux::edge::server::Server;
use leasemux::edge::tls;
use leasemux::model::id::{Instance, LeaseId, Owner};
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{ServiceLogsRequest, ServiceLogsResponse};
use leasemux::model::time::LogTime;
use leasemux::sys::dir_watch::Notifier;
use rcgen::string::PrintableString;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};

use crate::support::gateway::{Gateway, proto_lease};
use crate::support::{account, reason, replica};

mod connection_limits;

/// Deadline that only a hang reaches.
const DEADLINE: Duration = Duration::from_secs(30);

/// A gateway with a real port.
struct TlsGateway {
    gateway: Gateway,
    port: u16,
    trust_dir: PathBuf,
    server_pem: PathBuf,
    dir: tempfile::TempDir,
}

/// A tenant with a lease of one running replica.
struct Tenant {
    identity: PathBuf,
    owner: Owner,
    lease: LeaseId,
    run: Instance,
}

impl TlsGateway {
    async fn new(limits: Limits) -> Self {
        Self::behind(&[], limits).await
    }

    /// Creates a gateway that trusts these proxies.
    async fn behind(proxies: &[&str], limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trust_dir = dir.path().join("trust");
        fs::create_dir(&trust_dir).unwrap();
        let trust = DirTrust::open(&trust_dir, &Notifier::start(), limits.trust_poll).await.unwrap();
        let gateway = Gateway::believing(Arc::new(trust), limits);
        let made = tls::ensure(&dir.path().join("data"), &[], SystemTime::now()).unwrap();
        let config = tls::server_config(single(tls::load(&made.certificate, &made.key).unwrap())).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxies = proxies.iter().map(|text| match text.parse() {
            Ok(network) => network,
            Err(_) => IpNet::from(text.parse::<IpAddr>().unwrap()),
        });
        let server = Server { trusted_proxies: proxies.collect(), ..gateway.server(Arc::new(config)) };
        gateway.drain.spawn(server.serve(listener));
        Self { gateway, port, trust_dir, server_pem: made.certificate, dir }
    }

    /// Creates a tenant that is not trusted yet.
    fn tenant(&self, name: &str) -> Tenant {
        let identity = self.dir.path().join(name);
        let owner = IdentityFiles::create(&identity, LogTime::now()).unwrap();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        self.gateway.platform.add_lease(&lease, &[("web", 1)]);
        let run = self.gateway.platform.start(&lease, &replica("web", 0));
        Tenant { identity, owner, lease, run }
    }

    /// Returns the tenant's file in the trust directory.
    fn file(&self, tenant: &Tenant) -> PathBuf {
        self.trust_dir.join(format!("{}.pem", tenant.owner))
    }

    fn trust(&self, tenant: &Tenant) {
        fs::copy(tenant.identity.join("cert.pem"), self.file(tenant)).unwrap();
    }

    /// Calls until the answer is not `refusal`: a new file takes a moment to be noticed.
    async fn open_when_not(
        &self,
        tenant: &Tenant,
        refusal: &str,
    ) -> Result<Streaming<ServiceLogsResponse>, Status> {
        let mut client = self.client(Some(&tenant.identity)).await;
        let answer = async {
            loop {
                match client.service_logs(tenant.request()).await {
                    Err(status) if reason(&status) == refusal => tokio::task::yield_now().await,
                    answer => return answer.map(tonic::Response::into_inner),
                }
            }
        };
        timeout(DEADLINE, answer).await.expect("the directory is read")
    }

    /// Connects the command line's client.
    async fn client(&self, identity: Option<&Path>) -> Client {
        let target = Target {
            gateway: format!("https://localhost:{}", self.port).parse().unwrap(),
            identity: identity.map(Path::to_owned),
            token: None,
            ca: Some(self.server_pem.clone()),
            insecure: false,
        };
        // `localhost` may resolve to ::1 first; the client then tries the other address.
        timeout(DEADLINE, Connector::new(&target).unwrap().connect()).await.unwrap().unwrap()
    }

    /// Connects with any certificate. The client's library does not check it.
    async fn handshake(&self, identity: Option<CertifiedKey>) -> TlsStream<TcpStream> {
        self.handshake_over(self.dial().await, identity).await.unwrap()
    }

    /// Completes the handshake on an open connection.
    async fn handshake_over(
        &self,
        socket: TcpStream,
        identity: Option<CertifiedKey>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.server_pem).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("mtls.localhost").unwrap();
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, socket);
        timeout(DEADLINE, handshake).await.unwrap()
    }

    /// Returns the refusal of a call with this certificate.
    async fn refusal(&self, identity: Option<CertifiedKey>) -> Status {
        call_over(self.handshake(identity).await).await
    }

    /// Opens a TCP connection.
    async fn dial(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }
}

/// Returns a resolver that always presents this certificate.
fn single(certified: CertifiedKey) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(certified))
}

/// Creates a client on this connection.
async fn client_over(stream: TlsStream<TcpStream>) -> LeaseRpcClient<Channel> {
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_: Uri| {
        std::future::ready(stream.take().ok_or_else(|| std::io::Error::other("one connection only")))
    });
    let endpoint = Endpoint::from_static("http://gateway");
    let connected = timeout(DEADLINE, endpoint.connect_with_connector(once)).await;
    LeaseRpcClient::new(connected.unwrap().unwrap())
}

/// Returns the refusal of a call on this connection.
async fn call_over(stream: TlsStream<TcpStream>) -> Status {
    let mut client = client_over(stream).await;
    let call = client.service_logs(ServiceLogsRequest::default());
    timeout(DEADLINE, call).await.unwrap().unwrap_err()
}

impl Tenant {
    fn request(&self) -> ServiceLogsRequest {
        let lease_id = Some(proto_lease(&self.lease));
        ServiceLogsRequest { lease_id, follow: true, ..ServiceLogsRequest::default() }
    }

    fn print(&self, gateway: &Gateway, text: &str) {
        gateway.platform.print(&self.run, [text.to_owned()]);
    }
}

/// Reads until the logs are `expected`.
async fn read(stream: &mut Streaming<ServiceLogsResponse>, expected: &str) {
    let mut text = Vec::new();
    while text.len() < expected.len() {
        let response = timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
        text.extend(response.services.into_iter().flat_map(|entry| entry.logs));
    }
    assert_eq!(String::from_utf8_lossy(&text), expected);
}

/// Reads to the end of the stream, and returns its status.
async fn end(stream: &mut Streaming<ServiceLogsResponse>) -> Status {
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    };
    timeout(DEADLINE, ended).await.expect("an end")
}

/// Creates a tenant certificate, changed by `change`.
fn shaped(change: impl FnOnce(&mut CertificateParams)) -> CertifiedKey {
    let mut params = CertificateParams::default();
    let name = PrintableString::try_from(account(1).as_str()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::PrintableString(name));
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2124, 1, 1);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).unwrap();
    CertifiedKey::new(vec![certificate.der().clone()], key)
}

fn extension(oid: &[u64], content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(true);
    extension
}

#[tokio::test]
async fn trust_changes_apply_to_calls_and_open_streams() {
    let server = TlsGateway::new(Limits::default()).await;
    let (removed, other) = (server.tenant("removed"), server.tenant("other"));
    removed.print(&server.gateway, "of the removed\n");
    other.print(&server.gateway, "of the other\n");
    let mut client = server.client(Some(&removed.identity)).await;
    let status = client.service_logs(removed.request()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_UNKNOWN".into()));

    server.trust(&removed);
    server.trust(&other);
    let mut left = server.open_when_not(&removed, "CERTIFICATE_UNKNOWN").await.unwrap();
    read(&mut left, "of the removed\n").await;
    // Also on the connection that was refused before: each call is authenticated.
    let mut again = client.service_logs(removed.request()).await.unwrap().into_inner();
    read(&mut again, "of the removed\n").await;
    let mut kept = server.open_when_not(&other, "CERTIFICATE_UNKNOWN").await.unwrap();
    read(&mut kept, "of the other\n").await;

    fs::remove_file(server.file(&removed)).unwrap();
    for stream in [&mut left, &mut again] {
        let status = end(stream).await;
        assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_WITHDRAWN".into()));
    }
    let status = client.service_logs(removed.request()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_UNKNOWN".into()));
    // The other tenant is not affected.
    other.print(&server.gateway, "more\n");
    read(&mut kept, "more\n").await;
    assert_eq!(server.gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 1);
}

#[tokio::test]
async fn forged_certificate_is_refused() {
    let server = TlsGateway::new(Limits::default()).await;
    let tenant = server.tenant("tenant");
    server.trust(&tenant);
    drop(server.open_when_not(&tenant, "CERTIFICATE_UNKNOWN").await.unwrap());
    // Any client can sign a certificate with the tenant's address and serial number.
    let genuine = CertificateDer::from_pem_file(tenant.identity.join("cert.pem")).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&genuine).unwrap();
    let serial = parsed.raw_serial().to_vec();
    let forged = shaped(|params| {
        let name = PrintableString::try_from(tenant.owner.as_str()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, DnValue::PrintableString(name));
        params.serial_number = Some(rcgen::SerialNumber::from(serial));
    });
    let key = Arc::clone(&forged.key);
    let status = server.refusal(Some(forged)).await;
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_DIFFERS".into()));
    // The genuine one without its key fails in the handshake: the client gets the alert at its first read.
    let mut stream = server.handshake(Some(CertifiedKey::new(vec![genuine], key))).await;
    let alert = timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap_err();
    assert!(alert.to_string().contains("DecryptError"), "{alert}");
}

#[tokio::test]
async fn client_without_certificate_gets_tls_1_3_and_http_2() {
    let server = TlsGateway::new(Limits::default()).await;
    let stream = server.handshake(None).await;
    assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    drop(stream);
    let status = server.refusal(None).await;
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CREDENTIALS_MISSING".into()));
    let tenant = server.tenant("tenant");
    let status = server.client(None).await.service_logs(tenant.request()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CREDENTIALS_MISSING".into()));
}

#[tokio::test]
async fn certificate_of_another_form_is_refused_by_status() {
    let server = TlsGateway::new(Limits::default()).await;
    // Akash's Go tools write this extension into a certificate with a host.
    let like_go = shaped(|params| {
        let permitted = [0x30, 0x11, 0xa0, 0x0f, 0x30, 0x0d, 0x82, 0x0b].as_slice();
        let constraints = extension(&[2, 5, 29, 30], &[permitted, b"example.com"].concat());
        params.custom_extensions = vec![constraints];
    });
    let chain = {
        let (first, second) = (shaped(|_| ()), shaped(|_| ()));
        CertifiedKey::new([first.cert, second.cert].concat(), first.key)
    };
    let not_an_address = shaped(|params| params.distinguished_name.push(DnType::CommonName, "somebody"));
    let cases = [
        (shaped(|_| ()), "CERTIFICATE_UNKNOWN"),
        (like_go, "CERTIFICATE_UNKNOWN"),
        (chain, "CERTIFICATE_CHAIN"),
        (not_an_address, "CERTIFICATE_SUBJECT"),
        (
            shaped(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "CERTIFICATE_USAGE",
        ),
        (
            shaped(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            "CERTIFICATE_UNKNOWN",
        ),
        (
            shaped(|params| {
                params.custom_extensions = vec![extension(&[1, 3, 6, 1, 4, 1, 99_999, 1], &[5, 0])];
            }),
            "CERTIFICATE_EXTENSION",
        ),
        (shaped(|params| params.not_after = rcgen::date_time_ymd(2025, 1, 1)), "CERTIFICATE_EXPIRED"),
        (shaped(|params| params.not_before = rcgen::date_time_ymd(2123, 1, 1)), "CERTIFICATE_NOT_YET_VALID"),
    ];
    for (identity, expected) in cases {
        let status = server.refusal(Some(identity)).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unauthenticated, expected),
            "{status:?}"
        );
    }
}

#[tokio::test]
async fn public_name_gets_its_own_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::new(Limits::default());
    let hosts = ["gw.example.com".to_owned()];
    let [own, public] =
        ["own", "public"].map(|name| tls::ensure(&dir.path().join(name), &hosts, SystemTime::now()).unwrap());
    let load = |made: &tls::Generated| tls::load(&made.certificate, &made.key).unwrap();
    let resolver = single(load(&public));
    let sni_configs = tls::SniConfigs::from(Arc::new(tls::server_config(single(load(&own))).unwrap()))
        .with_public(&hosts, Arc::new(tls::public_server_config(resolver).unwrap()));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    gateway.drain.spawn(gateway.server(sni_configs).serve(listener));
    let der = |made: &tls::Generated| CertificateDer::from_pem_file(&made.certificate).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(der(&own)).unwrap();
    roots.add(der(&public)).unwrap();
    for (name, expected, asked) in [
        ("gw.example.com", der(&public), false),
        ("GW.example.com", der(&public), false),
        ("mtls.gw.example.com", der(&own), true),
        ("localhost", der(&own), true),
        // Clients do not send an address as SNI.
        ("127.0.0.1", der(&own), true),
    ] {
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shaped(|_| ()))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let socket = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from(name).unwrap(), socket).await.unwrap();
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], expected, "{name}");
        let status = call_over(stream).await;
        let expected = if asked { "CERTIFICATE_UNKNOWN" } else { "CREDENTIALS_MISSING" };
        assert_eq!(reason(&status), expected, "{name}");
        // The text says where a certificate is requested.
        let hint = "a client certificate or a token is required; gw.example.com does not ask for a certificate: \
                    connect to mtls.gw.example.com to use one";
        assert_eq!(status.message() == hint, !asked, "{name}: {status:?}");
    }
}

/// A `ClientHello` of TLS 1.2: no session, one cipher suite (ECDHE-ECDSA-AES128-GCM), no compression, and one
/// extension (`signature_algorithms`: ECDSA with P-256 and SHA-256).
const HELLO_OF_TLS_1_2: &[u8] = include_bytes!("../vectors/client-hello-tls-1.2.bin");

#[tokio::test]
async fn older_tls_is_refused_by_an_alert() {
    let server = TlsGateway::new(Limits::default()).await;
    let mut socket = server.dial().await;
    socket.write_all(HELLO_OF_TLS_1_2).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
    let protocol_version = [21, 3, 3, 0, 2, 2, 70];
    assert_eq!(answer, protocol_version);
}

#[tokio::test]
async fn stalled_handshake_is_cut_and_delays_no_other() {
    let mut limits = Limits::default();
    limits.connection.handshake = Duration::from_millis(300);
    let server = TlsGateway::new(limits).await;
    let mut stalled = Vec::new();
    for sent in [0, 1, HELLO_OF_TLS_1_2.len() - 1] {
        let mut socket = server.dial().await;
        socket.write_all(&HELLO_OF_TLS_1_2[..sent]).await.unwrap();
        stalled.push(socket);
    }
    let completed = server.handshake(None).await;
    for mut socket in stalled {
        // An end, or a reset because of unread data.
        let ended = timeout(DEADLINE, socket.read(&mut [0; 64])).await.expect("a cut");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    // The limit applies to the handshake, not to the connection.
    drop(completed);
    let status = server.refusal(None).await;
    assert_eq!(reason(&status), "CREDENTIALS_MISSING");
}

#[tokio::test]
async fn drain_ends_streams_and_refuses_connections() {
    let server = TlsGateway::new(Limits::default()).await;
    let tenant = server.tenant("tenant");
    tenant.print(&server.gateway, "before the end\n");
    server.trust(&tenant);
    let mut stream = server.open_when_not(&tenant, "CERTIFICATE_UNKNOWN").await.unwrap();
    read(&mut stream, "before the end\n").await;
    let mut stalled = server.dial().await;
    let (in_time, status) = tokio::join!(server.gateway.drain.finish(DEADLINE), end(&mut stream));
    assert!(in_time, "neither a client that stays nor a stalled handshake delays the drain");
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".into()));
    assert!(matches!(timeout(DEADLINE, stalled.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
    assert!(TcpStream::connect(("127.0.0.1", server.port)).await.is_err(), "the port is closed");
}
