use std::path::PathBuf;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::support::{
    Front, NAME, StandIn, body_of, endpoint, noise, pki, read_all, read_bytes, read_chunked, read_head, soon,
};
use crate::edge::upstream::target::{ChainVerifier, Trust};

#[tokio::test]
async fn manifest_is_forwarded_byte_for_byte() {
    let body = br#"{"name":"web\u0000","note":" \r\n Content-Length: 3 "}"#;
    let provider = StandIn::start(|mut io, _| async move {
        let head = read_head(&mut io).await;
        // hyper writes names in lower case, and values as they came.
        let expected = "PUT /deployment/123/manifest?a=%2F..%2f/../x&b=1,2%20&c=%ff HTTP/1.1\r\n\
             host: Localhost:8443\r\n\
             authorization: Bearer aaaa.bbbb-_.cccc==\r\n\
             content-type: application/json; charset=UTF-8\r\n\
             x-twice: 1\r\n\
             x-twice: 2\r\n\
             x-odd: a\tb \u{e9}\r\n\
             content-length: 54\r\n\r\n";
        let sorted = |head: &str| {
            let mut lines: Vec<_> = head.split("\r\n").map(str::to_owned).collect();
            lines[1..].sort();
            lines
        };
        assert_eq!(sorted(&head), sorted(expected));
        assert_eq!(read_bytes(&mut io, 54).await, br#"{"name":"web\u0000","note":" \r\n Content-Length: 3 "}"#);
        let response = "HTTP/1.1 422 Unprocessable Entity\r\nX-Any: 1\r\nX-any: 2\r\nKeep-Alive: timeout=5\r\n\
             Connection: X-Private\r\nX-Private: 1\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 17\r\n\r\ninvalid manifest\n";
        io.write_all(response.as_bytes()).await.unwrap();
        read_all(&mut io).await;
    })
    .await;
    let front = Front::start(&provider).await;
    let head = "PUT /deployment/123/manifest?a=%2F..%2f/../x&b=1,2%20&c=%ff HTTP/1.1\r\n\
         Host: Localhost:8443\r\n\
         Authorization: Bearer aaaa.bbbb-_.cccc==\r\n\
         Content-Type: application/json; charset=UTF-8\r\n\
         X-Twice: 1\r\nX-Twice:   2  \r\n\
         X-Odd: a\tb \u{e9}\r\n\
         Connection: close, X-Secret, Authorization, Host, Content-Length\r\nX-Secret: 1\r\n\
         Keep-Alive: timeout=1\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: x\r\n\
         TE: trailers\r\nTrailer: X\r\nUpgrade: h2c\r\n\
         Content-Length: 54\r\n\r\n";
    let response = soon(front.exchange([head.as_bytes(), body].concat())).await;
    assert!(response.starts_with("HTTP/1.1 422 Unprocessable Entity\r\n"), "{response}");
    for expected in ["x-any: 1\r\n", "x-any: 2\r\n", "content-type: text/plain; charset=utf-8\r\n"] {
        assert!(response.contains(expected), "{response}");
    }
    assert!(!response.contains("x-private") && !response.contains("keep-alive"), "{response}");
    assert_eq!(body_of(&response), "invalid manifest\n");
}

#[tokio::test]
async fn large_bodies_are_streamed_both_ways() {
    const BYTES: usize = 4 * 1024 * 1024;
    for chunked in [false, true] {
        let provider = StandIn::start(move |mut io, _| async move {
            let head = read_head(&mut io).await;
            let body = if chunked {
                assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
                read_chunked(&mut io).await
            } else {
                assert!(head.contains(&format!("content-length: {BYTES}\r\n")), "{head}");
                read_bytes(&mut io, BYTES).await
            };
            assert!(body == noise(BYTES));
            io.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            io.write_all(&body).await.unwrap();
            read_all(&mut io).await;
        })
        .await;
        let front = Front::start(&provider).await;
        let client = front.connect().await;
        let (mut read, mut write) = client.into_split();
        let send = async {
            let length = if chunked {
                "Transfer-Encoding: chunked".to_owned()
            } else {
                format!("Content-Length: {BYTES}")
            };
            write
                .write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            for part in noise(BYTES).chunks(10_000) {
                if chunked {
                    write.write_all(format!("{:X}\r\n", part.len()).as_bytes()).await.unwrap();
                }
                write.write_all(part).await.unwrap();
                if chunked {
                    write.write_all(b"\r\n").await.unwrap();
                }
            }
            if chunked {
                write.write_all(b"0\r\n\r\n").await.unwrap();
            }
        };
        let receive = async {
            let head = read_head(&mut read).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(read_bytes(&mut read, BYTES).await == noise(BYTES));
        };
        tokio::join!(send, receive);
    }
}

#[tokio::test]
async fn slow_bodies_arrive_in_their_parts() {
    let (seen, mut parts) = mpsc::channel(1);
    let provider = StandIn::start(move |mut io, _| {
        let seen = seen.clone();
        async move {
            read_head(&mut io).await;
            for _ in 0..3 {
                seen.send(read_bytes(&mut io, 5).await).await.unwrap();
            }
            io.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
            for _ in 0..3 {
                io.write_all(b"5\r\nagain\r\n").await.unwrap();
                seen.send(Vec::new()).await.unwrap();
            }
            io.write_all(b"0\r\n\r\n").await.unwrap();
            read_all(&mut io).await;
        }
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    client.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n").await.unwrap();
    for part in [b"part1", b"part2", b"part3"] {
        client.write_all(part).await.unwrap();
        assert_eq!(soon(parts.recv()).await.unwrap(), part);
    }
    read_head(&mut client).await;
    for _ in 0..3 {
        soon(parts.recv()).await.unwrap();
        assert_eq!(read_bytes(&mut client, 10).await, b"5\r\nagain\r\n");
    }
    assert_eq!(read_bytes(&mut client, 5).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn requests_and_responses_without_body_keep_their_form() {
    let provider = StandIn::start(|mut io, _| async move {
        for (method, response) in [
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"),
            ("DELETE", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
            ("POST", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ] {
            let head = read_head(&mut io).await;
            assert!(head.starts_with(&format!("{method} /a HTTP/1.1\r\n")), "{head}");
            assert!(!head.contains("transfer-encoding"), "{head}");
            assert_eq!(head.contains("content-length: 0\r\n"), method == "POST", "{head}");
            io.write_all(response.as_bytes()).await.unwrap();
        }
        read_all(&mut io).await;
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    let expected = [
        "204 No Content",
        "200 OK\r\ncontent-length: 12",
        "304 Not Modified\r\netag: \"a\"",
        "200 OK\r\ncontent-length: 0",
    ];
    for (method, expected) in ["GET", "HEAD", "DELETE", "POST"].into_iter().zip(expected) {
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        client
            .write_all(format!("{method} /a HTTP/1.1\r\nHost: a\r\n{length}\r\n").as_bytes())
            .await
            .unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected}")), "{head}");
    }
    assert_eq!(provider.accepted(), 1, "the connection is reused");
}

#[tokio::test]
async fn chunked_body_of_a_get_is_not_lost() {
    let provider = StandIn::start(|mut io, _| async move {
        let head = read_head(&mut io).await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        assert_eq!(read_chunked(&mut io).await, b"abc");
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    })
    .await;
    let front = Front::start(&provider).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert!(soon(front.exchange(request)).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn request_above_the_limit_gets_413() {
    let provider = StandIn::start(|mut io, _| async move {
        let head = read_head(&mut io).await;
        assert!(head.contains("chunked"), "{head}");
        let all = read_all(&mut io).await;
        assert!(!all.ends_with("0\r\n\r\n"), "the request must not look complete");
    })
    .await;
    let front = Front::start(&provider).await;
    let request = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4194305\r\n\r\n";
    let mut client = front.connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{head}");
    assert_eq!(provider.accepted(), 0);

    let mut client = front.connect().await;
    client
        .write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n400001\r\n")
        .await
        .unwrap();
    client.write_all(&noise(4 * 1024 * 1024 + 1)).await.unwrap();
    let response = read_head(&mut client).await;
    assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
    assert_eq!(provider.accepted(), 1);
}

#[tokio::test]
async fn expect_100_continue_is_answered() {
    let provider = StandIn::start(|mut io, _| async move {
        let head = read_head(&mut io).await;
        assert!(!head.contains("expect"), "{head}");
        assert_eq!(read_bytes(&mut io, 3).await, b"abc");
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        read_all(&mut io).await;
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    let head = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"abc").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn unreachable_provider_gets_502_with_a_sentence() {
    let provider = StandIn::unused().await;
    let front = Front::start(&provider).await;
    drop(provider);
    let request = "PUT /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    let response = soon(front.exchange(request)).await;
    assert!(response.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{response}");
    assert!(response.contains("content-type: text/plain; charset=utf-8\r\n"), "{response}");
    assert_eq!(body_of(&response), "the provider behind this gateway cannot be reached; try again later\n");
}

/// Vouches for certificates of this many bytes.
#[derive(Debug)]
struct Published(usize);

impl ChainVerifier for Published {
    fn is_published<'a>(
        &'a self,
        certificate: &'a rustls::pki_types::CertificateDer<'static>,
    ) -> std::pin::Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move { certificate.len() == self.0 })
    }
}

#[tokio::test]
async fn certificate_of_the_provider_is_checked() {
    let provider = StandIn::start(|mut io, _| async move {
        read_head(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        read_all(&mut io).await;
    })
    .await;
    let own: PathBuf = provider.pki.authority.clone();
    let other = pki(b"http/1.1");
    let pem = crate::sys::pem::read_certificates(&own, 1 << 20).unwrap();
    let published = |bytes| Trust::SystemOrChain(std::sync::Arc::new(Published(bytes)));
    let cases = [
        (Trust::Authorities(own.clone()), NAME, true),
        (Trust::Authorities(own), "other.example", false),
        (Trust::Authorities(other.authority.clone()), NAME, false),
        (Trust::System, NAME, false),
        (published(pem[0].len()), "other.example", true),
        (published(0), NAME, false),
    ];
    for (trust, name, accepted) in cases {
        let front = Front::of(endpoint(provider.address), Some(name), &trust, 1).await;
        let response = soon(front.exchange("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        let expected = if accepted { "HTTP/1.1 200 OK" } else { "HTTP/1.1 502 Bad Gateway" };
        assert!(response.starts_with(expected), "{trust:?} {name} {response}");
        assert_eq!(response.contains("cannot be verified"), !accepted, "{trust:?} {name} {response}");
    }
}

#[tokio::test]
async fn reset_before_the_response_gets_502_and_no_retry() {
    let provider = StandIn::start(|mut io, number| async move {
        assert!(read_head(&mut io).await.starts_with("PUT /a "));
        assert_eq!(read_bytes(&mut io, 3).await, b"abc");
        if number == 0 {
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            // On the reused connection: takes the request, and closes without a response.
            read_head(&mut io).await;
            read_bytes(&mut io, 3).await;
        }
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    let request = b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    client.write_all(request).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
    client.write_all(request).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}");
    assert_eq!(provider.accepted(), 1);
}

#[tokio::test]
async fn connection_that_the_provider_closed_is_replaced() {
    let provider = StandIn::start(|mut io, _| async move {
        read_head(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        io.shutdown().await.unwrap();
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    for count in 1..=3 {
        client.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(provider.accepted(), count);
        // Time for the close to arrive.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn idle_connection_is_not_reused_after_2_s() {
    let provider = StandIn::start(|mut io, _| async move {
        // The start of a request, or the end of the connection.
        while io.read_u8().await.is_ok() {
            read_head(&mut io).await;
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    for (pause, connections) in [(0, 1), (1_900, 1), (2_100, 2)] {
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_millis(pause)).await;
        tokio::time::resume();
        client.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
        // The gateway needs a moment to give the connection back.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(provider.accepted(), connections, "after {pause} ms");
    }
}

#[tokio::test]
async fn early_response_passes_before_the_request_ends() {
    let provider = StandIn::start(|mut io, _| async move {
        read_head(&mut io).await;
        let response = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}";
        io.write_all(response.as_bytes()).await.unwrap();
        read_all(&mut io).await;
    })
    .await;
    let front = Front::start(&provider).await;
    for _ in 0..2 {
        let mut client = front.connect().await;
        client.write_all(b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc").await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{head}");
        assert_eq!(read_bytes(&mut client, 2).await, b"{}");
    }
    assert_eq!(provider.accepted(), 2, "a connection with half a request is not reused");
}

#[tokio::test]
async fn reset_within_the_response_cuts_it() {
    for (head, sent) in [("Content-Length: 10", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n")] {
        let provider = StandIn::start(move |mut io, _| async move {
            read_head(&mut io).await;
            io.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{sent}").as_bytes()).await.unwrap();
            io.flush().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        })
        .await;
        let front = Front::start(&provider).await;
        let response = soon(front.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert_eq!(body_of(&response), sent, "{response}");
    }
}

#[tokio::test]
async fn malformed_response_gets_502() {
    for response in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let provider = StandIn::start(move |mut io, _| async move {
            read_head(&mut io).await;
            io.write_all(response.as_bytes()).await.unwrap();
            read_all(&mut io).await;
        })
        .await;
        let front = Front::start(&provider).await;
        let got = soon(front.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        assert!(got.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{response} {got}");
    }
}

/// Starts a provider that does not answer. It reports each request when its head has come, and again when the
/// gateway has given it up.
async fn silent_provider() -> (StandIn, mpsc::Receiver<()>) {
    let (seen, requests) = mpsc::channel(1);
    let provider = StandIn::start(move |mut io, _| {
        let seen = seen.clone();
        async move {
            read_head(&mut io).await;
            seen.send(()).await.unwrap();
            assert_eq!(io.read(&mut [0]).await.unwrap_or_default(), 0);
            seen.send(()).await.unwrap();
        }
    })
    .await;
    (provider, requests)
}

#[tokio::test]
async fn slow_provider_gets_504_after_130_s() {
    let (provider, mut requests) = silent_provider().await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    soon(requests.recv()).await.unwrap();
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let mut head = [0; 28];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head[..], b"HTTP/1.1 504 Gateway Timeout");
    let elapsed = start.elapsed().as_secs();
    assert!((129..132).contains(&elapsed), "{elapsed}");
    tokio::time::resume();
    // The request is given up.
    soon(requests.recv()).await.unwrap();
}

#[tokio::test]
async fn client_that_leaves_ends_its_request() {
    let (provider, mut ended) = silent_provider().await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    soon(ended.recv()).await.unwrap();
    drop(client);
    soon(ended.recv()).await.unwrap();
}

#[tokio::test]
async fn request_that_stops_gets_408_after_300_s() {
    let (seen, mut received) = mpsc::channel(1);
    let provider = StandIn::start(move |mut io, _| {
        let seen = seen.clone();
        async move {
            read_head(&mut io).await;
            seen.send(read_bytes(&mut io, 3).await).await.unwrap();
            assert_eq!(io.read(&mut [0]).await.unwrap_or_default(), 0);
        }
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    client.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc").await.unwrap();
    soon(received.recv()).await.unwrap();
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let mut head = [0; 28];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head[..], b"HTTP/1.1 408 Request Timeout");
    let elapsed = start.elapsed().as_secs();
    assert!((299..302).contains(&elapsed), "{elapsed}");
}

#[tokio::test]
async fn response_that_stops_is_cut_after_130_s() {
    let provider = StandIn::start(|mut io, _| async move {
        read_head(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await.unwrap();
        assert_eq!(io.read(&mut [0]).await.unwrap_or_default(), 0);
    })
    .await;
    let front = Front::start(&provider).await;
    let mut client = front.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_head(&mut client).await;
    assert_eq!(read_bytes(&mut client, 3).await, b"abc");
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    assert_eq!(client.read(&mut [0; 10]).await.unwrap_or_default(), 0);
    let elapsed = start.elapsed().as_secs();
    assert!((129..132).contains(&elapsed), "{elapsed}");
}
