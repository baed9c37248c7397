//! Rejects HTTP/1.1 requests with both `Content-Length` and `Transfer-Encoding`.
//!
//! A front and its upstream that disagree about the end of a request let a client smuggle a second one past
//! the front (RFC 9112 §11.2). hyper decides for `Transfer-Encoding`, and removes `Content-Length` before
//! the service sees the request, so the service cannot reject it. [`FramingGuard`] stands between the socket
//! and hyper. It follows the framing of requests, and makes the line that completes a conflict invalid: hyper
//! answers 400 and closes the connection. All other bytes pass unchanged.
//!
//! The bytes after an upgrade are scanned too. That is harmless: masked websocket frames contain the two
//! lines by intention only, and then cost the sender its own connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes kept of a line: enough for `Transfer-Encoding`, or for `Content-Length` with any number. A longer
/// `Content-Length` line is invalid.
const LINE_KEPT_BYTES: usize = 64;

/// Maximum digits of a chunk size, as in hyper: a `u64` in base 16.
const CHUNK_SIZE_MAX_DIGITS: usize = 16;

/// Replaces the end of an invalid line. HTTP allows it nowhere in the head of a request.
const INVALID_BYTE: u8 = 0;

/// Passes the requests of a client to hyper, and cuts off an ambiguous one.
#[derive(Debug)]
pub(crate) struct FramingGuard<IO> {
    io: IO,
    scanner: Scanner,
}

/// Follows the framing of the requests of one connection.
#[derive(Debug)]
struct Scanner {
    state: State,
    line: Line,
}

/// The part of a request that the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The request line, or empty lines before it. Followed by `Headers`.
    RequestLine,
    /// A header line. The empty line ends the head.
    Headers { length: Option<u64>, is_chunked: bool },
    /// A body with `Content-Length`, of which so many bytes are missing. Followed by `RequestLine`.
    Body(u64),
    /// The line before a chunk. Size zero is followed by `Trailers`.
    ChunkSize,
    /// A chunk and its line end, of which so many bytes are missing. Followed by `ChunkSize`.
    Chunk(u64),
    /// A trailer. The empty line is followed by `RequestLine`.
    Trailers,
    /// The request is ambiguous or malformed. Nothing more passes.
    Rejected,
}

/// The start of the current line.
#[derive(Debug)]
struct Line {
    kept: [u8; LINE_KEPT_BYTES],
    /// Bytes of the line, also those not kept.
    length: usize,
    last: u8,
}

// === impl FramingGuard ===

