//! What a member knows of its publisher.

use std::time::Duration;

use super::io::RequestId;
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::kept::Kept;
use crate::exchange::messages::{Head, Oldest};
use crate::exchange::rank::Rank;
use crate::model::metrics::FleetNoticed;

/// A publisher may learn of a new run later than a member. After this time the member tails the run itself.
const RUN_WAIT: Duration = Duration::from_secs(2);

/// Answers that do not come, in a row, after which a repair or the publisher is given up: one may be lost.
pub(super) const UNANSWERED_MAX: u32 = 2;

/// Following one publisher.
#[derive(Debug)]
pub(super) struct Following {
    pub(super) publisher: GatewayId,
    pub(super) rank: Rank,
    /// The newest place of the publisher that is known.
    pub(super) head: Option<Head>,
    /// How that place came.
    pub(super) head_from: FleetNoticed,
    /// Number of the next frame; `None` while positions have not met.
    pub(super) next: Option<u64>,
    pub(super) kept: Kept,
    pub(super) fetch: Option<Pending>,
    /// Fetches in a row without an answer.
    pub(super) unanswered_fetches: u32,
    /// The publisher's ring does not have the lines that are needed next.
    pub(super) refused: Option<Refusal>,
    pub(super) renew_at: Duration,
    pub(super) renewal: Option<Pending>,
    /// Renewals in a row without an answer.
    pub(super) unanswered_renewals: u32,
    /// Until then the head may be ahead only because it has overtaken frames.
    pub(super) overtaken_until: Option<Duration>,
    /// The highest number that came as a frame.
    pub(super) received: Option<u64>,
    /// The same at the last renewal.
    pub(super) received_before: Option<u64>,
    /// Renewals in a row that were ahead although no frame had come since the one before.
    pub(super) deaf_renewals: u32,
    /// Until then frames of the actor's run are awaited.
    pub(super) run_until: Option<Duration>,
}

/// A fetch that the publisher could not serve.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Where its ring begins.
    pub(super) oldest: Option<Oldest>,
}

/// A request without an answer so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) request: RequestId,
    pub(super) deadline: Duration,
    /// The publisher's gateway is silent: without an answer, it is dead.
    pub(super) is_probe: bool,
    /// Of a fetch: the number that was missing; `None` if only a position was known.
    pub(super) next: Option<u64>,
}

// === impl Following ===

impl Following {
    pub(super) fn new(publisher: GatewayId, head: Head, now: Duration) -> Self {
        Self {
            publisher,
            rank: head.rank,
            head: Some(head),
            head_from: FleetNoticed::Renewal,
            next: None,
            kept: Kept::default(),
            fetch: None,
            unanswered_fetches: 0,
            refused: None,
            renew_at: now,
            renewal: None,
            unanswered_renewals: 0,
            overtaken_until: None,
            received: None,
            received_before: None,
            deaf_renewals: 0,
            run_until: Some(now + RUN_WAIT),
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let renew = self.renewal.map_or(self.renew_at, |renewal| renewal.deadline);
        let fetch = self.fetch.map(|fetch| fetch.deadline);
        [Some(renew), fetch, self.overtaken_until, self.run_until].into_iter().flatten().min()
    }

    /// Whether an answer to this request is awaited.
    pub(super) fn has_asked(&self, request: RequestId) -> bool {
        let mut pending = self.renewal.iter().chain(&self.fetch);
        pending.any(|pending| pending.request == request)
    }

    /// The actor has opened another run.
    pub(super) fn wait_for_run(&mut self, now: Duration) {
        self.run_until = Some(now + RUN_WAIT);
        self.refused = None;
    }

    /// Number of a frame that follows missing ones, if any is known.
    pub(super) fn known_after(&self, next: u64) -> Option<u64> {
        let head = self.head.as_ref().filter(|_| self.overtaken_until.is_none()).map(|head| head.end.number);
        let kept = self.kept.first();
        kept.or(head).filter(|number| *number > next)
    }
}
