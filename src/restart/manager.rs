//! Which restarts are under way, and which are remembered.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::SetOnce;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::job::{JobReplica, OutcomeSlot, ReplicaOutcome, RestartJob};
use super::record::RestartRecord;
use super::worker::RestartWorker;
use super::{REMEMBERED_FOR, Request};
use crate::model::id::{LeaseId, Owner, Replica};
use crate::model::metrics::Metrics;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::request_id::RequestId;
use crate::model::view::LeaseView;
use crate::platform::Platform;

/// Who keeps the turns must answer by then: a caller waits for it.
const ASK_PATIENCE: Duration = Duration::from_secs(10);

/// Replicas in all rounds of one owner that are under way or remembered: more than the largest lease has, and one restart each
/// second for more than an hour.
const OWNER_REPLICAS_MAX: usize = 4_096;

/// The same of all owners: some 30 MB.
const REPLICAS_MAX: usize = 131_072;

/// What a caller who has used that up waits for is the end of an hour; there may be room sooner.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The registry of restarts. It owns the tasks that work them off: dropping it ends them. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct RestartManager {
    shared: Arc<Shared>,
    _alive: Arc<DropGuard>,
}

/// Why a restart was not taken up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The request id was used within the last hour for another lease or other replicas.
    IdReused,
    /// As much is remembered for the owner, or for all, as may be.
    Full(Exceeded),
    /// Other gateways cannot be asked; why, for the log.
    Alone(String),
    /// The gateway is ending.
    Stopped,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) platform: Arc<dyn Platform>,
    pub(super) metrics: Metrics,
    state: Mutex<State>,
    held: Arc<Mutex<Held>>,
    tasks: TaskTracker,
    /// The replica in hand is the last one.
    pub(super) closing: CancellationToken,
    /// Not even that.
    pub(super) closed: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// Each has a task that works it off.
    queues: HashMap<LeaseId, Queue>,
    remembered: HashMap<(Owner, RequestId), Arc<RestartJob>>,
    /// When each may be forgotten, the oldest first.
    ends: VecDeque<(Instant, (Owner, RequestId))>,
}

/// The restarts of one lease.
#[derive(Debug, Default)]
struct Queue {
    /// Rounds that have not begun.
    waiting: VecDeque<Arc<RestartJob>>,
    /// The replicas of all rounds that are under way or waiting, each with where its next verdict is to be put.
    cells: HashMap<Replica, Vec<OutcomeSlot>>,
}

/// How many replicas there are in rounds.
#[derive(Debug, Default)]
struct Held {
    all: usize,
    owners: HashMap<Owner, usize>,
}

/// Holds so many for as long as it lives.
#[derive(Debug)]
pub(super) struct Share {
    held: Arc<Mutex<Held>>,
    owner: Owner,
    replicas: usize,
}

// === impl RestartManager ===

impl RestartManager {
    /// Nothing is under way yet.
    pub fn new(platform: Arc<dyn Platform>, metrics: Metrics) -> Self {
        let closed = CancellationToken::new();
        let alive = Arc::new(closed.clone().drop_guard());
        let shared = Shared {
            platform,
            metrics,
            state: Mutex::default(),
            held: Arc::default(),
            tasks: TaskTracker::new(),
            closing: closed.child_token(),
            closed,
        };
        Self { shared: Arc::new(shared), _alive: alive }
    }

    /// The round of an earlier call with the same id, within the hour.
    ///
    /// # Errors
    /// [`Rejection::IdReused`] if that call was about something else.
    pub fn known(&self, request: &Request) -> Result<Option<Arc<RestartJob>>, Rejection> {
        let mut state = self.shared.state();
        state.forget(Instant::now());
        state.known(request)
    }

