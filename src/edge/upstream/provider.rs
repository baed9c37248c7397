//! Forwards HTTP/1.1 requests to the provider, and tunnels websockets.
//!
//! A request is parsed by hyper and written anew, so that what the provider reads is what the gateway saw.
//! Method, path, query, `Host` and body stay as they are. Bodies are streamed both ways. A request is sent
//! once, because `PUT` and `POST` may have taken effect; only if the provider has closed a reused connection
//! before any byte of the request was written, it is sent on another one.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, RETRY_AFTER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::copy::{Copied, CopyLimits, copy_both};
use super::failure::Failure;
use super::headers;
use super::limits::{SharedLimiter, SharedPermit, TunnelLimiter, TunnelPermit};
use super::pool::Pool;
use super::target::{Endpoint, Target, TargetError, Trust};
use crate::edge::drain::Drain;
use crate::model::peer::PeerNet;

/// Maximum size of a request body. Manifests, the largest ones, have a few KiB.
pub(crate) const REQUEST_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Maximum forwarded requests in progress, tunnels not counted. Each has a connection to the provider.
const REQUESTS_MAX: usize = 1_024;

/// Time limit for a request body: 4 MiB on a line of 120 kbit/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Time limit for the head of the response, from the end of the request. The provider itself limits a
/// manifest, its slowest request, to 120 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(130);

/// Time without a byte of the response's body after which the response is cut.
const RESPONSE_IDLE: Duration = RESPONSE_TIMEOUT;

/// Time for which a rejection waits for the rest of the request. A client that still sends may see a reset
/// connection, and not the response.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// Maximum bytes discarded so.
const DISCARD_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Time without a byte after which a tunnel is closed. The provider pings every 10 s, and a shell may be
/// forgotten by its user.
const TUNNEL_IDLE: Duration = Duration::from_secs(300);

/// The same after one side has ended: the other one has no use for the rest.
const TUNNEL_HALF_CLOSED: Duration = Duration::from_secs(5);

/// Time limit for the switch of both connections after the response 101.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of the head of a response, and of the buffer for any part of one. By default the buffer grows
/// to 400 KiB, for each of [`REQUESTS_MAX`].
const RESPONSE_HEAD_MAX_BYTES: usize = 64 * 1024;

const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Forwards requests to the provider. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamProvider {
    target: Target,
    /// `Host` of an HTTP/1.0 request without one.
    host: HeaderValue,
    pool: Pool<RequestBody>,
    requests: SharedLimiter,
    tunnels: TunnelLimiter,
    drain: Drain,
}

/// The body of a response: the provider's, or the text of a failure.
#[derive(Debug)]
pub(crate) struct ResponseBody(Content);

#[derive(Debug)]
enum Content {
    /// Ends after the text.
    Text(Option<Bytes>),
    /// The provider's body. Boxed, because most connections have none.
    Streamed(Box<Streamed>),
}

/// A body that the provider sends.
#[derive(Debug)]
struct Streamed {
    body: Incoming,
    /// Goes back to the pool at the end of the body. Closed if the body is dropped before.
    sender: Option<SendRequest<RequestBody>>,
    pool: Pool<RequestBody>,
    /// Runs while the body waits for the provider.
    idle: Pin<Box<Sleep>>,
    is_waiting: bool,
    _permit: SharedPermit,
}

/// Why a body ends early. The connection must be closed, so that the recipient notices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the provider's response is incomplete: {0}")]
    Provider(hyper::Error),
    #[error("the provider sent nothing for {RESPONSE_IDLE:?}")]
    Idle,
}

/// The body of a forwarded request, of limited size.
#[derive(Debug)]
struct RequestBody {
    body: Limited<Incoming>,
    /// Dropped with the body: the request was sent, or given up.
    _sent: oneshot::Sender<()>,
}

