//! Copies bytes both ways between two streams, until both have ended or neither sends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Size of the buffer of each direction: one TLS record.
const BUFFER_BYTES: usize = 16 * 1024;

/// Time limits of copying.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyLimits {
    /// Time without a byte from either side.
    pub(super) idle: Duration,
    /// Time without a byte after one side has ended.
    pub(super) half_closed: Duration,
}

/// How copying ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyEnd {
    /// Both sides ended in order.
    Complete,
    /// One side failed.
    Failed,
    /// Neither side sent a byte in time.
    Idle,
}

/// What was copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub(crate) from_client_bytes: u64,
    pub(crate) from_upstream_bytes: u64,
    pub(crate) end: CopyEnd,
}

/// The time of the last byte of both sides, and whether one side has ended.
#[derive(Debug)]
struct Progress {
    start: Instant,
    last_millis: AtomicU64,
    half_closed: AtomicBool,
    /// Notified when `half_closed` changes, because the limit becomes shorter.
    changed: Notify,
}

/// Counts the bytes read from `io`.
struct Counted<IO> {
    io: IO,
    read: u64,
    progress: Arc<Progress>,
}

/// Copies both ways between `client` and `upstream`. The end of one side closes the sending side of the
/// other. Dropping the future drops both streams.
pub(super) async fn copy_both(
    client: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    limits: CopyLimits,
) -> Copied {
    let progress = Arc::new(Progress {
        start: Instant::now(),
        last_millis: AtomicU64::new(0),
        half_closed: AtomicBool::new(false),
        changed: Notify::new(),
    });
    let mut client = Counted { io: client, read: 0, progress: Arc::clone(&progress) };
    let mut upstream = Counted { io: upstream, read: 0, progress: Arc::clone(&progress) };
    let end = tokio::select! {
        biased;
        copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER_BYTES, BUFFER_BYTES) => {
            if copied.is_ok() { CopyEnd::Complete } else { CopyEnd::Failed }
        }
        () = progress.stopped(limits) => CopyEnd::Idle,
    };
    Copied { from_client_bytes: client.read, from_upstream_bytes: upstream.read, end }
}

// === impl Progress ===

impl Progress {
    fn note(&self) {
        let millis = self.start.elapsed().as_millis();
        self.last_millis.store(u64::try_from(millis).unwrap_or(u64::MAX), Relaxed);
    }

    /// Waits until neither side has sent a byte for as long as `limits` allow.
    async fn stopped(&self, limits: CopyLimits) {
        loop {
            let limit = if self.half_closed.load(Relaxed) { limits.half_closed } else { limits.idle };
            let due = self.start + Duration::from_millis(self.last_millis.load(Relaxed)) + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

// === impl Counted ===

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.progress.note();
        let read = buf.filled().len() - before;
        this.read += read as u64;
        if read == 0 {
            this.progress.half_closed.store(true, Relaxed);
            this.progress.changed.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
