//! The restart of one replica: choose the run to replace, order the restart, watch the result.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::probation::{Assessment, Probation};
use super::queue::JobQueues;
use crate::model::id::{LeaseId, Replica};
use crate::model::view::{LeaseView, ReplicaView};
use crate::platform::{Error, RestartRequest};

/// Timeout for the platform to return the view of a lease, and to accept a restart: the usual timeout of API
/// server clients.
const PLATFORM_TIMEOUT: Duration = Duration::from_secs(60);

/// Delay before a retryable request to the platform is repeated.
pub(super) const PLATFORM_RETRY: Duration = Duration::from_secs(1);

/// A restart that is ready: the run to replace is chosen, and nothing was ordered yet.
#[derive(Debug)]
pub(super) struct Attempt {
    queues: Arc<JobQueues>,
    view: watch::Receiver<Arc<LeaseView>>,
    pub(super) request: RestartRequest,
}

// === impl Attempt ===

impl Attempt {
    /// Prepares to replace the newest run of `replica`.
    ///
    /// # Errors
    /// Why the replica cannot be restarted, for the caller.
    pub(super) async fn new(
        queues: &Arc<JobQueues>,
        lease: &LeaseId,
        replica: &Replica,
    ) -> Result<Self, String> {
        let request = RestartRequest { lease: lease.clone(), replica: replica.clone(), instance: None };
        let mut attempt = Self::of_request(queues, request).await?;
        let view = Arc::clone(&attempt.view.borrow());
        let newest = view.replica(replica).and_then(ReplicaView::newest);
        attempt.request.instance = newest.map(|run| run.instance.clone());
        Ok(attempt)
    }

    /// Prepares the restart that `request` describes, which another gateway may have begun.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(super) async fn of_request(queues: &Arc<JobQueues>, request: RestartRequest) -> Result<Self, String> {
        match tokio::time::timeout(PLATFORM_TIMEOUT, queues.platform.watch(&request.lease)).await {
            Ok(Ok(view)) => Ok(Self { queues: Arc::clone(queues), view, request }),
            Ok(Err(error)) => Err(platform_failed(&request, &error)),
            Err(_) => Err(timed_out()),
        }
    }

    /// Orders the restart and waits until a new run is stable.
    ///
    /// # Errors
    /// Why no new run is stable, for the caller.
    pub(super) async fn run(mut self) -> Result<(), String> {
        tokio::time::timeout(PLATFORM_TIMEOUT, self.order()).await.unwrap_or_else(|_| Err(timed_out()))?;
        let begun = Instant::now();
        let mut probation = Probation::new(self.request.replica, self.request.instance);
        loop {
            let next_check = match probation.assess(&self.view.borrow_and_update(), begun.elapsed()) {
                Assessment::Active => return Ok(()),
                Assessment::Failed(reason) => return Err(reason),
                Assessment::Open(at) => begun + at,
            };
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() {
                    return Err("the lease has ended".to_owned());
                },
                () = tokio::time::sleep_until(next_check) => {}
            }
        }
    }

    /// Orders the restart. Retries until the platform accepts it.
    async fn order(&self) -> Result<(), String> {
        let (lease, replica) = (&self.request.lease, &self.request.replica);
        loop {
            match self.queues.platform.restart(self.request.clone()).await {
                // A conflict means that a newer run has started since: the old one has ended.
                Ok(()) | Err(Error::Conflict(_)) => return Ok(()),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%lease, %replica, %error, "failed to order restart; retrying");
                    tokio::time::sleep(PLATFORM_RETRY).await;
                }
                Err(error) => return Err(platform_failed(&self.request, &error)),
            }
        }
    }
}

/// Logs the platform's error and returns a text for the caller. The text names an id that is in the log, and
/// no detail of the error.
fn platform_failed(request: &RestartRequest, error: &Error) -> String {
    match error {
        Error::NotFound(_) => return "the replica no longer exists".to_owned(),
        Error::ReadOnly => {
            return "this gateway only reads the services; restart at the gateway that runs them".to_owned();
        }
        _ => {}
    }
    let id = uuid::Uuid::new_v4();
    let RestartRequest { lease, replica, .. } = request;
    let error = error as &dyn std::error::Error;
    tracing::error!(%id, %lease, %replica, error, "failed to restart replica");
    format!("internal error {id}")
}

fn timed_out() -> String {
    format!("the platform did not answer within {} s", PLATFORM_TIMEOUT.as_secs())
}
