//! One connection to NATS.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use async_nats::connection::State as ConnectionState;
use async_nats::{Client, Event, Message, ServerError};
use bytes::Bytes;
use futures_core::Stream;
use futures_util::future::Either;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::server_log::ServerLog;
use super::slow::SlowSubscriptions;
use super::state::State;
use super::version;
use super::{NatsError, NatsOptions};
use crate::exchange::bus::{BusMessage, Channel, Subscription, UNSENT_MAX_BYTES};
use crate::exchange::gateway_id::GatewayId;

/// One connection to NATS. A clone is another handle to it.
#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    shared: Arc<Shared>,
    /// What the previous examination saw. Only the copy of the task that examines has it.
    seen: Seen,
}

/// What the callbacks of the library use, too.
struct Shared {
    channel: Channel,
    state: Arc<State>,
    waiting: Arc<Waiting>,
    /// Whether the connected server takes no bytes.
    is_stalled: AtomicBool,
    slow: Mutex<SlowSubscriptions>,
    log: ServerLog,
}

/// Messages that wait to be sent: in the library's queue, or in its buffer.
#[derive(Debug, Default)]
struct Waiting {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// Messages that no longer wait, since the start.
    done: AtomicU64,
}

/// The payload of a message that waits to be sent. The library drops it when it is written.
struct Queued {
    payload: Bytes,
    waiting: Arc<Waiting>,
}

#[derive(Clone, Default)]
struct Seen {
    has_waiting: bool,
    done: u64,
    /// The version of the server.
    version: String,
}

// === impl Link ===

impl Link {
    /// Creates a connection. Does not wait for it.
    pub(super) async fn start(
        options: &NatsOptions,
        gateway: GatewayId,
        channel: Channel,
        state: &Arc<State>,
    ) -> Result<Self, NatsError> {
        let shared = Arc::new(Shared {
            channel,
            state: Arc::clone(state),
            waiting: Arc::default(),
            is_stalled: AtomicBool::new(false),
            slow: Mutex::default(),
            log: ServerLog::new(channel),
        });
        let (of_events, of_attempts) = (Arc::clone(&shared), Arc::clone(&shared));
        let name = match channel {
            Channel::Frames => format!("leasemux {gateway} frames"),
            Channel::Control => format!("leasemux {gateway} control"),
        };
        let library = options
            .to_library(name)?
            .retry_on_initial_connect()
            .event_callback(move |event| {
                of_events.on_event(event);
                ready(())
            })
            // Sees the errors of earlier attempts, of which the library reports only the kind.
            .reconnect_to_server_callback(move |servers, _| {
                of_attempts.log.attempt(&servers);
                ready(None)
            });
        let client = library.connect(options.addresses()?).await.map_err(NatsError::Connect)?;
        Ok(Self { client, shared, seen: Seen::default() })
    }

    /// Sends a message, or drops it: then returns `false`. Counts either.
    pub(super) fn publish(&self, subject: &str, reply: Option<String>, payload: Bytes) -> bool {
        let (bytes, state) = (payload.len(), &self.shared.state);
        let is_sent = self.is_up() && self.shared.waiting.has_room(bytes) && {
            let payload = Queued::of(payload, &self.shared.waiting);
            // Polled once, and whatever the task's budget is. It is ready unless the queue is full.
            let result = match reply {
                Some(reply) => {
                    let publish = self.client.publish_with_reply(subject.to_owned(), reply, payload);
                    unconstrained(publish).now_or_never()
                }
                None => unconstrained(self.client.publish(subject.to_owned(), payload)).now_or_never(),
            };
            matches!(result, Some(Ok(())))
        };
        if is_sent {
            state.count_sent(bytes);
        } else {
            state.count_unsent();
        }
        is_sent
    }

    /// Subscribes to a subject.
    pub(super) fn subscribe(&self, subject: &str) -> Subscription {
        let state = Arc::clone(&self.shared.state);
        let messages = self.messages(subject).map(move |message| {
            state.count_received(message.payload.len());
            BusMessage { reply: message.reply.map(|reply| reply.to_string()), payload: message.payload }
        });
        Subscription::new(messages)
    }

    /// Subscribes to a subject. While the library's queue is full, the stream waits for room in it.
    pub(super) fn messages(&self, subject: &str) -> impl Stream<Item = Message> + Send + use<> {
        let (client, subject) = (self.client.clone(), subject.to_owned());
        let mut subscribing = Box::pin(async move { client.subscribe(subject).await });
        // At once, so that a message which is published next finds the subscription.
        let subscribing = match unconstrained(&mut subscribing).now_or_never() {
            Some(result) => Either::Left(ready(result)),
            None => Either::Right(subscribing),
        };
        let stream = subscribing.map(|result| match result {
            Ok(messages) => messages.left_stream(),
            Err(error) => {
                tracing::error!(%error, "failed to subscribe at NATS");
                stream::empty().right_stream()
            }
        });
        stream.flatten_stream()
    }

