//! The registry of actors: finds the actor of a replica, or starts one.

use std::sync::Arc;

use dashmap::{DashMap, Entry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::actor::{self, ActorContext, Handle, Subscription};
use super::live::{DirectTails, FleetView, Live, PublishAsk, SharedTails};
use super::ring::LagReport;
use crate::exchange::fleet::Fleet;
use crate::model::id::{LeaseId, Replica};
use crate::model::quota::QuotaDivisor;
use crate::model::view::LeaseView;

/// The running actors. Owns their tasks: dropping the last clone ends them all. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ActorRegistry(Arc<Shared>);

type Key = (LeaseId, Replica);

#[derive(Debug)]
struct Shared {
    context: ActorContext,
    /// The source of live tails.
    live: Box<dyn Live>,
    /// At most one per followed replica, so bounded by the number of streams.
    actors: Arc<DashMap<Key, Handle>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// Removes an actor from the registry when its task ends, for whatever reason.
struct Registration {
    actors: Arc<DashMap<Key, Handle>>,
    key: Key,
    handle: Handle,
}

// === impl ActorRegistry ===

impl ActorRegistry {
    /// Creates an empty registry. Actors tail logs at the platform.
    pub fn new(context: ActorContext) -> Self {
        let live = DirectTails::new(Arc::clone(&context.platform), context.metrics.clone());
        Self::with_live(context, Box::new(live))
    }

    /// Creates an empty registry of a gateway in a fleet. Actors share their live tails with other gateways.
    pub fn in_fleet(context: ActorContext, fleet: Fleet) -> Self {
        let live = SharedTails::new(fleet, Arc::clone(&context.platform), context.metrics.clone());
        Self::with_live(context, Box::new(live))
    }

    fn with_live(context: ActorContext, live: Box<dyn Live>) -> Self {
        Self(Arc::new(Shared {
            context,
            live,
            actors: Arc::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        }))
    }

    /// Subscribes to the actor of `replica`; starts it at once if it does not run, so that its ring exists
    /// when this returns. The future returns `None` after [`ActorRegistry::stop`].
    pub(crate) fn subscribe(
        &self,
        lease: &LeaseId,
        replica: &Replica,
        view: &watch::Receiver<Arc<LeaseView>>,
    ) -> impl Future<Output = Option<Subscription>> + Send + 'static {
        let (actors, view) = (self.clone(), view.clone());
        let key = (lease.clone(), replica.clone());
        let mut started = self.handle(&key, &view);
        async move {
            loop {
                let handle = started?;
                if let Some(subscription) = handle.subscribe().await {
                    return Some(subscription);
                }
                // The actor ended before it replied. Compare the identity: another caller may have started
                // its successor by now.
                actors.0.actors.remove_if(&key, |_, current| current.is_same_actor(&handle));
                started = actors.handle(&key, &view);
            }
        }
    }

    /// Passes a request to publish to the actor of `replica`, if it runs.
    pub(crate) fn request_publish(&self, lease: &LeaseId, replica: &Replica, ask: PublishAsk) {
        self.0.live.request_publish(lease, replica, ask);
    }

    /// Whether the actor of `replica` runs.
    pub(crate) fn runs(&self, lease: &LeaseId, replica: &Replica) -> bool {
        self.0.actors.contains_key(&(lease.clone(), replica.clone()))
    }

    pub(crate) fn context(&self) -> &ActorContext {
        &self.0.context
    }

    /// Counts the lagging followers of all actors, and describes the `max` worst.
    pub fn lagging(&self, max: usize) -> LagReport {
        // Collected first: no shard of the map is locked while a ring is.
        let rings = self.0.actors.iter().filter_map(|actor| Some((actor.key().0.clone(), actor.ring()?)));
        let rings: Vec<_> = rings.collect();
        let mut report = LagReport::default();
        for (lease, ring) in rings {
            ring.report_lagging(&lease, max, &mut report);
        }
        report.keep_worst(max);
        report
    }

    /// Returns the number of gateways that share quotas of owners.
    pub(crate) fn quota_divisor(&self) -> QuotaDivisor {
        self.0.live.quota_divisor()
    }

    /// Returns the state of the fleet; `None` without one.
    pub fn fleet(&self) -> Option<FleetView> {
        self.0.live.fleet()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.cancel.is_cancelled()
    }

    /// Ends all actors and waits for their tasks. Followers still receive the entries in the rings.
    pub async fn stop(&self) {
        self.0.cancel.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.live.stop().await;
    }

    fn handle(&self, key: &Key, view: &watch::Receiver<Arc<LeaseView>>) -> Option<Handle> {
        let shared = &self.0;
        if self.is_stopped() {
            return None;
        }
        // The entry keeps its shard locked, so that two callers cannot both start an actor.
        match shared.actors.entry(key.clone()) {
            Entry::Occupied(running) => Some(running.get().clone()),
            Entry::Vacant(vacant) => {
                let (lease, replica) = key.clone();
                let cancel = shared.cancel.child_token();
                let live = &*shared.live;
                let context = shared.context.clone();
                let (handle, run) = actor::new(context, live, lease, replica, view.clone(), cancel);
                let registration = Registration {
                    actors: Arc::clone(&shared.actors),
                    key: key.clone(),
                    handle: handle.clone(),
                };
                vacant.insert(handle.clone());
                shared.tasks.spawn(async move {
                    let _registration = registration;
                    run.await;
                });
                Some(handle)
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
        // Compare the identity: `subscribe` may have replaced this actor by its successor.
        self.actors.remove_if(&self.key, |_, current| current.is_same_actor(&self.handle));
    }
}