    /// The same of calls to other gateways of the platform: is taken up here if it is found. What has come of it there is its verdict
    /// here; what has not is waited for, or restarted here if the other gateway does not go on.
    ///
    /// # Errors
    /// [`Rejection::Alone`] if they cannot be asked: nothing can be restarted now. Otherwise see [`Rejection`].
    pub async fn adopt_remote(&self, request: &Request) -> Result<Option<Arc<RestartJob>>, Rejection> {
        let Some(turns) = self.shared.platform.turns() else {
            return Ok(None);
        };
        let asked = tokio::time::timeout(ASK_PATIENCE, turns.payload(&request.lease)).await;
        let note = match asked {
            Ok(Ok(note)) => note,
            Ok(Err(error)) => return Err(Rejection::Alone(error.to_string())),
            Err(_) => return Err(Rejection::Alone(format!("no answer within {ASK_PATIENCE:?}"))),
        };
        let ledger = RestartRecord::read(&note).unwrap_or_default();
        let Some(call) = request.id.as_ref().and_then(|id| ledger.call(id)) else {
            return Ok(None);
        };
        if !call.is(request) {
            return Err(Rejection::IdReused);
        }
        self.enqueue(request.clone(), call.verdicts().collect()).map(Some)
    }

    /// Takes up a restart of what `request` wants of `view`: behind all that is under way in its lease, and joining in the verdict
    /// on replicas that are under way, or are in the meantime. If the same call was made before, it is that one.
    ///
    /// # Errors
    /// See [`Rejection`].
    pub fn begin(&self, request: Request, view: &LeaseView) -> Result<Arc<RestartJob>, Rejection> {
        let replicas = view.select(&request.filter).map(|(replica, _)| (replica, None)).collect();
        self.enqueue(request, replicas)
    }

    fn enqueue(
        &self,
        request: Request,
        replicas: Vec<(Replica, Option<ReplicaOutcome>)>,
    ) -> Result<Arc<RestartJob>, Rejection> {
        let shared = &self.shared;
        let mut state = shared.state();
        let now = Instant::now();
        state.forget(now);
        if let Some(known) = state.known(&request)? {
            return Ok(known);
        }
        if shared.closing.is_cancelled() {
            return Err(Rejection::Stopped);
        }
        // One that is about no replica is held as well.
        let share = Share::take(&shared.held, request.lease.owner(), replicas.len().max(1))?;
        let (lease, name) = (request.lease.clone(), request.id.clone());
        let queue = state.queues.entry(lease.clone());
        let is_idle = matches!(queue, Entry::Vacant(_));
        let queue = queue.or_default();
        let parts = replicas.into_iter().map(|(replica, verdict)| match verdict {
            None => queue.part(replica),
            Some(verdict) => JobReplica { replica, cell: OutcomeSlot::new(SetOnce::new_with(Some(verdict))) },
        });
        let round = Arc::new(RestartJob { request, parts: parts.collect(), _share: share });
        queue.waiting.push_back(Arc::clone(&round));
        if let Some(name) = name {
            let key = (lease.owner().clone(), name);
            state.remembered.insert(key.clone(), Arc::clone(&round));
            state.ends.push_back((now + REMEMBERED_FOR, key));
        }
        drop(state);
        if is_idle {
            shared.tasks.spawn(RestartWorker::new(Arc::clone(shared), lease).run());
        }
        Ok(round)
    }

    /// The end: nothing more is taken up; of each lease the replica in hand is seen to its verdict, if that takes no longer than
    /// `deadline`, and the others are not touched. Resolves when all rounds are over.
    pub async fn finish(&self, deadline: Duration) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(deadline, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(?deadline, "restarts were not over in time; what comes of them is not waited for");
        }
        self.shared.closed.cancel();
        self.shared.tasks.wait().await;
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next round of `lease`; `None`: there is none, and the next one that comes needs a task of its own.
    pub(super) fn next_round(&self, lease: &LeaseId) -> Option<Arc<RestartJob>> {
        let mut state = self.state();
        let queue = state.queues.get_mut(lease)?;
        let next = queue.waiting.pop_front();
        if next.is_none() {
            state.queues.remove(lease);
        }
        next
    }

    /// Puts down the verdict on a replica that was not left alone: for every round that has been waiting for one by now.
    pub(super) fn judge(&self, lease: &LeaseId, replica: &Replica, verdict: &ReplicaOutcome) {
        let mut state = self.state();
        let cells = state.queues.get_mut(lease).and_then(|queue| queue.cells.remove(replica));
        drop(state);
        set(cells.into_iter().flatten(), verdict);
    }

