//! gRPC calls that the gateway forwards (`--upstream-grpc`).

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasemux::edge::service::SERVICE;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, block_in_place};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Front, PUBLIC};
use crate::support::provider::{GrpcBody, NAME, StandIn, noise, soon};
use crate::support::raw::framed;
use crate::support::reason;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A method of the provider's own service.
const STATUS: &str = "/akash.provider.v1.ProviderRPC/GetStatus";

/// A caller with a connection of its own.
struct Caller {
    sender: SendRequest<Body>,
    token: Option<String>,
    _connection: JoinSet<()>,
}

/// A response, whole.
struct Answer {
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
    status: Status,
}

impl Caller {
    /// Connects to the port of the published proto, as a tenant with a token does.
    async fn new(front: &Front) -> Self {
        let port = front.gateway.published();
        Self::connect(front, port, PUBLIC, false).await.with_token(&front.setup.token)
    }

    /// Connects without a token.
    async fn connect(front: &Front, port: SocketAddr, name: &str, with_certificate: bool) -> Self {
        let io = front.connect_to(port, name, with_certificate, b"h2").await;
        let (sender, connection) =
            Builder::new(TokioExecutor::new()).handshake(TokioIo::new(io)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Its result shows in the calls.
            let _ = connection.await;
        });
        Self { sender, token: None, _connection: tasks }
    }

    fn with_token(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    async fn begin(&mut self, path: &str, headers: &[(&str, &str)], body: Body) -> Response<Incoming> {
        let mut request = Request::post(format!("https://{PUBLIC}:8444{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        soon(self.sender.ready()).await.unwrap();
        soon(self.sender.send_request(request.body(body).unwrap())).await.unwrap()
    }

    async fn call(&mut self, path: &str, message: &[u8]) -> Answer {
        let body = Full::new(Bytes::from(framed(message))).boxed_unsync();
        Answer::read(self.begin(path, &[], body).await).await
    }
}

impl Answer {
    async fn read(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        assert_eq!(head.status, 200);
        let collected = soon(body.collect()).await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let status = Status::from_header_map(&trailers).or_else(|| Status::from_header_map(&head.headers));
        let status = status.expect("every answer has a status");
        Self { headers: head.headers, body: collected.to_bytes(), trailers, status }
    }

    /// Returns the number of client certificates that the provider saw.
    fn certificates(&self) -> String {
        self.headers["x-certificates"].to_str().unwrap().to_owned()
    }

    /// Returns code, reason and text.
    fn error(&self) -> (Code, String, &str) {
        (self.status.code(), reason(&self.status), self.status.message())
    }
}

/// Starts a gateway in front of a provider, with both gRPC ports.
fn start(provider: &StandIn, more: &[&str]) -> Front {
    let grpc = format!("--upstream-grpc=https://{}", provider.address);
    Front::start(provider, &[&["--published-listen=127.0.0.1:0", &grpc], more].concat())
}

fn path(method: &str) -> String {
    format!("/{SERVICE}/{method}")
}

fn frames(frames: Vec<Frame<Bytes>>) -> GrpcBody {
    StreamBody::new(futures_util::stream::iter(frames.into_iter().map(Ok))).boxed_unsync()
}

fn trailers(code: &'static str) -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([
        (HeaderName::from_static("grpc-status"), HeaderValue::from_static(code)),
        (HeaderName::from_static("x-trailer"), HeaderValue::from_static("1")),
    ]))
}

/// Answers every call with its own message.
async fn echo(request: Request<Incoming>) -> Response<GrpcBody> {
    let certificates = request.extensions().get::<usize>().unwrap().to_string();
    let message = request.into_body().collect().await.unwrap().to_bytes();
    Response::builder()
        .header("content-type", "application/grpc")
        .header("x-certificates", certificates)
        .body(frames(vec![Frame::data(message), trailers("0")]))
        .unwrap()
}

/// Creates a body whose messages are sent by hand.
fn by_hand() -> (mpsc::Sender<Bytes>, Body) {
    let (send, receive) = mpsc::channel(1);
    let messages = futures_util::stream::unfold(receive, async |mut receive| {
        let message: Bytes = receive.recv().await?;
        Some((Ok(Frame::data(message)), receive))
    });
    (send, StreamBody::new(messages).boxed_unsync())
}

