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

use super::calls::{Call, Counted};
use super::drain::Drain;
use super::frame_limit::{Flooded, FrameLimited};
use super::guard::{Handoff, StreamExecutor};
use super::idle::Activity;
use super::peers::Peers;
use super::response::{OtherBody, ResponseBody};
use super::service::{LeaseService, Method};
use crate::access::gate::Peer;
use crate::model::limits::{Limits, STREAM_HELD_BYTES};
use crate::model::metrics::{ConnectionEnd, GaugeGuard, Metrics};
use crate::model::peer::PeerNet;
use crate::model::rate::{Bucket, Rate};
use crate::stream::bell::WhenRung;

/// Calls of the health service, by which a balancer polls readiness.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Least time between two log lines about floods. The metric counts all of them.
const FLOOD_LOG_INTERVAL: Duration = Duration::from_secs(10);

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
}

/// One connection's HTTP/2.
type Http<IO> = http2::Connection<TokioIo<FrameLimited<IO>>, PerConnection, StreamExecutor>;

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// It has had nothing to do for long, and was told to end.
    Leaving,
    /// The gateway ends; it was told so.
    Draining,
}

/// What happens around a connection.
enum News {
    /// It may not be there any longer.
    Cut,
    /// It is told to end.
    Next(Stage),
}

/// The service of one connection, as hyper calls it.
struct PerConnection {
    service: LeaseService,
    routes: Routes,
    peer: Peer,
    metrics: Metrics,
    /// Where it comes from.
    net: Option<PeerNet>,
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
        let flood_log = Bucket::new(Rate::new(1, FLOOD_LOG_INTERVAL));
        Self { service, routes, limits, metrics, drain, flood_log: Arc::new(Mutex::new(flood_log)) }
    }

    /// What is known of the peers.
    pub(super) fn peers(&self) -> &Peers {
        self.service.peers()
    }

    /// Serves a connection from `address`, if that is known, until it ends: by itself, when it has had nothing to do for long, or
    /// when the gateway does. Answers why. Dropping it cuts it off.
    pub fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        address: Option<SocketAddr>,
    ) -> impl Future<Output = ConnectionEnd> + Send {
        let (activity, called) = (Activity::default(), Arc::new(Notify::new()));
        let flooded = Flooded::default();
        let io = FrameLimited::new(io, flooded.clone());
        // Boxed before anything waits: a future keeps room for whatever was moved through it, once for each place, and idle
        // connections are many.
        let connection = Box::pin(self.http(io, peer, address, &activity, &called));
        let ending = self.run(connection, activity, called);
        async move {
            let end = ending.await;
            if flooded.is_set() { self.count_flood(address) } else { end }
        }
    }

    /// Counts a connection that was cut because its peer sent too many control frames, as the peer's failure.
    fn count_flood(&self, address: Option<SocketAddr>) -> ConnectionEnd {
        let now = Instant::now().into_std();
        let logged = self.flood_log.lock().unwrap_or_else(PoisonError::into_inner).try_take(1, now);
        if logged.is_ok() {
            tracing::warn!(peer = ?address, "closed a connection: too many HTTP/2 control frames");
        }
        if let Some(address) = address {
            self.peers().failed(PeerNet::from(address.ip()), now);
        }
        ConnectionEnd::Flood
    }

    /// HTTP/2 on `io`, with our bounds.
    fn http<IO>(
        &self,
        io: FrameLimited<IO>,
        peer: Peer,
        address: Option<SocketAddr>,
        activity: &Activity,
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
            address,
            stall: self.limits.stall,
            metrics: self.metrics.clone(),
        };
        let service = PerConnection {
            service: self.service.clone(),
            routes: self.routes.clone(),
            peer,
            metrics: self.metrics.clone(),
            net: address.map(|address| PeerNet::from(address.ip())),
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
        activity: Activity,
        called: Arc<Notify>,
    ) -> ConnectionEnd
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = GaugeGuard::new(&self.metrics.connections);
        // A peer that never calls keeps nothing open: neither this connection, nor the gateway when it drains.
        tokio::select! {
            biased;
            () = called.notified() => {}
            () = self.drain.draining() => return ConnectionEnd::Drain,
            () = tokio::time::sleep(self.limits.connection.first_call) => return ConnectionEnd::Idle,
            ended = &mut connection => return end(ended, Stage::Serving),
        }
        let mut stage = Stage::Serving;
        loop {
            // Nothing of it concerns a line, so no line asks it.
            let mut news = WhenRung::new(Box::pin(self.news(stage, &activity)));
            tokio::select! {
                biased;
                told = &mut news => match told {
                    News::Cut => return ConnectionEnd::Cut,
                    // What the peer calls before it hears of it is still answered.
                    News::Next(next) => {
                        stage = next;
                        connection.as_mut().graceful_shutdown();
                    }
                },
                ended = &mut connection => return end(ended, stage),
            }
        }
    }

    /// What happens around a connection at `stage`.
    async fn news(&self, stage: Stage, activity: &Activity) -> News {
        tokio::select! {
            biased;
            () = self.drain.cut() => News::Cut,
            () = self.drain.draining(), if stage != Stage::Draining => News::Next(Stage::Draining),
            () = activity.idle(self.limits.connection.idle), if stage == Stage::Serving => News::Next(Stage::Leaving),
        }
    }
}

fn end(ended: hyper::Result<()>, stage: Stage) -> ConnectionEnd {
    match (ended, stage) {
        (_, Stage::Leaving) => ConnectionEnd::Idle,
        (Ok(()), Stage::Draining) => ConnectionEnd::Drain,
        (Ok(()), Stage::Serving) => ConnectionEnd::Peer,
        (Err(error), _) => {
            tracing::debug!(%error, "connection ended");
            ConnectionEnd::Error
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
        if let Some(method) = Method::of_path(request.uri().path()) {
            let counted = Call::begin(&self.metrics, method.counted());
            let call = self.service.clone().call(method, self.peer.clone(), self.net, request, watched);
            return Box::pin(async move { Ok(counted.answer(call.await)) });
        }
        if request.uri().path().starts_with(HEALTH) {
            self.drain.note_asked();
        }
        match self.net.map(|net| self.service.other_call(net)).transpose() {
            Ok(held) => watched.keep(held),
            Err(refused) => return Box::pin(std::future::ready(Ok(refused.map(Counted::not)))),
        }
        let state = watched.watch_other(self.drain.clone());
        let call = self.routes.clone().oneshot(request.map(tonic::body::Body::new));
        Box::pin(async move {
            let other = |body| Counted::not(ResponseBody::Other(OtherBody::new(body, state)));
            call.await.map(|response| response.map(other))
        })
    }
}
