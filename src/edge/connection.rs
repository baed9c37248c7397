//! One connection: HTTP/2 within our limits, and the dispatch of requests by path.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use h2::Reason;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::drain::Drain;
use super::forward::{CallForwarder, ForwardedCall, method_at, unknown_method};
use super::frame_limit::{Flooded, FrameLimited};
use super::peer_limits::{AuthState, PeerLimits, ShutOutNotice};
use super::published::DefaultProto;
use super::request_body::{BodyDiscarder, RequestBody};
use super::response::{self, CallMetrics, ResponseBody};
use super::service::{ConnectionInfo, LeaseMethod, LeaseService};
use super::stream_supervisor::{Handoff, StreamCount, StreamExecutor};
use crate::access::authenticator::ClientCertificate;
use crate::model::limits::{Limits, STREAM_HELD_BYTES};
use crate::model::metrics::{ConnectionEnd, GaugeGuard, Metrics};
use crate::model::peer::PeerNet;
use crate::model::rate::{Bucket, Rate};
use crate::sys::gated_poll::Gated;

/// Path prefix of the health service, by which a balancer polls readiness.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Path prefix of reflection, in any version.
const REFLECTION: &str = "/grpc.reflection.";

/// Least time between two log lines about floods. The metric counts all of them.
const FLOOD_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Time for each of two steps when a peer is shut out, on a connection that has not authenticated:
///
/// 1. Wait for the next call, which is answered with the reason, or for this time. Then send GOAWAY.
/// 2. After GOAWAY, calls in progress may still authenticate for this time.
///
/// Then the connection is cut, because a peer can ignore GOAWAY and continue to call.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// Serves connections. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Connections {
    pub(super) service: LeaseService,
    routes: Routes,
    pub(super) limits: Arc<Limits>,
    pub(super) metrics: Metrics,
    pub(super) drain: Drain,
    /// One for each connection that may be open, on all ports together.
    pub(super) permits: Arc<Semaphore>,
    /// Limits the log lines about floods.
    flood_log: Arc<Mutex<Bucket>>,
    discarder: BodyDiscarder,
    /// `None`: calls that the gateway does not serve are answered with an error.
    forwarder: Option<CallForwarder>,
}

/// Decides when a connection must close because its peer is shut out or floods the gateway with calls.
pub(super) struct PeerWatch {
    /// `None`: the address is not known.
    peer: Option<(ShutOutNotice, PeerNet)>,
    limits: PeerLimits,
    auth: AuthState,
}

/// HTTP/2 on one connection.
type Http<IO> = http2::Connection<TokioIo<FrameLimited<IO>>, RequestDispatcher, StreamExecutor>;

/// The states of a connection. In all but the first, the peer has got GOAWAY and its calls in progress are
/// still answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    /// Ends by the peer, or turns into one of the others.
    Serving,
    /// No call was in progress for too long.
    Idle,
    /// The peer is shut out, or floods the gateway with calls. Cut if it does not close in time.
    ShutOut,
    /// The gateway drains. Cut at the drain deadline.
    Draining,
}

/// What must happen to a connection.
enum ConnectionEvent {
    Cut,
    /// It gets GOAWAY, and changes to this state.
    GoAway(ConnectionState),
}

/// The service of one connection: dispatches requests to the lease service, health or reflection.
struct RequestDispatcher {
    connections: Connections,
    info: ConnectionInfo,
    handoff: Handoff,
    /// Notified of each call.
    called: Arc<Notify>,
}

// === impl Connections ===

impl Connections {
    /// Creates connections that lead to `service`, and for all other paths to `routes`. Limits, metrics and
    /// drain are those of `service`.
    pub fn new(service: LeaseService, routes: Routes) -> Self {
        let context = service.actors.context();
        let (limits, metrics) = (Arc::clone(&context.limits), context.metrics.clone());
        let drain = service.drain.clone();
        let flood_log = Arc::new(Mutex::new(Bucket::new(Rate::new(1, FLOOD_LOG_INTERVAL))));
        let discarder = BodyDiscarder::new(drain.clone());
        let permits = Arc::new(Semaphore::new(limits.connection.max));
        Self { service, routes, limits, metrics, drain, permits, flood_log, discarder, forwarder: None }
    }

