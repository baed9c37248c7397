//! One open websocket: writes the frames of its source, and keeps the connection alive.

use std::borrow::Cow;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::client_frames::{ClientFrame, ClientFrames};
use super::credit::CreditWindow;
use super::outgoing::Outgoing;
use super::{OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, push_close_frame, push_control_frame};
use crate::model::metrics::WebsocketEnd;
use crate::stream::{Messages, StreamControl};

/// Interval of pings. Clients that apply the Akash provider's rule disconnect after 15 s without one.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// A client that sends nothing for this long is gone: it has not answered a dozen pings.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Time for the closing handshake. The client first reads the data before our close frame, for which it
/// needs about four seconds (see `credit`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to end TLS and to close the sending side after the closing handshake.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes per read. Frames of clients are short and rare.
const READ_BYTES: usize = 512;

/// Most reads in a row: a client that floods its connection must not keep the thread.
const READS_PER_POLL: usize = 16;

/// Most writes in a row, so that reading and other tasks have their turn.
const WRITES_PER_POLL: usize = 32;

/// Close frame and outcome for the end of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) code: u16,
    /// Cut at [`CLOSE_REASON_MAX_BYTES`](super::CLOSE_REASON_MAX_BYTES).
    pub(crate) reason: Cow<'static, str>,
    pub(crate) end: WebsocketEnd,
}

/// Returns the close frame for the end of a source. Called once, when the source has ended.
pub(crate) type CloseOf = Box<dyn FnOnce() -> Close + Send>;

/// Owns an open websocket. Resolves when the connection has ended; the caller then drops it. On drop before
/// that, the connection is reset or closed without a close frame.
///
/// The source is polled when everything before is written, so a slow client lags in the ring. It may be
/// polled before a close frame, but not after its end.
///
/// A single task must poll it: `TlsStream` relies on a read after each wake.
#[must_use = "does nothing unless polled"]
pub(crate) struct Session<IO, S> {
    io: IO,
    /// Bytes that came together with the request; read before `io`.
    received: Bytes,
    frames: ClientFrames,
    last_received: Instant,
    /// `None` after its end, and after the client's close frame.
    source: Option<S>,
    close_of: Option<CloseOf>,
    stream: Arc<StreamControl>,
    window: CreditWindow,
    outgoing: Option<Outgoing>,
    /// The control frame that is being written.
    control: Bytes,
    /// Payload of the newest ping that has no pong yet. Earlier ones need none (RFC 6455 §5.5.3).
    pong: Option<Bytes>,
    ping_is_due: bool,
    next_ping: Instant,
    needs_flush: bool,
    stage: Stage,
    /// May fire early: a deadline that moves later is not set again.
    timer: Pin<Box<Sleep>>,
}

#[derive(Debug)]
enum Stage {
    /// Sends data. Becomes `Closing` when the source ends, at the client's close frame, or at an error.
    Open,
    /// Sends the close frame, and waits for the client's. Becomes `ShuttingDown` then, or at the deadline.
    Closing {
        /// The close frame, until it is being written.
        frame: Option<Bytes>,
        /// The client's close frame has arrived.
        is_answered: bool,
        end: WebsocketEnd,
        deadline: Instant,
    },
    /// Ends the sending side. The session ends then, or at the deadline.
    ShuttingDown { end: WebsocketEnd, deadline: Instant },
}

// === impl Session ===

impl<IO, S> Session<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Body<Data = Messages, Error = Infallible> + Unpin,
{
    /// Creates a session on `io` after the handshake. `received` are bytes that the client sent after its
    /// request. Each data frame of `source` consists of whole websocket frames, and counts in `stream`;
    /// trailers end it.
    pub(crate) fn new(
        io: IO,
        received: Bytes,
        source: S,
        stream: Arc<StreamControl>,
        close_of: CloseOf,
    ) -> Self {
        let now = Instant::now();
        let next_ping = now + PING_INTERVAL;
        Self {
            io,
            received,
            frames: ClientFrames::default(),
            last_received: now,
            source: Some(source),
            close_of: Some(close_of),
            stream,
            window: CreditWindow::new(),
            outgoing: None,
            control: Bytes::new(),
            pong: None,
            ping_is_due: true,
            next_ping,
            needs_flush: false,
            stage: Stage::Open,
            timer: Box::pin(sleep_until(next_ping)),
        }
    }

