//! Accepts restart requests and owns the worker tasks.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use super::Request;
use super::job::{ReplicaOutcome, RestartJob};
use super::queue::{JobQueues, Rejection};
use super::record::RestartRecord;
use super::worker::RestartWorker;
use crate::model::id::Replica;
use crate::model::metrics::Metrics;
use crate::model::view::LeaseView;
use crate::platform::Platform;

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

// === impl RestartManager ===

impl RestartManager {
    /// Creates a manager without jobs.
    pub fn new(platform: Arc<dyn Platform>, metrics: Metrics) -> Self {
        let queues = Arc::new(JobQueues::new(platform, metrics));
        let alive = Arc::new(queues.closed.clone().drop_guard());
        Self { queues, tasks: TaskTracker::new(), _alive: alive }
    }

    /// Returns the job of an earlier call to this gateway with the same id, within the hour.
    ///
    /// # Errors
    /// [`Rejection::IdReused`] if that call was for another lease or other replicas.
    pub fn find(&self, request: &Request) -> Result<Option<Arc<RestartJob>>, Rejection> {
        self.queues.find(request)
    }

    /// Adopts the job of an earlier call to another gateway with the same id. Outcomes that the other gateway
    /// recorded are kept. Replicas without one are waited for, or restarted here if the other gateway
    /// stopped. Reads the lock for requests without an id too: if it cannot be read, a request is rejected
    /// before it uses a quota.
    ///
    /// # Errors
    /// [`Rejection::Alone`] if the restart lock cannot be read: nothing can be restarted now. Otherwise as
    /// [`begin`](Self::begin).
    pub async fn adopt_remote(&self, request: &Request) -> Result<Option<Arc<RestartJob>>, Rejection> {
        let Some(locks) = self.queues.platform.lease_locks() else {
            return Ok(None);
        };
        let payload = match tokio::time::timeout(PAYLOAD_TIMEOUT, locks.payload(&request.lease)).await {
            Ok(Ok(payload)) => payload,
            Ok(Err(error)) => return Err(Rejection::Alone(error.to_string())),
            Err(_) => return Err(Rejection::Alone(format!("no answer within {PAYLOAD_TIMEOUT:?}"))),
        };
        let record = RestartRecord::parse(&payload).unwrap_or_default();
        let Some(call) = request.id.as_ref().and_then(|id| record.call(id)) else {
            return Ok(None);
        };
        if !call.is_for(request) {
            return Err(Rejection::IdReused);
        }
        self.enqueue(request.clone(), call.outcomes().collect()).map(Some)
    }

    /// Starts a restart of the replicas that `request` selects from `view`, after all earlier jobs of the
    /// lease. A replica that an earlier job restarts in the meantime is not restarted again. Returns the
    /// earlier job if the same call was made before.
    ///
    /// # Errors
    /// [`Rejection::IdReused`], [`Rejection::Full`] or [`Rejection::Stopped`].
    pub fn begin(&self, request: Request, view: &LeaseView) -> Result<Arc<RestartJob>, Rejection> {
        let replicas = view.select(&request.filter).map(|(replica, _)| (replica, None)).collect();
        self.enqueue(request, replicas)
    }

    fn enqueue(
        &self,
        request: Request,
        replicas: Vec<(Replica, Option<ReplicaOutcome>)>,
    ) -> Result<Arc<RestartJob>, Rejection> {
        let lease = request.lease.clone();
        let (job, needs_worker) = self.queues.enqueue(request, replicas)?;
        if needs_worker {
            self.tasks.spawn(RestartWorker::new(Arc::clone(&self.queues), lease).run());
        }
        Ok(job)
    }

    /// Stops accepting requests and waits until all jobs are finished. Each lease finishes its current replica, at most for
    /// `deadline`; its other replicas are not restarted.
    pub async fn finish(&self, deadline: Duration) {
        self.queues.closing.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(?deadline, "restarts did not finish in time; abandoning them");
        }
        self.queues.closed.cancel();
        self.tasks.wait().await;
    }
}
