//! Delays before failed watches are retried.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use super::jittered;

/// First delay after a watch failed. It doubles with each failure, and is jittered.
const DELAY_FIRST: Duration = Duration::from_millis(500);

/// Time without a failure after which the delays start anew, as they do with each change or complete list.
const FAILURE_KEPT: Duration = Duration::from_secs(30);

/// The delays of one watch.
#[derive(Debug)]
pub(super) struct WatchBackoff {
    delays: ExponentialBuilder,
    delay_max: Duration,
    remaining: ExponentialBackoff,
    last_failure: Instant,
    /// Failures since the last change or complete list.
    failures: u32,
}

// === impl WatchBackoff ===

impl WatchBackoff {
    pub(super) fn new(delay_max: Duration) -> Self {
        let delays = ExponentialBuilder::new().with_min_delay(DELAY_FIRST).with_max_delay(delay_max);
        let delays = delays.without_max_times();
        Self { delays, delay_max, remaining: delays.build(), last_failure: Instant::now(), failures: 0 }
    }

    /// Starts the delays anew after a change or a complete list. Returns whether the watch had failed before.
    pub(super) fn reset(&mut self) -> bool {
        self.remaining = self.delays.build();
        std::mem::take(&mut self.failures) > 0
    }

    /// Counts a failure. Returns the number of failures since then, and the delay before the next
    /// attempt.
    pub(super) fn next(&mut self) -> (u32, Duration) {
        self.failures = self.failures.saturating_add(1);
        if self.last_failure.elapsed() > FAILURE_KEPT {
            self.remaining = self.delays.build();
        }
        self.last_failure = Instant::now();
        (self.failures, jittered(self.remaining.next().unwrap_or(self.delay_max)))
    }
}
