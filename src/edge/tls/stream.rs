//! A TLS stream for HTTP/2 that writes seldom and much.
//!
//! h2 writes and flushes one DATA frame at a time. A stream that obeys makes a system call for each 16 KiB, which costs more
//! than encrypting them. This one encrypts at once and sends later: what is written is queued as TLS records, and the queue
//! leaves in one `writev`
//!
//! - when it holds three full DATA frames ([`WRITE_MAX_BYTES`]): fewer cost more per byte, and so do more;
//! - at the first flush after a read, if it is short: a line on its own leaves at once;
//! - at a flush with nothing written since the one before, which is how h2 ends a turn;
//! - otherwise at the next read or flush, for which the stream wakes its task itself.
//!
//! Once the socket takes no more, nothing is queued until all that was queued has left, so a peer that does not read costs
//! [`WRITE_MAX_BYTES`] here and no more.
//!
//! A flush may thus return before its bytes have left. That is sound for one task that reads whenever it is woken, as the
//! connections of hyper and h2 do, and not for a stream split between two tasks. [`AsyncWrite::poll_shutdown`] does wait.

use std::io::{self, BufRead as _, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::sni::Offers;

/// Most bytes of plaintext in a TLS record (RFC 8446 §5.1).
const RECORD_MAX_BYTES: usize = 16 * 1024;

/// What TLS adds to each record: its header, the inner content type and the tag.
const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;

/// A DATA frame of the size that HTTP/2 clients advertise, with its header, as two records.
const FRAME_MAX_BYTES: usize = RECORD_MAX_BYTES + 9 + 2 * RECORD_OVERHEAD_BYTES;

/// Most bytes queued, and so written at a time: three full DATA frames, 48 KiB. Four would spill over the 64 KiB that the
/// kernel segments in one go, which was measured as 10 % more CPU; two are 24 % more.
pub const WRITE_MAX_BYTES: usize = 3 * FRAME_MAX_BYTES;

/// A queue with less room than this, half a DATA frame, is full: most of the next frame would have to wait anyway.
const WRITE_SLACK_BYTES: usize = 8 * 1024;

/// Most records queued: as many as rustls hands to one `writev`.
const WRITE_MAX_RECORDS: usize = 64;

/// A batch below this, half a DATA frame, does not look like a part of more to come.
const SHORT_BYTES: usize = 8 * 1024;

/// A server's side of a TLS connection after its handshake. See the module for when bytes leave.
#[derive(Debug)]
pub struct TlsStream<IO> {
    io: IO,
    tls: ServerConnection,
    queue: Queue,
    /// The last write left bytes behind: nothing is queued before they have gone.
    blocked: bool,
    /// Bytes accepted since the last flush.
    unflushed: usize,
    /// Nothing has been sent since the last read: a short batch now is likely alone.
    first: bool,
    /// The end has been announced to the peer; no more may be written.
    closing: bool,
}

/// What rustls holds to be sent, which it does not tell. Alerts and the like are not counted: they are few and tiny.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    bytes: usize,
    records: usize,
}

/// A socket as rustls wants it, `Pending` being `WouldBlock`.
struct Blocking<'a, 'b, IO> {
    io: Pin<&'a mut IO>,
    cx: &'a mut Context<'b>,
}

/// Completes the handshake of a client on `io`. Takes as long as the client likes: put a deadline on it. Dropping the future
/// drops the connection.
///
/// # Errors
/// What the socket says; `InvalidData` if the client breaks the protocol, offers nothing acceptable, or presents a
/// certificate whose key it does not hold (it has then been told by a TLS alert); `UnexpectedEof` if it goes away.
pub async fn accept<IO>(config: Arc<ServerConfig>, io: IO) -> io::Result<TlsStream<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(config).accept_with(io, bounded);
    Ok(TlsStream::new(handshake.await?))
}

/// The same, with what `offers` has for the name that the client asks for.
///
/// # Errors
/// As [`accept`].
pub async fn accept_by_name<IO>(offers: &Offers, io: IO) -> io::Result<TlsStream<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    if !offers.differ() {
        return accept(offers.of(None), io).await;
    }
    let hello = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
    let config = offers.of(hello.client_hello().server_name());
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
        Self { io, tls, queue: Queue::default(), blocked: false, unflushed: 0, first: true, closing: false }
    }

    /// The certificates that the client presented, its own first; `None` if it presented none. It holds the key of the first;
    /// nothing else about them has been checked.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.tls.peer_certificates()
    }

    /// The name that the client asked for (SNI), if any.
    pub fn server_name(&self) -> Option<&str> {
        self.tls.server_name()
    }

    /// The connection below.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    #[cfg(test)]
    pub(super) fn refresh_traffic_keys(&mut self) -> Result<(), rustls::Error> {
        self.tls.refresh_traffic_keys()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    /// Sends the whole queue. `Pending` means the socket is full and will wake the task.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            self.first = false;
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
        self.queue = Queue::default();
        self.blocked = false;
        self.unflushed = 0;
        Poll::Ready(Ok(()))
    }

    /// Sends what it can, for a caller that does not wait for it.
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
            // What is not counted has filled the library's own limit, which is ours: an empty queue takes something.
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

    /// Whether the bytes written since the last flush may wait for more.
    fn may_wait(&self) -> bool {
        let alone = self.first && self.unflushed < SHORT_BYTES;
        !self.blocked && self.unflushed > 0 && !alone
    }

    /// Reads from the socket until there is plaintext, the end, or nothing more to read.
    fn poll_plaintext(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_read() {
            match self.tls.read_tls(&mut Blocking::new(&mut self.io, cx)) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
            let processed = self.tls.process_new_packets();
            // The library may have an answer for the peer, or an alert that says what was wrong.
            let answered = self.try_send(cx);
            processed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            answered?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    /// Also sends what an earlier flush put off. A peer that ends without saying so (`close_notify`) is an `UnexpectedEof`.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.try_send(cx)?;
        this.first = true;
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

    /// Without it, h2 would copy or write its 9-byte frame headers on their own.
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Returns before the bytes have left if more are likely to follow; see the module.
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

    /// Sends everything, then the TLS end, then closes the socket's sending side.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            this.tls.send_close_notify();
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(cx)) {
            // The peer has gone already.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

// === impl Queue ===

impl Queue {
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
            // A lone line is one record, and `send` is the cheaper system call.
            [only] => self.io.as_mut().poll_write(self.cx, only),
            many => self.io.as_mut().poll_write_vectored(self.cx, many),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        would_block(self.io.as_mut().poll_flush(self.cx))
    }
}
