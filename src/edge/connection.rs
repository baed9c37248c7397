//! One connection: HTTP/2 with our bounds, and the way from a path to a service.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::auth_state::AuthState;
use super::calls::{Call, Counted};
use super::drain::Drain;
use super::fault;
use super::frame_limit::{Flooded, FrameLimited};
use super::idle::StreamCount;
use super::peer_limits::{PeerLimits, ShutOutNotice};
use super::request_body::{Discards, RequestBody};
use super::response::{OtherBody, ResponseBody};
use super::service::{Caller, LeaseService, Method};
use super::stream_supervisor::{Handoff, StreamExecutor};
use crate::access::authenticator::Peer;
use crate::model::limits::{Limits, STREAM_HELD_BYTES};
use crate::model::metrics::{ConnectionEnd, GaugeGuard, Metrics};
use crate::model::peer::PeerNet;
use crate::model::rate::{Bucket, Rate};
use crate::stream::gated_poll::Gated;

/// Calls of the health service, by which a balancer polls readiness.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Least time between two log lines about floods. The metric counts all of them.
const FLOOD_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Calls of reflection, in any version.
const REFLECTION: &str = "/grpc.reflection.";

/// When a peer is shut out, a connection that has not authenticated gets GOAWAY after its next call, which is told the reason, or
/// after this time. After GOAWAY, calls under way may still authenticate for as long. Then the connection is cut, because a peer
/// can ignore GOAWAY and call on.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// Serves connections. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Connections {
    service: LeaseService,
    routes: Routes,
    limits: Arc<Limits>,
    /// What is counted; also by who accepts them.
    pub(super) metrics: Metrics,
    drain: Drain,
    /// Limits the log lines about floods.
    flood_log: Arc<Mutex<Bucket>>,
    discards: Discards,
}

/// Where a connection comes from, and what its handshake showed.
#[derive(Clone, Debug)]
pub struct Origin {
    peer: Peer,
    address: Option<SocketAddr>,
    /// The public host that the client asked for, if clients of that name are not asked for a certificate.
    pub(super) public_name: Option<Arc<str>>,
    auth: AuthState,
}

/// Tells when a connection must go because of its peer.
struct Eviction {
    /// `None`: its address is not known.
    of: Option<(ShutOutNotice, PeerNet)>,
    peers: PeerLimits,
    auth: AuthState,
}

/// One connection's HTTP/2.
type Http<IO> = http2::Connection<TokioIo<FrameLimited<IO>>, PerConnection, StreamExecutor>;

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// It has had nothing to do for long, and was told to end.
    Leaving,
    /// Its peer is shut out, or floods it with calls; it was told to end.
    Evicted,
    /// The gateway ends; it was told so.
    Draining,
}

/// What happens around a connection.
enum ConnectionEvent {
    /// It may not be there any longer.
    Cut,
    /// It is told to end.
    Next(Stage),
}

/// The service of one connection, as hyper calls it.
struct PerConnection {
    service: LeaseService,
    routes: Routes,
    caller: Caller,
    metrics: Metrics,
    discards: Discards,
    handoff: Handoff,
    drain: Drain,
    /// Told of the first call.
    called: Arc<Notify>,
}

// === impl Connections ===

impl Connections {
    /// Connections that lead to `service`, and for all other paths to `routes`.
    pub fn new(
        service: LeaseService,
        routes: Routes,
        limits: Arc<Limits>,
        metrics: Metrics,
        drain: Drain,
    ) -> Self {
        let flood_log = Arc::new(Mutex::new(Bucket::new(Rate::new(1, FLOOD_LOG_INTERVAL))));
        let discards = Discards::new(drain.clone());
        Self { service, routes, limits, metrics, drain, flood_log, discards }
    }

    /// What is known of the peers.
    pub(super) fn peers(&self) -> &PeerLimits {
        self.service.peers()
    }

    /// Checks whether the certificate of a connection from a peer that is shut out is trusted. If so, its calls are answered.
    pub(super) async fn prove(&self, origin: &mut Origin) -> bool {
        let proved = self.service.trusts(&origin.peer, origin.net()).await;
        if proved {
            origin.auth.succeeded();
        }
        proved
    }