    /// Puts down that a round leaves a replica alone. Others may still attempt it.
    pub(super) fn leave(&self, lease: &LeaseId, part: &JobReplica, verdict: &ReplicaOutcome) {
        if let Some(queue) = self.state().queues.get_mut(lease)
            && let Entry::Occupied(mut cells) = queue.cells.entry(part.replica.clone())
        {
            cells.get_mut().retain(|cell| !Arc::ptr_eq(cell, &part.cell));
            if cells.get().is_empty() {
                cells.remove();
            }
        }
        set([Arc::clone(&part.cell)], verdict);
    }

    /// Gives up all rounds of `lease`: there will be no other verdict.
    pub(super) fn abandon(&self, lease: &LeaseId) {
        let queue = self.state().queues.remove(lease);
        let cells = queue.into_iter().flat_map(|queue| queue.cells.into_values());
        set(cells.flatten(), &ReplicaOutcome::Abandoned);
    }
}

// === impl State ===

impl State {
    fn known(&self, request: &Request) -> Result<Option<Arc<RestartJob>>, Rejection> {
        let Some(id) = &request.id else {
            return Ok(None);
        };
        let key = (request.lease.owner().clone(), id.clone());
        match self.remembered.get(&key) {
            // Another gateway may have gone on with it, and this one may now.
            Some(round) if round.is_given_up() => Ok(None),
            Some(round) if round.request == *request => Ok(Some(Arc::clone(round))),
            Some(_) => Err(Rejection::IdReused),
            None => Ok(None),
        }
    }

    /// Forgets what is old enough, but nothing that is still under way.
    fn forget(&mut self, now: Instant) {
        while self.ends.front().is_some_and(|(end, _)| *end <= now)
            && let Some((end, key)) = self.ends.pop_front()
        {
            if self.remembered.get(&key).is_some_and(|round| !round.is_over()) {
                self.ends.push_back((end.max(now) + REMEMBERED_FOR, key));
            } else {
                self.remembered.remove(&key);
            }
        }
    }
}

// === impl Queue ===

impl Queue {
    fn part(&mut self, replica: Replica) -> JobReplica {
        let cell = OutcomeSlot::new(SetOnce::new());
        self.cells.entry(replica.clone()).or_default().push(Arc::clone(&cell));
        JobReplica { replica, cell }
    }
}

fn set(cells: impl IntoIterator<Item = OutcomeSlot>, verdict: &ReplicaOutcome) {
    for cell in cells {
        // Never twice: who sets it takes it out of the queue.
        let _ = cell.set(verdict.clone());
    }
}

// === impl Share ===

impl Share {
    fn take(held: &Arc<Mutex<Held>>, owner: &Owner, replicas: usize) -> Result<Self, Rejection> {
        let mut now = held.lock().unwrap_or_else(PoisonError::into_inner);
        let of_owner = now.owners.get(owner).copied().unwrap_or_default();
        let full = |subject, limit: usize| {
            let (quota, retry_after) = (Quota::RestartsRemembered, Some(RETRY_AFTER));
            Err(Rejection::Full(Exceeded { quota, subject, limit: limit as u64, retry_after }))
        };
        if of_owner + replicas > OWNER_REPLICAS_MAX {
            return full(Subject::Owner(owner.clone()), OWNER_REPLICAS_MAX);
        }
        if now.all + replicas > REPLICAS_MAX {
            return full(Subject::Gateway, REPLICAS_MAX);
        }
        now.all += replicas;
        now.owners.insert(owner.clone(), of_owner + replicas);
        drop(now);
        Ok(Self { held: Arc::clone(held), owner: owner.clone(), replicas })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut now = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        now.all -= self.replicas;
        if let Entry::Occupied(mut of_owner) = now.owners.entry(self.owner.clone()) {
            *of_owner.get_mut() -= self.replicas;
            if *of_owner.get() == 0 {
                of_owner.remove();
            }
        }
    }
}
