//! The real program in front of a stand-in of the Akash provider, over real sockets.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use leasemux::access::identity::IdentityFiles;
use leasemux::edge::tls;
use leasemux::model::id::LeaseId;
use leasemux::model::proto::cert::State;
use rustix::process::Signal;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, block_in_place};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::server;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::account;
use crate::support::chain::Chain;
use crate::support::process::{Gateway, Workspace};
use crate::support::provider::{Identity, NAME, StandIn, noise, read_all, read_bytes, read_head, soon};

mod grpc;

/// The public host name of the gateway.
const PUBLIC: &str = "gateway.example";

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A connection at the provider.
type Served = server::TlsStream<TcpStream>;

/// A workspace with a certificate for [`PUBLIC`], and a tenant with a token.
struct Setup {
    workspace: Workspace,
    lease: LeaseId,
    token: String,
    public: CertificateDer<'static>,
}

/// A gateway in front of a provider.
struct Front {
    setup: Setup,
    gateway: Gateway,
    /// Clients trust this certificate beside the gateway's.
    provider: CertificateDer<'static>,
}

// === impl Setup ===

impl Setup {
    fn new() -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();
        let identity = workspace.path("alice").display().to_string();
        let token = workspace.run(&["token", "new", "--identity", &identity]).out.trim().to_owned();
        let public = workspace.path("public");
        tls::ensure(&public, &[PUBLIC.to_owned()], SystemTime::now()).unwrap();
        let public = CertificateDer::from_pem_file(public.join("server.pem")).unwrap();
        Self { workspace, lease, token, public }
    }

    /// Starts a gateway with the certificate for [`PUBLIC`] in front of the provider at `upstream`.
    fn serve(&self, upstream: SocketAddr, more: &[&str]) -> Gateway {
        let path = |name| self.workspace.path(name).display().to_string();
        let public = [
            format!("--ca-tls-cert={}", path("public/server.pem")),
            format!("--ca-tls-key={}", path("public/server.key.pem")),
            format!("--public-hostname={PUBLIC}"),
        ];
        let public: Vec<&str> = public.iter().map(String::as_str).collect();
        self.serve_with(upstream, &[&public, more].concat())
    }

    /// Starts a gateway in front of the provider at `upstream`.
    fn serve_with(&self, upstream: SocketAddr, more: &[&str]) -> Gateway {
        let script = "n=0; while :; do n=$((n+1)); echo \"line $n\"; sleep 0.05; done";
        let sdl = self.workspace.sdl("shop.yaml", &[("web", script, 1)]);
        let flags = [
            "--rest-listen=127.0.0.1:0".to_owned(),
            format!("--provider={}", self.lease.provider()),
            format!("--upstream-provider=https://{upstream}"),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        block_in_place(|| self.workspace.serve(&[(&self.lease, &sdl)], &[&flags, more].concat()))
    }
}

// === impl Front ===

impl Front {
    /// Starts a gateway that knows the provider by its host name and authority.
    fn start(provider: &StandIn, more: &[&str]) -> Self {
        let setup = Setup::new();
        let ca = provider.certificate.write(&setup.workspace.path("tmp"));
        let flags = [format!("--upstream-name={NAME}"), format!("--upstream-ca={}", ca.display())];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let gateway = setup.serve(provider.address, &[&flags, more].concat());
        Self { setup, gateway, provider: provider.certificate.der.clone() }
    }

    /// Waits until a metric has this value. The gateway may count only after it has answered.
    fn until_metric(&self, series: &str, wanted: u64) {
        block_in_place(|| self.gateway.until_metric(series, wanted));
    }

    /// Connects as a client that asks for this name.
    async fn connect(&self, name: &str, with_certificate: bool) -> TlsStream<TcpStream> {
        self.connect_to(self.gateway.rest(), name, with_certificate, b"http/1.1").await
    }

