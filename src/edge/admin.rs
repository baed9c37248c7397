//! The admin port: `/metrics` for Prometheus, `/live` and `/ready` for probes, `/followers` for lagging
//! followers, `/fleet` for live tails that are shared with other gateways.
//!
//! Plain HTTP without authentication, `/followers` names tenants and their addresses, and `/fleet` names
//! leases. So it listens on loopback by default.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::followers::Followers;
use super::drain::Drain;
use crate::model::metrics::{Declaration, MetricKind, Metrics, catalogue};
use crate::sys::process::{self, Usage};

mod followers;

/// Most admin connections at once: a scraper, some probes, a person.
const CONNECTIONS_MAX: usize = 32;

/// Time limit for the headers of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for a connection, so that clients that do not read cannot keep probes out. Scrapers give up
/// sooner.
const CONNECTION_MAX: Duration = Duration::from_secs(30);

const METHODS: &str = "GET, HEAD";

/// `Content-Type` of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const TEXT_TYPE: &str = "text/plain; charset=utf-8";

const JSON_TYPE: &str = "application/json";

/// How often samples are moved into buckets, so that they do not pile up when nothing scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The metrics of one server. Cloning is cheap.
#[derive(Clone)]
pub struct Exporter {
    /// The metrics.
    pub metrics: Metrics,
    /// Source of the number of lagging followers.
    pub followers: Followers,
    handle: PrometheusHandle,
    /// The runtimes whose tasks are counted.
    runtimes: Vec<Handle>,
}

/// Whether the gateway is ready. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<ReadinessState>);

#[derive(Debug, Default)]
struct ReadinessState {
    is_serving: AtomicBool,
    /// It serves, but can reach nothing that it serves from.
    is_isolated: AtomicBool,
}

/// The admin port.
#[derive(Clone, Debug)]
pub struct Admin {
    exporter: Exporter,
    readiness: Readiness,
    drain: Drain,
}

// === impl Readiness ===

impl Readiness {
    /// Sets whether the gateway serves.
    pub fn set(&self, is_serving: bool) {
        self.0.is_serving.store(is_serving, Ordering::Release);
    }

    /// Sets whether the gateway can reach nothing that it serves from. Returns whether that is a change.
    pub(crate) fn set_isolated(&self, is_isolated: bool) -> bool {
        self.0.is_isolated.swap(is_isolated, Ordering::AcqRel) != is_isolated
    }

    pub(crate) fn get(&self) -> bool {
        self.0.is_serving.load(Ordering::Acquire) && !self.0.is_isolated.load(Ordering::Acquire)
    }

