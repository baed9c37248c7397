//! Replaces the TLS stream without TLS: joins frames into few large writes, by the same rules.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Two data frames of the gateway, each of three HTTP/2 DATA frames of the size that clients advertise, with
/// their headers. Over TLS, records make half of it the better size.
const WRITE_MAX_BYTES: usize = 6 * (16 * 1024 + 9);

/// A smaller batch is sent at once: no more data follows it.
const SHORT_BYTES: usize = 8 * 1024;

/// A socket that joins DATA frames into one write.
pub(super) struct Corked {
    socket: TcpStream,
    queue: BytesMut,
    /// Bytes queued since the last flush.
    unflushed: usize,
}

impl Corked {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, queue: BytesMut::new(), unflushed: 0 }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.queue))?;
            self.queue.advance(sent);
        }
        self.unflushed = 0;
        // Frees the memory: an idle connection keeps none.
        self.queue = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Corked {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(sent) = this.poll_send(cx) {
            sent?;
        }
        Pin::new(&mut this.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Corked {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.queue.len() >= WRITE_MAX_BYTES {
            ready!(this.poll_send(cx))?;
        }
        let mut queued = 0;
        let wanted: usize = bufs.iter().map(|buf| buf.len()).sum();
        if wanted >= SHORT_BYTES {
            // At once, since growing by doubling copies. A lone line needs only its own size.
            this.queue.reserve(WRITE_MAX_BYTES - this.queue.len());
        }
        for buf in bufs {
            let room = WRITE_MAX_BYTES - this.queue.len();
            let part = buf.get(..room).unwrap_or(buf);
            this.queue.extend_from_slice(part);
            queued += part.len();
        }
        this.unflushed += queued;
        Poll::Ready(Ok(queued))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let may_wait = this.unflushed >= SHORT_BYTES && this.queue.len() < WRITE_MAX_BYTES;
        this.unflushed = 0;
        if may_wait {
            // h2 has more to write. The next flush without a write, or the next read, sends.
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        this.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
