//! The jobs of all leases: queued, running and remembered. Shared by the manager and its workers.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::SetOnce;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::job::{JobReplica, OutcomeSlot, ReplicaOutcome, RestartJob};
use super::{JobRequest, REMEMBERED_FOR, RequestError};
use crate::model::concurrency::ConcurrencyLimiter;
use crate::model::id::{LeaseId, Owner, Replica, RequestId};
use crate::model::metrics::Metrics;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::platform::Platform;

/// Most replicas in the jobs of one owner: more than the largest lease has, and one restart per second for
/// more than an hour.
const OWNER_REPLICAS_MAX: usize = 4_096;

/// Most replicas in the jobs of all owners: about 30 MB.
const REPLICAS_MAX: usize = 131_072;

/// Retry hint when one of these limits is reached. Jobs are forgotten after an hour, but some of them are
/// usually older.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Jobs by lease and by request id.
#[derive(Debug)]
pub(super) struct JobQueues {
    pub(super) platform: Arc<dyn Platform>,
    pub(super) metrics: Metrics,
    /// Cancelled at shutdown: workers finish the current replica only. A child of `abandon_current`, because
    /// abandoning implies that no further replica is begun.
    pub(super) finish_current: CancellationToken,
    /// Cancelled at the shutdown deadline: workers abandon the current replica.
    pub(super) abandon_current: CancellationToken,
    state: Mutex<State>,
    /// Count the replicas in jobs that run or are remembered: by owner, and all.
    owner_replicas: ConcurrencyLimiter<Owner>,
    all_replicas: ConcurrencyLimiter<()>,
}

#[derive(Debug, Default)]
struct State {
    /// A lease has an entry while it has a worker.
    queues: HashMap<LeaseId, Queue>,
    remembered: HashMap<(Owner, RequestId), Arc<RestartJob>>,
    /// When each remembered job expires, in order of time.
    expirations: VecDeque<(Instant, (Owner, RequestId))>,
}

/// The jobs of one lease.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<RestartJob>>,
    /// Open outcomes of the waiting and the running jobs. The next restart of a replica sets all of its
    /// slots.
    slots: HashMap<Replica, Vec<OutcomeSlot>>,
}

// === impl JobQueues ===

impl JobQueues {
    pub(super) fn new(platform: Arc<dyn Platform>, metrics: Metrics) -> Self {
        let abandon_current = CancellationToken::new();
        Self {
            platform,
            metrics,
            finish_current: abandon_current.child_token(),
            abandon_current,
            state: Mutex::default(),
            owner_replicas: ConcurrencyLimiter::default(),
            all_replicas: ConcurrencyLimiter::default(),
        }
    }

    /// Returns the remembered job of `request`'s id.
    pub(super) fn find(&self, request: &JobRequest) -> Result<Option<Arc<RestartJob>>, RequestError> {
        let mut state = self.state.lock();
        state.expire(Instant::now());
        state.find(request)
    }

    /// Adds a job with `replicas`, some of which may already have an outcome. Returns it, and whether its
    /// lease needs a worker.
    pub(super) fn enqueue(
        &self,
        request: JobRequest,
        replicas: Vec<(Replica, Option<ReplicaOutcome>)>,
    ) -> Result<(Arc<RestartJob>, bool), RequestError> {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.expire(now);
        if let Some(job) = state.find(&request)? {
            return Ok((job, false));
        }
        if self.finish_current.is_cancelled() {
            return Err(RequestError::ShuttingDown);
        }
        // A job without replicas is remembered too.
        let (owner, count) = (request.lease.owner(), replicas.len().max(1));
        let exceeded = |subject, limit: usize| {
            let (quota, retry_after) = (Quota::RestartsRemembered, Some(RETRY_AFTER));
            RequestError::QuotaExceeded(Exceeded { quota, subject, limit: limit as u64, retry_after })
        };
        let of_owner = self.owner_replicas.hold_many(owner, count, OWNER_REPLICAS_MAX);
        let of_owner = of_owner.ok_or_else(|| exceeded(Subject::Owner(owner.clone()), OWNER_REPLICAS_MAX))?;
        let of_all = self.all_replicas.hold_many(&(), count, REPLICAS_MAX);
        let of_all = of_all.ok_or_else(|| exceeded(Subject::Gateway, REPLICAS_MAX))?;
        let (lease, id) = (request.lease.clone(), request.id.clone());
        let queue = state.queues.entry(lease.clone());
        let needs_worker = matches!(queue, Entry::Vacant(_));
        let queue = queue.or_default();
        let replicas = replicas.into_iter().map(|(replica, outcome)| match outcome {
            None => {
                let slot = OutcomeSlot::new(SetOnce::new());
                queue.slots.entry(replica.clone()).or_default().push(Arc::clone(&slot));
                JobReplica { replica, slot }
            }
            Some(outcome) => JobReplica { replica, slot: OutcomeSlot::new(SetOnce::new_with(Some(outcome))) },
        });
        let job =
            Arc::new(RestartJob { request, replicas: replicas.collect(), _permits: (of_owner, of_all) });
        queue.waiting.push_back(Arc::clone(&job));
        if let Some(id) = id {
            let key = (lease.owner().clone(), id);
            state.remembered.insert(key.clone(), Arc::clone(&job));
            state.expirations.push_back((now + REMEMBERED_FOR, key));
        }
        Ok((job, needs_worker))
    }

