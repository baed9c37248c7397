//! The stream with hyper's server and client.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::write_batching::Counting;
use super::{DEADLINE, accept, server};

/// A body whose chunks come from a test.
struct Chunks(mpsc::Receiver<Bytes>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

type Polls = Arc<Mutex<Vec<usize>>>;

/// One stream over one connection.
struct Fixture {
    /// Chunks for the server to send. Dropping it ends the stream.
    chunks: mpsc::Sender<Bytes>,
    received: Incoming,
    /// Lengths of the server's writes to its socket.
    writes: Arc<Mutex<Vec<usize>>>,
    /// The number of writes of each poll of the server's connection.
    polls: Polls,
    _client: SendRequest<Empty<Bytes>>,
    _tasks: JoinSet<()>,
}

/// Opens a stream with windows of `window` bytes over a pipe of `capacity` bytes.
async fn open(capacity: usize, window: u32) -> Fixture {
    let server = server();
    let mut tasks = JoinSet::new();
    let writes = Arc::<Mutex<Vec<usize>>>::default();
    let polls = Polls::default();
    let (near, far) = tokio::io::duplex(capacity);
    let near = Counting { io: near, writes: Arc::clone(&writes) };
    let (chunks, body) = mpsc::channel(1_000);
    tasks.spawn(serve(
        accept(Arc::clone(&server.config), near),
        body,
        (Arc::clone(&writes), Arc::clone(&polls)),
    ));

    let connector = tokio_rustls::TlsConnector::from(Arc::new(server.client()));
    let io = connector.connect("localhost".try_into().unwrap(), far).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .handshake(TokioIo::new(io))
        .await
        .unwrap();
    tasks.spawn(async { drop(connection.await) });
    let request = Request::get("https://localhost/").body(Empty::new()).unwrap();
    let received = client.send_request(request).await.unwrap().into_body();
    Fixture { chunks, received, writes, polls, _client: client, _tasks: tasks }
}

async fn serve(
    accepted: impl Future<Output = std::io::Result<super::TlsStream<Counting<DuplexStream>>>>,
    body: mpsc::Receiver<Bytes>,
    (writes, polls): (Arc<Mutex<Vec<usize>>>, Polls),
) {
    let body = Mutex::new(Some(Chunks(body)));
    let service = service_fn(|_| {
        let body = body.lock().unwrap().take().unwrap();
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let io = TokioIo::new(accepted.await.unwrap());
    let connection =
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let counted = std::future::poll_fn(|cx| {
        let before = writes.lock().unwrap().len();
        let polled = connection.as_mut().poll(cx);
        let after = writes.lock().unwrap().len();
        polls.lock().unwrap().push(after - before);
        polled
    });
    drop(counted.await);
}

impl Fixture {
    async fn receive(&mut self, mut bytes: usize) -> Vec<u8> {
        let mut received = Vec::new();
        while bytes > 0 {
            let frame = tokio::time::timeout(DEADLINE, self.received.frame()).await.expect("no hang");
            let data = frame.expect("more data").unwrap().into_data().unwrap();
            bytes = bytes.checked_sub(data.len()).expect("not more than was sent");
            received.extend_from_slice(&data);
        }
        received
    }

    /// Waits until all tasks are idle.
    async fn settle(&self) {
        let mut quiet = 0;
        while quiet < 20 {
            let before = self.polls.lock().unwrap().len();
            tokio::task::yield_now().await;
            let is_quiet = self.polls.lock().unwrap().len() == before;
            quiet = if is_quiet { quiet + 1 } else { 0 };
        }
    }

    fn writes(&self) -> Vec<usize> {
        std::mem::take(&mut *self.writes.lock().unwrap())
    }
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
}

#[tokio::test]
async fn backlog_is_sent_three_frames_at_a_time() {
    const COUNT: usize = 300;
    // The connection writes frames of 16,384 bytes for chunks of any size.
    for length in [16_384, 16_100, 64 * 1024] {
        let count = COUNT * 16_384 / length;
        let mut fixture = open(64 << 20, 1 << 30).await;
        fixture.settle().await;
        fixture.writes();
        for _ in 0..count {
            fixture.chunks.try_send(pattern(length)).unwrap();
        }
        fixture.receive(count * length).await;
        let writes = fixture.writes();
        // The send buffer of a stream is sometimes empty, which ends a batch early.
        assert!(
            writes.len() <= COUNT / 3 + COUNT / 20,
            "{length}: {} writes for {COUNT} frames",
            writes.len()
        );
    }
}

#[tokio::test]
async fn single_message_is_one_write_in_the_same_poll() {
    let mut fixture = open(1 << 20, 1 << 30).await;
    fixture.settle().await;
    fixture.writes();
    for length in [1, 100, 1_000, 4_096, 16_000] {
        fixture.polls.lock().unwrap().clear();
        fixture.chunks.try_send(pattern(length)).unwrap();
        assert_eq!(fixture.receive(length).await, pattern(length));
        fixture.settle().await;
        assert_eq!(fixture.writes(), [length + 9 + 22], "{length}");
        assert_eq!(fixture.polls.lock().unwrap().first(), Some(&1), "{length}: not in the first poll");
    }
}

#[tokio::test]
async fn every_byte_arrives_with_any_windows_and_pipes() {
    for (capacity, window) in
        [(100, 65_535), (5_000, 65_535), (5_000, 1 << 30), (1 << 20, 65_535), (200_000, 1 << 20)]
    {
        let mut fixture = open(capacity, window).await;
        let lengths = [1, 70_000, 16_384, 255, 256, 257, 16_100, 5, 40_000, 9];
        let mut sent = Vec::new();
        let chunks = fixture.chunks.clone();
        let rounds = if capacity < 1_000 { 1 } else { 10 };
        for _ in 0..rounds {
            for length in lengths {
                sent.extend_from_slice(&pattern(length));
                chunks.try_send(pattern(length)).unwrap();
            }
            // A late reader finds a full stream.
            fixture.settle().await;
        }
        assert!(fixture.receive(sent.len()).await == sent, "{capacity} {window}");
        // A single line still arrives.
        fixture.settle().await;
        chunks.try_send(pattern(80)).unwrap();
        assert_eq!(fixture.receive(80).await, pattern(80));
        drop(chunks);
        drop(std::mem::replace(&mut fixture.chunks, mpsc::channel(1).0));
        let end = tokio::time::timeout(DEADLINE, fixture.received.collect()).await.unwrap();
        assert!(end.expect("a clean end").to_bytes().is_empty());
    }
}

#[tokio::test]
async fn stopped_reader_is_sent_its_window_only() {
    // The window is used up, and no body is read to renew it.
    let fixture = open(1_000, 65_535).await;
    for _ in 0..200 {
        fixture.chunks.try_send(pattern(16_384)).unwrap();
    }
    fixture.settle().await;
    let sent: usize = fixture.writes().iter().sum();
    assert!((65_535..65_535 + 8_192).contains(&sent), "{sent} bytes for a window of 65,535");
}