    /// Reads and handles all available input. Fails when the connection has ended.
    fn receive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.received.is_empty() {
            let received = std::mem::take(&mut self.received);
            self.read_frames(&received);
        }
        for _ in 0..READS_PER_POLL {
            let mut bytes = [0; READ_BYTES];
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            }
            if buf.filled().is_empty() {
                // A client may close its sending side after its close frame.
                let is_answered = matches!(self.stage, Stage::Closing { is_answered: true, .. });
                return if is_answered { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            self.last_received = Instant::now();
            self.read_frames(buf.filled());
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn read_frames(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.frames.read(&mut bytes) {
                // Messages are not collected.
                Ok(None | Some(ClientFrame::Message(_))) => {}
                Ok(Some(ClientFrame::Ping(payload))) => self.pong = Some(Bytes::copy_from_slice(payload)),
                Ok(Some(ClientFrame::Pong(payload))) => self.window.record_pong(payload),
                Ok(Some(ClientFrame::Close(code))) => self.close_by_client(code),
                Err(e) => {
                    let (code, reason) = (e.close_code(), e.to_string().into());
                    self.close(Close { code, reason, end: WebsocketEnd::Error });
                }
            }
        }
    }

    /// Echoes the client's close frame, or takes it as the answer to ours.
    fn close_by_client(&mut self, code: Option<u16>) {
        match &mut self.stage {
            Stage::Open => {
                let mut frame = Vec::new();
                match code {
                    Some(code) => push_close_frame(&mut frame, code, ""),
                    None => push_control_frame(&mut frame, OPCODE_CLOSE, &[]),
                }
                self.begin_closing(frame, true, WebsocketEnd::Client);
            }
            Stage::Closing { is_answered, .. } => *is_answered = true,
            Stage::ShuttingDown { .. } => {}
        }
    }

    fn close(&mut self, close: Close) {
        let mut frame = Vec::new();
        push_close_frame(&mut frame, close.code, &close.reason);
        self.begin_closing(frame, false, close.end);
    }

    fn begin_closing(&mut self, frame: Vec<u8>, is_answered: bool, end: WebsocketEnd) {
        if !matches!(self.stage, Stage::Open) {
            return;
        }
        // Releases permits and subscriptions. No control frame may follow the close frame.
        self.source = None;
        self.pong = None;
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        self.stage = Stage::Closing { frame: Some(frame.into()), is_answered, end, deadline };
    }

    /// Writes as much as the socket takes. Fails when the connection is broken.
    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        for _ in 0..WRITES_PER_POLL {
            if self.poll_send_step(cx)?.is_pending() {
                if self.needs_flush
                    && let Poll::Ready(flushed) = Pin::new(&mut self.io).poll_flush(cx)
                {
                    flushed?;
                    self.needs_flush = false;
                }
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Does one step of sending. `Pending`: nothing can be sent now.
    fn poll_send_step(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        if !self.control.is_empty() {
            return self.poll_send_control(cx);
        }
        if self.outgoing.as_ref().is_none_or(Outgoing::is_at_boundary) {
            if let Some(frame) = self.next_control_frame() {
                self.control = frame;
                return Ok(Poll::Ready(()));
            }
            if !matches!(self.stage, Stage::Open) {
                self.outgoing = None;
                return Ok(Poll::Pending);
            }
        }
        if self.outgoing.is_none() {
            return Ok(self.poll_source(cx));
        }
        self.poll_send_data(cx)
    }

    fn poll_send_control(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        match Pin::new(&mut self.io).poll_write(cx, &self.control) {
            Poll::Ready(written) => match written? {
                0 => Err(io::ErrorKind::WriteZero.into()),
                written => {
                    self.control.advance(written);
                    self.needs_flush = true;
                    Ok(Poll::Ready(()))
                }
            },
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Returns the control frame to write before more data.
    fn next_control_frame(&mut self) -> Option<Bytes> {
        if let Stage::Closing { frame, .. } = &mut self.stage {
            return frame.take();
        }
        if !matches!(self.stage, Stage::Open) {
            return None;
        }
        let mut frame = Vec::new();
        if self.ping_is_due || self.window.wants_ping() {
            self.ping_is_due = false;
            self.next_ping = Instant::now() + PING_INTERVAL;
            push_control_frame(&mut frame, OPCODE_PING, &self.window.record_ping());
        }
        if let Some(payload) = self.pong.take() {
            push_control_frame(&mut frame, OPCODE_PONG, &payload);
        }
        (!frame.is_empty()).then(|| frame.into())
    }

    /// Takes the next data from the source.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.credit() == 0 {
            return Poll::Pending;
        }
        let Some(source) = &mut self.source else { return Poll::Pending };
        let data = match ready!(Pin::new(source).poll_frame(cx)) {
            Some(Ok(frame)) => frame.into_data().ok(),
            Some(Err(never)) => match never {},
            None => None,
        };
        match data {
            Some(messages) => {
                self.outgoing = Some(Outgoing::new(messages)).filter(|data| data.remaining() > 0);
            }
            None => {
                if let Some(close_of) = self.close_of.take() {
                    self.close(close_of());
                }
            }
        }
        Poll::Ready(())
    }

    fn poll_send_data(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let is_interrupted = self.ping_is_due || self.pong.is_some() || !matches!(self.stage, Stage::Open);
        let credit = if is_interrupted { 0 } else { self.credit() };
        let Some(outgoing) = &mut self.outgoing else { return Ok(Poll::Ready(())) };
        let max = match usize::try_from(credit) {
            Ok(credit) if credit < outgoing.remaining() => outgoing.bytes_to_boundary(credit),
            _ => outgoing.remaining(),
        };
        if max == 0 {
            return Ok(Poll::Pending);
        }
        match outgoing.poll_write(&mut self.io, cx, max) {
            Poll::Ready(written) => {
                self.window.record_data(written?);
                self.needs_flush = true;
                if outgoing.remaining() == 0 {
                    self.outgoing = None;
                }
                Ok(Poll::Ready(()))
            }
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Returns how many bytes of data may be sent now. A stream that must end sends its last data at once.
    fn credit(&self) -> u64 {
        match self.window.bytes() {
            0 if self.stream.end_requested().is_some() => u64::MAX,
            bytes => bytes,
        }
    }

    /// Moves on from `Closing` when the handshake is complete. Ready when the session has ended.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<WebsocketEnd> {
        if let Stage::Closing { frame: None, is_answered: true, end, .. } = self.stage
            && self.control.is_empty()
            && !self.needs_flush
        {
            self.shut_down(end);
        }
        let Stage::ShuttingDown { end, .. } = self.stage else { return Poll::Pending };
        // An error means that the client has closed the connection already.
        let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
        Poll::Ready(end)
    }

    fn shut_down(&mut self, end: WebsocketEnd) {
        self.stage = Stage::ShuttingDown { end, deadline: Instant::now() + SHUTDOWN_TIMEOUT };
    }

    /// Waits for the next deadline. Ready when one has passed; returns the end if it was the last one.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Option<WebsocketEnd>> {
        let deadline = self.next_deadline();
        if deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(cx));
        let now = Instant::now();
        match self.stage {
            Stage::Open if now >= self.last_received + SILENCE_MAX => {
                return Poll::Ready(Some(WebsocketEnd::Silent));
            }
            Stage::Open if now >= self.next_ping => {
                self.ping_is_due = true;
                self.next_ping = now + PING_INTERVAL;
            }
            Stage::Closing { end, deadline, .. } if now >= deadline => self.shut_down(end),
            Stage::ShuttingDown { end, deadline } if now >= deadline => return Poll::Ready(Some(end)),
            _ => {}
        }
        let deadline = self.next_deadline();
        self.timer.as_mut().reset(deadline);
        Poll::Ready(None)
    }

    /// Returns when to act next. Data resumes after a pause at the next ping, so that needs no deadline.
    fn next_deadline(&self) -> Instant {
        match self.stage {
            Stage::Open => self.next_ping.min(self.last_received + SILENCE_MAX),
            Stage::Closing { deadline, .. } | Stage::ShuttingDown { deadline, .. } => deadline,
        }
    }

    /// Returns why the session ends if the connection breaks now.
    fn end_if_lost(&self) -> WebsocketEnd {
        match self.stage {
            Stage::Open => WebsocketEnd::Client,
            Stage::Closing { end, .. } | Stage::ShuttingDown { end, .. } => end,
        }
    }
}

impl<IO, S> Future for Session<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Body<Data = Messages, Error = Infallible> + Unpin,
{
    type Output = WebsocketEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<WebsocketEnd> {
        let this = self.get_mut();
        loop {
            // Not after `poll_shutdown`: the client's data does not matter then.
            if !matches!(this.stage, Stage::ShuttingDown { .. })
                && this.receive(cx).and_then(|()| this.send(cx)).is_err()
            {
                return Poll::Ready(this.end_if_lost());
            }
            if let Poll::Ready(end) = this.poll_shutdown(cx) {
                return Poll::Ready(end);
            }
            if let Some(end) = ready!(this.poll_timer(cx)) {
                return Poll::Ready(end);
            }
        }
    }
}

impl<IO, S> std::fmt::Debug for Session<IO, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("stream", &self.stream)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
