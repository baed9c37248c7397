//! One type for all response bodies, so that log streams reach HTTP/2 as they are, without being boxed or copied.

use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use tonic::Status;

use crate::leases::status::body::StatusBody;
use crate::logs::body::LogsBody;
use crate::model::proto::framed;
use crate::stream::Messages;

/// The body of any response.
#[derive(Debug)]
pub enum ResponseBody {
    /// Logs.
    Logs(Box<LogsBody>),
    /// Status.
    Status(Box<StatusBody>),
    /// Everything else.
    Other(tonic::body::Body),
}

/// Bytes of any response.
#[derive(Debug)]
pub enum ResponseData {
    /// Of logs or status.
    Messages(Messages),
    /// Of anything else.
    Bytes(Bytes),
}

/// A response that is nothing but a refusal, or some other status.
pub fn of_status(status: Status) -> http::Response<ResponseBody> {
    status.into_http::<tonic::body::Body>().map(ResponseBody::Other)
}

/// A response of logs.
pub fn of_logs(body: LogsBody) -> http::Response<ResponseBody> {
    grpc(ResponseBody::Logs(Box::new(body)))
}

/// A response of status.
pub fn of_status_stream(body: StatusBody) -> http::Response<ResponseBody> {
    grpc(ResponseBody::Status(Box::new(body)))
}

/// A response of one message.
pub fn of_message(message: &impl prost::Message) -> http::Response<ResponseBody> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(framed(message)).with_trailers(std::future::ready(Some(Ok(trailers))));
    grpc(ResponseBody::Other(tonic::body::Body::new(body)))
}

fn grpc(body: ResponseBody) -> http::Response<ResponseBody> {
    let mut response = http::Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    response
}

impl Body for ResponseBody {
    type Data = ResponseData;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<ResponseData>, Status>>> {
        let frame = match self.get_mut() {
            Self::Logs(body) => of_messages(ready!(Pin::new(&mut **body).poll_frame(cx))),
            Self::Status(body) => of_messages(ready!(Pin::new(&mut **body).poll_frame(cx))),
            Self::Other(body) => ready!(Pin::new(body).poll_frame(cx))
                .map(|frame| frame.map(|frame| frame.map_data(ResponseData::Bytes))),
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Logs(body) => body.is_end_stream(),
            Self::Status(body) => body.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Logs(body) => body.size_hint(),
            Self::Status(body) => body.size_hint(),
            Self::Other(body) => body.size_hint(),
        }
    }
}

fn of_messages(
    frame: Option<Result<Frame<Messages>, Infallible>>,
) -> Option<Result<Frame<ResponseData>, Status>> {
    match frame? {
        Ok(frame) => Some(Ok(frame.map_data(ResponseData::Messages))),
        Err(never) => match never {},
    }
}

impl Buf for ResponseData {
    fn remaining(&self) -> usize {
        match self {
            Self::Messages(messages) => messages.remaining(),
            Self::Bytes(bytes) => bytes.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Messages(messages) => messages.chunk(),
            Self::Bytes(bytes) => bytes.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Messages(messages) => messages.chunks_vectored(into),
            Self::Bytes(bytes) => bytes.chunks_vectored(into),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Messages(messages) => messages.advance(count),
            Self::Bytes(bytes) => bytes.advance(count),
        }
    }
}