/// Why the body of a request is not forwarded whole.
#[derive(Debug, thiserror::Error)]
enum RequestBodyError {
    #[error("it is longer than {REQUEST_MAX_BYTES} bytes")]
    TooLarge,
    #[error("it is malformed or incomplete")]
    Malformed(#[source] Box<dyn StdError + Send + Sync>),
}

/// A websocket handshake in progress.
struct Handshake {
    client: OnUpgrade,
    permit: TunnelPermit,
}

// === impl UpstreamProvider ===

impl UpstreamProvider {
    /// Creates a client of the provider at `endpoint`, which presents a certificate for `name`.
    pub(crate) fn new(
        endpoint: Endpoint,
        name: Option<&str>,
        trust: &Trust,
        tunnels: TunnelLimiter,
        drain: Drain,
    ) -> Result<Self, TargetError> {
        let target = Target::new(endpoint, name, trust, ALPN_HTTP1)?;
        let host = target.host();
        let host = HeaderValue::from_str(&host).map_err(|_| TargetError::Name(host))?;
        let (pool, requests) = (Pool::default(), SharedLimiter::new(REQUESTS_MAX));
        Ok(Self { target, host, pool, requests, tunnels, drain })
    }

    /// Returns whether the provider accepts TCP connections.
    pub(crate) async fn is_reachable(&self) -> bool {
        self.target.is_reachable().await
    }

    /// Forwards a request, which counts for the limits of `peer`. Returns the provider's response, or a text
    /// with the status of the [`Failure`], which is then an extension of the response. After a response 101
    /// it passes the tunnel to `run_tunnel`: a task that copies bytes both ways, until one side ends or the
    /// gateway drains. Dropping the future, the body or the tunnel closes the connection to the provider.
    pub(crate) async fn forward(
        &self,
        mut request: Request<Incoming>,
        peer: Option<PeerNet>,
        run_tunnel: impl FnOnce(BoxFuture<'static, ()>),
    ) -> Response<ResponseBody> {
        match check(&request).and_then(|()| self.admit(&mut request, peer)) {
            Ok((permit, handshake)) => {
                let response = self.exchange(request, permit, handshake, run_tunnel).await;
                response.unwrap_or_else(failed)
            }
            Err(failure) => {
                // A client that waits for 100 gets the rejection instead. Reading would ask it for the body.
                if !request.headers().contains_key(EXPECT) {
                    discard(request.into_body()).await;
                }
                failed(failure)
            }
        }
    }

    /// Takes the permits of a request, and prepares a tunnel if it asks for one.
    fn admit(
        &self,
        request: &mut Request<Incoming>,
        peer: Option<PeerNet>,
    ) -> Result<(SharedPermit, Option<Handshake>), Failure> {
        let of_request = self.requests.try_acquire(peer).ok_or(Failure::BUSY)?;
        let is_upgrade = request.version() == Version::HTTP_11
            && request.body().is_end_stream()
            && headers::is_websocket_upgrade(request.headers());
        if !is_upgrade {
            return Ok((of_request, None));
        }
        let permit = self.tunnels.try_acquire(peer).ok_or(Failure::BUSY)?;
        Ok((of_request, Some(Handshake { client: hyper::upgrade::on(request), permit })))
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        permit: SharedPermit,
        handshake: Option<Handshake>,
        run_tunnel: impl FnOnce(BoxFuture<'static, ()>),
    ) -> Result<Response<ResponseBody>, Failure> {
        let (sent, mut request_end) = oneshot::channel();
        let request = self.rewritten(request, handshake.is_some(), sent);
        let too_late = async {
            match tokio::time::timeout(REQUEST_TIMEOUT, &mut request_end).await {
                Ok(_) => {
                    tokio::time::sleep(RESPONSE_TIMEOUT).await;
                    Failure::TIMEOUT
                }
                Err(_) => Failure::SLOW_REQUEST,
            }
        };
        let (response, sender) = tokio::select! {
            biased;
            sent = self.send(request) => sent?,
            failure = too_late => return Err(failure),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let handshake = handshake.ok_or(Failure::BROKEN)?;
            return self.tunnel(response, handshake, run_tunnel);
        }
        let (mut head, body) = response.into_parts();
        headers::remove_of_http1(&mut head.headers);
        // hyper writes the version of the client's request.
        head.version = Version::HTTP_11;
        let body = Streamed::new(body, sender, self.pool.clone(), permit);
        Ok(Response::from_parts(head, ResponseBody(Content::Streamed(Box::new(body)))))
    }

    /// Returns the request as the provider gets it.
    fn rewritten(
        &self,
        request: Request<Incoming>,
        is_upgrade: bool,
        sent: oneshot::Sender<()>,
    ) -> Request<RequestBody> {
        let (mut head, body) = request.into_parts();
        let is_chunked = head.headers.contains_key(TRANSFER_ENCODING);
        headers::remove_of_http1(&mut head.headers);
        // hyper has sent 100 when the body is polled.
        head.headers.remove(EXPECT);
        if is_chunked {
            // For a GET, hyper would leave the body out.
            head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if is_upgrade {
            headers::add_websocket_upgrade(&mut head.headers);
        }
        head.headers.entry(HOST).or_insert_with(|| self.host.clone());
        head.version = Version::HTTP_11;
        head.extensions.clear();
        Request::from_parts(head, RequestBody { body: Limited::new(body, REQUEST_MAX_BYTES), _sent: sent })
    }

    /// Sends a request, and returns the head of the response with its connection.
    async fn send(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, SendRequest<RequestBody>), Failure> {
        while let Some(mut sender) = self.pool.take().await {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut error) => match error.take_message() {
                    // Nothing was written: the provider has closed the idle connection.
                    Some(unsent) => request = unsent,
                    None => return Err(failure_of(&error.into_error())),
                },
            }
        }
        let mut sender = match self.connect().await {
            Ok(sender) => sender,
            Err(failure) => {
                discard(request.into_body()).await;
                return Err(failure);
            }
        };
        match sender.send_request(request).await {
            Ok(response) => Ok((response, sender)),
            Err(error) => Err(failure_of(&error)),
        }
    }

    async fn connect(&self) -> Result<SendRequest<RequestBody>, Failure> {
        let tls = self.target.connect().await.map_err(|error| error.failure())?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(RESPONSE_HEAD_MAX_BYTES);
        let (sender, connection) = builder.handshake(TokioIo::new(tls)).await.map_err(|error| {
            tracing::debug!(%error, "failed to connect to the provider");
            Failure::CONNECT
        })?;
        // Ends with the sender, or when the provider closes the connection.
        self.drain.spawn_background(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the provider failed");
            }
        });
        Ok(sender)
    }