impl<IO> FramingGuard<IO> {
    pub(crate) fn new(io: IO) -> Self {
        let line = Line { kept: [0; LINE_KEPT_BYTES], length: 0, last: 0 };
        Self { io, scanner: Scanner { state: State::RequestLine, line } }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FramingGuard<IO> {
    /// After a rejected request, reports the end of the stream.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.scanner.state == State::Rejected {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let (_, new) = buf.filled_mut().split_at_mut(before);
        let passed = this.scanner.scan(new);
        buf.set_filled(before + passed);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for FramingGuard<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
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

// === impl Scanner ===

impl Scanner {
    /// Takes the next bytes. Returns how many of them pass. The last one is changed if the request is
    /// rejected.
    fn scan(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let left = bytes.len() - at;
            match self.state {
                State::Rejected => return at,
                State::Body(missing) => {
                    let taken = taken_of(missing, left);
                    at += taken;
                    self.state = match missing - taken as u64 {
                        0 => State::RequestLine,
                        missing => State::Body(missing),
                    };
                }
                State::Chunk(missing) => {
                    let taken = taken_of(missing, left);
                    at += taken;
                    self.state = match missing - taken as u64 {
                        0 => State::ChunkSize,
                        missing => State::Chunk(missing),
                    };
                }
                State::RequestLine | State::Headers { .. } | State::ChunkSize | State::Trailers => {
                    let end = memchr::memchr(b'\n', &bytes[at..]);
                    self.line.push(&bytes[at..at + end.unwrap_or(left)]);
                    at += end.map_or(left, |end| end + 1);
                    if end.is_some() {
                        self.state = self.after_line();
                        self.line.length = 0;
                        if self.state == State::Rejected {
                            bytes[at - 1] = INVALID_BYTE;
                            return at;
                        }
                    }
                }
            }
        }
        at
    }

    /// Returns the state after the current line.
    fn after_line(&self) -> State {
        let is_empty = self.line.is_empty();
        match self.state {
            // Only a head may have lines that end without a carriage return: hyper reads on in a trailer.
            State::ChunkSize | State::Trailers if !self.line.ends_with_return() => State::Rejected,
            State::RequestLine | State::Trailers if is_empty => State::RequestLine,
            State::RequestLine => State::Headers { length: None, is_chunked: false },
            State::Headers { length, is_chunked } if is_empty => match (length, is_chunked) {
                (_, true) => State::ChunkSize,
                (None | Some(0), false) => State::RequestLine,
                (Some(length), false) => State::Body(length),
            },
            State::Headers { length, is_chunked } => self.after_header(length, is_chunked),
            State::ChunkSize => match self.line.chunk_size() {
                Some(0) => State::Trailers,
                // With the line end after the chunk.
                Some(size) => size.checked_add(2).map_or(State::Rejected, State::Chunk),
                None => State::Rejected,
            },
            other => other,
        }
    }

    fn after_header(&self, length: Option<u64>, is_chunked: bool) -> State {
        let (name, value) = self.line.header();
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // hyper rejects other encodings than `chunked`.
            return if length.is_some() {
                State::Rejected
            } else {
                State::Headers { length, is_chunked: true }
            };
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let number = if self.line.is_whole() { decimal(value) } else { None };
            return match number {
                Some(number) if !is_chunked && length.is_none_or(|known| known == number) => {
                    State::Headers { length: Some(number), is_chunked }
                }
                _ => State::Rejected,
            };
        }
        State::Headers { length, is_chunked }
    }
}

/// Returns how many of `available` bytes belong to a part of which `missing` bytes are missing.
fn taken_of(missing: u64, available: usize) -> usize {
    usize::try_from(missing).map_or(available, |missing| missing.min(available))
}

/// Parses a decimal number without a sign.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

// === impl Line ===

impl Line {
    fn push(&mut self, part: &[u8]) {
        if let Some(room) = self.kept.get_mut(self.length..) {
            let taken = room.len().min(part.len());
            room[..taken].copy_from_slice(&part[..taken]);
        }
        self.length = self.length.saturating_add(part.len());
        self.last = part.last().copied().unwrap_or(self.last);
    }

    fn is_whole(&self) -> bool {
        self.length <= LINE_KEPT_BYTES
    }

    fn kept(&self) -> &[u8] {
        &self.kept[..self.length.min(LINE_KEPT_BYTES)]
    }

    fn ends_with_return(&self) -> bool {
        self.length > 0 && self.last == b'\r'
    }

    fn is_empty(&self) -> bool {
        matches!(self.kept(), [] | [b'\r'])
    }

    /// Returns the name and the value of a header, as far as they are kept.
    fn header(&self) -> (&[u8], &[u8]) {
        let line = self.kept();
        match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], line[colon + 1..].trim_ascii()),
            None => (line, &[]),
        }
    }

    /// Returns the size of a chunk: hexadecimal digits, then perhaps spaces and an extension.
    fn chunk_size(&self) -> Option<u64> {
        let line = self.kept();
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, rest) = line.split_at(digits);
        let is_ended = matches!(rest.first(), Some(b'\r' | b' ' | b'\t' | b';'));
        if digits == 0 || digits > CHUNK_SIZE_MAX_DIGITS || !is_ended {
            return None;
        }
        u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
    }
}

#[cfg(test)]
mod tests;
