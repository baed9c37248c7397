use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::support::{NAME, Pki, endpoint, noise, pki, soon};
use crate::edge::drain::Drain;
use crate::edge::upstream::failure::Failure;
use crate::edge::upstream::grpc::{self, UpstreamGrpc};
use crate::edge::upstream::target::Trust;
use crate::model::peer::PeerNet;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

/// A stand-in of the provider's gRPC server. Runs until it is dropped.
struct StandIn {
    address: SocketAddr,
    pki: Pki,
    accepted: Arc<AtomicUsize>,
    /// Closes the open connections.
    close: Arc<Notify>,
    _running: JoinSet<()>,
}

impl StandIn {
    async fn start<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pki = pki(b"h2");
        let tls = TlsAcceptor::from(Arc::new(pki.server.clone()));
        let (accepted, close) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (counted, closing) = (Arc::clone(&accepted), Arc::clone(&close));
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let (tls, answer, closing) = (tls.clone(), answer.clone(), Arc::clone(&closing));
                connections.spawn(async move {
                    let Ok(io) = tls.accept(socket).await else { return };
                    assert!(io.get_ref().1.peer_certificates().is_none());
                    let service = service_fn(move |request| {
                        let answered = answer(request);
                        async move { Ok::<_, std::convert::Infallible>(answered.await) }
                    });
                    let mut http = http2::Builder::new(TokioExecutor::new());
                    http.max_concurrent_streams(1_000);
                    tokio::select! {
                        _ = http.serve_connection(TokioIo::new(io), service) => {}
                        () = closing.notified() => {}
                    }
                });
            }
        });
        Self { address, pki, accepted, close, _running: running }
    }

    fn client(&self) -> UpstreamGrpc {
        let trust = Trust::Authorities(self.pki.authority.clone());
        UpstreamGrpc::new(endpoint(self.address), Some(NAME), &trust, Drain::default()).unwrap()
    }
}

/// Forwards a call of a peer that is not known.
async fn forward(
    client: &UpstreamGrpc,
    call: Request<Body>,
) -> Result<Response<grpc::ResponseBody>, Failure> {
    Box::pin(client.forward(call, client.admit(None)?)).await
}

/// Returns a call whose body has a length that is not known, as one from a client has.
fn call(path: &str, message: impl Into<Bytes>) -> Request<Body> {
    Request::post(format!("https://gw.example:8444{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .header("authorization", "Bearer a.b.c")
        .header("grpc-timeout", "10S")
        .header("x-bin", "AAEC")
        .body(body(vec![Ok(Frame::data(message.into()))]))
        .unwrap()
}

fn body(frames: Vec<Result<Frame<Bytes>, std::io::Error>>) -> Body {
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

fn trailers(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([
        (http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static(status)),
        (http::HeaderName::from_static("x-trailer"), http::HeaderValue::from_static("1")),
    ])
}

#[tokio::test]
async fn call_is_forwarded_byte_for_byte() {
    let sent = noise(3_000_000);
    let expected = sent.clone();
    let provider = StandIn::start(move |request| {
        let expected = expected.clone();
        async move {
            assert_eq!(request.method(), "POST");
            assert_eq!(request.uri().path(), "/akash.provider.lease.v1.LeaseRPC/SendManifest");
            assert_eq!(request.uri().authority().unwrap(), "gw.example:8444");
            let mut headers: Vec<_> =
                request.headers().iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
            headers.sort();
            assert_eq!(
                headers,
                [
                    "authorization: Bearer a.b.c",
                    "content-type: application/grpc+proto",
                    "grpc-timeout: 10S",
                    "te: trailers",
                    "x-bin: AAEC",
                ]
            );
            assert!(request.into_body().collect().await.unwrap().to_bytes() == expected);
            let frames = vec![Ok(Frame::data(Bytes::from(expected))), Ok(Frame::trailers(trailers("0")))];
            Response::builder()
                .header("content-type", "application/grpc+proto")
                .header("x-any", "1")
                .body(body(frames))
                .unwrap()
        }
    })
    .await;
    let mut request = call("/akash.provider.lease.v1.LeaseRPC/SendManifest", sent.clone());
    request.headers_mut().insert("connection", "x".parse().unwrap());
    request.headers_mut().insert("keep-alive", "x".parse().unwrap());
    let response = soon(forward(&provider.client(), request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc+proto");
    assert_eq!(response.headers()["x-any"], "1");
    let collected = soon(response.into_body().collect()).await.unwrap();
    assert_eq!(*collected.trailers().unwrap(), trailers("0"));
    assert!(collected.to_bytes() == sent);
}

#[tokio::test]
async fn status_in_the_headers_passes() {
    let provider = StandIn::start(|_| async {
        Response::builder()
            .header("grpc-status", "12")
            .header("grpc-message", "unknown%20method")
            .body(body(Vec::new()))
            .unwrap()
    })
    .await;
    let response = soon(forward(&provider.client(), call("/a.B/C", ""))).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
    assert_eq!(response.headers()["grpc-message"], "unknown%20method");
    assert!(soon(response.into_body().collect()).await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn failing_stream_is_broken() {
    let provider = StandIn::start(|_| async {
        let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"first")))]);
        // The reset would overtake the message.
        let second = futures_util::stream::once(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("broken"))
        });
        Response::new(StreamBody::new(first.chain(second)).boxed_unsync())
    })
    .await;
    let response = soon(forward(&provider.client(), call("/a.B/C", ""))).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    assert_eq!(soon(body.frame()).await.unwrap().unwrap_err(), Failure::BROKEN);
}

