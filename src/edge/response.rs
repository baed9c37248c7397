//! Responses: one type for all bodies, which carries the metrics of the call that each belongs to.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use tokio::time::Instant;
use tonic::Status;

use super::call_trace::{CallResult, CallTrace};
use crate::model::limits::STREAM_SEND_MAX_BYTES;
use crate::model::metrics::{Code, GaugeGuard, Method, Metrics};
use crate::model::proto::framed;
use crate::stream::{Messages, Parts, StreamControl};

/// The field with the status of a call: in the trailers, or in the headers if there is no body.
pub(super) const STATUS: &str = "grpc-status";

/// The body of any response. Takes part in the metrics of its call.
#[derive(Debug)]
pub(super) struct ResponseBody {
    body: UnsyncBoxBody<Messages, Status>,
    /// `None`: the call is not counted, or has ended.
    call: Option<CallMetrics>,
}

/// Wraps a body that does not know its [`StreamControl`]: counts its unsent bytes, but cannot be asked to
/// end. Its messages are handed over one by one.
struct ForeignBody {
    body: tonic::body::Body,
    control: Arc<StreamControl>,
}

/// The metrics and the trace of one call: counted once, from its headers to its end. The end is its status, or
/// its drop.
#[derive(Debug)]
pub(super) struct CallMetrics {
    metrics: Metrics,
    method: Method,
    started: Instant,
    is_answered: bool,
    /// `Cancelled` until the status is known: then the caller has gone.
    code: Code,
    trace: CallTrace,
    _open: GaugeGuard,
}

/// Returns the code of a [`STATUS`] field.
pub(super) fn code_of(status: &HeaderValue) -> Code {
    let number = status.to_str().ok().and_then(|text| text.parse().ok());
    Code::of_number(number.unwrap_or(-1))
}

/// Creates a response with a status and no body.
pub(super) fn of_status(status: Status) -> Response<ResponseBody> {
    status.into_http::<()>().map(|()| ResponseBody::new(Empty::new().map_err(|never| match never {})))
}

/// Creates a response with a stream of messages.
pub(super) fn of_stream(
    body: impl Body<Data = Messages, Error = Infallible> + Send + 'static,
) -> Response<ResponseBody> {
    grpc(ResponseBody::new(body.map_err(|never| match never {})))
}

/// Creates a response of one message, which goes out in pieces. Keeps `held` until the body is dropped.
pub(super) fn of_message(
    message: &impl prost::Message,
    control: Arc<StreamControl>,
    held: impl Send + 'static,
) -> Response<ResponseBody> {
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    let (mut unsent, mut trailers) = (framed(message), Some(trailers));
    let frames = std::iter::from_fn(move || {
        let _held = &held;
        if unsent.is_empty() {
            return trailers.take().map(Frame::trailers);
        }
        Some(Frame::data(unsent.split_to(unsent.len().min(STREAM_SEND_MAX_BYTES))))
    });
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
    grpc(ResponseBody::of_foreign(tonic::body::Body::new(body), control))
}

fn grpc(body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    response
}

// === impl ResponseBody ===

impl ResponseBody {
    fn new(body: impl Body<Data = Messages, Error = Status> + Send + 'static) -> Self {
        Self { body: body.boxed_unsync(), call: None }
    }

    /// Creates a response body from one that does not know `control`.
    pub(super) fn of_foreign(body: tonic::body::Body, control: Arc<StreamControl>) -> Self {
        Self::new(ForeignBody { body, control })
    }
}

impl Body for ResponseBody {
    type Data = Messages;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Messages>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(call) = &mut this.call
            && let Some(Ok(frame)) = &frame
        {
            match frame.trailers_ref() {
                Some(trailers) if call.take_status(trailers) => this.call = None,
                _ => call.record_answer(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl ForeignBody ===

impl Body for ForeignBody {
    type Data = Messages;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Messages>, Status>>> {
        let this = self.get_mut();
        // Waits for the messages before: once HTTP/2 has the trailers, the stream is no longer supervised.
        ready!(this.control.poll_all_taken(cx));
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let of_stream = |bytes| Messages::new(Parts::from([bytes]), Arc::clone(&this.control));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(of_stream))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl CallMetrics ===

impl CallMetrics {
    /// Starts counting a call whose headers have arrived.
    pub(super) fn start(metrics: &Metrics, method: Method, trace: CallTrace) -> Self {
        Self {
            metrics: metrics.clone(),
            method,
            started: Instant::now(),
            is_answered: false,
            code: Code::Cancelled,
            trace,
            _open: GaugeGuard::new(metrics.streams.of(method)),
        }
    }

    /// Counts the response of the call, now and while its body is sent.
    pub(super) fn count(mut self, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
        if !self.take_status(response.headers()) {
            response.body_mut().call = Some(self);
        }
        response
    }

    /// Takes the status of the call from headers or trailers. Returns whether they have one.
    fn take_status(&mut self, headers: &HeaderMap) -> bool {
        let Some(status) = headers.get(STATUS) else {
            return false;
        };
        self.code = code_of(status);
        self.record_answer();
        true
    }

    fn record_answer(&mut self) {
        if !std::mem::replace(&mut self.is_answered, true) {
            self.metrics.first_answer.of(self.method).record(self.started.elapsed().as_secs_f64());
        }
    }
}

impl Drop for CallMetrics {
    fn drop(&mut self) {
        self.metrics.requests.of((self.method, self.code)).increment(1);
        self.metrics.call_duration.of(self.method).record(self.started.elapsed().as_secs_f64());
        self.trace.finish(CallResult::Grpc(self.code));
    }
}
