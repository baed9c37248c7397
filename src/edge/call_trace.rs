//! Traces of calls: one span per call, from its request to the end of its response.
//!
//! A span has the names and attributes of OpenTelemetry's semantic conventions, and nothing of a tenant but
//! the hash of the lease, which is the name of its namespace: no account, service, pod, address, path, query,
//! credential or line. Whatever a caller may choose is mapped to a closed set of values first.
//!
//! Calls are those that metrics count. Health and reflection are none.
//!
//! [`Tracer`] and [`Span`] are the interface to a library for tracing. Spans do not come from `tracing`: a
//! library that exports its spans also exports the log lines within them, and those name leases.

use std::fmt::Debug;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;

use crate::model::id::LeaseId;
use crate::model::metrics::{Code, LabelValue as _, RouteTemplate, WebsocketEnd};

/// The header that continues a caller's trace (W3C Trace Context). `tracestate` is ignored, because its
/// content is free.
const TRACEPARENT: &str = "traceparent";

/// The hash of the lease.
const LEASE: &str = "leasemux.lease.hash";

/// How the call came: [`GRPC`], [`REST`] or [`WEBSOCKET`].
const TRANSPORT: &str = "leasemux.transport";

/// Why a websocket ended.
const WEBSOCKET_END: &str = "leasemux.websocket.end";

const GRPC: &str = "grpc";
const REST: &str = "rest";
const WEBSOCKET: &str = "websocket";

/// The method of an HTTP request with any other than the known ones.
const OTHER_METHOD: &str = "_OTHER";

/// Codes of gRPC that mean an error of the server. The others are errors of the caller, or none.
const SERVER_ERRORS: [Code; 6] = [
    Code::Unknown,
    Code::DeadlineExceeded,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
];

/// Starts spans.
pub(crate) trait Tracer: Debug + Send + Sync {
    /// Starts a span of a server, as a part of the caller's trace if there is a valid `traceparent`. Returns
    /// `None` if the call is not sampled.
    fn start(&self, name: String, traceparent: Option<&HeaderValue>) -> Option<Box<dyn Span>>;
}

/// An open span. It ends when it is dropped, and must not block then.
pub(crate) trait Span: Debug + Send {
    /// Sets an attribute.
    fn set(&mut self, key: &'static str, value: Value);

    /// Marks the span as failed.
    fn fail(&mut self);
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Word(&'static str),
    Text(String),
    Number(u16),
}

/// The trace of one call. Cloning is cheap: without a tracer there is nothing behind it.
///
/// The span ends with [`CallTrace::finish`], or with the drop of the last clone: then the caller left before
/// there was a response.
#[derive(Clone, Debug, Default)]
pub(super) struct CallTrace(Option<Arc<SpanSlot>>);

/// Holds a span until it ends.
type SpanSlot = Mutex<Option<Box<dyn Span>>>;

/// A result of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallResult {
    Grpc(Code),
    Http(StatusCode),
    Websocket(WebsocketEnd),
}

// === impl CallTrace ===

impl CallTrace {
    /// Starts the span of a gRPC call. `service`: `None` if a label stands for several services.
    pub(super) fn grpc(
        tracer: Option<&Arc<dyn Tracer>>,
        service: Option<&'static str>,
        method: &'static str,
        headers: &HeaderMap,
    ) -> Self {
        let Some(tracer) = tracer else { return Self::default() };
        let name = service.map_or_else(|| method.to_owned(), |service| format!("{service}/{method}"));
        let attributes = [("rpc.system", "grpc"), ("rpc.method", method), (TRANSPORT, GRPC)];
        let service = service.map(|service| ("rpc.service", service));
        Self::start(&**tracer, name, headers, attributes.into_iter().chain(service))
    }

    /// Starts the span of a request of the REST port.
    pub(super) fn rest(
        tracer: Option<&Arc<dyn Tracer>>,
        method: &Method,
        route: RouteTemplate,
        headers: &HeaderMap,
    ) -> Self {
        let Some(tracer) = tracer else { return Self::default() };
        let (method, route) = (known_method(method), route.label());
        let attributes = [("http.request.method", method), ("http.route", route), (TRANSPORT, REST)];
        Self::start(&**tracer, format!("{method} {route}"), headers, attributes)
    }