    /// Connects to a port as a client that asks for this name and offers this protocol.
    async fn connect_to(
        &self,
        port: SocketAddr,
        name: &str,
        with_certificate: bool,
        protocol: &[u8],
    ) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.setup.public.clone()).unwrap();
        roots.add(self.provider.clone()).unwrap();
        // The gateway's own certificate, of other names.
        roots.add_parsable_certificates(
            CertificateDer::from_pem_file(self.setup.workspace.path("data/server.pem")).ok(),
        );
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = if with_certificate {
            let identity = IdentityFiles::load(&self.setup.workspace.path("alice")).unwrap();
            let (chain, key) = identity.into_parts();
            builder.with_client_auth_cert(chain, key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        let socket = TcpStream::connect(port).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        soon(TlsConnector::from(Arc::new(config)).connect(name, socket)).await.unwrap()
    }

    /// Sends a request on a new connection for the public name. Returns the response whole.
    async fn exchange(&self, request: impl AsRef<[u8]>, with_certificate: bool) -> String {
        let mut io = self.connect(PUBLIC, with_certificate).await;
        io.write_all(request.as_ref()).await.unwrap();
        read_all(&mut io).await
    }

    /// Returns a request with the tenant's token.
    fn request(&self, line: &str, headers: &str) -> String {
        let token = &self.setup.token;
        format!("{line} HTTP/1.1\r\nHost: {PUBLIC}:8443\r\nAuthorization: Bearer {token}\r\n{headers}\r\n")
    }

    /// Returns a request without credentials.
    fn anonymous(line: &str) -> String {
        format!("{line} HTTP/1.1\r\nHost: {PUBLIC}\r\nConnection: close\r\n\r\n")
    }

    /// Reads the first log frame of the lease over a websocket.
    async fn first_frame(&self) -> String {
        let io = self.connect(PUBLIC, false).await;
        let url = format!("wss://{PUBLIC}/lease/7/1/1/logs?follow=true&services=web");
        let mut request = url.into_client_request().unwrap();
        let token = format!("Bearer {}", self.setup.token).parse().unwrap();
        request.headers_mut().insert("authorization", token);
        let (mut socket, _) = soon(Box::pin(tokio_tungstenite::client_async(request, io))).await.unwrap();
        loop {
            let message = soon(futures_util::StreamExt::next(&mut socket)).await.unwrap().unwrap();
            if message.is_text() && message.to_text().unwrap().contains("\"line ") {
                self.until_metric("leasemux_ws_streams{kind=\"logs\"}", 1);
                return message.into_text().unwrap().to_string();
            }
        }
    }
}

/// Returns the lines of a head, sorted, in lower case up to the colon of a header.
fn lines(head: &str) -> Vec<String> {
    let line = |line: &str| match line.split_once(": ") {
        Some((name, value)) => format!("{}: {value}", name.to_ascii_lowercase()),
        None => line.to_owned(),
    };
    let mut lines: Vec<String> = head.trim_end().split("\r\n").map(line).collect();
    lines[1..].sort();
    lines
}

/// Responds to one request, and closes. The client may close before it sends one.
async fn respond(mut io: Served, response: &str) {
    if has_request(&mut io).await {
        io.write_all(response.as_bytes()).await.unwrap();
        io.shutdown().await.unwrap();
    }
}

/// Reads the head of a request. Returns whether there was one before the end.
async fn has_request(io: &mut Served) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match soon(io.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    true
}

