use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::support::{Front, StandIn, read_all, read_head, soon};

/// Requests that no provider may see, without their last empty line and body where they have none.
const REJECTED: &[&str] = &[
    // Two lengths, in any order and spelling.
    "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\ntransfer-Encoding:\tchunked\r\ncontent-lENGTH: 5\r\n\r\n0\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 4\r\n\r\nabcd",
    "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
    "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
    "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nabc",
    "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\nabc",
    // Encodings that the other side could read differently.
    "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\nabc",
    "PUT /a HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // Header injection.
    "GET /a HTTP/1.1\r\nHost: a\r\nX: a\rX-Evil: b\r\n\r\n",
    "GET /a HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "GET /a HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n",
    "GET /a HTTP/1.1\r\nHost: a\r\n Content-Length: 3\r\n\r\nabc",
    "GET /a HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n",
    "GET /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\nContent-Length: 3\r\n\r\nabc",
    "GET /a HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n",
    "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a HTTP/1.1\rX: HTTP/1.1\r\nHost: a\r\n\r\n",
    // Other targets than a path.
    "GET http://evil.example/a HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET https://a/a HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET evil.example HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET ?a HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    // Hosts.
    "GET /a HTTP/1.1\r\n\r\n",
    "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    // Other versions.
    "GET /a HTTP/1.2\r\nHost: a\r\n\r\n",
    "GET /a\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

#[tokio::test]
async fn ambiguous_requests_get_400_and_go_nowhere() {
    let provider = StandIn::unused().await;
    let front = Front::start(&provider).await;
    for request in REJECTED {
        for parts in [1, request.len()] {
            let mut client = front.connect().await;
            for part in request.as_bytes().chunks(parts) {
                // The gateway may have closed already.
                let _ = client.write_all(part).await;
                tokio::task::yield_now().await;
            }
            let _ = client.shutdown().await;
            let response = read_all(&mut client).await;
            // A byte that arrives after the gateway has closed resets the connection, also before the client
            // has read the response. hyper closes a connection that begins as HTTP/2 without a response.
            if response.is_empty() && (parts == 1 || request.starts_with("PRI ")) {
                continue;
            }
            assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request:?} {response:?}");
            assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{request:?} {response:?}");
        }
    }
    assert_eq!(provider.accepted(), 0);
}

#[tokio::test]
async fn bad_chunking_never_looks_complete() {
    let bodies = [
        "x\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc",
        "3\r\nabc",
        "3 x\r\nabc\r\n0\r\n\r\n",
    ];
    for body in bodies {
        let (seen, mut rest) = mpsc::channel(1);
        let provider = StandIn::start(move |mut io, _| {
            let seen = seen.clone();
            async move {
                seen.send(read_all(&mut io).await).await.unwrap();
            }
        })
        .await;
        let front = Front::start(&provider).await;
        let mut client = front.connect().await;
        let head = "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all([head, body].concat().as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let response = soon(read_all(&mut client)).await;
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 400 "), "{body:?} {response:?}");
        // The connection to the provider may end within its handshake.
        let rest = tokio::time::timeout(Duration::from_millis(200), rest.recv()).await;
        let rest = rest.ok().flatten().unwrap_or_default();
        assert!(!rest.ends_with("0\r\n\r\n"), "{body:?} {rest:?}");
    }
}

#[tokio::test]
async fn request_after_a_body_is_checked_too() {
    let provider = StandIn::start(|mut io, _| async move {
        let head = read_head(&mut io).await;
        assert!(head.starts_with("PUT /a HTTP/1.1\r\n"), "{head}");
        super::support::read_bytes(&mut io, 3).await;
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        assert_eq!(read_all(&mut io).await, "");
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    let all = "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
         PUT /evil HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    client.write_all(all.as_bytes()).await.unwrap();
    let response = soon(read_all(&mut client)).await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.contains("HTTP/1.1 400 Bad Request\r\n"), "{response}");
}
