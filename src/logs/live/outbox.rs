//! The tail that an actor reads: what its gateway's participant delivers, in order.

use std::collections::VecDeque;

use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::model::position::Position;
use crate::platform::{Error, Tail, TailItem};

/// Items on their way to the actor: it takes them at once, and each may have `READ_MAX_BYTES`.
const ITEMS_MAX: usize = 4;

/// Where an open tail goes.
pub(super) type OpenReply = oneshot::Sender<Result<Tail, Error>>;

/// The tail of one actor. While items wait here, the driver reads no more lines: so at most the frames of one
/// answer and those that a participant keeps wait.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The actor waits for its tail.
    opening: Option<OpenReply>,
    /// To the actor. `None`: it reads no tail.
    sender: Option<mpsc::Sender<Item>>,
    waiting: VecDeque<Item>,
}

#[derive(Debug)]
enum Item {
    Read(Result<TailItem, Error>),
    /// The log was read to its end.
    End,
}

// === impl Outbox ===

impl Outbox {
    /// Begins a tail. The actor has dropped the one before.
    pub(super) fn begin(&mut self, reply: OpenReply) {
        *self = Self { opening: Some(reply), ..Self::default() };
    }

    /// Gives the tail to the actor, unless it has it.
    pub(super) fn opened(&mut self, start: Position, unfinished: [bool; 2]) {
        let Some(reply) = self.opening.take() else { return };
        let (sender, receiver) = mpsc::channel(ITEMS_MAX);
        // The actor may have ended.
        if reply.send(Ok(Tail { start, unfinished, items: items(receiver) })).is_ok() {
            self.sender = Some(sender);
        }
    }

    pub(super) fn deliver(&mut self, item: TailItem) {
        self.push(Item::Read(Ok(item)));
    }

    /// Ends the tail: the log was read to its end.
    pub(super) fn end(&mut self) {
        if let Some(reply) = self.opening.take() {
            // No participant ends a log that it has not opened. The actor opens it again.
            _ = reply.send(Err(Error::Unavailable("log ended before it was opened".into())));
        }
        self.push(Item::End);
    }

    /// Ends the tail with an error.
    pub(super) fn fail(&mut self, error: Error) {
        match self.opening.take() {
            Some(reply) => _ = reply.send(Err(error)),
            None => self.push(Item::Read(Err(error))),
        }
    }

    /// Whether nothing waits here.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn push(&mut self, item: Item) {
        if self.sender.is_some() {
            self.waiting.push_back(item);
            self.send_waiting();
        }
    }

    /// Sends what fits.
    fn send_waiting(&mut self) {
        let Some(sender) = &self.sender else { return };
        while !self.waiting.is_empty() {
            match sender.try_reserve() {
                Ok(permit) => {
                    if let Some(item) = self.waiting.pop_front() {
                        permit.send(item);
                    }
                }
                Err(mpsc::error::TrySendError::Full(())) => return,
                Err(mpsc::error::TrySendError::Closed(())) => self.waiting.clear(),
            }
        }
    }

    /// Sends what waits, as far as it fits. Waits while nothing fits, and for ever if nothing waits. Cancel
    /// safe.
    pub(super) async fn flush(&mut self) {
        match &self.sender {
            // Also if the actor has dropped the tail: what waits is then dropped.
            Some(sender) if !self.waiting.is_empty() => _ = sender.reserve().await,
            _ => std::future::pending().await,
        }
        self.send_waiting();
    }
}

/// Returns the items as a stream. It fails if the driver is gone: the log has not ended.
fn items(receiver: mpsc::Receiver<Item>) -> BoxStream<'static, Result<TailItem, Error>> {
    let items = futures_util::stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Item::Read(item)) => {
                let rest = item.is_ok().then_some(receiver);
                Some((item, rest))
            }
            Some(Item::End) => None,
            None => Some((Err(Error::Unavailable("shared tail was closed".into())), None)),
        }
    });
    items.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(outbox: &mut Outbox) -> Tail {
        let (reply, tail) = oneshot::channel();
        outbox.begin(reply);
        outbox.opened(Position::START, [false; 2]);
        tail.await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn items_wait_for_a_slow_actor_and_keep_their_order() {
        let mut outbox = Outbox::default();
        let mut tail = open(&mut outbox).await;
        for _ in 0..ITEMS_MAX {
            outbox.deliver(TailItem::Resumed);
        }
        assert!(outbox.is_empty());
        outbox.deliver(TailItem::FollowUnavailable);
        outbox.end();
        assert!(!outbox.is_empty());
        for _ in 0..ITEMS_MAX {
            assert!(matches!(tail.items.next().await, Some(Ok(TailItem::Resumed))));
        }
        outbox.flush().await;
        assert!(matches!(tail.items.next().await, Some(Ok(TailItem::FollowUnavailable))));
        assert!(tail.items.next().await.is_none());
    }

    #[tokio::test]
    async fn tail_without_a_driver_has_not_ended() {
        let mut outbox = Outbox::default();
        let mut tail = open(&mut outbox).await;
        drop(outbox);
        assert!(matches!(tail.items.next().await, Some(Err(Error::Unavailable(_)))));
        assert!(tail.items.next().await.is_none());
    }

    #[tokio::test]
    async fn items_for_a_dropped_tail_do_not_wait() {
        let mut outbox = Outbox::default();
        let tail = open(&mut outbox).await;
        for _ in 0..ITEMS_MAX + 2 {
            outbox.deliver(TailItem::Resumed);
        }
        drop(tail);
        outbox.flush().await;
        assert!(outbox.is_empty());
    }
}
