//! A TLS stream for HTTP/2 with few, large writes.
//!
//! h2 writes and flushes one DATA frame at a time. Writing each to the socket takes a system call per 16 KiB,
//! which costs more than the encryption. This stream encrypts at once and queues the TLS records. It sends
//! the queue in one `writev`:
//!
//! - when it has three full DATA frames ([`WRITE_MAX_BYTES`]): fewer cost more per byte, and so do more;
//! - at the first flush after a read, if the queue is short: a single line is sent at once;
//! - at a flush with nothing written since the previous flush: this is how h2 ends a poll;
//! - otherwise at the next read or flush, for which the stream wakes its own task.
//!
//! When the socket is full, nothing is queued until the queue is empty. So a peer that does not read costs at
//! most [`WRITE_MAX_BYTES`] here.
//!
//! A flush may return before its bytes are sent. That is sound for one task that reads whenever it is woken,
//! as connections of hyper and h2 do, but not for a stream split between two tasks.
//! [`AsyncWrite::poll_shutdown`] waits.

use std::io::{self, BufRead as _, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::SniConfigs;

/// Most bytes of plaintext in a TLS record (RFC 8446 §5.1).
const RECORD_MAX_BYTES: usize = 16 * 1024;

/// Bytes that TLS adds to each record: header, inner content type and tag.
const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;

/// A DATA frame of the size that HTTP/2 clients advertise, with its header, as two records.
const FRAME_MAX_BYTES: usize = RECORD_MAX_BYTES + 9 + 2 * RECORD_OVERHEAD_BYTES;

/// Most bytes queued, and so written at once: three full DATA frames, 48 KiB. Four exceed the 64 KiB that the
/// kernel segments at once, and take 10 % more CPU; two take 24 % more (measured).
pub const WRITE_MAX_BYTES: usize = 3 * FRAME_MAX_BYTES;

/// A queue with less space than this, half a DATA frame, counts as full: most of the next frame would not
/// fit.
const WRITE_SLACK_BYTES: usize = 8 * 1024;

/// Most records queued: as many as rustls passes to one `writev`.
const WRITE_MAX_RECORDS: usize = 64;

/// A batch below this, half a DATA frame, is probably complete.
const SHORT_BYTES: usize = 8 * 1024;

/// The server's side of a TLS connection after its handshake. The [module](self) describes when bytes are
/// sent.
#[derive(Debug)]
pub struct TlsStream<IO> {
    io: IO,
    tls: ServerConnection,
    queue: QueueSize,
    /// The socket is full: nothing is queued before the queue is empty.
    blocked: bool,
    /// Bytes accepted since the last flush, or since the queue was last sent completely.
    unflushed: usize,
    /// Nothing was sent since the last read: a short batch is then sent at once.
    nothing_sent_since_read: bool,
    /// `close_notify` was queued; no more may be written.
    closing: bool,
}

/// The size of rustls's send buffer, which rustls does not report. Alerts and the like are not counted: they
/// are few and tiny.
#[derive(Clone, Copy, Debug, Default)]
struct QueueSize {
    bytes: usize,
    records: usize,
}

/// Adapts a socket to the blocking interface of rustls: `Pending` becomes `WouldBlock`.
struct Blocking<'a, 'b, IO> {
    io: Pin<&'a mut IO>,
    cx: &'a mut Context<'b>,
}

/// Completes the handshake of a client on `io`. Has no timeout. Dropping the future drops the
/// connection.
///
/// # Errors
/// Those of the socket. `InvalidData` if the client breaks the protocol, offers nothing acceptable, or does
/// not hold the key of its certificate (it then got a TLS alert). `UnexpectedEof` if it closes the
/// connection.
pub async fn accept<IO>(config: Arc<ServerConfig>, io: IO) -> io::Result<TlsStream<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(config).accept_with(io, bounded);
    Ok(TlsStream::new(handshake.await?))
}

/// Completes the handshake as [`accept`] does, with the configuration for the name that the client asks for.
///
/// # Errors
/// As [`accept`].
pub(crate) async fn accept_by_name<IO>(configs: &SniConfigs, io: IO) -> io::Result<TlsStream<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    if let Some(config) = configs.only() {
        return accept(config, io).await;
    }
    let hello = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
    let config = configs.of(hello.client_hello().server_name());
    let handshake = hello.into_stream_with(config, bounded);
    Ok(TlsStream::new(handshake.await?))
}

fn bounded(tls: &mut ServerConnection) {
    tls.set_buffer_limit(Some(WRITE_MAX_BYTES));
}

// === impl TlsStream ===

