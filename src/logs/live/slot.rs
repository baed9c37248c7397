//! What is known of a driver outside of its task.

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::exchange::participant::{RoleName, Status};
use crate::model::metrics::FleetRole;

/// What others see of a driver.
#[derive(Debug)]
pub(super) struct Slot {
    /// With the time of its last change of role.
    status: Mutex<(Status, Instant)>,
    /// Cancelled when the driver has ended.
    pub(super) ended: CancellationToken,
}

// === impl Slot ===

impl Slot {
    pub(super) fn new() -> Self {
        let status = Status { role: RoleName::Idle, publisher: None, rank: None, number: None, members: 0 };
        Self { status: Mutex::new((status, Instant::now())), ended: CancellationToken::new() }
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
