//! The operator's port: `/metrics` for Prometheus, `/live` and `/ready` for probes. Plain HTTP; it listens on loopback unless told
//! otherwise, since it asks nobody who they are.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::drain::Drain;
use crate::model::metrics::{Kind, Metrics, catalogue};

/// Admin connections at once: a scraper, some probes, a person.
const CONNECTIONS_MAX: usize = 32;

/// A request's headers must have arrived within this.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);

/// How often samples are folded into buckets when nobody scrapes, so that they do not pile up.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What `Content-Type` Prometheus' text format has.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of one server: to count with, and to show.
#[derive(Clone)]
pub struct Exporter {
    /// To count with.
    pub metrics: Metrics,
    handle: PrometheusHandle,
}

/// Whether the gateway takes calls. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

/// The admin port.
#[derive(Clone, Debug)]
pub struct Admin {
    exporter: Exporter,
    readiness: Readiness,
    drain: Drain,
}

// === impl Exporter ===

impl Exporter {
    /// All metrics, at zero.
    ///
    /// # Errors
    /// None that could happen: the buckets are fixed, and not empty.
    pub fn new() -> Result<Self, metrics_exporter_prometheus::BuildError> {
        let mut builder = PrometheusBuilder::new();
        for metric in catalogue::each() {
            if let Kind::Histogram(bounds) = metric.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)?;
            }
        }
        let recorder = builder.build_recorder();
        Ok(Self { metrics: Metrics::register(&recorder), handle: recorder.handle() })
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds samples into buckets, for as long as it is polled; only while streams are open is there anything to do.
    pub async fn upkeep(&self) {
        let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            tick.tick().await;
            self.handle.run_upkeep();
        }
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

// === impl Readiness ===

impl Readiness {
    /// Says whether the gateway takes calls.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Whether it does.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

// === impl Admin ===

impl Admin {
    /// An admin port that shows `exporter` and `readiness`, until [`Drain::close`]: it answers through the whole end.
    pub fn new(exporter: Exporter, readiness: Readiness, drain: Drain) -> Self {
        Self { exporter, readiness, drain }
    }

    /// Serves until it is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "accepting on the admin port");
                    tokio::time::sleep(super::server::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let admin = self.clone();
            self.drain.spawn_beside(async move {
                let service = service_fn(|request| {
                    let response = admin.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADERS_TIMEOUT)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(socket), service);
                // A peer that went away is no news.
                let _ = connection.await;
                drop(permit);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.exporter.render());
                let kind = http::HeaderValue::from_static(METRICS_TYPE);
                response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
                response
            }
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => {
                self.drain.note_asked();
                if self.readiness.get() {
                    text(StatusCode::OK, "ready\n")
                } else {
                    text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
                }
            }
            "/" => text(StatusCode::OK, "leasemux: /metrics /live /ready\n"),
            _ => text(StatusCode::NOT_FOUND, "not found: try /metrics, /live or /ready\n"),
        }
    }
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response
}