/// A provider that must not get a connection.
async fn unused() -> StandIn {
    StandIn::start(|_| async { panic!("a connection to the provider") }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_reaches_the_provider_byte_for_byte() {
    let body = noise(300_000);
    let (sent, (heads, mut received)) = (body.clone(), tokio::sync::mpsc::channel(8));
    let provider = StandIn::start(move |mut io| {
        let (sent, heads) = (sent.clone(), heads.clone());
        async move {
            assert!(io.get_ref().1.peer_certificates().is_none());
            let head = read_head(&mut io).await;
            let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
            let body = if is_chunked { read_chunked(&mut io).await } else { read_bytes(&mut io, sent.len()).await };
            assert!(body == sent);
            heads.send(head).await.unwrap();
            io.write_all(b"HTTP/1.1 422 Unprocessable Entity\r\nX-Provider: yes\r\nContent-Length: 17\r\n\r\ninvalid manifest\n")
                .await
                .unwrap();
        }
    })
    .await;
    let front = Front::start(&provider, &[]);
    let line = "PUT /deployment/7/manifest?a=%2F..&b";
    let head = front.request(
        line,
        &format!(
            "Content-Type: application/json; charset=UTF-8\r\nContent-Length: {}\r\nConnection: close\r\n",
            body.len()
        ),
    );
    let response = front.exchange([head.as_bytes(), &body].concat(), false).await;
    assert!(response.starts_with("HTTP/1.1 422 Unprocessable Entity\r\n"), "{response}");
    assert!(response.contains("x-provider: yes\r\n") && response.ends_with("\r\n\r\ninvalid manifest\n"));
    let expected = [
        format!("{line} HTTP/1.1"),
        format!("authorization: Bearer {}", front.setup.token),
        format!("content-length: {}", body.len()),
        "content-type: application/json; charset=UTF-8".to_owned(),
        format!("host: {PUBLIC}:8443"),
    ];
    assert_eq!(lines(&soon(received.recv()).await.unwrap()), expected);

    // Slowly, in chunks, after a question.
    let head =
        front.request(line, "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close\r\n");
    let mut io = front.connect(PUBLIC, false).await;
    io.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut io).await, "HTTP/1.1 100 Continue\r\n\r\n");
    for part in body.chunks(100_000) {
        io.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await.unwrap();
        io.write_all(&[part, b"\r\n"].concat()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    io.write_all(b"0\r\n\r\n").await.unwrap();
    let response = read_all(&mut io).await;
    assert!(response.starts_with("HTTP/1.1 422 "), "{response}");
    assert!(soon(received.recv()).await.unwrap().contains(&format!("Bearer {}\r\n", front.setup.token)));
    let manifest = "{route=\"/deployment/{dseq}/manifest\"}";
    front.until_metric(&format!("leasemux_rest_upstream_seconds_count{manifest}"), 2);
}

/// Reads a body of chunks.
async fn read_chunked(io: &mut Served) -> Vec<u8> {
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

#[tokio::test(flavor = "multi_thread")]
async fn shell_frames_pass_both_ways_unchanged() {
    let provider = StandIn::start(|mut io| async move {
        let head = read_head(&mut io).await;
        assert!(
            head.starts_with("GET /lease/7/1/1/shell?cmd0=sh&tty=1&stdin=1&service=web&podIndex=0 "),
            "{head}"
        );
        io.write_all([SWITCHED.as_bytes(), b"\x82\x06dfirst"].concat().as_slice()).await.unwrap();
        let (mut read, mut write) = tokio::io::split(io);
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await;
    let front = Front::start(&provider, &[]);
    let mut io = front.connect(PUBLIC, false).await;
    let line = "GET /lease/7/1/1/shell?cmd0=sh&tty=1&stdin=1&service=web&podIndex=0";
    io.write_all(front.request(line, WEBSOCKET).as_bytes()).await.unwrap();
    let head = read_head(&mut io).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert_eq!(read_bytes(&mut io, 8).await, b"\x82\x06dfirst");
    front.until_metric("leasemux_passthrough_connections", 1);
    for frame in [&b"\x82\x85maskabcde"[..], b"\r\n\r\nPUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"] {
        io.write_all(frame).await.unwrap();
        assert_eq!(read_bytes(&mut io, frame.len()).await, frame);
    }
    let large = noise(1_000_000);
    let (mut read, mut write) = tokio::io::split(io);
    let (sent, received) = tokio::join!(write.write_all(&large), read_bytes(&mut read, large.len()));
    sent.unwrap();
    assert!(received == large);
    write.shutdown().await.unwrap();
    assert_eq!(read_all(&mut read).await, "");
    front.until_metric("leasemux_passthrough_connections", 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_open_routes_get_the_providers_response() {
    let provider = StandIn::start(|mut io| async move {
        let head = read_head(&mut io).await;
        let line = head.split("\r\n").next().unwrap().to_owned();
        let response = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{line}", line.len());
        io.write_all(response.as_bytes()).await.unwrap();
    })
    .await;
    let front = Front::start(&provider, &[]);
    for line in [
        "GET /validate",
        "POST /lease/7/1/1/attestation/quote?nonce=1",
        "GET /lease/7/1/1/../status",
        "GET /lease%2F7/1/1/status",
        "GET //status",
        "OPTIONS /status",
        "GET /status",
        "GET /version",
        "GET /address",
    ] {
        let response = front.exchange(Front::anonymous(line), false).await;
        assert!(
            response.starts_with("HTTP/1.1 404 ") && response.ends_with(&format!("{line} HTTP/1.1")),
            "{response}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_never_reach_the_provider() {
    let provider = unused().await;
    let front = Front::start(&provider, &[]);
    for headers in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "X: a\nY: b\r\nContent-Length : 3\r\n",
    ] {
        let request = front.request("PUT /deployment/7/manifest", headers);
        let response = front.exchange(format!("{request}0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"), false).await;
        assert!(response.starts_with("HTTP/1.1 400 "), "{headers}: {response}");
        assert_eq!(response.matches("HTTP/1.1").count(), 1, "{response}");
    }
    let response =
        front.exchange(front.request("GET https://other.example/", "Connection: close\r\n"), false).await;
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    assert_eq!(provider.accepted(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_spliced_with_their_certificate() {
    let (certificates, mut received) = tokio::sync::mpsc::channel(8);
    let provider = StandIn::start(move |io| {
        let certificates = certificates.clone();
        async move {
            let session = io.get_ref().1;
            let presented = session.peer_certificates().map(|chain| chain[0].clone());
            certificates.send((session.server_name().map(str::to_owned), presented)).await.unwrap();
            let (mut read, mut write) = tokio::io::split(io);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
    })
    .await;
    let front = Front::start(&provider, &[]);
    let own = CertificateDer::from_pem_file(front.setup.workspace.path("alice/cert.pem")).unwrap();
    let mut io = front.connect(NAME, true).await;
    assert_eq!(soon(received.recv()).await.unwrap(), (Some(NAME.to_owned()), Some(own)));
    front.until_metric("leasemux_passthrough_connections", 1);
    let bytes = noise(200_000);
    io.write_all(&bytes).await.unwrap();
    assert!(read_bytes(&mut io, bytes.len()).await == bytes);
    io.shutdown().await.unwrap();
    assert_eq!(read_all(&mut io).await, "");
    front.until_metric("leasemux_passthrough_connections", 0);

    // With the provider down, the client sees the end of the connection.
    provider.stop().await;
    let mut socket = TcpStream::connect(front.gateway.rest()).await.unwrap();
    socket.write_all(&client_hello()).await.unwrap();
    assert_eq!(read_all(&mut socket).await, "");
    front.until_metric("leasemux_rest_upstream_failures_total{reason=\"connect\"}", 1);
}

/// Returns the first bytes of a client without a server name.
fn client_hello() -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = false;
    let name = ServerName::try_from("none.example").unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn native_routes_work_while_the_provider_is_down() {
    let provider = unused().await;
    let front = Front::start(&provider, &[]);
    provider.stop().await;
    let get = |path| front.request(&format!("GET {path}"), "Connection: close\r\n");
    for path in ["/lease/7/1/1/status", "/lease/7/1/1/service/web/status"] {
        let response = front.exchange(get(path), false).await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.contains("\"web\""), "{response}");
    }
    let frame = Box::pin(front.first_frame()).await;
    assert!(frame.starts_with("{\"name\":\"web-0\",\"message\":\"line "), "{frame}");
    front.until_metric("leasemux_ws_streams{kind=\"logs\"}", 0);
    for series in [
        "leasemux_rest_requests_total{route=\"/lease/{dseq}/{gseq}/{oseq}/status\",code=\"2xx\"}",
        "leasemux_rest_requests_total{route=\"/lease/{dseq}/{gseq}/{oseq}/logs\",code=\"1xx\"}",
        "leasemux_rest_filter_total{spelling=\"services\"}",
        "leasemux_ws_streams_ended_total{kind=\"logs\",end=\"client\"}",
    ] {
        front.until_metric(series, 1);
    }
    let response = front.exchange(get("/lease/7/1/1/manifest"), false).await;
    assert!(response.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{response}");
    assert!(
        response.ends_with("\r\n\r\nthe provider behind this gateway cannot be reached; try again later\n"),
        "{response}"
    );
    front.until_metric("leasemux_rest_upstream_failures_total{reason=\"connect\"}", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_alone_reads_but_is_not_forwarded() {
    let provider = StandIn::start(|io| {
        respond(io, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    })
    .await;
    let front = Front::start(&provider, &[]);
    let response = front.exchange(Front::anonymous("GET /lease/7/1/1/status"), true).await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.contains("\"web\""), "{response}");
    for line in ["GET /lease/7/1/1/manifest", "PUT /deployment/7/manifest", "GET /unknown"] {
        let response = front.exchange(Front::anonymous(line), true).await;
        assert!(response.starts_with("HTTP/1.1 501 "), "{line}: {response}");
        assert!(response.ends_with("\r\n\r\nthis route needs a token on this gateway\n"), "{response}");
    }
    // Events are served here then. The request is no websocket handshake.
    let response = front.exchange(Front::anonymous("GET /lease/7/1/1/kubeevents?follow=true"), true).await;
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("websocket"), "{response}");
    assert_eq!(provider.accepted(), 0);
    // Open routes need no credentials. With a token, the certificate does not matter.
    let token = |path| front.request(&format!("GET /lease/7/1/1/{path}"), "Connection: close\r\n");
    for request in [Front::anonymous("GET /status"), token("manifest"), token("kubeevents?follow=true")] {
        let response = front.exchange(request, true).await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("\r\n\r\n{}"), "{response}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminate_needs_no_public_certificate() {
    let provider = StandIn::start(|io| {
        respond(io, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    })
    .await;
    let setup = Setup::new();
    let ca = provider.certificate.write(&setup.workspace.path("tmp"));
    let gateway = setup.serve_with(
        provider.address,
        &[
            "--rest-mtls=terminate",
            &format!("--public-hostname={PUBLIC}"),
            &format!("--upstream-name={NAME}"),
            &format!("--upstream-ca={}", ca.display()),
        ],
    );
    let front = Front { setup, gateway, provider: provider.certificate.der.clone() };
    let response = front.exchange(Front::anonymous("GET /lease/7/1/1/status"), true).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let response = front.exchange(Front::anonymous("PUT /deployment/7/manifest"), true).await;
    assert!(response.starts_with("HTTP/1.1 501 "), "{response}");
    let with_token = front.request("GET /lease/7/1/1/manifest", "Connection: close\r\n");
    let response = front.exchange(&with_token, false).await;
    assert!(response.ends_with("\r\n\r\n{}"), "{response}");
    // The provider would see the token only. Without a certificate of an authority, neither counts.
    let response = front.exchange(&with_token, true).await;
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("auth: ambiguous"), "{response}");
    assert_eq!(provider.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_requests_of_one_peer_are_limited() {
    let provider = StandIn::start(|mut io| async move {
        while has_request(&mut io).await {
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let front = Front::start(&provider, &["--forwarded-per-second=1"]);
    let mut io = front.connect(PUBLIC, false).await;
    let request = format!("GET /status HTTP/1.1\r\nHost: {PUBLIC}\r\n\r\n");
    // The burst, and some that became due meanwhile.
    for count in 1.. {
        io.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut io).await;
        if head.starts_with("HTTP/1.1 429 ") {
            assert!(count > 256 && head.contains("retry-after: 1\r\n"), "{count}: {head}");
            break;
        }
        assert!(count < 1_000 && head.starts_with("HTTP/1.1 200 "), "{count}: {head}");
    }
    front.until_metric("leasemux_quota_refusals_total{quota=\"forwarded_rate_per_peer\"}", 1);
    // Requests that are served here have other limits.
    let response =
        front.exchange(front.request("GET /lease/7/1/1/status", "Connection: close\r\n"), false).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_peer_cannot_have_all_spliced_connections() {
    let provider = unused().await;
    let front = Front::start(&provider, &[]);
    let hello = client_hello();
    let mut open = Vec::new();
    for _ in 0..256 {
        let mut socket = TcpStream::connect(front.gateway.rest()).await.unwrap();
        socket.write_all(&hello).await.unwrap();
        open.push(socket);
    }
    front.until_metric("leasemux_passthrough_connections", 256);
    let mut socket = TcpStream::connect(front.gateway.rest()).await.unwrap();
    socket.write_all(&hello).await.unwrap();
    assert_eq!(read_all(&mut socket).await, "");
    front.until_metric("leasemux_rest_upstream_failures_total{reason=\"busy\"}", 1);
    drop(open);
    front.until_metric("leasemux_passthrough_connections", 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_is_trusted_by_its_certificate_on_the_chain() {
    let certificate = Identity::of_account(account(200).as_str());
    let pem = certificate.pem.clone();
    let provider = StandIn::with(certificate, |io| {
        respond(io, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    })
    .await;
    let chain = Chain::default();
    let node = chain.node(None).await;
    let setup = Setup::new();
    let chain_grpc = format!("--chain-grpc=http://{}", node.address);
    let gateway = setup.serve(provider.address, &[&chain_grpc]);
    let front = Front { setup, gateway, provider: provider.certificate.der.clone() };
    let response = front.exchange(Front::anonymous("GET /status"), false).await;
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    front.until_metric("leasemux_rest_upstream_failures_total{reason=\"certificate\"}", 1);
    chain.publish(front.setup.lease.provider(), &pem, State::Valid);
    // A negative answer is used for some seconds.
    let published = async {
        loop {
            let response = front.exchange(Front::anonymous("GET /status"), false).await;
            if response.starts_with("HTTP/1.1 200 ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    soon(published).await;
}

#[test]
fn passthrough_needs_a_certificate_of_an_authority() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
    let mut args = workspace.serve_args(&[(&lease, &sdl)]);
    let provider = format!("--provider={}", lease.provider());
    args.extend([provider, "--rest-listen=127.0.0.1:0".to_owned()]);
    let check = |more: &[&str]| {
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let done = workspace.run(&[&args[..], &["--check"]].concat());
        (done.status.code(), done.err)
    };
    let upstream = "--upstream-provider=https://127.0.0.1:8443";
    assert_eq!(check(&["--rest-events=native"]).0, Some(0));
    assert_eq!(check(&["--rest-events=synthetic"]).0, Some(0));
    let (code, err) = check(&[upstream]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("--ca-tls-cert") && err.contains("or set --rest-mtls terminate"), "{err}");
    assert_eq!(check(&[upstream, "--rest-mtls=terminate"]).0, Some(0));
    // The port of the draft has no such connections.
    assert_eq!(check(&["--upstream-grpc=https://a.example:8444", "--upstream-name=a.example"]).0, Some(0));
    for (flags, wanted) in [
        (&["--rest-mtls=passthrough"][..], "--upstream-provider"),
        (&["--upstream-name=a.example"], "--upstream-provider"),
        (&["--rest-events=upstream"], "--upstream-provider"),
        (
            &["--published-listen=127.0.0.1:0", "--upstream-grpc=https://a:8444"],
            "or set --published-mtls terminate",
        ),
        (&["--published-listen=127.0.0.1:0", "--published-mtls=passthrough"], "--upstream-grpc"),
        (&["--published-mtls=terminate"], "--published-listen"),
        (&["--upstream-grpc=a:8444"], "https://host:port"),
        (&["--upstream-provider=http://127.0.0.1:8443"], "https://host:port"),
    ] {
        let (code, err) = check(flags);
        assert!(code == Some(2) && err.contains(wanted), "{flags:?}: {err}");
    }
}

/// REST and admin port of a gateway, and whether it is ready.
type Target = (parking_lot::Mutex<(SocketAddr, SocketAddr)>, AtomicBool);

/// A balancer that sends each new connection to a gateway whose readiness was reported last, as a Kubernetes
/// service does.
struct Balancer {
    address: SocketAddr,
    gateways: Vec<Arc<Target>>,
    _running: JoinSet<()>,
}

impl Balancer {
    async fn start(gateways: &[&Gateway]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ports = |gateway: &&Gateway| {
            Arc::new((parking_lot::Mutex::new((gateway.rest(), gateway.admin)), AtomicBool::new(true)))
        };
        let gateways: Vec<_> = gateways.iter().map(ports).collect();
        let mut running = JoinSet::new();
        for gateway in gateways.clone() {
            running.spawn(async move {
                loop {
                    let admin = gateway.0.lock().1;
                    gateway.1.store(is_ready(admin).await, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
        let targets = gateways.clone();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            for turn in 0.. {
                let (mut client, _) = listener.accept().await.unwrap();
                let ready: Vec<_> = targets.iter().filter(|one| one.1.load(Ordering::SeqCst)).collect();
                let rest = ready[turn % ready.len()].0.lock().0;
                connections.spawn(async move {
                    // A refused connection resets the client's.
                    if let Ok(mut gateway) = TcpStream::connect(rest).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                    }
                });
            }
        });
        Self { address, gateways, _running: running }
    }

    /// Replaces a gateway by its successor.
    fn replace(&self, index: usize, gateway: &Gateway) {
        *self.gateways[index].0.lock() = (gateway.rest(), gateway.admin);
    }

    async fn until_ready(&self, index: usize) {
        soon(async {
            while !self.gateways[index].1.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

async fn is_ready(admin: SocketAddr) -> bool {
    let Ok(mut socket) = TcpStream::connect(admin).await else { return false };
    let mut answer = String::new();
    let asked = socket.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\n\r\n").await;
    asked.is_ok() && socket.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 200 ")
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_of_two_gateways_refuses_no_connection() {
    let provider = StandIn::start(|io| {
        respond(io, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    })
    .await;
    let flags = ["--lame-duck=1s", "--forwarded-per-second=0", "--drain-timeout=5s"];
    let mut fronts = vec![Front::start(&provider, &flags), Front::start(&provider, &flags)];
    let balancer = Balancer::start(&[&fronts[0].gateway, &fronts[1].gateway]).await;
    // A caller that opens one connection after the other, and trusts both gateways.
    let mut roots = RootCertStore::empty();
    for front in &fronts {
        roots.add(front.setup.public.clone()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (tls, address) = (TlsConnector::from(Arc::new(config)), balancer.address);
    let (served, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, is_done) = (Arc::clone(&served), Arc::clone(&done));
    let mut caller = JoinSet::new();
    caller.spawn(async move {
        while !is_done.load(Ordering::SeqCst) {
            let socket = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from(PUBLIC).unwrap();
            let mut io = soon(tls.connect(name, socket)).await.expect("a handshake");
            io.write_all(Front::anonymous("GET /status").as_bytes()).await.unwrap();
            let response = read_all(&mut io).await;
            assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    for index in 0..2 {
        let Front { setup, gateway, provider: certificate } = fronts.remove(0);
        let stopped = block_in_place(|| gateway.stop(Signal::TERM));
        assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
        let before = served.load(Ordering::SeqCst);
        soon(async {
            while served.load(Ordering::SeqCst) < before + 5 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let ca = provider.certificate.write(&setup.workspace.path("tmp"));
        let gateway = setup.serve(
            provider.address,
            &[
                &[&*format!("--upstream-name={NAME}"), &*format!("--upstream-ca={}", ca.display())],
                &flags[..],
            ]
            .concat(),
        );
        balancer.replace(index, &gateway);
        balancer.until_ready(index).await;
        fronts.push(Front { setup, gateway, provider: certificate });
    }
    done.store(true, Ordering::SeqCst);
    soon(caller.join_next()).await.unwrap().unwrap();
    assert!(served.load(Ordering::SeqCst) > 20);
}