    /// Removes and returns the next job of `lease`. After `None` the lease has no queue, and its next job
    /// needs a new worker.
    pub(super) fn next_job(&self, lease: &LeaseId) -> Option<Arc<RestartJob>> {
        let mut state = self.state.lock();
        let queue = state.queues.get_mut(lease)?;
        let next = queue.waiting.pop_front();
        if next.is_none() {
            state.queues.remove(lease);
        }
        next
    }

    /// Sets the outcome of a restarted replica in every job that waits for it.
    pub(super) fn set_outcome(&self, lease: &LeaseId, replica: &Replica, outcome: &ReplicaOutcome) {
        let slots = {
            let mut state = self.state.lock();
            state.queues.get_mut(lease).and_then(|queue| queue.slots.remove(replica))
        };
        set(slots.into_iter().flatten(), outcome);
    }

    /// Sets the outcome of a replica in one job only. Other jobs may still restart it.
    pub(super) fn set_outcome_of(&self, lease: &LeaseId, replica: &JobReplica, outcome: &ReplicaOutcome) {
        if let Some(queue) = self.state.lock().queues.get_mut(lease)
            && let Entry::Occupied(mut slots) = queue.slots.entry(replica.replica.clone())
        {
            slots.get_mut().retain(|slot| !Arc::ptr_eq(slot, &replica.slot));
            if slots.get().is_empty() {
                slots.remove();
            }
        }
        set([Arc::clone(&replica.slot)], outcome);
    }

    /// Sets all open outcomes of `lease` to [`ReplicaOutcome::Abandoned`] and removes its queue.
    pub(super) fn abandon(&self, lease: &LeaseId) {
        let queue = self.state.lock().queues.remove(lease);
        let slots = queue.into_iter().flat_map(|queue| queue.slots.into_values());
        set(slots.flatten(), &ReplicaOutcome::Abandoned);
    }
}

// === impl State ===

impl State {
    fn find(&self, request: &JobRequest) -> Result<Option<Arc<RestartJob>>, RequestError> {
        let Some(id) = &request.id else {
            return Ok(None);
        };
        match self.remembered.get(&(request.lease.owner().clone(), id.clone())) {
            // Another gateway may have continued the job since, and this gateway may continue it now.
            Some(job) if job.is_abandoned() => Ok(None),
            Some(job) if job.request == *request => Ok(Some(Arc::clone(job))),
            Some(_) => Err(RequestError::RequestIdReused),
            None => Ok(None),
        }
    }

    /// Forgets expired jobs that are finished.
    fn expire(&mut self, now: Instant) {
        while self.expirations.front().is_some_and(|(at, _)| *at <= now)
            && let Some((at, key)) = self.expirations.pop_front()
        {
            if self.remembered.get(&key).is_some_and(|job| !job.is_finished()) {
                self.expirations.push_back((at.max(now) + REMEMBERED_FOR, key));
            } else {
                self.remembered.remove(&key);
            }
        }
    }
}

fn set(slots: impl IntoIterator<Item = OutcomeSlot>, outcome: &ReplicaOutcome) {
    for slot in slots {
        // Never set twice: a slot is removed from the queue before it is set.
        let _ = slot.set(outcome.clone());
    }
}