    /// Serves a connection from `address`, if that is known, as [`Connections::serve_from`].
    pub fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        address: Option<SocketAddr>,
    ) -> impl Future<Output = ConnectionEnd> + Send {
        self.serve_from(io, Origin::new(peer, address))
    }

    /// Serves a connection until it ends: by itself, when it has had nothing to do for long, when its peer is shut out, or when
    /// the gateway ends. Returns why. Dropping the future cuts the connection.
    pub fn serve_from(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        origin: Origin,
    ) -> impl Future<Output = ConnectionEnd> + Send {
        let (activity, called) = (StreamCount::default(), Arc::new(Notify::new()));
        let eviction = Eviction::new(self.peers(), &origin);
        let address = origin.address;
        let flooded = Flooded::default();
        let io = FrameLimited::new(io, flooded.clone());
        // Boxed before anything waits: a future keeps room for whatever was moved through it, once for each place, and idle
        // connections are many.
        let connection = Box::pin(self.http(io, origin, &activity, &called));
        let ending = self.run(connection, activity, called, eviction);
        async move {
            let end = ending.await;
            if flooded.is_set() { self.count_flood(end, address) } else { end }
        }
    }

    /// Counts a connection that was cut because its peer sent too many control frames, as the peer's failure, unless `end`
    /// shows that it was counted as one.
    fn count_flood(&self, end: ConnectionEnd, address: Option<SocketAddr>) -> ConnectionEnd {
        let now = Instant::now().into_std();
        let logged = self.flood_log.lock().unwrap_or_else(PoisonError::into_inner).try_take(1, now);
        if logged.is_ok() {
            tracing::warn!(peer = ?address, "closed a connection: too many HTTP/2 control frames");
        }
        if let Some(address) = address
            && !matches!(end, ConnectionEnd::PeerFault)
        {
            self.peers().failed(PeerNet::from(address.ip()), now);
        }
        ConnectionEnd::Flood
    }

    /// HTTP/2 on `io`, with our bounds.
    fn http<IO>(
        &self,
        io: FrameLimited<IO>,
        origin: Origin,
        activity: &StreamCount,
        called: &Arc<Notify>,
    ) -> Http<IO>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let handoff = Handoff::default();
        let executor = StreamExecutor {
            handoff: handoff.clone(),
            activity: activity.clone(),
            drain: self.drain.clone(),
            address: origin.address,
            stall: self.limits.stall,
            metrics: self.metrics.clone(),
        };
        let service = PerConnection {
            service: self.service.clone(),
            routes: self.routes.clone(),
            caller: origin.into_caller(),
            metrics: self.metrics.clone(),
            discards: self.discards.clone(),
            handoff,
            drain: self.drain.clone(),
            called: Arc::clone(called),
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
            // A peer that takes nothing cannot answer either; it has as long as its streams.
            .keep_alive_timeout(self.limits.stall);
        http.serve_connection(TokioIo::new(io), service)
    }

    async fn run<IO>(
        &self,
        mut connection: Pin<Box<Http<IO>>>,
        activity: StreamCount,
        called: Arc<Notify>,
        eviction: Eviction,
    ) -> ConnectionEnd
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = GaugeGuard::new(&self.metrics.connections);
        let mut stage = Stage::Serving;
        // A peer that never calls keeps nothing open: neither this connection, nor the gateway when it drains.
        tokio::select! {
            biased;
            () = called.notified() => {}
            () = eviction.begins() => {
                stage = Stage::Evicted;
                connection.as_mut().graceful_shutdown();
            }
            () = self.drain.draining() => return ConnectionEnd::Drain,
            () = tokio::time::sleep(self.limits.connection.first_call) => return ConnectionEnd::Idle,
            ended = &mut connection => return eviction.end(ended, Stage::Serving),
        }
        loop {
            // Nothing of it concerns a line, so no line asks it.
            let mut news = Gated::new(Box::pin(self.news(stage, &activity, &eviction)));
            tokio::select! {
                biased;
                told = &mut news => match told {
                    ConnectionEvent::Cut if stage == Stage::Evicted => return ConnectionEnd::ShutOut,
                    ConnectionEvent::Cut => return ConnectionEnd::Cut,
                    // What the peer calls before it hears of it is still answered.
                    ConnectionEvent::Next(next) => {
                        stage = next;
                        connection.as_mut().graceful_shutdown();
                    }
                },
                ended = &mut connection => return eviction.end(ended, stage),
            }
        }
    }

    /// What happens around a connection at `stage`.
    async fn news(&self, stage: Stage, activity: &StreamCount, eviction: &Eviction) -> ConnectionEvent {
        tokio::select! {
            biased;
            () = self.drain.cut() => ConnectionEvent::Cut,
            () = eviction.ends(), if stage == Stage::Evicted => ConnectionEvent::Cut,
            () = self.drain.draining(), if stage != Stage::Draining => ConnectionEvent::Next(Stage::Draining),
            () = eviction.begins(), if matches!(stage, Stage::Serving | Stage::Leaving) => ConnectionEvent::Next(Stage::Evicted),
            () = activity.idle(self.limits.connection.idle), if stage == Stage::Serving => ConnectionEvent::Next(Stage::Leaving),
        }
    }
}

