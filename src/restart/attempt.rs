//! The restart of one replica, from a look at what runs to a verdict.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::manager::Shared;
use super::probation::{Assessment, Probation};
use crate::model::id::{LeaseId, Replica};
use crate::model::view::{LeaseView, ReplicaView};
use crate::platform::{Error, RestartRequest};

/// A platform that has not taken a restart by then has failed: as long as the clients of an API server wait.
pub(super) const ORDER_PATIENCE: Duration = Duration::from_secs(60);

/// Pause before a platform that could not take a restart is asked again.
pub(super) const ORDER_RETRY: Duration = Duration::from_secs(1);

/// A replica that is about to be restarted: which run of it is to make way is settled, and nothing is done yet.
#[derive(Debug)]
pub(super) struct Attempt {
    shared: Arc<Shared>,
    view: watch::Receiver<Arc<LeaseView>>,
    pub(super) request: RestartRequest,
}

// === impl Attempt ===

impl Attempt {
    /// To restart `replica` as it runs now.
    ///
    /// # Errors
    /// Why there is nothing to be restarted, for the caller.
    pub(super) async fn new(
        shared: &Arc<Shared>,
        lease: &LeaseId,
        replica: &Replica,
    ) -> Result<Self, String> {
        let mut request = RestartRequest { lease: lease.clone(), replica: replica.clone(), instance: None };
        let view = view(shared, &request).await?;
        request.instance =
            view.borrow().replica(replica).and_then(ReplicaView::newest).map(|run| run.instance.clone());
        Ok(Self { shared: Arc::clone(shared), view, request })
    }

    /// To go on with one that was begun elsewhere.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(super) async fn again(shared: &Arc<Shared>, request: RestartRequest) -> Result<Self, String> {
        let view = view(shared, &request).await?;
        Ok(Self { shared: Arc::clone(shared), view, request })
    }

    /// Has the replica make way, and sees to it that another run takes its place and stays.
    ///
    /// # Errors
    /// Why it does not, for the caller.
    pub(super) async fn carry_out(mut self) -> Result<(), String> {
        tokio::time::timeout(ORDER_PATIENCE, self.order()).await.unwrap_or_else(|_| Err(late()))?;
        let begun = Instant::now();
        let mut trial = Probation::new(self.request.replica, self.request.instance);
        loop {
            let judgement = trial.look(&self.view.borrow_and_update(), begun.elapsed());
            let look_again = match judgement {
                Assessment::Active => return Ok(()),
                Assessment::Failed(why) => return Err(why),
                Assessment::Open(at) => begun + at,
            };
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() {
                    return Err("the lease has ended".to_owned());
                },
                () = tokio::time::sleep_until(look_again) => {}
            }
        }
    }

    /// Tells the platform, until it has understood.
    async fn order(&self) -> Result<(), String> {
        let (lease, replica) = (&self.request.lease, &self.request.replica);
        loop {
            match self.shared.platform.restart(self.request.clone()).await {
                // Another run has begun since it was looked at: it is as new as one that makes the old one go.
                Ok(()) | Err(Error::Conflict(_)) => return Ok(()),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%lease, %replica, %error, "platform did not take a restart; asking again");
                    tokio::time::sleep(ORDER_RETRY).await;
                }
                Err(error) => return Err(platform_failed(&self.request, &error)),
            }
        }
    }
}

async fn view(shared: &Shared, request: &RestartRequest) -> Result<watch::Receiver<Arc<LeaseView>>, String> {
    match tokio::time::timeout(ORDER_PATIENCE, shared.platform.watch(&request.lease)).await {
        Ok(Ok(view)) => Ok(view),
        Ok(Err(error)) => Err(platform_failed(request, &error)),
        Err(_) => Err(late()),
    }
}

/// What a caller is told when the platform fails: nothing of what it said, but an id that the log repeats.
fn platform_failed(request: &RestartRequest, error: &Error) -> String {
    if let Error::NotFound(_) = error {
        return "it is no longer there".to_owned();
    }
    let id = uuid::Uuid::new_v4();
    let RestartRequest { lease, replica, .. } = request;
    let error = error as &dyn std::error::Error;
    tracing::error!(%id, %lease, %replica, error, "platform failed to restart");
    format!("internal error {id}")
}

fn late() -> String {
    format!("the platform did not take it within {} s", ORDER_PATIENCE.as_secs())
}