    /// Creates the tunnel after the response 101.
    fn tunnel(
        &self,
        mut response: Response<Incoming>,
        handshake: Handshake,
        run_tunnel: impl FnOnce(BoxFuture<'static, ()>),
    ) -> Result<Response<ResponseBody>, Failure> {
        if !headers::is_websocket_upgrade(response.headers()) {
            return Err(Failure::BROKEN);
        }
        let Handshake { client, permit } = handshake;
        let upstream = hyper::upgrade::on(&mut response);
        let drain = self.drain.clone();
        run_tunnel(Box::pin(async move {
            let tunnel = async {
                let both = async { tokio::try_join!(client, upstream) };
                let (client, upstream) = match tokio::time::timeout(UPGRADE_TIMEOUT, both).await {
                    Ok(Ok(both)) => both,
                    Ok(Err(error)) => return tracing::debug!(%error, "failed to start tunnel"),
                    Err(_) => return tracing::debug!("failed to start tunnel: client left"),
                };
                let limits = CopyLimits { idle: TUNNEL_IDLE, half_closed: TUNNEL_HALF_CLOSED };
                let copied = copy_both(TokioIo::new(client), TokioIo::new(upstream), limits).await;
                let Copied { from_client_bytes, from_upstream_bytes, end } = copied;
                tracing::debug!(from_client_bytes, from_upstream_bytes, ?end, "tunnel ended");
            };
            tokio::select! {
                biased;
                () = drain.draining() => {}
                () = tunnel => {}
            }
            drop(permit);
        }));
        let (mut head, _) = response.into_parts();
        headers::remove_of_http1(&mut head.headers);
        headers::add_websocket_upgrade(&mut head.headers);
        head.extensions.clear();
        Ok(Response::from_parts(head, ResponseBody(Content::Text(None))))
    }
}

fn check(request: &Request<Incoming>) -> Result<(), Failure> {
    if request.body().size_hint().lower() > REQUEST_MAX_BYTES as u64 {
        return Err(Failure::TOO_LARGE);
    }
    check_head(request.method(), request.uri(), request.version(), request.headers())
}

/// Checks the parts of a request that the provider could understand differently.
fn check_head(method: &Method, uri: &Uri, version: Version, headers: &HeaderMap) -> Result<(), Failure> {
    let has_path = uri.path_and_query().is_some_and(|path| path.as_str().starts_with('/'));
    if method == Method::CONNECT || uri.scheme().is_some() || uri.authority().is_some() || !has_path {
        return Err(Failure::bad_request("the request target must be a path that begins with /"));
    }
    let count = |name| headers.get_all(name).iter().count();
    if count(HOST) > 1 || (count(HOST) == 0 && version == Version::HTTP_11) {
        return Err(Failure::bad_request("the request needs exactly one Host header"));
    }
    if count(CONTENT_LENGTH) > 1 || (count(CONTENT_LENGTH) > 0 && count(TRANSFER_ENCODING) > 0) {
        return Err(Failure::bad_request(
            "the request has more than one length: send either Content-Length or Transfer-Encoding",
        ));
    }
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if encodings.next().is_some_and(|one| !one.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || encodings.next().is_some()
    {
        return Err(Failure::bad_request("the only supported Transfer-Encoding is chunked"));
    }
    Ok(())
}

/// Returns the response for a failure, which is one of its extensions.
fn failed(failure: Failure) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::text(failure.text));
    *response.status_mut() = failure.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if failure.status() == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if failure.status() == StatusCode::BAD_REQUEST {
        // The gateway and the client may disagree on where the request ends.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.extensions_mut().insert(failure);
    response
}

/// Reads and discards the rest of a request, for a moment.
async fn discard(body: impl Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Unpin) {
    let mut body = Limited::new(body, DISCARD_MAX_BYTES);
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    // The reason for stopping makes no difference.
    let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
}

/// Returns the reason why a request has no response.
fn failure_of(error: &hyper::Error) -> Failure {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(one) = cause {
        match one.downcast_ref::<RequestBodyError>() {
            Some(RequestBodyError::TooLarge) => return Failure::TOO_LARGE,
            Some(RequestBodyError::Malformed(_)) => {
                return Failure::bad_request("the request body is malformed or incomplete");
            }
            None => cause = one.source(),
        }
    }
    tracing::debug!(error = error as &dyn StdError, "request to the provider failed");
    Failure::BROKEN
}

// === impl RequestBody ===

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let frame = ready!(Pin::new(&mut self.get_mut().body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| match error.downcast::<LengthLimitError>() {
                Ok(_) => RequestBodyError::TooLarge,
                Err(error) => RequestBodyError::Malformed(error),
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    fn text(text: &str) -> Self {
        Self(Content::Text(Some(Bytes::from(format!("{text}\n")))))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.get_mut().0 {
            Content::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Content::Streamed(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Text(text) => text.is_none(),
            Content::Streamed(streamed) => streamed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Content::Streamed(streamed) => streamed.body.size_hint(),
        }
    }
}

// === impl Streamed ===

impl Streamed {
    fn new(
        body: Incoming,
        sender: SendRequest<RequestBody>,
        pool: Pool<RequestBody>,
        permit: SharedPermit,
    ) -> Self {
        let idle = Box::pin(tokio::time::sleep(RESPONSE_IDLE));
        let mut streamed =
            Self { body, sender: Some(sender), pool, idle, is_waiting: false, _permit: permit };
        streamed.release_at_end();
        streamed
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let was_waiting = std::mem::take(&mut self.is_waiting);
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.release_at_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.sender = None;
                Poll::Ready(Some(Err(BodyError::Provider(error))))
            }
            Poll::Ready(None) => {
                self.release();
                Poll::Ready(None)
            }
            Poll::Pending => {
                if !was_waiting {
                    self.idle.as_mut().reset(Instant::now() + RESPONSE_IDLE);
                }
                self.is_waiting = true;
                ready!(self.idle.as_mut().poll(cx));
                self.sender = None;
                Poll::Ready(Some(Err(BodyError::Idle)))
            }
        }
    }

    /// Gives the connection back when the body has ended: hyper does not poll an ended body again.
    fn release_at_end(&mut self) {
        if self.body.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.pool.put(sender);
        }
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}
