//! Restarts of replicas, one replica of a lease at a time.
//!
//! One call to `ServiceRestart` is a [`RestartJob`]. The [`RestartManager`] keeps the jobs of each lease in a
//! queue, and one worker task per lease runs them: an Akash provider closes a lease that stays below its
//! replica count, so at most one replica of a lease is down at any time. A job does not end when its callers
//! disconnect. Whether a restarted replica is stable is decided from lease views alone ([`probation`], which
//! uses no clock and no platform).
//!
//! Several gateways may serve one platform. The worker then acquires the lease's restart lock before it
//! restarts anything (`lock`; [`crate::platform::coordination`]). Before each restart it writes the replica
//! into the lock's payload (`record`), together with the outcomes of recent requests. The next holder resumes
//! the restart that it finds there. A retried request finds its earlier outcomes at every gateway.
//!
//! The manager spawns the worker. The worker creates each attempt; only a resumed one is created by the lock.
//! With a lock, the lock runs the attempt and renews itself meanwhile; without one, the worker runs it. The
//! attempt asks a probation about each lease view. Outcomes go back through `queue`. Manager, worker and lock
//! share `queue`, `job` and `record`. A *run* is one execution of a replica's container, and an *instance* is
//! its identifier.

pub mod job;
pub mod probation;

mod attempt;
mod lock;
mod queue;
mod record;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

pub use self::job::{ReplicaOutcome, RestartJob};
use self::queue::JobQueues;
use self::record::RestartRecord;
use self::worker::RestartWorker;
use crate::model::id::{LeaseId, Replica, RequestId};
use crate::model::metrics::Metrics;
use crate::model::quota::Exceeded;
use crate::model::view::{Filter, LeaseView};
use crate::platform::Platform;

/// Time for which a request id refers to its first call. Clients retry within seconds or minutes.
const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);

/// Timeout for reading the restart lock's payload while a caller waits.
const PAYLOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts restart requests. Owns one worker task per lease with jobs; dropping the last clone ends the
/// workers. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct RestartManager {
    queues: Arc<JobQueues>,
    tasks: TaskTracker,
    _alive: Arc<DropGuard>,
}

/// The replicas of a lease to restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRequest {
    /// The lease of the replicas.
    pub lease: LeaseId,
    /// Selects replicas from the lease view at the time the request is accepted.
    pub filter: Filter,
    /// The caller's id for this request. A second call with the same id returns the first call's job.
    pub id: Option<RequestId>,
}

/// Why a restart request does not become a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The request id was used within the last hour for another lease or other replicas.
    RequestIdReused,
    /// There are too many replicas in jobs that run or are remembered.
    QuotaExceeded(Exceeded),
    /// The restart lock cannot be read. The reason is for the log.
    LockUnavailable(String),
    /// The gateway is shutting down.
    ShuttingDown,
}

// === impl RestartManager ===

impl RestartManager {
    /// Creates a manager without jobs.
    pub fn new(platform: Arc<dyn Platform>, metrics: Metrics) -> Self {
        let queues = Arc::new(JobQueues::new(platform, metrics));
        let alive = Arc::new(queues.abandon_current.clone().drop_guard());
        Self { queues, tasks: TaskTracker::new(), _alive: alive }
    }

    /// Returns the job of an earlier call with the same id, within the hour.
    ///
    /// If another gateway received that call, adopts its job: outcomes that the other gateway recorded are
    /// kept, and replicas without one are waited for, or restarted here if the other gateway stopped. Reads
    /// the lock for requests without an id too: if it cannot be read, the request fails before it uses a
    /// quota.
    ///
    /// # Errors
    /// [`RequestError::RequestIdReused`] if that call was for another lease or other replicas.
    /// [`RequestError::LockUnavailable`] if the restart lock cannot be read: nothing can be restarted now.
    /// Adoption may also fail with the errors of [`begin`](Self::begin).
    pub async fn find_or_adopt(&self, request: &JobRequest) -> Result<Option<Arc<RestartJob>>, RequestError> {
        if let Some(job) = self.queues.find(request)? {
            return Ok(Some(job));
        }
        let Some(locks) = self.queues.platform.restart_locks() else {
            return Ok(None);
        };
        let unavailable = RequestError::LockUnavailable;
        let payload = tokio::time::timeout(PAYLOAD_TIMEOUT, locks.payload(&request.lease)).await;
        let payload = payload.map_err(|_| unavailable(format!("no answer within {PAYLOAD_TIMEOUT:?}")))?;
        let payload = payload.map_err(|error| unavailable(error.to_string()))?;
        let record = RestartRecord::parse(&payload).unwrap_or_default();
        let Some(recorded) = request.id.as_ref().and_then(|id| record.request(id)) else {
            return Ok(None);
        };
        if !recorded.is_for(request) {
            return Err(RequestError::RequestIdReused);
        }
        self.enqueue(request.clone(), recorded.outcomes().collect()).map(Some)
    }

    /// Starts a restart of the replicas that `request` selects from `view`, after all earlier jobs of the
    /// lease. A replica that an earlier job restarts in the meantime is not restarted again. Returns the
    /// earlier job if the same call was made before.
    ///
    /// # Errors
    /// [`RequestError::RequestIdReused`], [`RequestError::QuotaExceeded`] or [`RequestError::ShuttingDown`].
    pub fn begin(&self, request: JobRequest, view: &LeaseView) -> Result<Arc<RestartJob>, RequestError> {
        let replicas = view.select(&request.filter).map(|(replica, _)| (replica, None)).collect();
        self.enqueue(request, replicas)
    }

    fn enqueue(
        &self,
        request: JobRequest,
        replicas: Vec<(Replica, Option<ReplicaOutcome>)>,
    ) -> Result<Arc<RestartJob>, RequestError> {
        let lease = request.lease.clone();
        let (job, needs_worker) = self.queues.enqueue(request, replicas)?;
        if needs_worker {
            self.tasks.spawn(RestartWorker::new(Arc::clone(&self.queues), lease).run());
        }
        Ok(job)
    }

    /// Stops accepting requests and waits until all jobs are finished. Each lease finishes its current
    /// replica, at most for `deadline`; its other replicas are not restarted.
    pub async fn finish(&self, deadline: Duration) {
        self.queues.finish_current.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(?deadline, "restarts did not finish in time; abandoning them");
        }
        self.queues.abandon_current.cancel();
        self.tasks.wait().await;
    }
}