    /// Waits until all messages are written, unless the connection is down. Cancel safe.
    pub(super) async fn flush(&self) {
        if self.is_up()
            && let Err(error) = self.client.flush().await
        {
            tracing::debug!(channel = ?self.shared.channel, %error, "failed to flush connection to NATS");
        }
    }

    /// Returns the state and the sums of both connections.
    pub(super) fn state(&self) -> &Arc<State> {
        &self.shared.state
    }

    /// Examines whether the server takes bytes, and its version. Called periodically, by one task.
    pub(super) fn examine(&mut self) {
        let waiting = &self.shared.waiting;
        let has_waiting = waiting.messages.load(Ordering::Relaxed) > 0;
        let done = waiting.done.load(Ordering::Relaxed);
        // Messages waited at the previous examination, too, and none of them has left.
        let is_stalled = has_waiting && self.seen.has_waiting && done == self.seen.done;
        if self.shared.is_stalled.swap(is_stalled, Ordering::Relaxed) != is_stalled && is_stalled {
            self.shared.log.stalled();
        }
        (self.seen.has_waiting, self.seen.done) = (has_waiting, done);
        // Also corrects what a lost event has left: the library drops events if many wait.
        self.shared.state.set_up(self.shared.channel, self.is_up());
        let version = self.client.try_server_info().map(|info| info.version).unwrap_or_default();
        if version != self.seen.version {
            if version::is_old(&version) {
                self.shared.log.old_version(&version);
            }
            self.seen.version = version;
        }
    }

    fn is_up(&self) -> bool {
        let is_connected = self.client.connection_state() == ConnectionState::Connected;
        is_connected && !self.shared.is_stalled.load(Ordering::Relaxed)
    }
}

// === impl Shared ===

impl Shared {
    fn on_event(&self, event: Event) {
        match event {
            Event::Connected => {
                self.is_stalled.store(false, Ordering::Relaxed);
                self.state.set_up(self.channel, true);
                self.log.connected();
            }
            Event::Disconnected => {
                self.state.set_up(self.channel, false);
                self.log.disconnected();
            }
            // One message each.
            Event::SlowConsumer(subscription) => {
                self.state.count_overflowed();
                if self.slow.lock().dropped(subscription, Instant::now()) {
                    self.state.count_slow();
                }
            }
            Event::ServerError(ServerError::Other(error)) => self.log.server_error(&error),
            Event::ServerError(error) => self.log.server_error(&error.to_string()),
            Event::ClientError(error) => self.log.failed_attempt(&error.to_string()),
            Event::LameDuckMode | Event::Draining | Event::Closed => {}
        }
    }
}

// === impl Waiting ===

impl Waiting {
    fn has_room(&self, bytes: usize) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_add(bytes) <= UNSENT_MAX_BYTES
    }
}

// === impl Queued ===

impl Queued {
    /// Returns a payload that counts as waiting until it is dropped.
    fn of(payload: Bytes, waiting: &Arc<Waiting>) -> Bytes {
        waiting.messages.fetch_add(1, Ordering::Relaxed);
        waiting.bytes.fetch_add(payload.len(), Ordering::Relaxed);
        Bytes::from_owner(Self { payload, waiting: Arc::clone(waiting) })
    }
}

impl AsRef<[u8]> for Queued {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.waiting.messages.fetch_sub(1, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(self.payload.len(), Ordering::Relaxed);
        self.waiting.done.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_waits_until_its_last_copy_is_dropped() {
        let waiting = Arc::<Waiting>::default();
        let payload = Queued::of(Bytes::from_static(b"lines"), &waiting);
        let copy = payload.slice(1..);
        assert_eq!(&copy[..], b"ines");
        drop(payload);
        assert_eq!(waiting.bytes.load(Ordering::Relaxed), 5);
        assert!(waiting.has_room(UNSENT_MAX_BYTES - 5) && !waiting.has_room(UNSENT_MAX_BYTES - 4));
        drop(copy);
        let empty = Queued::of(Bytes::new(), &waiting);
        assert_eq!(waiting.messages.load(Ordering::Relaxed), 1);
        drop(empty);
        assert_eq!((waiting.bytes.load(Ordering::Relaxed), waiting.done.load(Ordering::Relaxed)), (0, 2));
    }
}
