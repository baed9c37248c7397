//! The restart lock of one lease among gateways, and the restart record in its payload.
//!
//! The holder writes a replica into the record before it restarts it. The next holder first resumes that
//! restart: it replaces exactly the recorded run, if that has not ended, and waits for the result. A
//! gateway that was wrongly believed dead may still act meanwhile. Both gateways then name the same run, and
//! [`Platform::restart`](crate::platform::Platform::restart) is idempotent per run. So no second run is
//! stopped, and at most one replica of the lease is down. See [`crate::platform::coordination`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::{Attempt, PLATFORM_RETRY};
use super::job::{ReplicaOutcome, RestartJob};
use super::queue::JobQueues;
use super::record::{InProgress, RestartRecord};
use crate::model::id::LeaseId;
use crate::model::time::LogTime;
use crate::platform::Error;
use crate::platform::coordination::{LockCandidate, LockState};

/// Reason for replicas that are not restarted because of shutdown.
pub(super) const SHUTTING_DOWN: &str = "the gateway is shutting down";

/// Reason for replicas that are not restarted because the lock is unavailable.
const LOCK_UNAVAILABLE: &str = "the restart lock is unavailable";

/// Time for which failures to acquire the lock are retried: as long as one request to the platform may take.
const LOCK_FAILING_MAX: Duration = Duration::from_secs(60);

/// The lock, and the record as last read or written.
pub(super) struct RestartLock {
    queues: Arc<JobQueues>,
    lease: LeaseId,
    lock: Box<dyn LockCandidate>,
    pub(super) record: RestartRecord,
    is_held: bool,
}

/// The result of [`RestartLock::acquire`].
pub(super) enum Acquisition {
    Acquired,
    /// Other gateways recorded outcomes for the whole job first. The lock may not be held.
    JobFinished,
}

// === impl RestartLock ===

impl RestartLock {
    pub(super) fn new(queues: Arc<JobQueues>, lease: LeaseId, lock: Box<dyn LockCandidate>) -> Self {
        Self { queues, lease, lock, record: RestartRecord::default(), is_held: false }
    }

    /// Acquires the lock for `job` and resumes a restart that another gateway recorded.
    ///
    /// # Errors
    /// Why `job` cannot continue, for the caller.
    pub(super) async fn acquire(&mut self, job: &RestartJob) -> Result<Acquisition, String> {
        while !self.is_held {
            self.wait_for_lock(job).await?;
            if job.is_finished() {
                return Ok(Acquisition::JobFinished);
            }
            let recorded =
                self.record.in_progress.as_ref().and_then(|replica| replica.restart_request(&self.lease));
            let Some(request) = recorded else {
                break;
            };
            tracing::info!(lease = %self.lease, replica = %request.replica, "resuming restart recorded in the lock");
            let abandon_current = self.queues.abandon_current.clone();
            let attempt = async {
                let result = match Attempt::of_request(&self.queues, request).await {
                    Ok(attempt) => self.run_attempt(attempt).await,
                    Err(reason) => Err(reason),
                };
                result.map_or_else(ReplicaOutcome::Failed, |()| ReplicaOutcome::Active)
            };
            let outcome = tokio::select! {
                biased;
                () = abandon_current.cancelled() => return Err(SHUTTING_DOWN.to_owned()),
                outcome = attempt => outcome,
            };
            tracing::info!(lease = %self.lease, ?outcome, "recorded restart finished");
            self.record.set_outcome(&outcome);
            self.apply_record(job);
        }
        Ok(Acquisition::Acquired)
    }

