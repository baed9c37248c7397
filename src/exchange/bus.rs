//! The bus between gateways, as the drivers of the exchange use it: at most once, and nothing waits for it.
//!
//! A message may be lost, repeated, or late. The exchange notices that by numbers and positions, so an
//! implementation drops a message rather than wait or grow. It has two connections ([`Channel`]): a backlog of
//! frames must not make a gateway that is alive look dead.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// Maximum messages that wait in one subscription: a few seconds of a busy log, at 16 kB per frame.
pub const SUBSCRIPTION_MESSAGES: usize = 4_096;

/// Maximum messages that wait to be sent on one channel. They wait for the task that writes, which needs
/// milliseconds for them.
pub const UNSENT_MESSAGES: usize = 2_048;

/// Maximum bytes of payloads that wait to be sent on one channel. Half a second of a link with 256 Mbit/s, and
/// some 60 answers to fetches.
pub const UNSENT_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Maximum answers to one request that wait: several gateways may answer.
pub const ANSWERS_MAX: usize = 16;

/// A connection to other gateways. All methods return at once. Shared by all tasks of a gateway.
///
/// **Order.** On one channel, messages arrive in the order in which they were published, and a subscription or
/// request takes effect before a message that is published after the call has returned. There is no order
/// between channels.
///
/// **Away.** While the connection is down or hangs, messages are dropped, not kept: an old message is worse
/// than a lost one. Subscriptions stay, and take effect again when the connection is back.
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Sends a message to all that subscribe to `subject`, this gateway included; with `reply`, the subject of
    /// answers. Drops it if [`UNSENT_MESSAGES`] or [`UNSENT_MAX_BYTES`] wait or the connection is down, and
    /// counts that.
    fn publish(&self, channel: Channel, subject: &str, reply: Option<&str>, payload: Bytes);

    /// Subscribes to a subject, in which `*` stands for any token. At most [`SUBSCRIPTION_MESSAGES`] wait;
    /// further ones are dropped and counted. Dropping the subscription unsubscribes.
    ///
    /// Two subscriptions to one subject both receive each message.
    fn subscribe(&self, channel: Channel, subject: &str) -> Subscription;

    /// Sends a request on [`Channel::Control`]. Any number of gateways may answer, up to `timeout`. Dropping
    /// the answers ends the request; later ones are discarded.
    fn request(&self, subject: &str, payload: Bytes, timeout: Duration) -> Answers;

    /// Waits until the messages that were published before have left this process. Ends at once while the
    /// connection is down. May wait for ever if it hangs. Cancel safe.
    fn flush(&self) -> BoxFuture<'_, ()>;

    /// Returns the state of the connection, which is up while both channels are. The sender lives as long as
    /// the bus.
    fn connection(&self) -> watch::Receiver<Connection>;

    /// Returns what was counted since the start.
    fn totals(&self) -> BusTotals;
}

/// One of the connections of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Frames, and messages that must stay in order with them.
    Frames,
    /// Everything else.
    Control,
}

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusMessage {
    /// Where the sender expects an answer, by [`Bus::publish`] on [`Channel::Control`].
    pub reply: Option<String>,
    /// Its content. May share a larger buffer, so a receiver that keeps it for long copies it.
    pub payload: Bytes,
}

/// Messages of one subject, oldest first. Ends only if the bus gives the subscription up, because it is shut
/// down or may have no more. Dropping it unsubscribes. Cancel safe.
pub struct Subscription(BoxStream<'static, BusMessage>);

/// Answers to one request. Ends after the timeout, or after an error. Dropping it ends the request. Cancel
/// safe.
pub struct Answers(BoxStream<'static, Result<Bytes, RequestError>>);

/// Why a request has no answer, or no further one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No gateway subscribes to the subject.
    #[error("no responders")]
    NoResponders,
    /// No answer came in time. Not reported after an answer: then the stream only ends.
    #[error("timed out")]
    Timeout,
    /// The request was not sent: the connection is down, or too many messages wait.
    #[error("bus is unavailable")]
    Unavailable,
}

/// State of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Connected, as far as the client knows.
    Up,
    /// Not connected. The client connects again by itself.
    AwaySince(Instant),
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusTotals {
    /// Messages given to the writer.
    pub sent: u64,
    /// Bytes of their payloads.
    pub sent_bytes: u64,
    /// Messages received by subscriptions.
    pub received: u64,
    /// Bytes of their payloads.
    pub received_bytes: u64,
    /// Messages that were not sent: the connection was down, or too many waited.
    pub unsent: u64,
    /// Received messages that were dropped because a subscription was full, as far as the client knows.
    pub overflowed: u64,
    /// Times that a subscription began to drop messages.
    pub slow: u64,
}

// === impl Subscription ===

impl Subscription {
    /// Creates a subscription from a bounded stream that unsubscribes when it is dropped.
    pub fn new(messages: impl Stream<Item = BusMessage> + Send + 'static) -> Self {
        Self(Box::pin(messages))
    }
}

impl Stream for Subscription {
    type Item = BusMessage;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BusMessage>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

// === impl Answers ===

impl Answers {
    /// Creates answers from a bounded stream that ends the request when it is dropped.
    pub fn new(answers: impl Stream<Item = Result<Bytes, RequestError>> + Send + 'static) -> Self {
        Self(Box::pin(answers))
    }
}

impl Stream for Answers {
    type Item = Result<Bytes, RequestError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}