    /// Returns connections whose calls that the gateway does not serve are forwarded.
    #[must_use]
    pub(crate) fn with_forwarder(self, forwarder: CallForwarder) -> Self {
        Self { forwarder: Some(forwarder), ..self }
    }

    /// Returns connections of a port of this proto, within the same limits.
    #[must_use]
    pub fn for_proto(&self, proto: DefaultProto) -> Self {
        Self { service: self.service.for_proto(proto), ..self.clone() }
    }

    /// Serves a connection from `address` until it ends. Returns why it ended. Dropping the future cuts the
    /// connection.
    pub fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        certificate: ClientCertificate,
        address: Option<SocketAddr>,
    ) -> impl Future<Output = ConnectionEnd> + Send {
        self.serve_connection(io, ConnectionInfo::new(certificate, address))
    }

    /// Serves a connection as [`Connections::serve`] does.
    pub(super) fn serve_connection<IO>(
        &self,
        io: IO,
        info: ConnectionInfo,
    ) -> impl Future<Output = ConnectionEnd> + Send
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (streams, called) = (StreamCount::default(), Arc::new(Notify::new()));
        let watch = PeerWatch::new(&self.service.peers, &info);
        let (address, flooded, handoff) = (info.address, Flooded::default(), Handoff::default());
        let executor = StreamExecutor {
            handoff: handoff.clone(),
            streams: streams.clone(),
            drain: self.drain.clone(),
            address,
            stall: self.limits.stall,
            metrics: self.metrics.clone(),
            class: info.class.clone(),
        };
        let limits = &self.limits.connection;
        let mut http = http2::Builder::new(executor);
        http.timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_send_buf_size(STREAM_HELD_BYTES)
            .max_header_list_size(limits.header_max_bytes)
            .max_pending_accept_reset_streams(limits.pending_resets)
            .max_local_error_reset_streams(limits.error_resets)
            .initial_stream_window_size(limits.window_bytes)
            .initial_connection_window_size(limits.window_bytes)
            .keep_alive_interval(limits.keepalive)
            // A peer that takes nothing cannot answer a PING either. It has as long as its streams.
            .keep_alive_timeout(self.limits.stall);
        let io = TokioIo::new(FrameLimited::new(io, flooded.clone()));
        let dispatcher =
            RequestDispatcher { connections: self.clone(), info, handoff, called: Arc::clone(&called) };
        // Boxed before the first await: a future reserves memory for each value moved through it, and idle
        // connections are many.
        let connection = Box::pin(http.serve_connection(io, dispatcher));
        let ending = self.run(connection, streams, called, watch);
        async move {
            let end = ending.await;
            if flooded.is_set() { self.count_flood(end, address) } else { end }
        }
    }

    /// Counts a connection that was cut because of too many control frames as the peer's failure, unless
    /// `end` shows that it was counted as one.
    fn count_flood(&self, end: ConnectionEnd, address: Option<SocketAddr>) -> ConnectionEnd {
        let now = Instant::now().into_std();
        if self.flood_log.lock().try_take(1, now).is_ok() {
            tracing::warn!(peer = ?address, "closed connection: too many HTTP/2 control frames");
        }
        if let Some(address) = address
            && !matches!(end, ConnectionEnd::PeerFault)
        {
            self.service.peers.record_failure(PeerNet::from(address.ip()), now);
        }
        ConnectionEnd::Flood
    }

    async fn run<IO>(
        &self,
        mut connection: Pin<Box<Http<IO>>>,
        streams: StreamCount,
        called: Arc<Notify>,
        watch: PeerWatch,
    ) -> ConnectionEnd
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = GaugeGuard::new(&self.metrics.connections);
        let mut state = ConnectionState::Serving;
        // A connection without a call is closed after `first_call`, or at once when the gateway drains.
        tokio::select! {
            biased;
            () = called.notified() => {}
            () = watch.must_go_away() => {
                state = ConnectionState::ShutOut;
                connection.as_mut().graceful_shutdown();
            }
            () = self.drain.draining() => return ConnectionEnd::Drain,
            () = tokio::time::sleep(self.limits.connection.first_call) => return ConnectionEnd::Idle,
            ended = &mut connection => return watch.record_end(ended, state),
        }
        loop {
            // Gated: the wake-ups for log lines need not poll this.
            let mut event = Gated::new(Box::pin(self.next_event(state, &streams, &watch)));
            tokio::select! {
                biased;
                event = &mut event => match event {
                    ConnectionEvent::Cut if state == ConnectionState::ShutOut => return ConnectionEnd::ShutOut,
                    ConnectionEvent::Cut => return ConnectionEnd::Cut,
                    ConnectionEvent::GoAway(next) => {
                        state = next;
                        connection.as_mut().graceful_shutdown();
                    }
                },
                ended = &mut connection => return watch.record_end(ended, state),
            }
        }
    }

    async fn next_event(
        &self,
        state: ConnectionState,
        streams: &StreamCount,
        watch: &PeerWatch,
    ) -> ConnectionEvent {
        use ConnectionState::{Draining, Idle, Serving, ShutOut};
        tokio::select! {
            biased;
            () = self.drain.deadline() => ConnectionEvent::Cut,
            () = watch.must_be_cut(), if state == ShutOut => ConnectionEvent::Cut,
            () = self.drain.draining(), if state != Draining => ConnectionEvent::GoAway(Draining),
            () = watch.must_go_away(), if matches!(state, Serving | Idle) => ConnectionEvent::GoAway(ShutOut),
            () = streams.idle(self.limits.connection.idle), if state == Serving => ConnectionEvent::GoAway(Idle),
        }
    }
}

