//! One type for all response bodies, so that log streams reach HTTP/2 as they are, without being boxed or copied.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use crate::logs::body::LogsBody;
use crate::logs::stream::Messages;

/// The body of any response.
#[derive(Debug)]
pub enum ResponseBody {
    /// Logs.
    Logs(Box<LogsBody>),
    /// Everything else.
    Other(tonic::body::Body),
}

/// Bytes of any response.
#[derive(Debug)]
pub enum ResponseData {
    /// Of logs.
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
    let mut response = http::Response::new(ResponseBody::Logs(Box::new(body)));
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
            Self::Logs(body) => match ready!(Pin::new(&mut **body).poll_frame(cx)) {
                Some(Ok(frame)) => Some(Ok(frame.map_data(ResponseData::Messages))),
                Some(Err(never)) => match never {},
                None => None,
            },
            Self::Other(body) => ready!(Pin::new(body).poll_frame(cx))
                .map(|frame| frame.map(|frame| frame.map_data(ResponseData::Bytes))),
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Logs(body) => body.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Logs(body) => body.size_hint(),
            Self::Other(body) => body.size_hint(),
        }
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
