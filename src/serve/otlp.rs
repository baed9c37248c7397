//! Exports the spans of calls to an OpenTelemetry collector, by OTLP over gRPC.
//!
//! A span that has ended waits in a bounded queue, and a thread of the library exports it in a batch. Calls
//! never wait: a span for which the queue has no room is dropped and counted.
//!
//! The library reads the standard variables for headers (`OTEL_EXPORTER_OTLP_HEADERS`), sampling
//! (`OTEL_TRACES_SAMPLER`) and attributes of the process (`OTEL_RESOURCE_ATTRIBUTES`). Times and sizes are the
//! constants here.

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Scheme;
use http::{HeaderValue, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use metrics::Counter;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{
    self as sdk, BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData,
    SpanExporter, SpanProcessor,
};
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tonic::transport::{Channel, Endpoint};

use super::ServeError;
use crate::edge::call_trace::{Span, Tracer, Value};
use crate::model::metrics::SpanLoss;
use crate::model::rate::{Bucket, Rate};

/// Spans that wait or are being exported: two seconds at a thousand calls per second, and at most a few MiB.
const QUEUE_MAX_SPANS: usize = 2_048;

/// Spans of one export: a request of about 200 KiB, far below the 4 MiB that collectors accept.
const BATCH_MAX_SPANS: usize = 512;

/// Longest time that a span waits for others. People look for the trace of a call that they have just made;
/// an export per second costs a collector nothing.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// Time limit of an export, with its retries: the default of OTLP. The queue bounds what waits meanwhile.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for connecting, TLS included. It leaves time for the export.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for the last export of a gateway that stops. A collector that answers needs milliseconds.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Least time between two log lines about failed exports. The metric counts all of them.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The name of the process in traces, unless a variable sets another.
const SERVICE_NAME: &str = "leasemux";

/// The variable for the name of the process.
const SERVICE_NAME_VARIABLE: &str = "OTEL_SERVICE_NAME";

/// The variable that selects how calls are sampled.
const SAMPLER_VARIABLE: &str = "OTEL_TRACES_SAMPLER";

/// Its values that the library knows. It ignores others without a report.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// The export of spans. Drop ends it without waiting, and gives up the spans that wait.
#[derive(Debug)]
pub(super) struct Traces(Option<Export>);

#[derive(Debug)]
struct Export {
    provider: SdkTracerProvider,
    room: Arc<Semaphore>,
}

/// Starts spans of the library.
#[derive(Debug)]
struct SpanStarter {
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// A span of the library, which ends on drop.
#[derive(Debug)]
struct OpenSpan(sdk::Span);

/// The only header of a trace that is read.
struct Traceparent<'a>(Option<&'a HeaderValue>);

/// Passes spans to the library while there is room. The library's own queue has the same size, so that it
/// never drops a span, which it would not count.
#[derive(Debug)]
struct BoundedProcessor {
    batches: BatchSpanProcessor,
    room: Arc<Semaphore>,
    dropped: Counter,
}

/// Exports batches, counts and logs the result, and then makes room.
#[derive(Debug)]
struct CountingExporter<E> {
    exporter: E,
    room: Arc<Semaphore>,
    accepted: Counter,
    dropped: Counter,
    /// Limits the log lines.
    log: Mutex<Bucket>,
}

// === impl Traces ===

impl Traces {
    /// Starts to export to the collector at `endpoint`, if there is one. Does not connect. Must be called
    /// within a runtime, on which the connection then runs.
    pub(super) fn start(
        endpoint: Option<&Uri>,
        accepted: Counter,
        dropped: impl Fn(SpanLoss) -> Counter,
    ) -> Result<Self, ServeError> {
        let Some(endpoint) = endpoint else { return Ok(Self(None)) };
        let channel = channel(endpoint).map_err(|error| ServeError::Otlp(error.into()))?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| ServeError::Otlp(error.into()))?;
        let sampler = env::var(SAMPLER_VARIABLE).unwrap_or_default();
        if !sampler.is_empty() && !SAMPLERS.contains(&sampler.as_str()) {
            tracing::warn!(sampler, known = ?SAMPLERS, "unknown value of OTEL_TRACES_SAMPLER; tracing all calls");
        }
        Ok(Self(Some(Export::new(exporter, accepted, dropped))))
    }

    /// Returns what starts the spans, if they are exported.
    pub(super) fn tracer(&self) -> Option<Arc<dyn Tracer>> {
        let Export { provider, .. } = self.0.as_ref()?;
        let (tracer, propagator) = (provider.tracer(SERVICE_NAME), TraceContextPropagator::new());
        Some(Arc::new(SpanStarter { tracer, propagator }))
    }

    /// Exports the spans that wait, within [`FLUSH_TIMEOUT`]. Spans that end later are lost.
    pub(super) async fn flush(self) {
        let Some(Export { provider, room }) = &self.0 else { return };
        let provider = provider.clone();
        let flush = move || provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        let flushed = tokio::task::spawn_blocking(flush).await;
        if !matches!(flushed, Ok(Ok(()))) {
            let spans = QUEUE_MAX_SPANS.saturating_sub(room.available_permits());
            tracing::warn!(spans, "failed to export the last traces");
        }
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(Export { provider, .. }) = &self.0 {
            // Without a shutdown before, the library's own drop would wait for an export. After a flush this
            // does nothing.
            let _ = provider.shutdown_with_timeout(Duration::ZERO);
        }
    }
}

