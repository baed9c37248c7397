//! One type for all response bodies, so that log streams reach HTTP/2 as they are, without being boxed or copied.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use tonic::Status;

use crate::logs::body::LogsBody;
use crate::model::proto::framed;
use crate::status::body::StatusBody;
use crate::stream::{Messages, Parts, StreamControl};

/// The body of any response.
#[derive(Debug)]
pub enum ResponseBody {
    /// Nothing: all is said in the headers.
    Nothing,
    /// Logs.
    Logs(Box<LogsBody>),
    /// Status.
    Status(Box<StatusBody>),
    /// Everything else.
    Other(OtherBody),
}

/// A body that knows nothing of streams being watched over: what it has is handed over one message after the other.
#[derive(Debug)]
pub struct OtherBody {
    body: tonic::body::Body,
    state: Arc<StreamControl>,
}

/// A response that is nothing but a refusal, or some other status.
pub fn of_status(status: Status) -> http::Response<ResponseBody> {
    status.into_http::<()>().map(|()| ResponseBody::Nothing)
}

/// A response of logs.
pub fn of_logs(body: LogsBody) -> http::Response<ResponseBody> {
    grpc(ResponseBody::Logs(Box::new(body)))
}

/// A response of status.
pub fn of_status_stream(body: StatusBody) -> http::Response<ResponseBody> {
    grpc(ResponseBody::Status(Box::new(body)))
}

/// A response of one message, on a stream of this state.
pub fn of_message(message: &impl prost::Message, state: Arc<StreamControl>) -> http::Response<ResponseBody> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(framed(message)).with_trailers(std::future::ready(Some(Ok(trailers))));
    grpc(ResponseBody::Other(OtherBody::new(tonic::body::Body::new(body), state)))
}

fn grpc(body: ResponseBody) -> http::Response<ResponseBody> {
    let mut response = http::Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    response
}

// === impl ResponseBody ===

impl Body for ResponseBody {
    type Data = Messages;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Messages>, Status>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            Self::Logs(body) => Pin::new(&mut **body).poll_frame(cx).map(never_fails),
            Self::Status(body) => Pin::new(&mut **body).poll_frame(cx).map(never_fails),
            Self::Other(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Logs(body) => body.is_end_stream(),
            Self::Status(body) => body.is_end_stream(),
            Self::Other(OtherBody { body, .. }) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Logs(body) => body.size_hint(),
            Self::Status(body) => body.size_hint(),
            Self::Other(OtherBody { body, .. }) => body.size_hint(),
        }
    }
}

fn never_fails(
    frame: Option<Result<Frame<Messages>, Infallible>>,
) -> Option<Result<Frame<Messages>, Status>> {
    frame.map(|frame| frame.map_err(|never| match never {}))
}

// === impl OtherBody ===

impl OtherBody {
    /// What this body has, on a stream of this state.
    pub(super) fn new(body: tonic::body::Body, state: Arc<StreamControl>) -> Self {
        Self { body, state }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Messages>, Status>>> {
        // Once HTTP/2 has the trailers nobody watches over the stream any more.
        ready!(self.state.poll_drained(cx));
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let of_stream = |bytes| Messages::new(Parts::from([bytes]), Arc::clone(&self.state));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(of_stream))))
    }
}
