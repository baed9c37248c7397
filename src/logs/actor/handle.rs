//! An actor from outside: asking it for a place in its ring, and being the reason for it to live.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use metrics::Gauge;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::logs::ring::{Ring, RingReader};
use crate::model::metrics::GaugeGuard;

/// A running actor, as its registry knows it. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) mailbox: mpsc::Sender<Subscribe>,
    pub(super) ring: Weak<Ring>,
    pub(super) id: u64,
}

/// The only message: the answer is a place in the ring.
#[derive(Debug)]
pub(super) struct Subscribe {
    pub(super) reply: oneshot::Sender<Subscription>,
}

/// A place in the ring, and the reason for the actor to live.
#[derive(Debug)]
pub struct Subscription {
    /// The place.
    pub reader: RingReader,
    pub(super) _follower: Follower,
}

/// Counts as a follower for as long as it lives.
#[derive(Debug)]
pub(super) struct Follower {
    followers: Arc<Followers>,
    _gauge: GaugeGuard,
}

#[derive(Debug, Default)]
pub(super) struct Followers {
    count: AtomicUsize,
    left: Notify,
}

// === impl Handle ===

impl Handle {
    /// A place in the actor's ring; `None` if the actor has ended meanwhile. Waits while its mailbox is full.
    pub async fn subscribe(&self) -> Option<Subscription> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(Subscribe { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Its ring, if it is still there.
    pub fn ring(&self) -> Option<Arc<Ring>> {
        self.ring.upgrade()
    }

    /// Whether both are the same actor.
    pub fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

// === impl Followers ===

impl Followers {
    /// One more, counted by `gauge` too, until the answer is dropped.
    pub(super) fn add(self: &Arc<Self>, gauge: &Gauge) -> Follower {
        self.count.fetch_add(1, Ordering::AcqRel);
        Follower { followers: Arc::clone(self), _gauge: GaugeGuard::new(gauge) }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Waits until one has left. Nothing is lost if it is cancelled.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }
}

// === impl Follower ===

impl Drop for Follower {
    fn drop(&mut self) {
        self.followers.count.fetch_sub(1, Ordering::AcqRel);
        self.followers.left.notify_one();
    }
}
