//! Limits on the HTTP/2 frames of a peer, applied to the bytes that HTTP/2 reads.
//!
//! - **Per poll.** HTTP/2 handles frames until its reader is `Pending`, so a fast peer keeps a worker thread
//!   busy for long. After [`FRAMES_PER_POLL`] frames, [`BYTES_PER_POLL`] bytes or [`READS_PER_POLL`] reads,
//!   the reader wakes its own task and returns `Pending`, so that other tasks of the thread run first.
//! - **Over time.** Calls and their bytes have limits elsewhere; [control
//!   frames](scanner::FrameHead::is_control) have an [`Allowance`] here. A peer that exceeds it is cut off.
//!   hyper has no call for that, so the reader ends the input with an endless header block. HTTP/2 answers
//!   that with GOAWAY (`ENHANCE_YOUR_CALM`) and closes the connection.
//!
//! Nothing is buffered. Writes pass through unchanged.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use self::scanner::{CONTINUATION, FrameHead, HEADERS, Scanner};
use crate::model::rate::{Bucket, Rate};

mod scanner;
#[cfg(test)]
mod tests;

/// Most frames that one poll of a connection handles. They take about 50 us, like one poll of a busy
/// follower.
const FRAMES_PER_POLL: usize = 64;

/// Most bytes that one poll of a connection reads: one full DATA frame or TLS record.
const BYTES_PER_POLL: usize = 16 * 1024;

/// Most reads in one poll of a connection. Each decrypts up to 4 KiB of TLS records; tiny records hold next
/// to no plaintext.
const READS_PER_POLL: usize = 8;

/// CONTINUATION frames in the header block that ends the input. h2 gives up earlier: after
/// `max(5, 1.25 × header limit / 16 KiB)` frames. The limit is at most 1 MiB, so after at most 80.
const CONTINUATIONS: usize = 128;

/// Control frames per second that a connection may send, independent of what it receives. An honest client
/// that receives nothing sends an occasional PING. A thousand connections that use this up cost about a tenth
/// of a core.
const PER_SECOND: u64 = 100;

/// Burst of control frames: eight times the settings, the priority tree and the cancellation of all 256
/// streams of a client. Handling them costs about as much as the TLS handshake before them.
const BURST: u64 = 2_048;

/// Bytes sent to the peer that allow one more control frame. A client acknowledges what it receives, at worst
/// (grpc-go, or a client that does not batch) with two `WINDOW_UPDATE` and a PING for each DATA frame; the
/// shortest DATA frame of a log has about a hundred bytes. 32 is more than the longest answer to a control
/// frame (17 bytes, to a PING), so no flood pays for itself.
const SENT_BYTES_EACH: u64 = 32;

/// Most control frames that sent bytes allow in advance. A client that reads late acknowledges its whole
/// window and the socket buffers at once: 16 MiB, in units of 256 bytes.
const PAID_MAX: u64 = 65_536;

/// Payload bytes that count as one more control frame: SETTINGS with ten entries. Otherwise unknown frames of
/// 16 KiB would be a cheap way to keep TLS busy.
const PAYLOAD_BYTES_EACH: u64 = 64;

/// A connection whose reader has the limits of this module.
#[derive(Debug)]
pub(super) struct FrameLimited<IO> {
    io: IO,
    scanner: Scanner,
    budget: PollBudget,
    allowance: Allowance,
    state: ReadState,
    flooded: Flooded,
}

/// Whether a peer was cut off because it exceeded its allowance. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub(super) struct Flooded(Arc<AtomicBool>);

/// The control frames that one peer may still send.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    bucket: Bucket,
    /// Sent bytes that no frame has used.
    unspent_bytes: u64,
}

#[derive(Debug)]
enum ReadState {
    /// The peer keeps to its allowance.
    Open,
    /// The peer exceeded it. The current frame is read to its end; then follows `EndlessHeaders`.
    Exceeded,
    /// The rest of [`endless_headers`]. At its end, reading fails.
    EndlessHeaders(Bytes),
}

/// The remaining budget of the current poll. A poll ends when the reader is `Pending`.
#[derive(Clone, Copy, Debug)]
struct PollBudget {
    frames: usize,
    bytes: usize,
    reads: usize,
}

