//! The body of a request: reads its one message, and reads and discards the rest.
//!
//! HTTP/2 lets a server answer before it has the whole request, and then reset the stream (RFC 9113 §8.1).
//! Some clients that are still sending see the reset and not the answer, or hang (curl 7.88 does both). So
//! the rest of a request is read and discarded: for a moment before an error is sent
//! ([`RequestBody::finish`]), and for a moment after any response, by a task, when the body is dropped before
//! its end.

use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use flate2::bufread::GzDecoder;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::drain::Drain;
use super::errors::CallError;
use super::peer_limits::{AuthState, PeerLimits};
use crate::model::peer::PeerNet;
use crate::model::proto::PREFIX_BYTES;

/// Time limit for a request, which has a few hundred bytes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which an error waits for the rest of the request. gRPC clients send it together with the
/// headers.
const FINISH_TIME: Duration = Duration::from_secs(1);

/// Time for which the rest of a request is read after the response: a few round trips on a bad line.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Most bytes of one request that are discarded: by default twice the longest request.
const DISCARD_MAX_BYTES: usize = 512 * 1024;

/// Bodies of all connections that are discarded at once. Each keeps a stream of some 2 KiB alive. Further
/// streams are reset at once.
const DISCARDS_MAX: usize = 1_024;

/// The body of a request. On drop, a task discards the rest of it.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None` only while dropping.
    body: Option<Incoming>,
    discarder: BodyDiscarder,
    /// Bytes that may still be discarded.
    budget: usize,
    meter: Option<MessageMeter>,
}

/// Counts the messages of a call without credentials. The call itself counts as the first; each further one
/// counts as another call of the peer.
#[derive(Debug)]
pub(super) struct MessageMeter {
    peers: PeerLimits,
    net: PeerNet,
    auth: AuthState,
    messages: MessageCounter,
}

/// Counts the gRPC messages that start in a body, which arrives in parts of any size.
#[derive(Debug, Default)]
pub(super) struct MessageCounter {
    started: u64,
    /// The bytes received of an incomplete prefix.
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    /// Bytes of the current message that have not arrived.
    rest: usize,
}

/// Discards the rest of request bodies. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct BodyDiscarder {
    permits: Arc<Semaphore>,
    drain: Drain,
}

/// Compression of messages with the compressed flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// None: no message may have the flag.
    Identity,
    Gzip,
}

// === impl BodyDiscarder ===

impl BodyDiscarder {
    /// Creates a discarder that works until `drain` is closed.
    pub(super) fn new(drain: Drain) -> Self {
        Self { permits: Arc::new(Semaphore::new(DISCARDS_MAX)), drain }
    }

    fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }
}

