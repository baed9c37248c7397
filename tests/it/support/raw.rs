//! A caller that sends any bytes, which no gRPC client would send.

use std::convert::Infallible;

use bytes::{BufMut as _, Bytes};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasemux::edge::service::SERVICE;
use prost::Message;
use tokio::io::DuplexStream;
use tokio::task::JoinSet;
use tonic::Status;

/// One HTTP/2 connection. Closed on drop.
pub(crate) struct Raw {
    sender: SendRequest<BoxBody<Bytes, Infallible>>,
    _connection: JoinSet<()>,
}

/// Result of a call.
pub(crate) struct Answer {
    pub(crate) status: Status,
    /// All messages with their prefixes.
    pub(crate) body: Bytes,
}

impl Raw {
    /// Creates a connection over the client's end of a pipe.
    pub(crate) async fn new(pipe: DuplexStream) -> Self {
        Self::with_window(pipe, None).await
    }

    /// Creates a connection with this receive window for unread responses.
    pub(crate) async fn with_window(pipe: DuplexStream, bytes: impl Into<Option<u32>>) -> Self {
        let mut http = Builder::new(TokioExecutor::new());
        http.initial_stream_window_size(bytes);
        let (sender, connection) = http.handshake(TokioIo::new(pipe)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Its result shows in the calls.
            let _ = connection.await;
        });
        Self { sender, _connection: tasks }
    }

    /// Calls a method of the lease service with this body.
    pub(crate) async fn call(&mut self, method: &str, body: impl Into<Bytes>) -> Answer {
        self.send(&format!("/{SERVICE}/{method}"), Full::new(body.into()).boxed()).await
    }

    /// Calls a method of the lease service with this body and this compression header. Returns the headers
    /// too.
    pub(crate) async fn call_encoded(
        &mut self,
        method: &str,
        encoding: &str,
        body: impl Into<Bytes>,
    ) -> (HeaderMap, Answer) {
        let request = request(&format!("/{SERVICE}/{method}"), Full::new(body.into()).boxed());
        let (mut head, body) = request.into_parts();
        head.headers.insert("grpc-encoding", encoding.parse().unwrap());
        let response = self.begin_with(Request::from_parts(head, body)).await;
        (response.headers().clone(), answer(response).await)
    }

    /// Calls a method with a body that never ends.
    pub(crate) async fn call_without_end(&mut self, method: &str) -> Answer {
        let never = futures_util::stream::pending();
        self.send(&format!("/{SERVICE}/{method}"), BodyExt::boxed(StreamBody::new(never))).await
    }

    /// Calls a method at this path and reads only the headers of the response.
    pub(crate) async fn call_unread(&mut self, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        self.begin(path, Full::new(body.into()).boxed()).await
    }

    async fn send(&mut self, path: &str, body: BoxBody<Bytes, Infallible>) -> Answer {
        answer(self.begin(path, body).await).await
    }

    async fn begin(&mut self, path: &str, body: BoxBody<Bytes, Infallible>) -> Response<Incoming> {
        self.begin_with(request(path, body)).await
    }

    async fn begin_with(&mut self, request: Request<BoxBody<Bytes, Infallible>>) -> Response<Incoming> {
        self.sender.ready().await.expect("the connection lives");
        let answer = self.sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 200, "gRPC's own status comes within a success of HTTP");
        assert_eq!(answer.headers()["content-type"], "application/grpc");
        answer
    }
}

fn request(path: &str, body: BoxBody<Bytes, Infallible>) -> Request<BoxBody<Bytes, Infallible>> {
    Request::post(format!("http://gateway{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

async fn answer(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.expect("a whole answer");
    let trailers: HeaderMap = collected.trailers().cloned().unwrap_or(head.headers);
    let status = Status::from_header_map(&trailers).expect("every answer has a status");
    Answer { status, body: collected.to_bytes() }
}

/// Adds gRPC's prefix to a message.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.put_u32(u32::try_from(message.len()).unwrap());
    body.extend(message);
    body
}

/// Encodes a valid message with its prefix.
pub(crate) fn encoded(message: &impl Message) -> Vec<u8> {
    framed(&message.encode_to_vec())
}