async fn next_message(body: &mut Incoming) -> Bytes {
    soon(body.frame()).await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_reach_the_provider_byte_for_byte() {
    let (seen, mut received) = mpsc::channel(8);
    let provider = StandIn::grpc(move |request| {
        let seen = seen.clone();
        async move {
            let path = request.uri().path().to_owned();
            seen.send((path, request.headers().clone())).await.unwrap();
            echo(request).await
        }
    })
    .await;
    let front = start(&provider, &[]);
    // The second byte is no field that a request for a quote has.
    let message = [b"\x0a".as_slice(), &[0x80, 0xb5, 0x18], &noise(400_000)].concat();
    let small = b"\x0a\x00\x12\x04abcd\x18\x00".as_slice();
    let normal = front.gateway.address;
    for port in [front.gateway.published(), normal] {
        let mut caller = Caller::connect(&front, port, PUBLIC, false).await.with_token(&front.setup.token);
        for (path, message) in [
            (path("SendManifest"), &*message),
            (path("AttestationQuote"), small),
            (path("Later"), small),
            (STATUS.to_owned(), b"".as_slice()),
            ("/any.Service/Method".to_owned(), small),
        ] {
            let body = Full::new(Bytes::from(framed(message))).boxed_unsync();
            let headers = [("grpc-timeout", "10S"), ("x-any-bin", "AAEC"), ("grpc-accept-encoding", "gzip")];
            let answer = Answer::read(caller.begin(&path, &headers, body).await).await;
            assert_eq!((answer.status.code(), &*answer.certificates()), (Code::Ok, "0"), "{path}");
            assert_eq!(answer.trailers["x-trailer"], "1");
            assert!(answer.body == framed(message), "{path}");
            let (at, got) = soon(received.recv()).await.unwrap();
            assert_eq!(at, path);
            let mut got: Vec<_> =
                got.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            got.sort();
            let authorization = format!("authorization: Bearer {}", front.setup.token);
            let length = format!("content-length: {}", framed(message).len());
            let expected = [
                &*authorization,
                &*length,
                "content-type: application/grpc",
                "grpc-accept-encoding: gzip",
                "grpc-timeout: 10S",
                "te: trailers",
                "x-any-bin: AAEC",
            ];
            assert_eq!(got, expected, "{path}");
        }
    }
    assert_eq!(provider.accepted(), 1, "calls share a connection");
    for (method, count) in [("SendManifest", 2), ("AttestationQuote", 2), ("ProviderRPC", 2), ("other", 4)] {
        front.until_metric(
            &format!("leasemux_forwarded_calls_total{{method=\"{method}\",code=\"OK\"}}"),
            count,
        );
        let time = format!("leasemux_grpc_upstream_seconds_count{{method=\"{method}\"}}");
        front.until_metric(&time, count);
    }
    // Calls without credentials are the provider's to refuse; other methods of HTTP are none.
    let mut nobody = Caller::connect(&front, normal, PUBLIC, false).await;
    assert_eq!(nobody.call(STATUS, b"").await.status.code(), Code::Ok);
    let get = Request::get(format!("https://{PUBLIC}{STATUS}")).body(Full::default().boxed_unsync()).unwrap();
    let answer = Answer::read(soon(nobody.sender.send_request(get)).await.unwrap()).await;
    assert_eq!(answer.status.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_stream_in_both_directions() {
    let provider = StandIn::grpc(|request| async {
        let messages = request
            .into_body()
            .into_data_stream()
            .map(|data| data.map(Frame::data).map_err(|error| std::io::Error::other(error.to_string())));
        let ended = futures_util::stream::once(async { Ok(trailers("7")) });
        Response::new(StreamBody::new(messages.chain(ended)).boxed_unsync())
    })
    .await;
    let front = start(&provider, &[]);
    let mut caller = Caller::new(&front).await;
    let (send, body) = by_hand();
    let mut response = caller.begin("/a.B/Stream", &[], body).await.into_body();
    for number in 0..3 {
        let message = Bytes::from(framed(format!("message {number}").as_bytes()));
        send.send(message.clone()).await.unwrap();
        assert_eq!(next_message(&mut response).await, message);
    }
    drop(send);
    let end = soon(response.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!((&end["grpc-status"], &end["x-trailer"]), (&"7".parse().unwrap(), &"1".parse().unwrap()));
    front.until_metric("leasemux_forwarded_calls_total{method=\"other\",code=\"PERMISSION_DENIED\"}", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn call_with_a_certificate_needs_a_token() {
    let provider = StandIn::grpc(echo).await;
    let front = start(&provider, &[]);
    // This port has no passed-through connections. An address is asked for by no name.
    let port = front.gateway.address;
    let mut caller = Caller::connect(&front, port, "127.0.0.1", true).await;
    for path in [path("SendManifest"), path("AttestationQuote"), STATUS.to_owned(), "/a.B/C".to_owned()] {
        let answer = caller.call(&path, b"").await;
        let text = "this method needs a token on this gateway";
        assert_eq!(answer.error(), (Code::Unauthenticated, "TOKEN_REQUIRED".to_owned(), text), "{path}");
    }
    let mut caller = caller.with_token(&front.setup.token);
    let answer = caller.call(&path("SendManifest"), b"").await;
    assert_eq!(answer.error().1, "CREDENTIALS_AMBIGUOUS");
    assert_eq!(provider.accepted(), 0);
    front.until_metric("leasemux_auth_refusals_total{reason=\"TOKEN_REQUIRED\"}", 4);
    front.until_metric("leasemux_forwarded_calls_total{method=\"SendManifest\",code=\"UNAUTHENTICATED\"}", 2);
    block_in_place(|| front.gateway.program.until_said("TOKEN_REQUIRED"));
    let log = front.gateway.program.err.get();
    let line = log.lines().find(|line| line.contains("TOKEN_REQUIRED")).unwrap();
    assert!(line.contains("leasemux::audit") && line.contains("method=\"SendManifest\""), "{line}");
    // A call that is served here needs no token.
    let status = block_in_place(|| {
        let args = front.setup.workspace.call_args("status", port, "alice", &front.setup.lease);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        front.setup.workspace.run(&args)
    });
    assert!(status.status.success(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bound_quote_names_the_address_to_call() {
    let provider = StandIn::grpc(echo).await;
    let front = start(&provider, &[]);
    let mut caller = Caller::new(&front).await;
    let bound = b"\x0a\x00\x12\x04abcd\x18\x01".as_slice();
    let answer = caller.call(&path("AttestationQuote"), bound).await;
    let (code, reason, text) = answer.error();
    assert_eq!((code, &*reason), (Code::FailedPrecondition, "CALL_PROVIDER_DIRECTLY"));
    assert!(text.contains(&format!("call mtls.{PUBLIC}:")), "{text}");
    // Compressed.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(bound).unwrap();
    let mut message = framed(&gzip.finish().unwrap());
    message[0] = 1;
    let body = || Full::new(Bytes::from(message.clone())).boxed_unsync();
    let quote = path("AttestationQuote");
    let answer = Answer::read(caller.begin(&quote, &[("grpc-encoding", "gzip")], body()).await).await;
    assert_eq!(answer.error().0, Code::FailedPrecondition);
    // What cannot be read is not forwarded.
    for (encoding, code) in [("zstd", Code::Unimplemented), ("identity", Code::Unimplemented)] {
        let answer = Answer::read(caller.begin(&quote, &[("grpc-encoding", encoding)], body()).await).await;
        assert_eq!(answer.error().0, code, "{encoding}");
    }
    assert_eq!(caller.call(&quote, b"\x18").await.error().0, Code::InvalidArgument);
    assert_eq!(provider.accepted(), 0);
    // Field 3 of another method has another meaning.
    assert_eq!(caller.call(&path("SendManifest"), bound).await.status.code(), Code::Ok);
    drop(front);

    // Without passed-through connections, the provider is at its own address.
    let front = start(&provider, &["--published-mtls=terminate"]);
    let answer = Caller::new(&front).await.call(&quote, bound).await;
    assert!(answer.status.message().contains(&format!("call {}", provider.address)), "{:?}", answer.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_provider_is_unavailable_and_logged() {
    let provider = StandIn::grpc(echo).await;
    let address = provider.address;
    let front = start(&provider, &[]);
    provider.stop().await;
    let mut caller = Caller::new(&front).await;
    let answer = caller.call(&path("SendManifest"), b"").await;
    let text = "the provider behind this gateway cannot be reached; try again later";
    assert_eq!(answer.error(), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".to_owned(), text));
    assert!(answer.status.get_error_details().retry_info().is_some());
    block_in_place(|| front.gateway.program.until_said("failed to connect to the provider"));
    let log = front.gateway.program.err.get();
    assert!(log.contains(&address.to_string()), "{log}");
    assert!(!log.contains(&front.setup.token), "{log}");
    front.until_metric("leasemux_grpc_upstream_failures_total{reason=\"connect\"}", 1);
    // Calls that are served here do not need it.
    let lease = leasemux::model::published::ServicesRequest {
        lease_id: Some((&front.setup.lease).into()),
        services: Vec::new(),
    };
    let message = prost::Message::encode_to_vec(&lease);
    let answer = caller.call(&path("ServiceStatus"), &message).await;
    assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_that_fails_ends_the_call_as_unavailable() {
    let provider = StandIn::grpc(|request| async move {
        if request.uri().path().ends_with("Large") {
            assert!(request.into_body().collect().await.is_err(), "the request must not look complete");
            return Response::new(frames(Vec::new()));
        }
        let first = futures_util::stream::iter([Ok(Frame::data(framed(b"first").into()))]);
        // The reset would overtake the message.
        let second = futures_util::stream::once(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("broken"))
        });
        Response::new(StreamBody::new(first.chain(second)).boxed_unsync())
    })
    .await;
    let front = start(&provider, &[]);
    let mut caller = Caller::new(&front).await;
    let answer = caller.call("/a.B/Stream", b"").await;
    assert_eq!(answer.body, framed(b"first"));
    let (code, reason, text) = answer.error();
    assert_eq!((code, &*reason), (Code::Unavailable, "UPSTREAM_UNAVAILABLE"));
    assert!(text.ends_with("check whether the request took effect"), "{text}");
    front.until_metric("leasemux_grpc_upstream_failures_total{reason=\"broken\"}", 1);
    let answer = caller.call("/a.B/Large", &noise(4 * 1024 * 1024 + 1)).await;
    assert_eq!((answer.error().0, &*answer.error().1), (Code::InvalidArgument, "INVALID_REQUEST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_that_leaves_cancels_its_call() {
    /// Reports its drop.
    struct Running(mpsc::Sender<&'static str>);
    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.try_send("dropped");
        }
    }
    let (seen, mut received) = mpsc::channel(8);
    let provider = StandIn::grpc(move |_| {
        let running = Running(seen.clone());
        async move {
            running.0.send("began").await.unwrap();
            let body = futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
            let body = body.inspect(move |_| _ = &running);
            Response::new(StreamBody::new(body).boxed_unsync())
        }
    })
    .await;
    let front = start(&provider, &[]);
    let mut caller = Caller::new(&front).await;
    let response = caller.begin("/a.B/Stream", &[], Full::default().boxed_unsync()).await;
    assert_eq!(soon(received.recv()).await, Some("began"));
    drop(response);
    assert_eq!(soon(received.recv()).await, Some("dropped"));
    front.until_metric("leasemux_forwarded_calls_total{method=\"other\",code=\"CANCELLED\"}", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn published_port_splices_other_names() {
    let provider = StandIn::grpc(echo).await;
    let front = start(&provider, &[]);
    let mut caller = Caller::connect(&front, front.gateway.published(), NAME, true).await;
    let answer = caller.call(&path("SendManifest"), b"x").await;
    assert_eq!((answer.status.code(), &*answer.certificates()), (Code::Ok, "1"));
    front.until_metric("leasemux_passthrough_connections", 1);
    drop(caller);
    front.until_metric("leasemux_passthrough_connections", 0);
    // The port of the draft terminates them.
    let mut caller = Caller::connect(&front, front.gateway.address, "127.0.0.1", true).await;
    assert_eq!(caller.call(&path("SendManifest"), b"x").await.error().1, "TOKEN_REQUIRED");
    drop((caller, front));
    let front = start(&provider, &["--published-mtls=terminate"]);
    let mut caller = Caller::connect(&front, front.gateway.published(), "127.0.0.1", true).await;
    assert_eq!(caller.call(&path("SendManifest"), b"x").await.error().1, "TOKEN_REQUIRED");
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_streams_and_completes_calls() {
    let (seen, mut received) = mpsc::channel(8);
    let provider = StandIn::grpc(move |request| {
        let seen = seen.clone();
        async move {
            if request.uri().path().ends_with("Stream") {
                let first = futures_util::stream::iter([Ok(Frame::data(framed(b"first").into()))]);
                return Response::new(
                    StreamBody::new(first.chain(futures_util::stream::pending())).boxed_unsync(),
                );
            }
            seen.send(()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(4)).await;
            Response::new(frames(vec![Frame::data(framed(b"done").into()), trailers("0")]))
        }
    })
    .await;
    // The gateway ends before that time, although the caller of the stream never completes its request.
    let front = start(&provider, &["--lame-duck=0s", "--drain-timeout=10m"]);
    let (mut caller, mut other) = (Caller::new(&front).await, Caller::new(&front).await);
    let (_send, body) = by_hand();
    let mut stream = caller.begin("/a.B/Stream", &[], body).await.into_body();
    assert_eq!(next_message(&mut stream).await, framed(b"first"));
    let manifest = path("SendManifest");
    let slow = other.call(&manifest, b"");
    let ended = async {
        soon(received.recv()).await.unwrap();
        front.gateway.program.signal(Signal::TERM);
        let end = soon(stream.frame()).await.unwrap().unwrap().into_trailers().unwrap();
        Status::from_header_map(&end).unwrap()
    };
    let (answer, status) = tokio::join!(slow, ended);
    assert_eq!((status.code(), &*reason(&status)), (Code::Unavailable, "DRAINING"));
    assert_eq!((answer.status.code(), &answer.body[5..]), (Code::Ok, b"done".as_slice()));
    let Front { setup: _setup, gateway, .. } = front;
    let done = block_in_place(|| gateway.program.done());
    assert_eq!(done.status.code(), Some(0), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_peer_are_limited() {
    let provider = StandIn::grpc(|request| async {
        if request.uri().path() == STATUS {
            return echo(request).await;
        }
        let waiting = futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        Response::new(StreamBody::new(waiting).boxed_unsync())
    })
    .await;
    let front = start(&provider, &["--forwarded-per-second=1"]);
    let mut caller = Caller::new(&front).await;
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(caller.begin("/a.B/Stream", &[], Full::default().boxed_unsync()).await);
    }
    let answer = caller.call("/a.B/Stream", b"").await;
    let (code, reason, text) = answer.error();
    assert_eq!((code, &*reason), (Code::Unavailable, "UPSTREAM_UNAVAILABLE"));
    assert!(text.contains("too many requests at present"), "{text}");
    front.until_metric("leasemux_grpc_upstream_failures_total{reason=\"busy\"}", 1);
    drop(open);
    front.until_metric("leasemux_forwarded_calls_total{method=\"other\",code=\"CANCELLED\"}", 64);
    // The rest of the burst, and some that became due meanwhile.
    for count in 0.. {
        let answer = caller.call(STATUS, b"").await;
        if answer.status.code() == Code::ResourceExhausted {
            let details = answer.status.get_error_details();
            let quota = &details.quota_failure().unwrap().violations[0].quota_id;
            assert_eq!(quota, "forwarded_rate_per_peer");
            assert!(count >= 256 - 65, "{count}");
            break;
        }
        assert!(count < 1_000 && answer.status.code() == Code::Ok, "{count}: {:?}", answer.status);
    }
}
