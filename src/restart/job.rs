//! One restart request and the outcomes of its replicas.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::SetOnce;

use super::JobRequest;
use crate::model::concurrency::ConcurrencyPermit;
use crate::model::id::{Owner, Replica};
use crate::model::proto::lease::service_restart_status::State;
use crate::model::proto::lease::{ServiceRestartResponse, ServiceRestartStatus};

/// Holds the outcome of one replica; set at most once.
pub(super) type OutcomeSlot = Arc<SetOnce<ReplicaOutcome>>;

/// Result of restarting one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaOutcome {
    /// A new run is stable.
    Active,
    /// No new run became stable. The reason is for the caller.
    Failed(String),
    /// The replica was not restarted. The reason is for the caller.
    NotAttempted(String),
    /// The restart was ordered, and the gateway stopped before its result was known.
    Abandoned,
}

/// The replicas of one request and their outcomes.
#[derive(Debug)]
pub struct RestartJob {
    pub(super) request: JobRequest,
    pub(super) replicas: Vec<JobReplica>,
    /// One permit per replica, of the owner and of the gateway.
    pub(super) _permits: (ConcurrencyPermit<Owner>, ConcurrencyPermit<()>),
}

/// One replica of a job.
#[derive(Debug)]
pub(super) struct JobReplica {
    pub(super) replica: Replica,
    pub(super) slot: OutcomeSlot,
}

// === impl ReplicaOutcome ===

impl ReplicaOutcome {
    fn state(&self) -> State {
        match self {
            Self::Active => State::Active,
            Self::Failed(_) | Self::NotAttempted(_) => State::Failure,
            Self::Abandoned => State::Pending,
        }
    }

    fn message(&self) -> Option<String> {
        match self {
            Self::Active => None,
            Self::Failed(reason) => Some(reason.clone()),
            Self::NotAttempted(reason) => Some(format!("not attempted: {reason}")),
            Self::Abandoned => Some("the gateway shut down before the result was known".to_owned()),
        }
    }
}

// === impl RestartJob ===

impl RestartJob {
    /// Waits until every replica has an outcome, at most for `timeout`. Cancel safe.
    pub async fn wait(&self, timeout: Duration) {
        let all = async {
            for replica in &self.replicas {
                replica.slot.wait().await;
            }
        };
        // After a timeout the response reports the remaining replicas as pending.
        let _ = tokio::time::timeout(timeout, all).await;
    }

    /// Returns each replica with its outcome, in order; `None` while the outcome is open.
    pub fn outcomes(&self) -> impl Iterator<Item = (&Replica, Option<&ReplicaOutcome>)> {
        self.replicas.iter().map(|each| (&each.replica, each.slot.get()))
    }

    /// Returns the outcomes as a response message.
    pub fn response(&self) -> ServiceRestartResponse {
        let status = self.outcomes().map(|(replica, outcome)| ServiceRestartStatus {
            service: replica.service.to_string(),
            replica: replica.index.to_string(),
            state: outcome.map_or(State::Pending, ReplicaOutcome::state).into(),
            message: outcome.and_then(ReplicaOutcome::message),
        });
        ServiceRestartResponse { status: status.collect() }
    }

    /// Whether this gateway stopped the job, as opposed to the failure of a replica. Another gateway
    /// may continue it.
    pub(super) fn is_abandoned(&self) -> bool {
        let any =
            |is: fn(&ReplicaOutcome) -> bool| self.outcomes().any(|(_, outcome)| outcome.is_some_and(is));
        self.is_finished()
            && any(|outcome| matches!(outcome, ReplicaOutcome::NotAttempted(_) | ReplicaOutcome::Abandoned))
            && !any(|outcome| matches!(outcome, ReplicaOutcome::Failed(_)))
    }

    pub(super) fn is_finished(&self) -> bool {
        self.replicas.iter().all(|each| each.slot.initialized())
    }
}