// === impl PeerWatch ===

impl PeerWatch {
    pub(super) fn new(limits: &PeerLimits, info: &ConnectionInfo) -> Self {
        let peer = info.net().map(|net| (limits.register_connection(net), net));
        Self { peer, limits: limits.clone(), auth: info.auth.clone() }
    }

    /// Waits until the connection must get GOAWAY, or the counterpart of HTTP/1.1: its peer is shut out and
    /// no call on it has authenticated, or it floods the gateway with rejected calls, which counts as a
    /// failure of the peer.
    pub(super) async fn must_go_away(&self) {
        let Some((notice, net)) = &self.peer else {
            return std::future::pending().await;
        };
        let shut_out = async {
            notice.shut_out().await;
            // The call or the time, whichever is first.
            let _ = tokio::time::timeout(LEAVE_WITHIN, self.auth.shut_out_rejected()).await;
            self.pending_if_authenticated().await;
        };
        tokio::select! {
            biased;
            () = self.auth.flooded() => self.limits.record_failure(*net, Instant::now().into_std()),
            () = shut_out => {}
        }
    }

    /// Waits until a connection that got GOAWAY must be cut: the time is up and no call on it has
    /// authenticated, or it continues to flood.
    pub(super) async fn must_be_cut(&self) {
        let time = async {
            tokio::time::sleep(LEAVE_WITHIN).await;
            self.pending_if_authenticated().await;
        };
        tokio::select! {
            biased;
            // A flood is cut at once, even if it has authenticated.
            () = self.auth.flooded() => {}
            () = time => {}
        }
    }

    /// Counts a fault of the peer as its failure.
    pub(super) fn record_fault(&self) {
        if let Some((_, net)) = &self.peer {
            self.limits.record_failure(*net, Instant::now().into_std());
        }
    }