    fn start(
        tracer: &dyn Tracer,
        name: String,
        headers: &HeaderMap,
        attributes: impl IntoIterator<Item = (&'static str, &'static str)>,
    ) -> Self {
        let Some(mut span) = tracer.start(name, only_traceparent(headers)) else { return Self::default() };
        for (key, value) in attributes {
            span.set(key, Value::Word(value));
        }
        Self(Some(Arc::new(Mutex::new(Some(span)))))
    }

    /// Sets the lease of the call.
    pub(super) fn set_lease(&self, lease: &LeaseId) {
        self.with(|span| span.set(LEASE, Value::Text(lease.namespace())));
    }

    /// Sets a result after which the call continues: the response to a request for a websocket.
    pub(super) fn record(&self, result: CallResult) {
        self.with(|span| result.apply(&mut **span));
    }

    /// Sets the result of the call, and ends the span. Later calls have no effect.
    pub(super) fn finish(&self, result: CallResult) {
        let Some(span) = &self.0 else { return };
        // Ends after unlocking.
        let ended = span.lock().take();
        if let Some(mut span) = ended {
            result.apply(&mut *span);
        }
    }

    fn with(&self, act: impl FnOnce(&mut Box<dyn Span>)) {
        if let Some(span) = &self.0
            && let Some(span) = &mut *span.lock()
        {
            act(span);
        }
    }
}

// === impl CallResult ===

impl CallResult {
    fn apply(self, span: &mut dyn Span) {
        let failed = match self {
            Self::Grpc(code) => {
                // The index of a code is its number.
                let number = u16::try_from(code.index()).unwrap_or(u16::MAX);
                span.set("rpc.grpc.status_code", Value::Number(number));
                SERVER_ERRORS.contains(&code)
            }
            Self::Http(status) => {
                span.set("http.response.status_code", Value::Number(status.as_u16()));
                if status == StatusCode::SWITCHING_PROTOCOLS {
                    span.set(TRANSPORT, Value::Word(WEBSOCKET));
                }
                status.is_server_error()
            }
            Self::Websocket(end) => {
                span.set(WEBSOCKET_END, Value::Word(end.label()));
                end == WebsocketEnd::Error
            }
        };
        if failed {
            span.fail();
        }
    }
}

/// Returns the header, if there is exactly one, as its specification requires.
fn only_traceparent(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = headers.get_all(TRACEPARENT).into_iter();
    values.next().filter(|_| values.next().is_none())
}

/// Returns the name of a method. A caller may send any word as a method.
fn known_method(method: &Method) -> &'static str {
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
        Method::CONNECT,
        Method::TRACE,
    ];
    let names = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    known.iter().zip(names).find(|(known, _)| *known == method).map_or(OTHER_METHOD, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Owner;

    /// Records spans as text.
    #[derive(Clone, Debug, Default)]
    struct Recorder(Arc<Mutex<Vec<String>>>);

    #[derive(Debug)]
    struct Recorded {
        text: String,
        to: Recorder,
    }

    impl Tracer for Recorder {
        fn start(&self, name: String, traceparent: Option<&HeaderValue>) -> Option<Box<dyn Span>> {
            if traceparent.is_some_and(|parent| parent == "unsampled") {
                return None;
            }
            let text = format!("{name} {:?}", traceparent.map(HeaderValue::as_bytes).unwrap_or_default());
            Some(Box::new(Recorded { text, to: self.clone() }))
        }
    }

    impl Span for Recorded {
        fn set(&mut self, key: &'static str, value: Value) {
            let value = match value {
                Value::Word(word) => word.to_owned(),
                Value::Text(text) => text,
                Value::Number(number) => number.to_string(),
            };
            self.text = format!("{} {key}={value}", self.text);
        }

        fn fail(&mut self) {
            self.text.push_str(" failed");
        }
    }

    impl Drop for Recorded {
        fn drop(&mut self) {
            self.to.0.lock().push(std::mem::take(&mut self.text));
        }
    }

    fn recorder() -> (Recorder, Arc<dyn Tracer>) {
        let recorder = Recorder::default();
        (recorder.clone(), Arc::new(recorder))
    }

    fn only(recorder: &Recorder) -> String {
        let mut spans = std::mem::take(&mut *recorder.0.lock());
        assert_eq!(spans.len(), 1, "{spans:?}");
        spans.remove(0)
    }

    fn headers(traceparents: &[&'static str]) -> HeaderMap {
        let values = traceparents.iter().map(|value| HeaderValue::from_static(value));
        values.map(|value| (http::HeaderName::from_static(TRACEPARENT), value)).collect()
    }

    #[test]
    fn grpc_call_is_one_span_with_hash_and_code() {
        let (recorder, tracer) = recorder();
        let [owner, provider] = [1, 2].map(|number| Owner::from_account([number; 20]));
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap();
        let trace = CallTrace::grpc(Some(&tracer), Some("a.B"), "Call", &headers(&[]));
        let clone = trace.clone();
        clone.set_lease(&lease);
        trace.finish(CallResult::Grpc(Code::Unavailable));
        let hash = lease.namespace();
        let attributes = "rpc.system=grpc rpc.method=Call leasemux.transport=grpc rpc.service=a.B";
        assert_eq!(
            only(&recorder),
            format!("a.B/Call [] {attributes} {LEASE}={hash} rpc.grpc.status_code=14 failed")
        );
        clone.finish(CallResult::Grpc(Code::Ok));
        drop((trace, clone));
        assert!(recorder.0.lock().is_empty());
    }

    #[test]
    fn websocket_span_ends_with_its_stream() {
        let (recorder, tracer) = recorder();
        let trace = CallTrace::rest(Some(&tracer), &Method::GET, RouteTemplate::Logs, &headers(&[]));
        trace.record(CallResult::Http(StatusCode::SWITCHING_PROTOCOLS));
        assert!(recorder.0.lock().is_empty());
        trace.finish(CallResult::Websocket(WebsocketEnd::Stalled));
        let span = only(&recorder);
        assert!(span.starts_with("GET /lease/{dseq}/{gseq}/{oseq}/logs "), "{span}");
        assert!(
            span.ends_with("status_code=101 leasemux.transport=websocket leasemux.websocket.end=stalled")
        );
    }

    #[test]
    fn method_that_a_caller_invents_is_not_recorded() {
        let (recorder, tracer) = recorder();
        let method = Method::from_bytes(b"AKASH1SECRET").unwrap();
        CallTrace::rest(Some(&tracer), &method, RouteTemplate::Other, &headers(&[]))
            .finish(CallResult::Http(StatusCode::NOT_FOUND));
        let span = only(&recorder);
        assert!(span.starts_with("_OTHER other ") && !span.contains("SECRET"), "{span}");
        assert!(!span.contains("failed"), "{span}");
        assert_eq!(known_method(&Method::PATCH), "PATCH");
    }

    #[test]
    fn call_without_response_ends_its_span_on_drop() {
        let (recorder, tracer) = recorder();
        drop(CallTrace::grpc(Some(&tracer), None, "other", &headers(&[])));
        assert_eq!(only(&recorder), "other [] rpc.system=grpc rpc.method=other leasemux.transport=grpc");
    }

    #[test]
    fn only_one_traceparent_is_continued() {
        let (recorder, tracer) = recorder();
        for (sent, passed) in [(&["00"][..], "[48, 48]"), (&["00", "01"], "[]"), (&[], "[]")] {
            drop(CallTrace::grpc(Some(&tracer), None, "other", &headers(sent)));
            assert!(only(&recorder).starts_with(&format!("other {passed} ")), "{sent:?}");
        }
    }

    #[test]
    fn untraced_call_has_nothing_behind_it() {
        let (recorder, tracer) = recorder();
        let sampled_out = CallTrace::grpc(Some(&tracer), None, "other", &headers(&["unsampled"]));
        for trace in [sampled_out, CallTrace::grpc(None, None, "other", &headers(&[]))] {
            assert!(trace.0.is_none());
            trace.finish(CallResult::Grpc(Code::Ok));
        }
        assert!(recorder.0.lock().is_empty());
    }
}