/// Reads and discards the rest of `body`, at most `budget` bytes and for at most `time`. Returns the
/// remaining budget.
async fn discard(body: &mut Incoming, mut budget: usize, time: Duration) -> usize {
    let rest = async {
        while budget > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            budget = budget.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    // The reason for stopping makes no difference.
    let _ = tokio::time::timeout(time, rest).await;
    budget
}

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(body: Incoming, discarder: BodyDiscarder) -> Self {
        Self { body: Some(body), discarder, budget: DISCARD_MAX_BYTES, meter: None }
    }

    /// Waits a moment for the rest of the request, before an error is sent. Cancel safe.
    pub(super) async fn finish(mut self) {
        if let Some(body) = &mut self.body
            && !body.is_end_stream()
            && let Some(_permit) = self.discarder.try_acquire()
        {
            self.budget = discard(body, self.budget, FINISH_TIME).await;
        }
    }

    /// Counts the messages of the body from now on.
    pub(super) fn set_meter(&mut self, meter: MessageMeter) {
        self.meter = Some(meter);
    }

    /// Reads the one message of a call, and returns it decompressed and without its prefix. It has at most
    /// `max_bytes` compressed and decompressed.
    pub(super) async fn read_message(self, encoding: Encoding, max_bytes: usize) -> Result<Bytes, CallError> {
        message(self.read(max_bytes).await?, encoding, max_bytes)
    }

    /// Reads the one message of a call, and returns it as it came, with its prefix. It has at most
    /// `max_bytes`.
    pub(super) async fn read(self, max_bytes: usize) -> Result<Bytes, CallError> {
        let limited = Limited::new(self, max_bytes + PREFIX_BYTES);
        let collected = tokio::time::timeout(REQUEST_TIMEOUT, limited.collect());
        let collected = collected.await.map_err(|_| CallError::RequestTimeout)?.map_err(|error| {
            if error.downcast_ref::<LengthLimitError>().is_some() {
                CallError::request(format!("the request is longer than {max_bytes} bytes"))
            } else {
                CallError::request("the request is incomplete")
            }
        })?;
        Ok(collected.to_bytes())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if let (Some(meter), Some(Ok(frame))) = (&mut this.meter, &frame)
            && let Some(data) = frame.data_ref()
            && let Err(error) = meter.count(data)
        {
            return Poll::Ready(Some(Err(error.to_status().into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        let budget = self.budget;
        if body.is_end_stream() || budget == 0 || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        if let Some(permit) = self.discarder.try_acquire() {
            self.discarder.drain.spawn_background(async move {
                discard(&mut body, budget, DISCARD_TIME).await;
                drop(permit);
            });
        }
    }
}

// === impl Encoding ===

impl Encoding {
    /// Returns the encoding that the headers of a call name, if it is supported.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, CallError> {
        match headers.get("grpc-encoding").map(http::HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Ok(Self::Identity),
            Some(b"gzip") => Ok(Self::Gzip),
            Some(_) => Err(CallError::Encoding),
        }
    }
}

/// Returns the one message of a request, decompressed and without its prefix.
pub(super) fn message(mut bytes: Bytes, encoding: Encoding, max_bytes: usize) -> Result<Bytes, CallError> {
    if bytes.remaining() < PREFIX_BYTES {
        return Err(CallError::request("the request has no message"));
    }
    let compressed = match bytes.get_u8() {
        0 => false,
        1 => true,
        _ => return Err(CallError::request("the request does not start with a gRPC message prefix")),
    };
    let length = bytes.get_u32() as usize;
    if length != bytes.remaining() {
        return Err(CallError::request("the request must have exactly one message"));
    }
    match (compressed, encoding) {
        (false, _) => Ok(bytes),
        (true, Encoding::Gzip) => gunzip(&bytes, max_bytes),
        (true, Encoding::Identity) => Err(CallError::Encoding),
    }
}

/// Decompresses a message of at most `max_bytes`. Decompresses no more than that, whatever the data expands
/// to.
fn gunzip(mut compressed: &[u8], max_bytes: usize) -> Result<Bytes, CallError> {
    let mut message = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    GzDecoder::new(&mut compressed)
        .take(limit)
        .read_to_end(&mut message)
        .map_err(|_| CallError::request("the request is not valid gzip data"))?;
    if message.len() > max_bytes {
        return Err(CallError::request(format!(
            "the request is longer than {max_bytes} bytes when decompressed"
        )));
    }
    if !compressed.is_empty() {
        return Err(CallError::request("the request has more data after the gzip data"));
    }
    Ok(message.into())
}

// === impl MessageMeter ===

impl MessageMeter {
    pub(super) fn new(peers: PeerLimits, net: PeerNet, auth: AuthState) -> Self {
        Self { peers, net, auth, messages: MessageCounter::default() }
    }

    /// Counts the messages that start in `data`, the next part of the body.
    fn count(&mut self, data: &[u8]) -> Result<(), CallError> {
        let before = self.messages.started.max(1);
        self.messages.take(data);
        for _ in before..self.messages.started {
            let now = tokio::time::Instant::now().into_std();
            if let Err(exceeded) = self.peers.count_message(self.net, now) {
                self.auth.record_rejection();
                return Err(exceeded.into());
            }
        }
        Ok(())
    }
}

// === impl MessageCounter ===

impl MessageCounter {
    /// Returns whether the bytes so far end with a message, or there are none.
    pub(super) fn is_between_messages(&self) -> bool {
        self.prefix_len == 0 && self.rest == 0
    }

    pub(super) fn take(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let skipped = self.rest.min(data.len());
            self.rest -= skipped;
            data = data.get(skipped..).unwrap_or_default();
            while self.rest == 0
                && let Some((byte, after)) = data.split_first()
            {
                data = after;
                self.take_prefix_byte(*byte);
            }
        }
    }

    fn take_prefix_byte(&mut self, byte: u8) {
        if self.prefix_len == 0 {
            self.started += 1;
        }
        if let Some(next) = self.prefix.get_mut(self.prefix_len) {
            *next = byte;
        }
        self.prefix_len += 1;
        if self.prefix_len == PREFIX_BYTES {
            let [_, length @ ..] = self.prefix;
            (self.rest, self.prefix_len) = (u32::from_be_bytes(length) as usize, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::BufMut as _;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    const MAX_BYTES: usize = 1_000;

    fn gzip(message: &[u8]) -> Vec<u8> {
        let mut gz = GzEncoder::new(Vec::new(), Compression::default());
        gz.write_all(message).unwrap();
        gz.finish().unwrap()
    }

    fn framed(compressed: bool, message: &[u8]) -> Bytes {
        let mut bytes = vec![u8::from(compressed)];
        bytes.put_u32(u32::try_from(message.len()).unwrap());
        bytes.extend(message);
        bytes.into()
    }

    fn error_of(bytes: Bytes) -> String {
        message(bytes, Encoding::Gzip, MAX_BYTES).unwrap_err().to_status().message().to_owned()
    }

    #[test]
    fn gzip_message_is_decompressed() {
        for text in [&b""[..], b"a message", &[7; MAX_BYTES]] {
            let read = message(framed(true, &gzip(text)), Encoding::Gzip, MAX_BYTES).unwrap();
            assert_eq!(read, text);
            let plain = message(framed(false, text), Encoding::Gzip, MAX_BYTES).unwrap();
            assert_eq!(plain, text);
        }
    }

    #[test]
    fn decompression_stops_at_the_size_limit() {
        let text = error_of(framed(true, &gzip(&[0; MAX_BYTES + 1])));
        assert_eq!(text, "the request is longer than 1000 bytes when decompressed");
        // Data over the limit is not read: the fault in it has no effect.
        let mut bomb = gzip(&vec![0; 10_000_000]);
        let end = bomb.len() - 1;
        bomb[end] ^= 1;
        assert_eq!(error_of(framed(true, &bomb)), text);
    }

    #[test]
    fn damaged_gzip_message_is_invalid() {
        let good = gzip(b"a message");
        assert_eq!(error_of(framed(true, b"a message")), "the request is not valid gzip data");
        assert_eq!(error_of(framed(true, &good[..good.len() - 1])), "the request is not valid gzip data");
        let more = [&good[..], b"x"].concat();
        assert_eq!(error_of(framed(true, &more)), "the request has more data after the gzip data");
    }

    #[test]
    fn unsupported_encoding_names_the_supported_ones() {
        let headers = |value| HeaderMap::from_iter([(http::HeaderName::from_static("grpc-encoding"), value)]);
        let of = |value| Encoding::of(&headers(http::HeaderValue::from_static(value)));
        assert_eq!(Encoding::of(&HeaderMap::new()).unwrap(), Encoding::Identity);
        assert_eq!(of("identity").unwrap(), Encoding::Identity);
        assert_eq!(of("gzip").unwrap(), Encoding::Gzip);
        for error in [
            of("zstd").unwrap_err(),
            message(framed(true, &gzip(b"x")), Encoding::Identity, MAX_BYTES).unwrap_err(),
        ] {
            let status = error.to_status();
            assert_eq!(status.code(), tonic::Code::Unimplemented);
            assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity,gzip");
        }
    }

    proptest! {
        #[test]
        fn messages_are_counted_for_any_parts(
            lengths in prop::collection::vec(0_usize..40, 0..30),
            part in 1_usize..50,
        ) {
            let mut body = Vec::new();
            for length in &lengths {
                body.push(0);
                body.extend(u32::try_from(*length).unwrap().to_be_bytes());
                body.extend(vec![7; *length]);
            }
            let mut messages = MessageCounter::default();
            for data in body.chunks(part) {
                messages.take(data);
            }
            prop_assert_eq!(messages.started, lengths.len() as u64);
        }
    }
}