impl<IO> TlsStream<IO> {
    fn new(accepted: tokio_rustls::server::TlsStream<IO>) -> Self {
        let (io, tls) = accepted.into_inner();
        Self {
            io,
            tls,
            queue: QueueSize::default(),
            blocked: false,
            unflushed: 0,
            nothing_sent_since_read: true,
            closing: false,
        }
    }

    /// Returns the client's certificates, its own first; `None` if it presented none. It holds the key of the
    /// first. Nothing else is checked.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.tls.peer_certificates()
    }

    /// Returns the server name that the client asked for (SNI), if any.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.tls.server_name()
    }

    #[cfg(test)]
    pub(super) fn refresh_traffic_keys(&mut self) -> Result<(), rustls::Error> {
        self.tls.refresh_traffic_keys()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    /// Sends the whole queue. `Pending`: the socket is full, and will wake the task.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            self.nothing_sent_since_read = false;
            let mut socket = Blocking::new(&mut self.io, cx);
            match self.tls.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(sent) => self.queue.bytes = self.queue.bytes.saturating_sub(sent),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Poll::Pending;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        self.queue = QueueSize::default();
        self.blocked = false;
        self.unflushed = 0;
        Poll::Ready(Ok(()))
    }

    /// Sends as much as the socket takes, without waiting.
    fn try_send(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.poll_send(cx) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Ok(()),
        }
    }

    fn poll_queue(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let wanted: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.blocked || self.queue.is_full() {
            ready!(self.poll_send(cx))?;
        }
        let mut taken = self.tls.writer().write_vectored(bufs)?;
        if taken == 0 && wanted > 0 {
            // Bytes that are not counted have filled rustls's buffer, which has the same limit. When empty,
            // it takes some.
            ready!(self.poll_send(cx))?;
            taken = self.tls.writer().write_vectored(bufs)?;
        }
        self.queue.add(taken);
        self.unflushed += taken;
        if self.queue.is_full() {
            self.try_send(cx)?;
        }
        Poll::Ready(Ok(taken))
    }

    /// Returns whether the bytes written since the last flush may wait for more.
    fn may_wait(&self) -> bool {
        let alone = self.nothing_sent_since_read && self.unflushed < SHORT_BYTES;
        !self.blocked && self.unflushed > 0 && !alone
    }

    /// Reads from the socket until there is plaintext or the end of the stream.
    fn poll_plaintext(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_read() {
            match self.tls.read_tls(&mut Blocking::new(&mut self.io, cx)) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
            let processed = self.tls.process_new_packets();
            // rustls may have queued an answer or an alert.
            let answered = self.try_send(cx);
            processed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            answered?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    /// Also sends what an earlier flush deferred. An end without `close_notify` is an `UnexpectedEof`.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.try_send(cx)?;
        this.nothing_sent_since_read = true;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_plaintext(cx))?;
        let mut reader = this.tls.reader();
        let plaintext = reader.fill_buf()?;
        let taken = plaintext.len().min(buf.remaining());
        let (plaintext, _) = plaintext.split_at(taken);
        buf.put_slice(plaintext);
        reader.consume(taken);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_queue(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_queue(cx, bufs)
    }

    /// Otherwise h2 would copy its 9-byte frame headers, or write them separately.
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Returns before the bytes are sent if more are likely to follow.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.may_wait() {
            this.unflushed = 0;
            if this.tls.wants_write() {
                cx.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Sends everything and `close_notify`, then closes the socket's sending side.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            this.tls.send_close_notify();
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            // The peer has closed the connection.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

// === impl QueueSize ===

impl QueueSize {
    fn add(&mut self, plaintext: usize) {
        let records = plaintext.div_ceil(RECORD_MAX_BYTES);
        self.bytes += plaintext + records * RECORD_OVERHEAD_BYTES;
        self.records += records;
    }

    fn is_full(self) -> bool {
        self.bytes + WRITE_SLACK_BYTES > WRITE_MAX_BYTES || self.records >= WRITE_MAX_RECORDS
    }
}

// === impl Blocking ===

impl<'a, 'b, IO: Unpin> Blocking<'a, 'b, IO> {
    fn new(io: &'a mut IO, cx: &'a mut Context<'b>) -> Self {
        Self { io: Pin::new(io), cx }
    }
}

fn would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<IO: AsyncRead> Read for Blocking<'_, '_, IO> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        would_block(self.io.as_mut().poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl<IO: AsyncWrite> Write for Blocking<'_, '_, IO> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        would_block(self.io.as_mut().poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        would_block(match bufs {
            // A single line is one record, and `send` is the cheaper system call.
            [only] => self.io.as_mut().poll_write(self.cx, only),
            many => self.io.as_mut().poll_write_vectored(self.cx, many),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        would_block(self.io.as_mut().poll_flush(self.cx))
    }
}
