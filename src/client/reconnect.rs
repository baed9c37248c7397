//! Decides whether and when a failed call is made again.

use std::io;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use rand::RngExt as _;
use tokio::time::Instant;

use super::error::CallError;

/// Longest delay before a reconnect, so that a gateway that is back is found soon.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Delays before jitter is applied.
const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(250))
    .with_max_delay(BACKOFF_MAX)
    .without_max_times();

/// A stream that lived this long counts as a success: the next back-off starts with the shortest delay again.
const BACKOFF_RESET_AFTER: Duration = BACKOFF_MAX;

/// Interval of messages about attempts that fail for the same reason. A gateway may be away for hours.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// The messages about failed attempts to reconnect. Those that would only repeat the last one are left out.
#[derive(Debug, Default)]
pub(super) struct ReconnectMessages {
    /// Reason and time of the last message.
    last: Option<(String, Instant)>,
}

/// Reconnects of one command: retries left and the current back-off.
#[derive(Debug)]
pub(super) struct ReconnectState {
    retries: Retries,
    /// Whether a connection was ever open. Without one, the first error is final.
    pub(super) was_connected: bool,
    delays: ExponentialBackoff,
}

/// How often a call may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retries {
    /// No limit, for calls that follow; any retryable error is retried.
    Unlimited,
    /// No limit, for calls that run unattended: also before the first connection, and after it also when the
    /// gateway rejects the call or no longer has the lease.
    Persistent,
    /// At most this many more, and only while the log or the gateway is unavailable.
    Left(u32),
}

// === impl ReconnectMessages ===

impl ReconnectMessages {
    /// Returns the message about an attempt that failed with `error`, if it is due.
    pub(super) fn of_failure(&mut self, error: &CallError, retry_in: Duration) -> Option<String> {
        let reason = error.to_string();
        let is_repeated = |(last, at): &(String, Instant)| *last == reason && at.elapsed() < REPEAT_AFTER;
        if self.last.as_ref().is_some_and(is_repeated) {
            return None;
        }
        let text = format!("{reason}; reconnecting in {:.1} s", retry_in.as_secs_f64());
        self.last = Some((reason, Instant::now()));
        Some(text)
    }

    /// Forgets the last message after an attempt that succeeded.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }
}

// === impl ReconnectState ===

impl ReconnectState {
    pub(super) fn new(retries: Retries) -> Self {
        Self { retries, was_connected: false, delays: BACKOFF.build() }
    }

    pub(super) fn is_persistent(&self) -> bool {
        self.retries == Retries::Persistent
    }

    /// Waits before another attempt, after a call that started at `started` and failed with `error`. Calls
    /// `announce` with the error and the delay first. Returns false if the lease has ended.
    ///
    /// # Errors
    /// `error`, if it is final, or the error of `announce`.
    pub(super) async fn wait(
        &mut self,
        error: CallError,
        started: Instant,
        announce: impl FnOnce(&CallError, Duration) -> io::Result<()>,
    ) -> Result<bool, CallError> {
        let may_wait_for_start = self.is_persistent() && error.is_retryable();
        if !(self.was_connected || may_wait_for_start) {
            return Err(error);
        }
        match self.retries {
            Retries::Unlimited if error.is_lease_gone() => return Ok(false),
            Retries::Unlimited if error.is_retryable() => {}
            Retries::Persistent if !error.is_permanent() => {}
            Retries::Left(left) if left > 0 && error.is_unavailable() => {
                self.retries = Retries::Left(left - 1);
            }
            _ => return Err(error),
        }
        if started.elapsed() >= BACKOFF_RESET_AFTER {
            self.delays = BACKOFF.build();
        }
        // The random factor spreads followers that were disconnected together. backon's jitter only lengthens
        // delays.
        let jitter = rand::rng().random_range(0.5..=1.0);
        let delay = self.delays.next().unwrap_or(BACKOFF_MAX).mul_f64(jitter);
        let delay = delay.max(error.retry_after().unwrap_or_default().min(BACKOFF_MAX));
        announce(&error, delay)?;
        tokio::time::sleep(delay).await;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn same_failure_is_reported_once_a_minute() {
        let (refused, draining) = (Status::unavailable("refused"), Status::unavailable("draining"));
        let (refused, draining) = (CallError::from(refused), CallError::from(draining));
        let mut messages = ReconnectMessages::default();
        let text = messages.of_failure(&refused, Duration::from_millis(250)).unwrap();
        assert_eq!(text, "the gateway answered: refused; reconnecting in 0.2 s");
        let mut is_due = |error: &CallError| messages.of_failure(error, Duration::ZERO).is_some();
        assert!(!is_due(&refused) && is_due(&draining) && is_due(&refused));
        tokio::time::advance(REPEAT_AFTER).await;
        assert!(is_due(&refused) && !is_due(&refused));
        messages.reset();
        assert!(messages.of_failure(&refused, Duration::ZERO).is_some());
    }

    #[test]
    fn delays_double_up_to_ten_seconds() {
        let delays: Vec<_> = BACKOFF.build().take(8).map(|delay| delay.as_millis()).collect();
        assert_eq!(delays, [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
    }
}
