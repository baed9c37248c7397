//! When the stream sends: each call and the write it causes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};

use super::super::stream::WRITE_MAX_BYTES;
use super::{TlsStream, accept, server};

/// One side of a pipe that records the writes made to it.
#[derive(Debug)]
pub(super) struct Counting<IO> {
    pub(super) io: IO,
    pub(super) writes: Arc<std::sync::Mutex<Vec<usize>>>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counting<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> Counting<IO> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.writes.lock().unwrap().push(*bytes);
        }
        written
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counting<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type Client = tokio_rustls::client::TlsStream<DuplexStream>;

/// Creates a stream over a pipe of `capacity`. Returns it, its writes after the handshake, and its client.
async fn counted(
    capacity: usize,
) -> (TlsStream<Counting<DuplexStream>>, Arc<std::sync::Mutex<Vec<usize>>>, Client) {
    let server = server();
    let (near, far) = tokio::io::duplex(capacity);
    let writes = Arc::default();
    let near = Counting { io: near, writes: Arc::clone(&writes) };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(server.client()));
    let connecting = connector.connect("localhost".try_into().unwrap(), far);
    let (accepted, connected) = tokio::join!(accept(Arc::clone(&server.config), near), connecting);
    writes.lock().unwrap().clear();
    (accepted.unwrap(), writes, connected.unwrap())
}

fn take(writes: &std::sync::Mutex<Vec<usize>>) -> Vec<usize> {
    std::mem::take(&mut *writes.lock().unwrap())
}

