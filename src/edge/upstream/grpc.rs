//! Forwards gRPC calls to the provider as bytes: path, headers, messages and trailers stay as they are.
//!
//! All calls share one HTTP/2 connection, which is opened on demand. It presents no client certificate, so
//! the provider sees the caller's token only. A call is sent once, with its deadline (`grpc-timeout`). The
//! end of a response also ends its request.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::failure::Failure;
use super::headers;
use super::limits::{SharedLimiter, SharedPermit};
use super::target::{Endpoint, Target, TargetError, Trust};
use crate::edge::drain::Drain;
use crate::model::peer::PeerNet;

/// Maximum calls in progress. Bounds the memory for their data: see [`CONNECTION_WINDOW_BYTES`].
const CALLS_MAX: u32 = 256;

/// Maximum bytes of the messages of one request: the default limit of gRPC servers, with the prefix.
const REQUEST_MAX_BYTES: usize = 4 * 1024 * 1024 + 5;

/// Receive window of a call. HTTP/2's default: the answers have a few KiB.
const CALL_WINDOW_BYTES: u32 = 65_535;

/// Receive window of the connection: the windows of all calls, so that callers that read nothing do not stop
/// the others. 16 MiB.
const CONNECTION_WINDOW_BYTES: u32 = CALLS_MAX * CALL_WINDOW_BYTES;

/// Maximum bytes of a request that wait to be sent.
const SEND_MAX_BYTES: usize = 64 * 1024;

/// Maximum size of the headers or trailers of a response.
const HEADERS_MAX_BYTES: u32 = 64 * 1024;

/// Silence after which the provider is pinged. Go servers of Akash refuse more than one such ping in 30 s.
const PING_AFTER: Duration = Duration::from_secs(40);

/// Time limit for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for the headers of the response. The provider limits a manifest, its slowest call, to 120 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(130);

const ALPN_HTTP2: &[u8] = b"h2";

/// The body of a request, of bounded size. Without empty frames: servers close a connection with too many of
/// them, which would end the calls of all callers.
struct Bounded<B> {
    body: Pin<Box<B>>,
    left_bytes: usize,
    /// Set before the body fails for its size: hyper does not report why a body failed.
    is_too_large: Arc<AtomicBool>,
    /// Resolves when the response has ended or is not wanted: the rest of the request is then of no use.
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

type BoxError = Box<dyn StdError + Send + Sync>;
type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Forwards calls to the provider. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamGrpc(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    target: Target,
    authority: Authority,
    /// Locked while connecting, so that calls share one attempt.
    connection: Mutex<Connection>,
    calls: SharedLimiter,
    drain: Drain,
}

/// The shared connection.
#[derive(Debug, Default)]
struct Connection {
    sender: Option<SendRequest<RequestBody>>,
    /// Time of the last failed attempt. Calls that waited for it share its result: one attempt after the
    /// other would let them wait for a long time.
    failed: Option<(Instant, Failure)>,
}

/// The body of a response. Fails if the provider does.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    body: Incoming,
    _permit: SharedPermit,
    /// On drop, ends the request, which a caller may never complete.
    _request: DropGuard,
}

// === impl UpstreamGrpc ===

impl UpstreamGrpc {
    /// Creates a client of the gRPC server at `endpoint`, which presents a certificate for `name`. Connects
    /// with the first call.
    pub(crate) fn new(
        endpoint: Endpoint,
        name: Option<&str>,
        trust: &Trust,
        drain: Drain,
    ) -> Result<Self, TargetError> {
        let target = Target::new(endpoint, name, trust, ALPN_HTTP2)?;
        let host = target.host();
        let authority = Authority::try_from(&*host).map_err(|_| TargetError::Name(host))?;
        let calls = SharedLimiter::new(CALLS_MAX as usize);
        Ok(Self(Arc::new(Inner { target, authority, connection: Mutex::default(), calls, drain })))
    }

    /// Takes a permit for a call of `peer`.
    pub(crate) fn admit(&self, peer: Option<PeerNet>) -> Result<SharedPermit, Failure> {
        self.0.calls.try_acquire(peer).ok_or(Failure::BUSY)
    }

