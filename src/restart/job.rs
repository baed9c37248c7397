//! What one call asked for, and what has come of it so far.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::SetOnce;

use super::Request;
use crate::model::id::Replica;
use crate::model::proto::lease::service_restart_status::State;
use crate::model::proto::lease::{ServiceRestartResponse, ServiceRestartStatus};

/// Where the one verdict on one replica is put.
pub(super) type OutcomeSlot = Arc<SetOnce<ReplicaOutcome>>;

/// What came of the restart of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaOutcome {
    /// It runs as a new instance that has stayed up.
    Active,
    /// It does not; why, for the caller.
    Failed(String),
    /// It was not touched; why, for the caller.
    NotAttempted(String),
    /// It was told to make way, and the gateway ended before it could be said what came of that.
    Abandoned,
}

/// The replicas of one call, each with its verdict once there is one.
#[derive(Debug)]
pub struct RestartJob {
    pub(super) request: Request,
    pub(super) parts: Vec<JobReplica>,
    /// Its share of what may be remembered.
    pub(super) _share: super::manager::Share,
}

/// One replica of a round.
#[derive(Debug)]
pub(super) struct JobReplica {
    pub(super) replica: Replica,
    pub(super) cell: OutcomeSlot,
}

// === impl Verdict ===

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
            Self::Failed(why) => Some(why.clone()),
            Self::NotAttempted(why) => Some(format!("not attempted: {why}")),
            Self::Abandoned => Some("the gateway shuts down and will not see what comes of it".to_owned()),
        }
    }
}

// === impl Round ===

impl RestartJob {
    /// Waits until there is a verdict on each replica, and not longer than `timeout`. Nothing is lost if it is cancelled.
    pub async fn wait(&self, timeout: Duration) {
        let all = async {
            for part in &self.parts {
                part.cell.wait().await;
            }
        };
        // That it takes longer shows in the answer.
        let _ = tokio::time::timeout(timeout, all).await;
    }

    /// What has come of each replica, in order; `None`: nothing yet.
    pub fn verdicts(&self) -> impl Iterator<Item = (&Replica, Option<&ReplicaOutcome>)> {
        self.parts.iter().map(|part| (&part.replica, part.cell.get()))
    }

    /// The same in the protocol's form.
    pub fn answer(&self) -> ServiceRestartResponse {
        let status = self.verdicts().map(|(replica, verdict)| ServiceRestartStatus {
            service: replica.service.to_string(),
            replica: replica.index.to_string(),
            state: verdict.map_or(State::Pending, ReplicaOutcome::state).into(),
            message: verdict.and_then(ReplicaOutcome::message),
        });
        ServiceRestartResponse { status: status.collect() }
    }

    /// Whether it is over because this gateway could not go on, and not because a replica failed.
    pub(super) fn is_given_up(&self) -> bool {
        let any =
            |is: fn(&ReplicaOutcome) -> bool| self.verdicts().any(|(_, verdict)| verdict.is_some_and(is));
        self.is_over()
            && any(|verdict| matches!(verdict, ReplicaOutcome::NotAttempted(_) | ReplicaOutcome::Abandoned))
            && !any(|verdict| matches!(verdict, ReplicaOutcome::Failed(_)))
    }

    /// Whether there is a verdict on each replica.
    pub(super) fn is_over(&self) -> bool {
        self.parts.iter().all(|part| part.cell.initialized())
    }
}