/// A waker that records whether it was used.
#[derive(Default)]
struct Flag(std::sync::atomic::AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// One task with one stream.
struct Task<IO> {
    stream: TlsStream<IO>,
    woken: Arc<Flag>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Task<IO> {
    fn new(stream: TlsStream<IO>) -> Self {
        let woken = Arc::default();
        Self { stream, woken }
    }

    fn call<T>(&mut self, call: impl FnOnce(Pin<&mut TlsStream<IO>>, &mut Context<'_>) -> T) -> T {
        let waker = Waker::from(Arc::clone(&self.woken));
        call(Pin::new(&mut self.stream), &mut Context::from_waker(&waker))
    }

    /// Starts a poll of the task: there is nothing to read.
    fn read_nothing(&mut self) {
        self.woken.0.store(false, std::sync::atomic::Ordering::SeqCst);
        let mut byte = [0];
        assert!(self.call(|s, cx| s.poll_read(cx, &mut ReadBuf::new(&mut byte))).is_pending());
    }

    fn write(&mut self, length: usize) {
        assert!(
            matches!(self.call(|s, cx| s.poll_write(cx, &vec![7; length])), Poll::Ready(Ok(n)) if n == length)
        );
    }

    fn flush(&mut self) {
        assert!(matches!(self.call(AsyncWrite::poll_flush), Poll::Ready(Ok(()))));
    }

    fn woken(&self) -> bool {
        self.woken.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

const FRAME: usize = 9 + 16 * 1024;

#[tokio::test]
async fn short_batch_is_sent_at_its_flush() {
    let (stream, writes, _client) = counted(1 << 20).await;
    let mut task = Task::new(stream);
    for length in [1, 100, 4096] {
        task.read_nothing();
        task.write(length);
        assert!(take(&writes).is_empty());
        task.flush();
        assert_eq!(take(&writes), [length + 22]);
        task.flush();
        assert!(take(&writes).is_empty());
        assert!(!task.woken());
    }
}

#[tokio::test]
async fn full_frames_are_sent_by_threes() {
    let (stream, writes, _client) = counted(1 << 20).await;
    let mut task = Task::new(stream);
    for length in [FRAME, 16_100, 15_000] {
        task.read_nothing();
        for _ in 0..6 {
            task.write(length);
            task.flush();
        }
        let three = 3 * (length + 22 * length.div_ceil(16 * 1024));
        assert_eq!(take(&writes), [three, three], "{length}");
    }
}

#[tokio::test]
async fn queue_is_sent_at_the_second_flush() {
    let (stream, writes, _client) = counted(1 << 20).await;
    let mut task = Task::new(stream);
    task.read_nothing();
    task.write(FRAME);
    task.flush();
    assert!(take(&writes).is_empty());
    assert!(task.woken(), "the task will send the queue");
    task.flush();
    assert_eq!(take(&writes), [FRAME + 44]);
}

#[tokio::test]
async fn queue_is_sent_at_the_next_read() {
    let (stream, writes, _client) = counted(1 << 20).await;
    let mut task = Task::new(stream);
    task.read_nothing();
    task.write(FRAME);
    task.flush();
    assert!(task.woken());
    task.read_nothing();
    assert_eq!(take(&writes), [FRAME + 44]);
}

#[tokio::test]
async fn short_batches_in_a_row_are_joined() {
    let (stream, writes, _client) = counted(1 << 20).await;
    let mut task = Task::new(stream);
    task.read_nothing();
    for _ in 0..5 {
        task.write(300);
        task.flush();
    }
    assert_eq!(take(&writes), [322]);
    assert!(task.woken());
    task.read_nothing();
    assert_eq!(take(&writes), [4 * 322]);
}

#[tokio::test]
async fn number_of_queued_records_is_bounded() {
    let (stream, writes, _client) = counted(1 << 20).await;
    let mut task = Task::new(stream);
    task.read_nothing();
    for _ in 0..128 {
        task.write(1);
    }
    assert_eq!(take(&writes), [64 * 23, 64 * 23]);
}

#[tokio::test]
async fn full_socket_stops_the_queue() {
    for batches in [&[4_000][..], &[FRAME; 3]] {
        let (stream, writes, mut client) = counted(1_000).await;
        let mut task = Task::new(stream);
        task.read_nothing();
        for &length in batches {
            task.write(length);
            let flushed = task.call(AsyncWrite::poll_flush).is_ready();
            assert_eq!(flushed, writes.lock().unwrap().is_empty(), "a flush waits for a full socket");
        }
        assert_eq!(take(&writes), [1_000]);
        assert!(task.call(|s, cx| s.poll_write(cx, &[8])).is_pending(), "nothing more is queued");

        // Everything and the end arrive when the client reads.
        let mut received = Vec::new();
        let (ended, read) = tokio::join!(task.stream.shutdown(), client.read_to_end(&mut received));
        ended.unwrap();
        read.unwrap();
        assert!(received == vec![7; batches.iter().sum()]);
        assert!(task.stream.write(b"more").await.is_err(), "nothing can be written after the end");
    }
}

#[tokio::test]
async fn queued_bytes_are_bounded() {
    let (stream, writes, _client) = counted(1_000).await;
    let mut task = Task::new(stream);
    task.read_nothing();
    let mut accepted = 0;
    while let Poll::Ready(written) = task.call(|s, cx| s.poll_write(cx, &vec![7; 1 << 20])) {
        accepted += written.unwrap();
    }
    assert!((WRITE_MAX_BYTES / 2..=WRITE_MAX_BYTES).contains(&accepted), "{accepted}");
    assert_eq!(take(&writes), [1_000]);
}

#[tokio::test]
async fn shutdown_sends_the_queue_and_the_end() {
    let (mut stream, _, mut client) = counted(1 << 20).await;
    stream.write_all(&vec![7; FRAME]).await.unwrap();
    stream.flush().await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.expect("a clean end");
    assert_eq!(received.len(), FRAME);
}

#[tokio::test]
async fn end_without_close_notify_is_an_error() {
    let (mut stream, _, mut client) = counted(1 << 20).await;
    client.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0);
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0, "repeatedly");

    let (mut stream, _, client) = counted(1 << 20).await;
    drop(client);
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(stream.write_all(&vec![7; 10 * FRAME]).await.is_err());
}

#[tokio::test]
async fn garbage_after_the_handshake_gets_an_alert() {
    let (mut stream, writes, client) = counted(1 << 20).await;
    let (mut raw, _tls) = client.into_inner();
    raw.write_all(&[23, 3, 3, 0, 20]).await.unwrap();
    raw.write_all(&[0; 20]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(stream.write(b"more").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(take(&writes), [2 + 22], "one encrypted alert");
}

#[tokio::test]
async fn key_updates_of_both_sides_are_handled() {
    let (mut stream, _, mut client) = counted(1 << 20).await;
    for round in 0..10_u8 {
        stream.refresh_traffic_keys().unwrap();
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(&[round; 100]).await.unwrap();
        client.flush().await.unwrap();
        let mut received = [0; 100];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(received, [round; 100]);
        stream.write_all(&received).await.unwrap();
        stream.flush().await.unwrap();
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(received, [round; 100]);
    }
}