    /// Returns the answer to a probe.
    pub(crate) fn answer(&self) -> Response<Full<Bytes>> {
        if self.get() {
            text(StatusCode::OK, "ready\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    }
}

// === impl Admin ===

impl Admin {
    /// Creates an admin port, which answers until [`Drain::close`], also during a drain.
    pub fn new(exporter: Exporter, readiness: Readiness, drain: Drain) -> Self {
        Self { exporter, readiness, drain }
    }

    /// Serves until dropped.
    pub async fn serve(self, listener: TcpListener) {
        let drain = self.drain.clone();
        serve_http(listener, &drain, move |uri| self.answer(uri)).await;
    }

    fn answer(&self, uri: &Uri) -> Response<Full<Bytes>> {
        match uri.path() {
            "/metrics" => metrics_page(self.exporter.render()),
            "/followers" => self.followers(uri.query()),
            "/fleet" => match self.exporter.followers.fleet_json() {
                Some(json) => with_type(JSON_TYPE, json),
                None => text(StatusCode::NOT_FOUND, "this gateway is in no fleet\n"),
            },
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => {
                self.drain.note_readiness_poll();
                self.readiness.answer()
            }
            "/" => text(StatusCode::OK, "leasemux: /metrics /followers /fleet /live /ready\n"),
            _ => {
                text(StatusCode::NOT_FOUND, "not found: try /metrics, /followers, /fleet, /live or /ready\n")
            }
        }
    }

    fn followers(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let followers = &self.exporter.followers;
        match query.unwrap_or_default() {
            "" | "format=text" => with_type(TEXT_TYPE, followers.text()),
            "format=json" => with_type(JSON_TYPE, followers.json()),
            _ => text(StatusCode::BAD_REQUEST, "the only parameter is format: text or json\n"),
        }
    }
}

// === impl Exporter ===

impl Exporter {
    /// Registers all metrics, at zero.
    ///
    /// # Errors
    /// The buckets of a histogram are empty, which they are not.
    pub fn new() -> Result<Self, BuildError> {
        let recorder = recorder(catalogue::each())?;
        let metrics = Metrics::register(&recorder);
        Ok(Self { metrics, followers: Followers::default(), handle: recorder.handle(), runtimes: Vec::new() })
    }

    /// Counts the tasks of `runtime` too.
    pub(crate) fn count_tasks_of(&mut self, runtime: Handle) {
        self.runtimes.push(runtime);
    }

    /// Returns all metrics in Prometheus' text format. Looks up those that are not counted.
    pub fn render(&self) -> String {
        let tasks: usize = self.runtimes.iter().map(|runtime| runtime.metrics().num_alive_tasks()).sum();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        {
            self.metrics.followers_lagging.set(self.followers.lagging(0).total as f64);
            self.metrics.tasks.set(tasks as f64);
            self.metrics.memory_used.set(self.followers.memory_used() as f64);
        }
        let usage = process::usage().ok();
        if let Some(usage) = &usage {
            self.set_process(usage);
        }
        let mut text = self.handle.render();
        if let Some(usage) = usage {
            let metric = &self.metrics.process_cpu.0;
            let (name, help, kind) = (metric.name, metric.help, metric.kind.word());
            // Writing to a string cannot fail.
            let _ =
                writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}", usage.cpu_seconds);
        }
        text
    }

    /// Moves samples into buckets while it is polled. There are samples only while streams are open.
    pub async fn upkeep(&self) {
        upkeep(&self.handle).await;
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52, or close to infinite")]
    fn set_process(&self, usage: &Usage) {
        let metrics = &self.metrics;
        metrics.process_resident.set(usage.resident_bytes as f64);
        metrics.process_virtual.set(usage.virtual_bytes as f64);
        metrics.process_open_files.set(usage.open_files as f64);
        metrics.process_max_files.set(usage.max_files.map_or(f64::INFINITY, |max| max as f64));
        metrics.process_threads.set(usage.threads as f64);
        metrics.process_start.set(usage.started_seconds);
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

/// Serves plain HTTP on `listener` until dropped: answers each GET and HEAD with `answer`, within the limits
/// of the admin port. Connections are background tasks of `drain`.
pub(crate) async fn serve_http<A>(listener: TcpListener, drain: &Drain, answer: A)
where
    A: Fn(&Uri) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "failed to accept admin connection");
                tokio::time::sleep(super::server::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let answer = answer.clone();
        drain.spawn_background(async move {
            serve_connection(socket, &answer).await;
            drop(permit);
        });
    }
}

async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Unpin,
    answer: &impl Fn(&Uri) -> Response<Full<Bytes>>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = if matches!(*request.method(), Method::GET | Method::HEAD) {
            answer(request.uri())
        } else {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            refusal.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(METHODS));
            refusal
        };
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service);
    // Errors of the peer are not logged.
    let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
}

/// Creates a recorder with the buckets of these metrics.
///
/// # Errors
/// The buckets of a histogram are empty, which they are not.
pub(crate) fn recorder(
    metrics: impl Iterator<Item = &'static Declaration>,
) -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in metrics {
        if let MetricKind::Histogram(bounds) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)?;
        }
    }
    Ok(builder.build_recorder())
}

/// Moves samples into buckets while it is polled.
pub(crate) async fn upkeep(handle: &PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        tick.tick().await;
        handle.run_upkeep();
    }
}

/// Returns metrics in Prometheus' text format as a response.
pub(crate) fn metrics_page(metrics: String) -> Response<Full<Bytes>> {
    with_type(METRICS_TYPE, metrics)
}

fn with_type(content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    fn admin() -> Admin {
        Admin::new(Exporter::new().unwrap(), Readiness::default(), Drain::default())
    }

    async fn answer(request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        client.write_all(request.as_bytes()).await.unwrap();
        serve_connection(server, &|uri: &Uri| admin().answer(uri)).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn invalid_admin_requests_get_a_hint() {
        let refused = answer("POST /live HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n").await;
        assert!(
            refused.starts_with("HTTP/1.1 405 ") && refused.contains("allow: GET, HEAD\r\n"),
            "{refused}"
        );
        let head = answer("HEAD /live HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
        let old = answer("GET /ready HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 503 ") && old.ends_with("\r\n\r\nnot ready\n"), "{old}");
        let nowhere = answer("GET /nowhere HTTP/1.1\r\n\r\n").await;
        assert!(nowhere.starts_with("HTTP/1.1 404 "), "{nowhere}");
    }

    #[tokio::test(start_paused = true)]
    async fn admin_connections_have_time_limits() {
        for (request, until) in
            [("GET /me", HEADERS_TIMEOUT), ("GET /metrics HTTP/1.1\r\n\r\n", CONNECTION_MAX)]
        {
            // Far less than the answer.
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(request.as_bytes()).await.unwrap();
            let began = Instant::now();
            serve_connection(server, &|uri: &Uri| admin().answer(uri)).await;
            assert!((until..until * 2).contains(&began.elapsed()), "{request}");
        }
    }
}