// === impl Export ===

impl Export {
    fn new(
        exporter: impl SpanExporter + 'static,
        accepted: Counter,
        dropped: impl Fn(SpanLoss) -> Counter,
    ) -> Self {
        let room = Arc::new(Semaphore::new(QUEUE_MAX_SPANS));
        let exporter = CountingExporter {
            exporter,
            room: Arc::clone(&room),
            accepted,
            dropped: dropped(SpanLoss::ExportFailed),
            log: Mutex::new(Bucket::new(Rate::new(1, FAILURE_LOG_INTERVAL))),
        };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX_SPANS)
            .with_max_export_batch_size(BATCH_MAX_SPANS)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let batches = BatchSpanProcessor::new(exporter, config);
        let dropped = dropped(SpanLoss::QueueFull);
        let processor = BoundedProcessor { batches, room: Arc::clone(&room), dropped };
        let provider =
            SdkTracerProvider::builder().with_resource(resource()).with_span_processor(processor).build();
        Self { provider, room }
    }
}

/// Describes the process. Variables override the name and add attributes.
fn resource() -> Resource {
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_service_name(SERVICE_NAME)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env::var(SERVICE_NAME_VARIABLE) {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// Creates a channel to the collector, which connects on first use and reconnects by itself. With `https`, an
/// authority of the system must have signed the collector's certificate.
fn channel(address: &Uri) -> Result<Channel, rustls::Error> {
    let endpoint = Endpoint::from(address.clone()).connect_timeout(CONNECT_TIMEOUT).timeout(EXPORT_TIMEOUT);
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    if address.scheme() != Some(&Scheme::HTTPS) {
        // Not `connect_lazy`, whose time limit excludes name resolution.
        return Ok(endpoint.connect_with_connector_lazy(tcp));
    }
    let mut roots = RootCertStore::empty();
    // An unreadable authority matters only if no other one has signed the certificate; then the export fails.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(endpoint.connect_with_connector_lazy(HttpsConnector::from((tcp, tls))))
}

// === impl SpanStarter ===

impl Tracer for SpanStarter {
    fn start(&self, name: String, traceparent: Option<&HeaderValue>) -> Option<Box<dyn Span>> {
        let parent = self.propagator.extract_with_context(&Context::new(), &Traceparent(traceparent));
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Server);
        let span = self.tracer.build_with_context(builder, &parent);
        span.is_recording().then(|| Box::new(OpenSpan(span)) as _)
    }
}

// === impl Traceparent ===

impl Extractor for Traceparent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.filter(|_| key == "traceparent")?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|_| "traceparent").collect()
    }
}

// === impl OpenSpan ===

impl Span for OpenSpan {
    fn set(&mut self, key: &'static str, value: Value) {
        let value = match value {
            Value::Word(word) => word.into(),
            Value::Text(text) => text.into(),
            Value::Number(number) => opentelemetry::Value::I64(number.into()),
        };
        self.0.set_attribute(KeyValue::new(key, value));
    }

    fn fail(&mut self) {
        self.0.set_status(Status::error(""));
    }
}

