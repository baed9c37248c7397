//! Who may connect, by real sockets.

use std::net::SocketAddr;

use leasemux::model::limits::QuotaLimits;

use super::*;

/// Whether the gateway has closed this connection, before it said anything.
async fn is_closed(mut socket: TcpStream) -> bool {
    // What is sent may be answered by a reset, or found to lead nowhere.
    let _ = socket.write_all(&hello_of_tls_1_2()).await;
    let read = timeout(DEADLINE, socket.read(&mut [0; 64])).await.expect("closed, or answered");
    !matches!(read, Ok(1..))
}

/// A header of the PROXY protocol, version 2, for a connection from there.
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

impl Secure {
    fn refused(&self, reason: &str) -> u64 {
        self.gateway.metric(&format!("leasemux_connections_refused_total{{reason=\"{reason}\"}}"))
    }

    /// A connection through a proxy that sends this first.
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
async fn connections_of_one_address_beyond_its_limit_are_closed_at_once() {
    let mut limits = Limits::default();
    limits.connection.max_per_peer = 2;
    let secure = Secure::new(limits).await;
    let first = secure.handshake(None).await;
    let _second = secure.handshake(None).await;
    for _ in 0..3 {
        assert!(is_closed(secure.dial().await).await);
    }
    assert_eq!((secure.refused("peer_limit"), secure.refused("limit")), (3, 0));
    drop(first);
    // The gateway notices when it does.
    let again = async { while is_closed(secure.dial().await).await {} };
    timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_of_all_are_closed_at_once() {
    let mut limits = Limits::default();
    limits.connection.max = 1;
    let secure = Secure::new(limits).await;
    let first = secure.handshake(None).await;
    assert!(is_closed(secure.dial().await).await);
    assert_eq!((secure.refused("limit"), secure.refused("peer_limit")), (1, 0));
    drop(first);
    let again = async { while is_closed(secure.dial().await).await {} };
    timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn behind_a_trusted_proxy_peers_are_counted_by_their_real_address() {
    let mut limits = Limits::default();
    limits.connection.max_per_peer = 1;
    let secure = Secure::behind(&["127.0.0.0/8"], limits).await;
    let _first = secure.is_open_through(&header("192.0.2.1:1000")).await;
    assert!(is_closed(secure.dial_through(&header("192.0.2.1:2000")).await).await);
    let _other = secure.is_open_through(&header("192.0.2.2:1000")).await;
    let _sixth = secure.is_open_through(&header("[2001:db8:0:1::1]:1000")).await;
    // One network is one peer.
    assert!(is_closed(secure.dial_through(&header("[2001:db8:0:1:a:b:c:d]:1000")).await).await);
    let _next = secure.is_open_through(&header("[2001:db8:0:2::1]:1000")).await;
    assert_eq!((secure.refused("peer_limit"), secure.refused("proxy")), (2, 0));
    // The proxy itself, which looks whether the gateway is there.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    let _itself = secure.is_open_through(local).await;
}

#[tokio::test]
async fn a_trusted_proxy_must_say_for_whom_it_speaks() {
    let secure = Secure::behind(&["127.0.0.1"], Limits::default()).await;
    let v1 = b"PROXY TCP4 192.0.2.1 127.0.0.1 1000 443\r\n";
    for first in [&v1[..], &hello_of_tls_1_2(), b"GET / HTTP/1.1\r\n\r\n"] {
        assert!(is_closed(secure.dial_through(first).await).await);
    }
    assert_eq!(secure.refused("proxy"), 3);
    let tenant = secure.tenant("tenant");
    secure.trust(&tenant);
    drop(secure.is_open_through(&header("192.0.2.1:1000")).await);
}

#[tokio::test]
async fn nobody_else_is_believed_to_be_a_proxy() {
    for secure in [
        Secure::new(Limits::default()).await,
        Secure::behind(&["192.0.2.0/24", "::1"], Limits::default()).await,
    ] {
        let socket = secure.dial_through(&header("192.0.2.1:1000")).await;
        // For TLS it is nonsense, and refused as such.
        assert!(secure.handshake_over(socket, None).await.is_err());
        assert_eq!(secure.refused("proxy"), 0);
        drop(secure.handshake(None).await);
    }
}

#[tokio::test]
async fn an_address_that_breaks_handshakes_is_soon_closed_before_them() {
    let mut limits = Limits::default();
    limits.quota.auth_failures_per_minute = 5;
    let secure = Secure::behind(&["127.0.0.1"], limits).await;
    let bad = header("192.0.2.1:1000");
    timeout(DEADLINE, secure.break_handshakes_until_refused(&bad)).await.unwrap();
    let socket = secure.dial_through(&bad).await;
    assert!(secure.is_shut_out(socket, None).await, "not even a good one");
    drop(secure.is_open_through(&header("192.0.2.2:1000")).await);
    // Those that are let pass, and those in which a certificate could have been shown.
    let failed = secure.gateway.metric("leasemux_tls_handshakes_total{result=\"failed\"}");
    assert!((5..5 + 20 + SLOW_MACHINE).contains(&failed), "{failed}");
}

/// Handshakes that a shut-out peer may have made meanwhile beside the first ones, at five a second: as many as in the whole
/// deadline.
const SLOW_MACHINE: u64 = 5 * DEADLINE.as_secs();

impl Secure {
    /// Breaks handshakes until the peer is shut out, and has made all those that it may even so.
    async fn break_handshakes_until_refused(&self, from: &[u8]) {
        while self.refused("auth_failures") == 0 {
            let mut socket = self.dial_through(from).await;
            let _ = socket.write_all(&hello_of_tls_1_2()).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    }

    /// Breaks handshakes until the peer is shut out.
    async fn break_handshakes(&self, from: &[u8], times: usize) {
        for _ in 0..times {
            let mut socket = self.dial_through(from).await;
            let _ = socket.write_all(&hello_of_tls_1_2()).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    }

    /// Whether the gateway closes this connection before it says anything of HTTP/2.
    async fn is_shut_out(&self, socket: TcpStream, identity: Option<CertifiedKey>) -> bool {
        match self.handshake_over(socket, identity).await {
            Err(_) => true,
            // Its settings come first, otherwise.
            Ok(mut stream) => {
                let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
                let read = timeout(DEADLINE, stream.read(&mut [0; 64])).await.expect("closed, or answered");
                !matches!(read, Ok(1..))
            }
        }
    }
}

/// The certificate and key of a tenant.
fn identity_of(tenant: &Tenant) -> CertifiedKey {
    let (chain, key) = IdentityFiles::load(&tenant.identity).unwrap().into_parts();
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).unwrap();
    CertifiedKey::new(chain, key)
}

#[tokio::test]
async fn trusted_certificate_is_admitted_from_shut_out_peer() {
    let mut limits = Limits::default();
    limits.quota.auth_failures_per_minute = 5;
    let secure = Secure::behind(&["127.0.0.1"], limits).await;
    let (tenant, stranger) = (secure.tenant("tenant"), secure.tenant("stranger"));
    tenant.print(&secure.gateway, "a line\n");
    secure.trust(&tenant);
    // Is trusted once the directory has been read.
    let known = async {
        loop {
            let socket = secure.dial_through(&header("192.0.2.2:1000")).await;
            let stream = secure.handshake_over(socket, Some(identity_of(&tenant))).await.unwrap();
            if client_over(stream).await.service_logs(tenant.request()).await.is_ok() {
                return;
            }
        }
    };
    timeout(DEADLINE, known).await.unwrap();
    let shut_out = header("192.0.2.1:1000");
    secure.break_handshakes(&shut_out, 5).await;
    for (kind, identity) in [
        ("none", None),
        ("unknown", Some(identity_of(&stranger))),
        ("of another form", Some(shaped(|params| params.is_ca = IsCa::NoCa))),
    ] {
        let socket = secure.dial_through(&shut_out).await;
        assert!(secure.is_shut_out(socket, identity).await, "{kind}");
    }
    // Checked before the flood below: a slow handshake of the flood may also be closed because the peer is shut out.
    let closed = "leasemux_connections_closed_total{reason=\"shut_out\"}";
    secure.gateway.eventually(|gateway| gateway.metric(closed) >= 3).await;
    assert_eq!(secure.gateway.metric(closed), 3);
    // A tenant behind the same address is admitted.
    for _ in 0..3 {
        let socket = secure.dial_through(&shut_out).await;
        let stream = secure.handshake_over(socket, Some(identity_of(&tenant))).await.unwrap();
        let mut client = client_over(stream).await;
        let mut logs = client.service_logs(tenant.request()).await.unwrap().into_inner();
        read(&mut logs, "a line\n").await;
    }
    // A flood of handshakes has an end nevertheless.
    timeout(DEADLINE, secure.break_handshakes_until_refused(&shut_out)).await.unwrap();
}

#[tokio::test]
async fn floods_of_control_frames_shut_an_address_out() {
    let quota = QuotaLimits { auth_failures_per_minute: 2, ..QuotaLimits::default() };
    let secure = Secure::new(Limits { quota, ..Limits::default() }).await;
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..];
    let ping = &b"\0\0\x08\x06\0\0\0\0\0leasemux"[..];
    for _ in 0..2 {
        let (mut from, mut to) = tokio::io::split(secure.handshake(None).await);
        let flood = async {
            to.write_all(preface).await.unwrap();
            let pings = ping.repeat(100);
            while to.write_all(&pings).await.is_ok() {}
        };
        let mut answers = [0; 4096];
        let answered = async { while matches!(from.read(&mut answers).await, Ok(1..)) {} };
        timeout(DEADLINE, async { tokio::join!(flood, answered) }).await.expect("it is cut off");
    }
    let counted = || secure.gateway.metric("leasemux_connections_closed_total{reason=\"flood\"}");
    secure.gateway.eventually(|_| counted() == 2).await;
    assert!(secure.is_shut_out(secure.dial().await, None).await);
}
