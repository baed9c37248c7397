//! Connections of the REST port: idle, slow, malformed and shut-out peers, and the drain.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use leasemux::access::grants::Access;
use leasemux::model::limits::{Limits, QuotaLimits};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::Rest;
use crate::support::gateway::TrustBehavior;
use crate::support::rest::exchange;

const OPEN_REQUEST: &str = "GET /address HTTP/1.1\r\nHost: any\r\n";

fn peer() -> SocketAddr {
    "192.0.2.7:1234".parse().unwrap()
}

/// A connection whose TLS breaks within the first request.
struct BrokenTls {
    has_begun: bool,
}

impl AsyncRead for BrokenTls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.has_begun, true) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        buf.put_slice(b"GET /addr");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BrokenTls {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Sends a request, and reads the beginning of its response. The connection stays open.
async fn call(io: &mut DuplexStream, head: &str) {
    io.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    let mut bytes = vec![0; 64 * 1024];
    assert!(io.read(&mut bytes).await.unwrap() > 0);
}

/// Returns after what time the gateway closes the connection.
async fn closed_after(io: &mut DuplexStream) -> Duration {
    let began = Instant::now();
    let mut bytes = Vec::new();
    let end = timeout(Duration::from_secs(3_600), io.read_to_end(&mut bytes)).await;
    end.expect("the connection is closed").unwrap();
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn silent_and_slow_connections_are_closed() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let limits = Limits::default().connection;
    for begun in ["", "GET /addr"] {
        let mut first = rest.connect();
        first.write_all(begun.as_bytes()).await.unwrap();
        assert_eq!(closed_after(&mut first).await, limits.first_call, "{begun}");
        let mut later = rest.connect();
        call(&mut later, OPEN_REQUEST).await;
        later.write_all(begun.as_bytes()).await.unwrap();
        let after = closed_after(&mut later).await;
        assert!((limits.idle..limits.idle * 2).contains(&after), "{begun}: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn drain_closes_idle_connections_and_cuts_calls() {
    let rest = Rest::new(Limits::default(), &[("web", 1)]);
    let mut idle = rest.connect();
    call(&mut idle, OPEN_REQUEST).await;
    rest.gateway.set_trust(TrustBehavior::Later);
    let mut busy = rest.connect();
    let head = format!("GET /lease/7/1/1/status HTTP/1.1\r\nHost: any\r\n{}\r\n", rest.bearer(Access::Full));
    busy.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let drain = rest.gateway.drain.clone();
    let mut finishing = JoinSet::new();
    finishing.spawn(async move { drain.finish(Duration::from_secs(4)).await });
    assert!(closed_after(&mut idle).await < Duration::from_secs(1));
    assert!(closed_after(&mut busy).await > Duration::from_secs(2), "it has the time of the drain");
    let finished = timeout(Duration::from_secs(10), finishing.join_next()).await;
    assert!(!finished.expect("the deadline cuts it").unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn faults_of_a_peer_count_as_its_failures() {
    let quota = QuotaLimits { auth_failures_per_minute: 5, ..QuotaLimits::default() };
    for fault in ["malformed", "tls", "credentials"] {
        let rest = Rest::new(Limits { quota: quota.clone(), ..Limits::default() }, &[("web", 1)]);
        let connect = || rest.gateway.connect_rest(rest.settings.clone(), None, Some(peer()));
        let status =
            format!("GET /lease/7/1/1/status HTTP/1.1\r\nHost: any\r\n{}", rest.bearer(Access::Full));
        // It does not authenticate, and sends a request slowly.
        let mut slow = connect();
        call(&mut slow, OPEN_REQUEST).await;
        slow.write_all(b"GET /addr").await.unwrap();
        assert_eq!(exchange(connect(), &status).await.status, 200);
        // It has a request in progress, which does not authenticate in time.
        rest.gateway.set_trust(TrustBehavior::Later);
        let mut busy = connect();
        busy.write_all(format!("{status}\r\n").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        for _ in 0..8 {
            match fault {
                "malformed" => _ = exchange(connect(), "no request of HTTP\r\n").await,
                "tls" => {
                    let io = BrokenTls { has_begun: false };
                    let service = rest.gateway.rest_service(rest.settings.clone());
                    rest.gateway.serve_rest(&service, io, None, Some(peer()));
                }
                _ => _ = exchange(connect(), "GET /lease/7/1/1/status HTTP/1.1\r\nHost: any\r\n").await,
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        let refused = exchange(connect(), &status).await;
        assert_eq!(refused.is_text(429).split(':').next(), Some("auth_failures_per_peer"), "{fault}");
        assert!(closed_after(&mut slow).await < Duration::from_secs(20), "{fault}");
        assert!(closed_after(&mut busy).await < Duration::from_secs(20), "{fault}");
        rest.gateway.set_trust(TrustBehavior::AtOnce);
        let other = rest.connect();
        assert_eq!(exchange(other, &status).await.status, 200, "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_without_credentials_have_a_rate() {
    let quota = QuotaLimits { open_calls_per_second: 1, ..QuotaLimits::default() };
    let rest = Rest::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
    for head in
        [OPEN_REQUEST, "POST /lease/7/1/1/logs HTTP/1.1\r\nHost: any\r\n", "GET /x HTTP/1.1\r\nHost: a\r\n"]
    {
        let connect = || rest.gateway.connect_rest(rest.settings.clone(), None, Some(peer()));
        let mut statuses = Vec::new();
        for _ in 0..200 {
            statuses.push(exchange(connect(), head).await.status);
        }
        assert_eq!(statuses.last(), Some(&429), "{head}");
        let answer = exchange(connect(), head).await;
        assert_eq!(answer.is_text(429).split(':').next(), Some("open_call_rate_per_peer"));
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_ne!(exchange(connect(), head).await.status, 429);
    }
}
