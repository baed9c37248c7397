//! The one task that restarts replicas of one lease: round after round, and in each replica after replica.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::registry::Shared;
use super::round::{Part, Round, Verdict};
use super::trial::{Judgement, Trial};
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::metrics::Restarted;
use crate::model::view::ReplicaView;
use crate::platform::{Error, RestartRequest};

/// A platform that has not taken a restart by then has failed: as long as the clients of an API server wait.
const ORDER_PATIENCE: Duration = Duration::from_secs(60);

/// Pause before a platform that could not take a restart is asked again.
const ORDER_RETRY: Duration = Duration::from_secs(1);

/// Works off the rounds of one lease. Dropped before its time it gives them up, so that nobody waits in vain.
pub(super) struct Conductor {
    shared: Arc<Shared>,
    lease: LeaseId,
    is_done: bool,
}

// === impl Conductor ===

impl Conductor {
    pub(super) fn new(shared: Arc<Shared>, lease: LeaseId) -> Self {
        Self { shared, lease, is_done: false }
    }

    /// Goes on until no round is left.
    pub(super) async fn run(mut self) {
        while let Some(round) = self.shared.next_round(&self.lease) {
            self.conduct(&round).await;
        }
        // From here on the lease may have another.
        self.is_done = true;
    }

    /// Has the replicas of a round make way, one after the other, and none after the first that fails.
    async fn conduct(&self, round: &Round) {
        // Some have their verdict from an earlier round already.
        let failed = |part: &&Part| matches!(part.cell.get(), Some(Verdict::Failed(_)));
        let mut stopped = round.parts.iter().find(failed).map(|part| failed_words(&part.replica));
        for part in round.parts.iter().filter(|part| !part.cell.initialized()) {
            if self.shared.closing.is_cancelled() {
                stopped.get_or_insert_with(|| "the gateway is shutting down".to_owned());
            }
            let (lease, metrics) = (&self.lease, &self.shared.metrics);
            if let Some(why) = &stopped {
                self.shared.leave(lease, part, &Verdict::NotAttempted(why.clone()));
                metrics.restarts.of(Restarted::NotAttempted).increment(1);
                continue;
            }
            let (verdict, counted) = self.verdict(&part.replica).await;
            if let Verdict::Failed(_) = verdict {
                stopped = Some(failed_words(&part.replica));
            }
            metrics.restarts.of(counted).increment(1);
            self.shared.judge(lease, &part.replica, &verdict);
        }
    }

    async fn verdict(&self, replica: &Replica) -> (Verdict, Restarted) {
        let verdict = tokio::select! {
            biased;
            () = self.shared.closed.cancelled() => (Verdict::Abandoned, Restarted::Abandoned),
            verdict = self.restart(replica) => match verdict {
                Ok(()) => (Verdict::Active, Restarted::Active),
                Err(why) => (Verdict::Failed(why), Restarted::Failure),
            },
        };
        tracing::info!(lease = %self.lease, %replica, verdict = ?verdict.0, "replica restarted");
        verdict
    }

    /// Has one replica make way, and sees to it that another run takes its place and stays.
    async fn restart(&self, replica: &Replica) -> Result<(), String> {
        let platform = &self.shared.platform;
        let watch = tokio::time::timeout(ORDER_PATIENCE, platform.watch(&self.lease)).await;
        let mut view = match watch {
            Ok(Ok(view)) => view,
            Ok(Err(error)) => return Err(self.platform_failed(replica, &error)),
            Err(_) => return Err(late()),
        };
        let old =
            view.borrow().replica(replica).and_then(ReplicaView::newest).map(|run| run.instance.clone());
        let ordered = tokio::time::timeout(ORDER_PATIENCE, self.order(replica, old.clone()));
        ordered.await.unwrap_or_else(|_| Err(late()))?;
        let begun = Instant::now();
        let mut trial = Trial::new(replica.clone(), old);
        loop {
            let judgement = trial.look(&view.borrow_and_update(), begun.elapsed());
            let look_again = match judgement {
                Judgement::Active => return Ok(()),
                Judgement::Failed(why) => return Err(why),
                Judgement::Open(at) => begun + at,
            };
            tokio::select! {
                changed = view.changed() => if changed.is_err() {
                    return Err("the lease has ended".to_owned());
                },
                () = tokio::time::sleep_until(look_again) => {}
            }
        }
    }

    /// Tells the platform, until it has understood.
    async fn order(&self, replica: &Replica, instance: Option<Instance>) -> Result<(), String> {
        let request = RestartRequest { lease: self.lease.clone(), replica: replica.clone(), instance };
        loop {
            match self.shared.platform.restart(request.clone()).await {
                // Another run has begun since it was looked at: it is as new as one that makes the old one go.
                Ok(()) | Err(Error::Conflict(_)) => return Ok(()),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(lease = %self.lease, %replica, %error, "platform did not take a restart; asking again");
                    tokio::time::sleep(ORDER_RETRY).await;
                }
                Err(error) => return Err(self.platform_failed(replica, &error)),
            }
        }
    }

    /// What a caller is told when the platform fails: nothing of what it said, but an id that the log repeats.
    fn platform_failed(&self, replica: &Replica, error: &Error) -> String {
        if let Error::NotFound(_) = error {
            return "it is no longer there".to_owned();
        }
        let id = uuid::Uuid::new_v4();
        let error = error as &dyn std::error::Error;
        tracing::error!(%id, lease = %self.lease, %replica, error, "platform failed to restart");
        format!("internal error {id}")
    }
}

impl Drop for Conductor {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.abandon(&self.lease);
        }
    }
}

/// Why those behind it are not attempted.
fn failed_words(replica: &Replica) -> String {
    format!("the restart of {replica} failed")
}

fn late() -> String {
    format!("the platform did not take it within {} s", ORDER_PATIENCE.as_secs())
}
