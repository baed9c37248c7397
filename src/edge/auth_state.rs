//! Authentication results of the calls on one connection. They matter while the connection's peer is shut
//! out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;

/// Refused calls after which a connection must close, if the peer is shut out or calls too fast without
/// credentials. A client that observes `RetryInfo` is refused once or twice. A refusal costs nearly as much
/// as an answer.
const REFUSALS_MAX: u32 = 128;

/// Authentication state of one connection. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct AuthState(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether a call has authenticated. Never unset.
    ever_authenticated: AtomicBool,
    /// Whether the last authentication succeeded.
    last_succeeded: AtomicBool,
    /// Calls refused because of their peer.
    refusals: AtomicU32,
    /// Notified at every [`REFUSALS_MAX`]th refusal.
    flooded: Notify,
    /// Notified when a call is refused because its peer is shut out.
    shut_out_refused: Notify,
}

// === impl AuthState ===

impl AuthState {
    /// Records a successful authentication.
    pub(super) fn record_success(&self) {
        self.0.ever_authenticated.store(true, Ordering::Relaxed);
        self.0.last_succeeded.store(true, Ordering::Relaxed);
    }

    /// Records a failed authentication.
    pub(super) fn record_failure(&self) {
        self.0.last_succeeded.store(false, Ordering::Relaxed);
    }

    /// Returns whether a call has authenticated. The connection may then stay open while its peer is shut
    /// out.
    pub(super) fn is_authenticated(&self) -> bool {
        self.0.ever_authenticated.load(Ordering::Relaxed)
    }

    /// Returns whether further calls are authenticated while the peer is shut out. A failure ends that, so
    /// that a caller with one good token cannot try bad ones.
    pub(super) fn may_call(&self) -> bool {
        self.0.last_succeeded.load(Ordering::Relaxed)
    }

    /// Records a call without credentials that was refused because its peer calls too fast.
    pub(super) fn record_refusal(&self) {
        let before = self.0.refusals.fetch_add(1, Ordering::Relaxed);
        if before % REFUSALS_MAX == REFUSALS_MAX - 1 {
            // Stores a permit if no task waits at the moment.
            self.0.flooded.notify_one();
        }
    }

    /// Records a call that was refused because its peer is shut out.
    pub(super) fn record_shut_out_refusal(&self) {
        self.0.shut_out_refused.notify_one();
        self.record_refusal();
    }

    /// Waits until a call is refused because its peer is shut out. For one waiter. Cancel safe.
    pub(super) async fn shut_out_refused(&self) {
        self.0.shut_out_refused.notified().await;
    }

    /// Waits until [`REFUSALS_MAX`] calls were refused since this last resolved. For one waiter. Cancel safe.
    pub(super) async fn flooded(&self) {
        self.0.flooded.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn failed_call_is_not_excused_by_an_earlier_success() {
        let state = AuthState::default();
        assert!(!state.is_authenticated() && !state.may_call());
        state.record_success();
        assert!(state.is_authenticated() && state.may_call());
        state.record_failure();
        assert!(state.is_authenticated() && !state.may_call());
        state.record_success();
        assert!(state.may_call());
    }

    #[tokio::test(start_paused = true)]
    async fn many_refusals_are_a_flood() {
        let state = AuthState::default();
        let short = Duration::from_millis(1);
        for _ in 1..REFUSALS_MAX {
            state.record_refusal();
        }
        tokio::time::timeout(short, state.flooded()).await.unwrap_err();
        state.record_refusal();
        tokio::time::timeout(short, state.flooded()).await.unwrap();
        state.record_refusal();
        tokio::time::timeout(short, state.flooded()).await.unwrap_err();
    }
}
