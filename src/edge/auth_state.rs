//! What the calls on one connection have shown of their caller, as far as it matters while the peer is shut out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;

/// Calls refused on one connection, since its peer is shut out or calls too fast without credentials, until the connection must
/// go. A client that observes `RetryInfo` is refused once or twice; this many are a flood, and a refusal costs nearly as much as
/// an answer.
const REFUSALS_MAX: u32 = 128;

/// Authentication state of one connection. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct AuthState(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// A call has authenticated. Never unset.
    ever: AtomicBool,
    /// The last authentication succeeded.
    last: AtomicBool,
    /// Calls refused for what their peer does.
    refusals: AtomicU32,
    /// Notified at every [`REFUSALS_MAX`]th of them.
    flooded: Notify,
    /// Notified when a call is refused because its peer is shut out.
    shut_out_told: Notify,
}

// === impl AuthState ===

impl AuthState {
    /// Records a successful authentication.
    pub(super) fn succeeded(&self) {
        self.0.ever.store(true, Ordering::Relaxed);
        self.0.last.store(true, Ordering::Relaxed);
    }

    /// Records a failed authentication.
    pub(super) fn failed(&self) {
        self.0.last.store(false, Ordering::Relaxed);
    }

    /// Whether a call has authenticated: the connection may then stay while its peer is shut out.
    pub(super) fn is_authenticated(&self) -> bool {
        self.0.ever.load(Ordering::Relaxed)
    }

    /// Whether further calls are looked at while the peer is shut out. A failure ends that, so that a caller with one good
    /// token cannot go on to try bad ones.
    pub(super) fn may_call(&self) -> bool {
        self.0.last.load(Ordering::Relaxed)
    }

    /// Records a call without credentials that was refused for the rate of its peer.
    pub(super) fn rate_refused(&self) {
        let before = self.0.refusals.fetch_add(1, Ordering::Relaxed);
        if before % REFUSALS_MAX == REFUSALS_MAX - 1 {
            // Keeps a permit if nothing waits at the moment.
            self.0.flooded.notify_one();
        }
    }

    /// Records a call that was refused because its peer is shut out.
    pub(super) fn shut_out_refused(&self) {
        self.0.shut_out_told.notify_one();
        self.rate_refused();
    }

    /// Waits until a call was refused because its peer is shut out. For one waiter. Cancel safe.
    pub(super) async fn shut_out_told(&self) {
        self.0.shut_out_told.notified().await;
    }

    /// Waits until the connection has had too many calls refused, or too many since this resolved last. For one waiter. Cancel safe.
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
        state.succeeded();
        assert!(state.is_authenticated() && state.may_call());
        state.failed();
        assert!(state.is_authenticated() && !state.may_call());
        state.succeeded();
        assert!(state.may_call());
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_in_number_are_a_flood() {
        let state = AuthState::default();
        let short = Duration::from_millis(1);
        for _ in 1..REFUSALS_MAX {
            state.rate_refused();
        }
        tokio::time::timeout(short, state.flooded()).await.unwrap_err();
        state.rate_refused();
        tokio::time::timeout(short, state.flooded()).await.unwrap();
        state.rate_refused();
        tokio::time::timeout(short, state.flooded()).await.unwrap_err();
    }
}
