use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::support::{Front, StandIn, body_of, noise, read_all, read_bytes, read_head, soon, until};

const HANDSHAKE: &str = "GET /lease/1/2/3/shell?cmd0=ls&tty=0&service=web&podIndex=0 HTTP/1.1\r\n\
     Host: provider.example:8443\r\nAuthorization: Bearer a.b.c\r\nConnection: keep-alive, UPGRADE\r\n\
     Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Starts a provider that echoes what comes after the handshake.
async fn echo() -> StandIn {
    StandIn::start(|mut io, _| async move {
        let head = read_head(&mut io).await;
        assert!(
            head.starts_with("GET /lease/1/2/3/shell?cmd0=ls&tty=0&service=web&podIndex=0 HTTP/1.1\r\n"),
            "{head}"
        );
        for line in [
            "host: provider.example:8443",
            "authorization: Bearer a.b.c",
            "connection: Upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
            "sec-websocket-extensions: permessage-deflate",
        ] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
        }
        // The first frame comes with the response.
        io.write_all([SWITCHED.as_bytes(), b"\x82\x06dfirst"].concat().as_slice()).await.unwrap();
        let (mut read, mut write) = tokio::io::split(io);
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// Opens a shell.
async fn open(front: &Front) -> TcpStream {
    let mut client = front.connect().await;
    client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    for line in
        ["connection: Upgrade", "upgrade: websocket", "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
    {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    assert_eq!(read_bytes(&mut client, 8).await, b"\x82\x06dfirst");
    client
}

#[tokio::test]
async fn shell_frames_pass_both_ways_unchanged() {
    let provider = echo().await;
    let front = Front::start(&provider).await;
    let mut client = open(&front).await;
    // Any bytes, also those that look like a request with two lengths in part.
    for frame in [&b"\x82\x85maskabcde"[..], b"\r\n\r\nPUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", b"\0"] {
        client.write_all(frame).await.unwrap();
        assert_eq!(read_bytes(&mut client, frame.len()).await, frame);
    }
    let large = noise(3_000_000);
    let (mut read, mut write) = client.split();
    let (sent, received) = tokio::join!(write.write_all(&large), read_bytes(&mut read, large.len()));
    sent.unwrap();
    assert!(received == large);
}

#[tokio::test]
async fn either_end_of_a_tunnel_ends_the_other() {
    let provider = echo().await;
    let front = Front::limited(&provider, 1).await;
    let mut client = open(&front).await;
    assert!(front.limiter.try_acquire(None).is_none());
    client.write_all(b"last").await.unwrap();
    client.shutdown().await.unwrap();
    // The provider sees the end, sends the rest, and closes.
    assert_eq!(soon(read_all(&mut client)).await, "last");
    until(|| front.limiter.try_acquire(None).is_some()).await;

    let provider = StandIn::start(|mut io, _| async move {
        read_head(&mut io).await;
        io.write_all(SWITCHED.as_bytes()).await.unwrap();
        io.write_all(b"\x88\x02\x03\xe8").await.unwrap();
        io.shutdown().await.unwrap();
    })
    .await;
    let front = Front::limited(&provider, 1).await;
    let mut client = front.connect().await;
    client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    read_head(&mut client).await;
    let mut rest = Vec::new();
    soon(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"\x88\x02\x03\xe8");
    drop(client);
    until(|| front.limiter.try_acquire(None).is_some()).await;
}

#[tokio::test]
async fn client_that_vanishes_frees_its_tunnel() {
    let (seen, mut ended) = mpsc::channel(1);
    let provider = StandIn::start(move |mut io, _| {
        let seen = seen.clone();
        async move {
            read_head(&mut io).await;
            io.write_all([SWITCHED.as_bytes(), b"\x82\x06dfirst"].concat().as_slice()).await.unwrap();
            let mut rest = Vec::new();
            let _ = io.read_to_end(&mut rest).await;
            seen.send(rest).await.unwrap();
            // Never closes by itself.
            std::future::pending::<()>().await;
        }
    })
    .await;
    let front = Front::limited(&provider, 1).await;
    drop(open(&front).await);
    assert_eq!(soon(ended.recv()).await.unwrap(), b"");
    until(|| front.limiter.try_acquire(None).is_some()).await;
}

#[tokio::test]
async fn draining_ends_tunnels() {
    let provider = echo().await;
    let front = Front::start(&provider).await;
    let mut client = open(&front).await;
    assert!(soon(front.drain.finish(Duration::from_secs(10))).await, "the tunnel ends by itself");
    assert_eq!(soon(read_all(&mut client)).await, "");
}

#[tokio::test]
async fn tunnel_above_the_limit_gets_503() {
    let provider = echo().await;
    let front = Front::limited(&provider, 1).await;
    let mut first = open(&front).await;
    let mut client = front.connect().await;
    client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let response = soon(read_all(&mut client)).await;
    assert!(response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{response}");
    assert!(response.contains("retry-after: 1\r\n"), "{response}");
    assert!(body_of(&response).contains("try again later"), "{response}");
    first.write_all(b"still").await.unwrap();
    assert_eq!(read_bytes(&mut first, 5).await, b"still");
    assert_eq!(provider.accepted(), 1);
}

#[tokio::test]
async fn refused_handshake_passes_the_response() {
    let provider = StandIn::start(|mut io, _| async move {
        read_head(&mut io).await;
        let response = "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 33\r\n\r\n\
             {\"message\":\"unauthorized access\"}";
        io.write_all(response.as_bytes()).await.unwrap();
        read_all(&mut io).await;
    })
    .await;
    let front = Front::limited(&provider, 1).await;
    let mut client = front.connect().await;
    client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{head}");
    assert_eq!(read_bytes(&mut client, 33).await, b"{\"message\":\"unauthorized access\"}");
    assert!(front.limiter.try_acquire(None).is_some());
}

#[tokio::test]
async fn other_protocols_are_not_upgraded() {
    let provider = StandIn::start(|mut io, _| async move {
        let head = read_head(&mut io).await;
        assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        read_all(&mut io).await;
    })
    .await;
    let front = Front::start(&provider).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let response = soon(front.exchange(request)).await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
}
