//! What is known of a driver outside of its task.

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::PublishAsk;
use crate::exchange::participant::{RoleName, Status};
use crate::model::metrics::FleetRole;

/// Requests to publish that wait for a driver. It takes them at once.
const ASKS_MAX: usize = 64;

/// What others see of a driver.
#[derive(Debug)]
pub(super) struct Slot {
    /// With the time of its last change of role.
    status: Mutex<(Status, Instant)>,
    /// To the driver.
    asks: mpsc::Sender<PublishAsk>,
    /// Cancelled when the driver has ended.
    pub(super) ended: CancellationToken,
}

// === impl Slot ===

impl Slot {
    /// Creates a slot, and returns it with the requests for its driver.
    pub(super) fn new() -> (Self, mpsc::Receiver<PublishAsk>) {
        let status = Status { role: RoleName::Idle, publisher: None, rank: None, number: None, members: 0 };
        let (asks, receiver) = mpsc::channel(ASKS_MAX);
        let status = Mutex::new((status, Instant::now()));
        (Self { status, asks, ended: CancellationToken::new() }, receiver)
    }

    /// Passes a request to the driver, unless too many wait there. Then the other gateway gets no answer, and
    /// publishes itself.
    pub(super) fn request_publish(&self, ask: PublishAsk) {
        if self.asks.try_send(ask).is_err() {
            tracing::debug!("too many requests to publish a replica");
        }
    }

    /// Returns the status, and when its role has changed last.
    pub(super) fn status(&self) -> (Status, Instant) {
        *self.status.lock()
    }

    /// Stores the status. Returns the one before.
    pub(super) fn store(&self, status: Status) -> Status {
        let mut stored = self.status.lock();
        if status.role != stored.0.role {
            stored.1 = Instant::now();
        }
        std::mem::replace(&mut stored.0, status)
    }
}

/// Returns the label of a role; `None` for one that follows nothing.
pub(super) fn role_label(role: RoleName) -> Option<FleetRole> {
    match role {
        RoleName::Idle => None,
        RoleName::Finding => Some(FleetRole::Finding),
        RoleName::Member => Some(FleetRole::Member),
        RoleName::Publisher => Some(FleetRole::Publisher),
        RoleName::Direct => Some(FleetRole::Direct),
        RoleName::Waiting => Some(FleetRole::Waiting),
    }
}
