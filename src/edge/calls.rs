//! Counts calls: each once, from its headers to its end, however it ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::model::metrics::{Code, GaugeGuard, Method, Metrics};

/// Where gRPC says how a call ended: in the trailers, or in the headers if there is nothing else.
const STATUS: &str = "grpc-status";

/// A call that has begun. Dropping it is its end.
#[derive(Debug)]
pub(super) struct Call {
    metrics: Metrics,
    method: Method,
    began: Instant,
    is_answered: bool,
    /// Until its end was told, it would be that its caller has gone.
    code: Code,
    _open: GaugeGuard,
}

/// The body of a response, and the call that it belongs to, if that is counted.
#[derive(Debug)]
pub(super) struct Counted<B> {
    body: B,
    call: Option<Call>,
}

// === impl Call ===

impl Call {
    /// A call of `method` whose headers are here.
    pub(super) fn begin(metrics: &Metrics, method: Method) -> Self {
        Self {
            metrics: metrics.clone(),
            method,
            began: Instant::now(),
            is_answered: false,
            code: Code::Cancelled,
            _open: GaugeGuard::new(metrics.streams.of(method)),
        }
    }

    /// What the call is answered with.
    pub(super) fn answer<B>(mut self, response: Response<B>) -> Response<Counted<B>> {
        let is_over = self.told(response.headers());
        let call = if is_over {
            drop(self);
            None
        } else {
            Some(self)
        };
        response.map(|body| Counted { body, call })
    }

    /// Whether these headers or trailers tell how the call ended.
    fn told(&mut self, headers: &HeaderMap) -> bool {
        let Some(status) = headers.get(STATUS) else {
            return false;
        };
        let number = status.to_str().ok().and_then(|text| text.parse().ok());
        self.code = Code::of_number(number.unwrap_or(-1));
        self.answered();
        true
    }

    fn answered(&mut self) {
        if !std::mem::replace(&mut self.is_answered, true) {
            self.metrics.first_answer.of(self.method).record(self.began.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.metrics.requests.of((self.method, self.code)).increment(1);
        self.metrics.call_duration.of(self.method).record(self.began.elapsed().as_secs_f64());
    }
}

// === impl Counted ===

impl<B> Counted<B> {
    /// A response that is not a call of the lease service.
    pub(super) fn not(body: B) -> Self {
        Self { body, call: None }
    }
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(call) = &mut this.call
            && let Some(Ok(frame)) = &frame
        {
            match frame.trailers_ref() {
                Some(trailers) if call.told(trailers) => this.call = None,
                _ => call.answered(),
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
