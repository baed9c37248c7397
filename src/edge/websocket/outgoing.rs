//! Data on its way out: writes it without a copy, and knows where its websocket frames end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf as _;
use tokio::io::AsyncWrite;

use crate::stream::Messages;

/// Most parts in one write: as many as rustls and the kernel take without splitting.
const PARTS_MAX: usize = 64;

/// Most bytes of the header of a frame without mask.
const HEADER_MAX_BYTES: usize = 10;

/// Whole frames that are being written.
#[derive(Debug)]
pub(super) struct Outgoing {
    messages: Messages,
    boundary: Boundary,
}

/// Finds the ends of frames without mask in a sequence of bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Boundary {
    header: [u8; HEADER_MAX_BYTES],
    header_bytes: usize,
    /// Bytes of payload before the end of the frame.
    payload: u64,
}

// === impl Outgoing ===

impl Outgoing {
    pub(super) fn new(messages: Messages) -> Self {
        Self { messages, boundary: Boundary::default() }
    }

    pub(super) fn remaining(&self) -> usize {
        self.messages.remaining()
    }

    /// Whether the next byte begins a frame, so that another frame may be written before it.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.boundary.is_reached()
    }

    /// Returns how many bytes to write to end a frame and to write at least `min_bytes`. Looks at the first
    /// [`PARTS_MAX`] parts only: returns their length if no such frame ends in them.
    pub(super) fn bytes_to_boundary(&self, min_bytes: usize) -> usize {
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        let (mut boundary, mut bytes) = (self.boundary, 0);
        let count = self.messages.chunks_vectored(&mut slices);
        for slice in &slices[..count] {
            let mut rest = &slice[..];
            while !rest.is_empty() {
                if bytes >= min_bytes && boundary.is_reached() {
                    return bytes;
                }
                let taken = boundary.advance(rest);
                bytes += taken;
                rest = &rest[taken..];
            }
        }
        bytes
    }

    /// Writes up to `max_bytes`, which must not be zero. Returns how many were written.
    pub(super) fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
        max_bytes: usize,
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.poll_write_parts(Pin::new(io), cx, max_bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        // The end of all is a boundary, which saves the search.
        if written < self.remaining() {
            self.move_boundary(written);
        }
        self.messages.advance(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_parts<IO: AsyncWrite>(
        &self,
        io: Pin<&mut IO>,
        cx: &mut Context<'_>,
        max_bytes: usize,
    ) -> Poll<io::Result<usize>> {
        let first = self.messages.chunk();
        if first.len() >= max_bytes.min(self.remaining()) || !io.is_write_vectored() {
            return io.poll_write(cx, &first[..first.len().min(max_bytes)]);
        }
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        let count = self.messages.chunks_vectored(&mut slices);
        // Whole parts: the first one fits.
        let mut bytes = 0;
        let fits = |slice: &&IoSlice<'_>| {
            bytes += slice.len();
            bytes <= max_bytes
        };
        let fitting = slices[..count].iter().take_while(fits).count();
        io.poll_write_vectored(cx, &slices[..fitting])
    }

    /// Moves the boundary over the next `count` bytes.
    fn move_boundary(&mut self, count: usize) {
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        let parts = self.messages.chunks_vectored(&mut slices);
        let mut left = count;
        for slice in &slices[..parts] {
            let mut rest = &slice[..slice.len().min(left)];
            left -= rest.len();
            while !rest.is_empty() {
                rest = &rest[self.boundary.advance(rest)..];
            }
        }
    }
}

// === impl Boundary ===

impl Boundary {
    fn is_reached(&self) -> bool {
        self.header_bytes == 0 && self.payload == 0
    }

