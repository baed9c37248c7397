//! The task that runs the restart jobs of one lease.

use std::sync::Arc;

use super::attempt::Attempt;
use super::job::{JobReplica, ReplicaOutcome, RestartJob};
use super::lock::{Acquisition, RestartLock, SHUTTING_DOWN};
use super::queue::JobQueues;
use crate::model::id::{LeaseId, Replica};
use crate::model::metrics::RestartResult;

/// Runs the restart jobs of one lease. On drop, marks unfinished jobs as abandoned, which releases their
/// callers.
pub(super) struct RestartWorker {
    queues: Arc<JobQueues>,
    lease: LeaseId,
    /// `None` on the local platform, which has only one gateway.
    lock: Option<RestartLock>,
    is_done: bool,
}

/// What to do with a replica.
enum Decision {
    Restart(Attempt),
    /// Nothing: it has an outcome already.
    Skip,
    /// Record a failure: there is nothing to restart. The reason is for the caller.
    Fail(String),
    /// Stop the job. The reason is for the caller.
    Stop(String),
}

// === impl RestartWorker ===

impl RestartWorker {
    pub(super) fn new(queues: Arc<JobQueues>, lease: LeaseId) -> Self {
        let lock = queues.platform.restart_locks().map(|locks| locks.candidate(&lease));
        let lock = lock.map(|lock| RestartLock::new(Arc::clone(&queues), lease.clone(), lock));
        Self { queues, lease, lock, is_done: false }
    }

    /// Runs jobs until the queue is empty.
    pub(super) async fn run(mut self) {
        while let Some(job) = self.queues.next_job(&self.lease) {
            self.run_job(&job).await;
            if let Some(lock) = &mut self.lock {
                lock.release(&job).await;
            }
        }
        // The queue is gone: the lease may have another worker from here on.
        self.is_done = true;
    }

    /// Restarts the replicas of a job in order. Stops after the first failure.
    async fn run_job(&mut self, job: &RestartJob) {
        let mut stopped = None;
        for replica in &job.replicas {
            // An earlier job or another gateway may have set outcomes. A failure there must stop this job
            // too: the lease may lack a replica.
            stopped = stopped.or_else(|| failure(job));
            if replica.slot.initialized() {
                continue;
            }
            if self.queues.finish_current.is_cancelled() {
                stopped.get_or_insert_with(|| SHUTTING_DOWN.to_owned());
            }
            if stopped.is_none() {
                match self.decide(job, replica).await {
                    Decision::Restart(attempt) => self.restart(&replica.replica, attempt).await,
                    Decision::Skip => {}
                    Decision::Fail(reason) => {
                        self.finish(&replica.replica, ReplicaOutcome::Failed(reason), RestartResult::Failure);
                    }
                    Decision::Stop(reason) => stopped = Some(reason),
                }
            }
            if let Some(reason) = &stopped {
                let outcome = ReplicaOutcome::NotAttempted(reason.clone());
                self.queues.set_outcome_of(&self.lease, replica, &outcome);
                self.queues.metrics.restarts.of(RestartResult::NotAttempted).increment(1);
            }
        }
    }

    /// Acquires the lock, chooses the run to replace, and records it in the payload.
    async fn decide(&mut self, job: &RestartJob, replica: &JobReplica) -> Decision {
        loop {
            if let Some(lock) = &mut self.lock {
                match lock.acquire(job).await {
                    Ok(Acquisition::Acquired) => {}
                    Ok(Acquisition::JobFinished) => return Decision::Skip,
                    Err(reason) => return Decision::Stop(reason),
                }
            }
            if replica.slot.initialized() {
                return Decision::Skip;
            }
            if let Some(reason) = failure(job) {
                return Decision::Stop(reason);
            }
            let attempt = match Attempt::new(&self.queues, &self.lease, &replica.replica).await {
                Ok(attempt) => attempt,
                Err(reason) => return Decision::Fail(reason),
            };
            let recorded = match &mut self.lock {
                Some(lock) => tokio::select! {
                    biased;
                    () = self.queues.abandon_current.cancelled() => {
                        lock.record.in_progress = None;
                        return Decision::Stop(SHUTTING_DOWN.to_owned());
                    }
                    recorded = lock.record_start(job, &attempt) => recorded,
                },
                None => true,
            };
            if recorded {
                return Decision::Restart(attempt);
            }
            // The lock is lost. Another gateway may restart the replica before this one holds it again, so
            // start over.
        }
    }

    async fn restart(&mut self, replica: &Replica, attempt: Attempt) {
        let lock = self.lock.as_mut();
        let attempt = async {
            match lock {
                Some(lock) => lock.run_attempt(attempt).await,
                None => attempt.run().await,
            }
        };
        let (outcome, counted) = tokio::select! {
            biased;
            () = self.queues.abandon_current.cancelled() => {
                (ReplicaOutcome::Abandoned, RestartResult::Abandoned)
            }
            result = attempt => match result {
                Ok(()) => (ReplicaOutcome::Active, RestartResult::Active),
                Err(reason) => (ReplicaOutcome::Failed(reason), RestartResult::Failure),
            },
        };
        if let Some(lock) = &mut self.lock
            && outcome != ReplicaOutcome::Abandoned
        {
            // The next write or release stores it.
            lock.record.set_outcome(&outcome);
        }
        self.finish(replica, outcome, counted);
    }

    fn finish(&self, replica: &Replica, outcome: ReplicaOutcome, counted: RestartResult) {
        tracing::info!(lease = %self.lease, %replica, ?outcome, "replica restart finished");
        self.queues.metrics.restarts.of(counted).increment(1);
        self.queues.set_outcome(&self.lease, replica, &outcome);
    }
}

impl Drop for RestartWorker {
    fn drop(&mut self) {
        if !self.is_done {
            self.queues.abandon(&self.lease);
        }
    }
}

/// Returns why the job stops, if one of its replicas has failed.
fn failure(job: &RestartJob) -> Option<String> {
    let is_failed = |each: &&JobReplica| matches!(each.slot.get(), Some(ReplicaOutcome::Failed(_)));
    job.replicas.iter().find(is_failed).map(|each| format!("the restart of {} failed", each.replica))
}
