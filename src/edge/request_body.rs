//! The body of a request, which is read to its end even if the call no longer needs it.
//!
//! HTTP/2 lets a server answer before it has the whole request, and then has it reset the stream (RFC 9113 §8.1). Some clients
//! that are still sending see the reset and not the answer before it, or hang (curl 7.88 does both). So the rest of a request
//! is read and discarded: for a moment before a refusal is sent ([`RequestBody::finish`]), and for a moment after any response,
//! by a task of its own, when the body is dropped before its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::auth_state::AuthState;
use super::drain::Drain;
use super::errors::CallError;
use super::peer_limits::PeerLimits;
use crate::model::peer::PeerNet;
use crate::model::proto::PREFIX_BYTES;

/// How long a refusal waits for the rest of the request. Clients of gRPC send it together with its headers.
const FINISH_TIME: Duration = Duration::from_secs(1);

/// How long the rest of a request is waited for after the response: a few round trips on a bad line.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Most bytes that are discarded of one request: twice the longest request, by default.
const DISCARD_MAX_BYTES: usize = 512 * 1024;

/// Bodies discarded at once, of all connections; each keeps a stream of some 2 KiB alive. Beyond, streams are reset at once.
const DISCARDS_MAX: usize = 1_024;

/// The body of a request. On drop, the rest of it is discarded.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None` only while dropping.
    body: Option<Incoming>,
    discards: Discards,
    /// Bytes that may still be discarded.
    budget: usize,
    meter: Option<Meter>,
}

/// Counts the messages of a call without credentials: each but the first, which the call itself counts for, is one more call of
/// its peer.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) peers: PeerLimits,
    pub(super) net: PeerNet,
    pub(super) auth: AuthState,
    pub(super) messages: Messages,
}

/// Finds where gRPC messages begin in a body that comes in parts.
#[derive(Debug, Default)]
pub(super) struct Messages {
    begun: u64,
    /// Bytes of a prefix that have come; fewer than a whole one.
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    /// Bytes of the message that are to come.
    rest: usize,
}

/// Discards the rest of request bodies. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Discards {
    room: Arc<Semaphore>,
    drain: Drain,
}

// === impl Discards ===

impl Discards {
    /// Discards bodies until `drain` is closed.
    pub(super) fn new(drain: Drain) -> Self {
        Self { room: Arc::new(Semaphore::new(DISCARDS_MAX)), drain }
    }

    fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }
}

/// Reads and discards the rest of `body`, up to `budget` bytes and for `time` at most. Returns what is left of the budget.
async fn discard(body: &mut Incoming, mut budget: usize, time: Duration) -> usize {
    let rest = async {
        while budget > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            budget = budget.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    // Where it stops makes no difference.
    let _ = tokio::time::timeout(time, rest).await;
    budget
}

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(body: Incoming, discards: Discards) -> Self {
        Self { body: Some(body), discards, budget: DISCARD_MAX_BYTES, meter: None }
    }

    /// Waits a moment for the rest of the request, before a refusal is sent. Cancel safe.
    pub(super) async fn finish(mut self) {
        if let Some(body) = &mut self.body
            && !body.is_end_stream()
            && let Some(_room) = self.discards.room()
        {
            self.budget = discard(body, self.budget, FINISH_TIME).await;
        }
    }

    /// Counts the messages of the body from now on.
    pub(super) fn set_meter(&mut self, meter: Meter) {
        self.meter = Some(meter);
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
        if let Some(room) = self.discards.room() {
            self.discards.drain.spawn_beside(async move {
                discard(&mut body, budget, DISCARD_TIME).await;
                drop(room);
            });
        }
    }
}

// === impl Meter ===

impl Meter {
    /// Counts the messages that begin in this part of the body.
    fn count(&mut self, data: &[u8]) -> Result<(), CallError> {
        let before = self.messages.begun.max(1);
        self.messages.take(data);
        for _ in before..self.messages.begun {
            let now = tokio::time::Instant::now().into_std();
            if let Err(exceeded) = self.peers.open_message(self.net, now) {
                self.auth.rate_refused();
                return Err(exceeded.into());
            }
        }
        Ok(())
    }
}

// === impl Messages ===

impl Messages {
    fn take(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let skipped = self.rest.min(data.len());
            self.rest -= skipped;
            data = data.get(skipped..).unwrap_or_default();
            while self.rest == 0
                && let Some((byte, after)) = data.split_first()
            {
                data = after;
                self.prefix_byte(*byte);
            }
        }
    }

    fn prefix_byte(&mut self, byte: u8) {
        if self.prefix_len == 0 {
            self.begun += 1;
        }
        if let Some(place) = self.prefix.get_mut(self.prefix_len) {
            *place = byte;
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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_are_counted_however_they_are_cut(
            lengths in prop::collection::vec(0_usize..40, 0..30),
            part in 1_usize..50,
        ) {
            let mut body = Vec::new();
            for length in &lengths {
                body.push(0);
                body.extend(u32::try_from(*length).unwrap().to_be_bytes());
                body.extend(vec![7; *length]);
            }
            let mut messages = Messages::default();
            for data in body.chunks(part) {
                messages.take(data);
            }
            prop_assert_eq!(messages.begun, lengths.len() as u64);
        }
    }
}