// === impl BoundedProcessor ===

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut sdk::Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        match self.room.try_acquire() {
            Ok(place) => {
                // Given back by the exporter.
                place.forget();
                self.batches.on_end(span);
            }
            Err(_) => self.dropped.increment(1),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

// === impl CountingExporter ===

impl<E: SpanExporter> SpanExporter for CountingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        match &result {
            Ok(()) => self.accepted.increment(spans as u64),
            Err(error) => {
                self.dropped.increment(spans as u64);
                if self.log.lock().try_take(1, Instant::now()).is_ok() {
                    tracing::warn!(%error, spans, "failed to export traces");
                }
            }
        }
        self.room.add_permits(spans);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use http::HeaderValue;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use opentelemetry::trace::{SpanId, TraceId};
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;
    use crate::model::metrics::Metrics;

    /// Deadline for what must happen.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Exports nothing until the test permits it, then passes the spans to the test. A closed channel permits
    /// all exports.
    #[derive(Debug)]
    struct Gated {
        gate: Mutex<Receiver<OTelSdkResult>>,
        batches: SyncSender<Vec<SpanData>>,
    }

    impl SpanExporter for Gated {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let result = self.gate.lock().recv().unwrap_or(Ok(()));
            // The test may have ended.
            let _ = self.batches.send(batch);
            result
        }
    }

    /// Fails to export.
    #[derive(Debug)]
    struct Failing;

    impl SpanExporter for Failing {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            Err(OTelSdkError::InternalFailure("no".to_owned()))
        }
    }

    struct Scenario {
        gate: SyncSender<OTelSdkResult>,
        batches: Receiver<Vec<SpanData>>,
        traces: Traces,
        starter: Arc<dyn Tracer>,
        metrics: Metrics,
        rendered: metrics_exporter_prometheus::PrometheusHandle,
    }

    impl Scenario {
        fn new() -> Self {
            let recorder = PrometheusBuilder::new().build_recorder();
            let (rendered, metrics) = (recorder.handle(), Metrics::register(&recorder));
            let ((gate, opened), (to_test, batches)) = (sync_channel(8), sync_channel(8));
            let exporter = Gated { gate: Mutex::new(opened), batches: to_test };
            let dropped = |loss| metrics.spans_dropped.of(loss).clone();
            let export = Export::new(exporter, metrics.spans_exported.clone(), dropped);
            let traces = Traces(Some(export));
            let starter = traces.tracer().unwrap();
            Self { gate, batches, traces, starter, metrics, rendered }
        }

        fn counts(&self) -> [u64; 3] {
            let text = self.rendered.render();
            let value = |series: &str| {
                let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
                value.unwrap().parse().unwrap()
            };
            [
                value("leasemux_spans_exported_total"),
                value("leasemux_spans_dropped_total{reason=\"queue_full\"}"),
                value("leasemux_spans_dropped_total{reason=\"export_failed\"}"),
            ]
        }
    }

    /// Returns a span that has ended.
    fn span() -> SpanData {
        let scenario = Scenario::new();
        scenario.gate.send(Ok(())).unwrap();
        drop(scenario.starter.start("call".to_owned(), None));
        scenario.batches.recv_timeout(PATIENCE).unwrap().remove(0)
    }

    fn traceparent(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    #[tokio::test]
    async fn full_queue_drops_and_counts_spans() {
        let scenario = Scenario::new();
        for _ in 0..QUEUE_MAX_SPANS + 10 {
            drop(scenario.starter.start("call".to_owned(), None));
        }
        assert_eq!(scenario.counts(), [0, 10, 0]);
        let Scenario { gate, batches, traces, rendered, metrics, starter } = scenario;
        drop(gate);
        traces.flush().await;
        let spans: usize = batches.try_iter().map(|batch| batch.len()).sum();
        assert_eq!(spans, QUEUE_MAX_SPANS);
        assert!(rendered.render().contains(&format!("leasemux_spans_exported_total {QUEUE_MAX_SPANS}\n")));
        // A span after the flush is not exported, and nothing waits for it.
        drop(starter.start("late".to_owned(), None));
        drop(metrics);
    }

    #[tokio::test]
    async fn failed_exports_make_room_and_are_logged_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(file.reopen().unwrap()).finish();
        let scenario = Scenario::new();
        let exporter = CountingExporter {
            exporter: Failing,
            room: Arc::new(Semaphore::new(0)),
            accepted: Counter::noop(),
            dropped: scenario.metrics.spans_dropped.of(SpanLoss::ExportFailed).clone(),
            log: Mutex::new(Bucket::new(Rate::new(1, FAILURE_LOG_INTERVAL))),
        };
        let _logging = tracing::subscriber::set_default(log);
        for _ in 0..3 {
            exporter.export(vec![span()]).await.unwrap_err();
        }
        assert_eq!(exporter.room.available_permits(), 3);
        assert_eq!(scenario.counts(), [0, 0, 3]);
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.matches("failed to export traces").count(), 1, "{text}");
    }

    #[test]
    fn caller_with_a_traceparent_continues_its_trace() {
        let scenario = Scenario::new();
        scenario.gate.send(Ok(())).unwrap();
        let sampled = traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        drop(scenario.starter.start("call".to_owned(), Some(&sampled)));
        let unsampled = traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
        assert!(scenario.starter.start("call".to_owned(), Some(&unsampled)).is_none());
        let spans = scenario.batches.recv_timeout(PATIENCE).unwrap();
        let [span] = spans.as_slice() else { panic!("{spans:?}") };
        let trace = TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap();
        assert_eq!(span.span_context.trace_id(), trace);
        assert_eq!(span.parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
        assert_eq!(span.span_kind, SpanKind::Server);
        for invalid in ["", "00-0-0-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] {
            let mut span = scenario.starter.start("call".to_owned(), Some(&traceparent(invalid))).unwrap();
            span.set("number", Value::Number(7));
            span.fail();
        }
        scenario.gate.send(Ok(())).unwrap();
        let spans = scenario.batches.recv_timeout(PATIENCE).unwrap();
        assert!(spans.iter().all(|span| span.parent_span_id == SpanId::INVALID), "{spans:?}");
        assert!(spans.iter().all(|span| span.status == Status::error("")), "{spans:?}");
        assert!(spans.iter().all(|span| span.attributes == [KeyValue::new("number", 7)]), "{spans:?}");
    }

    #[test]
    fn dropped_export_does_not_wait_for_the_collector() {
        let scenario = Scenario::new();
        drop(scenario.starter.start("call".to_owned(), None));
        // The gate is closed, so an export would wait for the test's end.
        drop(scenario.traces);
        drop(scenario.starter);
        drop(scenario.gate);
    }
}
