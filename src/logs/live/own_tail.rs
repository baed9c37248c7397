//! A gateway's own read of a log, for its participant.

use std::fmt;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::platform::{Error, Platform, Tail, TailItem, TailRequest};

/// The own read of one replica's log. At most one is open.
pub(super) struct OwnTail {
    platform: Arc<dyn Platform>,
    /// For tails of replicas that the gateway does not publish.
    permits: Arc<Semaphore>,
    generation: u64,
    state: State,
}

/// A permit for a tail of a replica that the gateway does not publish.
type Permit = Option<OwnedSemaphorePermit>;

enum State {
    Closed,
    /// Waits for a permit; becomes `Opening`.
    Waiting(TailRequest, BoxFuture<'static, Permit>),
    /// Becomes `Open`, or `Closed` if it fails.
    Opening(BoxFuture<'static, Result<Tail, Error>>, Permit),
    /// Becomes `Closed` at the end of the log, or if it fails.
    Open(BoxStream<'static, Result<TailItem, Error>>, Permit),
}

/// News of the tail.
pub(super) enum OwnTailEvent {
    /// It is open; as in [`Tail`].
    Opened(crate::model::position::Position, [bool; 2]),
    Item(TailItem),
    Ended,
    Failed(Error),
}

// === impl OwnTail ===

impl OwnTail {
    pub(super) fn new(platform: Arc<dyn Platform>, permits: Arc<Semaphore>) -> Self {
        Self { platform, permits, generation: 0, state: State::Closed }
    }

    /// Opens a tail. Closes the one before. Unless the gateway publishes the replica, it waits for a permit.
    pub(super) fn open(&mut self, generation: u64, request: TailRequest, is_publisher: bool) {
        // The permit of the tail before is free first.
        self.close();
        self.generation = generation;
        self.state = if is_publisher {
            self.opening(request, None)
        } else {
            let permits = Arc::clone(&self.permits);
            // The semaphore is never closed.
            State::Waiting(request, Box::pin(async move { permits.acquire_owned().await.ok() }))
        };
    }

    pub(super) fn close(&mut self) {
        self.state = State::Closed;
    }

    /// The gateway publishes the replica from now on: the tail needs no permit.
    pub(super) fn release_permit(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => State::Closed,
            State::Waiting(request, _) => self.opening(request, None),
            State::Opening(opening, _) => State::Opening(opening, None),
            State::Open(items, _) => State::Open(items, None),
        };
    }

    /// The gateway no longer publishes the replica. The tail stays open even if no permit is free: to close it
    /// would delay lines.
    pub(super) fn take_permit(&mut self) {
        if let State::Opening(_, permit @ None) | State::Open(_, permit @ None) = &mut self.state {
            *permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        }
    }

    fn opening(&self, request: TailRequest, permit: Permit) -> State {
        let platform = Arc::clone(&self.platform);
        State::Opening(Box::pin(async move { platform.tail(request).await }), permit)
    }

    /// Waits for news of the tail with this generation; for ever if it is closed. Cancel safe.
    pub(super) async fn next(&mut self) -> (u64, OwnTailEvent) {
        if let State::Waiting(request, permit) = &mut self.state {
            let permit = permit.await;
            let request = request.clone();
            self.state = self.opening(request, permit);
        }
        let event = match &mut self.state {
            State::Closed | State::Waiting(..) => std::future::pending().await,
            State::Opening(opening, permit) => match opening.await {
                Ok(tail) => {
                    self.state = State::Open(tail.items, permit.take());
                    OwnTailEvent::Opened(tail.start, tail.unfinished)
                }
                Err(error) => OwnTailEvent::Failed(error),
            },
            State::Open(items, _) => match items.next().await {
                Some(Ok(item)) => OwnTailEvent::Item(item),
                Some(Err(error)) => OwnTailEvent::Failed(error),
                None => OwnTailEvent::Ended,
            },
        };
        if matches!(event, OwnTailEvent::Ended | OwnTailEvent::Failed(_)) {
            self.close();
        }
        (self.generation, event)
    }
}

impl fmt::Debug for OwnTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnTail").field("generation", &self.generation).finish_non_exhaustive()
    }
}
