//! Limits on the HTTP/2 frames of a peer, applied to the bytes that HTTP/2 reads.
//!
//! - **Per poll.** HTTP/2 handles frames until its reader is `Pending`, so a fast peer keeps a worker thread
//!   busy for long. After [`FRAMES_PER_POLL`] frames, [`BYTES_PER_POLL`] bytes or [`READS_PER_POLL`] reads,
//!   the reader wakes its own task and returns `Pending`, so that other tasks of the thread run first.
//! - **Over time.** Calls and their bytes have limits elsewhere; [control
//!   frames](scanner::FrameHead::is_control) have an [`allowance`] here. A peer that exceeds it is cut off.
//!   hyper has no call for that, so the reader ends the input with an endless header block. HTTP/2 answers
//!   that with GOAWAY (`ENHANCE_YOUR_CALM`) and closes the connection.
//!
//! Nothing is buffered. Writes pass through unchanged.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use self::allowance::Allowance;
use self::scanner::{CONTINUATION, HEADER_BYTES, HEADERS, Scanner};

mod allowance;
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

/// CONTINUATION frames in the header block that ends the input. HTTP/2 gives up a block after five frames, or
/// after a quarter more frames of 16 KiB than the longest configured headers fill (1 MiB at most).
const CONTINUATIONS: usize = 128;

/// The frames that end the input of a peer over its allowance: HEADERS and many CONTINUATION, all empty, none
/// the last.
const ENDLESS_HEADERS: [u8; HEADER_BYTES * (1 + CONTINUATIONS)] = endless_headers();

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

#[derive(Clone, Copy, Debug)]
enum ReadState {
    /// The peer keeps to its allowance.
    Open,
    /// The peer exceeded it. The current frame is read to its end; then follows `EndlessHeaders`.
    Exceeded,
    /// This many bytes of [`ENDLESS_HEADERS`] have been read. At its end, reading fails.
    EndlessHeaders(usize),
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

    /// Reads from [`ENDLESS_HEADERS`], after the first `read` bytes.
    fn read_endless_headers(&mut self, read: usize, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let rest = ENDLESS_HEADERS.get(read..).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let (part, _) = rest.split_at(rest.len().min(buf.remaining()));
        buf.put_slice(part);
        self.state = ReadState::EndlessHeaders(read + part.len());
        Ok(())
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
            this.state = ReadState::EndlessHeaders(0);
        }
        let max = match this.state {
            ReadState::Open => this.scanner.bytes_of(this.budget.frames),
            ReadState::Exceeded => this.scanner.bytes_until_next(),
            ReadState::EndlessHeaders(read) => return Poll::Ready(this.read_endless_headers(read, buf)),
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

/// Makes [`ENDLESS_HEADERS`].
const fn endless_headers() -> [u8; HEADER_BYTES * (1 + CONTINUATIONS)] {
    const KIND_AT: usize = 3;
    const STREAM_ID_END: usize = HEADER_BYTES - 1;
    let mut frames = [0; HEADER_BYTES * (1 + CONTINUATIONS)];
    let mut frame = 0;
    while frame <= CONTINUATIONS {
        frames[frame * HEADER_BYTES + KIND_AT] = if frame == 0 { HEADERS } else { CONTINUATION };
        frames[frame * HEADER_BYTES + STREAM_ID_END] = 1;
        frame += 1;
    }
    frames
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
