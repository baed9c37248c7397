//! Limits on what a peer makes the gateway do with HTTP/2 frames, applied to the bytes that HTTP/2 reads.
//!
//! - **Per poll.** HTTP/2 handles frames until its reader is `Pending`, and a peer that sends faster than they are handled keeps a
//!   worker thread busy for long. After [`FRAMES_PER_POLL`] frames, [`BYTES_PER_POLL`] bytes or [`READS_PER_POLL`] reads the reader
//!   wakes its own task and returns `Pending`, so that the other tasks of the thread run first.
//! - **Over time.** Calls and their bytes have limits elsewhere; [control frames](scanner::FrameHead::is_control) have theirs here
//!   ([`allowance`]). A peer that exceeds it is cut off: hyper has no call for that, so the reader ends the input with a header block
//!   that never ends. HTTP/2 answers that with GOAWAY (`ENHANCE_YOUR_CALM`) and closes the connection.
//!
//! Nothing is buffered, and writes pass through as they are.

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

/// Most frames that one poll of a connection handles. They take some 50 us, which is about what one poll of a busy follower takes.
const FRAMES_PER_POLL: usize = 64;

/// Most bytes that one poll of a connection reads: one full DATA frame or TLS record.
const BYTES_PER_POLL: usize = 16 * 1024;

/// Most reads in one poll of a connection. Each decrypts up to 4 KiB of TLS records, of which tiny ones hold next to no plaintext.
const READS_PER_POLL: usize = 8;

/// CONTINUATION frames in the header block that ends the input. HTTP/2 gives up a block after five, or after a quarter more than the
/// longest headers that are configured (1 MiB at most) fill frames of 16 KiB.
const FAREWELL_FRAMES: usize = 128;

/// The frames that end the input of a peer that exceeded its allowance: HEADERS and many CONTINUATION, all empty and none the last.
const FAREWELL: [u8; HEADER_BYTES * (1 + FAREWELL_FRAMES)] = farewell();

/// A connection whose reader has the limits of this module.
#[derive(Debug)]
pub(super) struct FrameLimited<IO> {
    io: IO,
    scanner: Scanner,
    left: Left,
    allowance: Allowance,
    stage: Stage,
    flooded: Flooded,
}

/// Whether a peer was cut off because it exceeded its allowance. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Flooded(Arc<AtomicBool>);

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The peer keeps to its allowance.
    Open,
    /// It does not: the present frame is read to its end, which [`Stage::Farewell`] follows.
    Exceeded,
    /// This many bytes of [`FAREWELL`] have been read. At its end reading fails.
    Farewell(usize),
}

/// What the present poll may still read. A poll ends when the reader is `Pending`.
#[derive(Clone, Copy, Debug)]
struct Left {
    frames: usize,
    bytes: usize,
    reads: usize,
}

// === impl FrameLimited ===

impl<IO> FrameLimited<IO> {
    /// Limits the server's side of a connection whose preface has not been read.
    pub(super) fn new(io: IO, flooded: Flooded) -> Self {
        let (scanner, allowance) = (Scanner::new(), Allowance::new());
        Self { io, scanner, left: Left::FULL, allowance, stage: Stage::Open, flooded }
    }

    /// Accounts for `read`.
    fn account(&mut self, read: &[u8]) {
        let (mut frames, mut cost) = (0, 0);
        self.scanner.scan(read, |head| {
            frames += 1;
            cost += Allowance::cost(head);
        });
        self.left.take(frames, read.len());
        let is_open = matches!(self.stage, Stage::Open);
        if is_open && cost > 0 && !self.allowance.take(cost, Instant::now().into_std()) {
            self.stage = Stage::Exceeded;
            self.flooded.0.store(true, Ordering::Relaxed);
        }
    }

    /// Reads from [`FAREWELL`], of which `read` bytes have been read.
    fn say_farewell(&mut self, read: usize, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let rest = FAREWELL.get(read..).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let (part, _) = rest.split_at(rest.len().min(buf.remaining()));
        buf.put_slice(part);
        self.stage = Stage::Farewell(read + part.len());
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
        if matches!(this.stage, Stage::Exceeded) && this.scanner.is_between_frames() {
            this.stage = Stage::Farewell(0);
        }
        let most = match this.stage {
            Stage::Open => this.scanner.bytes_of(this.left.frames),
            Stage::Exceeded => this.scanner.bytes_until_next(),
            Stage::Farewell(read) => return Poll::Ready(this.say_farewell(read, buf)),
        };
        if this.left.is_spent() {
            this.left = Left::FULL;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = most.min(this.left.bytes).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, &mut part) else {
            this.left = Left::FULL;
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

/// Makes [`FAREWELL`].
const fn farewell() -> [u8; HEADER_BYTES * (1 + FAREWELL_FRAMES)] {
    const KIND_AT: usize = 3;
    const STREAM_ID_END: usize = HEADER_BYTES - 1;
    let mut frames = [0; HEADER_BYTES * (1 + FAREWELL_FRAMES)];
    let mut frame = 0;
    while frame <= FAREWELL_FRAMES {
        frames[frame * HEADER_BYTES + KIND_AT] = if frame == 0 { HEADERS } else { CONTINUATION };
        frames[frame * HEADER_BYTES + STREAM_ID_END] = 1;
        frame += 1;
    }
    frames
}

// === impl Left ===

impl Left {
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