#[tokio::test]
async fn absent_provider_is_unavailable_until_it_is_back() {
    let provider =
        StandIn::start(|_| async { Response::new(body(vec![Ok(Frame::trailers(trailers("0")))])) }).await;
    let client = provider.client();
    for _ in 0..3 {
        assert!(soon(forward(&client, call("/a.B/C", ""))).await.is_ok());
    }
    assert_eq!(provider.accepted.load(Ordering::SeqCst), 1, "calls share a connection");
    provider.close.notify_waiters();
    // Time for the close to arrive: a call that is sent before it fails.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(soon(forward(&client, call("/a.B/C", ""))).await.is_ok());
    assert_eq!(provider.accepted.load(Ordering::SeqCst), 2);
    drop(provider);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(soon(forward(&client, call("/a.B/C", ""))).await.unwrap_err(), Failure::CONNECT);
}

#[tokio::test]
async fn waiting_calls_share_a_failed_attempt() {
    // A provider that accepts connections, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pki = pki(b"h2");
    let trust = Trust::Authorities(pki.authority.clone());
    let endpoint = endpoint(listener.local_addr().unwrap());
    let client = UpstreamGrpc::new(endpoint, Some(NAME), &trust, Drain::default()).unwrap();
    let start = tokio::time::Instant::now();
    let calls = futures_util::future::join_all((0..5).map(|_| forward(&client, call("/a.B/C", ""))));
    let calls = soon(calls).await;
    assert!(calls.iter().all(|call| matches!(call, Err(Failure::CONNECT))));
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

#[tokio::test]
async fn request_above_the_limit_is_refused() {
    let provider = StandIn::start(|request| async {
        let read = request.into_body().collect().await;
        assert!(read.is_err(), "the request must not look complete");
        Response::new(body(Vec::new()))
    })
    .await;
    let failure = soon(forward(&provider.client(), call("/a.B/C", vec![0; 5_000_000]))).await.unwrap_err();
    assert_eq!(failure, Failure::TOO_LARGE);
}

#[tokio::test]
async fn callers_that_read_nothing_do_not_stop_others() {
    let provider = StandIn::start(|_| async {
        Response::new(body(vec![
            Ok(Frame::data(Bytes::from(noise(1_000_000)))),
            Ok(Frame::trailers(trailers("0"))),
        ]))
    })
    .await;
    let client = provider.client();
    let mut stalled = Vec::new();
    for _ in 0..50 {
        stalled.push(soon(forward(&client, call("/a.B/C", ""))).await.unwrap());
    }
    let response = soon(forward(&client, call("/a.B/C", ""))).await.unwrap();
    assert!(soon(response.into_body().collect()).await.unwrap().to_bytes() == noise(1_000_000));
    drop(stalled);
}

#[tokio::test]
async fn calls_above_the_limit_are_refused() {
    let provider = StandIn::start(|_| async {
        let waiting =
            StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        Response::new(waiting.boxed_unsync())
    })
    .await;
    let client = provider.client();
    let mut responses = Vec::new();
    for _ in 0..256 {
        responses.push(soon(forward(&client, call("/a.B/C", ""))).await.unwrap());
    }
    assert_eq!(soon(forward(&client, call("/a.B/C", ""))).await.unwrap_err(), Failure::BUSY);
    // The permit belongs to the body.
    responses.pop();
    responses.push(soon(forward(&client, call("/a.B/C", ""))).await.unwrap());
    drop(responses);
    let peer = |last| Some(PeerNet::from(IpAddr::from([192, 0, 2, last])));
    let of_peer: Vec<_> = (0..64).map(|_| client.admit(peer(1)).unwrap()).collect();
    assert_eq!(client.admit(peer(1)).unwrap_err(), Failure::BUSY);
    assert!(client.admit(peer(2)).is_ok());
    drop(of_peer);
}
