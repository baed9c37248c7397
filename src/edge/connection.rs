//! One connection: HTTP/2 with our bounds, and the way from a path to a service.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::calls::{Call, Counted};
use super::drain::Drain;
use super::guard::{Handoff, StreamExecutor};
use super::response::ResponseBody;
use super::service::{LeaseService, Method};
use crate::access::gate::Peer;
use crate::model::limits::{Limits, STREAM_SEND_MAX_BYTES};
use crate::model::metrics::{ConnectionEnd, GaugeGuard, Metrics};

/// Most bytes of headers in a request, as HTTP/2 counts them.
const HEADERS_MAX_BYTES: u32 = 16 * 1024;

/// Window for what a peer sends us, per stream and for the connection: requests are small.
const RECEIVE_WINDOW_BYTES: u32 = 256 * 1024;

/// Streams that a peer may have reset before they were accepted, until the connection is closed: protects from a flood of
/// requests that are taken back at once (CVE-2023-44487). hyper's own default, written down.
const PENDING_RESETS_MAX: usize = 20;

/// A peer without a sign of life is asked for one this often.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(60);

/// Calls of the health service, by which a balancer polls readiness.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Serves connections. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Connections {
    service: LeaseService,
    routes: Routes,
    limits: Arc<Limits>,
    /// What is counted; also by who accepts them.
    pub(super) metrics: Metrics,
    drain: Drain,
}

/// The service of one connection, as hyper calls it.
struct PerConnection {
    service: LeaseService,
    routes: Routes,
    peer: Peer,
    metrics: Metrics,
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
        Self { service, routes, limits, metrics, drain }
    }

    /// Serves a connection from `address`, if that is known, until it ends: by itself, or when the gateway does. Answers why.
    /// Dropping it cuts it off.
    pub async fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        address: Option<SocketAddr>,
    ) -> ConnectionEnd {
        let _open = GaugeGuard::new(&self.metrics.connections);
        let handoff = Handoff::default();
        let executor = StreamExecutor {
            handoff: handoff.clone(),
            drain: self.drain.clone(),
            address,
            stall: self.limits.stall,
            metrics: self.metrics.clone(),
        };
        let called = Arc::new(Notify::new());
        let service = PerConnection {
            service: self.service.clone(),
            routes: self.routes.clone(),
            peer,
            metrics: self.metrics.clone(),
            handoff,
            drain: self.drain.clone(),
            called: Arc::clone(&called),
        };
        let mut http = http2::Builder::new(executor);
        http.timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams_per_connection)
            .max_send_buf_size(STREAM_SEND_MAX_BYTES)
            .max_header_list_size(HEADERS_MAX_BYTES)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .initial_stream_window_size(RECEIVE_WINDOW_BYTES)
            .initial_connection_window_size(RECEIVE_WINDOW_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            // A peer that takes nothing cannot answer either; it has as long as its streams.
            .keep_alive_timeout(self.limits.stall);
        let connection = http.serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let mut draining = false;
        // A peer that never calls keeps nothing open: neither this connection, nor the gateway when it drains.
        tokio::select! {
            biased;
            () = called.notified() => {}
            () = self.drain.draining() => return ConnectionEnd::Drain,
            () = tokio::time::sleep(self.limits.handshake) => return ConnectionEnd::Idle,
            ended = &mut connection => return end(ended, false),
        }
        loop {
            tokio::select! {
                biased;
                () = self.drain.cut() => return ConnectionEnd::Cut,
                () = self.drain.draining(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                ended = &mut connection => return end(ended, draining),
            }
        }
    }
}

fn end(ended: hyper::Result<()>, draining: bool) -> ConnectionEnd {
    match ended {
        Ok(()) if draining => ConnectionEnd::Drain,
        Ok(()) => ConnectionEnd::Peer,
        Err(error) => {
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
            let call = self.service.clone().call(method, self.peer.clone(), request, watched);
            return Box::pin(async move { Ok(counted.answer(call.await)) });
        }
        if request.uri().path().starts_with(HEALTH) {
            self.drain.note_asked();
        }
        watched.watch_other(self.drain.clone());
        let call = self.routes.clone().oneshot(request.map(tonic::body::Body::new));
        Box::pin(async move {
            call.await.map(|response| response.map(|body| Counted::not(ResponseBody::Other(body))))
        })
    }
}
