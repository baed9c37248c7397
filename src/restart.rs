//! RestartManager: replicas make way for new runs, one after the other, and each is judged before the next is touched.
//!
//! What one call asks for is a [`RestartJob`]. The [`RestartManager`] keep the rounds of a lease in a queue that one task works off
//! (`conductor`), so that never more than one replica of a lease is taken down at a time: an Akash provider closes a lease that
//! stays below its count. A round belongs to nobody who waits for it; it goes on when they have gone. Whether a replica has come
//! back is judged from views alone ([`trial`], which knows no clock and no platform).
//!
//! Where several gateways serve one platform, the task takes the lease's *turn* among them before it takes anything down (`desk`;
//! [`crate::platform::coordination`]), writes into a *ledger* what it is about to take down and what has come of calls with a request id
//! (`ledger`), and gives the turn back when the round is over. So the same call at another gateway is the same call, too.

pub mod job;
pub mod probation;

mod attempt;
mod lock;
mod manager;
mod record;
mod worker;

use std::time::Duration;

pub use self::job::{ReplicaOutcome, RestartJob};
pub use self::manager::{Rejection, RestartManager};
use crate::model::id::LeaseId;
use crate::model::request_id::RequestId;
use crate::model::view::Filter;

/// For so long after a call the same request id means that call.
const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);

/// Which replicas of which lease are to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The lease.
    pub lease: LeaseId,
    /// The replicas, as they are when the request is taken up.
    pub filter: Filter,
    /// By what name the same call is known when it is made again.
    pub id: Option<RequestId>,
}