    /// Waits until this gateway holds the lock, or `job` is finished.
    async fn wait_for_lock(&mut self, job: &RestartJob) -> Result<(), String> {
        let finish_current = self.queues.finish_current.clone();
        let (mut failing_since, mut logged) = (Instant::now(), None);
        loop {
            let state = tokio::select! {
                biased;
                () = finish_current.cancelled() => return Err(SHUTTING_DOWN.to_owned()),
                state = self.lock.acquire_or_observe() => state,
            };
            match state {
                Ok(LockState::Held(payload)) => {
                    self.is_held = true;
                    self.read(&payload);
                    self.apply_record(job);
                    return Ok(());
                }
                Ok(LockState::HeldByOther { holder, payload }) => {
                    failing_since = Instant::now();
                    self.read(&payload);
                    self.apply_record(job);
                    if logged.as_ref() != Some(&holder) {
                        tracing::info!(lease = %self.lease, holder, "waiting for restart lock held by another gateway");
                        logged = Some(holder);
                    }
                }
                Err(error) if error.is_retryable() && failing_since.elapsed() < LOCK_FAILING_MAX => {
                    tracing::warn!(lease = %self.lease, %error, "failed to acquire restart lock; retrying");
                    tokio::time::sleep(PLATFORM_RETRY).await;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(lease = %self.lease, error, "failed to acquire restart lock");
                    return Err(LOCK_UNAVAILABLE.to_owned());
                }
            }
            if job.is_finished() {
                return Ok(());
            }
        }
    }

    fn read(&mut self, payload: &str) {
        self.record = RestartRecord::parse(payload).unwrap_or_else(|| {
            tracing::warn!(lease = %self.lease, "failed to parse restart record; ignoring it");
            RestartRecord::default()
        });
    }

    /// Copies outcomes that other gateways recorded into `job`.
    fn apply_record(&self, job: &RestartJob) {
        let recorded = job.request.id.as_ref().and_then(|id| self.record.request(id));
        let Some(recorded) = recorded else { return };
        if !recorded.is_for(&job.request) {
            let reason = "another gateway received the same request_id for other replicas".to_owned();
            for replica in &job.replicas {
                let outcome = ReplicaOutcome::NotAttempted(reason.clone());
                self.queues.set_outcome_of(&self.lease, replica, &outcome);
            }
            return;
        }
        for (replica, outcome) in recorded.outcomes() {
            let open = job.replicas.iter().find(|each| each.replica == replica && !each.slot.initialized());
            if let (Some(open), Some(outcome)) = (open, outcome) {
                self.queues.set_outcome_of(&self.lease, open, &outcome);
            }
        }
    }

    /// Records the replica that is about to be restarted. Returns `false` if the lock is lost: nothing may be
    /// restarted then.
    pub(super) async fn record_start(&mut self, job: &RestartJob, attempt: &Attempt) -> bool {
        let now = LogTime::now().parts().0;
        self.record.put(job, now);
        self.record.in_progress = Some(InProgress::new(&attempt.request, job.request.id.as_ref()));
        let payload = self.record.encode(now);
        if let Err(error) = self.lock.write_payload(payload).await {
            self.lost(&error);
        }
        self.is_held
    }

    /// Runs `attempt` and renews the lock meanwhile. The attempt continues if the lock is lost.
    pub(super) async fn run_attempt(&mut self, attempt: Attempt) -> Result<(), String> {
        let mut run = std::pin::pin!(attempt.run());
        if self.is_held {
            tokio::select! {
                result = &mut run => return result,
                error = self.lock.renew_until_lost() => self.lost(&error),
            }
        }
        // The restart is recorded, so the next holder waits for it: finish it.
        run.await
    }

    fn lost(&mut self, error: &Error) {
        self.is_held = false;
        let error = error as &dyn std::error::Error;
        tracing::warn!(error, "lost restart lock; restarting nothing until it is acquired again");
    }

    /// Releases the lock, if held, with the outcomes of `job` in the payload.
    pub(super) async fn release(&mut self, job: &RestartJob) {
        if !std::mem::take(&mut self.is_held) {
            return;
        }
        let now = LogTime::now().parts().0;
        self.record.put(job, now);
        let payload = self.record.encode(now);
        if let Err(error) = self.lock.release(payload).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(lease = %self.lease, error, "failed to release restart lock; it will expire");
        }
    }
}