// === impl Origin ===

impl Origin {
    /// A connection of `peer`, from `address` if that is known.
    pub fn new(peer: Peer, address: Option<SocketAddr>) -> Self {
        Self { peer, address, public_name: None, auth: AuthState::default() }
    }

    fn net(&self) -> Option<PeerNet> {
        self.address.map(|address| PeerNet::from(address.ip()))
    }

    fn into_caller(self) -> Caller {
        let net = self.net();
        Caller { peer: self.peer, net, public_name: self.public_name, auth: self.auth }
    }
}

// === impl Eviction ===

impl Eviction {
    fn new(peers: &PeerLimits, origin: &Origin) -> Self {
        let of = origin.net().map(|net| (peers.notice(net), net));
        Self { of, peers: peers.clone(), auth: origin.auth.clone() }
    }

    /// Waits until the connection must be told to end: its peer is shut out and no call on it has authenticated, or it floods
    /// the gateway with calls that are refused for their rate, which counts as a failure of the peer.
    async fn begins(&self) {
        let Some((notice, net)) = &self.of else {
            return std::future::pending().await;
        };
        let shut_out = async {
            notice.shut_out().await;
            // Of no interest whether the call or the time comes first.
            let _ = tokio::time::timeout(LEAVE_WITHIN, self.auth.shut_out_told()).await;
            self.unless_authenticated().await;
        };
        tokio::select! {
            biased;
            () = self.auth.flooded() => self.peers.failed(*net, tokio::time::Instant::now().into_std()),
            () = shut_out => {}
        }
    }

    /// Waits until a connection that was told to end must be cut: the time is up and no call on it has authenticated, or it
    /// goes on to flood.
    async fn ends(&self) {
        let time = async {
            tokio::time::sleep(LEAVE_WITHIN).await;
            self.unless_authenticated().await;
        };
        tokio::select! {
            biased;
            // A peer that goes on calling is not given the time, whoever it is.
            () = self.auth.flooded() => {}
            () = time => {}
        }
    }

    async fn unless_authenticated(&self) {
        if self.auth.is_authenticated() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns why a connection ended, and counts a fault of its peer.
    fn end(&self, ended: hyper::Result<()>, stage: Stage) -> ConnectionEnd {
        if let Err(error) = &ended {
            tracing::debug!(%error, "connection ended");
            if fault::is_peers(error) {
                if let Some((_, net)) = &self.of {
                    self.peers.failed(*net, tokio::time::Instant::now().into_std());
                }
                return ConnectionEnd::PeerFault;
            }
        }
        match (ended, stage) {
            (_, Stage::Leaving) => ConnectionEnd::Idle,
            (_, Stage::Evicted) => ConnectionEnd::ShutOut,
            (Ok(()), Stage::Draining) => ConnectionEnd::Drain,
            (Ok(()), Stage::Serving) => ConnectionEnd::Peer,
            (Err(_), _) => ConnectionEnd::Error,
        }
    }
}

// === impl PerConnection ===

impl Service<Request<Incoming>> for PerConnection {
    type Response = Response<Counted<ResponseBody>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.called.notify_one();
        let watched = self.handoff.begin();
        let request = request.map(|body| RequestBody::new(body, self.discards.clone()));
        if let Some(method) = Method::of_path(request.uri().path()) {
            let counted = Call::begin(&self.metrics, method.counted());
            let call = self.service.clone().call(method, self.caller.clone(), request, watched);
            return Box::pin(async move { Ok(counted.answer(call.await)) });
        }
        if request.uri().path().starts_with(HEALTH) {
            self.drain.note_asked();
        }
        let mut request = request;
        match self.service.other_call(&self.caller, &mut request) {
            Ok(held) => watched.keep(held),
            Err(refused) => {
                return Box::pin(async move {
                    request.into_body().finish().await;
                    Ok(refused.map(Counted::not))
                });
            }
        }
        let state = watched.watch_other(self.drain.clone());
        let routes = self.routes.clone();
        let is_known = [HEALTH, REFLECTION].iter().any(|service| request.uri().path().starts_with(service));
        Box::pin(async move {
            let call = if is_known {
                routes.oneshot(request.map(tonic::body::Body::new))
            } else {
                // Is refused without a look at the body.
                let (head, body) = request.into_parts();
                body.finish().await;
                routes.oneshot(Request::from_parts(head, tonic::body::Body::empty()))
            };
            let other = |body| Counted::not(ResponseBody::Other(OtherBody::new(body, state)));
            call.await.map(|response| response.map(other))
        })
    }
}