// === impl FrameLimited ===

impl<IO> FrameLimited<IO> {
    /// Creates the server's side of a connection whose preface has not been read.
    pub(super) fn new(io: IO, flooded: Flooded) -> Self {
        let (scanner, allowance) = (Scanner::new(), Allowance::new());
        Self { io, scanner, budget: PollBudget::FULL, allowance, state: ReadState::Open, flooded }
    }

    fn account(&mut self, read: &[u8]) {
        let (mut frames, mut cost) = (0, 0);
        self.scanner.scan(read, |head| {
            frames += 1;
            cost += Allowance::cost(head);
        });
        self.budget.take(frames, read.len());
        let is_open = matches!(self.state, ReadState::Open);
        if is_open && cost > 0 && !self.allowance.take(cost, Instant::now().into_std()) {
            self.state = ReadState::Exceeded;
            self.flooded.0.store(true, Ordering::Relaxed);
        }
    }

    fn sent(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.allowance.add_sent(bytes);
        }
        written
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FrameLimited<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.state, ReadState::Exceeded) && this.scanner.is_between_frames() {
            this.state = ReadState::EndlessHeaders(endless_headers());
        }
        let max = match &mut this.state {
            ReadState::Open => this.scanner.bytes_of(this.budget.frames),
            ReadState::Exceeded => this.scanner.bytes_until_next(),
            ReadState::EndlessHeaders(rest) if rest.is_empty() => {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            ReadState::EndlessHeaders(rest) => {
                buf.put_slice(&rest.split_to(rest.len().min(buf.remaining())));
                return Poll::Ready(Ok(()));
            }
        };
        if this.budget.is_spent() {
            this.budget = PollBudget::FULL;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let max = max.min(this.budget.bytes).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(max));
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, &mut part) else {
            this.budget = PollBudget::FULL;
            return Poll::Pending;
        };
        read?;
        this.account(part.filled());
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for FrameLimited<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.sent(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// Returns the frames that end the input of a peer over its allowance: HEADERS and many CONTINUATION, all
/// empty, none the last.
fn endless_headers() -> Bytes {
    let frame = |kind| [0, 0, 0, kind, 0, 0, 0, 0, 1];
    [&frame(HEADERS)[..], &frame(CONTINUATION).repeat(CONTINUATIONS)].concat().into()
}

// === impl Allowance ===

impl Allowance {
    fn new() -> Self {
        let rate = Rate::new(PER_SECOND, Duration::from_secs(1)).with_burst(BURST);
        Self { bucket: Bucket::new(rate), unspent_bytes: 0 }
    }

    /// Returns the cost of a frame, in control frames.
    fn cost(head: FrameHead) -> u64 {
        if head.is_control() { 1 + head.length as u64 / PAYLOAD_BYTES_EACH } else { 0 }
    }

    /// Counts bytes that were sent to the peer.
    fn add_sent(&mut self, bytes: usize) {
        self.unspent_bytes = self.unspent_bytes.saturating_add(bytes as u64).min(PAID_MAX * SENT_BYTES_EACH);
    }

    /// Takes `cost` control frames: first those that sent bytes allow, then those of the rate. Returns
    /// whether the peer is within its allowance.
    fn take(&mut self, cost: u64, now: std::time::Instant) -> bool {
        let paid = cost.min(self.unspent_bytes / SENT_BYTES_EACH);
        self.unspent_bytes -= paid * SENT_BYTES_EACH;
        self.bucket.try_take(cost - paid, now).is_ok()
    }
}

// === impl PollBudget ===

impl PollBudget {
    const FULL: Self = Self { frames: FRAMES_PER_POLL, bytes: BYTES_PER_POLL, reads: READS_PER_POLL };

    fn take(&mut self, frames: usize, bytes: usize) {
        self.frames = self.frames.saturating_sub(frames);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.reads = self.reads.saturating_sub(1);
    }

    fn is_spent(self) -> bool {
        self.frames == 0 || self.bytes == 0 || self.reads == 0
    }
}

// === impl Flooded ===

impl Flooded {
    /// Returns whether the peer was cut off.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
