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
//! Calls go in one direction: manager → worker → lock → attempt → probation; without a lock, the worker calls
//! the attempt directly. Manager, worker and lock share `queue`, `job` and `record`.

pub mod job;
pub mod probation;

mod attempt;
mod budget;
mod lock;
mod manager;
mod queue;
mod record;
mod worker;

use std::time::Duration;

pub use self::job::{ReplicaOutcome, RestartJob};
pub use self::manager::RestartManager;
pub use self::queue::Rejection;
use crate::model::id::LeaseId;
use crate::model::request_id::RequestId;
use crate::model::view::Filter;

/// Time for which a request id refers to its first call. Clients retry within seconds or minutes.
const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);

/// The replicas of a lease to restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The lease of the replicas.
    pub lease: LeaseId,
    /// Selects replicas from the lease view at the time the request is accepted.
    pub filter: Filter,
    /// The caller's id for this request. A second call with the same id returns the first call's job.
    pub id: Option<RequestId>,
}