    /// Consumes bytes up to the end of the current frame. Returns how many.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.payload == 0 {
            let Some(byte) = bytes.get(taken) else { return taken };
            self.header[self.header_bytes] = *byte;
            self.header_bytes += 1;
            taken += 1;
            if let Some(payload) = self.payload_length() {
                (self.payload, self.header_bytes) = (payload, 0);
                break;
            }
        }
        let payload = self.payload.min((bytes.len() - taken) as u64);
        self.payload -= payload;
        #[expect(clippy::cast_possible_truncation, reason = "at most the length of a slice")]
        let payload = payload as usize;
        taken + payload
    }

    /// Returns the length of the payload once the header is complete.
    fn payload_length(&self) -> Option<u64> {
        match &self.header[..self.header_bytes] {
            [_, short @ ..126] => Some((*short).into()),
            [_, 126, length @ ..] => Some(u16::from_be_bytes(length.try_into().ok()?).into()),
            [_, _, length @ ..] => Some(u64::from_be_bytes(length.try_into().ok()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::task::noop_waker;
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;
    use crate::stream::{Parts, StreamControl};

    /// Takes the given number of bytes per write, then no more.
    struct Sink {
        written: Vec<u8>,
        portions: std::vec::IntoIter<usize>,
        vectored: bool,
    }

    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let Some(portion) = this.portions.next() else { return Poll::Pending };
            let bytes = bufs.iter().flat_map(|buf| buf.iter()).take(portion);
            let before = this.written.len();
            this.written.extend(bytes);
            Poll::Ready(Ok(this.written.len() - before))
        }

        fn is_write_vectored(&self) -> bool {
            self.vectored
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn frame(payload: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        Frame::message(vec![b'x'; payload], OpCode::Data(Data::Text), true).format(&mut bytes).unwrap();
        bytes
    }

    proptest! {
        /// Writes portions of any size, and stops at a boundary after each. Together they are all bytes, and
        /// every stop is the end of a frame.
        #[test]
        fn every_stop_is_end_of_frame(
            payloads in prop::collection::vec(prop_oneof![0..10_usize, 100..140_usize, 65_500..65_600_usize], 1..40),
            frames_per_part in 1..5_usize,
            portions in prop::collection::vec(1..3_000_usize, 400),
            min_bytes in 0..5_000_usize,
            vectored in any::<bool>(),
        ) {
            let frames: Vec<_> = payloads.iter().map(|payload| frame(*payload)).collect();
            let all = frames.concat();
            let ends: Vec<_> = frames.iter().scan(0, |end, frame| { *end += frame.len(); Some(*end) }).collect();
            let parts: Parts = frames.chunks(frames_per_part).map(|frames| Bytes::from(frames.concat())).collect();
            let mut outgoing = Outgoing::new(Messages::new(parts, StreamControl::new()));
            let mut sink = Sink { written: Vec::new(), portions: portions.into_iter(), vectored };
            let waker = noop_waker();
            let mut cx = Context::from_waker(&waker);
            while outgoing.remaining() > 0 {
                let before = sink.written.len();
                let max = outgoing.bytes_to_boundary(min_bytes.max(1));
                let Poll::Ready(written) = outgoing.poll_write(&mut sink, &mut cx, max) else { break };
                prop_assert!((1..=max).contains(&written.unwrap()));
                let at = sink.written.len();
                prop_assert!(outgoing.remaining() == 0 || outgoing.is_at_boundary() == ends.contains(&at));
                prop_assert!(ends.contains(&(before + max)));
                prop_assert!(max >= min_bytes.min(all.len() - before));
            }
            prop_assert_eq!(&sink.written[..], &all[..sink.written.len()]);
        }
    }

    #[test]
    fn boundary_is_zero_bytes_away_at_boundary() {
        let messages = Messages::new(Parts::from([frame(5).into()]), StreamControl::new());
        let outgoing = Outgoing::new(messages);
        assert_eq!(outgoing.bytes_to_boundary(0), 0);
        assert_eq!(outgoing.bytes_to_boundary(1), 7);
        assert_eq!(outgoing.bytes_to_boundary(100), 7);
    }
}
