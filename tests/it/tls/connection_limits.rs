//! Limits of connections: in total, per peer, and of peers with failures.

use std::net::SocketAddr;

use leasemux::model::limits::QuotaLimits;

use super::*;

/// Returns whether the gateway has closed this connection without an answer.
async fn is_closed(mut socket: TcpStream) -> bool {
    // The write may fail if the connection is already closed.
    let _ = socket.write_all(HELLO_OF_TLS_1_2).await;
    let read = timeout(DEADLINE, socket.read(&mut [0; 64])).await.expect("closed, or answered");
    !matches!(read, Ok(1..))
}

/// Returns a PROXY protocol header, version 2, for a connection from this address.
fn header(from: &str) -> Vec<u8> {
    let to = SocketAddr::from(([127, 0, 0, 1], 443));
    let (family, addresses) = match from.parse().unwrap() {
        SocketAddr::V4(from) => (0x11, [from.ip().octets(), [127, 0, 0, 1]].concat()),
        SocketAddr::V6(from) => (0x21, [from.ip().octets(), [0; 16]].concat()),
    };
    let from: SocketAddr = from.parse().unwrap();
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    header.extend([family, 0, u8::try_from(addresses.len() + 4).unwrap()]);
    header.extend(addresses);
    header.extend(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header
}

impl TlsGateway {
    fn rejected(&self, reason: &str) -> u64 {
        self.gateway.metric(&format!("leasemux_connections_refused_total{{reason=\"{reason}\"}}"))
    }

    /// Opens a connection through a proxy that sends this header.
    async fn dial_through(&self, header: &[u8]) -> TcpStream {
        let mut socket = self.dial().await;
        socket.write_all(header).await.unwrap();
        socket
    }

    async fn is_open_through(&self, header: &[u8]) -> TlsStream<TcpStream> {
        let socket = self.dial_through(header).await;
        self.handshake_over(socket, None).await.expect("a handshake")
    }
}

#[tokio::test]
async fn connections_over_the_peer_limit_are_closed() {
    let mut limits = Limits::default();
    limits.connection.max_per_peer = 2;
    let server = TlsGateway::new(limits).await;
    let first = server.handshake(None).await;
    let _second = server.handshake(None).await;
    for _ in 0..3 {
        assert!(is_closed(server.dial().await).await);
    }
    assert_eq!((server.rejected("peer_limit"), server.rejected("limit")), (3, 0));
    drop(first);
    // The gateway notices the end after a moment.
    let again = async { while is_closed(server.dial().await).await {} };
    timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn connections_over_the_total_limit_are_closed() {
    let mut limits = Limits::default();
    limits.connection.max = 1;
    let server = TlsGateway::new(limits).await;
    let first = server.handshake(None).await;
    assert!(is_closed(server.dial().await).await);
    assert_eq!((server.rejected("limit"), server.rejected("peer_limit")), (1, 0));
    drop(first);
    let again = async { while is_closed(server.dial().await).await {} };
    timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn peers_of_a_trusted_proxy_count_by_real_address() {
    let mut limits = Limits::default();
    limits.connection.max_per_peer = 1;
    let server = TlsGateway::behind(&["127.0.0.0/8"], limits).await;
    let _first = server.is_open_through(&header("192.0.2.1:1000")).await;
    assert!(is_closed(server.dial_through(&header("192.0.2.1:2000")).await).await);
    let _other = server.is_open_through(&header("192.0.2.2:1000")).await;
    let _sixth = server.is_open_through(&header("[2001:db8:0:1::1]:1000")).await;
    // An IPv6 network is one peer.
    assert!(is_closed(server.dial_through(&header("[2001:db8:0:1:a:b:c:d]:1000")).await).await);
    let _next = server.is_open_through(&header("[2001:db8:0:2::1]:1000")).await;
    assert_eq!((server.rejected("peer_limit"), server.rejected("proxy")), (2, 0));
    // A health check of the proxy itself.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    let _health_check = server.is_open_through(local).await;
}

#[tokio::test]
async fn trusted_proxy_must_send_a_header() {
    let server = TlsGateway::behind(&["127.0.0.1"], Limits::default()).await;
    let v1 = b"PROXY TCP4 192.0.2.1 127.0.0.1 1000 443\r\n";
    for first in [&v1[..], HELLO_OF_TLS_1_2, b"GET / HTTP/1.1\r\n\r\n"] {
        assert!(is_closed(server.dial_through(first).await).await);
    }
    assert_eq!(server.rejected("proxy"), 3);
    let tenant = server.tenant("tenant");
    server.trust(&tenant);
    drop(server.is_open_through(&header("192.0.2.1:1000")).await);
}

#[tokio::test]
async fn header_of_an_untrusted_peer_is_an_error() {
    for server in [
        TlsGateway::new(Limits::default()).await,
        TlsGateway::behind(&["192.0.2.0/24", "::1"], Limits::default()).await,
    ] {
        let socket = server.dial_through(&header("192.0.2.1:1000")).await;
        // TLS fails.
        assert!(server.handshake_over(socket, None).await.is_err());
        assert_eq!(server.rejected("proxy"), 0);
        drop(server.handshake(None).await);
    }
}

#[tokio::test]
async fn peer_that_breaks_handshakes_is_closed_before_them() {
    let mut limits = Limits::default();
    limits.quota.auth_failures_per_minute = 5;
    let server = TlsGateway::behind(&["127.0.0.1"], limits).await;
    let bad = header("192.0.2.1:1000");
    timeout(DEADLINE, server.break_handshakes_until_rejected(&bad)).await.unwrap();
    let socket = server.dial_through(&bad).await;
    assert!(server.is_shut_out(socket, None).await, "also for a valid handshake");
    drop(server.is_open_through(&header("192.0.2.2:1000")).await);
    // Those within the limit, and those in which the peer could present a certificate.
    let failed = server.gateway.metric("leasemux_tls_handshakes_total{result=\"failed\"}");
    assert!((5..5 + 20 + SLOW_MACHINE).contains(&failed), "{failed}");
}

/// Further handshakes of a shut-out peer, at five a second for the whole deadline.
const SLOW_MACHINE: u64 = 5 * DEADLINE.as_secs();

impl TlsGateway {
    /// Breaks handshakes until the peer is shut out and has used up its handshakes.
    async fn break_handshakes_until_rejected(&self, from: &[u8]) {
        while self.rejected("auth_failures") == 0 {
            let mut socket = self.dial_through(from).await;
            let _ = socket.write_all(HELLO_OF_TLS_1_2).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    }

    /// Breaks `times` handshakes.
    async fn break_handshakes(&self, from: &[u8], times: usize) {
        for _ in 0..times {
            let mut socket = self.dial_through(from).await;
            let _ = socket.write_all(HELLO_OF_TLS_1_2).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    }

    /// Returns whether the gateway closes this connection before HTTP/2 starts.
    async fn is_shut_out(&self, socket: TcpStream, identity: Option<CertifiedKey>) -> bool {
        match self.handshake_over(socket, identity).await {
            Err(_) => true,
            // Otherwise its SETTINGS arrive first.
            Ok(mut stream) => {
                let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
                let read = timeout(DEADLINE, stream.read(&mut [0; 64])).await.expect("closed, or answered");
                !matches!(read, Ok(1..))
            }
        }
    }
}

/// Returns the certificate and key of a tenant.
fn identity_of(tenant: &Tenant) -> CertifiedKey {
    let (chain, key) = IdentityFiles::load(&tenant.identity).unwrap().into_parts();
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).unwrap();
    CertifiedKey::new(chain, key)
}

#[tokio::test]
async fn trusted_certificate_is_accepted_from_shut_out_peer() {
    let mut limits = Limits::default();
    limits.quota.auth_failures_per_minute = 5;
    let server = TlsGateway::behind(&["127.0.0.1"], limits).await;
    let (tenant, stranger) = (server.tenant("tenant"), server.tenant("stranger"));
    tenant.print(&server.gateway, "a line\n");
    server.trust(&tenant);
    // Trusted when the directory has been read.
    let known = async {
        loop {
            let socket = server.dial_through(&header("192.0.2.2:1000")).await;
            let stream = server.handshake_over(socket, Some(identity_of(&tenant))).await.unwrap();
            if client_over(stream).await.service_logs(tenant.request()).await.is_ok() {
                return;
            }
        }
    };
    timeout(DEADLINE, known).await.unwrap();
    let shut_out = header("192.0.2.1:1000");
    server.break_handshakes(&shut_out, 5).await;
    for (kind, identity) in [
        ("none", None),
        ("unknown", Some(identity_of(&stranger))),
        ("of another form", Some(shaped(|params| params.is_ca = IsCa::NoCa))),
    ] {
        let socket = server.dial_through(&shut_out).await;
        assert!(server.is_shut_out(socket, identity).await, "{kind}");
    }
    // Checked before the flood below: a slow handshake of the flood may also be closed because the peer is
    // shut out.
    let closed = "leasemux_connections_closed_total{reason=\"shut_out\"}";
    server.gateway.eventually(|gateway| gateway.metric(closed) >= 3).await;
    assert_eq!(server.gateway.metric(closed), 3);
    // The tenant at the same address is accepted.
    for _ in 0..3 {
        let socket = server.dial_through(&shut_out).await;
        let stream = server.handshake_over(socket, Some(identity_of(&tenant))).await.unwrap();
        let mut client = client_over(stream).await;
        let mut logs = client.service_logs(tenant.request()).await.unwrap().into_inner();
        read(&mut logs, "a line\n").await;
    }
    // A flood of handshakes is still rejected.
    timeout(DEADLINE, server.break_handshakes_until_rejected(&shut_out)).await.unwrap();
}

#[tokio::test]
async fn floods_of_control_frames_shut_a_peer_out() {
    let quota = QuotaLimits { auth_failures_per_minute: 2, ..QuotaLimits::default() };
    let server = TlsGateway::new(Limits { quota, ..Limits::default() }).await;
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..];
    let ping = &b"\0\0\x08\x06\0\0\0\0\0leasemux"[..];
    for _ in 0..2 {
        let (mut from, mut to) = tokio::io::split(server.handshake(None).await);
        let flood = async {
            to.write_all(preface).await.unwrap();
            let pings = ping.repeat(100);
            while to.write_all(&pings).await.is_ok() {}
        };
        let mut answers = [0; 4096];
        let answered = async { while matches!(from.read(&mut answers).await, Ok(1..)) {} };
        timeout(DEADLINE, async { tokio::join!(flood, answered) }).await.expect("a cut");
    }
    let counted = || server.gateway.metric("leasemux_connections_closed_total{reason=\"flood\"}");
    server.gateway.eventually(|_| counted() == 2).await;
    assert!(server.is_shut_out(server.dial().await, None).await);
}
