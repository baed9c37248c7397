//! The one task that restarts replicas of one lease: round after round, and in each replica after replica.

use std::sync::Arc;

use super::attempt::Attempt;
use super::job::{JobReplica, ReplicaOutcome, RestartJob};
use super::lock::{RestartLock, SHUTTING_DOWN};
use super::manager::Shared;
use crate::model::id::{LeaseId, Replica};
use crate::model::metrics::Restarted;

/// Works off the rounds of one lease. Dropped before its time it gives them up, so that nobody waits in vain.
pub(super) struct RestartWorker {
    shared: Arc<Shared>,
    lease: LeaseId,
    /// Where it is agreed with other gateways whose turn it is, if there are any.
    desk: Option<RestartLock>,
    is_done: bool,
}

/// How far a replica has come before it is touched.
enum Ready {
    /// It may be restarted.
    Go(Attempt),
    /// There is a verdict on it already.
    Told,
    /// There is nothing to be restarted; why.
    Failed(String),
    /// It may not be restarted; why.
    Stopped(String),
}

// === impl RestartWorker ===

impl RestartWorker {
    pub(super) fn new(shared: Arc<Shared>, lease: LeaseId) -> Self {
        let turn = shared.platform.turns().map(|turns| turns.candidate(&lease));
        let desk = turn.map(|turn| RestartLock::new(Arc::clone(&shared), lease.clone(), turn));
        Self { shared, lease, desk, is_done: false }
    }

    /// Goes on until no round is left.
    pub(super) async fn run(mut self) {
        while let Some(round) = self.shared.next_round(&self.lease) {
            self.conduct(&round).await;
            if let Some(desk) = &mut self.desk {
                desk.leave(&round).await;
            }
        }
        // From here on the lease may have another.
        self.is_done = true;
    }

    /// Has the replicas of a round make way, one after the other, and none after the first that fails.
    async fn conduct(&mut self, round: &RestartJob) {
        let mut stopped = None;
        for part in &round.parts {
            // Some have their verdict from an earlier round already, or from another gateway.
            stopped = stopped.or_else(|| failed(round));
            if part.cell.initialized() {
                continue;
            }
            if self.shared.closing.is_cancelled() {
                stopped.get_or_insert_with(|| SHUTTING_DOWN.to_owned());
            }
            if stopped.is_none() {
                match self.ready(round, part).await {
                    Ready::Go(attempt) => self.restart(&part.replica, attempt).await,
                    Ready::Told => {}
                    Ready::Failed(why) => {
                        self.judge(&part.replica, ReplicaOutcome::Failed(why), Restarted::Failure);
                    }
                    Ready::Stopped(why) => stopped = Some(why),
                }
            }
            if let Some(why) = &stopped {
                self.shared.leave(&self.lease, part, &ReplicaOutcome::NotAttempted(why.clone()));
                self.shared.metrics.restarts.of(Restarted::NotAttempted).increment(1);
            }
        }
    }

    /// Settles what is to make way, and that it is this gateway's turn.
    async fn ready(&mut self, round: &RestartJob, part: &JobReplica) -> Ready {
        loop {
            if let Some(desk) = &mut self.desk
                && let Err(why) = desk.take(round).await
            {
                return Ready::Stopped(why);
            }
            if part.cell.initialized() {
                return Ready::Told;
            }
            if let Some(why) = failed(round) {
                return Ready::Stopped(why);
            }
            let attempt = match Attempt::new(&self.shared, &self.lease, &part.replica).await {
                Ok(attempt) => attempt,
                Err(why) => return Ready::Failed(why),
            };
            let begun = match &mut self.desk {
                Some(desk) => tokio::select! {
                    biased;
                    () = self.shared.closed.cancelled() => {
                        desk.spare();
                        return Ready::Stopped(SHUTTING_DOWN.to_owned());
                    }
                    begun = desk.begin(round, &attempt) => begun,
                },
                None => true,
            };
            if begun {
                return Ready::Go(attempt);
            }
            // Another gateway may be here before the next turn: what runs is to be looked at again.
        }
    }

    async fn restart(&mut self, replica: &Replica, attempt: Attempt) {
        let desk = self.desk.as_mut();
        let attempt = async {
            match desk {
                Some(desk) => desk.carry_out(attempt).await,
                None => attempt.carry_out().await,
            }
        };
        let (verdict, counted) = tokio::select! {
            biased;
            () = self.shared.closed.cancelled() => (ReplicaOutcome::Abandoned, Restarted::Abandoned),
            verdict = attempt => match verdict {
                Ok(()) => (ReplicaOutcome::Active, Restarted::Active),
                Err(why) => (ReplicaOutcome::Failed(why), Restarted::Failure),
            },
        };
        if let Some(desk) = &mut self.desk
            && verdict != ReplicaOutcome::Abandoned
        {
            desk.judge(&verdict);
        }
        self.judge(replica, verdict, counted);
    }

    fn judge(&self, replica: &Replica, verdict: ReplicaOutcome, counted: Restarted) {
        tracing::info!(lease = %self.lease, %replica, ?verdict, "replica restarted");
        self.shared.metrics.restarts.of(counted).increment(1);
        self.shared.judge(&self.lease, replica, &verdict);
    }
}

impl Drop for RestartWorker {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.abandon(&self.lease);
        }
    }
}

/// Why what is left of a round is not attempted, if one of it has failed.
fn failed(round: &RestartJob) -> Option<String> {
    let is_failed = |part: &&JobReplica| matches!(part.cell.get(), Some(ReplicaOutcome::Failed(_)));
    round.parts.iter().find(is_failed).map(|part| format!("the restart of {} failed", part.replica))
}
