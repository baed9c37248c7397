//! Which actor serves a replica: found if it runs, started if not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::{DashMap, Entry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::actor::{self, ActorContext, Handle, Subscription};
use super::lag::{LATE, LagReport};
use crate::model::id::{LeaseId, Replica};
use crate::model::view::LeaseView;

/// The registry of running actors. It owns them: dropping it ends them all. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct ActorRegistry(Arc<Shared>);

type Key = (LeaseId, Replica);

#[derive(Debug)]
struct Shared {
    world: ActorContext,
    /// At most one per replica that somebody follows, and so bounded by the streams.
    actors: Arc<DashMap<Key, Handle>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    next_id: AtomicU64,
}

/// The gateway is ending: no new actor is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// Takes an actor out of the registry when it ends, however it ends.
struct Registration {
    actors: Arc<DashMap<Key, Handle>>,
    key: Key,
    handle: Handle,
}

// === impl ActorRegistry ===

impl ActorRegistry {
    /// An empty registry.
    pub fn new(world: ActorContext) -> Self {
        Self(Arc::new(Shared {
            world,
            actors: Arc::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            next_id: AtomicU64::new(0),
        }))
    }

    /// A place in the ring of `replica`'s actor.
    ///
    /// # Errors
    /// [`Stopped`] once [`ActorRegistry::stop`] was called.
    pub async fn subscribe(
        &self,
        lease: &LeaseId,
        replica: &Replica,
        view: &watch::Receiver<Arc<LeaseView>>,
    ) -> Result<Subscription, Stopped> {
        let key = (lease.clone(), replica.clone());
        loop {
            let handle = self.handle(&key, view)?;
            if let Some(subscription) = handle.subscribe().await {
                return Ok(subscription);
            }
            // It ended in between; its successor must not be removed in its stead.
            self.0.actors.remove_if(&key, |_, known| known.is(&handle));
        }
    }

    /// What actors, and reads beside them, know of the world.
    pub fn world(&self) -> &ActorContext {
        &self.0.world
    }

    /// Who lags now, of all followers of all actors; and the `most` worst of them.
    pub fn lagging(&self, most: usize) -> LagReport {
        // The registry is not held while rings are looked into.
        let rings: Vec<_> = self
            .0
            .actors
            .iter()
            .filter_map(|actor| Some((actor.key().clone(), actor.value().ring()?)))
            .collect();
        let mut lagging = LagReport::default();
        for ((lease, replica), ring) in rings {
            ring.for_each_lagging(LATE, |behind| lagging.add(most, &lease, &replica, behind));
        }
        lagging.keep(most);
        lagging
    }

    /// Whether [`ActorRegistry::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.0.cancel.is_cancelled()
    }

    /// Ends all actors and waits until they have ended. Who follows them is told what they had.
    pub async fn stop(&self) {
        self.0.cancel.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn handle(&self, key: &Key, view: &watch::Receiver<Arc<LeaseView>>) -> Result<Handle, Stopped> {
        let shared = &self.0;
        if self.is_stopped() {
            return Err(Stopped);
        }
        match shared.actors.entry(key.clone()) {
            Entry::Occupied(known) => Ok(known.get().clone()),
            Entry::Vacant(place) => {
                let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
                let (lease, replica) = key.clone();
                let cancel = shared.cancel.child_token();
                let (handle, life) =
                    actor::new(shared.world.clone(), lease, replica, view.clone(), id, cancel);
                let registration = Registration {
                    actors: Arc::clone(&shared.actors),
                    key: key.clone(),
                    handle: handle.clone(),
                };
                place.insert(handle.clone());
                shared.tasks.spawn(async move {
                    let _registration = registration;
                    life.await;
                });
                Ok(handle)
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.actors.remove_if(&self.key, |_, known| known.is(&self.handle));
    }
}