    async fn pending_if_authenticated(&self) {
        if self.auth.is_authenticated() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns why a connection ended, and counts a fault of its peer.
    fn record_end(&self, ended: hyper::Result<()>, state: ConnectionState) -> ConnectionEnd {
        if let Err(error) = &ended {
            tracing::debug!(%error, "connection failed");
            if is_peer_fault(error) {
                self.record_fault();
                return ConnectionEnd::PeerFault;
            }
        }
        match (ended, state) {
            (_, ConnectionState::Idle) => ConnectionEnd::Idle,
            (_, ConnectionState::ShutOut) => ConnectionEnd::ShutOut,
            (Ok(()), ConnectionState::Draining) => ConnectionEnd::Drain,
            (Ok(()), ConnectionState::Serving) => ConnectionEnd::Peer,
            (Err(_), _) => ConnectionEnd::Error,
        }
    }
}

/// Returns whether an error that ended a connection is the peer's fault, and so a failure like a failed
/// authentication:
///
/// - An HTTP/2 error of the whole connection, found by the library: the frames break the protocol, or are a
///   flood (`ENHANCE_YOUR_CALM`: streams that are reset at once, streams that must be reset, endless headers
///   or empty frames).
/// - A GOAWAY of the peer with an error code. The library then reports the peer's code in place of its own,
///   so a flood after such a frame looks like an orderly end. Clients that close in order send `NO_ERROR`.
/// - TLS that breaks after the handshake.
///
/// Everything else is not: a connection that is reset or vanishes, ends in order, or was closed by the
/// gateway.
fn is_peer_fault(error: &hyper::Error) -> bool {
    let Some(http) = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>()) else {
        return breaks_tls(error);
    };
    match http.get_io() {
        Some(error) => is_broken_tls(error),
        None => http.is_go_away() && http.reason().is_some_and(|reason| reason != Reason::NO_ERROR),
    }
}

/// Returns whether TLS has failed by data that the TLS library rejects.
pub(super) fn breaks_tls(error: &hyper::Error) -> bool {
    error.source().and_then(|cause| cause.downcast_ref()).is_some_and(is_broken_tls)
}

/// The TLS stream uses `InvalidData` for data that the TLS library rejects, and for nothing else.
fn is_broken_tls(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

// === impl RequestDispatcher ===

impl Service<Request<Incoming>> for RequestDispatcher {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.called.notify_one();
        let Connections { service, routes, metrics, drain, discarder, forwarder, .. } = &self.connections;
        let supervisor = self.handoff.begin();
        let mut request = request.map(|body| RequestBody::new(body, discarder.clone()));
        let path = request.uri().path();
        if let Some(method) = LeaseMethod::at(path) {
            let trace = service.trace(method, request.headers());
            let metrics = CallMetrics::start(metrics, method.draft(), trace.clone());
            let call = service.clone().call(method, self.info.clone(), request, supervisor, trace);
            return Box::pin(async move { Ok(metrics.count(call.await)) });
        }
        if path.starts_with(HEALTH) {
            drain.note_readiness_poll();
        }
        let is_known = [HEALTH, REFLECTION].iter().any(|service| path.starts_with(service));
        if let Some(forwarder) = forwarder
            && !is_known
        {
            let call = ForwardedCall::start(metrics, method_at(path), service, request.headers());
            let (forwarder, service) = (forwarder.clone(), service.clone());
            let info = self.info.clone();
            return Box::pin(
                async move { Ok(forwarder.call(call, &service, &info, request, &supervisor).await) },
            );
        }
        let unknown = (!is_known).then(|| unknown_method(path));
        match service.admit_anonymous(&self.info, &mut request) {
            Ok(permit) => supervisor.hold(permit),
            Err(rejected) => {
                return Box::pin(async move {
                    request.into_body().finish().await;
                    Ok(*rejected)
                });
            }
        }
        let control = supervisor.supervise_foreign(drain.clone());
        let routes = routes.clone();
        Box::pin(async move {
            if let Some(error) = unknown {
                request.into_body().finish().await;
                return Ok(response::of_status(error.to_status()));
            }
            let call = routes.oneshot(request.map(tonic::body::Body::new));
            call.await.map(|response| response.map(|body| ResponseBody::of_foreign(body, control)))
        })
    }
}
