//! The live tails of a gateway in a fleet: one driver per followed replica.

use std::sync::Arc;

use dashmap::DashMap;
use futures_core::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::driver::{Driver, Open};
use super::slot::{Slot, role_label};
use super::{AttachedActor, FleetReplica, FleetView, Live, LiveTails, PublishAsk};
use crate::exchange::fleet::Fleet;
use crate::exchange::participant::Status;
use crate::model::id::{LeaseId, Replica};
use crate::model::label::LabelValue as _;
use crate::model::metrics::{FleetRole, Metrics};
use crate::model::quota::QuotaDivisor;
use crate::platform::{self, Platform, Tail, TailRequest};

/// Most replicas in a view: more than a person reads, and some hundred kilobytes.
const VIEW_REPLICAS_MAX: usize = 1_000;

/// The live tails of a gateway in a fleet.
#[derive(Debug)]
pub(crate) struct SharedTails {
    fleet: Fleet,
    platform: Arc<dyn Platform>,
    metrics: Metrics,
    /// The newest driver of each followed replica: at most one per actor.
    slots: Arc<DashMap<Key, Arc<Slot>>>,
    tasks: TaskTracker,
}

type Key = (LeaseId, Replica);

/// The source of one actor's tails: its driver.
struct SharedTail {
    opens: mpsc::Sender<Open>,
    platform: Arc<dyn Platform>,
}

// === impl SharedTails ===

impl SharedTails {
    pub(crate) fn new(fleet: Fleet, platform: Arc<dyn Platform>, metrics: Metrics) -> Self {
        Self { fleet, platform, metrics, slots: Arc::default(), tasks: TaskTracker::new() }
    }
}

impl Live for SharedTails {
    fn attach(&self, actor: AttachedActor) -> Box<dyn LiveTails> {
        let key = (actor.lease.clone(), actor.replica.clone());
        let (slot, asks) = Slot::new();
        let slot = Arc::new(slot);
        let driver = Driver::new(
            self.fleet.clone(),
            actor,
            Arc::clone(&self.platform),
            self.metrics.clone(),
            Arc::clone(&slot),
        );
        // An actor waits for one tail at a time.
        let (sender, opens) = mpsc::channel(1);
        let previous = self.slots.insert(key.clone(), Arc::clone(&slot));
        let slots = Arc::clone(&self.slots);
        self.tasks.spawn(async move {
            let ended = slot.ended.clone().drop_guard();
            // One participant per replica at a time: its last messages come before the first ones of the next.
            if let Some(previous) = previous {
                previous.ended.cancelled().await;
            }
            driver.run(opens, asks).await;
            slots.remove_if(&key, |_, current| Arc::ptr_eq(current, &slot));
            drop(ended);
        });
        Box::new(SharedTail { opens: sender, platform: Arc::clone(&self.platform) })
    }

    fn request_publish(&self, lease: &LeaseId, replica: &Replica, ask: PublishAsk) {
        if let Some(slot) = self.slots.get(&(lease.clone(), replica.clone())) {
            slot.request_publish(ask);
        }
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.tasks.close();
        Box::pin(self.tasks.wait())
    }

    fn quota_divisor(&self) -> QuotaDivisor {
        self.fleet.quota_divisor()
    }

    fn fleet(&self) -> Option<FleetView> {
        let state = *self.fleet.state().borrow();
        // Collected first: no shard of the map is locked for long.
        let slots = self.slots.iter().map(|slot| (slot.key().clone(), slot.status()));
        let slots: Vec<_> = slots.collect();
        let mut replicas: Vec<FleetReplica> = slots.into_iter().map(row).collect();
        replicas.sort_by(|one, other| (&one.lease, &one.replica).cmp(&(&other.lease, &other.replica)));
        let left_out = replicas.len().saturating_sub(VIEW_REPLICAS_MAX);
        replicas.truncate(VIEW_REPLICAS_MAX);
        Some(FleetView {
            gateway: self.fleet.gateway().to_string(),
            usable: state.usable,
            draining: state.draining,
            gateways: self.fleet.gateways(),
            left_out,
            replicas,
        })
    }
}

// === impl SharedTail ===

impl LiveTails for SharedTail {
    fn open(&mut self, request: TailRequest) -> BoxFuture<'static, Result<Tail, platform::Error>> {
        let (opens, platform) = (self.opens.clone(), Arc::clone(&self.platform));
        Box::pin(async move {
            let (reply, tail) = oneshot::channel();
            if let Err(unsent) = opens.send(Open { request, reply }).await {
                // The driver has panicked. The followers of this replica go on without it.
                return platform.tail(unsent.0.request).await;
            }
            tail.await.unwrap_or_else(|_| Err(platform::Error::Unavailable("shared tail was closed".into())))
        })
    }
}

fn row(((lease, replica), (status, since)): (Key, (Status, Instant))) -> FleetReplica {
    FleetReplica {
        lease: lease.to_string(),
        replica: replica.to_string(),
        role: role_label(status.role).map_or("idle", FleetRole::label),
        role_seconds: since.elapsed().as_secs(),
        publisher: status.publisher.map(|publisher| publisher.to_string()),
        term: status.rank.map(|rank| rank.term),
        number: status.number,
        members: status.members,
    }
}
