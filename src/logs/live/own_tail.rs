//! A gateway's own read of a log, for its participant.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::exchange::direct_tails::{DirectTailPermit, DirectTails};
use crate::platform::{Error, Platform, Tail, TailItem, TailRequest};

/// Time after which a tail gives its permit to others, if any wait. Each turn opens a log again, which reads
/// its newest file.
const TURN: Duration = Duration::from_secs(30);

/// The own read of one replica's log. At most one is open.
pub(super) struct OwnTail {
    platform: Arc<dyn Platform>,
    permits: DirectTails,
    generation: u64,
    state: State,
}

/// A publisher's tail needs no permit.
type Permit = Option<DirectTailPermit>;

enum State {
    Closed,
    /// Waits for a permit; becomes `Opening`.
    Waiting(TailRequest, BoxFuture<'static, Permit>),
    /// Becomes `Open`, or `Closed` if it fails.
    Opening(BoxFuture<'static, Result<Tail, Error>>, Permit),
    /// Becomes `Closed` at the end of the log, or if it fails.
    Open(BoxStream<'static, Result<TailItem, Error>>, Turn),
}

/// The permit of an open tail, and the end of its turn.
struct Turn {
    permit: Permit,
    end: Instant,
}

/// News of the tail.
pub(super) enum OwnTailEvent {
    /// It is open; as in [`Tail`].
    Opened(crate::model::position::Position, [bool; 2]),
    Item(TailItem),
    /// Others have waited for its permit for long. It stays open.
    TurnEnded,
    Ended,
    Failed(Error),
}

// === impl OwnTail ===

impl OwnTail {
    pub(super) fn new(platform: Arc<dyn Platform>, permits: DirectTails) -> Self {
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
            let permits = self.permits.clone();
            State::Waiting(request, Box::pin(async move { permits.acquire().await }))
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
            State::Open(items, turn) => State::Open(items, Turn { permit: None, ..turn }),
        };
    }

    /// The gateway no longer publishes the replica. The tail stays open even if no permit is free: to close it
    /// would delay lines.
    pub(super) fn take_permit(&mut self) {
        if let State::Opening(_, permit @ None) | State::Open(_, Turn { permit: permit @ None, .. }) =
            &mut self.state
        {
            *permit = self.permits.try_acquire();
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
                    let turn = Turn { permit: permit.take(), end: Instant::now() + TURN };
                    self.state = State::Open(tail.items, turn);
                    OwnTailEvent::Opened(tail.start, tail.unfinished)
                }
                Err(error) => OwnTailEvent::Failed(error),
            },
            State::Open(items, turn) => tokio::select! {
                item = items.next() => match item {
                    Some(Ok(item)) => OwnTailEvent::Item(item),
                    Some(Err(error)) => OwnTailEvent::Failed(error),
                    None => OwnTailEvent::Ended,
                },
                () = turn.until_others_wait(&self.permits) => OwnTailEvent::TurnEnded,
            },
        };
        if matches!(event, OwnTailEvent::Ended | OwnTailEvent::Failed(_)) {
            self.close();
        }
        (self.generation, event)
    }
}

// === impl Turn ===

impl Turn {
    /// Waits until the turn has ended and others wait for the permit. Cancel safe.
    async fn until_others_wait(&mut self, permits: &DirectTails) {
        if self.permit.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep_until(self.end).await;
            self.end = Instant::now() + TURN;
            if permits.has_waiting() {
                return;
            }
        }
    }
}

impl fmt::Debug for OwnTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnTail").field("generation", &self.generation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::sync::watch;

    use super::*;
    use crate::exchange::direct_tails::DirectTails;
    use crate::model::id::{Address, Instance, LeaseId, Replica};
    use crate::model::position::Position;
    use crate::model::view::LeaseView;
    use crate::platform::{ReadFrom, RestartRequest};

    /// A platform with silent logs.
    #[derive(Debug)]
    struct Silent;

    impl Platform for Silent {
        fn name(&self) -> &'static str {
            "silent"
        }

        fn watch(&self, _: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
            Box::pin(async { Err(Error::NotFound("no lease".into())) })
        }

        fn tail(&self, _: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
            let items = Box::pin(futures_util::stream::pending());
            Box::pin(async { Ok(Tail { start: Position::START, unfinished: [false; 2], items }) })
        }

        fn restart(&self, _: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
            Box::pin(async { Err(Error::NotFound("no replica".into())) })
        }
    }

    fn request() -> TailRequest {
        let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        TailRequest {
            lease: LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap(),
            replica: Replica { service: "web".parse().unwrap(), index: 0 },
            instance: Instance::new("uid", "web", 0).unwrap(),
            from: ReadFrom::Start,
            lines_after: None,
            oldest_read: None,
            is_next_run: false,
            follow: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn turn_ends_only_while_others_wait() {
        let permits = DirectTails::new(1);
        let tail = || OwnTail::new(Arc::new(Silent), permits.clone());
        let (mut first, mut second) = (tail(), tail());
        first.open(1, request(), false);
        assert!(matches!(first.next().await, (1, OwnTailEvent::Opened(..))));
        // Nobody waits.
        assert!(tokio::time::timeout(10 * TURN, first.next()).await.is_err());
        second.open(1, request(), false);
        let mut opens = pin!(second.next());
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut opens).await.is_err());
        let (generation, event) = tokio::time::timeout(2 * TURN, first.next()).await.unwrap();
        assert!(matches!((generation, event), (1, OwnTailEvent::TurnEnded)));
        first.open(2, request(), false);
        assert!(matches!(opens.await, (1, OwnTailEvent::Opened(..))));
    }
}
