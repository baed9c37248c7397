//! How actors open their live tails: at the platform, or through the fleet of gateways that shares them.

use std::fmt;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use serde::Serialize;

use super::ring::Ring;
use crate::exchange::gateway_id::GatewayId;
use crate::model::id::{LeaseId, Replica};
use crate::model::metrics::{Metrics, ReadKind};
use crate::model::position::Place;
use crate::model::quota::QuotaDivisor;
use crate::platform::{self, Platform, Tail, TailRequest};

mod driver;
mod outbox;
mod own_tail;
mod requests;
mod shared;
mod slot;
mod subscriptions;

pub(crate) use self::shared::SharedTails;

/// A source of live tails for the actors of a gateway.
pub(crate) trait Live: fmt::Debug + Send + Sync + 'static {
    /// Returns the source of one actor's tails. Dropping it ends what belongs to the actor.
    fn attach(&self, actor: AttachedActor) -> Box<dyn LiveTails>;

    /// Passes a request to publish to the driver of a replica's actor. Drops it if there is none.
    fn request_publish(&self, _lease: &LeaseId, _replica: &Replica, _ask: PublishAsk) {}

    /// Waits until everything has ended that belonged to actors. Called after they have ended.
    fn stop(&self) -> BoxFuture<'_, ()>;

    /// Returns the number of gateways that share quotas of owners.
    fn quota_divisor(&self) -> QuotaDivisor {
        QuotaDivisor::default()
    }

    /// Returns the state of the fleet; `None` without one.
    fn fleet(&self) -> Option<FleetView> {
        None
    }
}

/// The source of one actor's live tails.
pub(crate) trait LiveTails: Send + Sync {
    /// Opens a tail with `follow`, as [`Platform::tail`] does. The actor has dropped the tail before.
    fn open(&mut self, request: TailRequest) -> BoxFuture<'static, Result<Tail, platform::Error>>;
}

/// An actor, as its source of live tails sees it.
#[derive(Debug)]
pub(crate) struct AttachedActor {
    pub(crate) lease: LeaseId,
    pub(crate) replica: Replica,
    /// The ring that it writes to.
    pub(crate) ring: Arc<Ring>,
    /// Its users: it does not end while it has some.
    pub(crate) users: Arc<dyn Users>,
}

/// A request of another gateway to publish a replica.
#[derive(Debug)]
pub(crate) struct PublishAsk {
    /// The gateway that asks.
    pub(crate) sender: GatewayId,
    /// Where the log is to start; `None` = at its end.
    pub(crate) place: Option<Place>,
    /// The highest term that the gateway knows.
    pub(crate) term: u64,
    /// The subject of the answer.
    pub(crate) reply: String,
}

/// The count of what needs an actor.
pub(crate) trait Users: fmt::Debug + Send + Sync {
    /// Adds one. The actor may have ended already.
    fn add(&self);

    /// Removes one.
    fn remove(&self);
}

/// Keeps an actor from ending for lack of followers.
#[derive(Debug)]
pub(crate) struct KeepGuard(Arc<dyn Users>);

/// The live tails of a gateway without a fleet: the platform's.
#[derive(Clone, Debug)]
pub(crate) struct DirectTails {
    platform: Arc<dyn Platform>,
    metrics: Metrics,
}

/// The fleet, as one gateway sees it. Keys may be added, and are never removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FleetView {
    /// This gateway.
    pub gateway: String,
    /// Whether the bus can be used.
    pub usable: bool,
    /// Whether this gateway is shutting down.
    pub draining: bool,
    /// Gateways that are heard, this one included.
    pub gateways: usize,
    /// Followed replicas that are not in the list.
    pub left_out: usize,
    /// Followed replicas.
    pub replicas: Vec<FleetReplica>,
}

/// One replica that a gateway of a fleet follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FleetReplica {
    /// The lease.
    pub lease: String,
    /// The replica.
    pub replica: String,
    /// How this gateway gets its lines: the values of `leasemux_fleet_replicas`, or `idle`.
    pub role: &'static str,
    /// Since when, in seconds.
    pub role_seconds: u64,
    /// The publisher, if it is known; possibly this gateway.
    pub publisher: Option<String>,
    /// The publisher's term.
    pub term: Option<u64>,
    /// Number of the next frame.
    pub number: Option<u64>,
    /// Members of the publisher, as far as they are known.
    pub members: u32,
}

// === impl KeepGuard ===

impl KeepGuard {
    pub(super) fn new(users: Arc<dyn Users>) -> Self {
        users.add();
        Self(users)
    }
}

impl Drop for KeepGuard {
    fn drop(&mut self) {
        self.0.remove();
    }
}

// === impl DirectTails ===

impl DirectTails {
    pub(crate) fn new(platform: Arc<dyn Platform>, metrics: Metrics) -> Self {
        Self { platform, metrics }
    }
}

impl Live for DirectTails {
    fn attach(&self, _: AttachedActor) -> Box<dyn LiveTails> {
        Box::new(self.clone())
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl LiveTails for DirectTails {
    fn open(&mut self, request: TailRequest) -> BoxFuture<'static, Result<Tail, platform::Error>> {
        self.metrics.source_opens.of(ReadKind::Live).increment(1);
        let platform = Arc::clone(&self.platform);
        Box::pin(async move { platform.tail(request).await })
    }
}