    /// Forwards a call. Dropping the future or the body resets its stream.
    pub(crate) async fn forward<B>(
        &self,
        request: Request<B>,
        permit: SharedPermit,
    ) -> Result<Response<ResponseBody>, Failure>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let is_too_large = Arc::new(AtomicBool::new(false));
        let ended = CancellationToken::new();
        let request = self.rewritten(request, Arc::clone(&is_too_large), &ended);
        let ended = ended.drop_guard();
        let response = tokio::time::timeout(RESPONSE_TIMEOUT, self.send(request)).await;
        let response = response.unwrap_or(Err(Failure::TIMEOUT));
        let (mut head, body) = match response {
            Ok(response) => response.into_parts(),
            Err(_) if is_too_large.load(Relaxed) => return Err(Failure::TOO_LARGE),
            Err(failure) => return Err(failure),
        };
        headers::remove_of_http2(&mut head.headers);
        head.extensions.clear();
        Ok(Response::from_parts(head, ResponseBody { body, _permit: permit, _request: ended }))
    }

    /// Returns the request as the provider gets it.
    fn rewritten<B>(
        &self,
        request: Request<B>,
        is_too_large: Arc<AtomicBool>,
        ended: &CancellationToken,
    ) -> Request<RequestBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut head, body) = request.into_parts();
        headers::remove_of_http2(&mut head.headers);
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(head.uri.authority().unwrap_or(&self.0.authority).clone());
        uri.path_and_query =
            Some(head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
        // All three parts are set, so this does not fail.
        head.uri = Uri::from_parts(uri).unwrap_or(head.uri);
        head.version = Version::HTTP_2;
        head.extensions.clear();
        let ended = Box::pin(ended.clone().cancelled_owned());
        let body = Bounded { body: Box::pin(body), left_bytes: REQUEST_MAX_BYTES, is_too_large, ended };
        Request::from_parts(head, body.boxed_unsync())
    }

    /// Sends a call on the shared connection. If that one closes before the call is sent, sends it on
    /// another.
    async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, Failure> {
        let mut unsent = request;
        for is_last in [false, true] {
            let mut connection = self.connection().await?;
            match connection.try_send_request(unsent).await {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message() {
                    Some(request) if !is_last => unsent = request,
                    _ => return Err(failure_of(&error.into_error())),
                },
            }
        }
        Err(Failure::CONNECT)
    }

    async fn connection(&self) -> Result<SendRequest<RequestBody>, Failure> {
        let asked = Instant::now();
        let mut shared = self.0.connection.lock().await;
        if let Some(sender) = shared.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        if let Some((failed, failure)) = shared.failed
            && failed > asked
        {
            return Err(failure);
        }
        // Boxed, because few calls connect, and each would reserve memory for it.
        match Box::pin(self.connect()).await {
            Ok(sender) => {
                shared.sender = Some(sender.clone());
                Ok(sender)
            }
            Err(failure) => {
                shared.failed = Some((Instant::now(), failure));
                Err(failure)
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<RequestBody>, Failure> {
        let tls = self.0.target.connect().await.map_err(|error| error.failure())?;
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() != Some(ALPN_HTTP2) {
            self.0.target.report(&"it does not speak HTTP/2, which gRPC needs");
            return Err(Failure::CONNECT);
        }
        let mut builder = http2::Builder::new(Background(self.0.drain.clone()));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(CALL_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_MAX_BYTES)
            .max_header_list_size(HEADERS_MAX_BYTES)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT);
        let (sender, connection) =
            builder.handshake(TokioIo::new(tls)).await.map_err(|error| failure_of(&error))?;
        self.0.drain.spawn_background(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the provider's gRPC server failed");
            }
        });
        Ok(sender)
    }
}

/// Runs the tasks of the connection until the last step of shutdown.
#[derive(Clone, Debug)]
struct Background(Drain);

impl<F> hyper::rt::Executor<F> for Background
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn_background(task);
    }
}

fn failure_of(error: &hyper::Error) -> Failure {
    tracing::debug!(error = error as &dyn StdError, "call to the provider failed");
    Failure::BROKEN
}

// === impl Bounded ===

impl<B> Body for Bounded<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the call has ended".into())));
        }
        loop {
            let frame = match ready!(this.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
            };
            match frame.data_ref().map(Bytes::len) {
                Some(0) => {}
                Some(bytes) if bytes > this.left_bytes => {
                    this.is_too_large.store(true, Relaxed);
                    return Poll::Ready(Some(Err(Failure::TOO_LARGE.into())));
                }
                bytes => {
                    this.left_bytes -= bytes.unwrap_or_default();
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl ResponseBody ===

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = ready!(Pin::new(&mut self.get_mut().body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(|error| failure_of(&error))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
